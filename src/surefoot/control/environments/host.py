"""Environments that Python steps: Gymnasium vector environments in any autoreset mode, and EnvPool's Python face."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import Env, Space, Wrapper
from gymnasium.vector import AutoresetMode, VectorEnv

from surefoot.control.environments.closing import close_vector
from surefoot.control.environments.outputs import WrongOutput, checked_reset, checked_rows, checked_step
from surefoot.control.environments.seeding import seed_environment, seed_vector
from surefoot.control.environments.workers.vector import Restarts, WorkerEnvironments
from surefoot.control.policies.spaces import Spaces, describe_spaces
from surefoot.errors import Caution, EnvironmentFault, UsageError, words_of

LARGEST_SQUARE = 1e76
"""Of a number that float32 holds, within a factor of ten."""


class NameFaults(Wrapper):
    """Says which environment raised or returned what cannot be used, at which of its steps and with which action.

    Args:
        env: what is stepped.
        name: what messages call it.
        index: its number.
        space: of the observations, as others see it; the environment's own by default.
    """

    def __init__(self, env: Env, *, name: str, index: int, space: Space | None = None) -> None:
        super().__init__(env)
        self._name, self._index, self._steps = name, index, 0
        self._space = env.observation_space  # found once: it lies behind every wrapper
        self.observation_space = self._space if space is None else space

    def step(self, action: Any) -> Any:
        """Step, counting."""
        self._steps += 1
        try:
            return checked_step(self.env.step(action), self._space)
        except WrongOutput as error:
            raise EnvironmentFault(
                f"environment {self._index} of {self._name} returned {error}, at its step {self._steps},"
                f" with action {np.asarray(action).tolist()}"
            ) from error
        except (Exception, SystemExit) as error:  # an environment is the user's program, and may raise anything
            raise EnvironmentFault(
                f"environment {self._index} of {self._name} raised {type(error).__name__} at its step {self._steps},"
                f" with action {np.asarray(action).tolist()}{words_of(error)}"
            ) from error

    def reset(self, **options: Any) -> Any:
        """Reset, naming what goes wrong; with a seed, everything else that it may draw from is seeded too."""
        try:
            if (seed := options.get("seed")) is not None:
                seed_environment(self.env, seed)
            return checked_reset(self.env.reset(**options), self._space)
        except WrongOutput as error:
            raise EnvironmentFault(
                f"environment {self._index} of {self._name} returned {error}, in a reset after {self._steps} steps"
            ) from error
        except (Exception, SystemExit) as error:
            raise EnvironmentFault(
                f"environment {self._index} of {self._name} raised {type(error).__name__} in a reset after"
                f" {self._steps} steps{words_of(error)}"
            ) from error


def environment_seed(seed: int, began: int = 0) -> int:
    """The first environment's seed; the others get the numbers after it.

    Args:
        seed: the run's, or an evaluation's.
        began: the iteration that the environments begin with: each time other ones.

    Taken as seeds themselves, neighbouring run seeds would share all but one of their environments' random streams, and no
    statistic over seeds would be one over independent runs.
    """
    return int(np.random.SeedSequence([seed, 3, began]).generate_state(1)[0] >> 2)


class HostEnvironments:
    """N environments behind one ``step``, whatever their autoreset mode, checked for numbers that are not finite.

    Args:
        environments: a Gymnasium vector environment, or EnvPool's Gymnasium-like one (next-step mode).
        name: what messages call it.
        action_dtype: what the environments want, where it is not what their action space says.
        seeded: they were given their seed when they were made, and reset in next-step mode without saying so (EnvPool).

    Raises:
        UsageError: its spaces are not supported.
    """

    def __init__(
        self, environments: VectorEnv | Any, *, name: str, action_dtype: np.dtype | None = None, seeded: bool = False
    ) -> None:
        self.name, self._environments, self._seeded = name, environments, seeded
        single_observation = getattr(environments, "single_observation_space", environments.observation_space)
        single_action = getattr(environments, "single_action_space", environments.action_space)
        self._waiting, self._closed = False, False
        """Whether their last call has not returned, and whether they are closed."""
        try:
            self.spaces: Spaces = describe_spaces(single_observation, single_action, name=name)
        except UsageError:
            self.close()
            raise
        self.observation_space, self.action_space = single_observation, single_action
        """One environment's, in Gymnasium's words."""
        self.num_envs = int(environments.num_envs if hasattr(environments, "num_envs") else environments.config["num_envs"])
        metadata = getattr(environments, "metadata", None) or {}
        self._mode = AutoresetMode(metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP))
        self.next_step = self._mode is AutoresetMode.NEXT_STEP
        self._dtype = action_dtype
        self.notices: tuple[str, ...] = ()
        if not seeded and "autoreset_mode" not in metadata:
            said = f'{name} has no metadata["autoreset_mode"]; it is taken to reset in the step after an end'
            self.notices = (Caution(said),)
        self._steps = 0

    def reset(self, seed: int, *, began: int = 0, steps: int = 0) -> np.ndarray:
        """Reset all, from a run's or an evaluation's seed. EnvPool was given it when it was made, and ignores this one.

        Args:
            seed: the run's, or an evaluation's.
            began: the iteration that the environments begin with.
            steps: vector steps that others took before them: messages count on from there.
        """
        self._steps = steps
        try:
            options = {} if self._seeded else {"seed": environment_seed(seed, began)}
            if options and not isinstance(self._environments, WorkerEnvironments):
                seed_vector(self._environments, options["seed"])
            self._waiting = True
            observations, _ = self._environments.reset(**options)
            self._waiting = False
        except EnvironmentFault:
            raise
        except (Exception, SystemExit) as error:
            raise EnvironmentFault(f"{self.name} raised {type(error).__name__} in its first reset{words_of(error)}") from error
        return self._checked(self._rows(observations, "observations", steps), "an observation", steps)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
        """One step of every environment.

        Args:
            actions: as the environments take them, one per environment.

        Returns:
            the observations to act on next, rewards, terminated, truncated, and the true final observations of the
            environments that ended, in rows of their own; None in next-step mode or where none ended.

        Raises:
            EnvironmentFault: an environment raised, or returned something else than finite numbers of the right shapes.
        """
        self._steps += 1
        try:
            taken = self.spaces.action.as_taken(actions)
            actions = taken if self._dtype is None else taken.astype(self._dtype, copy=False)
            self._waiting = True
            observations, rewards, terminated, truncated, info = self._environments.step(actions)
            self._waiting = False
        except EnvironmentFault:
            raise
        except (Exception, SystemExit) as error:
            raise EnvironmentFault(
                f"{self.name} raised {type(error).__name__} at vector step {self._steps},"
                f" with actions {actions.tolist()}{words_of(error)}"
            ) from error
        observations = self._rows(observations, "observations", self._steps)
        rewards = self._checked(self._rows(rewards, "rewards", self._steps).astype(float, copy=False), "a reward", self._steps)
        terminated = self._rows(terminated, "terminated", self._steps)
        truncated = self._rows(truncated, "truncated", self._steps)
        finals = None
        if self._mode is not AutoresetMode.NEXT_STEP and (ended := np.logical_or(terminated, truncated)).any():
            finals = np.zeros((self.num_envs, self.spaces.observation_size), observations.dtype)
            if self._mode is AutoresetMode.SAME_STEP:
                finals[ended] = self._final_observations(info, ended)
            else:
                finals[ended] = observations[ended]
                observations = self._reset_ended(ended)
            self._checked(finals, "a final observation", self._steps)
        return self._checked(observations, "an observation", self._steps), rewards, terminated, truncated, finals

    def _final_observations(self, info: Any, ended: np.ndarray) -> list[np.ndarray]:
        """Of the environments that ended, where they reset in the same step."""
        if not isinstance(info, dict) or "final_obs" not in info:
            raise EnvironmentFault(f'{self.name} resets in the same step, but gives no info["final_obs"] at an end')
        what, shape = "a final observation", (self.spaces.observation_size,)
        try:
            return [checked_rows(info["final_obs"][i], what, shape) for i in np.flatnonzero(ended)]
        except (WrongOutput, LookupError, TypeError) as error:
            raise EnvironmentFault(f'{self.name}, info["final_obs"] at vector step {self._steps}: {error}') from error

    def _reset_ended(self, ended: np.ndarray) -> np.ndarray:
        """Where environments do not reset by themselves; the observations of all."""
        try:
            self._waiting = True
            observations, _ = self._environments.reset(options={"reset_mask": ended})
            self._waiting = False
        except EnvironmentFault:
            raise
        except (Exception, SystemExit) as error:
            raise EnvironmentFault(
                f"{self.name} raised {type(error).__name__} in a reset at vector step {self._steps}{words_of(error)}"
            ) from error
        return self._rows(observations, "observations", self._steps)

    def _rows(self, values: Any, what: str, step: int) -> np.ndarray:
        shape = (self.num_envs, self.spaces.observation_size) if what == "observations" else (self.num_envs,)
        try:
            return checked_rows(values, what, shape, flags=what in ("terminated", "truncated"), column=what == "rewards")
        except WrongOutput as error:
            raise EnvironmentFault(f"{self.name} returned {error}, at vector step {step}") from error

    @property
    def begun_afresh(self) -> np.ndarray | None:
        """(N,): which environments failed in the last step and were made anew, so that it only reset them; None where none."""
        return self._environments.begun_afresh if isinstance(self._environments, WorkerEnvironments) else None

    def take_restarts(self) -> Restarts:
        """What failed and was made anew since this was called last."""
        return self._environments.take_restarts() if isinstance(self._environments, WorkerEnvironments) else Restarts()

    def _checked(self, values: np.ndarray, what: str, step: int) -> np.ndarray:
        # One sum of squares is cheaper than a test of every element, and no smaller than any square; they are learnt from in float32.
        if not float(np.vdot(values, values)) < LARGEST_SQUARE:
            with np.errstate(over="ignore"):
                bad = ~np.isfinite(values.astype(np.float32))
            if bad.any():
                index = tuple(int(i) for i in np.argwhere(bad)[0])
                raise EnvironmentFault(describe_fault(self.name, what, step, index[0], index[1:], float(values[index])))
        return values

    def close(self) -> tuple[str, ...]:
        """Close the environments, the first time that it is called; returns a notice for what went wrong in that."""
        if self._closed or not isinstance(self._environments, VectorEnv):
            return ()
        self._closed = True
        return close_vector(self._environments, self.name, failed=self._waiting)


def describe_fault(name: str, what: str, step: int, environment: int, component: tuple[int, ...], value: float) -> str:
    """The sentence for a value that is not a finite number."""
    where = f" in component {component[0]}" if component else ""
    return (
        f"environment {environment} of {name} returned {what} of {value}{where} at vector step {step};"
        " the run cannot go on with it, and the policy of the last report is kept"
    )
