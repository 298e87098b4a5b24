"""Where a run's data come from: environments to act in, or recorded episodes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from surefoot.control.configuration import Backend, TrainConfiguration
from surefoot.control.environments.arguments import Wrapper
from surefoot.control.environments.host import HostEnvironments
from surefoot.control.environments.making import Environment, recipe_for
from surefoot.control.environments.select import Selection, select_environments
from surefoot.control.environments.workers.vector import WorkerSettings
from surefoot.control.recorded.source import RecordedSource, open_recorded
from surefoot.errors import UsageError

Source = Selection | RecordedSource


def close_source(source: Source) -> tuple[str, ...]:
    """Close the environments that a source was opened with, unless they are closed already; returns notices of what went wrong."""
    environments = source.environments if isinstance(source, Selection) else None
    return environments.close() if isinstance(environments, HostEnvironments) else ()


def open_source(
    configuration: TrainConfiguration,
    environment: Environment | None,
    *,
    seed: int,
    began: int = 0,
    backend: Backend | None = None,
    wrapper: Iterable[Wrapper] | None = None,
) -> tuple[TrainConfiguration, Source]:
    """Make one seed's environments, or open recorded data.

    Args:
        configuration: of the run.
        environment: a callable to take instead of the environment that the configuration names.
        seed: which.
        began: the iteration that the environments begin with.
        backend: what steps them, by default what the configuration says.
        wrapper: the wrappers, by default those that the configuration names.

    Returns:
        the configuration, which recorded data shape, with what the environment is; and the source.

    Raises:
        UsageError: something cannot be used.
    """
    run = configuration.run
    if configuration.recorded is not None and configuration.recorded.from_data is not None:
        if environment is not None:
            raise UsageError("recorded data are learnt from without acting; give no environment beside from_data")
        return open_recorded(configuration)
    recipe = recipe_for(
        run.env if environment is None else environment, run.env_kwargs, run.wrapper if wrapper is None else wrapper
    )
    restart = run.on_worker_failure == "restart"
    workers = WorkerSettings(run.env_workers, run.worker_timeout, restart) if run.env_workers else None
    selection = select_environments(
        recipe, backend=backend or run.backend, num_envs=run.num_envs, seed=seed, began=began, workers=workers
    )
    return replace(configuration, environment=selection.identity), selection
