"""A pure-JAX environment: the whole iteration in one program."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import jax
import numpy as np

from surefoot.control.algorithms import ppo
from surefoot.control.compilation import compile_all
from surefoot.control.configuration import TrainConfiguration
from surefoot.control.environments.functional import FunctionalEnvironment, functional_carry, functional_step
from surefoot.control.iterations.common import Faults, Outcome, diverged, raise_faults, report_of, whole_update
from surefoot.control.iterations.timing import fastest, inference_program
from surefoot.control.policies.spaces import Spaces
from surefoot.control.rollout import Rollout, collect_compiled


class FusedIteration:
    """A pure-JAX environment: the whole iteration is one compiled program, mapped over seeds."""

    def __init__(
        self,
        configuration: TrainConfiguration,
        environment: FunctionalEnvironment,
        spaces: Spaces,
        name: str,
        *,
        seeds: list[int],
    ) -> None:
        self._configuration, self._name, self._count = configuration, name, len(seeds)
        run, actor = configuration.run, ppo.actor_of(configuration, spaces)
        self._shape = (run.rollout_length, run.num_envs, spaces.observation_size)
        learners = [ppo.initialize(configuration, spaces, seed) for seed in seeds]
        self.learner = jax.tree.map(lambda *leaves: np.stack(leaves), *learners)
        # A first word of 1 sets the environments' keys apart from the learners', whose first word is 0.
        keys = np.asarray([[1, seed] for seed in seeds], np.uint32)
        self._carry = jax.jit(jax.vmap(lambda key: functional_carry(environment, num_envs=run.num_envs, key=key)))(keys)
        collect = partial(collect_compiled, actor, functional_step(environment), length=run.rollout_length)

        def rollout_of(learner: ppo.Learner, carry: Any) -> tuple[Any, Rollout]:
            return collect(carry, learner.actor.parameters, learner.observations, learner.key)

        def iterate(learner: ppo.Learner, carry: Any, schedule: ppo.Schedule) -> tuple[Any, ...]:
            carry, rollout = rollout_of(learner, carry)
            learner, metrics, faults, finite = whole_update(configuration, spaces, learner, rollout, schedule)
            return learner, carry, report_of(metrics, rollout), faults, finite

        schedule = ppo.schedule_at(configuration, 0)
        everyone = (self.learner, self._carry)
        sources = {
            "iterate": (jax.jit(jax.vmap(iterate, in_axes=(0, 0, None))), (*everyone, schedule)),
            "rollout": (jax.jit(jax.vmap(rollout_of)), everyone),
            "infer": inference_program(actor, learners[0], envs=run.num_envs * len(seeds), length=run.rollout_length),
        }
        programs = compile_all({name: function.lower(*arguments) for name, (function, arguments) in sources.items()})
        self._iterate = programs["iterate"]
        self._rollout_seconds = fastest(programs["rollout"], everyone)
        self._inference = min(fastest(programs["infer"], sources["infer"][1]), self._rollout_seconds)

    def run(self, number: int) -> Outcome:
        """See :class:`Iteration`."""
        start = time.perf_counter()
        learner, carry, report, faults, finite = self._iterate(
            self.learner, self._carry, ppo.schedule_at(self._configuration, number)
        )
        report, faults, finite = jax.tree.map(np.asarray, (report, faults, finite))
        for i in range(len(faults.observation)):
            raise_faults(Faults(*(f[i] for f in faults)), self._name, self._shape, number)
        if not finite.all():
            raise diverged(self._configuration, number)
        self.learner, self._carry = learner, carry
        total = time.perf_counter() - start
        collected = min(self._rollout_seconds, total)
        inference = min(self._inference, collected)
        parts = {"environment": collected - inference, "inference": inference, "update": total - collected}
        return Outcome(**report, seconds=parts)

    def learners(self) -> list[ppo.Learner]:
        """See :class:`Iteration`."""
        everyone = jax.tree.map(np.asarray, self.learner)
        take = lambda i: jax.tree.map(lambda x: x[i], everyone)  # noqa: E731
        return [take(i) for i in range(self._count)]

    def close(self) -> None:
        """Nothing to release."""
