"""A run of ``surefoot align ppo``: from files to the loop, and its reports."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from surefoot.alignment.configuration import AlignConfiguration
from surefoot.alignment.data.fingerprint import prompts_fingerprint
from surefoot.alignment.data.prompts import LoadedPrompts, Prompt, load_prompts, longest_groups
from surefoot.alignment.data.tokenization.ends import AnswerEnds, require_eos
from surefoot.alignment.durability.start import StartKeeper
from surefoot.alignment.durability.state import Arrays, State, numbers_of, set_numbers
from surefoot.alignment.learning.halves import can_be_computed_at_once
from surefoot.alignment.learning.nonfinite import NotFinite
from surefoot.alignment.learning.randomness import data_order, drawing_anew
from surefoot.alignment.likelihood.likelihood import Likelihood
from surefoot.alignment.models.adapters import add_adapter
from surefoot.alignment.models.counting import matrix_rate
from surefoot.alignment.models.ending import ends_of, write_ends
from surefoot.alignment.models.loading import load_policy
from surefoot.alignment.models.precision import autocast_dtype, device_of
from surefoot.alignment.models.vocabulary import about_no_tokens, no_tokens
from surefoot.alignment.preparation import check_length, live_reference, reference_fingerprint
from surefoot.alignment.rewards.model import ModelReward
from surefoot.alignment.rewards.opening import open_reward
from surefoot.alignment.rewards.source import OpenedRewards
from surefoot.alignment.rlhf.configuration import PPOConfiguration
from surefoot.alignment.rlhf.critic import Critic
from surefoot.alignment.rlhf.learner import Metrics, PolicyOptimization
from surefoot.alignment.rlhf.opening import open_critic, ppo_settings
from surefoot.alignment.rlhf.samples import SampleFile
from surefoot.errors import Caution, UsageError
from surefoot.runs.metrics import MetricsWriter
from surefoot.runs.progress import Progress
from surefoot.runs.statistics import readable

NUMBERS = ("asked", "tokens", "seconds", "operations", "ended_early", "reached", "first", "recent")
"""What a checkpoint keeps of a run as it stands."""
RECENT = 10
"""So many iterations' answers say how good the policy is: those of one are few."""

Tell = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Online:
    """Prompts, a policy, and where its rewards come from."""

    configuration: AlignConfiguration
    tokenizer: PreTrainedTokenizerFast
    data: LoadedPrompts
    likelihood: Likelihood
    reward: OpenedRewards
    critic: Critic | None
    ends: AnswerEnds
    never: tuple[int, ...]
    """Rows of the policy's vocabulary that are no token."""
    reference_fingerprint: str
    tell: Tell

    @staticmethod
    def prepare(
        configuration: AlignConfiguration,
        tokenizer: PreTrainedTokenizerFast,
        tell: Tell,
        *,
        quiet: bool,
        keep: StartKeeper | None = None,
    ) -> Online:
        """Read the prompts, then load the models, of which there are up to four; ``keep`` is given the policy as it was loaded."""
        settings = ppo_settings(configuration)
        require_eos(tokenizer)
        device_of(configuration.model)
        ends = ends_of(configuration.model.model, tokenizer)
        for sentence in ends.notices:
            tell(sentence)
        data = load_prompts(configuration.data, tokenizer, longest_answer=settings.longest_answer)
        for sentence in data.notices:
            tell(sentence)
        share, autocast = configuration.training.share_prompts, autocast_dtype(configuration.model)
        reward = open_reward(settings.reward, tokenizer, settings=configuration.model, share_prompts=share, policy_ends=ends)
        reward.check(data.prompts, longest_answer=settings.longest_answer)
        for sentence in reward.notices:
            tell(sentence)
        model = load_policy(configuration.model, tokenizer, notify=tell)
        write_ends(model, tokenizer, ends)
        if keep is not None:
            keep.keep(model)
        if configuration.adapter.lora_rank:
            model = add_adapter(model, configuration.adapter, seed=configuration.training.seed, notify=tell)
        likelihood = Likelihood(model, share_prompts=share, autocast=autocast)
        groups = longest_groups([prompt.ids for prompt in data.prompts], longest_answer=settings.longest_answer)
        _check_length(likelihood, data.prompts, settings, tell)
        if notice := likelihood.check(groups):
            tell(notice)
        critic = open_critic(configuration, tokenizer, likelihood, reward, groups, tell) if settings.weight == "gae" else None
        if about := about_no_tokens(never := no_tokens(model, tokenizer)):
            tell(about)
        fingerprint = reference_fingerprint(model)
        return Online(configuration, tokenizer, data, likelihood, reward, critic, ends, never, fingerprint, tell)

    @property
    def model(self) -> Any:
        """The policy, which is trained and kept."""
        return self.likelihood.model

    @property
    def recorded(self) -> dict[str, Any]:
        """What config.json says beside the settings."""
        return {"comparison": None, "reference_fingerprint": self.reference_fingerprint, "reward_source": self.reward.name}

    def fingerprints(self) -> dict[str, str]:
        """Of what is read again when the run goes on, by the option that names it."""
        return {"--data": prompts_fingerprint(self.data.prompts), "--reward": self.reward.fingerprint()}

    @property
    def description(self) -> dict[str, Any]:
        """The data, for the model's card."""
        return self.data.description

    @property
    def prompts(self) -> int:
        """That the whole run asks; every epoch counts."""
        return self.configuration.training.epochs * len(self.data.prompts)

    def start(self, folder: Path, writer: MetricsWriter, progress: Progress) -> OnlineRun:
        """Begin; ``folder`` gets samples.jsonl."""
        return OnlineRun(self, folder, writer, progress)


