"""A behaviour policy for data that do not say how likely their actions were: fitted by maximum likelihood."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from surefoot.control.compilation import fixed_settings
from surefoot.control.policies.networks import draw_network
from surefoot.control.policies.normalization import RunningStatistics, normalize, statistics_of
from surefoot.control.policies.policy import Policy, action_distribution
from surefoot.control.policies.spaces import Spaces
from surefoot.control.recorded.likelihood import action_log_likelihood
from surefoot.control.recorded.load import RecordedData
from surefoot.errors import UsageError

UPDATES_PER_ROUND = 100
"""A round is a pass over the data, or as many as make this number of updates: a few updates tell progress from noise
badly, and would stop a fit to little data at its start."""
SMALLEST_LOG_STD = -5.0
"""Data of a deterministic policy would drive σ to 0, and every weight to 0 or infinity."""


class FittedBehavior(NamedTuple):
    """A behaviour policy that is an estimate: whoever reports what rests on it has to say so."""

    policy: Policy
    held_out_log_likelihood: float
    """Mean log μ̂(a|s) per step of episodes that were not fitted to, in nats."""
    training_log_likelihood: float
    """Likewise of those that were; far above the held-out one, the fit has learnt the data by heart."""
    held_out_episodes: int
    rounds: int
    """After how many rounds the held-out episodes were likeliest."""


@fixed_settings()
def fit_behavior(
    data: RecordedData,
    spaces: Spaces,
    *,
    hidden_sizes: tuple[int, ...] = (64, 64),
    activation: str = "tanh",
    observation_clip: float = 10.0,
    learning_rate: float = 1e-3,
    rounds: int = 200,
    patience: int = 10,
    minibatch_size: int = 256,
    held_out: float = 0.1,
    seed: int = 0,
) -> FittedBehavior:
    """Maximise Σ log μ̂(a_t|s_t) over recorded steps, stopped where held-out episodes stop getting likelier.

    An estimated behaviour policy leaves importance sampling consistent where the model can express the truth, and can
    even lower its variance (Hanna, Niekum and Stone, Importance Sampling Policy Evaluation with an Estimated Behavior
    Policy, 2019); where it cannot, the weights are wrong and nothing in them says so.

    Args:
        data: recorded episodes.
        spaces: what the policy sees and does.
        hidden_sizes: of the network.
        activation: tanh or relu.
        observation_clip: normalised observations are clipped to ± this.
        learning_rate: Adam's.
        rounds: at most; a round is one pass over the data and at least 100 updates.
        patience: rounds without progress on the held-out episodes after which it stops.
        minibatch_size: steps per update.
        held_out: share of the episodes that is not fitted to, at least one episode.
        seed: of the split, the weights and the order.

    Raises:
        UsageError: there are fewer than two episodes.
    """
    if data.episodes < 2:
        raise UsageError("a behaviour policy cannot be fitted to one episode, since one has to be held out; record more")
    generator = np.random.default_rng([seed, 5])
    order = generator.permutation(data.episodes)
    number = min(max(1, round(held_out * data.episodes)), data.episodes - 1)
    kept_out, fitted = (_steps(data, columns) for columns in (order[:number], order[number:]))
    statistics = statistics_of(fitted["observations"])
    parameters: dict[str, Any] = dict(
        draw_network(
            generator, (spaces.observation_size, *hidden_sizes, spaces.action.outputs), orthogonal=True, head_gain=0.01
        )
    )
    if spaces.action.kind == "box":
        parameters["log_std"] = np.zeros(spaces.action.outputs, np.float32)
    log_likelihood = partial(_log_likelihood, spaces, activation)
    optimizer = optax.adam(learning_rate)
    one_round = jax.jit(partial(_one_round, log_likelihood, optimizer))
    mean_of = jax.jit(lambda parameters, steps: log_likelihood(parameters, steps).mean())
    steps = len(fitted["observations"])
    batch = min(minibatch_size, steps)
    passes = math.ceil(UPDATES_PER_ROUND / (steps // batch))
    training, checking = (
        {name: jnp.asarray(values) for name, values in _normalized(part, statistics, observation_clip).items()}
        for part in (fitted, kept_out)
    )

    state = optimizer.init(parameters)
    best, best_parameters, best_round = -np.inf, parameters, 0
    for number_of_round in range(1, rounds + 1):
        rows = np.concatenate([_shuffled(generator, steps, batch) for _ in range(passes)])
        parameters, state = one_round(parameters, state, training, rows)
        reached = float(mean_of(parameters, checking))
        if reached > best:
            best, best_parameters, best_round = reached, parameters, number_of_round
        elif number_of_round - best_round >= patience:
            break
    policy = Policy(
        spaces=spaces,
        activation=activation,
        parameters={name: np.asarray(value) for name, value in best_parameters.items()},
        observation_statistics=statistics,
        observation_clip=observation_clip,
        description={"algorithm": "maximum likelihood, estimated from data", "env": data.env, "data": data.dataset},
    )
    return FittedBehavior(policy, best, float(mean_of(best_parameters, training)), number, best_round)


def _steps(data: RecordedData, columns: np.ndarray) -> dict[str, np.ndarray]:
    """The real steps of some episodes, one after the other."""
    valid = data.valid[:, columns]
    steps = {
        "observations": data.observations[:-1, columns][valid],
        "actions": data.actions[:, columns][valid],
    }
    if data.at_bound is not None:
        steps["at_bound"] = data.at_bound[:, columns][valid]
    return steps


def _shuffled(generator: np.random.Generator, steps: int, batch: int) -> np.ndarray:
    """One pass: rows of minibatches, without the last incomplete one."""
    return generator.permutation(steps)[: steps // batch * batch].reshape(-1, batch)


def _normalized(steps: dict[str, np.ndarray], statistics: RunningStatistics, clip: float) -> dict[str, np.ndarray]:
    return steps | {"observations": normalize(steps["observations"], statistics, clip=clip)}


def _log_likelihood(spaces: Spaces, activation: str, parameters: dict[str, Any], steps: dict[str, Any]) -> Any:
    distribution = action_distribution(spaces, parameters, steps["observations"], activation=activation)
    return action_log_likelihood(
        distribution, steps["actions"], at_bound=steps.get("at_bound"), log_normal_cdf=jax.scipy.special.log_ndtr
    )


def _one_round(
    log_likelihood: Any, optimizer: optax.GradientTransformation, parameters: Any, state: Any, steps: dict[str, Any], rows: Any
) -> tuple[Any, Any]:
    """Adam over all minibatches, ``rows`` of shape (minibatches, size)."""

    def update(carry: tuple[Any, Any], chosen: Any) -> tuple[tuple[Any, Any], None]:
        parameters, state = carry
        minibatch = {name: values[chosen] for name, values in steps.items()}
        gradient = jax.grad(lambda p: -log_likelihood(p, minibatch).mean())(parameters)
        updates, state = optimizer.update(gradient, state)
        parameters = optax.apply_updates(parameters, updates)
        if "log_std" in parameters:
            parameters = parameters | {"log_std": jnp.maximum(parameters["log_std"], SMALLEST_LOG_STD)}
        return (parameters, state), None

    return jax.lax.scan(update, (parameters, state), rows)[0]
