"""Environments outside the update: collect with a loop or a small program, then update actor and critic side by side."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import numpy as np

from surefoot.control.algorithms import ppo
from surefoot.control.compilation import compile_all, forget
from surefoot.control.configuration import TrainConfiguration
from surefoot.control.environments.host import HostEnvironments
from surefoot.control.environments.pool import Pool
from surefoot.control.iterations.common import (
    Outcome,
    Seconds,
    diverged,
    mean_metrics,
    raise_faults,
    report_of,
    start_update,
    still_finite,
)
from surefoot.control.iterations.host_loop import HostCollector
from surefoot.control.iterations.timing import fastest, inference_program
from surefoot.control.policies.spaces import Spaces
from surefoot.control.rollout import Rollout, ScanCarry, collect_compiled


class SplitIteration:
    """Environments outside the update: Python's, or an EnvPool inside a small compiled rollout."""

    def __init__(self, configuration: TrainConfiguration, environments: HostEnvironments | Pool, *, seed: int) -> None:
        self._configuration, self._environments = configuration, environments
        self.spaces = spaces = environments.spaces
        run, actor = configuration.run, ppo.actor_of(configuration, environments.spaces)
        self.learner = ppo.initialize(configuration, spaces, seed)
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="critic")
        self._shape = (run.rollout_length, run.num_envs, spaces.observation_size)
        self._inference = 0.0
        if isinstance(environments, HostEnvironments):
            self._collector = HostCollector(actor, environments, length=run.rollout_length, seed=seed)
            self._programs = compile_all({n: f.lower(*a) for n, (f, a) in self._updates().items()})
        else:
            self._carry, step = environments.start()

            def rollout_from_pool(carry: ScanCarry, *rest: Any) -> tuple[ScanCarry, Rollout]:
                return collect_compiled(actor, step, carry, *rest, length=run.rollout_length)

            state = (self._carry, self.learner.actor.parameters, self.learner.observations, self.learner.key)
            infer, arguments = inference_program(actor, self.learner, envs=run.num_envs, length=run.rollout_length)
            lowered = {n: f.lower(*a) for n, (f, a) in (self._updates() | {"infer": (infer, arguments)}).items()}
            with environments.precision():
                lowered["collect"] = jax.jit(rollout_from_pool).lower(*state)
            self._programs = compile_all(lowered)
            forget(rollout_from_pool.__name__)
            self._inference = fastest(self._programs["infer"], arguments)

    def _updates(self) -> dict[str, tuple[Any, tuple[Any, ...]]]:
        """The update's jitted functions, and the shapes of their arguments."""
        configuration, spaces, learner = self._configuration, self.spaces, self.learner
        on_host = isinstance(self._environments, HostEnvironments)
        finals = on_host and not self._environments.next_step  # type: ignore[union-attr]
        rollout = rollout_shapes(configuration, spaces, finals=finals)
        start = jax.jit(partial(start_update, configuration, spaces))
        _, data, samples, orders, _, _ = jax.eval_shape(start, learner, rollout)
        schedule = ppo.schedule_at(configuration, 0)
        actor = jax.jit(partial(ppo.improve_actor, configuration, spaces))
        critic = jax.jit(partial(ppo.improve_critic, configuration))
        programs: dict[str, tuple[Any, tuple[Any, ...]]] = {
            "start": (start, (learner, rollout)),
            "actor": (actor, (learner.actor, np.bool_(False), samples, orders[0], schedule)),
            "critic": (critic, (learner.critic, samples, orders[0], schedule)),
        }
        if configuration.ppo.recompute_advantages:
            estimate = jax.jit(partial(ppo.estimate, configuration))
            programs["estimate"] = (estimate, (learner.critic.parameters, data, samples.values))
        return programs

    def _rollout(self) -> tuple[Rollout, Seconds]:
        learner = self.learner
        if isinstance(self._environments, HostEnvironments):
            parameters = jax.tree.map(np.asarray, learner.actor.parameters)
            return self._collector.collect(parameters, jax.tree.map(np.asarray, learner.observations))
        start = time.perf_counter()
        self._carry, rollout = self._programs["collect"](
            self._carry, learner.actor.parameters, learner.observations, learner.key
        )
        jax.block_until_ready(rollout)
        total = time.perf_counter() - start
        return rollout, {"environment": max(total - self._inference, 0.0), "inference": min(self._inference, total)}

    def run(self, number: int) -> Outcome:
        """See :class:`Iteration`."""
        programs = self._programs
        rollout, seconds = self._rollout()
        start = time.perf_counter()
        learner, data, samples, orders, metrics, faults = programs["start"](self.learner, rollout)
        raise_faults(faults, self._environments.name, self._shape, number)
        schedule = ppo.schedule_at(self._configuration, number)
        actor, critic, stopped = learner.actor, learner.critic, np.bool_(False)
        sums: list[list[ppo.Metrics]] = [[], []]
        for i, order in enumerate(orders):
            if i > 0:
                samples, _ = programs["estimate"](critic.parameters, data, samples.values)
            # The two programs run at the same time only if two threads run them.
            of_critic = self._threads.submit(
                lambda *a: jax.block_until_ready(programs["critic"](*a)), critic, samples, order, schedule
            )
            actor, stopped, of_actor = jax.block_until_ready(programs["actor"](actor, stopped, samples, order, schedule))
            critic, critic_sums = of_critic.result()
            sums[0].append(of_actor)
            sums[1].append(critic_sums)
        totals = [{k: np.sum([np.asarray(s[k]) for s in group], axis=0) for k in group[0]} for group in sums]
        if not still_finite(*totals, passes=len(orders)):
            raise diverged(self._configuration, number)
        self.learner = learner._replace(actor=actor, critic=critic)
        metrics = metrics | mean_metrics(totals[0]) | mean_metrics(totals[1])
        seconds["update"] = time.perf_counter() - start
        report = jax.tree.map(lambda x: np.asarray(x)[None], report_of(metrics, rollout))
        return Outcome(**report, seconds=seconds)

    def learners(self) -> list[ppo.Learner]:
        """See :class:`Iteration`."""
        return [jax.tree.map(np.asarray, self.learner)]

    def close(self) -> None:
        """Release environments and threads."""
        self._threads.shutdown()
        if isinstance(self._environments, HostEnvironments):
            self._environments.close()


def rollout_shapes(configuration: TrainConfiguration, spaces: Spaces, *, finals: bool) -> Rollout:
    """The shapes and dtypes of a rollout."""
    steps, envs, size = configuration.run.rollout_length, configuration.run.num_envs, spaces.observation_size
    shape = jax.ShapeDtypeStruct
    flags = shape((steps, envs), np.bool_)
    return Rollout(
        observations=shape((steps + 1, envs, size), np.float32),
        actions=shape((steps, envs, *spaces.action.shape), spaces.action.dtype),
        rewards=shape((steps, envs), np.float32),
        terminated=flags,
        truncated=flags,
        valid=flags,
        final_observations=shape((steps, envs, size), np.float32) if finals else None,
    )
