"""What every training run has, whatever its algorithm: environments, networks, normalisers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from surefoot.control.environments.arguments import spell_arguments, spell_wrappers
from surefoot.errors import require
from surefoot.runs.cadence import Cadence
from surefoot.runs.settings import Settings

FROM_DATA = "recorded"
"""In place of an environment's name: the one that recorded data name."""

Backend = Literal["auto", "envpool", "gymnasium", "gymnasium-sync", "jax"]

WORKER_TIMEOUT = 300.0


@dataclass(frozen=True)
class RunConfiguration(Settings):
    """Where the data comes from, how much of it, and where the run is kept."""

    env: str
    """Gymnasium id (CartPole-v1), a functional one (phys2d/CartPole-v1), or package.module:callable that returns an
    environment."""
    env_kwargs: tuple[str, ...] = ()
    """Arguments of the environment, KEY=VALUE each: continuous=True gravity=-5. A value is JSON or a Python literal, else a text. None by
    default; with some, Gymnasium's own environments are stepped."""
    wrapper: tuple[str, ...] = ()
    """Wrappers around each environment, package.module:function each, the first one innermost:
    gymnasium.wrappers:FlattenObservation. None by default; with some, Gymnasium's own environments are stepped."""
    total_steps: int = 1_000_000
    """Environment steps of the whole run, rounded up to whole rollouts, and where a report covers several, to whole
    reports. Steps in which an environment only resets count here, not in reports."""
    num_envs: int = 8
    """Environments that step together. More of them decorrelate the data and use the processor better; each rollout
    grows with them."""
    rollout_length: int = 256
    """Steps that each environment takes between two policy updates. Longer ones need less bootstrapping, shorter ones
    update more often."""
    backend: Backend = "auto"
    """What steps the environments. auto takes jax for functional ids, EnvPool where it is installed and has the task,
    else Gymnasium's vectorised version where there is one (gymnasium), else one Python environment after the other
    (gymnasium-sync)."""
    seed: int = 0
    """Seed of everything that is random in the run: environments, and what they draw from random and numpy.random, initial
    weights, actions, shuffling."""
    seeds: int = 1
    """How many seeds to train, from --seed upwards: in one compiled program with the jax backend, in turn
    elsewhere."""
    out: str | None = None
    """Folder of the run; by default one under runs/, named after algorithm, environment, time and process."""
    tensorboard: bool = True
    """Write TensorBoard files beside metrics.jsonl."""
    checkpoint_every: int | str | None = None
    """Keep everything that the run carries, so that `surefoot resume` can go on: every so many environment steps (100000), or
    minutes (10m), and at the end. Without it nothing is kept."""
    keep_checkpoints: int = 2
    """How many of the last checkpoints to keep; the best, and the last exact one, are kept besides."""
    restart_every: int | None = None
    """Environments whose state cannot be saved (all but pure-JAX ones) are begun afresh every so many environment steps, rounded
    up to whole reports: the checkpoints there are exact, those between are not. 0 never does. By default a million, and ten
    million for algorithms of short rollouts (a2c, actor-critic), whose programs are then compiled again."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What happens to an update with a gradient or parameters that are not finite: stop ends the run; skip leaves it out, and
    update/skipped counts."""

    env_workers: int = 0
    """Processes that step Gymnasium's environments, with as many of them in each. 0 steps them in this one. Worth it where a step
    takes longer than about 0.1 ms, or where an environment may crash."""
    worker_timeout: float = WORKER_TIMEOUT
    """Seconds that an environment in a worker process may take to be made, reset or stepped; one that takes longer has failed."""
    on_worker_failure: Literal["stop", "restart"] = "stop"
    """What happens where an environment in a worker process raises, hangs, crashes or returns what it must not: stop ends the run;
    restart makes it anew, and env/restarts counts. Either leaves a file with which it can be replayed."""

    def __post_init__(self) -> None:
        # From Python arguments also come by name, and wrappers as they are.
        object.__setattr__(self, "env_kwargs", spell_arguments(self.env_kwargs))
        object.__setattr__(self, "wrapper", spell_wrappers(self.wrapper))
        super().__post_init__()

    def _check(self) -> None:
        require(bool(self.env), "--env is empty; give a Gymnasium id such as CartPole-v1")
        for name in ("total_steps", "num_envs", "rollout_length", "seeds", "keep_checkpoints"):
            value = getattr(self, name)
            require(value >= 1, f"--{name.replace('_', '-')} must be at least 1, but is {value}")
        require((self.restart_every or 0) >= 0, f"--restart-every must be at least 0, but is {self.restart_every}")
        Cadence.parse(self.checkpoint_every)
        check_workers(self.env_workers, num_envs=self.num_envs, backend=self.backend, timeout=self.worker_timeout)
        last = self.seed + self.seeds - 1
        require(
            self.seed >= 0 and last < 2**31, f"--seed must lie between 0 and 2147483647, but runs from {self.seed} to {last}"
        )


