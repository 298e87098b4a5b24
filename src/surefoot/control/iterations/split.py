"""Environments outside the update: collect with a loop or a small program, then update actor and critic side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.stages import Compiled, Lowered

from surefoot.control.compilation import compile_all, fixed_settings, forget, give_back_memory
from surefoot.control.configuration import TrainConfiguration
from surefoot.control.environments.bounds import Bounds
from surefoot.control.environments.host import HostEnvironments
from surefoot.control.environments.pool import Pool
from surefoot.control.environments.workers.vector import Restarts
from surefoot.control.iterations.common import (
    Faults,
    Outcome,
    Seconds,
    diverged,
    find_faults,
    merge_reports,
    raise_faults,
    report_of,
)
from surefoot.control.iterations.host_loop import HostCollector
from surefoot.control.iterations.timing import fastest, inference_program
from surefoot.control.policies.spaces import Spaces
from surefoot.control.rollout import Rollout, ScanCarry, collect_compiled
from surefoot.control.trees import arrays_of, tree_from
from surefoot.control.update.descent import improve_critic
from surefoot.control.update.estimation import estimate
from surefoot.control.update.state import (
    Learner,
    Metrics,
    Schedule,
    actor_of,
    cut_episodes,
    initialize,
    schedule_at,
    skip_update,
)
from surefoot.control.update.whole import (
    ActorProgress,
    advance_actor,
    begin_update,
    combine_passes,
    mean_metrics,
    still_finite,
    whole_update,
)


class SplitIteration:
    """Environments outside the update: Python's, or an EnvPool inside a small compiled rollout.

    An update of several passes, or with a natural step, runs as two programs on two threads; a single step of a small
    network costs less than handing it over, and stays in one.
    """

    finished: str | None = None
    whole = False

    def __init__(
        self, configuration: TrainConfiguration, environments: HostEnvironments | Pool, *, seed: int, began: int = 0
    ) -> None:
        self._configuration, self._environments, self._seed = configuration, environments, seed
        self.spaces = spaces = environments.spaces
        run, actor = configuration.run, actor_of(configuration, environments.spaces)
        with fixed_settings():
            self.learner = initialize(configuration, spaces, seed)
        self._together = configuration.rollouts_per_report
        self._apart = configuration.passes is not None and bool(configuration.weight.critics)
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="critic")
        self._shape = (run.rollout_length, run.num_envs, spaces.observation_size)
        self._bounds = Bounds(environments.name, environments.observation_space)
        self._inference = 0.0
        with fixed_settings():  # and not around environments in Python, which may use JAX as they please
            programs = self._updates()
            if isinstance(environments, Pool):
                programs["infer"] = inference_program(actor, self.learner, envs=run.num_envs, length=run.rollout_length)
            lowered = {n: f.lower(*a) for n, (f, a) in programs.items()}
        self._programs: dict[str, Compiled] = {}
        self._begin(environments, began, lowered)
        self._reported = False
        if isinstance(environments, HostEnvironments):
            self.learner = self._collector.look(self.learner)
        if isinstance(environments, Pool):
            self._inference = fastest(self._programs["infer"], programs["infer"][1])

    def _begin(self, environments: HostEnvironments | Pool, number: int, programs: dict[str, Lowered]) -> None:
        """Set environments up for iteration ``number``; ``programs`` are compiled beside theirs."""
        self._environments = environments
        length, actor = self._configuration.run.rollout_length, actor_of(self._configuration, self.spaces)
        if isinstance(environments, HostEnvironments):
            self._collector = HostCollector(actor, environments, length=length, seed=self._seed, began=number)
            self._programs |= compile_all(programs)
            return
        self._carry, step = environments.start()

        def rollout_from_pool(carry: ScanCarry, *rest: Any) -> tuple[ScanCarry, Rollout]:
            return collect_compiled(actor, step, carry, *rest, length=length)

        # Shapes alone: where the learner lies just now must not go into the program.
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), self.learner)
        with fixed_settings(), environments.precision():
            state = (self._carry, shapes.actor.parameters, shapes.observations, shapes.key)
            collect = jax.jit(rollout_from_pool).lower(*state)
        self._programs |= compile_all({**programs, "collect": collect})
        forget(rollout_from_pool.__name__)

    def _updates(self) -> dict[str, tuple[Any, tuple[Any, ...]]]:
        """The update's jitted functions, and the shapes of their arguments."""
        configuration, spaces, learner = self._configuration, self.spaces, self.learner
        on_host = isinstance(self._environments, HostEnvironments)
        finals = on_host and not self._environments.next_step  # type: ignore[union-attr]
        rollout = rollout_shapes(configuration, spaces, finals=finals)
        schedule = schedule_at(configuration, 0)
        if not self._apart:

            def update(learner: Learner, rollout: Rollout, schedule: Schedule) -> tuple[Learner, Metrics, Any, Faults]:
                return *whole_update(configuration, spaces, learner, rollout, schedule), find_faults(rollout)

            return {"update": (jax.jit(update), (learner, rollout, schedule))}

        def start(learner: Learner, rollout: Rollout) -> tuple[Any, ...]:
            return *begin_update(configuration, spaces, learner, rollout), find_faults(rollout)

        jitted = jax.jit(start)
        _, data, samples, orders, _, _ = jax.eval_shape(jitted, learner, rollout)
        actor = jax.jit(partial(advance_actor, configuration, spaces))
        critic = jax.jit(partial(improve_critic, configuration, spaces))
        progress = ActorProgress(learner.actor, learner.kl_coefficient, np.bool_(False))
        programs: dict[str, tuple[Any, tuple[Any, ...]]] = {
            "start": (jitted, (learner, rollout)),
            "actor": (actor, (progress, samples, orders[0], schedule, np.bool_(True))),
            "critic": (critic, (learner.critic, samples, orders[0], schedule)),
        }
        if len(orders) > 1:
            again = jax.jit(partial(estimate, configuration, spaces))
            programs["estimate"] = (again, (learner.critic.parameters, data, samples.values))
        return programs

    def _rollout(self) -> tuple[Rollout, Seconds]:
        learner = self.learner
        if isinstance(self._environments, HostEnvironments):
            parameters = jax.tree.map(np.asarray, learner.actor.parameters)
            rollout, spent = self._collector.collect(parameters, jax.tree.map(np.asarray, learner.observations))
            if (cut := self._collector.cut[0]).any():  # the last rollout has bootstrapped, and not known that it is the end
                self.learner = cut_episodes(learner, cut)
            return rollout, spent
        start = time.perf_counter()
        self._carry, rollout = self._programs["collect"](
            self._carry, learner.actor.parameters, learner.observations, learner.key
        )
        jax.block_until_ready(rollout)
        total = time.perf_counter() - start
        return rollout, {"environment": max(total - self._inference, 0.0), "inference": min(self._inference, total)}

    def run(self, number: int) -> Outcome:
        """See :class:`Iteration`."""
        self._skipped = 0
        reports, seconds, before = [], {"environment": 0.0, "inference": 0.0, "update": 0.0}, self.learner
        notices: tuple[str, ...] = ()
        for i in range(self._together):
            try:
                rollout, spent = self._rollout()
                notices += self._bounds.outside(np.asarray(rollout.observations), self._subtracted())
                start = time.perf_counter()
                metrics = self._update_apart(rollout, number + i) if self._apart else self._update(rollout, number + i)
            except BaseException:
                self.learner = before  # of the last whole report, which the metrics and the counts speak of
                raise
            spent["update"] = time.perf_counter() - start
            seconds = {part: seconds[part] + spent[part] for part in seconds}
            cut = {"cut": self._collector.cut} if isinstance(self._environments, HostEnvironments) else {}
            reports.append(jax.tree.map(np.asarray, report_of(metrics, rollout)) | cut)
        report = jax.tree.map(lambda *values: np.stack(values)[None], *reports)
        restarts = self._environments.take_restarts() if isinstance(self._environments, HostEnvironments) else Restarts()
        if not self._reported and isinstance(self._environments, HostEnvironments):
            notices += self._collector.hardly_told_apart()
        self._reported = True
        merged, skipped = merge_reports(report), np.asarray([self._skipped])
        return Outcome(**merged, skipped=skipped, seconds=seconds, restarts=restarts, notices=notices)

    def _subtracted(self) -> np.ndarray:
        """What the last rollout's observations were centred by."""
        mean = np.asarray(self.learner.observations.mean)
        return mean if self._configuration.normalization.normalize_observations else np.zeros_like(mean)

    def _update(self, rollout: Rollout, number: int) -> Metrics:
        learner, metrics, finite, faults = self._programs["update"](
            self.learner, rollout, schedule_at(self._configuration, number)
        )
        raise_faults(faults, self._environments.name, self._shape, number)
        if not finite:
            self._leave_out(number, learner, metrics)
        self.learner = learner
        return metrics

    def _update_apart(self, rollout: Rollout, number: int) -> Metrics:
        programs = self._programs
        learner, data, samples, orders, metrics, faults = programs["start"](self.learner, rollout)
        raise_faults(faults, self._environments.name, self._shape, number)
        schedule = schedule_at(self._configuration, number)
        actor, critic = ActorProgress(learner.actor, learner.kl_coefficient, np.bool_(False)), learner.critic
        sums: list[tuple[Metrics, Metrics]] = []
        for i, order in enumerate(orders):
            if i > 0:
                samples, _ = programs["estimate"](critic.parameters, data, samples.values)
            # The two programs run at the same time only if two threads run them.
            of_critic = self._threads.submit(
                lambda *a: jax.block_until_ready(programs["critic"](*a)), critic, samples, order, schedule
            )
            last = np.bool_(i == len(orders) - 1)
            actor, actor_sums = jax.block_until_ready(programs["actor"](actor, samples, order, schedule, last))
            critic, critic_sums = of_critic.result()
            sums.append((actor_sums, critic_sums))
        totals = combine_passes(jax.tree.map(lambda *values: np.stack(values), *sums))
        after = learner._replace(actor=actor.network, critic=critic, kl_coefficient=actor.kl_coefficient)
        metrics = metrics | mean_metrics(totals[0]) | mean_metrics(totals[1])
        if not still_finite(*totals, passes=len(orders)):
            self._leave_out(number, after, metrics)
            after = skip_update(self.learner, after)
        self.learner = after
        return metrics

    def _leave_out(self, number: int, learner: Learner, metrics: Metrics) -> None:
        """Count an update that is left out, where the configuration says so; else stop."""
        if self._configuration.run.on_nonfinite == "stop":
            raise diverged(self._configuration, number, learner, metrics)
        self._skipped += 1

    def restart(self, number: int, make: Callable[[], HostEnvironments | Pool]) -> tuple[str, ...]:
        """See :class:`Iteration`; of the programs only a pool's rollout is made again, which has the pool in it."""
        notices = self._close_environments()
        self.learner = cut_episodes(self.learner)
        self._begin(make(), number, {})
        if isinstance(self._environments, Pool):
            give_back_memory()
        return notices

    def state(self) -> dict[str, np.ndarray]:
        """See :class:`Iteration`."""
        return arrays_of({"learner": self.learner})

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """See :class:`Iteration`."""
        self.learner = cut_episodes(tree_from(state, {"learner": self.learner})["learner"])

    def learners(self) -> list[Learner]:
        """See :class:`Iteration`."""
        return [jax.tree.map(np.asarray, self.learner)]

    def close(self) -> tuple[str, ...]:
        """Release environments and threads."""
        self._threads.shutdown()
        return self._close_environments()

    def _close_environments(self) -> tuple[str, ...]:
        return self._environments.close() if isinstance(self._environments, HostEnvironments) else ()


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
