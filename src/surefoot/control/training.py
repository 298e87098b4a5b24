"""The training loop: iterate, report, keep what was learnt."""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from surefoot.control.algorithms import ppo
from surefoot.control.compilation import use_persistent_cache
from surefoot.control.configuration import TrainConfiguration
from surefoot.control.environments.functional import FunctionalEnvironment
from surefoot.control.environments.select import Environment, Selection, environment_name, select_environments
from surefoot.control.iteration import FusedIteration, Iteration, Outcome, SplitIteration
from surefoot.control.policy import Policy
from surefoot.control.spaces import Spaces, describe_spaces
from surefoot.errors import RunError
from surefoot.runs.directory import CONFIGURATION_FILE, SUMMARY_FILE, create_run_folder, write_json
from surefoot.runs.metrics import MetricsWriter
from surefoot.runs.progress import Progress
from surefoot.runs.statistics import summarize_seeds

RECENT_EPISODES = 100


class EpisodeTracker:
    """Returns and lengths of finished episodes, from rollouts as they come."""

    def __init__(self, num_envs: int) -> None:
        self._returns, self._lengths = np.zeros(num_envs), np.zeros(num_envs, np.int64)
        self.recent: deque[float] = deque(maxlen=RECENT_EPISODES)
        self.finished = 0

    @property
    def mean_return(self) -> float | None:
        """Over the last 100 finished episodes; None before the first."""
        return float(np.mean(self.recent)) if self.recent else None

    def take(self, rewards: np.ndarray, ended: np.ndarray, valid: np.ndarray) -> dict[str, float | None]:
        """Take in a rollout, each array of shape (T, N); returns the metrics of the episodes that it finished."""
        rewards, counts = np.where(valid, rewards, 0.0), valid.astype(np.int64)
        ends = ended & valid
        returns, lengths = np.cumsum(rewards, axis=0, dtype=np.float64), np.cumsum(counts, axis=0)
        finished_returns: list[tuple[int, float, int]] = []
        for env in np.flatnonzero(ends.any(axis=0)):
            rows = np.flatnonzero(ends[:, env])
            totals = np.diff(returns[rows, env], prepend=-self._returns[env])
            spans = np.diff(lengths[rows, env], prepend=-self._lengths[env])
            finished_returns += zip(rows.tolist(), totals.tolist(), spans.tolist(), strict=True)
            self._returns[env] = returns[-1, env] - returns[rows[-1], env]
            self._lengths[env] = lengths[-1, env] - lengths[rows[-1], env]
        going = ~ends.any(axis=0)
        self._returns[going] += returns[-1, going]
        self._lengths[going] += lengths[-1, going]
        finished_returns.sort()  # in the order of time, so that "the last 100" means it
        self.recent.extend(value for _, value, _ in finished_returns)
        self.finished += len(finished_returns)
        done = np.asarray([(value, span) for _, value, span in finished_returns])
        return {
            "episode/return_mean": float(done[:, 0].mean()) if len(done) else None,
            "episode/return_min": float(done[:, 0].min()) if len(done) else None,
            "episode/return_max": float(done[:, 0].max()) if len(done) else None,
            "episode/length_mean": float(done[:, 1].mean()) if len(done) else None,
            "episode/finished": float(len(done)),
            "episode/return_mean_recent": self.mean_return,
        }