def check_workers(workers: int, *, num_envs: int, backend: str, timeout: float) -> None:
    """Raise UsageError where so many worker processes cannot be had, or would do nothing."""
    require(0 <= workers <= num_envs, f"--env-workers must lie between 0 and --num-envs {num_envs}, but is {workers}")
    useless = workers > 0 and backend in ("envpool", "jax")
    require(not useless, f"--env-workers would do nothing: --backend {backend} steps no Python environments; leave it out")
    require(0 < timeout < math.inf, f"--worker-timeout must be a positive number of seconds, but is {timeout}")


@dataclass(frozen=True)
class NetworkConfiguration(Settings):
    """The actor's and the critic's networks: two multilayer perceptrons that share nothing but their shape."""

    hidden_sizes: tuple[int, ...] = (64, 64)
    """Units of each hidden layer."""
    activation: Literal["tanh", "relu"] = "tanh"
    """Non-linearity. tanh is the better one for small on-policy networks (Andrychowicz et al. 2021)."""
    orthogonal_initialization: bool = True
    """Orthogonal weights with gain √2, a policy head of gain 0.01 and a value head of gain 1, zero biases. Off:
    uniform in ±1/√(inputs), the usual default of layers, which starts with a policy that already prefers some
    actions."""
    initial_log_std: float | None = None
    """log σ of every action component at the start (Box actions only); σ does not depend on the state. Actions are
    scaled to [−1, 1] first. By default −0.7 for ppo and 0 for the other algorithms."""

    def _check(self) -> None:
        require(all(size >= 1 for size in self.hidden_sizes), f"--hidden-sizes must be positive, but are {self.hidden_sizes}")
        useless = not self.hidden_sizes and self.activation != "tanh"
        require(not useless, "--activation would do nothing without hidden layers; give --hidden-sizes, or leave it out")
        start = self.initial_log_std
        require(start is None or -10 <= start <= 3, f"--initial-log-std must lie in −10 … 3, but is {start}")


@dataclass(frozen=True)
class NormalizationConfiguration(Settings):
    """Running scales of observations and rewards. Those of observations are part of the saved policy, frozen in evaluation."""

    normalize_observations: bool = True
    """Shift and scale observations by their running mean and standard deviation. Nearly always helps (Andrychowicz et
    al. 2021)."""
    observation_clip: float = 10.0
    """Normalised observations are clipped to ± this many standard deviations."""
    normalize_rewards: bool = True
    """Divide rewards by the running standard deviation of the discounted return, so that the critic's targets have a
    scale near 1 in any task."""
    reward_clip: float = 10.0
    """Normalised rewards are clipped to ± this."""

    def _check(self) -> None:
        for name in ("observation_clip", "reward_clip"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"--{name.replace('_', '-')} must be positive and finite, but is {value}")
        for switch, clip in (("normalize_observations", "observation_clip"), ("normalize_rewards", "reward_clip")):
            given = getattr(self, clip)
            unused = not getattr(self, switch) and given != type(self).__dataclass_fields__[clip].default
            option = f"--{clip.replace('_', '-')} {given}"
            require(not unused, f"{option} would do nothing without --{switch.replace('_', '-')}; add that, or leave it out")
