"""Supervised fine-tuning: −log π of the completion's tokens, none of the prompt's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from surefoot.alignment.data.examples import Example
from surefoot.alignment.likelihood.likelihood import Likelihood
from surefoot.alignment.methods.method import Parts, groups_of
from surefoot.equations import supervised_loss


class SupervisedFineTuning:
    """L = −(1/T) Σ log π(y_t | x, y_<t), T the completion tokens of the whole batch, EOS included.

    Every token weighs the same, whatever the length of its answer and however the batch was cut into parts.

    Args:
        likelihood: of the model being trained.
    """

    headline = "log_probability/token"

    def __init__(self, likelihood: Likelihood) -> None:
        self.likelihood = likelihood

    def denominators(self, examples: Sequence[Example]) -> dict[str, float]:
        """Completion tokens."""
        return {"tokens": float(sum(len(c) for example in examples for c in example.completions))}

    def parts(self, examples: Sequence[Example], denominators: Mapping[str, float]) -> Parts:
        """The examples' share of the loss."""
        tokens = self.likelihood.completions(groups_of(examples)).tokens
        total = supervised_loss(log_probabilities=tokens).sum()
        return Parts(total / denominators["tokens"], {"log_probability/token": (tokens.detach().sum(), len(tokens))})
