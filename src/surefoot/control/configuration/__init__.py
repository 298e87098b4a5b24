"""What can be chosen about a training run. No engine is imported here, so that help and mistakes cost no start-up
time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from surefoot.control.configuration.choices import (
    LikelihoodObjective,
    OptimizerConfiguration,
    PassesConfiguration,
    RecordedConfiguration,
    Schedule,
    SurrogateObjective,
    TrustRegionConfiguration,
    WeightConfiguration,
)
from surefoot.control.configuration.run import (
    FROM_DATA,
    Backend,
    NetworkConfiguration,
    NormalizationConfiguration,
    RunConfiguration,
)
from surefoot.control.environments.identity.record import EnvironmentIdentity
from surefoot.equations.weights import WEIGHT_NEEDS
from surefoot.errors import UsageError
from surefoot.runs.rates import CHANGES, RateChanges, changes_as_json, check_changes, read_changes
from surefoot.runs.settings import Settings, part_from, refuse_unknown

__all__ = [
    "FROM_DATA",
    "Backend",
    "LikelihoodObjective",
    "NetworkConfiguration",
    "NormalizationConfiguration",
    "OptimizerConfiguration",
    "PassesConfiguration",
    "RecordedConfiguration",
    "RunConfiguration",
    "Schedule",
    "SurrogateObjective",
    "TrainConfiguration",
    "TrustRegionConfiguration",
    "WeightConfiguration",
]

SLOTS_PER_REPORT = 2048
"""Algorithms that take one cheap step per rollout put rollouts together into reports of about this many steps."""
RESTART_EVERY, RESTART_EVERY_SHORT = 1_000_000, 10_000_000
"""Environment steps from one beginning of EnvPool's or Gymnasium's environments to the next, and the same where rollouts are short:
with EnvPool a beginning then compiles the whole program again, which takes as long as some hundred thousand steps."""
INITIAL_LOG_STD, INITIAL_LOG_STD_OF_PASSES = 0.0, -0.7
"""log σ at the start, and the same where the actor takes several passes over a rollout."""


@dataclass(frozen=True)
class TrainConfiguration(Settings):
    """Everything about one training run: its data, and the three choices.

    Without ``passes`` actor and critic take one step on the whole rollout. With ``trust_region`` the actor's step is the
    natural one, and the optimiser and the passes are the critic's. The named algorithms are such choices (see
    :mod:`surefoot.control.algorithms`); any other combination is written down the same way.
    """

    run: RunConfiguration
    network: NetworkConfiguration = field(default_factory=NetworkConfiguration)
    normalization: NormalizationConfiguration = field(default_factory=NormalizationConfiguration)
    weight: WeightConfiguration = field(default_factory=WeightConfiguration)
    objective: LikelihoodObjective | SurrogateObjective | None = field(default_factory=LikelihoodObjective)
    """None with a trust region: a natural step climbs the plain surrogate E[ρ ψ], which has no options."""
    optimizer: OptimizerConfiguration = field(default_factory=OptimizerConfiguration)
    passes: PassesConfiguration | None = None
    trust_region: TrustRegionConfiguration | None = None
    recorded: RecordedConfiguration | None = None
    """Where the algorithm can learn from recorded data."""
    algorithm: str = "custom"
    environment: EnvironmentIdentity | None = None
    """What the environment is that the run was trained in: no choice, but what was found when it was made."""
    learning_rate_changes: RateChanges = ()
    """Where the run was resumed with another learning rate; the last one is the optimiser's."""

    def _check(self) -> None:
        check_changes(self.learning_rate_changes, self.optimizer.learning_rate)
        normalization = self.weight.advantage_normalization
        if normalization == "minibatch" and (self.passes is None or self.trust_region is not None):
            raise UsageError(
                f"--advantage-normalization minibatch: the actor of {self.algorithm} takes one step on the whole rollout;"
                " take batch or none"
            )
        if self.passes is not None and (self.trust_region is None or self.weight.critics):
            _check_passes(self.passes, self.run, normalization)
        if (self.objective is None) != (self.trust_region is not None):
            raise UsageError("a trust region goes with the objective None, the plain surrogate, and nothing else does")
        if isinstance(self.objective, SurrogateObjective) and self.passes is None:
            raise UsageError("a SurrogateObjective needs passes: in a single step ρ is 1; take a LikelihoodObjective")
        if self.weight.weight == "n-step" and self.weight.n_steps > self.run.rollout_length:
            raise UsageError(
                f"--n-steps {self.weight.n_steps} reaches beyond a rollout of {self.run.rollout_length} steps;"
                " take fewer, or a longer --rollout-length"
            )
        if isinstance(self.objective, LikelihoodObjective) and self.passes is not None:
            raise UsageError("several passes need a SurrogateObjective: log π alone does not know that the policy has moved on")
        if self.trust_region is not None and self.optimizer.critic_learning_rate is not None:
            raise UsageError(
                "--critic-learning-rate would do nothing beside a natural step: --learning-rate is the critic's; leave it out"
            )
        recomputes = isinstance(self.objective, SurrogateObjective) and self.objective.recompute_advantages
        if recomputes and (self.passes is None or self.passes.epochs == 1):
            raise UsageError("--recompute-advantages would do nothing with --epochs 1; take more epochs, or leave it out")
        if self.recorded is not None and self.recorded.from_data is not None:
            self._check_recorded()

    def _check_recorded(self) -> None:
        if not isinstance(self.objective, LikelihoodObjective):
            raise UsageError(f"--from-data: {self.algorithm} cannot learn from recorded data; reinforce and a2c can")
        if self.weight.weight not in ("reward-to-go", "baseline", "td-residual", "gae") or self.weight.keep_discount:
            raise UsageError(
                "--from-data corrects the weights reward-to-go, baseline, td-residual and gae, without --keep-discount;"
                f" choose one in place of {self.weight.weight}"
            )
        if self.run.seeds > 1:
            raise UsageError("--from-data trains one seed; leave --seeds out")
        if not self.normalization.normalize_observations:
            raise UsageError("--from-data starts from a policy that normalises observations; leave that on")

    @property
    def initial_log_std(self) -> float:
        """Log σ of a Box's components at the start."""
        if (given := self.network.initial_log_std) is not None:
            return given
        return INITIAL_LOG_STD_OF_PASSES if isinstance(self.objective, SurrogateObjective) else INITIAL_LOG_STD

    def recomputes_advantages(self, *, continuous: bool) -> bool:
        """Whether advantages are estimated again before each epoch, where actions are a Box or are not."""
        if not isinstance(self.objective, SurrogateObjective) or self.passes is None:
            return False
        given = self.objective.recompute_advantages
        return continuous and self.passes.epochs > 1 and bool(self.weight.critics) if given is None else given

    @property
    def slots(self) -> int:
        """Steps of one rollout, resets included."""
        return self.run.num_envs * self.run.rollout_length

    @property
    def rollouts_per_report(self) -> int:
        """How many rollouts one report, and one call of a compiled program, covers."""
        if not self._short_rollouts:
            return 1
        wanted = math.ceil(self.run.total_steps / self.slots)
        most = min(SLOTS_PER_REPORT // self.slots, wanted)
        # Reports are whole: of the sizes near the wanted one, that which overshoots the run's end least, then the largest.
        return min(range(most, most // 2, -1), key=lambda size: (-wanted % size, -size))

    @property
    def _short_rollouts(self) -> bool:
        """Whether several rollouts, with their updates, are one program."""
        return self.passes is None and SLOTS_PER_REPORT // self.slots >= 2

    @property
    def iterations(self) -> int:
        """Rollouts in the whole run, a multiple of those in a report."""
        together = self.rollouts_per_report
        return math.ceil(self.run.total_steps / (self.slots * together)) * together

    @property
    def restart_grid(self) -> int:
        """Iterations from one beginning of environments whose state cannot be saved to the next; 0 for never again."""
        together, every = self.rollouts_per_report, self.run.restart_every
        if every is None:
            every = RESTART_EVERY_SHORT if self._short_rollouts else RESTART_EVERY
        return math.ceil(every / (self.slots * together)) * together

    def restarts_at(self, iteration: int) -> bool:
        """Whether environments whose state cannot be saved begin afresh with a report that begins with this iteration."""
        grid = self.restart_grid
        return iteration > 0 and grid > 0 and iteration % grid < self.rollouts_per_report

    def parts(self) -> dict[str, Any]:
        """The choices by name, those that the algorithm does not have left out."""
        names = ("run", "network", "normalization", "weight", "objective", "optimizer", "passes", "trust_region", "recorded")
        return {name: part for name in names if (part := getattr(self, name)) is not None}

    def as_dict(self) -> dict[str, Any]:
        """All settings side by side, as config.json holds them."""
        flat: dict[str, Any] = {"algorithm": self.algorithm}
        for part in self.parts().values():
            flat.update({k: list(v) if isinstance(v, tuple) else v for k, v in vars(part).items()})
        identity = {} if self.environment is None else {"environment": self.environment.as_dict()}
        return flat | identity | changes_as_json(self.learning_rate_changes)

    @staticmethod
    def from_dict(settings: Mapping[str, Any]) -> TrainConfiguration:
        """The configuration whose :meth:`as_dict` these settings are; a setting that is not there keeps its default.

        Raises:
            UsageError: a setting is unknown, or its value cannot be used.
        """
        kinds: dict[str, Any] = {
            "run": RunConfiguration,
            "network": NetworkConfiguration,
            "normalization": NormalizationConfiguration,
            "weight": WeightConfiguration,
            "optimizer": OptimizerConfiguration,
        }
        # Of the other parts each has a setting that no other has.
        if "entropy_coefficient" in settings:
            kinds["objective"] = SurrogateObjective if "clip_range" in settings else LikelihoodObjective
        optional = {
            "passes": ("minibatch_size", PassesConfiguration),
            "trust_region": ("max_kl", TrustRegionConfiguration),
            "recorded": ("from_data", RecordedConfiguration),
        }
        kinds |= {name: kind for name, (setting, kind) in optional.items() if setting in settings}
        refuse_unknown(
            settings, ["algorithm", "environment", CHANGES, *(f.name for kind in kinds.values() for f in fields(kind))]
        )
        parts = {name: part_from(kind, settings) for name, kind in kinds.items()}
        if ("objective" in kinds) == ("trust_region" in kinds):
            raise UsageError("give either entropy_coefficient, of an objective, or max_kl, of a trust region")
        try:
            identity = (
                EnvironmentIdentity.from_dict(settings["environment"]) if settings.get("environment") is not None else None
            )
        except ValueError as error:
            raise UsageError(f"of environment, {error}") from error
        named = {"algorithm": settings.get("algorithm", "custom"), "environment": identity, CHANGES: read_changes(settings)}
        return TrainConfiguration(**named, **({"objective": None} | parts))

    def idle_options(self) -> dict[str, str]:
        """Settings that nothing reads under the others, each with the reason."""
        idle = {}
        weight, objective = self.weight, self.objective
        needs = WEIGHT_NEEDS[weight.weight]
        if "trace_decay" not in needs and "q" not in weight.critics:
            idle["trace_decay"] = f"--weight {weight.weight} does not read λ"
        if "steps" not in needs:
            idle["n_steps"] = f"--weight {weight.weight} does not read n"
        if self.run.checkpoint_every is None:
            idle["keep_checkpoints"] = "there is no --checkpoint-every"
        if self.run.env_workers == 0:
            idle |= dict.fromkeys(("worker_timeout", "on_worker_failure"), "there are no --env-workers")
        if weight.discount == 1:
            idle["keep_discount"] = "with --discount 1 every γᵗ is 1"
        if isinstance(objective, SurrogateObjective):
            single = self.passes is not None and self.passes.epochs == 1 and self.passes.minibatch_size == self.slots
            if single:
                reason = "the only step on a rollout starts from the policy that acted, where ρ = 1 and the KL is 0"
                idle |= dict.fromkeys(("clip_range", "clip_range_schedule", "target_kl", "value_clip_range"), reason)
                idle |= dict.fromkeys(("kl_penalty", "kl_coefficient"), reason)
            if objective.clip_range is None:
                idle["clip_range_schedule"] = "--clip-range none does not clip"
            if objective.kl_penalty == "none":
                idle["kl_coefficient"] = "there is no --kl-penalty"
            if objective.kl_penalty in ("none", "fixed"):
                idle["kl_target"] = f"--kl-penalty {objective.kl_penalty} has no target; --target-kl stops the passes early"
            if objective.kl_penalty != "dual":
                idle["dual_learning_rate"] = f"--kl-penalty {objective.kl_penalty} has no multiplier to climb"
        if not weight.critics and weight.advantage_normalization == "batch":
            divided = "--advantage-normalization batch divides the rewards' scale out again, and there is no critic to need it"
            idle |= {"normalize_rewards": divided, "reward_clip": divided}
        if not weight.critics:
            without = f"--weight {weight.weight} trains no critic"
            idle |= {"critic_learning_rate": without, "value_clip_range": without, "recompute_advantages": without}
            if self.trust_region is not None:
                names = ("optimizer", "learning_rate", "learning_rate_schedule", "adam_epsilon", "max_gradient_norm")
                idle |= dict.fromkeys((*names, "minibatch_size", "epochs"), without)
        if self.recorded is not None and self.recorded.from_data is None:
            without = "there is no --from-data"
            idle |= dict.fromkeys(("episodes_per_update", "importance_limit", "smallest_effective_share"), without)
        elif self.recorded is not None:
            acting = "recorded data have the environments' steps in them already"
            idle |= dict.fromkeys(
                ("num_envs", "rollout_length", "backend", "restart_every", "env_workers", "env_kwargs", "wrapper"), acting
            )
            cloned = "the policy starts as a fit to the recorded one"
            idle["initial_log_std"] = cloned
            if not weight.critics:
                idle["orthogonal_initialization"] = cloned
        if self.optimizer.optimizer == "sgd":
            idle["adam_epsilon"] = "--optimizer sgd has no ε"
        return idle


def _check_passes(passes: PassesConfiguration, run: RunConfiguration, normalization: str) -> None:
    slots, size = run.num_envs * run.rollout_length, passes.minibatch_size
    if slots % size:
        near = min((d for d in range(1, slots + 1) if slots % d == 0), key=lambda d: abs(d - size))
        raise UsageError(
            f"--minibatch-size {size} does not divide a rollout of {run.num_envs} × {run.rollout_length} ="
            f" {slots} steps; {near} is the nearest that does"
        )
    if size == 1 and normalization == "minibatch":
        raise UsageError(
            "--minibatch-size 1 with --advantage-normalization minibatch leaves no signal;"
            " take batch or none, or a larger minibatch"
        )
