"""From a configuration to a run's folder: prepare, train until the end or a stop, and keep the model whatever happens."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedTokenizerFast

from surefoot.alignment.configuration import AlignConfiguration
from surefoot.alignment.data.tokenization.tokenizer import load_tokenizer
from surefoot.alignment.durability.keeping import Keeper
from surefoot.alignment.durability.start import StartKeeper, clear_start, start_checksum
from surefoot.alignment.durability.state import Arrays, State
from surefoot.alignment.learning.memory import memory_in_a_sentence
from surefoot.alignment.learning.offline import Offline
from surefoot.alignment.models.card import model_card
from surefoot.alignment.models.runs import model_of
from surefoot.alignment.models.saving import rehearse_saving, save_model
from surefoot.alignment.rlhf.online import Online
from surefoot.errors import RunError, UsageError, on_one_line, require, shown
from surefoot.runs.checkpoints import Checkpoint
from surefoot.runs.directory import CONFIGURATION_FILE, MODEL_FOLDER, SUMMARY_FILE, create_run_folder, write_json
from surefoot.runs.launchers import refuse_several_processes
from surefoot.runs.lock import LOCK_FILE, RunLock
from surefoot.runs.metrics import MetricsWriter
from surefoot.runs.progress import Progress
from surefoot.runs.stopping import StopRequest

CARD = ("final_loss", "accuracy", "reward", "kl_reference", "prompts", "pairs", "answers", "interrupted")
"""Of a run's results, what its model's card states."""


class Run(Protocol):
    """Learning, from given answers or from its own."""

    ended_early: str | None
    """Why it ended before its time, where it did so by itself."""
    skipped_in_row: int
    """Updates that were left out one after the other, up to now."""

    def advance(self) -> Iterator[None]:
        """One update, or iteration, at a time, from where it is."""
        ...

    def finish(self) -> None:
        """Settle which weights are kept, whatever ended the run."""
        ...

    def state(self) -> tuple[Arrays, State]:
        """Everything that the run's future depends on and that does not follow from its settings, its data and its start."""
        ...

    def restore(self, arrays: Arrays, state: Mapping[str, Any]) -> None:
        """Be where :meth:`state` was taken; ``arrays`` is emptied, so that nothing is held twice.

        Raises:
            UsageError: it was taken of another run.
        """
        ...

    @property
    def prompts(self) -> int:
        """Learnt from, or asked, so far; every epoch counts."""
        ...

    @property
    def step(self) -> int:
        """Updates, or iterations, so far."""
        ...

    @property
    def between_updates(self) -> bool:
        """Whether the state is that after a whole number of them, with their reports."""
        ...

    @property
    def improved(self) -> bool:
        """Whether it has just been measured to be better than ever."""
        ...

    @property
    def score(self) -> float | None:
        """How good it is, the more the better; None where that is not known now."""
        ...

    @property
    def unfinished(self) -> bool:
        """Whether it was stopped before its end."""
        ...

    def result(self, seconds: float) -> dict[str, Any]:
        """The run in numbers; ``seconds`` is how long it went on."""
        ...


@dataclass(frozen=True, eq=False)
class Session:
    """What one process trains: a run from its start, or from a checkpoint on."""

    configuration: AlignConfiguration
    tokenizer: PreTrainedTokenizerFast
    prepared: Offline | Online
    folder: Path
    """The run's, which this process alone writes to."""
    command: str
    """The command line of the run's start, for the model card."""
    checkpoint: Checkpoint | None = None


