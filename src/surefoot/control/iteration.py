"""One iteration of training, as programs: collect, then update.

Where the environment is a pure JAX function, the whole iteration is one compiled program, for any number of seeds at
once. Elsewhere it is cut where the environment is: EnvPool's rollout is a small program of its own, because the
pool's address is part of it and it cannot be cached; Python environments are stepped by a loop. The update then runs
as two programs side by side, actor and critic.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from surefoot.control.algorithms import ppo
from surefoot.control.compilation import compile_all, not_cached
from surefoot.control.configuration import TrainConfiguration
from surefoot.control.environments.functional import FunctionalEnvironment, functional_carry, functional_step
from surefoot.control.environments.host import HostEnvironments, describe_fault
from surefoot.control.environments.pool import Pool
from surefoot.control.policies.spaces import Spaces
from surefoot.control.rollout import NOISES, Actor, HostCollector, Rollout, collect_compiled
from surefoot.equations._library import Array
from surefoot.errors import EnvironmentFault, RunError

Seconds = dict[str, float]


class Faults(NamedTuple):
    """The first value of a rollout that is not finite: its flat index, −1 for none, and the value."""

    observation: Array
    observation_value: Array
    reward: Array
    reward_value: Array


class Outcome(NamedTuple):
    """What an iteration leaves to report; arrays have a leading axis of seeds."""

    metrics: dict[str, np.ndarray]
    """(seeds,)"""
    rewards: np.ndarray
    """(seeds, T, N), not normalised."""
    terminated: np.ndarray
    truncated: np.ndarray
    valid: np.ndarray
    seconds: Seconds
    """environment, inference and update."""


class Iteration(Protocol):
    """Something that trains by one iteration at a time."""

    learner: ppo.Learner

    def run(self, number: int) -> Outcome:
        """Collect and update once.

        Raises:
            EnvironmentFault: an environment failed; the learner is as it was before.
        """
        ...

    def learners(self) -> list[ppo.Learner]:
        """The learner of each seed as it is now, in NumPy."""
        ...

    def close(self) -> None:
        """Release environments and threads."""
        ...


def report_of(metrics: ppo.Metrics, rollout: Rollout) -> dict[str, Any]:
    """What an :class:`Outcome` takes from an iteration's programs."""
    return {
        "metrics": metrics,
        "rewards": rollout.rewards,
        "terminated": rollout.terminated,
        "truncated": rollout.truncated,
        "valid": rollout.valid,
    }


def find_faults(rollout: Rollout) -> Faults:
    """Look for a value that is not finite; sees every number that enters the update."""

    def first(x: Array) -> tuple[Array, Array]:
        bad = ~jnp.isfinite(x.reshape(-1))
        index = jnp.argmax(bad)
        return jnp.where(bad.any(), index, -1), x.reshape(-1)[index]

    # A fault in a final observation shows in the rollout's loop already; here rows are the steps after which they were seen.
    return Faults(*first(rollout.observations), *first(rollout.rewards))


def raise_faults(faults: Faults, name: str, shape: tuple[int, int, int], number: int) -> None:
    """Turn the faults of iteration ``number`` into a sentence; ``shape`` is (T, N, observation size)."""
    length, envs, size = shape
    if (index := int(faults.observation)) >= 0:
        row, environment, component = np.unravel_index(index, (length + 1, envs, size))
        step = number * length + row  # row t was returned by step t; the first row of all, by the reset before
        value = float(faults.observation_value)
        raise EnvironmentFault(describe_fault(name, "an observation", int(step), int(environment), (int(component),), value))
    if (index := int(faults.reward)) >= 0:
        row, environment = np.unravel_index(index, (length, envs))
        step = number * length + row + 1
        raise EnvironmentFault(describe_fault(name, "a reward", int(step), int(environment), (), float(faults.reward_value)))


def start_update(
    configuration: TrainConfiguration, spaces: Spaces, learner: ppo.Learner, rollout: Rollout
) -> tuple[ppo.Learner, ppo.Data, ppo.Samples, tuple[Array, ...], ppo.Metrics, Faults]:
    """Everything of the update before the first gradient."""
    learner, data, order = ppo.prepare(configuration, spaces, learner, rollout)
    samples, metrics = ppo.estimate(configuration, learner.critic.parameters, data)
    return learner, data, samples, tuple(order), metrics, find_faults(rollout)


def whole_update(
    configuration: TrainConfiguration, spaces: Spaces, learner: ppo.Learner, rollout: Rollout, schedule: ppo.Schedule
) -> tuple[ppo.Learner, ppo.Metrics, Faults, Array]:
    """The update in one piece: what the pieces that run side by side compute, one after the other.

    Returns:
        the learner, the metrics, the rollout's faults, and whether every parameter is still finite.
    """
    learner, data, samples, orders, metrics, faults = start_update(configuration, spaces, learner, rollout)

    def one_pass(
        state: tuple[ppo.Network, ppo.Network, Array], order: Array, samples: ppo.Samples
    ) -> tuple[tuple[ppo.Network, ppo.Network, Array], tuple[ppo.Metrics, ppo.Metrics]]:
        actor, critic, stopped = state
        actor, stopped, of_actor = ppo.improve_actor(configuration, spaces, actor, stopped, samples, order, schedule)
        critic, of_critic = ppo.improve_critic(configuration, critic, samples, order, schedule)
        return (actor, critic, stopped), (of_actor, of_critic)

    state = (learner.actor, learner.critic, jnp.bool_(False))
    if len(orders) == 1:
        state, sums = one_pass(state, orders[0], samples)
    else:
        # A scan, so that the pass is compiled once whatever the number of epochs.
        state, per_pass = jax.lax.scan(
            lambda s, o: one_pass(s, o, ppo.estimate(configuration, s[1].parameters, data, samples.values)[0]),
            state,
            jnp.stack(orders),
        )
        sums = jax.tree.map(lambda x: x.sum(axis=0), per_pass)
    metrics = metrics | mean_metrics(sums[0]) | mean_metrics(sums[1])
    finite = still_finite(*sums, passes=len(orders))
    return learner._replace(actor=state[0], critic=state[1]), metrics, faults, finite


