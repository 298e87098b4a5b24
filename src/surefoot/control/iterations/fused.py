"""Rollout and update in one compiled program, for several rollouts at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jax
import numpy as np

from surefoot.control.compilation import compile_all, fixed_settings, forget
from surefoot.control.configuration import TrainConfiguration
from surefoot.control.environments.functional import FunctionalEnvironment, functional_carry, functional_step
from surefoot.control.environments.pool import Pool
from surefoot.control.iterations.common import Outcome, diverged, find_faults, merge_reports, raise_first_fault, report_of
from surefoot.control.iterations.timing import fastest, inference_program
from surefoot.control.policies.spaces import Spaces
from surefoot.control.rollout import EnvironmentStep, Rollout, collect_compiled
from surefoot.control.trees import arrays_of, tree_from
from surefoot.control.update.state import Learner, Metrics, Schedule, actor_of, cut_episodes, initialize, schedules
from surefoot.control.update.whole import whole_update


class FusedIteration:
    """Environments that JAX can step: everything between two reports is one program.

    A pure-JAX environment is mapped over seeds. An EnvPool is for one seed; its program cannot be cached between
    processes, because the pool's address is part of it, which is worth it only where rollouts are so short that calls
    would cost more than the work.
    """

    finished: str | None = None

    @fixed_settings(x64=None)
    def __init__(
        self,
        configuration: TrainConfiguration,
        environment: FunctionalEnvironment | Pool,
        spaces: Spaces,
        name: str,
        *,
        seeds: list[int],
    ) -> None:
        self._configuration, self._name, self._seeds = configuration, name, seeds
        run, actor = configuration.run, actor_of(configuration, spaces)
        self._together = configuration.rollouts_per_report
        self._shape = (run.rollout_length, run.num_envs, spaces.observation_size)
        learners = [initialize(configuration, spaces, seed) for seed in seeds]
        self.whole = not isinstance(environment, Pool)
        """If not there is one seed, and arrays have no axis of seeds."""
        self._parts: tuple[float, float] | None = None
        """Seconds of a report's rollouts and of the policy within them; with a pool they cannot be told apart."""
        if isinstance(environment, Pool):
            (self.learner,) = learners
            self._begin(environment, spaces)
            return
        self.learner = jax.tree.map(lambda *leaves: np.stack(leaves), *learners)
        # A first word of 1 sets the environments' keys apart from the learners', whose first word is 0.
        keys = np.asarray([[1, seed] for seed in seeds], np.uint32)
        self._carry = jax.jit(jax.vmap(lambda key: functional_carry(environment, num_envs=run.num_envs, key=key)))(keys)
        fused_iterate, rollout_of = fused(configuration, spaces, functional_step(environment))
        everyone = (self.learner, self._carry)
        plan = schedules(configuration, 0, self._together)
        sources = {
            "iterate": (jax.jit(jax.vmap(fused_iterate, in_axes=(0, 0, None))), (*everyone, plan)),
            "rollout": (jax.jit(jax.vmap(rollout_of)), everyone),
            "infer": inference_program(actor, learners[0], envs=run.num_envs * len(seeds), length=run.rollout_length),
        }
        programs = compile_all({name: function.lower(*arguments) for name, (function, arguments) in sources.items()})
        self._iterate = programs["iterate"]
        rollout, inference = fastest(programs["rollout"], everyone), fastest(programs["infer"], sources["infer"][1])
        self._parts = (self._together * rollout, self._together * min(inference, rollout))

    def _begin(self, pool: Pool, spaces: Spaces) -> None:
        """Set a pool up, and compile the program that it is part of."""
        self._spaces, self._pool = spaces, pool  # the program has its address, and does not keep it alive
        self._carry, step = pool.start()
        fused_iterate, _ = fused(self._configuration, spaces, step)
        learner = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), self.learner)
        with fixed_settings(), pool.precision():
            lowered = jax.jit(fused_iterate).lower(learner, self._carry, schedules(self._configuration, 0, self._together))
        self._iterate = compile_all({"iterate": lowered})["iterate"]
        forget(fused_iterate.__name__)

    def run(self, number: int) -> Outcome:
        """See :class:`Iteration`."""
        start = time.perf_counter()
        plan = schedules(self._configuration, number, self._together)
        learner, carry, report, faults, finite = self._iterate(self.learner, self._carry, plan)
        report, faults, finite = jax.tree.map(np.asarray, (report, faults, finite))
        if not self.whole:
            report, faults, finite = jax.tree.map(lambda x: x[None], (report, faults, finite))
        raise_first_fault(faults, self._name, self._shape, number)
        if not finite.all() and self._configuration.run.on_nonfinite == "stop":
            self._stop(number, learner, report["metrics"], finite)
        self.learner, self._carry = learner, carry
        total = time.perf_counter() - start
        parts = {}
        if self._parts is not None:
            collected, inference = (min(seconds, total) for seconds in self._parts)
            parts = {"environment": collected - inference, "inference": inference, "update": total - collected}
        return Outcome(**merge_reports(report), skipped=(~finite).sum(axis=1), seconds=parts)

    def _stop(self, number: int, learner: Learner, metrics: Metrics, finite: np.ndarray) -> NoReturn:
        """Name the first update that was not finite; arrays are of shape (seeds, rollouts), the learner after the last one."""
        i = int(np.argmin(finite.all(axis=0)))
        which = int(np.argmin(finite[:, i]))
        after = jax.tree.map(lambda x: x[which], learner) if self.whole else learner
        seed = self._seeds[which] if len(self._seeds) > 1 else None
        raise diverged(self._configuration, number + i, after, {k: v[which, i] for k, v in metrics.items()}, seed=seed)

    def restart(self, number: int, make: Callable[[], Pool]) -> tuple[str, ...]:
        """See :class:`Iteration`."""
        self.learner = cut_episodes(self.learner)
        self._begin(make(), self._spaces)
        return ()

    def _tree(self) -> dict[str, Any]:
        return {"learner": self.learner} | ({"environments": self._carry} if self.whole else {})

    def state(self) -> dict[str, np.ndarray]:
        """See :class:`Iteration`."""
        return arrays_of(self._tree())

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """See :class:`Iteration`."""
        restored = tree_from(state, self._tree())
        if self.whole:
            self.learner, self._carry = restored["learner"], restored["environments"]
        else:
            self.learner = cut_episodes(restored["learner"])

    def learners(self) -> list[Learner]:
        """See :class:`Iteration`."""
        everyone = jax.tree.map(np.asarray, self.learner)
        if not self.whole:
            return [everyone]
        take = lambda i: jax.tree.map(lambda x: x[i], everyone)  # noqa: E731
        return [take(i) for i in range(len(self._seeds))]

    def close(self) -> tuple[str, ...]:
        """Nothing to release."""
        return ()


