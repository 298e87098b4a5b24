"""A language task small enough to list: a real Hugging Face causal model whose V tokens form V^T answers of exactly T tokens.

The vocabulary is the V answer tokens and nothing else, and a prompt is one of them: every distribution over next tokens is one over
answer tokens, so the probabilities of the V^T answers add up to 1 whatever the model is trained with. There is no EOS; an answer
ends because it has T tokens. Answers are numbered in lexical order, the first token being the most significant digit.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int

from surefoot.alignment.data.examples import Example, implied_pairs
from surefoot.alignment.exact.rankings import Rankings
from surefoot.alignment.exact.tasks import PreferenceTask, standardized_rewards
from surefoot.errors import require

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "LanguageTask",
    "all_answers",
    "answer_log_probabilities",
    "exact_log_probabilities",
    "language_task",
    "reference_model",
    "to_examples",
]

VOCABULARY, LENGTH = 8, 4


def all_answers(*, vocabulary: int = VOCABULARY, length: int = LENGTH) -> Int[np.ndarray, "Y T"]:
    """Token ids of all V^T answers, in lexical order."""
    return np.indices((vocabulary,) * length).reshape(length, vocabulary**length).T.copy()


def reference_model(*, seed: int = 0, vocabulary: int = VOCABULARY, length: int = LENGTH, width: int = 64) -> PreTrainedModel:
    """A GPT-2 of two layers with random weights, large enough that it prefers some answers to others.

    GPT-2 because it computes in float64 throughout where it is told to; it has no dropout, so that nothing but the data is random.

    Args:
        seed: of the weights; the global random state is left as it was.
        vocabulary: V.
        length: T; prompt and answer fit, and no more.
        width: of the hidden states, a multiple of 4.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    configuration = GPT2Config(
        vocab_size=vocabulary,
        n_positions=length + 1,
        n_embd=width,
        n_layer=2,
        n_head=4,
        initializer_range=0.8 * width**-0.5,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(configuration).eval()


def answer_log_probabilities(
    model: torch.nn.Module, prompts: Int[np.ndarray, "X P"], *, length: int = LENGTH
) -> Float[torch.Tensor, "X Y"]:
    """Log π(y|x) = Σ_t log π(y_t | x, y_<t) of all V^T answers, differentiable, in the model's own precision.

    The V^(T−1) contexts of T−1 tokens contain every shorter one as a beginning: one forward pass over them has all next-token
    distributions, and no answer is run by itself.

    Args:
        model: causal, with V tokens. Its mode is left alone: put one with dropout into evaluation mode first.
        prompts: token ids, P ≥ 1 each.
        length: T ≥ 1.

    Returns:
        V^T log-probabilities per prompt, in nats, in the order of :func:`all_answers`.
    """
    device, count = next(model.parameters()).device, len(prompts)
    vocabulary = int(model.config.vocab_size)
    contexts = all_answers(vocabulary=vocabulary, length=length - 1)
    tokens = np.concatenate([np.repeat(prompts, len(contexts), axis=0), np.tile(contexts, (count, 1))], axis=-1)
    logits = model(input_ids=torch.from_numpy(tokens).to(device)).logits[:, prompts.shape[1] - 1 :]
    following = logits.log_softmax(dim=-1).reshape(count, len(contexts), length, vocabulary)
    total = following[:, 0, 0]
    for step in range(1, length):
        # Contexts that begin with the same tokens stand together; the first of each such block speaks for it.
        distributions = following[:, :: vocabulary ** (length - 1 - step), step]
        total = (total[..., None] + distributions).reshape(count, -1)
    return total


def exact_log_probabilities(
    model: torch.nn.Module, prompts: Int[np.ndarray, "X P"], *, length: int = LENGTH
) -> Float[np.ndarray, "X Y"]:
    """:func:`answer_log_probabilities` of a float64 copy in evaluation mode, without gradients."""
    exact = copy.deepcopy(model).to(torch.float64).eval()
    with torch.no_grad():
        return answer_log_probabilities(exact, prompts, length=length).cpu().numpy()


@dataclass(frozen=True, eq=False)
class LanguageTask:
    """A task whose answers are made of tokens."""

    task: PreferenceTask
    """π_ref and r of all answers."""
    prompts: Int[np.ndarray, "X P"]
    """Token ids of the prompts."""
    answers: Int[np.ndarray, "Y T"]
    """Token ids of the answers."""


def language_task(model: torch.nn.Module, *, prompts: int = 4, length: int = LENGTH, seed: int = 0) -> LanguageTask:
    """Answers of T tokens by the model, and a reward that looks at tokens in their places and at neighbours.

    r(x,y) = Σ_t a_x(t, y_t) + Σ_t b_x(y_t, y_{t+1}), standardised, with a and b independent standard normal numbers for each prompt.

    Args:
        model: π_ref, a causal model; it is not kept.
        prompts: X ≤ V; the prompt x is the single token x.
        length: T ≥ 2.
        seed: of the reward.

    Raises:
        UsageError: X is out of range, or T below 2.
    """
    vocabulary = int(model.config.vocab_size)
    require(
        1 <= prompts <= vocabulary, f"there must be between 1 and {vocabulary} prompts, one per token, but {prompts} were given"
    )
    require(length >= 2, f"answers must have at least 2 tokens, but have {length}")
    asked, answers = np.arange(prompts)[:, None], all_answers(vocabulary=vocabulary, length=length)
    generator = np.random.default_rng(seed)
    places = generator.normal(size=(prompts, length, vocabulary))
    neighbours = generator.normal(size=(prompts, vocabulary, vocabulary))
    rewards = places[:, np.arange(length), answers].sum(axis=-1) + neighbours[:, answers[:, :-1], answers[:, 1:]].sum(axis=-1)
    reference = exact_log_probabilities(model, asked, length=length)
    return LanguageTask(
        PreferenceTask(reference, standardized_rewards(rewards, reference_log_probabilities=reference)), asked, answers
    )


def to_examples(language: LanguageTask, rankings: Rankings) -> tuple[Example, ...]:
    """Rankings as training examples of token ids, without an EOS; weights are passed over: draw the rankings, do not list them."""
    ranks = tuple(range(1, rankings.answers.shape[1] + 1))
    prompts, answers = language.prompts.astype(np.int32), language.answers.astype(np.int32)
    return tuple(
        Example(number, prompts[prompt], tuple(answers[chosen]), ranks=ranks, pairs=implied_pairs(ranks))
        for number, (prompt, chosen) in enumerate(zip(rankings.prompts, rankings.answers, strict=True), start=1)
    )
