"""A policy: observations in, actions out. It needs NumPy alone, so that it runs where it is deployed without JAX."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from surefoot.control.environments.identity.record import EnvironmentIdentity
from surefoot.control.policies.networks import evaluate_network
from surefoot.control.policies.normalization import RunningStatistics, normalize
from surefoot.control.policies.spaces import KINDS, Spaces
from surefoot.equations import Array, Distribution
from surefoot.errors import UsageError
from surefoot.runs.directory import CONFIGURATION_FILE, POLICY_FOLDER, write_json, write_whole

WEIGHTS_FILE = "policy.safetensors"
DESCRIPTION_FILE = "policy.json"
STATISTICS = "observation_statistics/"
FLOOR_BEFORE = 1e-8
"""Policies whose file does not say what float32 leaves out of a mean had this added to their observations' variance."""


def action_distribution(
    spaces: Spaces, parameters: Mapping[str, Array], observations: Array, *, activation: str
) -> Distribution:
    """π(·|s) for normalised observations of shape (…, observation size); any array library."""
    outputs = evaluate_network(parameters, observations, activation=activation)
    return spaces.action.distribution(outputs, parameters.get("log_std"))


def draw_noise(generator: np.random.Generator, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Noise for :meth:`Distribution.sample`, float32: standard normal, Gumbel or logistic."""
    if kind == "normal":
        return generator.standard_normal(shape, dtype=np.float32)
    return getattr(generator, kind)(size=shape).astype(np.float32)


@dataclass(frozen=True)
class Policy:
    """A trained policy with its frozen observation normaliser.

    Example:
        >>> import surefoot
        >>> policy = surefoot.load("runs/my-run")               # doctest: +SKIP
        >>> action = policy(observation)                        # doctest: +SKIP
        >>> action = policy(observations, deterministic=True)   # doctest: +SKIP
    """

    spaces: Spaces
    activation: str
    parameters: Mapping[str, np.ndarray]
    observation_statistics: RunningStatistics | None
    """Mean and variance that observations are normalised with; None where the run did not normalise."""
    observation_clip: float
    description: Mapping[str, Any]
    """Where the policy comes from: algorithm, env, backend, steps it was trained for; environment, what env was, and env_kwargs and
    wrapper where there were some."""

    @property
    def environment(self) -> EnvironmentIdentity:
        """What the policy was trained in, as far as it was recorded: its name and spaces at least."""
        recorded = self.description.get("environment")
        known = (
            EnvironmentIdentity(str(self.description["env"])) if recorded is None else EnvironmentIdentity.from_dict(recorded)
        )
        return replace(known, spaces=self.spaces)

    def distribution(self, observations: np.ndarray) -> Distribution:
        """π(·|s) over the policy's own (unclipped, unscaled) actions, for observations of shape (…, observation
        size).
        """
        return action_distribution(self.spaces, self.parameters, self.seen(observations), activation=self.activation)

    def seen(self, observations: np.ndarray) -> np.ndarray:
        """Observations as the network sees them, float32; a mean is subtracted in their own precision."""
        observations = np.asarray(observations)
        if self.observation_statistics is None:
            return observations.astype(np.float32, copy=False)
        return normalize(observations, self.observation_statistics, clip=self.observation_clip)

    def __call__(
        self, observations: np.ndarray, *, deterministic: bool = False, generator: np.random.Generator | None = None
    ) -> np.ndarray:
        """Actions as the environment takes them: in its dtype, within its bounds.

        Args:
            observations: one observation, shape (observation size,), or several, shape (batch, observation size).
            deterministic: the most probable action instead of a sample.
            generator: where samples come from; a fresh, unseeded one by default.

        Returns:
            one action or several.

        Raises:
            ValueError: the observations have another size than the policy was trained with.
        """
        observations = np.asarray(observations)
        if observations.ndim not in (1, 2) or observations.shape[-1] != self.spaces.observation_size:
            raise ValueError(
                f"observations have shape {observations.shape}, but this policy takes ({self.spaces.observation_size},)"
                f" or (batch, {self.spaces.observation_size})"
            )
        distribution = self.distribution(observations)
        if deterministic:
            actions = distribution.mode()
        else:
            shape = (*observations.shape[:-1], self.spaces.action.outputs)
            noise = draw_noise(generator or np.random.default_rng(), self.spaces.action.noise, shape)
            actions = distribution.sample(noise)
        return self.spaces.action.for_environment(actions)

    def save(self, run: Path) -> None:
        """Write ``policy/`` into a run's folder: weights as safetensors, the rest as JSON; no pickle.

        Raises:
            RunError: the disk is full; a policy saved before is untouched.
        """
        from safetensors.numpy import save

        tensors = {name: np.ascontiguousarray(value) for name, value in self.parameters.items()}
        if self.observation_statistics is not None:
            known = self.observation_statistics
            whole = known._replace(remainder=np.broadcast_to(known.remainder, np.shape(known.mean)))
            for name, value in whole._asdict().items():
                tensors[STATISTICS + name] = np.ascontiguousarray(value, np.float32).reshape(np.shape(value))
        description = {
            "spaces": self.spaces.as_dict(),
            "activation": self.activation,
            "observation_clip": self.observation_clip,
            "description": dict(self.description),
        }
        # Both go into the weights' file: a rename then replaces a whole policy, never half of one. The JSON beside it is
        # for people.
        write_whole(run / POLICY_FOLDER / WEIGHTS_FILE, save(tensors, metadata={"surefoot": json.dumps(description)}))
        write_json(run / POLICY_FOLDER / DESCRIPTION_FILE, _finite(description))


def _finite(value: Any) -> Any:
    """JSON has no infinity, and action bounds may be infinite: they are written as strings for people to read."""
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value


def load_policy(run: str | Path) -> Policy:
    """Load the policy of a run.

    Args:
        run: the run's folder, the one that ``surefoot train`` printed.

    Raises:
        UsageError: there is no policy there, or its file is damaged or does not hold one whole policy: every number in it is
            looked at, since it may come from anywhere.
    """
    from safetensors import safe_open

    run = Path(run)
    path = run / POLICY_FOLDER / WEIGHTS_FILE
    if not path.is_file():
        if seeds := sorted(p.parent.name for p in run.glob(f"seed-*/{POLICY_FOLDER}")):
            raise UsageError(f"{run} holds several seeds; give the folder of one, such as {run / seeds[0]}")
        if (run / CONFIGURATION_FILE).exists():
            raise UsageError(
                f"{run} holds a run without a policy, which is written when a run ends: go on with it (`surefoot resume {run}`, where"
                " it keeps checkpoints), or train anew"
            )
        raise UsageError(f"{run} is not a run: there is no {path}; give the folder that `surefoot train` printed")
    try:
        with safe_open(path, framework="numpy") as file:
            description = json.loads(file.metadata()["surefoot"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        statistics = {
            name: tensors.pop(STATISTICS + name) for name in RunningStatistics._fields if STATISTICS + name in tensors
        }
        if statistics and "remainder" not in statistics:
            statistics |= {"variance": statistics["variance"] + np.float32(FLOOR_BEFORE)}
            statistics |= {"remainder": np.zeros_like(statistics["mean"])}
        policy = Policy(
            spaces=Spaces.from_dict(description["spaces"]),
            activation=description["activation"],
            parameters=tensors,
            observation_statistics=RunningStatistics(**statistics) if statistics else None,
            observation_clip=float(description["observation_clip"]),
            description=description["description"],
        )
        _check(policy)
        return policy
    except Exception as error:  # whatever a damaged file makes of safetensors, JSON and the types here
        raise UsageError(
            f"{path} is damaged or not a surefoot policy ({error}); train again or restore it from a copy"
        ) from error


def _check(policy: Policy) -> None:
    """Raise ValueError unless all parts of a policy from a file fit each other."""
    space, size = policy.spaces.action, policy.spaces.observation_size
    _demand(space.kind in KINDS, f"there are no actions of the kind {space.kind!r}")
    whole = all(type(number) is int for number in (*space.sizes, *space.start))
    one = space.kind == "multidiscrete" or len(space.sizes) == 1
    _demand(whole and one and size > 0 and min(space.sizes, default=0) > 0, "its spaces have no size")
    _demand(len(space.start) in (0, len(space.sizes)), "its actions are not counted from one number each")
    taken, seen = space.environment_dtype, policy.spaces.observation_dtype
    known = taken == "" or np.dtype(taken).kind in ("f" if space.kind == "box" else "biu")
    _demand(isinstance(taken, str) and known and np.dtype(seen).kind in "biuf", "its spaces have no such numbers")
    bounds = np.asarray((space.low, space.high), np.float64)
    _demand(bounds.shape == (2, space.outputs if space.kind == "box" else 0), "its actions have not one bound each")
    _demand(bool((bounds[0] <= bounds[1]).all()), "its actions have a lower bound above the upper one")
    _demand(policy.activation in ("tanh", "relu"), f"there is no activation {policy.activation!r}")
    _demand(policy.observation_clip > 0, "it clips observations at no positive number")
    description = policy.description
    _demand(isinstance(description, dict) and isinstance(description.get("env"), str), "it names no environment")
    _demand(policy.environment.spaces == policy.spaces, "it names no environment")  # or what reads it raises
    texts = [description.get(name, []) for name in ("env_kwargs", "wrapper")]
    _demand(all(isinstance(t, list) and all(isinstance(text, str) for text in t) for t in texts), "its arguments are no texts")
    _demand(all(array.dtype == np.float32 for array in policy.parameters.values()), "its weights are not float32")
    _demand(all(np.isfinite(array).all() for array in policy.parameters.values()), "its weights are not finite")
    left = {name: array.shape for name, array in policy.parameters.items()}
    units, layers = size, sum(name.endswith("/weight") for name in left)
    for i in range(layers):
        weight, bias = left.pop(f"layer_{i}/weight"), left.pop(f"layer_{i}/bias")
        _demand(len(weight) == 2 and weight[0] == units and bias == weight[1:], f"layer {i} does not fit those around it")
        units = weight[1]
    _demand(layers > 0 and units == space.outputs, "its network does not put out what its actions need")
    if space.kind == "box":
        _demand(left.pop("log_std", None) == (space.outputs,), "it has not one log_std for each component of its actions")
    _demand(not left, f"it has weights without a place: {', '.join(left)}")
    if policy.observation_statistics is not None:
        mean, variance, count, remainder = policy.observation_statistics
        fit = mean.shape == variance.shape == remainder.shape == (size,) and count.shape == ()
        _demand(fit, "its statistics do not fit its observations")
        finite = all(array.dtype == np.float32 and np.isfinite(array).all() for array in policy.observation_statistics)
        _demand(finite and bool((variance >= 0).all()), "its statistics are no means and variances")


def _demand(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ValueError(otherwise)
