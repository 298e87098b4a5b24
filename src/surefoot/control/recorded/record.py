"""Write what a policy does as a Minari data set, with everything that importance sampling needs."""

from __future__ import annotations

import copy
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from surefoot.control.configuration import Backend
from surefoot.control.configuration.run import WORKER_TIMEOUT
from surefoot.control.environments.arguments import Wrapper
from surefoot.control.environments.host import HostEnvironments
from surefoot.control.environments.making import Environment
from surefoot.control.environments.seeding import shared_generators_restored
from surefoot.control.episodes import LONGEST_EPISODE
from surefoot.control.evaluation import Opened, open_environments
from surefoot.control.playing import Request, play
from surefoot.control.policies.policy import Policy, draw_noise, load_policy
from surefoot.control.recorded.likelihood import policy_log_likelihood
from surefoot.control.recorded.load import LOG_PROBABILITY, OWN_ACTION, require_minari
from surefoot.errors import RunError, UsageError

EPISODES_PER_WRITE = 100
VERSIONED = re.compile(r"[-_\w]+-v\d+")


@shared_generators_restored()
def record(
    run: str | Path,
    file: str | Path,
    *,
    episodes: int = 100,
    seed: int = 0,
    backend: Backend = "gymnasium-sync",
    deterministic: bool = False,
    environment: Environment | None = None,
    num_envs: int | None = None,
    env_workers: int = 0,
    worker_timeout: float = WORKER_TIMEOUT,
    longest_episode: int | None = LONGEST_EPISODE,
    quiet: bool = False,
    env_kwargs: Mapping[str, Any] | Iterable[str] | None = None,
    wrapper: Iterable[Wrapper] | None = None,
) -> dict[str, Any]:
    """Run a saved policy for whole episodes and write them as a Minari data set.

    The episodes are those that :func:`surefoot.control.evaluation.evaluate` plays with the same seed. ``FILE/data``
    holds what Minari writes: observations (the final ones included), the environment's actions, rewards, ends of both
    kinds, and as infos ``log_probability``, log μ(a_t|s_t) in nats, and for a Box ``policy_action``, the action as it
    was sampled and scored, before it was scaled and clipped. Infos have a last row of zeros, which belongs to the final
    observation and to no action.

    Args:
        run: the run's folder.
        file: the folder to write; it must not exist. Where its name ends in ``-v0`` or another version and it lies in
            MINARI_DATASETS_PATH, Minari knows the data set by that name.
        episodes: how many.
        seed: of environments and actions.
        backend: what steps the environment; Gymnasium's own by default.
        deterministic: refused: a policy that always takes its most probable action says nothing of any other action.
        environment: what to take instead of the environment that the run names; this and what follows as for ``evaluate``.
        num_envs: environments that step together.
        env_workers: processes that step them.
        worker_timeout: seconds that an environment in one may take.
        longest_episode: steps after which an episode is cut; its last step is truncated.
        quiet: no progress.
        env_kwargs: arguments of the environment, in place of the run's.
        wrapper: wrappers around each environment, as for ``evaluate``.

    Returns:
        env, data (the folder), dataset (its name), episodes, steps, mean_return, std_return (population), mean_length,
        cut_episodes, backend, and notices as of ``evaluate``.

    Raises:
        UsageError: as ``evaluate``; Minari is not installed, FILE exists, or ``deterministic``.
        RunError: the disk is full; nothing is left behind.
    """
    request = Request(
        episodes=episodes,
        seed=seed,
        backend=backend,
        num_envs=num_envs,
        env_workers=env_workers,
        worker_timeout=worker_timeout,
        longest_episode=longest_episode,
        quiet=quiet,
    ).of_run(run)
    if deterministic:
        raise UsageError(
            "--record with --deterministic: data of a deterministic policy cannot be reweighted, since every other action"
            " had probability 0; record without --deterministic"
        )
    require_minari()
    file = Path(file)
    if file.exists() and (not file.is_dir() or any(file.iterdir())):
        raise UsageError(f"{file} already exists; choose another --record or delete it")
    policy = load_policy(run)
    opened = open_environments(policy, request, environment=environment, env_kwargs=env_kwargs, wrapper=wrapper)
    recorder = _Recorder(policy, opened.environments, np.random.default_rng([request.seed, 2]))
    try:
        with _Writer(file, opened, policy) as writer:
            returns, lengths, cut = recorder.play(request, writer)
    finally:
        notices = opened.environments.close()
    return {
        "env": opened.name,
        "data": str(file),
        "dataset": writer.dataset,
        "episodes": request.episodes,
        "steps": int(np.sum(lengths)),
        "mean_return": float(np.mean(returns)),
        "std_return": float(np.std(returns)),
        "mean_length": float(np.mean(lengths)),
        "cut_episodes": cut,
        "backend": opened.backend,
        "notices": [*opened.notices, *notices],
    }


