"""V(s_t), the critic of RLHF: with weights of its own, or a head on the policy's hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float

from surefoot.alignment.learning.optimization import NamedParameters
from surefoot.alignment.likelihood.likelihood import CompletionLogProbabilities, Likelihood
from surefoot.alignment.likelihood.packing import Group
from surefoot.alignment.models.adapters import trainable_parameters


@dataclass(frozen=True, eq=False)
class Critic:
    """Either a model for sequence classification, or a linear layer."""

    likelihood: Likelihood | None = None
    """Of the critic's own model."""
    head: torch.nn.Linear | None = None
    """On the policy's hidden states."""

    def __post_init__(self) -> None:
        if (self.likelihood is None) == (self.head is None):
            raise ValueError("a critic has a model of its own or a head on the policy's hidden states, one of the two")

    @staticmethod
    def sharing(actor: Likelihood) -> Critic:
        """A head of zeros: first values are 0 everywhere."""
        weight = actor.head.weight
        head = torch.nn.Linear(weight.shape[1], 1, device=weight.device, dtype=torch.float32)
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
        return Critic(head=head)

    @property
    def parameters(self) -> NamedParameters:
        """What the critic's loss changes besides the policy."""
        if self.head is not None:
            return [(f"value_head.{name}", parameter) for name, parameter in self.head.named_parameters()]
        assert self.likelihood is not None
        return trainable_parameters(self.likelihood.model)

    def values(self, groups: Sequence[Group], completions: CompletionLogProbabilities | None) -> Float[torch.Tensor, " S"]:
        """V of the state before each completion token, in the order of ``completions``.

        Args:
            groups: prompts and answers.
            completions: of the policy, computed with this critic's head; read by a critic that shares its weights.
        """
        if self.likelihood is not None:
            return self.likelihood.values(groups)
        assert completions is not None
        assert completions.values is not None
        return completions.values
