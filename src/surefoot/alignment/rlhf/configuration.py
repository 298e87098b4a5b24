"""What PPO on a language model chooses. No engine is imported here, so that help and mistakes cost no start-up time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from surefoot.errors import require
from surefoot.runs.settings import Settings

AnswerWeight = Literal["gae", "reward-to-go", "group", "leave-one-out"]
CriticName = Literal["auto", "reward", "policy", "shared"]

BY_GROUP: tuple[AnswerWeight, ...] = ("group", "leave-one-out")
"""Weights that compare the answers to one prompt with each other."""


@dataclass(frozen=True)
class PPOConfiguration(Settings):
    """The reward, ψ, the KL divergence from the reference, sampling, and the update."""

    reward: str
    """Where rewards come from: a reward model's folder or run, or a Python function, module:function or file.py:function, that takes
    prompts and completions and returns a number for each."""
    weight: AnswerWeight = "gae"
    """ψ, the weight of a token's gradient: gae is the critic's generalised advantage (PPO); reward-to-go is the sum of the rewards
    that follow (REINFORCE); group is the answer's return less the mean over its prompt's answers (GRPO); leave-one-out is
    the return less the mean of the others (RLOO). Only gae has a critic."""
    answers_per_prompt: int = 4
    """K, answers sampled to each prompt; the prompt is computed once for all of them."""
    temperature: float = 1.0
    """T of the softmax that answers are sampled from. Log-probabilities of the policy and the reference are taken at T too."""
    longest_answer: int = 64
    """Tokens after which an answer is cut."""
    shortest_answer: int = 1
    """Tokens that an answer has at least: before, its end is excluded, in sampling and in every log-probability."""
    beta: float = 0.05
    """β, reward units per nat of KL(π‖π_ref); where rewards or ψ are normalised, normalised units. 0 has no reference model at all,
    unless --stop-kl needs one."""
    kl_placement: Literal["reward", "loss"] = "reward"
    """reward takes β log π/π_ref off every token's reward, behind all that normalises rewards or ψ; loss adds β times
    ½ (log π/π_ref)² of the whole answer to the loss, whose gradient is that of KL(π‖π_ref)."""
    kl_target: float | None = None
    """Adapt β so that KL(π‖π_ref), in nats per answer, settles here; none keeps β."""
    kl_horizon: int = 10_000
    """Answers over which β adapts: larger is slower."""
    stop_kl: float | None = None
    """End the run when KL(π‖π_ref) of an iteration's answers exceeds this many nats: rewards are over-optimised far from
    the reference. none goes on."""
    discount: float = 1.0
    """γ, per token."""
    trace_decay: float = 0.95
    """λ of gae."""
    critic: CriticName = "auto"
    """Where the critic's weights start: reward copies the reward model, head and all; policy copies the policy, with a head of zeros;
    shared is a head of zeros on the policy's own hidden states. auto takes reward where there is a reward model with the policy's
    tokenizer, else policy."""
    critic_learning_rate: float | None = None
    """Step size of a critic with weights of its own; none takes the policy's."""
    value_coefficient: float = 0.1
    """Weight of the value loss where the critic shares the policy's weights."""
    value_clip_range: float | None = None
    """Limit of a value's move in one update, in reward units; none leaves values free."""
    update_epochs: int = 4
    """Passes over the sampled answers."""
    minibatches: int = 1
    """In how many steps a pass is taken; each sees whole prompts."""
    clip_range: float = 0.2
    """ε: where the ratio to the policy that sampled leaves 1 ± ε, a token's gradient is zero."""
    target_kl: float | None = None
    """End an iteration's update when KL(π_old‖π) per token, measured on a minibatch, exceeds 1.5 times this; none takes all passes."""
    entropy_coefficient: float = 0.0
    """Weight of the mean entropy per token, which keeps the policy from settling too soon."""
    whiten_advantages: bool = False
    """Shift and scale ψ of the rewards to mean 0 and standard deviation 1 over a batch's tokens; the KL penalty is taken off behind that.
    Steps then do not depend on the reward's scale; near the optimum, where ψ vanishes, it amplifies noise."""
    whiten_rewards: bool = False
    """Scale the answers' rewards to standard deviation 1 over a batch, before the KL penalty is taken off; their mean stays."""
    divide_by_deviation: bool = False
    """With group: divide by the standard deviation of the rewards of the prompt's answers, as GRPO does, before the KL penalty is taken
    off. It weighs prompts by how little their answers differ; where all earn the same, ψ is the KL penalty alone."""
    standardize_rewards: Literal["none", "center", "scale"] = "none"
    """center subtracts the mean reward of the first batch, whose answers are the reference's own; scale also divides by their standard
    deviation. The two numbers then stay."""
    unfinished_reward: float | None = None
    """Reward of an answer cut at the limit, in place of its own; none keeps its own."""
    unfinished_penalty: float = 0.0
    """Taken off the reward of an answer cut at the limit, behind all that normalises rewards or ψ."""
    samples_every: int = 10
    """Iterations between two entries of answers in samples.jsonl; 0 writes none."""

    def _check(self) -> None:
        require(bool(self.reward.strip()), "--reward is empty; give a reward model's folder, or module:function")
        counts = ("answers_per_prompt", "longest_answer", "shortest_answer", "update_epochs", "minibatches", "kl_horizon")
        for name in counts:
            value = getattr(self, name)
            require(value >= 1, f"--{name.replace('_', '-')} must be at least 1, but is {value}")
        require(self.samples_every >= 0, f"--samples-every must not be negative, but is {self.samples_every}")
        require(
            self.shortest_answer <= self.longest_answer,
            f"--shortest-answer {self.shortest_answer} is longer than --longest-answer {self.longest_answer}",
        )
        require(
            self.weight not in BY_GROUP or self.answers_per_prompt >= 2,
            f"--weight {self.weight} compares answers to one prompt: --answers-per-prompt must be at least 2",
        )
        for name in ("temperature", "clip_range"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"--{name.replace('_', '-')} must be positive and finite, but is {value}")
        for name in ("kl_target", "stop_kl", "target_kl", "critic_learning_rate", "value_clip_range"):
            value = getattr(self, name)
            sentence = f"--{name.replace('_', '-')} must be positive and finite, or none, but is {value}"
            require(value is None or 0 < value < math.inf, sentence)
        for name in ("beta", "value_coefficient", "entropy_coefficient", "unfinished_penalty"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"--{name.replace('_', '-')} must not be negative, but is {value}")
        for name in ("discount", "trace_decay"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"--{name.replace('_', '-')} must lie between 0 and 1, but is {value}")
        require(
            self.kl_target is None or self.beta > 0,
            "--kl-target multiplies β up and down: --beta must be positive to begin with",
        )
        unfinished = self.unfinished_reward
        require(
            unfinished is None or math.isfinite(unfinished), f"--unfinished-reward must be finite, or none, but is {unfinished}"
        )
        require(
            unfinished is None or self.unfinished_penalty == 0,
            "--unfinished-penalty does nothing with --unfinished-reward; leave one out",
        )
        shifts_all = self.standardize_rewards == "center" and unfinished is None
        require(
            not (shifts_all and self.weight in BY_GROUP),
            f"--standardize-rewards center does nothing with --weight {self.weight}, which compares a prompt's answers; take scale",
        )

    @property
    def needs_reference(self) -> bool:
        """Whether anything depends on KL(π‖π_ref)."""
        return self.beta > 0 or self.stop_kl is not None

    def idle_options(self) -> dict[str, str]:
        """Settings that nothing reads under the others, each with the reason."""
        idle: dict[str, str] = {}
        if self.weight != "gae":
            names = ("trace_decay", "critic", "critic_learning_rate", "value_coefficient", "value_clip_range")
            idle |= dict.fromkeys(names, f"--weight {self.weight} has no critic")
        elif self.critic == "shared":
            idle["critic_learning_rate"] = "--critic shared has no weights of its own but its head"
        else:
            idle["value_coefficient"] = "a critic with weights of its own has its own optimiser"
        if self.weight in BY_GROUP:
            idle["discount"] = f"--weight {self.weight} weighs every token by the answer's whole return"
        if self.weight != "group":
            idle["divide_by_deviation"] = f"--weight {self.weight} divides by nothing"
        if self.beta == 0:
            idle["kl_placement"] = "with --beta 0 there is no KL penalty"
        if self.kl_target is None:
            idle["kl_horizon"] = "without --kl-target β does not adapt"
        if self.update_epochs == self.minibatches == 1:
            single = "the only step on a batch starts from the policy that sampled: every ratio is 1, and no value has moved"
            idle |= dict.fromkeys(("clip_range", "target_kl", "value_clip_range"), single)
        return idle
