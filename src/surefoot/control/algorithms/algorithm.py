"""What an algorithm is: a name for a weight, an objective and a step, and settings known to be good."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from surefoot.control.configuration import (
    LikelihoodObjective,
    NetworkConfiguration,
    NormalizationConfiguration,
    OptimizerConfiguration,
    PassesConfiguration,
    RecordedConfiguration,
    RunConfiguration,
    SurrogateObjective,
    TrainConfiguration,
    TrustRegionConfiguration,
    WeightConfiguration,
)

Preset = Mapping[str, Any]


@dataclass(frozen=True)
class Algorithm:
    """The three choices, with their defaults; the parts are those of :class:`TrainConfiguration`."""

    name: str
    """As the command line spells it."""
    summary: str
    """One sentence for the command line."""
    weight: WeightConfiguration
    objective: LikelihoodObjective | SurrogateObjective | None
    optimizer: OptimizerConfiguration
    passes: PassesConfiguration | None = None
    trust_region: TrustRegionConfiguration | None = None
    recorded: RecordedConfiguration | None = None
    num_envs: int = 8
    rollout_length: int = 256
    presets: Mapping[str, Preset] = field(default_factory=dict)
    """Good settings for known tasks, used unless an option says otherwise; what they reach stands in benchmarks/."""
    data_preset: Preset = field(default_factory=dict)
    """Good settings for learning from recorded data, whatever the task, in the place of the task's."""

    def preset_for(self, env: str | None, *, from_data: bool = False) -> Preset:
        """The preset of an environment, or of recorded data; empty where there is none."""
        return dict(self.data_preset if from_data else self.presets.get(env or "", {}))

    def configure(self, env: str, **options: Any) -> TrainConfiguration:
        """The configuration for an environment: defaults, then the preset, then ``options``, by the fields' names.

        Raises:
            TypeError: no part of this algorithm has a field of such a name.
            UsageError: a value cannot be used.
        """
        env = RunConfiguration(env).env  # what a preset is looked up by
        shape = {"num_envs": self.num_envs, "rollout_length": self.rollout_length}
        preset = self.preset_for(env, from_data=options.get("from_data") is not None)
        chosen = {**shape, **preset, "env": env, **options}
        defaults: dict[str, Any] = {
            "run": RunConfiguration(env),
            "network": NetworkConfiguration(),
            "normalization": NormalizationConfiguration(),
            "weight": self.weight,
            "objective": self.objective,
            "optimizer": self.optimizer,
            "passes": self.passes,
            "trust_region": self.trust_region,
            "recorded": self.recorded,
        }
        parts = {}
        for name, default in defaults.items():
            own = {} if default is None else {f.name: chosen.pop(f.name) for f in fields(default) if f.name in chosen}
            parts[name] = replace(default, **own) if own else default
        if chosen:
            raise TypeError(f"{self.name} has no setting {', '.join(chosen)}")
        return TrainConfiguration(algorithm=self.name, **parts)
