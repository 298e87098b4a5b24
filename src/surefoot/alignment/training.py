"""From a configuration to a run's folder: prepare, train until the end or a stop, and keep the model whatever happens."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch

from surefoot.alignment.configuration import AlignConfiguration
from surefoot.alignment.data.tokenization.tokenizer import load_tokenizer
from surefoot.alignment.models.card import model_card
from surefoot.alignment.models.runs import model_of
from surefoot.alignment.models.saving import save_model
from surefoot.alignment.offline import Offline
from surefoot.alignment.rlhf.online import Online
from surefoot.errors import UsageError
from surefoot.runs.directory import CONFIGURATION_FILE, MODEL_FOLDER, SUMMARY_FILE, create_run_folder, write_json
from surefoot.runs.metrics import MetricsWriter
from surefoot.runs.progress import Progress
from surefoot.runs.stopping import StopRequest

CARD = ("final_loss", "accuracy", "reward", "kl_reference", "prompts", "pairs", "answers", "interrupted")
"""Of a run's results, what its model's card states."""


class Run(Protocol):
    """Learning, from given answers or from its own."""

    ended_early: str | None
    """Why it ended before its time, where it did so by itself."""

    def advance(self) -> Iterator[None]:
        """One update, or iteration, at a time."""
        ...

    def finish(self) -> None:
        """Settle which weights are kept, whatever ended the run."""
        ...

    @property
    def unfinished(self) -> bool:
        """Whether it was stopped before its end."""
        ...

    def result(self, seconds: float) -> dict[str, Any]:
        """The run in numbers; ``seconds`` is how long it went on."""
        ...


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
    configuration = replace(configuration, model=replace(configuration.model, model=model_of(configuration.model.model)))
    training, method = configuration.training, configuration.method
    tokenizer = load_tokenizer(configuration.model.model, trust_remote_code=configuration.model.trust_remote_code)

    def tell(sentence: str) -> None:
        if not quiet:
            print(sentence, file=sys.stderr, flush=True)

    folder = create_run_folder(training.out, name=f"{method}-{Path(configuration.model.model).name}")
    prepare = Online.prepare if method == "ppo" else Offline.prepare
    try:
        prepared: Offline | Online = prepare(configuration, tokenizer, tell, quiet=quiet)
    except UsageError:
        with contextlib.suppress(OSError):
            folder.rmdir()  # empty: nothing was done in it
        raise
    found = Path(configuration.model.model).expanduser()
    resolved = str(found.resolve()) if found.exists() else None
    recorded = configuration.as_dict() | prepared.recorded | {"model_folder": resolved}
    write_json(folder / CONFIGURATION_FILE, recorded)
    with StopRequest().listening() as stop, ExitStack() as stack:
        writer = stack.enter_context(MetricsWriter(folder, tensorboard=training.tensorboard))
        label = f"{method} {Path(configuration.model.model).name}"
        progress = stack.enter_context(Progress(label, prepared.prompts, unit="prompts", quiet=quiet))
        run: Run = prepared.start(folder, writer, progress)
        startup = time.time() - started
        start = time.perf_counter()
        try:
            for _ in run.advance():
                if stop.signal is not None or run.ended_early is not None:
                    break
        finally:
            seconds = time.perf_counter() - start
            run.finish()
            result = {
                "method": method,
                "run": str(folder),
                "model": str(folder / MODEL_FOLDER),
                **run.result(seconds),
                "peak_mb": peak_megabytes(),
                "seconds": startup + seconds,
                "startup_seconds": startup,
                "interrupted": run.unfinished,
                "ended_early": run.ended_early,
            }
            prepared.likelihood.release()
            card = model_card(
                method=method,
                base_model=configuration.model.model,
                command=command or f"surefoot align {method}",
                data=prepared.description,
                settings=configuration.as_dict(),
                metrics={name: result[name] for name in CARD if result.get(name) is not None},
                chat=tokenizer.chat_template is not None,
            )
            save_model(prepared.model, tokenizer, folder / MODEL_FOLDER, card=card)
    write_json(folder / SUMMARY_FILE, result)
    return result


def peak_megabytes() -> float:
    """The most memory that the process has held: on a GPU its own, else resident."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
