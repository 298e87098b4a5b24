"""Tasks whose answers can all be listed, and what is then known exactly of a policy.

A task is a reference policy π_ref and a reward r over X prompts and the Y answers to each; prompts are equally likely. Under
π_ref the reward of each prompt has mean 0 and standard deviation 1, so that one β means the same everywhere. π aims at

    J(π) = E_π[r] − β KL(π‖π_ref),

whose maximum is at π* = π_ref exp(r/β)/Z and is β E[log Z]. Whatever else π is, J(π*) − J(π) = β KL(π‖π*): the distance from
the optimum is KL(π‖π*), in this direction. Everything is float64 NumPy.

Source: Rafailov et al., Direct Preference Optimization (2023), equations 3 and 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from surefoot.equations.preferences import ClosedFormOptimum, closed_form_optimum
from surefoot.errors import UsageError

__all__ = [
    "PolicyMeasures",
    "PreferenceTask",
    "frontier",
    "log_softmax",
    "mean_kl_divergence",
    "measure_policy",
    "optimal_policy",
    "standardized_rewards",
    "table_task",
]

PROBABILITY_TOLERANCE = 1e-9


def log_softmax(logits: Float[np.ndarray, "X Y"]) -> Float[np.ndarray, "X Y"]:
    """z_y − log Σ exp z, over all answers."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


@dataclass(frozen=True, eq=False)
class PreferenceTask:
    """π_ref and r over every answer to every prompt.

    Raises:
        UsageError: shapes differ, a number is not finite, or a prompt's probabilities do not add up to 1.
    """

    reference_log_probabilities: Float[np.ndarray, "X Y"]
    """Log π_ref(y|x), in nats; every answer can be given."""
    rewards: Float[np.ndarray, "X Y"]
    """r(x,y), in reward units."""

    def __post_init__(self) -> None:
        reference, rewards = self.reference_log_probabilities, self.rewards
        if reference.shape != rewards.shape:
            raise UsageError(f"rewards have shape {rewards.shape} where that of the reference, {reference.shape}, is right")
        if not (np.isfinite(reference).all() and np.isfinite(rewards).all()):
            raise UsageError("rewards and log-probabilities of a task must be finite: every answer must be possible")
        if not np.allclose(np.exp(reference).sum(axis=-1), 1, atol=PROBABILITY_TOLERANCE):
            raise UsageError("the reference's probabilities must add up to 1 over the answers to each prompt")

    @property
    def prompts(self) -> int:
        """X."""
        return self.rewards.shape[0]

    @property
    def answers(self) -> int:
        """Y, the number of answers to each prompt."""
        return self.rewards.shape[1]


def standardized_rewards(
    rewards: Float[np.ndarray, "X Y"], *, reference_log_probabilities: Float[np.ndarray, "X Y"]
) -> Float[np.ndarray, "X Y"]:
    """(r − E[r]) / √Var[r] under π_ref, each prompt for itself.

    Raises:
        UsageError: all answers to a prompt have the same reward.
    """
    probabilities = np.exp(reference_log_probabilities)
    centred = rewards - (probabilities * rewards).sum(axis=-1, keepdims=True)
    deviation = np.sqrt((probabilities * centred**2).sum(axis=-1, keepdims=True))
    if not (deviation > 0).all():
        raise UsageError("all answers to a prompt have the same reward; give rewards that differ")
    return centred / deviation


def table_task(*, prompts: int = 8, answers: int = 16, seed: int = 0) -> PreferenceTask:
    """A table: logits of π_ref and rewards are independent standard normal numbers, the rewards then standardised.

    Args:
        prompts: X.
        answers: Y ≥ 2.
        seed: of both.
    """
    if prompts < 1 or answers < 2:
        raise UsageError(f"a task needs a prompt and two answers, not {prompts} and {answers}")
    generator = np.random.default_rng(seed)
    reference = log_softmax(generator.normal(size=(prompts, answers)))
    rewards = generator.normal(size=(prompts, answers))
    return PreferenceTask(reference, standardized_rewards(rewards, reference_log_probabilities=reference))


def optimal_policy(task: PreferenceTask, *, beta: float) -> ClosedFormOptimum:
    """Log π* and log Z of the task, from :func:`surefoot.equations.closed_form_optimum`."""
    return closed_form_optimum(reference_log_probabilities=task.reference_log_probabilities, rewards=task.rewards, beta=beta)


def mean_kl_divergence(log_probabilities: Float[np.ndarray, "X Y"], other_log_probabilities: Float[np.ndarray, "X Y"]) -> float:
    """KL(p‖q) = Σ_y p (log p − log q), averaged over prompts, in nats."""
    probabilities = np.exp(log_probabilities)
    return float((probabilities * (log_probabilities - other_log_probabilities)).sum(axis=-1).mean())


class PolicyMeasures(NamedTuple):
    """What is known exactly of one policy, averaged over prompts; ``_asdict()`` gives metrics."""

    beta: float
    reward: float
    """E_π[r], in reward units; 0 for π_ref."""
    kl_to_reference: float
    """KL(π‖π_ref), in nats."""
    kl_to_optimum: float
    """KL(π‖π*), in nats: (``optimal_objective`` − ``objective``)/β."""
    objective: float
    """J(π) = E_π[r] − β KL(π‖π_ref), in reward units; 0 for π_ref."""
    optimal_objective: float
    """J(π*) = β E[log Z], in reward units."""


def measure_policy(task: PreferenceTask, log_probabilities: Float[np.ndarray, "X Y"], *, beta: float) -> PolicyMeasures:
    """Reward, divergences and objective of π by summing over all answers.

    Args:
        task: the task.
        log_probabilities: log π(y|x) of every answer, in nats; they must add up to 1 as probabilities.
        beta: β > 0, reward units per nat.

    Raises:
        UsageError: π has another shape than the task, or does not add up to 1.
        ValueError: β is not positive.
    """
    if log_probabilities.shape != task.rewards.shape:
        raise UsageError(
            f"the policy has shape {log_probabilities.shape} where that of the task, {task.rewards.shape}, is right"
        )
    probabilities = np.exp(log_probabilities)
    if not np.allclose(probabilities.sum(axis=-1), 1, atol=1e-5):  # float32 models are welcome
        raise UsageError("the policy's probabilities must add up to 1 over the answers to each prompt")
    optimum = optimal_policy(task, beta=beta)
    reward = float((probabilities * task.rewards).sum(axis=-1).mean())
    distance = mean_kl_divergence(log_probabilities, task.reference_log_probabilities)
    return PolicyMeasures(
        beta=beta,
        reward=reward,
        kl_to_reference=distance,
        kl_to_optimum=mean_kl_divergence(log_probabilities, optimum.log_probabilities),
        objective=reward - beta * distance,
        optimal_objective=beta * float(optimum.log_partition.mean()),
    )


def frontier(task: PreferenceTask, betas: Sequence[float]) -> list[PolicyMeasures]:
    """π* for each β: the most reward that any policy can have at that KL(π‖π_ref).

    Args:
        task: the task.
        betas: every β > 0.

    Returns:
        one entry per β. As β falls, reward and KL rise together, from (0, 0) towards the best answers alone.
    """
    return [measure_policy(task, optimal_policy(task, beta=beta).log_probabilities, beta=beta) for beta in betas]
