"""Which answers are compared with which, as indices, and the losses and metrics that reward models and DPO share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from surefoot.alignment.configuration import DPOConfiguration, RewardConfiguration
from surefoot.alignment.data.examples import Example
from surefoot.alignment.methods.method import Sums
from surefoot.equations import bradley_terry_loss, plackett_luce_loss
from surefoot.errors import UsageError, require

Comparison = Literal["bradley-terry", "plackett-luce", "ipo"]


def choose_comparison(choices: RewardConfiguration | DPOConfiguration, examples: Sequence[Example]) -> Comparison:
    """What ``auto`` means for these examples; what they cannot give, or leave without effect, is refused.

    Args:
        choices: the objective that is asked for, and what belongs to it.
        examples: all that will be trained on.

    Raises:
        UsageError: plackett-luce was asked for and an example has pairs instead of ranks; an option was given that the
            comparison does not read; margins were asked for and an example has none.
    """
    requested, ranking_top = choices.objective, choices.ranking_top
    if requested == "plackett-luce":
        for example in examples:
            if example.ranks is None:
                raise UsageError(
                    f"--objective plackett-luce needs ranked answers, but row {example.number} compares pairs;"
                    " take --objective bradley-terry"
                )
    comparison: Comparison
    if requested == "auto":
        ranked = all(e.ranks is not None and len(e.completions) > 2 for e in examples)
        if ranking_top is not None and not ranked:
            raise UsageError("--ranking-top does nothing here: not every prompt has three or more ranked answers; leave it out")
        comparison = "plackett-luce" if ranked else "bradley-terry"
    else:
        comparison = requested
    if isinstance(choices, DPOConfiguration):
        require(
            not choices.label_smoothing or comparison == "bradley-terry",
            "--label-smoothing does nothing with rankings; take --objective bradley-terry, or leave it out",
        )
    elif choices.use_margins:
        require(
            comparison == "bradley-terry",
            "--use-margins does nothing with rankings; take --objective bradley-terry, or leave it out",
        )
        for example in examples:
            require(
                example.margins is not None,
                f"--use-margins needs a margin column, but row {example.number} has no margin that is a finite number; leave it out",
            )
    return comparison


@dataclass(frozen=True, eq=False)
class Comparisons:
    """The comparisons of a batch, as indices into its answers, which are numbered prompt after prompt."""

    better: Int[torch.Tensor, " M"]
    worse: Int[torch.Tensor, " M"]
    weight: Float[torch.Tensor, " M"]
    """One over the number of pairs of the prompt: every prompt weighs the same, and over-fits no sooner for having more
    answers (Ouyang et al. 2022, section 3.5)."""
    margin: Float[torch.Tensor, " M"]
    of_pairs: Int[torch.Tensor, " M"]
    """Which prompt each pair belongs to."""
    order: Int[torch.Tensor, "R K"]
    """Answers of each strictly ranked prompt, best first, padded with the batch's first, which nobody reads."""
    ranked: Bool[torch.Tensor, "R K"]
    """Which entries of ``order`` are real."""
    of_order: Int[torch.Tensor, " R"]
    """Which prompt each row of ``order`` belongs to."""
    prompts: int

    @staticmethod
    def of(examples: Sequence[Example], device: torch.device) -> Comparisons:
        """The comparisons that the examples' ranks and pairs state."""
        better, worse, weight, margin, of_pairs = [], [], [], [], []
        orders, of_order = [], []
        first = 0
        for index, example in enumerate(examples):
            count = len(example.pairs)
            better += [first + i for i, _ in example.pairs]
            worse += [first + j for _, j in example.pairs]
            weight += [1 / count] * count
            margin += list(example.margins or [0.0] * count)
            of_pairs += [index] * count
            if example.ranks is not None and not example.tied:
                orders.append(first + np.argsort(example.ranks))
                of_order.append(index)
            first += len(example.completions)
        longest = max(map(len, orders), default=0)
        order = np.zeros((len(orders), longest), np.int64)
        ranked = np.zeros((len(orders), longest), bool)
        for row, answers in enumerate(orders):
            order[row, : len(answers)], ranked[row, : len(answers)] = answers, True

        def integers(values: list[int]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.int64, device=device)

        def numbers(values: list[float]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)

        return Comparisons(
            integers(better),
            integers(worse),
            numbers(weight),
            numbers(margin),
            integers(of_pairs),
            torch.from_numpy(order).to(device),
            torch.from_numpy(ranked).to(device),
            integers(of_order),
            len(examples),
        )

    def mean_over_pairs(self, terms: Float[torch.Tensor, " M"]) -> Float[torch.Tensor, " prompts"]:
        """The mean of each prompt's pairs."""
        return terms.new_zeros(self.prompts).index_add(0, self.of_pairs, terms * self.weight)

    def bradley_terry(
        self, scores: Float[torch.Tensor, " N"], *, smoothing: float = 0.0, margins: bool = False
    ) -> Float[torch.Tensor, " prompts"]:
        """The mean over a prompt's pairs of −log σ of the difference of scores."""
        margin = self.margin if margins else 0.0
        terms = bradley_terry_loss(better=scores[self.better], worse=scores[self.worse], margin=margin, smoothing=smoothing)
        return self.mean_over_pairs(terms)

    def plackett_luce(self, scores: Float[torch.Tensor, " N"], *, top: int | None = None) -> Float[torch.Tensor, " prompts"]:
        """−log of the probability of each prompt's ranking; of prompts with ties, the mean over the pairs that their ranks imply."""
        terms = plackett_luce_loss(scores=scores[self.order], valid=self.ranked, top=top)
        whole = scores.new_zeros(self.prompts).index_add(0, self.of_order, terms)
        if len(self.of_order) == self.prompts:
            return whole
        tied = scores.new_ones(self.prompts).index_fill(0, self.of_order, 0.0)
        return whole + tied * self.bradley_terry(scores)

    def metrics(self, scores: Float[torch.Tensor, " N"]) -> Sums:
        """How the scores order the pairs, as means over prompts; equal scores count as half right."""
        scores = scores.detach()
        chosen, rejected = scores[self.better], scores[self.worse]
        right = (chosen > rejected).float() + 0.5 * (chosen == rejected).float()
        named = {"accuracy": right, "margin": chosen - rejected, "rewards/chosen": chosen, "rewards/rejected": rejected}
        return {name: self.mean(terms) for name, terms in named.items()}

    def mean(self, terms: Float[torch.Tensor, " M"]) -> tuple[Float[torch.Tensor, ""], float]:
        """The prompts' means of a number per pair, as (sum, count)."""
        return self.mean_over_pairs(terms).sum(), self.prompts