@memory_in_a_sentence()
def align(
    configuration: AlignConfiguration, *, quiet: bool = False, started: float | None = None, command: str | None = None
) -> dict[str, Any]:
    """Train, and keep the run in a folder whose ``model`` plain transformers opens.

    Args:
        configuration: what to train and how.
        quiet: no progress.
        started: ``time.time()`` of the process's start, so that start-up includes imports; now by default.
        command: the command line, for the model card.

    Returns:
        what ``surefoot align --json`` prints: method, run, model, peak_mb, seconds, startup_seconds (imports, loading, tokenising and a
        reference that is evaluated beforehand; rates exclude it), interrupted, ended_early, utilization (operations that the updates
        needed ÷ their time ÷ the measured rate of matrix products). From given answers also: prompts and pairs trained on (every
        epoch counts), prompts_per_second, pairs_per_second and tokens_per_second (prompt tokens once per update, and answers'),
        final_loss and accuracy (of the held-out data where there are some, else the means of the last epoch), reference_seconds and
        best_update (with patience). Of PPO: :meth:`surefoot.alignment.rlhf.online.OnlineRun.result`.

    Raises:
        UsageError: something in the configuration or the data cannot be used.
        RunError: the loss or the gradient is not finite, or the disk is full; what was learnt before is saved where that is
            possible.
    """
    started = time.time() if started is None else started
    refuse_several_processes()
    configuration = replace(configuration, model=replace(configuration.model, model=model_of(configuration.model.model)))
    training, method = configuration.training, configuration.method
    tokenizer = load_tokenizer(configuration.model.model, trust_remote_code=configuration.model.trust_remote_code)
    folder = create_run_folder(training.out, name=f"{method}-{Path(configuration.model.model).name}")
    with RunLock(folder):
        try:
            clear_start(folder)
            session = _begin(configuration, tokenizer, folder, command or f"surefoot align {method}", quiet=quiet)
        except BaseException:
            _leave(folder)
            raise
        return train(session, quiet=quiet, started=started)


def _begin(
    configuration: AlignConfiguration, tokenizer: PreTrainedTokenizerFast, folder: Path, command: str, *, quiet: bool
) -> Session:
    """A new run: its data and models, and its folder with all that a process needs to begin it again."""
    keep = None if configuration.training.checkpoint_every is None else StartKeeper(folder, tokenizer)
    prepared = prepare(configuration, tokenizer, teller(quiet), quiet=quiet, keep=keep)
    found = Path(configuration.model.model).expanduser()
    resolved = str(found.resolve()) if found.exists() else None
    recorded = configuration.as_dict() | prepared.recorded | {"model_folder": resolved}
    if keep is not None:
        again = {"start": start_checksum(folder), "fingerprints": prepared.fingerprints()}
        recorded |= again | {"directory": os.getcwd(), "command": command}
    session = Session(configuration, tokenizer, prepared, folder, command)
    rehearse_saving(prepared.model, tokenizer, configuration.model.model)
    _card(session, {})
    write_json(folder / CONFIGURATION_FILE, recorded)
    return session


def prepare(
    configuration: AlignConfiguration, tokenizer: PreTrainedTokenizerFast, tell: Callable[[str], None], **options: Any
) -> Offline | Online:
    """Data and models of a configuration; see :meth:`Offline.prepare` and :meth:`Online.prepare`."""
    kind = Online if configuration.method == "ppo" else Offline
    return kind.prepare(configuration, tokenizer, tell, **options)


def teller(quiet: bool) -> Callable[[str], None]:
    """What takes sentences for the user."""

    def tell(sentence: str) -> None:
        if shown(sentence, quiet=quiet):
            print(on_one_line(sentence), file=sys.stderr, flush=True)

    return tell


def train(session: Session, *, quiet: bool, started: float) -> dict[str, Any]:
    """Go on until the end or a stop, and keep model and summary.

    Args:
        session: what is trained, and where from.
        quiet: no progress.
        started: ``time.time()`` of the process's start.

    Returns:
        what :func:`align` returns, of the whole run.
    """
    configuration, prepared, folder, checkpoint = session.configuration, session.prepared, session.folder, session.checkpoint
    name = Path(configuration.model.model).name
    before: Mapping[str, Any] = {} if checkpoint is None else _whole(checkpoint)
    spent = before.get("seconds", {"startup": 0.0, "training": 0.0})
    with StopRequest().listening() as stop, ExitStack() as stack:
        tensorboard, position = configuration.training.tensorboard, before.get("metrics")
        writer = stack.enter_context(MetricsWriter(folder, tensorboard=tensorboard, resume=position))
        for sentence in writer.notices:
            teller(quiet)(sentence)
        done = before.get("prompts", 0)
        progress = Progress(f"{configuration.method} {name}", prepared.prompts, done=done, unit="prompts", quiet=quiet)
        run: Run = prepared.start(folder, writer, stack.enter_context(progress))
        if checkpoint is not None:
            _restore(run, checkpoint)
            if any(change.step == checkpoint.step for change in configuration.learning_rate_changes):
                run.skipped_in_row = 0  # they were left out at another rate
        startup = spent["startup"] + time.time() - started
        start = time.perf_counter()

        def seconds() -> dict[str, float]:
            return {"startup": startup, "training": spent["training"] + time.perf_counter() - start}

        at = None if checkpoint is None else checkpoint.step
        keeper = Keeper(folder, run, writer, configuration, seconds, kept_at=at, best_score=before.get("best_score"))
        try:
            _advance(run, keeper, stop, new=checkpoint is None)
        except Exception:  # and not what stops a process at once
            with suppress(RunError):  # what came first is what is said
                _keep_model(session, run, seconds())
            raise
        result = _keep_model(session, run, seconds())
    write_json(folder / SUMMARY_FILE, result)
    return result