def _check_length(likelihood: Likelihood, prompts: list[Prompt], settings: PPOConfiguration, tell: Tell) -> None:
    longest = max(len(prompt.ids) for prompt in prompts)
    try:
        check_length(likelihood, longest + settings.longest_answer, tell)
    except UsageError as error:
        raise UsageError(str(error).replace("give --max-length", "give a smaller --longest-answer, or --max-length")) from error


@dataclass
class OnlineRun:
    """What changes while a run goes on."""

    prepared: Online
    folder: Path
    writer: MetricsWriter
    progress: Progress
    asked: int = 0
    tokens: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    """By phase, over the whole run."""
    operations: float = 0.0
    """That updates needed."""
    ended_early: str | None = None
    reached: Metrics = field(default_factory=dict)
    """Of the last iteration."""
    first: Metrics = field(default_factory=dict)
    """Of the first iteration, whose answers are the reference's own."""
    recent: dict[str, float] = field(default_factory=dict)
    """Mean returns of the last iterations, by their numbers."""

    def __post_init__(self) -> None:
        configuration, likelihood = self.prepared.configuration, self.prepared.likelihood
        training, settings = configuration.training, ppo_settings(configuration)
        self.samples = SampleFile(self.folder, self.prepared.tokenizer, self.prepared.ends)
        self.per_epoch = -(-len(self.prepared.data.prompts) // training.batch_size)
        self.total = training.epochs * self.per_epoch
        self.learner = PolicyOptimization(
            actor=likelihood,
            reward=self.prepared.reward,
            reference=live_reference(likelihood) if settings.needs_reference else None,
            critic=self.prepared.critic,
            settings=settings,
            training=training,
            total=self.total,
            ends=self.prepared.ends.sampling,
            never=self.prepared.never,
            at_once=can_be_computed_at_once(configuration, likelihood),
            say=self.progress.say,
        )
        dtype = autocast_dtype(configuration.model) or likelihood.head.weight.dtype
        self.matrix_rate = matrix_rate(likelihood.device, 0.1, dtype=dtype)
        self.began, self.before = time.perf_counter(), 0

    def advance(self) -> Iterator[None]:
        """One iteration at a time."""
        if self.ended_early is not None:
            return
        for prompts in self._batches():
            self._forget_positions()
            self._iterate(prompts)
            self.learner.between_updates = True
            yield

    def _batches(self) -> Iterator[list[Prompt]]:
        """From the next iteration on: every epoch all prompts in a new order."""
        training, prompts = self.prepared.configuration.training, self.prepared.data.prompts
        size, order = training.batch_size, None
        for number in range(self.learner.iterations, self.total):
            epoch, within = divmod(number, self.per_epoch)
            if order is None or within == 0:
                order = data_order(training.seed, epoch, len(prompts))
            yield [prompts[i] for i in order[within * size : (within + 1) * size]]

    def _forget_positions(self) -> None:
        """Of every model that is computed: an iteration depends on none before it."""
        prepared = self.prepared
        prepared.likelihood.forget_positions()
        if prepared.critic is not None and prepared.critic.likelihood is not None:
            prepared.critic.likelihood.forget_positions()
        if isinstance(prepared.reward, ModelReward):
            prepared.reward.likelihood.forget_positions()

    def _iterate(self, prompts: list[Prompt]) -> None:
        learner, settings = self.learner, self.learner.settings
        try:
            with drawing_anew(learner.training.seed, learner.iterations, learner.actor.device):
                metrics = learner.iterate(prompts)
        except NotFinite as found:  # a reward; of gradients the learner leaves out single steps
            learner.leave_out(found)
            self._report_left_out(prompts)
            return
        experience = learner.last
        assert experience is not None
        answered = int(experience.lengths.sum())
        self.asked += len(prompts)
        self.tokens += answered
        speeds = {}
        for phase, work in learner.work.items():
            self.seconds[phase] = self.seconds.get(phase, 0.0) + work.seconds
            speeds[f"speed/{phase}_tokens_per_second"] = answered / work.seconds
        update = learner.work["update"]
        self.operations += update.operations
        self.reached = metrics
        self.first = self.first or metrics
        self.recent[str(learner.iterations)] = metrics["return"]
        if len(self.recent) > RECENT:
            del self.recent[next(iter(self.recent))]
        report: dict[str, float | None] = {
            "iteration": learner.iterations,
            "prompts": self.asked,
            "epoch": self.asked / len(self.prepared.data.prompts),
            **metrics,
            **speeds,
            "speed/utilization": update.operations / update.seconds / self.matrix_rate,
        }
        if learner.training.on_nonfinite == "skip":
            report["skipped"] = learner.skipped
        self.writer.write(self.asked, report)
        every = settings.samples_every
        if every and (learner.iterations % every == 1 % every or learner.iterations == self.total):
            self.samples.write(experience, iteration=learner.iterations)
        kl = metrics.get("kl/reference")
        if settings.stop_kl is not None and kl is not None and kl > settings.stop_kl and learner.iterations < self.total:
            self.ended_early = (
                f"stopped after {learner.iterations} of {self.total} iterations: KL to the reference is {kl:.2f} nats per answer,"
                f" more than --stop-kl {settings.stop_kl:g}"
            )
            self.progress.say(Caution(self.ended_early))
        shown = f"reward {readable(metrics['reward'], 3)}" + ("" if kl is None else f"  KL {readable(kl, 2)}")
        rate = (self.asked - self.before) / (time.perf_counter() - self.began)
        self.progress.update(self.asked, rate=rate, reached=shown)

    def _report_left_out(self, prompts: list[Prompt]) -> None:
        """An iteration without an update counts, so that others follow."""
        learner = self.learner
        learner.between_updates = False
        learner.iterations += 1
        self.asked += len(prompts)
        epoch = self.asked / len(self.prepared.data.prompts)
        report = {"iteration": learner.iterations, "prompts": self.asked, "epoch": epoch, "skipped": learner.skipped}
        self.writer.write(self.asked, report)

    def finish(self) -> None:
        """End the threads."""
        self.learner.close()
        if self.prepared.critic is not None and self.prepared.critic.likelihood is not None:
            self.prepared.critic.likelihood.release()

    @property
    def prompts(self) -> int:
        """Asked so far."""
        return self.asked

    @property
    def step(self) -> int:
        """Iterations so far."""
        return self.learner.iterations

    @property
    def skipped_in_row(self) -> int:
        """Steps that were left out one after the other, up to now."""
        return self.learner.skipped_in_row

    @skipped_in_row.setter
    def skipped_in_row(self, count: int) -> None:
        self.learner.skipped_in_row = count

    @property
    def between_updates(self) -> bool:
        """Whether the state is that after a whole number of iterations, with their reports."""
        return self.learner.between_updates

    @property
    def improved(self) -> bool:
        """Never known of one iteration: its answers are few."""
        return False

    @property
    def score(self) -> float | None:
        """The mean return of the last iterations' answers, reward and KL together."""
        return float(np.mean(list(self.recent.values()))) if self.recent else None

    def state(self) -> tuple[Arrays, State]:
        """What a checkpoint holds. The prompts' order, sampling and dropout follow from the seed and the number of the iteration."""
        arrays, of_learner = self.learner.state()
        return arrays, numbers_of(self, NUMBERS) | {"learner": of_learner, "samples": self.samples.length()}

    def restore(self, arrays: Arrays, state: Mapping[str, Any]) -> None:
        """Be where :meth:`state` was taken; of the sample answers, those that came later are cut off."""
        set_numbers(self, NUMBERS, state)
        self.before = self.asked
        self.learner.restore(arrays, state["learner"])
        if (sentence := self.samples.cut_back(int(state["samples"]))) is not None:
            self.progress.say(Caution(sentence))

    @property
    def unfinished(self) -> bool:
        """Whether it was stopped before its end."""
        return self.learner.iterations < self.total and self.ended_early is None

    def result(self, seconds: float) -> dict[str, Any]:
        """The run in numbers.

        Returns:
            iterations, prompts asked (every epoch counts), answers, tokens of answers; reward and kl_reference (nats per answer; None
            without a reference), means of the last iteration, and first_reward, of the reference's own answers; beta at the end;
            ratio_error, how far from 1 the ratios of the first batch were before any step; tokens_per_second of sampling, scoring,
            update and all together, answers_per_second, and utilization of the update.
        """
        done = self.learner.iterations
        rate = (lambda count: count / seconds) if seconds > 0 and done else (lambda count: None)
        updating = self.seconds.get("update", 0.0)
        answers = self.asked * self.learner.settings.answers_per_prompt
        return {
            "iterations": done,
            "prompts": self.asked,
            "answers": answers,
            "tokens": self.tokens,
            "reward": self.reached.get("reward"),
            "first_reward": self.first.get("reward"),
            "kl_reference": self.reached.get("kl/reference"),
            "beta": self.learner.beta,
            "ratio_error": self.learner.ratio_error,
            "prompts_per_second": rate(self.asked),
            "answers_per_second": rate(answers),
            "tokens_per_second": rate(self.tokens),
            "phases": {
                phase: {"seconds": spent, "tokens_per_second": self.tokens / spent} for phase, spent in self.seconds.items()
            },
            "metrics": {name: value for name, value in self.reached.items() if np.isfinite(value)},
            "utilization": self.operations / updating / self.matrix_rate if updating else None,
        }
