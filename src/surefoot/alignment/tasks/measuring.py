"""How good a policy's own answers are, on the generated language task whose reward is known."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from surefoot.alignment.data.configuration import DataConfiguration
from surefoot.alignment.data.prompts import load_prompts
from surefoot.alignment.data.tokenization.decoding import answer_texts
from surefoot.alignment.data.tokenization.tokenizer import load_tokenizer
from surefoot.alignment.likelihood.distribution import AnswerDistribution
from surefoot.alignment.likelihood.likelihood import Likelihood
from surefoot.alignment.models.configuration import ModelConfiguration
from surefoot.alignment.models.loading import load_policy
from surefoot.alignment.reference import LiveReference
from surefoot.alignment.sampling.sampler import Sampler
from surefoot.alignment.tasks.grammar import parse, reward

LONGEST = 24
"""Tokens of an answer at most: the language's longest has 17, with its end."""


class MeasuredPolicy(NamedTuple):
    """Means over one answer to each prompt."""

    reward: float
    """The true reward."""
    standard_error: float
    sentences: float
    """Share of the answers that are sentences of the language."""
    kl: float
    """log π − log π_ref of the answers, in nats: an unbiased estimate of KL(π‖π_ref)."""


def measure_answers(model: Path, *, reference: Path, data: Path, seed: int, at_once: int = 128) -> MeasuredPolicy:
    """Sample an answer to every prompt, and look up its reward.

    Args:
        model: folder of the policy.
        reference: folder of π_ref, with the same tokenizer.
        data: rows with a prompt of the language.
        seed: of the sampling.
        at_once: prompts at a time.
    """
    tokenizer = load_tokenizer(str(model))
    prompts = load_prompts(DataConfiguration(str(data)), tokenizer, longest_answer=LONGEST).prompts
    policy, other = (Likelihood(load_policy(ModelConfiguration(str(m)), tokenizer).eval()) for m in (model, reference))
    live = LiveReference(other)
    sampler = Sampler(policy, under=AnswerDistribution(ends=(tokenizer.eos_token_id,)), longest=LONGEST)
    noise = np.random.default_rng(seed).random((len(prompts), LONGEST))
    rewards, sentences, distances = list[float](), list[bool](), list[float]()
    for begin, end in pairwise([*range(0, len(prompts), at_once), len(prompts)]):
        part = prompts[begin:end]
        samples = sampler.sample([prompt.ids for prompt in part], answers=1, noise=noise[begin:end])
        groups = [(prompt.ids, [answer]) for prompt, answer in zip(part, samples.answers, strict=True)]
        likely = np.array([float(kept.sum()) for kept in samples.log_probabilities])
        distances += (likely - live.completions(groups).sums().cpu().numpy()).tolist()
        for prompt, answer in zip(part, samples.answers, strict=True):
            (text,) = answer_texts(prompt.ids, [answer], tokenizer, conversation=False)
            rewards.append(reward(str(prompt.text), text))
            sentences.append(parse(str(prompt.text), text) is not None)
    error = float(np.std(rewards, ddof=1) / len(rewards) ** 0.5)
    return MeasuredPolicy(float(np.mean(rewards)), error, float(np.mean(sentences)), float(np.mean(distances)))
