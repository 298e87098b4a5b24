"""The enumerable tasks as models and token ids, so that they go through the same likelihood, sampler and losses as any language model.

A table of V answers is a language of one token: a GPT-2 without blocks, whose logits behind prompt x are row x of the table.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.linalg import hadamard

from surefoot.alignment.exact.language import LanguageTask, language_task, reference_model
from surefoot.alignment.exact.tasks import PreferenceTask, table_task
from surefoot.errors import UsageError, require

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["TASKS", "as_language", "critic_of", "make_task", "scoring_model", "table_model"]

TASKS: dict[str, str] = {
    "table": "8 prompts, 16 answers each, one logit for every answer",
    "language": "a GPT-2 of two layers, 2 prompts, answers of 4 out of 8 tokens: 4,096 each",
}
LANGUAGE_PROMPTS = 2
"""Half of what a language task has by default: a run takes half as many answers to learn as much."""
SCORING_WIDTH = 64


def make_task(name: str) -> tuple[LanguageTask, PreTrainedModel]:
    """A task by its name, and the model that is its π_ref.

    Raises:
        UsageError: there is no such task.
    """
    require(name in TASKS, f"there is no task {name!r}; there are {', '.join(TASKS)}")
    if name == "table":
        language = as_language(table_task())
        return language, table_model(language.task)
    model = reference_model()
    return language_task(model, prompts=LANGUAGE_PROMPTS), model


def as_language(task: PreferenceTask) -> LanguageTask:
    """A table as a language: its V answers are the V tokens, and the prompt x is the token x.

    Raises:
        UsageError: there are more prompts than answers, so that some prompt would be no token.
    """
    if task.prompts > task.answers:
        raise UsageError(
            f"a prompt is one of the answers' tokens: {task.prompts} prompts need as many answers, but there are {task.answers}"
        )
    return LanguageTask(task, np.arange(task.prompts)[:, None], np.arange(task.answers)[:, None])


def table_model(task: PreferenceTask) -> PreTrainedModel:
    """A causal model that answers with one token, whose distribution is π_ref to the precision of float32.

    Its hidden state behind prompt x is a row of a Hadamard matrix. These rows are orthogonal and have mean 0 and variance 1, so that the
    final layer norm leaves them as they are, and a linear layer on top of them can be any table. All weights can be trained.

    Args:
        task: π_ref; there must not be more prompts than answers.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    width = 2
    while width <= task.prompts:  # the first row, of ones alone, does not vary
        width *= 2
    configuration = GPT2Config(
        vocab_size=task.answers,
        n_positions=2,
        n_embd=width,
        n_layer=0,
        n_head=1,
        layer_norm_epsilon=1e-12,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        model = GPT2LMHeadModel(configuration).eval()
    # Tokens that are no prompts get rows too: a hidden state that does not vary could not be normalised.
    rows = hadamard(width)[1 + np.arange(task.answers) % (width - 1)].astype(np.float64)
    head = task.reference_log_probabilities.T @ rows[: task.prompts] / width
    with torch.no_grad():
        model.transformer.wpe.weight.zero_()
        model.transformer.wte.weight.copy_(torch.from_numpy(rows))
        model.lm_head.weight.copy_(torch.from_numpy(head))
    return model


def critic_of(model: Any) -> PreTrainedModel:
    """A model for sequence classification with the weights of a GPT-2's trunk and a head of zeros: V is 0 everywhere at first."""
    from transformers import GPT2ForSequenceClassification

    configuration = copy.deepcopy(model.config)
    configuration.num_labels = 1
    with torch.random.fork_rng(devices=[]):
        critic = GPT2ForSequenceClassification(configuration).eval()
    critic.transformer.load_state_dict(model.transformer.state_dict())
    torch.nn.init.zeros_(critic.score.weight)
    return critic


def scoring_model(language: LanguageTask, *, seed: int = 0) -> PreTrainedModel:
    """A reward model with random weights and a head of zeros: a GPT-2 of two layers, which says something of every answer, seen or not.

    Args:
        language: prompts and answers in tokens.
        seed: of the weights; the global random state is left as it was.
    """
    vocabulary = 1 + max(int(language.answers.max()), int(language.prompts.max()))
    length = language.answers.shape[1] + language.prompts.shape[1] - 1
    return critic_of(reference_model(seed=seed, vocabulary=vocabulary, length=length, width=SCORING_WIDTH))