def _advance(run: Run, keeper: Keeper, stop: StopRequest, *, new: bool) -> None:
    """Go on until the end or a stop, with a checkpoint where one is due, at the beginning and at the end."""
    try:
        if new:
            keeper.keep()
        with memory_in_a_sentence():
            for _ in run.advance():
                if stop.signal is not None or run.ended_early is not None:
                    break
                keeper.keep_if_due()
        keeper.keep()
    except RunError as error:
        if (with_place := keeper.failed(error)) is error:
            raise
        raise with_place from error


def _keep_model(session: Session, run: Run, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Save what was learnt, however far that is; returns the run in numbers."""
    configuration, prepared, folder = session.configuration, session.prepared, session.folder
    run.finish()
    result = {
        "method": configuration.method,
        "run": str(folder),
        "model": str(folder / MODEL_FOLDER),
        **run.result(seconds["training"]),
        "peak_mb": peak_megabytes(),
        "seconds": sum(seconds.values()),
        "startup_seconds": seconds["startup"],
        "interrupted": run.unfinished,
        "ended_early": run.ended_early,
    }
    prepared.likelihood.release()
    save_model(prepared.model, session.tokenizer, folder / MODEL_FOLDER, card=_card(session, result))
    return result


def _card(session: Session, result: Mapping[str, Any]) -> str:
    """The model's card; written once without a result at the start too, since what fails there costs no training."""
    configuration = session.configuration
    return model_card(
        method=configuration.method,
        base_model=configuration.model.model,
        command=session.command,
        data=session.prepared.description,
        settings=configuration.as_dict(),
        metrics={name: result[name] for name in CARD if result.get(name) is not None},
        chat=session.tokenizer.chat_template is not None,
        ends=session.prepared.ends,
    )


def _whole(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """A checkpoint's state, with everything in it that is read here."""
    state = checkpoint.state
    seconds = state.get("seconds")
    times = [seconds.get(name) for name in ("startup", "training")] if isinstance(seconds, dict) else [None]
    good = all(isinstance(time, float) and time >= 0 for time in times) and type(state.get("prompts")) is int
    good &= isinstance(state.get("best_score", ""), float | None)
    if not good or not isinstance(state.get("metrics"), dict) or not isinstance(state.get("run"), dict):
        raise UsageError(f"the checkpoint at {checkpoint.step} is not that of a run of alignment, or is of another version")
    return state


def _restore(run: Run, checkpoint: Checkpoint) -> None:
    try:
        run.restore(checkpoint.arrays, checkpoint.state["run"])
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UsageError(f"the checkpoint at {checkpoint.step} is of another version, or was altered: {error!r}") from error
    require(run.step == checkpoint.step, f"the checkpoint at {checkpoint.step} says that it is of {run.step}; it was altered")


def peak_megabytes() -> float:
    """The most memory that the process has held: on a GPU its own, else resident."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _leave(folder: Path) -> None:
    """Remove what was written of a run that did not begin, and the folder if there is nothing else."""
    with suppress(UsageError, OSError):
        clear_start(folder)
    with suppress(OSError):
        (folder / LOCK_FILE).unlink()
        folder.rmdir()
