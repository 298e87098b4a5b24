"""Experiences with chosen numbers, and small learners."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from surefoot.alignment.configuration import TrainingConfiguration
from surefoot.alignment.data.prompts import Prompt
from surefoot.alignment.likelihood.likelihood import Likelihood
from surefoot.alignment.preparation import live_reference
from surefoot.alignment.rlhf.configuration import PPOConfiguration
from surefoot.alignment.rlhf.critic import Critic
from surefoot.alignment.rlhf.experience import Answered, Experience
from surefoot.alignment.rlhf.learner import PolicyOptimization
from tests.alignment.models.tiny import language_model, reward_model

EOS = 1
"""Id of the word-level tokenizer."""
PAID = (11, 12, 13, 14, 15)
"""Tokens that are worth something."""


def settings(**choices: Any) -> PPOConfiguration:
    return PPOConfiguration(reward="not read here", **choices)


def plain_training(**choices: Any) -> TrainingConfiguration:
    plain = {"learning_rate": 1e-2, "learning_rate_schedule": "constant", "warmup": 0.0, "batch_size": 3}
    return replace(TrainingConfiguration(), **(plain | choices))


def prompt(number: int, ids: Sequence[int]) -> Prompt:
    return Prompt(number, np.array(ids, np.int32), f"prompt {number}", {})


def some_prompts(count: int = 3, seed: int = 0) -> list[Prompt]:
    rng = np.random.default_rng(seed)
    return [prompt(i + 1, rng.integers(3, 21, 2 + i % 3)) for i in range(count)]


def some_answers(counts: Sequence[int], seed: int = 5) -> tuple[np.ndarray, ...]:
    """Answers of these lengths, of words."""
    rng = np.random.default_rng(seed)
    return tuple(rng.integers(3, 21, count).astype(np.int32) for count in counts)


def columns(rows: Sequence[Sequence[float]], behind: float = 0.0) -> torch.Tensor:
    """A number per token of each answer as [T, N] in float64, with ``behind`` in the slots that are no tokens."""
    table = torch.full((max(map(len, rows)), len(rows)), behind, dtype=torch.float64)
    for n, row in enumerate(rows):
        table[: len(row), n] = torch.tensor(row, dtype=torch.float64)
    return table


def experience(
    log_probabilities: Sequence[Sequence[float]],
    *,
    reference: Sequence[Sequence[float]] | None = None,
    values: Sequence[Sequence[float]] | None = None,
    rewards: Sequence[float] | None = None,
    finished: Sequence[bool] | None = None,
    answers_per_prompt: int = 2,
    behind: float = 0.0,
) -> Experience:
    """Answers as long as the lists of numbers are; what the tokens are nobody asks."""
    count = len(log_probabilities)
    answers = some_answers([len(row) for row in log_probabilities])
    batch = [
        Answered(prompt(i + 1, (3, 4)), answers[i : i + answers_per_prompt], i) for i in range(0, count, answers_per_prompt)
    ]
    return Experience(
        batch,
        np.ones(count, bool) if finished is None else np.array(finished),
        np.zeros(count) if rewards is None else np.array(rewards, np.float64),
        columns(log_probabilities, behind),
        columns(log_probabilities if reference is None else reference, behind),
        None if values is None else columns(values, behind),
    )


@dataclass
class TokenCount:
    """The reward of an answer is how many of its tokens are paid for."""

    name: str = "how many tokens are paid for"
    seen: list[list[np.ndarray]] = field(default_factory=list)

    def rewards(self, prompts: Sequence[Prompt], answers: Sequence[Sequence[np.ndarray]], finished: np.ndarray) -> np.ndarray:
        self.seen.append([answer for group in answers for answer in group])
        return paid(self.seen[-1])


def paid(answers: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([float(np.isin(answer, PAID).sum()) for answer in answers])


def moved(model: Any, by: float = 0.05, seed: int = 1) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += by * torch.randn(parameter.shape, generator=generator)
    return model


def learner(
    *,
    critic: str | None = "own",
    training: TrainingConfiguration | None = None,
    total: int = 4,
    at_once: bool = False,
    model: Any = None,
    **choices: Any,
) -> PolicyOptimization:
    """A tiny policy that can learn; gae with a critic of its own unless something else is said."""
    chosen = settings(**{"longest_answer": 5, "answers_per_prompt": 3} | choices)
    actor = Likelihood((language_model() if model is None else model).train())
    critics = {
        None: lambda: None,
        "own": lambda: Critic(Likelihood(reward_model().train())),
        "shared": lambda: Critic.sharing(actor),
    }
    return PolicyOptimization(
        actor=actor,
        reward=TokenCount(),
        reference=live_reference(actor),
        critic=critics[critic if chosen.weight == "gae" else None](),
        settings=chosen,
        training=plain_training() if training is None else training,
        total=total,
        ends=(EOS,),
        at_once=at_once,
    )


def weights_of(model: torch.nn.Module) -> torch.Tensor:
    """All parameters in one row."""
    return torch.cat([p.detach().flatten() for p in model.parameters()]).clone()


def iterate(one: PolicyOptimization, times: int = 1, prompts: Sequence[Prompt] | None = None) -> list[dict[str, float]]:
    """The metrics of some iterations, on the same few prompts."""
    return [one.iterate(some_prompts() if prompts is None else prompts) for _ in range(times)]


def digest(one: PolicyOptimization) -> bytes:
    """The policy's weights, to compare bits."""
    return weights_of(one.actor.model).numpy().tobytes()
