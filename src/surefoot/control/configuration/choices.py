"""The three choices that make an algorithm: the weight ψ, the objective and the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from surefoot.control.configuration.run import require
from surefoot.equations.weights import WEIGHT_NEEDS, Weight
from surefoot.runs.settings import Settings

Schedule = Literal["constant", "linear"]


def _positive(settings: object, *names: str, optional: bool = False) -> None:
    for name in names:
        value = getattr(settings, name)
        good = (optional and value is None) or (value is not None and 0 < value < math.inf)
        wanted = "positive and finite, or none" if optional else "positive"
        require(good, f"--{name.replace('_', '-')} must be {wanted}, but is {value}")


def _fraction(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        require(0 <= value <= 1, f"--{name.replace('_', '-')} must lie between 0 and 1, but is {value}")


def _at_least(settings: object, least: int, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        require(value >= least, f"--{name.replace('_', '-')} must be at least {least}, but is {value}")


def _entropy(settings: object) -> None:
    value: float = settings.entropy_coefficient  # type: ignore[attr-defined]
    require(0 <= value < math.inf, f"--entropy-coefficient must be finite and not negative, but is {value}")


@dataclass(frozen=True)
class WeightConfiguration(Settings):
    """ψ: how good an action was."""

    weight: Weight = "gae"
    """total-return and reward-to-go need no critic; baseline, td-residual, n-step and gae train one of V; q-value and
    advantage train one of V and one of Q."""
    discount: float = 0.99
    """γ: how much the next step's reward counts. The one setting that is truly about the task; 1/(1−γ) steps is its
    horizon."""
    trace_decay: float = 0.95
    """λ of generalised advantage estimation: 0 trusts the critic (bias), 1 trusts the sampled rewards (variance). Read
    by gae, and by q-value and advantage for their critics' targets."""
    n_steps: int = 5
    """How many rewards n-step sums before the critic takes over."""
    keep_discount: bool = False
    """Multiply ψ by γᵗ, t counted from the episode's beginning, as the policy-gradient theorem has it. Practice leaves it
    out, because late steps would hardly count. total-return has it already."""
    advantage_normalization: Literal["minibatch", "batch", "none"] = "none"
    """Over what ψ is shifted to mean 0 and scaled to standard deviation 1: minibatches, or the whole rollout (for
    returns this is return standardisation). With it, the scale of rewards does not change the actor's steps. With recorded
    data the shift is weighted as ψ is."""

    def _check(self) -> None:
        _fraction(self, "discount", "trace_decay")
        _at_least(self, 1, "n_steps")
        useless = self.keep_discount and self.weight == "total-return"
        require(not useless, "--keep-discount would do nothing: total-return is discounted from the beginning; leave it out")

    @property
    def critics(self) -> tuple[str, ...]:
        """Which critics the weight needs: v, q. That of Q learns λ-returns, and these need one of V."""
        needs = WEIGHT_NEEDS[self.weight]
        if "action_values" in needs:
            return ("v", "q")
        return ("v",) if "values" in needs else ()


@dataclass(frozen=True)
class LikelihoodObjective(Settings):
    """E[ψ log π(a|s)]: its gradient is the policy gradient, for one step from the policy that acted."""

    entropy_coefficient: float = 0.0
    """Weight of the policy's entropy in its objective. Above 0 it keeps a policy exploring that would settle too
    early."""

    def _check(self) -> None:
        _entropy(self)


@dataclass(frozen=True)
class SurrogateObjective(Settings):
    """E[ρ ψ], ρ = π/π_old, clipped, penalised, or both: it can be climbed for several steps."""

    clip_range: float | None = 0.2
    """ε of the clipped surrogate: a sample stops pulling once its probability ratio has left 1 ± ε in the direction
    that it pulls. none does not clip."""
    clip_range_schedule: Schedule = "constant"
    """linear lets ε fall to 0 over the run."""
    kl_penalty: Literal["none", "fixed", "adaptive", "dual"] = "none"
    """Subtract β KL(π_old‖π). fixed keeps β; adaptive doubles or halves it once per rollout to bring KL near --kl-target
    (Schulman et al. 2017, section 4); dual treats β as the multiplier of KL ≤ --kl-target and climbs it by gradient."""
    kl_coefficient: float = 1.0
    """β of the KL penalty, at the start where it changes."""
    kl_target: float = 0.01
    """KL(π_old‖π) in nats, a mean over states, that adaptive and dual aim at."""
    dual_learning_rate: float = 100.0
    """Step of the multiplier per nat that KL exceeds --kl-target: β ← max(β + step · (KL − target), 0)."""
    entropy_coefficient: float = 0.0
    """Weight of the policy's entropy in its objective. Above 0 it keeps a policy exploring that would settle too
    early."""
    target_kl: float | None = None
    """The actor stops for this rollout when a minibatch's estimate of KL(π_old‖π) exceeds 1.5 times this, in nats;
    the critic goes on."""
    recompute_advantages: bool | None = None
    """Estimate advantages and targets again before each epoch, with the critic as it then is (Andrychowicz et al. 2021). By default
    on where actions are continuous (a Box) and there are several epochs, off elsewhere."""

    def _check(self) -> None:
        _positive(self, "clip_range", "target_kl", optional=True)
        _positive(self, "kl_coefficient", "kl_target", "dual_learning_rate")
        _entropy(self)


