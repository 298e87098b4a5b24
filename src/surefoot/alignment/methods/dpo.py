"""Direct preference optimisation: the policy's own log-ratios to the reference are the rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from surefoot.alignment.configuration import DPOConfiguration
from surefoot.alignment.data.examples import Example
from surefoot.alignment.likelihood.likelihood import Likelihood
from surefoot.alignment.methods.comparisons import Comparison, Comparisons
from surefoot.alignment.methods.method import Parts, groups_of
from surefoot.alignment.reference import Reference
from surefoot.equations import implicit_rewards, ipo_loss, supervised_loss


class DirectPreferenceOptimization:
    """L = mean over prompts of −log P(preferences | r̂), with r̂(x,y) = β (log π(y|x) − log π_ref(y|x)).

    P is Bradley–Terry's, averaged over the prompt's pairs, or Plackett–Luce's of the whole ranking; ipo pulls the log-ratios'
    difference to 1/(2β) instead. Normalised by length, every log-ratio, and with it r̂, is divided by |y|, EOS included. With a
    supervised weight α, plus α times the mean of −log π per token over the best answers.

    Args:
        likelihood: of the policy being trained.
        reference: log π_ref of the examples' answers.
        configuration: the choices.
        comparison: what the objective is for these data (:func:`~surefoot.alignment.methods.comparisons.choose_comparison`).
    """

    headline = "accuracy"

    def __init__(
        self, likelihood: Likelihood, reference: Reference, configuration: DPOConfiguration, comparison: Comparison
    ) -> None:
        self.likelihood, self.reference = likelihood, reference
        self._configuration, self.comparison = configuration, comparison

    def denominators(self, examples: Sequence[Example]) -> dict[str, float]:
        """Prompts, and tokens of their best answers."""
        return {
            "prompts": float(len(examples)),
            "tokens": float(sum(len(example.completions[example.best]) for example in examples)),
        }

    def parts(self, examples: Sequence[Example], denominators: Mapping[str, float]) -> Parts:
        """The examples' share of the loss, how the rewards order their pairs, and how far the policy has moved."""
        settings = self._configuration
        completions = self.likelihood.completions(groups_of(examples))
        likely = completions.sums()
        reference = self.reference.log_probabilities(examples)
        # The mean over an answer's tokens where that was asked for, else the sum.
        tokens = likely.new_tensor([len(answer) for example in examples for answer in example.completions])
        share = 1 / tokens if settings.length_normalized else torch.ones_like(tokens)
        rewards = implicit_rewards(
            log_probabilities=likely * share, reference_log_probabilities=reference * share, beta=settings.beta
        )
        comparisons = Comparisons.of(examples, likely.device)
        if self.comparison == "plackett-luce":
            terms = comparisons.plackett_luce(rewards, top=settings.ranking_top)
        elif self.comparison == "ipo":
            ratios = (likely - reference) * share
            pairs = ipo_loss(
                better_log_ratios=ratios[comparisons.better], worse_log_ratios=ratios[comparisons.worse], beta=settings.beta
            )
            terms = comparisons.mean_over_pairs(pairs)
        else:
            terms = comparisons.bradley_terry(rewards, smoothing=settings.label_smoothing)
        loss = terms.sum() / denominators["prompts"]
        moved = (likely - reference).detach()
        sums = comparisons.metrics(rewards) | {
            "log_probability/chosen": comparisons.mean(likely.detach()[comparisons.better]),
            "log_probability/rejected": comparisons.mean(likely.detach()[comparisons.worse]),
            "log_ratio/chosen": comparisons.mean(moved[comparisons.better]),
            # KL(π_ref‖π), as far as the answers are the reference's own
            "kl/reference": (-moved.sum(), len(moved)),
        }
        if settings.supervised_weight:
            best = _best(examples, likely.device)[completions.completion_of]
            supervised = supervised_loss(log_probabilities=completions.tokens[best]).sum()
            loss = loss + settings.supervised_weight * supervised / denominators["tokens"]
            sums["supervised_loss"] = (supervised.detach(), float(best.sum()))
        return Parts(loss, sums)


def _best(examples: Sequence[Example], device: torch.device) -> torch.Tensor:
    """Which answers of the batch are their prompt's best."""
    return torch.tensor([i == e.best for e in examples for i in range(len(e.completions))], device=device)
