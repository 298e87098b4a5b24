"""Rollout and update in one compiled program, for several rollouts at a time."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import jax
import numpy as np

from surefoot.control.compilation import compile_all, forget
from surefoot.control.configuration import TrainConfiguration
from surefoot.control.environments.functional import FunctionalEnvironment, functional_carry, functional_step
from surefoot.control.environments.pool import Pool
from surefoot.control.iterations.common import Outcome, diverged, find_faults, merge_reports, raise_first_fault, report_of
from surefoot.control.iterations.timing import fastest, inference_program
from surefoot.control.policies.spaces import Spaces
from surefoot.control.rollout import Rollout, collect_compiled
from surefoot.control.update.state import Learner, Schedule, actor_of, initialize, schedules
from surefoot.control.update.whole import whole_update


class FusedIteration:
    """Environments that JAX can step: everything between two reports is one program.

    A pure-JAX environment is mapped over seeds. An EnvPool is for one seed; its program cannot be cached between
    processes, because the pool's address is part of it, which is worth it only where rollouts are so short that calls
    would cost more than the work.
    """

    finished: str | None = None

    def __init__(
        self,
        configuration: TrainConfiguration,
        environment: FunctionalEnvironment | Pool,
        spaces: Spaces,
        name: str,
        *,
        seeds: list[int],
    ) -> None:
        self._configuration, self._name, self._count = configuration, name, len(seeds)
        run, actor = configuration.run, actor_of(configuration, spaces)
        self._together = configuration.rollouts_per_report
        self._shape = (run.rollout_length, run.num_envs, spaces.observation_size)
        learners = [initialize(configuration, spaces, seed) for seed in seeds]
        self._pooled = pooled = isinstance(environment, Pool)
        """One seed, and arrays without an axis of seeds."""
        plan = schedules(configuration, 0, self._together)
        if isinstance(environment, Pool):
            (self.learner,) = learners
            self._carry, step = environment.start()
        else:
            self.learner = jax.tree.map(lambda *leaves: np.stack(leaves), *learners)
            # A first word of 1 sets the environments' keys apart from the learners', whose first word is 0.
            keys = np.asarray([[1, seed] for seed in seeds], np.uint32)
            self._carry = jax.jit(jax.vmap(lambda key: functional_carry(environment, num_envs=run.num_envs, key=key)))(keys)
            step = functional_step(environment)

        def rollout_of(learner: Learner, carry: Any) -> tuple[Any, Rollout]:
            return collect_compiled(
                actor, step, carry, learner.actor.parameters, learner.observations, learner.key, length=run.rollout_length
            )

        def once(state: tuple[Learner, Any], schedule: Schedule) -> tuple[tuple[Learner, Any], tuple[Any, ...]]:
            carry, rollout = rollout_of(*state)
            # EnvPool's types need 64 bits while its steps are traced; the update is in 32 bits everywhere.
            with jax.enable_x64(False) if pooled else contextlib.nullcontext():
                learner, metrics, finite = whole_update(configuration, spaces, state[0], rollout, schedule)
                return (learner, carry), (report_of(metrics, rollout), find_faults(rollout), finite)

        def fused_iterate(learner: Learner, carry: Any, plan: Schedule) -> tuple[Any, ...]:
            # One rollout alone is written out: a loop of one would only cost.
            (learner, carry), record = jax.lax.scan(once, (learner, carry), plan, unroll=self._together == 1)
            return learner, carry, *record

        self._parts: tuple[float, float] | None = None
        """Seconds of a report's rollouts and of the policy within them; with a pool they cannot be told apart."""
        everyone = (self.learner, self._carry)
        if isinstance(environment, Pool):
            with environment.precision():
                lowered = jax.jit(fused_iterate).lower(*everyone, plan)
            self._iterate = compile_all({"iterate": lowered})["iterate"]
            forget(fused_iterate.__name__)
            return
        sources = {
            "iterate": (jax.jit(jax.vmap(fused_iterate, in_axes=(0, 0, None))), (*everyone, plan)),
            "rollout": (jax.jit(jax.vmap(rollout_of)), everyone),
            "infer": inference_program(actor, learners[0], envs=run.num_envs * len(seeds), length=run.rollout_length),
        }
        programs = compile_all({name: function.lower(*arguments) for name, (function, arguments) in sources.items()})
        self._iterate = programs["iterate"]
        rollout, inference = fastest(programs["rollout"], everyone), fastest(programs["infer"], sources["infer"][1])
        self._parts = (self._together * rollout, self._together * min(inference, rollout))

    def run(self, number: int) -> Outcome:
        """See :class:`Iteration`."""
        start = time.perf_counter()
        plan = schedules(self._configuration, number, self._together)
        learner, carry, report, faults, finite = self._iterate(self.learner, self._carry, plan)
        report, faults, finite = jax.tree.map(np.asarray, (report, faults, finite))
        if self._pooled:
            report, faults, finite = jax.tree.map(lambda x: x[None], (report, faults, finite))
        raise_first_fault(faults, self._name, self._shape, number)
        if not finite.all():
            raise diverged(self._configuration, number + int(np.argmin(finite.all(axis=0))))
        self.learner, self._carry = learner, carry
        total = time.perf_counter() - start
        parts = {}
        if self._parts is not None:
            collected, inference = (min(seconds, total) for seconds in self._parts)
            parts = {"environment": collected - inference, "inference": inference, "update": total - collected}
        return Outcome(**merge_reports(report), seconds=parts)

    def learners(self) -> list[Learner]:
        """See :class:`Iteration`."""
        everyone = jax.tree.map(np.asarray, self.learner)
        if self._pooled:
            return [everyone]
        take = lambda i: jax.tree.map(lambda x: x[i], everyone)  # noqa: E731
        return [take(i) for i in range(self._count)]

    def close(self) -> None:
        """Nothing to release."""