class _Recorder:
    """Acts, remembers what it saw and did, and hands over episodes as they end."""

    def __init__(self, policy: Policy, environments: HostEnvironments, generator: np.random.Generator) -> None:
        self.policy, self.environments, self.generator = policy, environments, generator

    def act(self, observations: np.ndarray) -> np.ndarray:
        """The same draws as ``Policy.__call__``, with the policy's own action kept."""
        space = self.policy.spaces.action
        self.observations = np.array(observations)  # environments may overwrite theirs
        noise = draw_noise(self.generator, space.noise, (len(observations), space.outputs))
        self.own = np.asarray(self.policy.distribution(self.observations).sample(noise))
        self.actions = np.asarray(space.for_environment(self.own))
        return self.actions

    def play(self, request: Request, writer: _Writer) -> tuple[list[float], list[int], int]:
        envs = self.environments.num_envs
        rows: list[list[tuple[Any, ...]]] = [[] for _ in range(envs)]
        returns: list[float] = []
        lengths: list[int] = []
        cut = 0
        for step in play(self.act, self.environments, request):
            cut += int(np.count_nonzero(step.cut))
            for i in np.flatnonzero(step.counts):
                terminated, truncated = bool(step.terminated[i]), bool(step.truncated[i])
                reward = float(step.rewards[i])
                rows[i].append((self.observations[i], self.actions[i], self.own[i], reward, terminated, truncated))
                if terminated or truncated:
                    writer.add(rows[i], np.array(step.next_observations[i]))
                    returns.append(sum(row[3] for row in rows[i]))
                    lengths.append(len(rows[i]))
                    rows[i] = []
        return returns, lengths, cut


class _Writer:
    """A data set that appears under its name when it is whole, or not at all."""

    def __init__(self, file: Path, opened: Opened, policy: Policy) -> None:
        self.file, self.policy = file, policy
        self.dataset = file.name if VERSIONED.fullmatch(file.name) else re.sub(r"[^-_\w]", "-", file.name) + "-v0"
        environments, self.recipe = opened.environments, opened.recipe
        self.observation_space, self.action_space = environments.observation_space, environments.action_space
        self.name, self.waiting = opened.name, []  # type: tuple[str, list[Any]]

    def __enter__(self) -> _Writer:
        import gymnasium
        import minari
        from minari.dataset.minari_storage import MinariStorage

        spec, recipe = None, self.recipe
        if recipe.id in gymnasium.registry and not recipe.wrappers:  # a specification has no place for wrappers of a user's own
            spec, arguments = copy.deepcopy(gymnasium.spec(str(recipe.id))), dict(recipe.arguments)
            spec.max_episode_steps = arguments.pop("max_episode_steps", spec.max_episode_steps)
            spec.kwargs.update(arguments)
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.folder = Path(tempfile.mkdtemp(prefix=f".{self.file.name}.", dir=self.file.parent.resolve()))
        except OSError as error:
            raise UsageError(f"cannot make {self.file}: {error.strerror}; choose another --record") from error
        self.storage = MinariStorage.new(
            self.folder / "data", observation_space=self.observation_space, action_space=self.action_space, env_spec=spec
        )
        self.storage.update_metadata(
            {
                "dataset_id": self.dataset,
                "minari_version": minari.__version__,
                "algorithm_name": str(self.policy.description.get("algorithm", "unknown")),
                "description": "Sampled actions of a surefoot policy; infos hold the log-probability of each.",
                "surefoot": {"env": self.name, "policy": {k: str(v) for k, v in self.policy.description.items()}},
            }
        )
        return self

    def add(self, rows: Sequence[tuple[Any, ...]], final: np.ndarray) -> None:
        """One finished episode."""
        from minari.data_collector.episode_buffer import EpisodeBuffer

        observations, actions, own, rewards, terminated, truncated = (np.asarray(column) for column in zip(*rows, strict=True))
        scores = policy_log_likelihood(self.policy, observations=observations, actions=own)
        infos = {LOG_PROBABILITY: np.append(scores, 0.0)}
        if self.policy.spaces.action.kind == "box":
            infos[OWN_ACTION] = np.concatenate([own, np.zeros_like(own[:1])])
        actions = actions.astype(self.action_space.dtype)
        if actions.dtype == np.float64:  # what the environment was given: bounds in float32 may lie outside its own
            actions = np.clip(actions, self.action_space.low, self.action_space.high)
        self.waiting.append(
            EpisodeBuffer(
                observations=np.concatenate([observations, final[None]]),
                actions=actions,
                rewards=rewards,
                terminations=terminated,
                truncations=truncated,
                infos=infos,
            )
        )
        if len(self.waiting) == EPISODES_PER_WRITE:
            self._write()

    def _write(self) -> None:
        try:
            self.storage.update_episodes(self.waiting)
        except OSError as error:
            raise RunError(f"cannot write {self.file}: {error}; nothing was left there") from error
        self.waiting = []

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._write()
                for path in (self.folder / "data").iterdir():
                    with path.open("rb") as part:
                        os.fsync(part.fileno())
                os.chmod(self.folder, 0o755)
                try:
                    os.replace(self.folder, self.file)
                except OSError as error:
                    raise RunError(f"cannot write {self.file}: {error.strerror}; nothing was left there") from error
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
