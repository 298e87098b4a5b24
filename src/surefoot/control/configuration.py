"""What can be chosen about a training run. No engine is imported here, so that help and mistakes cost no start-up
time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from surefoot.errors import UsageError

Backend = Literal["auto", "envpool", "gymnasium", "gymnasium-sync", "jax"]
Schedule = Literal["constant", "linear"]


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise UsageError(sentence)


@dataclass(frozen=True)
class RunConfiguration:
    """Where the data comes from, how much of it, and where the run is kept."""

    env: str
    """Gymnasium id (CartPole-v1), a functional one (phys2d/CartPole-v1), or package.module:callable that returns an
    environment."""
    total_steps: int = 1_000_000
    """Environment steps of the whole run, rounded up to whole rollouts. Steps in which an environment only resets
    count here, not in reports."""
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
    """Seed of everything that is random in the run: environments, initial weights, actions, shuffling."""
    seeds: int = 1
    """How many seeds to train, from --seed upwards: in one compiled program with the jax backend, in turn
    elsewhere."""
    out: str | None = None
    """Folder of the run; by default one under runs/, named after algorithm, environment, time and process."""
    tensorboard: bool = True
    """Write TensorBoard files beside metrics.jsonl."""

    def __post_init__(self) -> None:
        _require(bool(self.env), "--env is empty; give a Gymnasium id such as CartPole-v1")
        for name in ("total_steps", "num_envs", "rollout_length", "seeds"):
            value = getattr(self, name)
            _require(value >= 1, f"--{name.replace('_', '-')} must be at least 1, but is {value}")
        last = self.seed + self.seeds - 1
        _require(
            self.seed >= 0 and last < 2**31, f"--seed must lie between 0 and 2147483647, but runs from {self.seed} to {last}"
        )

    @property
    def iterations(self) -> int:
        """Rollouts in the whole run."""
        return math.ceil(self.total_steps / (self.num_envs * self.rollout_length))


@dataclass(frozen=True)
class NetworkConfiguration:
    """The actor's and the critic's networks: two multilayer perceptrons that share nothing but their shape."""

    hidden_sizes: tuple[int, ...] = (64, 64)
    """Units of each hidden layer."""
    activation: Literal["tanh", "relu"] = "tanh"
    """Non-linearity. tanh is the better one for small on-policy networks (Andrychowicz et al. 2021)."""
    orthogonal_initialization: bool = True
    """Orthogonal weights with gain √2, a policy head of gain 0.01 and a value head of gain 1, zero biases. Off:
    uniform in ±1/√(inputs), the usual default of layers, which starts with a policy that already prefers some
    actions."""
    initial_log_std: float = 0.0
    """log σ of every action component at the start (Box actions only); σ does not depend on the state. Actions are
    scaled to [−1, 1] first."""

    def __post_init__(self) -> None:
        _require(all(size >= 1 for size in self.hidden_sizes), f"--hidden-sizes must be positive, but are {self.hidden_sizes}")
        useless = not self.hidden_sizes and self.activation != "tanh"
        _require(not useless, "--activation would do nothing without hidden layers; give --hidden-sizes, or leave it out")
        _require(-10 <= self.initial_log_std <= 3, f"--initial-log-std must lie in −10 … 3, but is {self.initial_log_std}")


@dataclass(frozen=True)
class NormalizationConfiguration:
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

    def __post_init__(self) -> None:
        for name in ("observation_clip", "reward_clip"):
            value = getattr(self, name)
            _require(0 < value < math.inf, f"--{name.replace('_', '-')} must be positive and finite, but is {value}")
        for switch, clip in (("normalize_observations", "observation_clip"), ("normalize_rewards", "reward_clip")):
            given = getattr(self, clip)
            unused = not getattr(self, switch) and given != type(self).__dataclass_fields__[clip].default
            option = f"--{clip.replace('_', '-')} {given}"
            _require(not unused, f"{option} would do nothing without --{switch.replace('_', '-')}; add that, or leave it out")


@dataclass(frozen=True)
class PPOConfiguration:
    """Proximal policy optimisation with the clipped surrogate (Schulman et al. 2017)."""

    minibatch_size: int = 64
    """Samples per gradient step. Must divide num-envs × rollout-length."""
    epochs: int = 10
    """Passes over each rollout. More of them use the data better until the policy has left the data behind; see
    --target-kl."""
    learning_rate: float = 3e-4
    """Adam's step size, for actor and critic."""
    learning_rate_schedule: Schedule = "linear"
    """linear lets the step size fall to 0 over the run, which steadies the end; constant keeps it."""
    adam_epsilon: float = 1e-5
    """Adam's ε. Larger than the usual 1e-8: it damps steps along directions whose gradients are tiny."""
    max_gradient_norm: float | None = 0.5
    """The gradients of the actor and of the critic are each scaled down to this global norm; none leaves them."""
    clip_range: float = 0.2
    """ε of the clipped surrogate: a sample stops pulling once its probability ratio has left 1 ± ε in the direction
    that it pulls."""
    clip_range_schedule: Schedule = "constant"
    """linear lets ε fall to 0 over the run."""
    discount: float = 0.99
    """γ: how much the next step's reward counts. The one setting that is truly about the task; 1/(1−γ) steps is its
    horizon."""
    trace_decay: float = 0.95
    """λ of generalised advantage estimation: 0 trusts the critic (bias), 1 trusts the sampled rewards (variance)."""
    advantage_normalization: Literal["minibatch", "batch", "none"] = "minibatch"
    """Over what advantages are shifted to mean 0 and scaled to standard deviation 1. With it, the scale of rewards
    does not change the actor's steps."""
    value_clip_range: float | None = None
    """Clip how far V may move from its old value, in (normalised) reward units. Off: no evidence that it helps, some
    that it hurts."""
    entropy_coefficient: float = 0.0
    """Weight of the policy's entropy in its objective. Above 0 it keeps a policy exploring that would settle too
    early."""
    target_kl: float | None = None
    """The actor stops for this rollout when a minibatch's estimate of KL(π_old‖π) exceeds 1.5 times this, in nats;
    the critic goes on."""
    recompute_advantages: bool = False
    """Estimate advantages and targets afresh before each epoch, with the critic as it then is (Andrychowicz et al.
    2021)."""

    def __post_init__(self) -> None:
        for name in ("minibatch_size", "epochs"):
            value = getattr(self, name)
            _require(value >= 1, f"--{name.replace('_', '-')} must be at least 1, but is {value}")
        for name in ("learning_rate", "adam_epsilon", "clip_range"):
            value = getattr(self, name)
            _require(0 < value < math.inf, f"--{name.replace('_', '-')} must be positive, but is {value}")
        for name in ("max_gradient_norm", "value_clip_range", "target_kl"):
            value = getattr(self, name)
            good = value is None or 0 < value < math.inf
            _require(good, f"--{name.replace('_', '-')} must be positive and finite, or none, but is {value}")
        for name in ("discount", "trace_decay"):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"--{name.replace('_', '-')} must lie between 0 and 1, but is {value}")
        useless = self.recompute_advantages and self.epochs == 1
        _require(not useless, "--recompute-advantages would do nothing with --epochs 1; take more epochs, or leave it out")
        good = 0 <= self.entropy_coefficient < math.inf
        _require(good, f"--entropy-coefficient must be finite and not negative, but is {self.entropy_coefficient}")


