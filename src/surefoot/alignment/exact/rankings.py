"""Preferences of a task: drawn as people would state them, or every one that could be drawn, with its probability.

K different answers come from π_ref: y_1 … y_K ~ π_ref independently, given that no two are equal. They are then ranked by the
Plackett–Luce model of r/T, T being the temperature of the labels; for K = 2 that is Bradley–Terry,
P(y_1 ≻ y_2) = σ((r_1 − r_2)/T).

Source: Plackett, The Analysis of Permutations (1975); ranking by r/T plus Gumbel noise: Yellott, The Relationship between Luce's
Choice Axiom, Thurstone's Theory of Comparative Judgment, and the Double Exponential Distribution (1977).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from surefoot.alignment.exact.tasks import PreferenceTask
from surefoot.equations.preferences import plackett_luce_loss
from surefoot.errors import UsageError

__all__ = ["Rankings", "all_rankings", "pool", "sample_rankings"]

MOST_RANKINGS = 1_000_000
MOST_ROUNDS = 1_000


@dataclass(frozen=True, eq=False)
class Rankings:
    """Rankings of K answers, each with a weight; the weights add up to 1."""

    prompts: Int[np.ndarray, " N"]
    """Which prompt, 0 … X−1."""
    answers: Int[np.ndarray, "N K"]
    """Which answers, 0 … Y−1, best first."""
    weights: Float[np.ndarray, " N"]
    """The ranking's share of the data or, where all are listed, its probability."""


def _check(task: PreferenceTask, answers: int, temperature: float) -> None:
    if not 2 <= answers <= task.answers:
        raise UsageError(f"a ranking must have between 2 and {task.answers} answers, but {answers} were asked for")
    if not temperature > 0:
        raise UsageError(f"the temperature of the labels must be positive, but is {temperature}")


def sample_rankings(
    task: PreferenceTask, *, count: int, answers: int, generator: np.random.Generator, temperature: float = 1.0
) -> Rankings:
    """N prompts, K different answers to each, and their ranking.

    Args:
        task: where answers and rewards come from.
        count: N ≥ 1.
        answers: K ≥ 2.
        generator: every draw comes from it.
        temperature: T > 0. A larger one makes labels noisier, and π* that of r/T.

    Returns:
        rankings in the order in which they were drawn, each of weight 1/N.

    Raises:
        UsageError: N, K or T is out of range, or π_ref hardly ever gives K different answers.
    """
    _check(task, answers, temperature)
    if count < 1:
        raise UsageError(f"at least 1 ranking must be drawn, not {count}")
    prompts = generator.integers(task.prompts, size=count)
    ladder = np.exp(task.reference_log_probabilities).cumsum(axis=-1)
    ladder /= ladder[:, -1:]
    chosen = np.zeros((count, answers), np.int64)
    missing = np.arange(count)
    for _ in range(MOST_ROUNDS):
        for prompt in np.unique(prompts[missing]):
            rows = missing[prompts[missing] == prompt]
            chosen[rows] = np.searchsorted(ladder[prompt], generator.random((len(rows), answers)), side="right")
        in_order = np.sort(chosen[missing], axis=-1)
        missing = missing[(in_order[:, 1:] == in_order[:, :-1]).any(axis=-1)]
        if not missing.size:
            break
    else:
        raise UsageError(f"the reference hardly ever gives {answers} different answers; ask for fewer than {answers}")
    noisy = task.rewards[prompts[:, None], chosen] / temperature + generator.gumbel(size=chosen.shape)
    ranked = np.take_along_axis(chosen, np.argsort(-noisy, axis=-1), axis=-1)
    return Rankings(prompts, ranked, np.full(count, 1 / count))


def pool(rankings: Rankings) -> Rankings:
    """Equal rankings as one, with the sum of their weights: the same loss for less work."""
    rows = np.concatenate([rankings.prompts[:, None], rankings.answers], axis=-1)
    different, which = np.unique(rows, axis=0, return_inverse=True)
    weights = np.bincount(which.reshape(-1), weights=rankings.weights, minlength=len(different))
    return Rankings(different[:, 0], different[:, 1:], weights)


def all_rankings(task: PreferenceTask, *, answers: int, temperature: float = 1.0) -> Rankings:
    """Every ranking of K different answers to every prompt, with the probability that :func:`sample_rankings` draws it.

    Args:
        task: where answers and rewards come from.
        answers: K ≥ 2.
        temperature: T > 0, of the labels.

    Returns:
        X · Y!/(Y−K)! rankings.

    Raises:
        UsageError: K or T is out of range, or there are more than a million rankings.
    """
    _check(task, answers, temperature)
    number = task.prompts * math.perm(task.answers, answers)
    if number > MOST_RANKINGS:
        raise UsageError(f"there are {number:,} rankings of {answers} answers, too many to list; draw some instead")
    orders = np.array(list(itertools.permutations(range(task.answers), answers)))
    drawn = task.reference_log_probabilities[:, orders].sum(axis=-1)
    ranked = -plackett_luce_loss(scores=task.rewards[:, orders] / temperature)
    # A set of answers is drawn in K! orders, of which the ranking keeps one; the labels' probabilities add up to 1 over these.
    weights = np.exp(drawn + ranked)
    weights /= weights.sum(axis=-1, keepdims=True) * task.prompts
    return Rankings(np.repeat(np.arange(task.prompts), len(orders)), np.tile(orders, (task.prompts, 1)), weights.reshape(-1))
