"""Answers of a model for people to read."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from surefoot.alignment.data.prompts import Prompt, longest_groups
from surefoot.alignment.data.tokenization.decoding import sampled_texts
from surefoot.alignment.data.tokenization.ends import AnswerEnds
from surefoot.alignment.learning.memory import memory_in_a_sentence
from surefoot.alignment.likelihood.distribution import AnswerDistribution
from surefoot.alignment.likelihood.likelihood import Likelihood
from surefoot.alignment.models.configuration import ModelConfiguration
from surefoot.alignment.models.ending import ends_of
from surefoot.alignment.models.loading import load_policy
from surefoot.alignment.models.precision import autocast_dtype
from surefoot.alignment.models.vocabulary import no_tokens
from surefoot.alignment.preparation import check_length
from surefoot.alignment.sampling.sampler import Sampler


@memory_in_a_sentence()
def generate(
    settings: ModelConfiguration,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    answers: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    shortest: int = 1,
    longest: int,
    seed: int,
    batch_size: int = 16,
    tell: Callable[[str], None],
    progress: Callable[[int, int, float], None] = lambda prompts, tokens, seconds: None,
) -> dict[str, Any]:
    """Sample answers to prompts.

    What is sampled depends on the seed and on a prompt's place among the others, and not on the size of a batch.

    Args:
        settings: which model.
        tokenizer: its own.
        prompts: what is answered.
        answers: K, per prompt.
        temperature: T; 0 takes the most probable token each time.
        top_k: draw from the k most probable tokens alone; None from all.
        top_p: draw from the fewest tokens whose probabilities reach p; None from all.
        shortest: tokens that an answer has at least, its end token included.
        longest: tokens that an answer has at most.
        seed: of the sampling.
        batch_size: prompts at a time.
        tell: takes sentences for the user.
        progress: told how many prompts are done, how many tokens were sampled, and the seconds that took.

    Returns:
        prompts, answers and tokens (how many in all), seconds and tokens_per_second of the sampling, and samples: for each prompt row,
        prompt, completions (texts), tokens, and finished (whether each ended by itself).

    Raises:
        UsageError: the model cannot be used, or is too short for the prompts.
    """
    model = load_policy(settings, tokenizer, notify=tell)
    likelihood = Likelihood(model.eval(), autocast=autocast_dtype(settings))
    ids = [prompt.ids for prompt in prompts]
    check_length(likelihood, max(map(len, ids)) + longest, tell)
    if notice := likelihood.check(longest_groups(ids, longest_answer=longest)):
        tell(notice)
    if temperature == 0:
        temperature, top_k = 1.0, 1
    ends = ends_of(settings.model, tokenizer)
    for notice in ends.notices[1:] if ends.sampling else ends.notices:
        tell(notice)
    under = AnswerDistribution(temperature, shortest, ends.sampling, no_tokens(model, tokenizer))
    sampler = Sampler(likelihood, under=under, longest=longest, top_k=top_k, top_p=top_p)
    generator = np.random.default_rng(seed)
    samples: list[dict[str, Any]] = []
    tokens, seconds = 0, 0.0
    for begin in range(0, len(prompts), batch_size):
        batch = prompts[begin : begin + batch_size]
        noise = generator.random((len(batch) * answers, longest))
        began = time.perf_counter()
        with torch.no_grad():
            drawn = sampler.sample([prompt.ids for prompt in batch], answers=answers, noise=noise)
        seconds += time.perf_counter() - began
        tokens += sum(map(len, drawn.answers))
        for i, prompt in enumerate(batch):
            own = slice(i * answers, (i + 1) * answers)
            samples.append(_sample(prompt, drawn.answers[own], drawn.finished[own], tokenizer, ends))
        progress(len(samples), tokens, seconds)
    if sampler.notice is not None:
        tell(sampler.notice)
    return {
        "prompts": len(prompts),
        "answers": len(prompts) * answers,
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "samples": samples,
    }


def _sample(
    prompt: Prompt, answers: Sequence[np.ndarray], finished: np.ndarray, tokenizer: Any, ends: AnswerEnds
) -> dict[str, Any]:
    return {
        "row": prompt.number,
        "prompt": prompt.text if isinstance(prompt.text, str) else list(prompt.text),
        "completions": sampled_texts(prompt, answers, finished, tokenizer, ends),
        "tokens": [len(ids) for ids in answers],
        "finished": finished.tolist(),
    }
