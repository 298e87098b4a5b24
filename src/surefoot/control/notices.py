"""What a run's numbers say that a user should be told once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from surefoot.control.configuration import TrainConfiguration
from surefoot.control.environments.bounds import hardly_told_apart
from surefoot.control.iterations.common import Iteration, Outcome
from surefoot.control.policies.spaces import Spaces

REPORTS = 20
"""So many reports a critic is given to explain something."""
FEWEST = 5
"""A run of fewer reports says nothing of its critic."""


class Watch:
    """Looks at the reports of one run."""

    def __init__(self, configuration: TrainConfiguration, spaces: Spaces) -> None:
        self._spaces = spaces
        self._normalizes = configuration.normalization.normalize_observations
        reports = configuration.iterations // configuration.rollouts_per_report
        # Of reports with several rollouts the metric is a mean, which one rollout with hardly any variance decides.
        watched = configuration.rollouts_per_report == 1 and reports >= FEWEST
        self._until = min(REPORTS, reports) if watched else 0
        self._reports, self._best = 0, -np.inf

    def of_report(self, iteration: Iteration, outcome: Outcome) -> Iterator[str]:
        """Sentences about the report that ``iteration`` has just made."""
        self._reports += 1
        if self._reports == 1 and self._normalizes:
            yield from self._of_observations(iteration)
        explained = outcome.metrics.get("critic/explained_variance")
        if explained is None or self._reports > self._until:
            return
        self._best = max([self._best, *explained[np.isfinite(explained)]])
        if self._reports == self._until and -np.inf < self._best <= 0:
            yield (
                f"critic/explained_variance was at or below 0 in each of the first {self._reports} reports: the critic says nothing of"
                " the returns that one number would not; look at the rewards, or change --critic-learning-rate"
            )

    def _of_observations(self, iteration: Iteration) -> Iterator[str]:
        statistics, spaces = iteration.learners()[0].observations, self._spaces
        dtype = "float32" if spaces == spaces.in_float32() else spaces.observation_dtype
        spread = np.sqrt(statistics.variance)
        yield from hardly_told_apart(statistics.mean, spread, resolution=spaces.resolution, dtype=dtype)
