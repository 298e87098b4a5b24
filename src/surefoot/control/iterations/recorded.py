"""Recorded episodes: every update draws some of them, and nobody acts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from surefoot.control.compilation import fixed_settings
from surefoot.control.configuration import TrainConfiguration
from surefoot.control.iterations.common import Outcome, diverged, merge_reports, report_of
from surefoot.control.policies.normalization import RunningStatistics, center
from surefoot.control.recorded.source import RecordedSource
from surefoot.control.rollout import Rollout, split_key
from surefoot.control.trees import arrays_of, tree_from
from surefoot.control.update.state import Learner, Metrics, Schedule, initialize, optimizer_of, schedule_at
from surefoot.control.update.whole import whole_update


class RecordedIteration:
    """Updates from recorded episodes, as long as they speak of the policy that learns."""

    whole = True

    @fixed_settings()
    def __init__(self, configuration: TrainConfiguration, source: RecordedSource, *, seed: int) -> None:
        assert configuration.recorded is not None
        self._configuration = configuration
        self._smallest = configuration.recorded.smallest_effective_share
        self.finished: str | None = None
        fitted = source.fitted
        assert fitted.observation_statistics is not None
        learner = initialize(configuration, source.spaces, seed)
        parameters = {name: np.asarray(value, np.float32) for name, value in fitted.parameters.items()}
        seen = RunningStatistics(*(np.asarray(part, np.float32) for part in fitted.observation_statistics))
        self.learner = learner._replace(
            actor=learner.actor._replace(parameters=parameters, optimizer=optimizer_of(configuration).init(parameters)),
            observations=seen,
        )
        self._trusted = self.learner
        centered = center(source.rollout.observations, seen).astype(np.float32)
        self._episodes = jax.tree.map(jax.numpy.asarray, source.rollout._replace(observations=centered))
        episodes, together = source.rollout.rewards.shape[1], configuration.run.num_envs

        def update(learner: Learner, episodes_of: Rollout, schedule: Schedule) -> tuple[Learner, Metrics, jax.Array, Rollout]:
            chosen = jax.random.permutation(split_key(learner.key).order, episodes)[:together]
            rollout = jax.tree.map(lambda x: x[:, chosen], episodes_of)
            # Each episode begins and ends in its own column: nothing is carried from one update to the next.
            fresh = learner._replace(returns=0 * learner.returns)
            after, metrics, finite = whole_update(configuration, source.spaces, fresh, rollout, schedule)
            return after._replace(observations=learner.observations), metrics, finite, rollout

        arguments = (self.learner, self._episodes, schedule_at(configuration, 0))
        self._update = jax.jit(update).lower(*arguments).compile()

    def run(self, number: int) -> Outcome:
        """See :class:`Iteration`; ends the training once the effective sample is too small.

        The policy that the sample was too small for is given up for the last one whose sample was not.
        """
        start, reports, before, skipped = time.perf_counter(), [], (self.learner, self._trusted), 0
        for i in range(self._configuration.rollouts_per_report):
            schedule = schedule_at(self._configuration, number + i)
            learner, metrics, finite, rollout = self._update(self.learner, self._episodes, schedule)
            if not finite and self._configuration.run.on_nonfinite == "stop":
                self.learner, self._trusted = before
                raise diverged(self._configuration, number + i, learner, metrics)
            skipped += not finite
            report = jax.tree.map(np.asarray, report_of(metrics, rollout))
            share = float(metrics["importance/effective_sample_share"])
            if share < self._smallest:
                self.finished = (
                    f"the effective sample fell to {share:.0%} of an update's, below --smallest-effective-share: the data no"
                    " longer speak of this policy; the one before it is kept, and training ends here"
                )
                self.learner = self._trusted
                reports.append(report | {"valid": np.zeros_like(report["valid"])})  # read, but nothing was learnt from it
                break
            reports.append(report)
            self._trusted, self.learner = self.learner, learner
        report = jax.tree.map(lambda *values: np.stack(values)[None], *reports)
        # Their ends are those of the policy that acted, and no news of the one that learns.
        report |= {name: np.zeros_like(report[name]) for name in ("terminated", "truncated")}
        return Outcome(**merge_reports(report), skipped=np.asarray([skipped]), seconds={"update": time.perf_counter() - start})

    def restart(self, number: int, make: Callable[[], Any]) -> tuple[str, ...]:
        """Never called: the state is whole."""
        raise NotImplementedError

    def _tree(self) -> dict[str, Learner]:
        return {"learner": self.learner, "trusted": self._trusted}

    def state(self) -> dict[str, np.ndarray]:
        """See :class:`Iteration`."""
        return arrays_of(self._tree())

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """See :class:`Iteration`."""
        restored = tree_from(state, self._tree())
        self.learner, self._trusted = restored["learner"], restored["trusted"]

    def learners(self) -> list[Learner]:
        """See :class:`Iteration`."""
        return [jax.tree.map(np.asarray, self.learner)]

    def close(self) -> tuple[str, ...]:
        """Nothing to release."""
        return ()
