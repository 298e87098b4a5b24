"""The loop of RLHF, one iteration at a time: sample, measure, weigh, update.

PPO, GRPO, RLOO and REINFORCE are this loop with another ψ. It knows nothing of files: a policy, a reward, a reference and, where ψ needs
one, a critic.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from surefoot.alignment.configuration import TrainingConfiguration
from surefoot.alignment.data.prompts import Prompt
from surefoot.alignment.durability.state import Arrays, Saved, State, learn_again, learned, numbers_of, set_numbers
from surefoot.alignment.learning.halves import Halves
from surefoot.alignment.learning.nonfinite import NotFinite, one_more
from surefoot.alignment.learning.optimization import NamedParameters, descend, learning_rate_at, make_optimizer
from surefoot.alignment.learning.rounding import rounded_away
from surefoot.alignment.likelihood.distribution import AnswerDistribution
from surefoot.alignment.likelihood.likelihood import Likelihood
from surefoot.alignment.likelihood.packing import pack
from surefoot.alignment.methods.method import Sums, add_sums
from surefoot.alignment.models.adapters import trainable_parameters
from surefoot.alignment.reference import LiveReference
from surefoot.alignment.rewards.source import RewardSource
from surefoot.alignment.rlhf.configuration import PPOConfiguration
from surefoot.alignment.rlhf.critic import Critic
from surefoot.alignment.rlhf.experience import Answered, Experience, places, side_by_side
from surefoot.alignment.rlhf.objective import Share, accumulate_gradients
from surefoot.alignment.rlhf.ratios import judge_ratios
from surefoot.alignment.rlhf.weighing import RewardScale, Weighed, token_rewards, weigh
from surefoot.alignment.sampling.sampler import Sampler
from surefoot.equations import adapt_kl_coefficient_proportionally, masked_mean
from surefoot.errors import Caution

Metrics = dict[str, float]

SAMPLING, ORDER = 1, 2
"""Which stream of random numbers."""
NUMBERS = ("iterations", "beta", "ratio_error", "skipped", "skipped_in_row")
"""What a checkpoint keeps as it stands."""
CRITIC = "critic/"


@dataclass(frozen=True)
class Work:
    """What one phase of an iteration took."""

    seconds: float
    operations: float


@dataclass(eq=False)
class PolicyOptimization:
    """A policy that learns from the rewards of its own answers.

    The optimum of E[r] − β KL(π‖π_ref) is π_ref exp(r/β)/Z; with the KL divergence in the reward and ψ = ``gae`` at λ = 1, ``reward-to-go``
    or ``leave-one-out`` the expected gradient of the first step is its gradient.

    Source: Ouyang et al., Training Language Models to Follow Instructions with Human Feedback (2022), equation 2.
    """

    actor: Likelihood
    """The policy, in training mode."""
    reward: RewardSource
    reference: LiveReference | None
    """None where nothing is compared with it: it is not computed then."""
    critic: Critic | None
    """None where ψ needs none."""
    settings: PPOConfiguration
    training: TrainingConfiguration
    """Step sizes, seed, and in how many parts a minibatch is computed."""
    total: int
    """Iterations of the whole run, which the step size's schedule needs."""
    ends: tuple[int, ...] = ()
    """Ids that end an answer; without any, every answer has ``longest_answer`` tokens."""
    never: tuple[int, ...] = ()
    """Ids that are no token, and are never drawn."""
    at_once: bool = False
    """Whether two threads may compute two halves of a batch (:mod:`surefoot.alignment.learning.halves`)."""
    say: Callable[[str], None] = lambda sentence: None
    """Takes sentences for the user."""
    iterations: int = 0
    last: Experience | None = None
    """The answers of the last iteration."""
    ratio_error: float | None = None
    """How far from 1 the first batch's ratios were, before any step."""
    work: dict[str, Work] = field(default_factory=dict)
    """Of the last iteration: sampling, scoring, update."""
    skipped: int = 0
    """Steps, and iterations, that were left out, since a number was not finite."""
    skipped_in_row: int = 0
    between_updates: bool = True
    """Whether the state is that after a whole number of iterations; whoever reports the last one says so."""

    def __post_init__(self) -> None:
        settings = self.settings
        if (settings.weight == "gae") != (self.critic is not None):
            raise ValueError(f"the weight {settings.weight} {'needs a' if self.critic is None else 'has no use for a'} critic")
        self.under = AnswerDistribution(settings.temperature, settings.shortest_answer, self.ends, self.never)
        self.sampler = Sampler(self.actor, under=self.under, longest=settings.longest_answer)
        self.beta = settings.beta
        self.reward_scale: RewardScale | None = None
        self._scores_again = False
        self._left_reference = False
        self._halves = Halves(self.training.accumulation, at_once=self.at_once)
        self._parameters: NamedParameters = trainable_parameters(self.actor.model)
        self._critic_parameters: NamedParameters = []
        if self.critic is not None and self.critic.head is not None:
            self._parameters = [*self._parameters, *self.critic.parameters]
        elif self.critic is not None:
            self._critic_parameters = self.critic.parameters
        self._optimizer = make_optimizer(self._parameters, self.training)
        self._critic_optimizer = make_optimizer(self._critic_parameters, self.training) if self._critic_parameters else None
        rate = self.training.learning_rate
        for parameters, step in ((self._parameters, rate), (self._critic_parameters, settings.critic_learning_rate or rate)):
            if (warning := rounded_away(parameters, learning_rate=step)) is not None:
                self.say(warning if parameters is self._parameters else Caution(f"critic: {warning}"))

    def close(self) -> None:
        """End the threads."""
        self._halves.close()

    def iterate(self, prompts: Sequence[Prompt]) -> Metrics:
        """Sample answers, and learn from them.

        Returns:
            means over the iteration, by name.

        Raises:
            NotFinite: a reward is not finite, or a gradient, where such steps are not left out.
            RunError: a reward cannot be had, or sampling and scoring disagree. The policy is as it was before the step that was not
                taken.
        """
        experience = self.experience(prompts)
        with self._phase("update"):
            scale = self.reward_scale or RewardScale.of(torch.from_numpy(experience.rewards), self.settings)
            self.reward_scale = scale
            device = experience.log_probabilities.device
            given = torch.from_numpy(experience.rewards).to(device, torch.float32)
            finished = torch.from_numpy(experience.finished).to(device)
            earned = scale.answer_rewards(given, finished, self.settings)
            rewards = token_rewards(experience, earned, beta=self.beta, settings=self.settings)
            weighed = weigh(experience, rewards, self.settings)
            updated = self._update(experience, weighed)
        metrics = self._describe(experience, weighed) | updated
        kl, target, count = experience.kl_to_reference, self.settings.kl_target, len(experience.rewards)
        if target is not None:
            assert kl is not None
            beta = torch.as_tensor(self.beta, dtype=torch.float64)
            kl64, horizon = kl.mean().double().cpu(), self.settings.kl_horizon
            self.beta = float(adapt_kl_coefficient_proportionally(beta, kl=kl64, target=target, answers=count, horizon=horizon))
        self.between_updates = False
        self.iterations += 1
        self.last = experience
        return metrics

    def experience(self, prompts: Sequence[Prompt]) -> Experience:
        """Answers of the policy as it is, with all that is measured of them."""
        try:
            return self._experience(prompts)
        except NotFinite as found:
            raise self._named(found, prompts) from found

    def _experience(self, prompts: Sequence[Prompt]) -> Experience:
        settings, device = self.settings, self.actor.device
        noise = np.random.default_rng([self.training.seed, SAMPLING, self.iterations])
        each = settings.answers_per_prompt
        with self._phase("sampling"):
            samples = self.sampler.sample(
                [prompt.ids for prompt in prompts],
                answers=each,
                noise=noise.random((len(prompts) * each, settings.longest_answer)),
            )
        if self.iterations == 0 and self.sampler.notice is not None:
            self.say(self.sampler.notice)
        batch = [
            Answered(prompt, tuple(samples.answers[i * each : (i + 1) * each]), i * each) for i, prompt in enumerate(prompts)
        ]
        with self._phase("scoring"):
            rewards = self.reward.rewards(prompts, [one.answers for one in batch], samples.finished)
            old = side_by_side(samples.log_probabilities, device)
            values = None if self.critic is None else torch.zeros_like(old)
            compared = self.reference is not None and not self._is_reference()
            experience = Experience(batch, samples.finished, rewards, old, torch.zeros_like(old) if compared else None, values)
            if compared or values is not None:
                list(self._halves.map(lambda part: self._measure(part, experience), batch))
            for what, numbers in (("log-probability by the reference", experience.reference), ("value by the critic", values)):
                if numbers is not None and not bool(torch.isfinite(numbers).all()):
                    raise NotFinite(f"a token's {what} is not finite")
            if self.ratio_error is None:
                self._check_ratio(experience)
            elif self._scores_again:
                list(self._halves.map(lambda part: self._score_again(part, experience), batch))
            if self.reference is not None and not compared:
                experience.reference = experience.log_probabilities  # not what the reference would round otherwise
        return experience

    @torch.no_grad()
    def _measure(self, part: list[Answered], experience: Experience) -> None:
        """The reference's log-probabilities, and the critic's values."""
        groups = [one.group for one in part]
        at = places(part, pack(groups, device=self.actor.device, feed_last=False))
        if experience.reference is not None:
            assert self.reference is not None
            experience.reference[at] = self.reference.completions(groups, under=self.under).tokens
        if experience.values is not None:
            assert self.critic is not None
            shared = None
            if self.critic.head is not None:
                shared = self.actor.completions(groups, under=self.under, value_head=self.critic.head)
            experience.values[at] = self.critic.values(groups, shared)

    def _is_reference(self) -> bool:
        """Whether the policy still is the reference, by the values of its weights: log π/π_ref is 0 then, and not what rounding leaves."""
        if not self._left_reference and self.reference is not None:
            self._left_reference = not self.reference.equals(self.actor)
        return not self._left_reference

    @torch.no_grad()
    def _score_again(self, part: list[Answered], experience: Experience) -> None:
        """The policy's own log-probabilities, as the update computes them."""
        completions = self.actor.completions([one.group for one in part], under=self.under)
        experience.log_probabilities[places(part, completions)] = completions.tokens

    def _check_ratio(self, experience: Experience) -> None:
        """Before any step π is π_old: what was kept in sampling must be what the update computes."""
        kept = experience.log_probabilities.clone()
        list(self._halves.map(lambda part: self._score_again(part, experience), experience.batch))
        computed = experience.log_probabilities
        self.ratio_error = float(torch.expm1((computed - kept).abs()).max())
        self._scores_again, said = judge_ratios(
            self.ratio_error, self.actor, tokens=int(experience.lengths.sum()), settings=self.settings
        )
        if said is not None:
            self.say(said)
        if not self._scores_again:
            experience.log_probabilities = kept

    def _update(self, experience: Experience, weighed: Weighed) -> Metrics:
        """Passes over the answers, until they are all done or the policy has moved far enough."""
        settings, training = self.settings, self.training
        learning_rate = learning_rate_at(self.iterations, self.total, training)
        faster = 1.0 if settings.critic_learning_rate is None else settings.critic_learning_rate / training.learning_rate
        order = np.random.default_rng([training.seed, ORDER, self.iterations])
        sums: Sums = {}
        lowest, highest, norms, critic_norms = math.inf, -math.inf, list[float](), list[float]()
        for minibatch in self._minibatches(experience.batch, order):
            tokens = sum(len(answer) for one in minibatch for answer in one.answers)
            beta = 0.0 if self.reference is None or self._is_reference() else self.beta

            def compute(part: list[Answered], tokens: int = tokens, beta: float = beta) -> Share:
                return accumulate_gradients(
                    part,
                    tokens=tokens,
                    experience=experience,
                    weighed=weighed,
                    beta=beta,
                    actor=self.actor,
                    critic=self.critic,
                    under=self.under,
                    settings=settings,
                )

            of_minibatch: Sums = {}
            for share in self._halves.map(compute, minibatch):
                add_sums(of_minibatch, share.sums)
                lowest, highest = min(lowest, share.lowest_ratio), max(highest, share.highest_ratio)
            add_sums(sums, of_minibatch)
            moved, count = of_minibatch["kl/update"]
            if settings.target_kl is not None and float(moved) / count > 1.5 * settings.target_kl:
                self._forget_gradients()
                break
            limit = training.max_gradient_norm
            try:
                norms.append(descend(self._optimizer, self._parameters, learning_rate=learning_rate, max_gradient_norm=limit))
                self.between_updates = False
                if self._critic_optimizer is not None:
                    rate = learning_rate * faster
                    step = descend(self._critic_optimizer, self._critic_parameters, learning_rate=rate, max_gradient_norm=limit)
                    critic_norms.append(step)
                self.skipped_in_row = 0
            except NotFinite as found:
                self._forget_gradients()
                self.leave_out(self._named(found, [one.prompt for one in minibatch]))
        metrics = {name: float(total) / count for name, (total, count) in sums.items()}
        metrics |= {"ratio/lowest": lowest, "ratio/highest": highest, "steps": len(norms), "learning_rate": learning_rate}
        if norms:
            metrics["gradient_norm"] = float(np.mean(norms))
        if critic_norms:
            metrics["critic/gradient_norm"] = float(np.mean(critic_norms))
        return metrics

    def _minibatches(self, batch: list[Answered], order: np.random.Generator) -> Iterator[list[Answered]]:
        for _ in range(self.settings.update_epochs):
            for chosen in np.array_split(order.permutation(len(batch)), self.settings.minibatches):
                if len(chosen):
                    yield [batch[i] for i in chosen]

    def _named(self, found: NotFinite, prompts: Sequence[Prompt]) -> NotFinite:
        rows = ", ".join(str(prompt.number) for prompt in prompts[:5]) + (", …" if len(prompts) > 5 else "")
        return NotFinite(f"iteration {self.iterations + 1}, on the prompts of rows {rows}: {found}")

    def leave_out(self, found: NotFinite) -> None:
        """Take no step, where that was asked for, and say so the first time.

        Raises:
            NotFinite: it was not asked for.
            RunError: nothing else has happened for too long.
        """
        if self.training.on_nonfinite == "stop":
            raise found
        self.skipped_in_row = one_more(self.skipped_in_row, found)
        self.skipped += 1
        if self.skipped == 1:
            self.say(Caution(f"left out: {found}; the metric skipped counts such steps"))

    def state(self) -> tuple[Arrays, State]:
        """What a checkpoint holds. What is sampled follows from the seed and the number of the iteration."""
        state = numbers_of(self, NUMBERS) | {
            "scores_again": self._scores_again,
            "reward_scale": self.reward_scale,
            "sampler": self.sampler.state(),
        }
        if not self.iterations and self.between_updates:
            return {}, state  # parameters are as they were at the start
        arrays = learned(self._parameters, self._optimizer)
        if self._critic_optimizer is not None:
            arrays |= learned(self._critic_parameters, self._critic_optimizer, of=CRITIC)
        return arrays, state

    def restore(self, arrays: Arrays, state: Mapping[str, Any]) -> None:
        """Be where :meth:`state` was taken; ``arrays`` is emptied."""
        set_numbers(self, NUMBERS, state)
        scale = state["reward_scale"]
        if not isinstance(state["scores_again"], bool):
            raise TypeError("scores_again is neither true nor false")
        self._scores_again = state["scores_again"]
        if scale is not None:
            center, deviation = map(float, scale)
            self.reward_scale = RewardScale(center, deviation)
        self.sampler.restore(state["sampler"])
        saved = Saved(arrays)
        if self.iterations:
            learn_again(self._parameters, self._optimizer, saved)
            if self._critic_optimizer is not None:
                learn_again(self._critic_parameters, self._critic_optimizer, saved, of=CRITIC)
        saved.all_used()

    def _forget_gradients(self) -> None:
        self._optimizer.zero_grad()
        if self._critic_optimizer is not None:
            self._critic_optimizer.zero_grad()

    def _describe(self, experience: Experience, weighed: Weighed) -> Metrics:
        """Means over the answers, as they were sampled."""
        valid, lengths = experience.valid, experience.lengths.float()
        rewards, kl = experience.rewards, experience.kl_to_reference
        metrics: Metrics = {
            "reward": float(rewards.mean()),
            "reward/deviation": float(rewards.std()),
            "return": float(weighed.returns.mean()),
            "kl/coefficient": self.beta,
            # −log π of a token that π itself chose is an unbiased estimate of the entropy there
            "entropy": float(masked_mean(-experience.log_probabilities, valid)),
            "length": float(lengths.mean()),
            "length/longest": float(lengths.max()),
            "finished": float(experience.finished.mean()),
            "weight/deviation": float(weighed.weights[valid].std()),
        }
        if kl is not None:
            metrics["kl/reference"] = float(kl.mean())
        if weighed.targets is not None and experience.values is not None:
            targets, values = weighed.targets[valid], experience.values[valid]
            spread = float(targets.var())
            explained = 1 - float((targets - values).var()) / spread if spread > 0 else math.nan
            metrics |= {"critic/explained_variance": explained, "critic/value_mean": float(values.mean())}
        return metrics

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        began, before = time.perf_counter(), self.actor.work.operations
        yield
        self.work[name] = Work(time.perf_counter() - began, self.actor.work.operations - before)
