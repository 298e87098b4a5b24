"""Whether an ONNX file acts as the policy does."""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium
import jax
import numpy as np
import onnxruntime

from surefoot.control.policies.normalization import center, scale
from surefoot.control.policies.policy import Policy, action_distribution
from surefoot.control.policies.spaces import ActionSpace, describe_spaces
from surefoot.equations import Array, DiagonalGaussian
from surefoot.errors import RunError

OBSERVATIONS = 4096
ONE_BY_ONE = 8
"""So many of them are given alone as well."""
TOLERANCE = 1e-5
"""Relative difference that a number may have, beside rounding."""
ROUNDING = 2.0**-20
"""What the float32 rounding of a sum may amount to, relative to the sum of its terms' sizes: sixteen units in the last place,
because every library adds in another order.
"""
LARGEST_PLAIN = 1e8
"""Without a normaliser that clips, a network is not asked about larger numbers."""
LARGEST_BOUND = 1e6
"""Beyond it a space's bounds do not say where its observations lie."""


class Agreement(NamedTuple):
    """How a file compares with the policy."""

    observations: int
    largest_difference: dict[str, float]
    """By output; of actions that are choices there is none."""
    ties: int
    """Observations whose action is another choice, as probable as the policy's within rounding."""


def compare(model: bytes, policy: Policy, observation_space: gymnasium.spaces.Box, action_space: gymnasium.Space) -> Agreement:
    """Run an ONNX model and the policy on random observations.

    The policy is asked twice: in JAX, as it was trained, and in NumPy, as it is evaluated. Half of the observations are such as
    it was trained on (or lie within the space, where nobody normalised), a quarter lies at the bounds of the space, and a
    quarter where the normaliser clips and beyond.

    Args:
        model: the file's bytes.
        policy: what it should do.
        observation_space: the environment's.
        action_space: the environment's.

    Raises:
        RunError: the model does something else.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    observations = random_observations(policy, observation_space, np.random.default_rng(0))

    def answers(given: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, {"observation": given}), strict=True))

    together, alone = answers(observations), [answers(row[None]) for row in observations[:ONE_BY_ONE]]
    one_by_one = {name: np.concatenate([answer[name] for answer in alone]) for name in names}
    taken = describe_spaces(observation_space, action_space, name="the environment").action
    largest: dict[str, float] = {}
    ties = 0
    for expected in (_in_jax(policy, observations), _in_numpy(policy, observations)):
        for got in (together, one_by_one):
            rows = len(got["action"])
            first = Expected(expected.outputs[:rows], expected.actions[:rows])
            found, tied = _differences(policy, taken, observations[:rows], got, first)
            largest = {name: max(difference, largest.get(name, 0.0)) for name, difference in found.items()}
            ties = max(ties, tied)
    return Agreement(len(observations), largest, ties)


def random_observations(
    policy: Policy, space: gymnasium.spaces.Box, generator: np.random.Generator, count: int = OBSERVATIONS
) -> np.ndarray:
    """Observations to compare on, shape (count, observation size), in the environment's dtype."""
    statistics, shape = policy.observation_statistics, (count, policy.spaces.observation_size)
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    if statistics is None:
        bounded = (np.abs(low) <= LARGEST_BOUND) & (np.abs(high) <= LARGEST_BOUND)
        inner_low, inner_high = np.where(bounded, low, -2.0), np.where(bounded, high, 2.0)
        middle, spread = (inner_low + inner_high) / 2, (inner_high - inner_low) / 4
    else:
        middle = np.asarray(statistics.mean, np.float64)
        spread = np.sqrt(np.asarray(statistics.variance, np.float64))
        spread = np.where(spread > 0, spread, np.where(middle != 0, np.abs(middle), 1.0))  # others than those that were alike
    clip = min(policy.observation_clip, LARGEST_PLAIN)
    usual = middle + spread * generator.standard_normal(shape)
    kind = generator.integers(3, size=shape)
    at_bounds = np.where(kind == 0, low, np.where(kind == 1, high, usual))
    beyond = middle + np.sign(usual - middle) * spread * clip * 10 ** generator.uniform(0, 4, shape)
    rows = np.concatenate([usual[: count // 2], at_bounds[: count // 4], beyond[: count - count // 2 - count // 4]])
    least, most = _range(space.dtype)
    if statistics is None or clip == LARGEST_PLAIN:
        least, most = max(least, -LARGEST_PLAIN), min(most, LARGEST_PLAIN)
    rows = generator.permutation(np.clip(rows, least, most))
    return (rows if space.dtype.kind == "f" else np.rint(rows)).astype(space.dtype)


def _range(dtype: np.dtype) -> tuple[float, float]:
    """The smallest and the largest number of a dtype; of long integers, those that a float64 surely holds."""
    if dtype.kind == "f":
        return float(np.finfo(dtype).min), float(np.finfo(dtype).max)
    if dtype.kind == "b":
        return 0.0, 1.0
    return max(float(np.iinfo(dtype).min), -(2.0**62)), min(float(np.iinfo(dtype).max), 2.0**62)


class Expected(NamedTuple):
    """What the policy says: the network's outputs, and actions as :meth:`ActionSpace.for_environment` gives them."""

    outputs: np.ndarray
    actions: np.ndarray


def _in_numpy(policy: Policy, observations: np.ndarray) -> Expected:
    """As it is evaluated."""
    with np.errstate(over="ignore"):  # the largest float64 is infinite in float32, and the normaliser clips it
        outputs = _outputs(policy.distribution(observations))
        return Expected(outputs, policy(observations, deterministic=True))


def _in_jax(policy: Policy, observations: np.ndarray) -> Expected:
    """As it was trained."""

    def act(statistics: Any, parameters: Any, observations: Array) -> tuple[Array, Array]:
        if statistics is not None:
            observations = scale(observations, statistics, clip=policy.observation_clip)
        distribution = action_distribution(policy.spaces, parameters, observations, activation=policy.activation)
        return _outputs(distribution), policy.spaces.action.for_environment(distribution.mode())

    statistics = policy.observation_statistics
    # A GPU rounds products to fewer digits unless one asks for more.
    with np.errstate(over="ignore"), jax.default_matmul_precision("highest"):
        collected = observations if statistics is None else center(observations, statistics)  # as a rollout holds them
        answers = jax.jit(act)(statistics, policy.parameters, collected.astype(np.float32))
    return Expected(*map(np.asarray, answers))


def _outputs(distribution: Any) -> Array:
    return distribution.mean if isinstance(distribution, DiagonalGaussian) else distribution.logits


def _rounding(policy: Policy, observations: np.ndarray) -> np.ndarray:
    """How far float32 rounding may take the network's outputs apart, for each of them.

    A layer makes of errors e in its inputs x at most |W|ᵀ e, to which the rounding of Σ W x + b comes; neither tanh nor
    max(0, ·) makes an error larger.
    """
    with np.errstate(over="ignore"):
        x = policy.seen(observations).astype(np.float64)
    error = ROUNDING * np.abs(x)
    layers = sum(name.endswith("/weight") for name in policy.parameters)
    for i in range(layers):
        weight, bias = (policy.parameters[f"layer_{i}/{part}"].astype(np.float64) for part in ("weight", "bias"))
        error = error @ np.abs(weight) + ROUNDING * (np.abs(x) @ np.abs(weight) + np.abs(bias))
        x = x @ weight + bias
        if i < layers - 1:
            x = np.tanh(x) if policy.activation == "tanh" else np.maximum(x, 0)
            error = error + ROUNDING * np.abs(x)
    return error


def _differences(
    policy: Policy, taken: ActionSpace, observations: np.ndarray, got: dict[str, np.ndarray], expected: Expected
) -> tuple[dict[str, float], int]:
    """The largest difference of each output, and how many observations have another, equally good action.

    Raises:
        RunError: a difference is too large.
    """
    action, outputs, wanted = policy.spaces.action, expected.outputs, taken.as_taken(expected.actions)
    if got["action"].dtype != wanted.dtype or got["action"].shape != wanted.shape:
        raise _disagreement(
            f"actions are {got['action'].dtype} of shape {got['action'].shape}, where {wanted.dtype} of shape {wanted.shape} is right"
        )
    allowed = TOLERANCE * np.abs(outputs) + _rounding(policy, observations)
    if action.kind != "box":
        largest = {"logits": _largest("logits", got["logits"], outputs, outputs - allowed, outputs + allowed)}
        worse = _how_much_worse(action, outputs, got["action"], wanted)
        if not (worse <= 2 * allowed.max(axis=-1, keepdims=True)).all():
            raise _disagreement(f"an action is less probable than the policy's, by {worse.max():.3g} in the logits")
        return largest, int((got["action"] != wanted).reshape(len(wanted), -1).any(axis=-1).sum())
    center, scale = action.scaling()
    mean = outputs * scale + center
    allowed = TOLERANCE * np.abs(mean) + scale * allowed + ROUNDING * (np.abs(outputs * scale) + np.abs(center))
    least, most = mean - allowed, mean + allowed
    largest = {"mean": _largest("mean", got["mean"], mean, least, most)}
    # Clipping and rounding keep the order, so that what may become of the mean bounds what may become of the action.
    low, high = (np.asarray(bound, np.float32) for bound in (action.low, action.high))
    ends = (taken.as_taken(np.clip(end, low, high)) for end in (least, most))
    largest["action"] = _largest("action", got["action"], wanted, *ends)
    with np.errstate(divide="ignore"):  # a component that has one value only has a scale of 0
        log_std = np.broadcast_to(policy.parameters["log_std"] + np.log(scale), mean.shape)
    slack = TOLERANCE * (1 + np.abs(np.where(scale > 0, log_std, 0)))
    largest["log_std"] = _largest("log_std", got["log_std"], log_std, log_std - slack, log_std + slack)
    return largest, 0


def _largest(name: str, got: np.ndarray, wanted: np.ndarray, least: np.ndarray, most: np.ndarray) -> float:
    """The largest difference from what is wanted.

    Raises:
        RunError: a number is not between ``least`` and ``most``.
    """
    with np.errstate(invalid="ignore"):
        difference = np.where(got == wanted, 0.0, np.abs(np.asarray(got, np.float64) - wanted))
    if not ((least <= got) & (got <= most)).all():
        raise _disagreement(f"{name} differs by up to {np.nanmax(difference):.3g}, more than rounding explains")
    return float(difference.max())


def _how_much_worse(action: ActionSpace, logits: np.ndarray, got: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """By how much the logits of chosen actions fall short of the largest ones, for every part."""
    if action.kind == "multibinary":
        return np.where(got != wanted, np.abs(logits), 0.0)
    chosen = np.where(action.encode(action.from_environment(got)), logits, -np.inf)
    starts = np.cumsum((0, *action.sizes[:-1]))
    return np.maximum.reduceat(logits, starts, axis=-1) - np.maximum.reduceat(chosen, starts, axis=-1)


def _disagreement(what: str) -> RunError:
    return RunError(
        f"the ONNX graph does not do what the policy does ({what}); no file is written, and the policy is untouched"
    )
