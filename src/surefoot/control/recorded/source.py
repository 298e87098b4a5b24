"""Recorded data as something to train on: episodes, how likely their actions were, and a policy to start from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np

from surefoot.control.configuration import FROM_DATA, TrainConfiguration
from surefoot.control.policies.policy import Policy
from surefoot.control.policies.spaces import Spaces
from surefoot.control.recorded.behavior import fit_behavior
from surefoot.control.recorded.likelihood import recorded_log_likelihood
from surefoot.control.recorded.load import RecordedData, load_recorded, recorded_spaces
from surefoot.control.rollout import Rollout
from surefoot.errors import Caution, UsageError
from surefoot.runs.statistics import readable

__all__ = ["RecordedSource", "open_recorded"]


@dataclass(frozen=True)
class RecordedSource:
    """Recorded episodes side by side, and the policy fitted to them."""

    rollout: Rollout
    """All episodes, (T, episodes), with the log-probabilities of the policy that acted; observations as they were recorded."""
    spaces: Spaces
    fitted: Policy
    """A fit to the policy that acted: where training starts, and the behaviour policy where the data name none."""
    notices: tuple[str, ...]
    backend: str = "recorded"
    """What reports call it, where environments have theirs."""

    @property
    def described(self) -> dict[str, str | None]:
        """What a resumed run must find again: every byte that it learns from."""
        arrays = [np.asarray(array) for array in self.rollout if array is not None]
        digest = hashlib.sha256(repr([(array.shape, array.dtype.str) for array in arrays]).encode())
        for array in arrays:
            digest.update(array.tobytes())
        return {"backend": self.backend, "data": digest.hexdigest()}


def open_recorded(configuration: TrainConfiguration) -> tuple[TrainConfiguration, RecordedSource]:
    """Load the data, fit a policy to them, and shape the run after them.

    Returns:
        the configuration with the environment's name, the rollouts' shape and the number of episodes of the data; and the
        source.

    Raises:
        UsageError: the data cannot be used.
    """
    recorded = configuration.recorded
    assert recorded is not None
    assert recorded.from_data is not None
    data = load_recorded(recorded.from_data)
    spaces = recorded_spaces(recorded.from_data)
    named = None if configuration.run.env == FROM_DATA else configuration.run.env
    env = named or data.env
    if env is None:
        raise UsageError(f"{recorded.from_data} does not say which environment it is of; give --env")
    if data.env is not None and env != data.env:
        raise UsageError(f"{recorded.from_data} is of {data.env}, but --env says {env}; leave --env out")
    network = configuration.network
    fitted = fit_behavior(
        data,
        spaces,
        hidden_sizes=network.hidden_sizes,
        activation=network.activation,
        observation_clip=configuration.normalization.observation_clip,
        seed=configuration.run.seed,
    )
    notices = [*data.notices, _describe(data), f"the policy starts as a fit to the one that acted (held-out log-likelihood"
               f" {fitted.held_out_log_likelihood:.3f} nats per step)"]  # fmt: skip
    behavior = data.log_probabilities
    if behavior is None:
        behavior = recorded_log_likelihood(fitted.policy, replace_bounds(data))
        said = "the data do not say how likely their actions were: the fit stands for the policy that acted, and the importance weights are"
        notices.append(Caution(f"{said} estimates"))
    if data.at_bound is not None and (met := int((data.at_bound != 0).any(axis=-1)[data.valid].sum())):
        notices.append(Caution(f"{met} of {data.steps} actions lie at a bound; they are taken as they stand, not as clipped"))
    rollout = Rollout(
        observations=data.observations,
        actions=data.actions,
        rewards=data.rewards.astype(np.float32),
        terminated=data.terminated,
        truncated=data.truncated,
        valid=data.valid,
        behavior_log_probabilities=behavior.astype(np.float32),
    )
    length, episodes = data.rewards.shape
    together = min(recorded.episodes_per_update, episodes)
    run = replace(configuration.run, env=env, num_envs=together, rollout_length=length)
    source = RecordedSource(rollout, spaces, fitted.policy, tuple(notices))
    return replace(configuration, run=run), source


def replace_bounds(data: RecordedData) -> RecordedData:
    """The data with every action taken as it stands: π and μ are then scored alike."""
    return data._replace(at_bound=None)


def _describe(data: RecordedData) -> str:
    returns = (data.rewards * data.valid).sum(axis=0)
    return f"{data.episodes} recorded episodes, {data.steps:,} steps, mean return {readable(returns.mean())}"
