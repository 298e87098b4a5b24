"""What can be chosen about an alignment run. No engine is imported here, so that help and mistakes cost no start-up time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from surefoot.alignment.data.configuration import DataConfiguration
from surefoot.alignment.models.configuration import AdapterConfiguration, ModelConfiguration
from surefoot.alignment.rlhf.configuration import PPOConfiguration
from surefoot.errors import require
from surefoot.runs.cadence import Cadence
from surefoot.runs.rates import CHANGES, RateChanges, changes_as_json, check_changes, read_changes
from surefoot.runs.settings import Settings, part_from, refuse_unknown

MethodName = Literal["sft", "reward", "dpo", "ppo"]
Schedule = Literal["constant", "linear", "cosine"]

REQUIRED = "?"
"""In place of what the user must give, where options are only listed."""


@dataclass(frozen=True)
class TrainingConfiguration(Settings):
    """The optimiser, how long it runs, and where the run is kept."""

    batch_size: int = 16
    """Prompts, each with all its answers, per update; with ppo, per iteration."""
    accumulation: int = 1
    """In how many parts a batch is computed, one after the other: less memory, the same update."""
    epochs: int = 1
    """Passes over the data."""
    learning_rate: float = 1e-5
    """Step size of AdamW at its highest."""
    learning_rate_schedule: Schedule = "cosine"
    """How the step size falls to zero after the warm-up; constant does not."""
    warmup: float = 0.1
    """Share of the updates over which the step size rises from zero."""
    weight_decay: float = 0.0
    """Of matrices; biases and gains of normalisation layers never decay."""
    adam_epsilon: float = 1e-8
    """ε in the denominator of Adam's step."""
    max_gradient_norm: float | None = 1.0
    """Longer gradients are scaled down to this norm; none leaves them."""
    held_out: float = 0.0
    """Share of the prompts kept for evaluation. --eval-data names other data instead."""
    eval_data: str | None = None
    """Data for evaluation: a file, a folder or a name; in the format that --format forces, where it does."""
    evaluate_every: int = 0
    """Updates between two evaluations; 0 evaluates at the end of every epoch."""
    patience: int | None = None
    """Stop after this many evaluations without a lower loss, and keep the best model; none goes on to the end and keeps
    the last."""
    share_prompts: bool = True
    """Compute a prompt once for all its answers, where the model can do so exactly."""
    seed: int = 0
    """Seed of the data's order, the held-out prompts and new weights."""
    out: str | None = None
    """Folder of the run; by default one under runs/, named after method, model, time and process."""
    tensorboard: bool = True
    """Write TensorBoard files beside metrics.jsonl."""
    checkpoint_every: int | str | None = None
    """Keep everything that the run carries, so that `surefoot resume` can go on: every so many updates (500; with ppo, iterations), or
    minutes (10m), and at the end. The model as it was at the start is kept too. Without it nothing is."""
    keep_checkpoints: int = 2
    """How many of the last checkpoints to keep. The best is kept besides: by the loss on --eval-data, or with ppo by the mean return
    of the last ten iterations."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What happens to an update whose loss, gradient or reward is not finite: stop ends the run; skip leaves it out, and the metric
    skipped counts."""

    def _check(self) -> None:
        Cadence.parse(self.checkpoint_every)
        for name in ("batch_size", "accumulation", "epochs", "keep_checkpoints"):
            value = getattr(self, name)
            require(value >= 1, f"--{name.replace('_', '-')} must be at least 1, but is {value}")
        require(
            self.accumulation <= self.batch_size,
            f"--accumulation {self.accumulation} cuts a batch of {self.batch_size} into more parts than it has prompts",
        )
        for name in ("learning_rate", "adam_epsilon"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"--{name.replace('_', '-')} must be positive and finite, but is {value}")
        require(0 <= self.weight_decay < math.inf, f"--weight-decay must not be negative, but is {self.weight_decay}")
        require(0 <= self.warmup <= 1, f"--warmup is a share of the updates, between 0 and 1, but is {self.warmup}")
        norm = self.max_gradient_norm
        require(norm is None or 0 < norm < math.inf, f"--max-gradient-norm must be positive, or none, but is {norm}")
        require(0 <= self.held_out < 1, f"--held-out is a share of the prompts, from 0 to less than 1, but is {self.held_out}")
        require(
            self.held_out == 0 or self.eval_data is None, "--held-out and --eval-data both name data for evaluation; give one"
        )
        require(self.evaluate_every >= 0, f"--evaluate-every must not be negative, but is {self.evaluate_every}")
        require(self.patience is None or self.patience >= 1, f"--patience must be at least 1, or none, but is {self.patience}")
        require(0 <= self.seed < 2**31, f"--seed must lie between 0 and 2147483647, but is {self.seed}")
        evaluates = self.held_out > 0 or self.eval_data is not None
        for name, given in (("evaluate-every", self.evaluate_every > 0), ("patience", self.patience is not None)):
            require(
                evaluates or not given, f"--{name} would do nothing without data for evaluation; add --held-out or --eval-data"
            )