@dataclass(frozen=True)
class OptimizerConfiguration(Settings):
    """How a gradient becomes a step, for actor and critic alike; where the actor takes a natural step, for the critic."""

    optimizer: Literal["adam", "rmsprop", "sgd"] = "adam"
    """What scales the gradients. rmsprop is A2C's of old (decay 0.99); sgd leaves them as they are."""
    learning_rate: float = 3e-4
    """Step size."""
    critic_learning_rate: float | None = None
    """The critic's own step size; none takes --learning-rate."""
    learning_rate_schedule: Schedule = "linear"
    """linear lets the step sizes fall to 0 over the run, which steadies the end; constant keeps them."""
    adam_epsilon: float = 1e-5
    """ε in Adam's and RMSprop's denominator. Larger than the usual 1e-8: it damps steps along directions whose gradients are
    tiny."""
    max_gradient_norm: float | None = 0.5
    """The gradients of the actor and of the critic are each scaled down to this global norm; none leaves them."""

    def _check(self) -> None:
        _positive(self, "learning_rate", "adam_epsilon")
        _positive(self, "max_gradient_norm", "critic_learning_rate", optional=True)


@dataclass(frozen=True)
class PassesConfiguration(Settings):
    """Several passes over a rollout in minibatches."""

    minibatch_size: int = 64
    """Samples per gradient step. Must divide num-envs × rollout-length."""
    epochs: int = 10
    """Passes over each rollout. More of them use the data better until the policy has left the data behind; see
    --target-kl."""
    value_clip_range: float | None = None
    """Clip how far V may move from its old value, in (normalised) reward units. Off: no evidence that it helps, some
    that it hurts."""

    def _check(self) -> None:
        _at_least(self, 1, "minibatch_size", "epochs")
        _positive(self, "value_clip_range", optional=True)


@dataclass(frozen=True)
class TrustRegionConfiguration(Settings):
    """The actor's natural step within KL(π_old‖π) ≤ δ; the optimiser and the passes are then the critic's alone."""

    max_kl: float = 0.01
    """δ: the mean KL(π_old‖π) over the rollout's states that no step exceeds, in nats."""
    max_kl_schedule: Schedule = "constant"
    """linear lets δ fall to 0 over the run."""
    conjugate_gradient_steps: int = 15
    """Fisher-vector products spent on the step's direction."""
    damping: float = 0.1
    """Added to the Fisher matrix's diagonal: keeps the direction sane where the data say nothing about it."""
    backtracks: int = 10
    """How often a step that breaks the bound, or lowers the surrogate, is shortened before it is given up."""
    backtrack_factor: float = 0.8
    """By how much each time."""

    def _check(self) -> None:
        _positive(self, "max_kl")
        _at_least(self, 1, "conjugate_gradient_steps")
        _at_least(self, 0, "backtracks")
        require(0 <= self.damping < math.inf, f"--damping must be finite and not negative, but is {self.damping}")
        good = 0 < self.backtrack_factor < 1
        require(good, f"--backtrack-factor must lie between 0 and 1, both excluded, but is {self.backtrack_factor}")


@dataclass(frozen=True)
class RecordedConfiguration(Settings):
    """Learning from recorded episodes of another policy instead of acting. The policy starts as a fit to the recorded one."""

    from_data: str | None = None
    """A Minari data set, a folder or a name; none learns by acting. Monte-Carlo weights are then corrected per decision, gae
    and td-residual by V-trace."""
    episodes_per_update: int = 64
    """Episodes that each update draws from the data."""
    importance_limit: float = 2.0
    """What an importance weight is cut to: smaller means less variance and more bias towards the policy that acted."""
    smallest_effective_share: float = 0.1
    """Training ends when the effective sample size of an update's weights falls below this share of its sample: the data
    then no longer speak of the policy."""

    def _check(self) -> None:
        _at_least(self, 1, "episodes_per_update")
        _positive(self, "importance_limit")
        _fraction(self, "smallest_effective_share")
