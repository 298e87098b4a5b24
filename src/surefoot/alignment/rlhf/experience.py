"""What an iteration of RLHF learns from: answers of the policy, and all that was measured of them.

Arrays over tokens have time first, [T, N]: row t is the t-th token of each of the N answers, an answer's last token ends its episode, and
``valid`` marks the tokens that are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from surefoot.alignment.data.prompts import Prompt
from surefoot.alignment.likelihood.likelihood import CompletionLogProbabilities
from surefoot.alignment.likelihood.packing import Group, Packed


@dataclass(frozen=True, eq=False)
class Answered:
    """A prompt and the K answers that were sampled to it."""

    prompt: Prompt
    answers: tuple[np.ndarray, ...]
    first: int
    """Number of the first of them among the batch's answers."""

    @property
    def group(self) -> Group:
        """As the likelihood takes it."""
        return self.prompt.ids, self.answers

    @property
    def tokens(self) -> int:
        """Of the prompt and all answers."""
        return len(self.prompt.ids) + sum(map(len, self.answers))


Places = tuple[Int[torch.Tensor, " S"], Int[torch.Tensor, " S"]]
"""Where in [T, N] each of S tokens stands."""


def places(part: Sequence[Answered], completions: CompletionLogProbabilities | Packed) -> Places:
    """Where in the batch's arrays the tokens of some of its prompts stand."""
    numbers = [np.arange(one.first, one.first + len(one.answers)) for one in part]
    of_batch = torch.from_numpy(np.concatenate(numbers)).to(completions.completion_of.device)
    return completions.step_of, of_batch[completions.completion_of]


@dataclass(eq=False)
class Experience:
    """Answers to a batch of prompts."""

    batch: list[Answered]
    finished: Bool[np.ndarray, " N"]
    """Which answers ended by themselves; the others were cut at the limit."""
    rewards: Float[np.ndarray, " N"]
    """As their source gave them."""
    log_probabilities: Float[torch.Tensor, "T N"]
    """Log π_old, in nats, under the distribution that was sampled from."""
    reference: Float[torch.Tensor, "T N"] | None
    """Log π_ref, in nats, under the same temperature and exclusions; ``log_probabilities`` themselves while the policy is the reference,
    None where there is none."""
    values: Float[torch.Tensor, "T N"] | None
    """V of the state before each token, in reward units; None without a critic."""

    @cached_property
    def lengths(self) -> Int[torch.Tensor, " N"]:
        """Tokens of each answer."""
        lengths = [len(answer) for one in self.batch for answer in one.answers]
        return torch.tensor(lengths, device=self.log_probabilities.device)

    @cached_property
    def valid(self) -> Bool[torch.Tensor, "T N"]:
        """Which entries are tokens."""
        return self._steps < self.lengths

    @cached_property
    def last(self) -> Bool[torch.Tensor, "T N"]:
        """Each answer's last token."""
        return self._steps == self.lengths - 1

    @property
    def _steps(self) -> Int[torch.Tensor, "T 1"]:
        return torch.arange(len(self.log_probabilities), device=self.lengths.device)[:, None]

    @property
    def kl_to_reference(self) -> Float[torch.Tensor, " N"] | None:
        """Σ_t log π_old − log π_ref of each answer, in nats: its mean is an unbiased estimate of KL(π_old‖π_ref).

        None without a reference.
        """
        if self.reference is None:
            return None
        return torch.where(self.valid, self.log_probabilities - self.reference, 0.0).sum(dim=0)


def side_by_side(answers: Sequence[np.ndarray], device: torch.device) -> Float[torch.Tensor, "T N"]:
    """A number per token of each answer, zeros behind its end."""
    rows = [torch.from_numpy(np.asarray(answer, dtype=np.float32)) for answer in answers]
    return torch.nn.utils.rnn.pad_sequence(rows).to(device)