@dataclass(frozen=True)
class RewardConfiguration(Settings):
    """The reward model's loss."""

    objective: Literal["auto", "bradley-terry", "plackett-luce"] = "auto"
    """bradley-terry is −log σ(r_w − r_l), averaged over a prompt's pairs; plackett-luce the probability of the whole ranking.
    auto takes plackett-luce where every prompt has three or more ranked answers, else bradley-terry."""
    ranking_top: int | None = None
    """How many of the first places plackett-luce explains; none explains the whole ranking."""
    use_margins: bool = False
    """Ask for r_w − r_l ≥ m, with m from the data's margin column (bradley-terry)."""
    centering: float = 0.0
    """Weight of a loss that keeps the mean score of a prompt's answers near zero, which preferences leave free."""

    def _check(self) -> None:
        _check_ranking(self.objective, self.ranking_top)
        require(0 <= self.centering < math.inf, f"--centering must not be negative, but is {self.centering}")
        require(
            not (self.use_margins and self.objective == "plackett-luce"),
            "--use-margins does nothing with --objective plackett-luce; take bradley-terry",
        )


@dataclass(frozen=True)
class DPOConfiguration(Settings):
    """The policy's loss, with rewards β log π/π_ref."""

    beta: float = 0.1
    """β, the weight of the KL divergence from the reference in the problem that DPO solves in closed form."""
    objective: Literal["auto", "bradley-terry", "plackett-luce", "ipo"] = "auto"
    """bradley-terry is −log σ of the difference of rewards, averaged over a prompt's pairs; plackett-luce the probability of
    the whole ranking; ipo pulls the difference of log-ratios to 1/(2β). auto takes plackett-luce where every prompt has three or
    more ranked answers, else bradley-terry."""
    ranking_top: int | None = None
    """How many of the first places plackett-luce explains; none explains the whole ranking."""
    length_normalized: bool = False
    """Divide every answer's log-ratio by its number of tokens, in the loss and in the implicit reward, whatever the objective. ipo's
    published results are of this form; β is then per token, and wants to be larger."""
    label_smoothing: float = 0.0
    """ε, the share of labels that bradley-terry takes for wrong (conservative DPO)."""
    supervised_weight: float = 0.0
    """Weight of −log π per token of each prompt's best answer: keeps its likelihood from falling."""
    live_reference: bool = False
    """Keep a frozen reference and evaluate it in every update, instead of once before the first."""
    reference_cache: str | None = None
    """Folder in which reference log-probabilities are kept from run to run; by default one in the user's cache. They are found
    by the weights, data and settings that made them."""

    def _check(self) -> None:
        _check_ranking(self.objective, self.ranking_top)
        require(0 < self.beta < math.inf, f"--beta must be positive and finite, but is {self.beta}")
        require(0 <= self.label_smoothing < 0.5, f"--label-smoothing must lie in 0 … 0.5, but is {self.label_smoothing}")
        require(
            self.label_smoothing == 0 or self.objective in ("auto", "bradley-terry"),
            f"--label-smoothing does nothing with --objective {self.objective}; take bradley-terry",
        )
        require(
            0 <= self.supervised_weight < math.inf, f"--supervised-weight must not be negative, but is {self.supervised_weight}"
        )
        require(
            not (self.live_reference and self.reference_cache is not None),
            "--reference-cache does nothing with --live-reference; leave one out",
        )


def _check_method(method: Any) -> None:
    require(isinstance(method, str) and method in METHODS, f"there is no method {method!r}; there are {', '.join(METHODS)}")


def _check_ranking(objective: str, top: int | None) -> None:
    require(top is None or top >= 1, f"--ranking-top must be at least 1, or none, but is {top}")
    require(
        top is None or objective in ("auto", "plackett-luce"),
        f"--ranking-top does nothing with --objective {objective}; take plackett-luce",
    )


OBJECTIVES: dict[str, type] = {"reward": RewardConfiguration, "dpo": DPOConfiguration, "ppo": PPOConfiguration}
"""The choices of each method that has some."""


ADDED_LATER: Mapping[str, Any] = {"length_normalized": False}
"""Settings that files of earlier versions lack, with what those versions did."""