class StopRequest:
    """Ctrl-C and SIGTERM: the first finishes the iteration, the second stops at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Take over both signals; outside the main thread, where Python cannot, leave them as they are."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return

        def stop(number: int, frame: Any) -> None:
            if self.signal is not None:
                raise KeyboardInterrupt
            self.signal = number

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def train(
    configuration: TrainConfiguration,
    *,
    environment: Environment | None = None,
    quiet: bool = False,
    started: float | None = None,
) -> dict[str, Any]:
    """Train with PPO and keep the run in a folder.

    Args:
        configuration: what to train and how.
        environment: a callable to take instead of ``configuration.run.env``, which then only names it.
        quiet: no progress.
        started: ``time.time()`` of the process's start, so that start-up includes imports; now by default.

    Returns:
        what ``surefoot train --json`` prints: algorithm, env, backend, total_steps (that the policy acted on),
        seconds, startup_seconds, steps_per_second (without start-up), mean_return (of the last 100 training episodes)
        and run; also ``interrupted``, and with several seeds ``seeds``, a list, and ``summary``, their interquartile
        mean and its interval.

    Raises:
        UsageError: something in the configuration cannot be used.
        RunError: an environment failed or the disk is full; what was learnt before is saved where that is possible.

    """
    started = time.time() if started is None else started
    run = configuration.run
    wanted: Environment = run.env if environment is None else environment
    use_persistent_cache()
    seeds = list(range(run.seed, run.seed + run.seeds))
    selection = select_environments(wanted, backend=run.backend, num_envs=run.num_envs, seed=run.seed)
    folder = create_run_folder(run.out, name=f"ppo-{environment_name(wanted)}")
    write_json(folder / CONFIGURATION_FILE, configuration.as_dict())
    stop = StopRequest()
    with stop.listening():
        if len(seeds) == 1 or isinstance(selection.environments, FunctionalEnvironment):
            results = _train_together(configuration, selection, folder, seeds, quiet=quiet, started=started, stop=stop)
        else:
            results = []
            for i, seed in enumerate(seeds):
                if i > 0:
                    started = time.time()
                    selection = select_environments(wanted, backend=run.backend, num_envs=run.num_envs, seed=seed)
                single = replace(configuration, run=replace(run, seed=seed, seeds=1))
                below = folder / f"seed-{seed}"
                below.mkdir(exist_ok=True)
                write_json(below / CONFIGURATION_FILE, single.as_dict())
                results += _train_together(single, selection, below, [seed], quiet=quiet, started=started, stop=stop)
                if stop.signal is not None:
                    break
    if len(seeds) == 1:
        return results[0]
    reached = [r["mean_return"] for r in results if r["mean_return"] is not None]
    overall = {
        **results[0],
        "total_steps": sum(r["total_steps"] for r in results),
        "seconds": max(r["seconds"] for r in results) if selection.backend == "jax" else sum(r["seconds"] for r in results),
        "startup_seconds": sum(r["startup_seconds"] for r in results) / (len(results) if selection.backend == "jax" else 1),
        "mean_return": float(np.mean(reached)) if reached else None,
        "run": str(folder),
        "interrupted": any(r["interrupted"] for r in results),
        "seeds": results,
        "summary": summarize_seeds(reached).as_dict() if reached else None,
    }
    training = overall["seconds"] - overall["startup_seconds"]
    overall["steps_per_second"] = overall["total_steps"] / training if training > 0 else None
    write_json(folder / SUMMARY_FILE, overall)
    return overall


def make_iteration(configuration: TrainConfiguration, selection: Selection, seeds: list[int]) -> tuple[Iteration, Spaces]:
    """Compile the iteration that fits the environments."""
    environments = selection.environments
    if isinstance(environments, FunctionalEnvironment):
        name = configuration.run.env
        spaces = describe_spaces(environments.observation_space, environments.action_space, name=name)
        return FusedIteration(configuration, environments, spaces, name, seeds=seeds), spaces
    return SplitIteration(configuration, environments, seed=seeds[0]), environments.spaces


def _train_together(
    configuration: TrainConfiguration,
    selection: Selection,
    folder: Path,
    seeds: list[int],
    *,
    quiet: bool,
    started: float,
    stop: StopRequest,
) -> list[dict[str, Any]]:
    """Train one seed, or several in one program."""
    run = configuration.run
    several = len(seeds) > 1
    folders = [folder / f"seed-{seed}" for seed in seeds] if several else [folder]
    iteration, spaces = make_iteration(configuration, selection, seeds)
    trackers = [EpisodeTracker(run.num_envs) for _ in seeds]
    acted, completed, failure = [0] * len(seeds), 0, None
    per_iteration = run.num_envs * run.rollout_length
    with ExitStack() as stack:
        stack.callback(iteration.close)
        writers = []
        for seed, below in zip(seeds, folders, strict=True):
            below.mkdir(exist_ok=True)
            if several:
                write_json(below / CONFIGURATION_FILE, replace(configuration, run=replace(run, seed=seed, seeds=1)).as_dict())
            writers.append(stack.enter_context(MetricsWriter(below, tensorboard=run.tensorboard)))
        label = f"ppo {run.env}" + (f" × {len(seeds)} seeds" if several else "")
        progress = stack.enter_context(Progress(label, run.iterations * per_iteration, quiet=quiet))
        for notice in selection.notices:
            progress.say(notice)
        startup = time.time() - started
        start = time.perf_counter()
        try:
            for number in range(run.iterations):
                began = time.perf_counter()
                outcome = iteration.run(number)
                completed = number + 1
                seconds = time.perf_counter() - began
                schedule = ppo.schedule_at(configuration, number)
                for i, (tracker, writer) in enumerate(zip(trackers, writers, strict=True)):
                    real = int(outcome.valid[i].sum())
                    acted[i] += real
                    line = _report(outcome, i, tracker, seconds=seconds, real=real, schedule=schedule)
                    writer.write(
                        acted[i], {"iteration": completed, "steps": acted[i], "slots": completed * per_iteration, **line}
                    )
                known = [t.mean_return for t in trackers if t.mean_return is not None]
                rate = sum(acted) / (time.perf_counter() - start)
                progress.update(
                    completed * per_iteration, steps_per_second=rate, mean_return=float(np.mean(known)) if known else None
                )
                if stop.signal is not None:
                    break
        except RunError as error:
            failure = error
        trained = time.perf_counter() - start
        for i, below in enumerate(folders):
            _policy_of(
                configuration,
                spaces,
                selection.backend,
                iteration.learner,
                i if several or selection.backend == "jax" else None,
                acted[i],
            ).save(below)
    if failure is not None:
        raise failure
    results = []
    for i, below in enumerate(folders):
        result = {
            "algorithm": "ppo",
            "env": run.env,
            "backend": selection.backend,
            "total_steps": acted[i],
            "seconds": startup + trained,
            "startup_seconds": startup,
            "steps_per_second": acted[i] / trained if trained > 0 else None,
            "mean_return": trackers[i].mean_return,
            "run": str(below),
            "interrupted": completed < run.iterations,
        }
        write_json(below / SUMMARY_FILE, result)
        results.append(result)
    return results


def _report(
    outcome: Outcome, i: int, tracker: EpisodeTracker, *, seconds: float, real: int, schedule: ppo.Schedule
) -> dict[str, float | None]:
    """One iteration's metrics of one seed."""
    ended = outcome.terminated[i] | outcome.truncated[i]
    report: dict[str, float | None] = tracker.take(outcome.rewards[i], ended, outcome.valid[i])
    report |= {name: float(values[i]) for name, values in outcome.metrics.items()}
    report |= {"schedule/learning_rate": float(schedule.learning_rate), "schedule/clip_range": float(schedule.clip_range)}
    report["speed/steps_per_second"] = real / seconds
    for part, spent in outcome.seconds.items():
        report[f"speed/{part}_steps_per_second"] = real / spent if spent > 0 else None
    return report


def _policy_of(
    configuration: TrainConfiguration, spaces: Spaces, backend: str, learner: ppo.Learner, index: int | None, steps: int
) -> Policy:
    if index is not None:
        learner = jax.tree.map(lambda x: x[index], learner)
    learner = jax.tree.map(np.asarray, learner)
    normalizes = configuration.normalization.normalize_observations
    return Policy(
        spaces=spaces,
        activation=configuration.network.activation,
        parameters=learner.actor.parameters,
        observation_statistics=learner.observations if normalizes else None,
        observation_clip=configuration.normalization.observation_clip,
        description={"algorithm": "ppo", "env": configuration.run.env, "backend": backend, "steps": steps},
    )