@dataclass(frozen=True)
class TrainConfiguration:
    """Everything about one training run with PPO."""

    run: RunConfiguration
    network: NetworkConfiguration = field(default_factory=NetworkConfiguration)
    normalization: NormalizationConfiguration = field(default_factory=NormalizationConfiguration)
    ppo: PPOConfiguration = field(default_factory=PPOConfiguration)

    def __post_init__(self) -> None:
        slots, size = self.run.num_envs * self.run.rollout_length, self.ppo.minibatch_size
        if slots % size:
            near = min((d for d in range(1, slots + 1) if slots % d == 0), key=lambda d: abs(d - size))
            raise UsageError(
                f"--minibatch-size {size} does not divide a rollout of {self.run.num_envs} × {self.run.rollout_length} ="
                f" {slots} steps; {near} is the nearest that does"
            )
        if size == 1 and self.ppo.advantage_normalization == "minibatch":
            raise UsageError(
                "--minibatch-size 1 with --advantage-normalization minibatch leaves no signal;"
                " take batch or none, or a larger minibatch"
            )

    def as_dict(self) -> dict[str, Any]:
        """All settings side by side, as config.json holds them."""
        flat: dict[str, Any] = {"algorithm": "ppo"}
        for part in (self.run, self.network, self.normalization, self.ppo):
            flat.update({k: list(v) if isinstance(v, tuple) else v for k, v in vars(part).items()})
        return flat