@dataclass(frozen=True)
class AlignConfiguration(Settings):
    """Everything about one alignment run."""

    method: MethodName
    model: ModelConfiguration
    data: DataConfiguration
    adapter: AdapterConfiguration = field(default_factory=AdapterConfiguration)
    training: TrainingConfiguration = field(default_factory=TrainingConfiguration)
    objective: RewardConfiguration | DPOConfiguration | PPOConfiguration | None = None
    """None for fine-tuning, whose loss has no options."""
    learning_rate_changes: RateChanges = ()
    """Where the run was resumed with another learning rate; the last one is the training's."""

    def _check(self) -> None:
        check_changes(self.learning_rate_changes, self.training.learning_rate)
        kind = OBJECTIVES.get(self.method)
        given = None if self.objective is None else type(self.objective)
        require(given is kind, f"{self.method} needs {'no objective' if kind is None else kind.__name__}")
        if isinstance(self.objective, PPOConfiguration):
            self._check_iterations(self.objective)

    def _check_iterations(self, ppo: PPOConfiguration) -> None:
        size, answers = self.training.batch_size, self.training.batch_size * ppo.answers_per_prompt
        require(
            ppo.minibatches <= size,
            f"--minibatches {ppo.minibatches} cuts a batch of {size} prompts into more parts than it has prompts",
        )
        require(
            ppo.kl_target is None or answers <= ppo.kl_horizon,
            f"--kl-horizon {ppo.kl_horizon} is shorter than the {answers} answers of one iteration; β would jump",
        )
        for option, given in (("--dropout", self.model.dropout), ("--lora-dropout", self.adapter.lora_dropout > 0)):
            require(
                not given, f"{option} is refused with ppo: answers are sampled without dropout, and ratios would not begin at 1"
            )

    def parts(self) -> dict[str, Any]:
        """The choices by name, those that the method does not have left out."""
        names = ("model", "adapter", "data", "training", "objective")
        return {name: part for name in names if (part := getattr(self, name)) is not None}

    def as_dict(self) -> dict[str, Any]:
        """All settings side by side, as config.json holds them."""
        flat: dict[str, Any] = {"method": self.method}
        for part in self.parts().values():
            flat.update({k: list(v) if isinstance(v, tuple) else v for k, v in vars(part).items()})
        return flat | changes_as_json(self.learning_rate_changes)

    @staticmethod
    def from_dict(settings: Mapping[str, Any]) -> AlignConfiguration:
        """The configuration whose :meth:`as_dict` these settings are.

        Raises:
            UsageError: a setting is unknown or missing, or its value cannot be used.
        """
        method: Any = settings.get("method")
        _check_method(method)
        kinds: dict[str, Any] = {
            "model": ModelConfiguration,
            "adapter": AdapterConfiguration,
            "data": DataConfiguration,
            "training": TrainingConfiguration,
        }
        if method in OBJECTIVES:
            kinds["objective"] = OBJECTIVES[method]
        known = ["method", *(f.name for kind in kinds.values() for f in fields(kind))]
        refuse_unknown(settings, [*known, CHANGES])
        settings = {name: value for name, value in ADDED_LATER.items() if name in known} | dict(settings)
        missing = [name for name in known if name not in settings]  # a default may have changed since
        require(not missing, f"there is no setting {', '.join(missing)}; all are needed")
        parts = {name: part_from(kind, settings) for name, kind in kinds.items()}
        return AlignConfiguration(method, **parts, learning_rate_changes=read_changes(settings))

    def idle_options(self) -> dict[str, str]:
        """Settings that nothing reads under the others, each with the reason."""
        idle = dict(self.adapter.idle_options())
        if self.training.checkpoint_every is None:
            idle["keep_checkpoints"] = "there is no --checkpoint-every"
        if self.method == "sft":
            idle["ties"] = "fine-tuning reads the best answer of each prompt and compares none"
        if isinstance(self.objective, PPOConfiguration):
            idle |= self.objective.idle_options()
            names = ("held_out", "eval_data", "evaluate_every", "patience")
            idle |= dict.fromkeys(names, "ppo measures reward and KL on the answers that it samples in every iteration")
            idle |= dict.fromkeys(("overlong", "ties", "cache"), "ppo reads prompts, and no answers")
        return idle


METHODS: dict[str, str] = {
    "sft": "supervised fine-tuning: imitate the answers",
    "reward": "a reward model from preferences: pairs (Bradley–Terry) or K ranked answers (Plackett–Luce)",
    "dpo": "direct preference optimisation: a policy from preferences, pairs or K ranked answers",
    "ppo": "reinforcement learning from a reward: PPO, GRPO, RLOO or REINFORCE, by --weight",
}

LEARNING_RATES: dict[str, float] = {"sft": 2e-5, "reward": 1e-5, "dpo": 1e-6, "ppo": 1e-6}
"""Defaults for all weights of a pretrained model; adapters and small models trained from scratch want more."""


def configure(method: MethodName, *, model: str = REQUIRED, data: str = REQUIRED, reward: str = REQUIRED) -> AlignConfiguration:
    """A method's defaults; ``reward`` is ppo's.

    Raises:
        UsageError: there is no such method, or a name is none.
    """
    _check_method(method)
    objectives = {"sft": None, "reward": RewardConfiguration(), "dpo": DPOConfiguration(), "ppo": PPOConfiguration(reward)}
    training = TrainingConfiguration(learning_rate=LEARNING_RATES[method])
    if method == "ppo":  # Huang et al. (2024): a larger ε, and a schedule without warm-up, since ratios start at 1
        training = replace(training, adam_epsilon=1e-5, learning_rate_schedule="linear", warmup=0.0)
    return AlignConfiguration(
        method, ModelConfiguration(model), DataConfiguration(data), training=training, objective=objectives[method]
    )
