"""Learning from given answers: the updates of fine-tuning, reward models and DPO, their reports and evaluations."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from surefoot.alignment.configuration import AlignConfiguration, TrainingConfiguration
from surefoot.alignment.data.examples import Example
from surefoot.alignment.data.fingerprint import examples_fingerprint
from surefoot.alignment.data.tokenization.ends import AnswerEnds
from surefoot.alignment.durability.start import StartKeeper
from surefoot.alignment.durability.state import Arrays, Saved, State, learn_again, learned, numbers_of, set_numbers, to_array
from surefoot.alignment.learning.halves import Halves, can_be_computed_at_once
from surefoot.alignment.learning.nonfinite import NotFinite, one_more
from surefoot.alignment.learning.optimization import descend, learning_rate_at, make_optimizer
from surefoot.alignment.learning.randomness import data_order, drawing_anew
from surefoot.alignment.learning.rounding import rounded_away
from surefoot.alignment.learning.watch import ChosenWatch
from surefoot.alignment.likelihood.likelihood import Likelihood
from surefoot.alignment.methods.method import Method, Sums, add_sums
from surefoot.alignment.models.adapters import trainable_parameters
from surefoot.alignment.models.counting import matrix_rate
from surefoot.alignment.models.ending import ends_of
from surefoot.alignment.models.precision import autocast_dtype
from surefoot.alignment.preparation import Data, Learner, prepare_data, prepare_model
from surefoot.errors import Caution
from surefoot.runs.metrics import MetricsWriter
from surefoot.runs.progress import Progress

Metrics = dict[str, float]
NUMBERS = (
    "updates", "prompts", "pairs", "tokens", "operations", "updating", "skipped", "skipped_in_row", "ended_early", "epoch", "last",
    "evaluated", "best_evaluated", "without_progress", "lowest", "lowest_after",
)  # fmt: skip
"""What a checkpoint keeps of a run as it stands."""


@dataclass(frozen=True, eq=False)
class Offline:
    """Examples and a model, ready to be trained on them."""

    configuration: AlignConfiguration
    data: Data
    learner: Learner
    ends: AnswerEnds

    @staticmethod
    def prepare(
        configuration: AlignConfiguration,
        tokenizer: PreTrainedTokenizerFast,
        tell: Callable[[str], None],
        *,
        quiet: bool,
        keep: StartKeeper | None = None,
    ) -> Offline:
        """Read the data, then load the model; ``keep`` is given it as it was loaded, before an adapter."""
        ends = ends_of(configuration.model.model, tokenizer)
        for sentence in ends.notices:
            tell(sentence)
        data = prepare_data(configuration, tokenizer, tell)
        learner = prepare_model(configuration, tokenizer, data, ends, tell, quiet=quiet, keep=keep)
        return Offline(configuration, data, learner, ends)

    @property
    def model(self) -> Any:
        """What is trained, and kept."""
        return self.learner.model

    @property
    def likelihood(self) -> Likelihood:
        """How it is computed."""
        return self.learner.method.likelihood

    @property
    def recorded(self) -> dict[str, Any]:
        """What config.json says beside the settings."""
        return {"comparison": self.learner.comparison, "reference_fingerprint": self.learner.reference_fingerprint}

    def fingerprints(self) -> dict[str, str]:
        """Of what is read again when the run goes on, by the option that names it."""
        fingerprints = {"--data": examples_fingerprint(self.data.train)}
        if self.data.held_out:
            option = "--data" if self.configuration.training.eval_data is None else "--eval-data"
            fingerprints[option] = fingerprints.get(option, "") + examples_fingerprint(self.data.held_out)
        return fingerprints

    @property
    def description(self) -> dict[str, Any]:
        """The data, for the model's card."""
        return self.data.description

    @property
    def prompts(self) -> int:
        """That the whole run is trained on; every epoch counts."""
        return self.configuration.training.epochs * len(self.data.train)

    def start(self, folder: Path, writer: MetricsWriter, progress: Progress) -> OfflineRun:
        """Begin; ``folder`` gets nothing here but what the writer puts there."""
        return OfflineRun(self.configuration, self.learner, self.data, writer, progress)


