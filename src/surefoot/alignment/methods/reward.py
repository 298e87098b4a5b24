"""Reward models: a score per answer, such that the preferred answer has the higher one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from surefoot.alignment.configuration import RewardConfiguration
from surefoot.alignment.data.examples import Example
from surefoot.alignment.likelihood.likelihood import Likelihood
from surefoot.alignment.methods.comparisons import Comparison, Comparisons
from surefoot.alignment.methods.method import Parts, groups_of
from surefoot.equations import score_centering_loss


class RewardModelling:
    """L = mean over prompts of −log P(preferences | scores), and c times the square that centres the scores.

    P is Bradley–Terry's, σ(r_w − r_l − m), averaged over the prompt's pairs, or Plackett–Luce's of the whole ranking. The score is
    read at an answer's last token, its EOS.

    Args:
        likelihood: of the model being trained.
        configuration: the choices.
        comparison: what the objective is for these data (:func:`~surefoot.alignment.methods.comparisons.choose_comparison`).
    """

    headline = "accuracy"

    def __init__(self, likelihood: Likelihood, configuration: RewardConfiguration, comparison: Comparison) -> None:
        self.likelihood, self._configuration, self.comparison = likelihood, configuration, comparison

    def denominators(self, examples: Sequence[Example]) -> dict[str, float]:
        """Prompts."""
        return {"prompts": float(len(examples))}

    def parts(self, examples: Sequence[Example], denominators: Mapping[str, float]) -> Parts:
        """The examples' share of the loss, and how the scores order their pairs."""
        scores = self.likelihood.scores(groups_of(examples))
        comparisons = Comparisons.of(examples, scores.device)
        if self.comparison == "plackett-luce":
            terms = comparisons.plackett_luce(scores, top=self._configuration.ranking_top)
        else:
            terms = comparisons.bradley_terry(scores, margins=self._configuration.use_margins)
        sums = comparisons.metrics(scores)
        if self._configuration.centering:
            centering = _centering(scores, examples)
            sums["centering"] = (centering.detach().sum(), len(examples))
            terms = terms + self._configuration.centering * centering
        return Parts(terms.sum() / denominators["prompts"], sums)


def _centering(scores: torch.Tensor, examples: Sequence[Example]) -> torch.Tensor:
    """The centring term of each prompt, whose answers may differ in number."""
    counts = [len(example.completions) for example in examples]
    rows = torch.nn.utils.rnn.pad_sequence(list(scores.split(counts)), batch_first=True)
    there = torch.arange(rows.shape[1], device=scores.device)[None, :] < torch.tensor(counts, device=scores.device)[:, None]
    return score_centering_loss(scores=rows, valid=there)