def still_finite(of_actor: ppo.Metrics, of_critic: ppo.Metrics, *, passes: int) -> Array:
    """Whether actor and critic ended every pass with finite parameters."""
    return (of_actor["finite"] == passes) & (of_critic["finite"] == passes)


def diverged(configuration: TrainConfiguration, number: int) -> RunError:
    """The error for an update that left numbers that are not finite."""
    return RunError(
        f"the update of iteration {number + 1} left parameters that are not finite; lower --learning-rate"
        f" ({configuration.ppo.learning_rate:g}) or set --max-gradient-norm and --target-kl; the policy from before it is kept"
    )


def mean_metrics(sums: ppo.Metrics) -> ppo.Metrics:
    """Sums over minibatches to means over those that were looked at, of which there is at least one."""
    return {name: value / sums["minibatches"] for name, value in sums.items() if name not in ("minibatches", "finite")}


def inference_program(actor: Actor, learner: ppo.Learner, *, envs: int, length: int) -> tuple[Any, tuple[Any, ...]]:
    """A program that does the policy's part of a rollout alone, and its arguments, for :func:`compile_all`.

    Inside a compiled rollout nobody can look at a clock between environment and policy, so the policy's share is
    measured by itself, once, and the environment's is the rest.
    """

    def infer(parameters: Any, statistics: Any, observations: Array, key: Array) -> Array:
        noises = NOISES[actor.spaces.action.noise](key, (length, envs, actor.spaces.action.outputs), jnp.float32)

        def step(seen: Array, noise: Array) -> tuple[Array, None]:
            actions = actor.act(parameters, statistics, seen, noise)
            # Each step must depend on the last, or the compiler would batch them.
            return seen + 1e-9 * jnp.sum(actions.astype(jnp.float32)), None

        return jax.lax.scan(step, observations, noises)[0]

    observations = np.zeros((envs, actor.spaces.observation_size), np.float32)
    return jax.jit(infer), (learner.actor.parameters, learner.observations, observations, learner.key)


def _fastest(program: Any, arguments: tuple[Any, ...]) -> float:
    return min(_timed(lambda: jax.block_until_ready(program(*arguments))) for _ in range(5))


def _timed(action: Any) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


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
        self._compile(actor)
        if isinstance(environments, Pool):
            with environments.precision(), not_cached():
                self._carry, step = environments.start()
                collect = jax.jit(partial(collect_compiled, actor, step, length=run.rollout_length))
                arguments = (self._carry, self.learner.actor.parameters, self.learner.observations, self.learner.key)
                self._collect = collect.lower(*arguments).compile()
        else:
            self._collector = HostCollector(actor, environments, length=run.rollout_length, seed=seed)

    def _compile(self, actor: Actor) -> None:
        configuration, spaces, learner = self._configuration, self.spaces, self.learner
        settings = configuration.ppo
        on_host = isinstance(self._environments, HostEnvironments)
        finals = on_host and not self._environments.next_step  # type: ignore[union-attr]
        rollout = rollout_shapes(configuration, spaces, finals=finals)
        start = jax.jit(partial(start_update, configuration, spaces))
        _, data, samples, orders, _, _ = jax.eval_shape(start, learner, rollout)
        schedule = ppo.schedule_at(configuration, 0)
        programs: dict[str, tuple[Any, tuple[Any, ...]]] = {
            "start": (start, (learner, rollout)),
            "actor": (
                jax.jit(partial(ppo.improve_actor, configuration, spaces)),
                (learner.actor, np.bool_(False), samples, orders[0], schedule),
            ),
            "critic": (
                jax.jit(partial(ppo.improve_critic, configuration)),
                (learner.critic, samples, orders[0], schedule),
            ),
        }
        if settings.recompute_advantages:
            programs["estimate"] = (
                jax.jit(partial(ppo.estimate, configuration)),
                (learner.critic.parameters, data, samples.values),
            )
        if not on_host:
            run = configuration.run
            programs["infer"] = inference_program(actor, learner, envs=run.num_envs, length=run.rollout_length)
        self._programs = compile_all(programs)
        if not on_host:
            self._inference = _fastest(self._programs["infer"], programs["infer"][1])

    def _rollout(self) -> tuple[Rollout, Seconds]:
        learner = self.learner
        if isinstance(self._environments, HostEnvironments):
            parameters = jax.tree.map(np.asarray, learner.actor.parameters)
            return self._collector.collect(parameters, jax.tree.map(np.asarray, learner.observations))
        start = time.perf_counter()
        # The key is split by the update; the rollout uses it with a fold that the update does not.
        self._carry, rollout = self._collect(self._carry, learner.actor.parameters, learner.observations, learner.key)
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
        self._configuration, self._name = configuration, name
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
        programs = compile_all(sources)
        self._iterate = programs["iterate"]
        self._rollout_seconds = _fastest(programs["rollout"], everyone)
        self._inference = min(_fastest(programs["infer"], sources["infer"][1]), self._rollout_seconds)

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
        return [take(i) for i in range(len(everyone.iteration))]

    def close(self) -> None:
        """Nothing to release."""