@dataclass
class OfflineRun:
    """What changes while a run goes on."""

    configuration: AlignConfiguration
    learner: Learner
    data: Data
    writer: MetricsWriter
    progress: Progress
    updates: int = 0
    prompts: int = 0
    pairs: int = 0
    tokens: int = 0
    operations: float = 0.0
    """That updates needed; nothing that was computed twice counts twice."""
    updating: float = 0.0
    """Seconds of updates, without evaluation and reports."""
    ended_early: str | None = None
    epoch: dict[str, list[float]] = field(default_factory=dict)
    """Sums and counts of the epoch's metrics so far."""
    last: Metrics = field(default_factory=dict)
    """Means of the last whole epoch, or of what there is of it."""
    evaluated: Metrics = field(default_factory=dict)
    lowest: float | None = None
    """The lowest loss on held-out data so far,"""
    lowest_after: int | None = None
    """after how many updates it was reached,"""
    best: dict[str, torch.Tensor] | None = None
    """and with which weights, where there is patience to wait for better ones."""
    best_evaluated: Metrics = field(default_factory=dict)
    """What was measured with them."""
    without_progress: int = 0
    skipped: int = 0
    """Updates that were left out, since a number was not finite; ``updates`` counts them too."""
    skipped_in_row: int = 0
    between_updates: bool = True
    """Whether the state is that after a whole number of updates, with their reports."""

    def __post_init__(self) -> None:
        training = self.configuration.training
        self.parameters = trainable_parameters(self.learner.model)
        self.optimizer = make_optimizer(self.parameters, training)
        if (warning := rounded_away(self.parameters, learning_rate=training.learning_rate)) is not None:
            self.progress.say(Caution(warning))
        self.watch = ChosenWatch()
        method = self.learner.method
        self.halves = Halves(training.accumulation, at_once=can_be_computed_at_once(self.configuration, method.likelihood))
        self.per_epoch = -(-len(self.data.train) // training.batch_size)
        self.total = training.epochs * self.per_epoch
        dtype = autocast_dtype(self.configuration.model) or next(p.dtype for _, p in self.parameters)
        self.matrix_rate = matrix_rate(method.likelihood.device, 0.1, dtype=dtype)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()  # that measurement is no part of the run
        self.began, self.before = time.perf_counter(), 0

    @property
    def training(self) -> TrainingConfiguration:
        """How it is trained."""
        return self.configuration.training

    def advance(self) -> Iterator[None]:
        """One update at a time."""
        if self.ended_early is not None:
            return
        for examples, ends_epoch in self.batches():
            self.update(examples, ends_epoch=ends_epoch)
            yield

    def batches(self) -> Iterator[tuple[list[Example], bool]]:
        """From the next update on: every epoch all examples in a new order, and whether the batch is its epoch's last."""
        examples, size = self.data.train, self.training.batch_size
        order: np.ndarray | None = None
        for number in range(self.updates, self.total):
            epoch, within = divmod(number, self.per_epoch)
            if order is None or within == 0:
                order = data_order(self.training.seed, epoch, len(examples))
            yield [examples[i] for i in order[within * size : (within + 1) * size]], within + 1 == self.per_epoch

    def update(self, examples: list[Example], *, ends_epoch: bool) -> None:
        """One step of the optimiser, its report, and an evaluation where one is due."""
        training, method = self.training, self.learner.method
        began = time.perf_counter()
        before = method.likelihood.work.operations
        learning_rate = learning_rate_at(self.updates, self.total, training)
        method.likelihood.forget_positions()
        loss: float | None = None
        norm: float | None = None
        sums = Sums()
        try:
            with drawing_anew(training.seed, self.updates, method.likelihood.device):
                loss, sums = self.gradients(examples)
            limit = training.max_gradient_norm
            norm = descend(self.optimizer, self.parameters, learning_rate=learning_rate, max_gradient_norm=limit)
            self.skipped_in_row = 0
        except NotFinite as found:
            self._leave_out(examples, found)
            loss, sums = None, Sums()
        self.between_updates = False
        needed = method.likelihood.work.operations - before
        seconds = time.perf_counter() - began
        self.operations += needed
        self.updating += seconds
        self.updates += 1
        self.prompts += len(examples)
        self.pairs += sum(len(e.pairs) for e in examples)
        tokens = sum(e.tokens for e in examples)
        self.tokens += tokens
        means = {name: float(total) / count for name, (total, count) in sums.items()}
        if loss is not None:
            self._remember(loss, sums, examples)
        report: dict[str, float | None] = {
            "update": self.updates,
            "prompts": self.prompts,
            "epoch": self.prompts / len(self.data.train),
            "loss": loss,
            **means,
            "gradient_norm": norm,
            "learning_rate": learning_rate,
            "speed/prompts_per_second": len(examples) / seconds,
            "speed/tokens_per_second": tokens / seconds,
            "speed/utilization": needed / seconds / self.matrix_rate,
        }
        if training.on_nonfinite == "skip":
            report["skipped"] = self.skipped
        if warning := self.watch.look(means):
            self.progress.say(Caution(warning))
        every = training.evaluate_every
        due = self.updates % every == 0 or self.updates == self.total if every else ends_epoch
        if self.data.held_out and due:
            self.evaluated = self.evaluate(self.data.held_out)
            report |= {f"evaluation/{name}": value for name, value in self.evaluated.items()}
            self._judge(self.evaluated["loss"])
        self.writer.write(self.prompts, report)
        if ends_epoch:
            self.epoch = {}
        self.between_updates = True
        shown = "left out" if loss is None else f"loss {loss:.4f}"
        shown += f"  {method.headline} {means[method.headline]:.3f}" if method.headline in means else ""
        rate = (self.prompts - self.before) / (time.perf_counter() - self.began)
        self.progress.update(self.prompts, rate=rate, reached=shown)

    def _leave_out(self, examples: Sequence[Example], found: NotFinite) -> None:
        """Take no step, where that was asked for, and say so the first time."""
        self.optimizer.zero_grad()
        rows = ", ".join(str(e.number) for e in examples[:5]) + (", …" if len(examples) > 5 else "")
        named = NotFinite(f"update {self.updates + 1}, on the batch with rows {rows}: {found}")
        if self.training.on_nonfinite == "stop":
            raise named from found
        self.skipped_in_row = one_more(self.skipped_in_row, named)
        self.skipped += 1
        if self.skipped == 1:
            self.progress.say(Caution(f"left out: {named}; the metric skipped counts such updates"))

    def gradients(self, examples: Sequence[Example]) -> tuple[float, Sums]:
        """Accumulate the gradients of a batch, computed in as many parts as the configuration asks for."""
        method = self.learner.method
        denominators = method.denominators(examples)

        def compute(part: list[Example]) -> tuple[float, Sums]:
            share = method.parts(part, denominators)
            share.loss.backward()
            return float(share.loss.detach()), share.sums

        loss, sums = 0.0, Sums()
        for of_part, more in self.halves.map(compute, examples):
            loss += of_part
            add_sums(sums, more)
        if not math.isfinite(loss):
            raise NotFinite(f"the loss is {loss}; a smaller --learning-rate may help")
        return loss, sums

    @torch.no_grad()
    def evaluate(self, examples: list[Example]) -> Metrics:
        """Loss and metrics of examples, as means over all of them."""
        model = self.learner.model
        self.learner.method.likelihood.forget_positions()
        model.eval()
        try:
            metrics = evaluate_examples(self.learner.method, examples, batch_size=self.training.batch_size)
        finally:
            model.train()
        if not math.isfinite(metrics["loss"]):
            raise NotFinite(
                f"the loss on held-out data is {metrics['loss']} after update {self.updates}; a smaller --learning-rate may help"
            )
        return metrics

    def _judge(self, loss: float) -> None:
        """Remember the best so far, and see whether patience is at its end."""
        patience = self.training.patience
        if self.lowest is None or loss < self.lowest:
            self.lowest, self.lowest_after, self.without_progress = loss, self.updates, 0
            if patience is not None:
                self.best = {name: p.detach().clone() for name, p in self.parameters}
                self.best_evaluated = self.evaluated
            return
        if patience is None:
            return
        self.without_progress += 1
        if self.without_progress >= patience and self.updates < self.total:
            self.ended_early = (
                f"stopped after {self.updates} of {self.total} updates: the loss on held-out data has not fallen in"
                f" {patience} evaluations; the model is that of update {self.lowest_after}"
            )
            self.progress.say(Caution(self.ended_early))

    def finish(self) -> None:
        """End the threads, and take the weights with the lowest held-out loss, where patience was given."""
        self.halves.close()
        if self.best is None or self.lowest_after == self.updates:
            return
        if self.ended_early is None:
            self.progress.say(f"the loss on held-out data was lowest after update {self.lowest_after}: the model is that one")
        with torch.no_grad():
            for name, parameter in self.parameters:
                parameter.copy_(self.best[name])
        self.evaluated = self.best_evaluated  # measuring again might fail before the model is saved

    def _remember(self, loss: float, sums: Sums, examples: Sequence[Example]) -> None:
        weight = next(iter(self.learner.method.denominators(examples).values()))
        for name, (total, count) in (sums | {"loss": (torch.tensor(loss * weight), weight)}).items():
            kept = self.epoch.setdefault(name, [0.0, 0.0])
            kept[0] += float(total)
            kept[1] += count
        self.last = {name: total / count for name, (total, count) in self.epoch.items()}

    @property
    def step(self) -> int:
        """Updates so far."""
        return self.updates

    @property
    def improved(self) -> bool:
        """Whether the loss on held-out data was lower than ever, just now."""
        return self.lowest_after is not None and self.lowest_after == self.updates

    @property
    def score(self) -> float | None:
        """Minus the loss on held-out data, where it has just been measured to be the lowest so far."""
        return -self.lowest if self.improved and self.lowest is not None else None

    def state(self) -> tuple[Arrays, State]:
        """What a checkpoint holds. The data's order and dropout follow from the seed and the number of the update."""
        state = numbers_of(self, NUMBERS) | {"watch": self.watch.state(), "best": self.best is not None}
        if not self.updates:
            return {}, state  # everything is as it was at the start
        arrays = learned(self.parameters, self.optimizer)
        if self.best is not None:
            arrays |= {f"best/{name}": to_array(weight) for name, weight in self.best.items()}
        return arrays, state

    def restore(self, arrays: Arrays, state: Mapping[str, Any]) -> None:
        """Be where :meth:`state` was taken; ``arrays`` is emptied."""
        set_numbers(self, NUMBERS, {"best_evaluated": {}} | dict(state))  # checkpoints of before lack it
        self.watch.restore(state["watch"])
        self.before = self.prompts
        saved = Saved(arrays)
        if self.updates:
            learn_again(self.parameters, self.optimizer, saved)
        if not isinstance(state["best"], bool):
            raise TypeError("best is neither true nor false")
        if state["best"]:
            self.best = {name: saved.fill(torch.empty_like(p.data), f"best/{name}") for name, p in self.parameters}
        saved.all_used()

    @property
    def unfinished(self) -> bool:
        """Whether it was stopped before its end."""
        return self.updates < self.total and self.ended_early is None

    def result(self, seconds: float) -> dict[str, Any]:
        """The run in numbers; ``seconds`` is how long it went on."""
        reached = {name: value for name, value in (self.evaluated or self.last).items() if math.isfinite(value)}
        rate = (lambda count: count / seconds) if seconds > 0 and self.updates else (lambda count: None)
        return {
            "prompts": self.prompts,
            "pairs": self.pairs,
            "prompts_per_second": rate(self.prompts),
            "pairs_per_second": rate(self.pairs),
            "tokens_per_second": rate(self.tokens),
            "final_loss": reached.get("loss"),
            "accuracy": reached.get("accuracy"),
            "metrics": reached,
            "reference_seconds": self.learner.reference_seconds,
            "updates": self.updates,
            "best_update": self.lowest_after if self.best is not None else None,
            "utilization": self.operations / self.matrix_rate / self.updating if self.updating else None,
        }


def evaluate_examples(method: Method, examples: Sequence[Example], *, batch_size: int) -> Metrics:
    """Loss and metrics of examples, as means over all of them whatever the batches; gradients and modes are the caller's."""
    denominators = method.denominators(examples)
    loss, sums = 0.0, Sums()
    by_length = sorted(examples, key=lambda e: e.tokens)
    for begin in range(0, len(by_length), batch_size):
        share = method.parts(by_length[begin : begin + batch_size], denominators)
        loss += float(share.loss)
        add_sums(sums, share.sums)
    return {"loss": loss} | {name: float(total) / count for name, (total, count) in sums.items()}