def fused(configuration: TrainConfiguration, spaces: Spaces, step: EnvironmentStep) -> tuple[Any, Any]:
    """The functions to compile: rollouts with their updates, (learner, carry, plan) → (learner, carry, report, faults, finite),
    and a rollout alone, (learner, carry) → (carry, rollout).
    """
    actor, length, together = (
        actor_of(configuration, spaces),
        configuration.run.rollout_length,
        configuration.rollouts_per_report,
    )

    def rollout_of(learner: Learner, carry: Any) -> tuple[Any, Rollout]:
        return collect_compiled(actor, step, carry, learner.actor.parameters, learner.observations, learner.key, length=length)

    def once(state: tuple[Learner, Any], schedule: Schedule) -> tuple[tuple[Learner, Any], tuple[Any, ...]]:
        carry, rollout = rollout_of(*state)
        # An environment's types may need 64 bits while its steps are traced; the update is in 32 bits everywhere.
        with jax.enable_x64(False):
            learner, metrics, finite = whole_update(configuration, spaces, state[0], rollout, schedule)
            return (learner, carry), (report_of(metrics, rollout), find_faults(rollout), finite)

    def fused_iterate(learner: Learner, carry: Any, plan: Schedule) -> tuple[Any, ...]:
        # One rollout alone is written out: a loop of one would only cost.
        (learner, carry), record = jax.lax.scan(once, (learner, carry), plan, unroll=together == 1)
        return learner, carry, *record

    return fused_iterate, rollout_of
