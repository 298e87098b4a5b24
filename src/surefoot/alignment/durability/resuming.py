"""``surefoot resume`` for runs of alignment: from a checkpoint to the end, as if the run had never stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from surefoot.alignment.configuration import ADDED_LATER, AlignConfiguration, DPOConfiguration
from surefoot.alignment.data.tokenization.tokenizer import load_tokenizer
from surefoot.alignment.durability.keeping import computed_with
from surefoot.alignment.durability.start import call_by_name, reference_folder, verified_start
from surefoot.alignment.learning.memory import memory_in_a_sentence
from surefoot.alignment.rewards.importing import make_importable
from surefoot.alignment.rlhf.configuration import PPOConfiguration
from surefoot.alignment.training import Session, prepare, teller, train
from surefoot.errors import Caution, UsageError, require
from surefoot.runs.checkpoints import Checkpoint, Checkpoints, Damaged
from surefoot.runs.directory import CONFIGURATION_FILE, METRICS_FILE, SUMMARY_FILE, read_json, write_json
from surefoot.runs.launchers import refuse_several_processes
from surefoot.runs.libraries import changed_versions
from surefoot.runs.lock import RunLock
from surefoot.runs.rates import CHANGES, changes_from, rate_at
from surefoot.runs.settings import setting

ABOUT = ("comparison", "reference_fingerprint", "model_folder", "reward_source")
"""What config.json says of every run beside its settings; the second is there where a policy is compared with a reference."""
TO_GO_ON = {"start": str, "fingerprints": dict, "directory": str, "command": str}
"""What it says of a run with checkpoints."""
MAY_CHANGE = ("tensorboard", "checkpoint_every", "keep_checkpoints", "on_nonfinite", "epochs", "out", "samples_every", "cache")
"""Settings that a run can go on with changed."""
PLACES = ("model", "data", "split", "eval_data", "reward", "reference_cache")
"""Those that say where something lies, which is compared itself."""


@memory_in_a_sentence()
def resume_alignment(
    run: str | Path,
    *,
    epochs: int | None = None,
    learning_rate: float | None = None,
    exact: bool = False,
    quiet: bool = False,
    started: float | None = None,
) -> dict[str, Any]:
    """Go on with a run of ``surefoot align`` from its last whole checkpoint, to its end.

    The model that the run began with comes from the run's own folder, never from where it was first found; data and reward are read
    again, and must be what they were. On the same machine, with the same libraries and as many threads, what comes out has the bits of
    a run that was never stopped.

    Args:
        run: its folder.
        epochs: raise the passes over the data to so many; None leaves them.
        learning_rate: the highest step size from there on, in place of the one that the run has; its schedule goes on with it. Where
            updates were left out when the run ended, it goes on from a checkpoint before them, if there is one.
        exact: take no checkpoint that is marked inexact; of alignment all in ``checkpoints`` are exact.
        quiet: no progress.
        started: ``time.time()`` of the process's start; now by default.

    Returns:
        what :func:`surefoot.alignment.training.align` returns, of the whole run.

    Raises:
        UsageError: the run is finished, in use, or has no whole checkpoint; its settings, its start, the data or the reward model are not
            what they were; or there are fewer epochs than before.
        RunError: as while training.
    """
    refuse_several_processes()
    started, run, tell = time.time() if started is None else started, Path(run), teller(quiet)
    recorded = read_json(run / CONFIGURATION_FILE)
    settings = {name: value for name, value in recorded.items() if name not in (*ABOUT, *TO_GO_ON)}
    try:
        configuration = AlignConfiguration.from_dict(settings)
    except UsageError as error:
        raise UsageError(
            f"{run / CONFIGURATION_FILE} cannot be used: {error}; it was altered, or is of another version"
        ) from error
    require(
        configuration.training.checkpoint_every is not None,
        f"{run} has no checkpoint to go on from: it was trained without --checkpoint-every",
    )
    wrong = [name for name, kind in TO_GO_ON.items() if not isinstance(recorded.get(name), kind)]
    require(not wrong, f"{run / CONFIGURATION_FILE} does not say {', '.join(wrong)} as it did; it was altered")
    with RunLock(run):
        epochs = setting("epochs", epochs, int | None)
        longer = _with_epochs(configuration, epochs)
        _refuse_finished(run, longer=longer != configuration)
        checkpoints = Checkpoints(run, keep=configuration.training.keep_checkpoints)
        checkpoint = _latest(run, checkpoints, configuration, tell, exact=exact, back=learning_rate is not None)
        longer = _with_rate(longer, checkpoint, learning_rate, tell)
        if checkpoint is not None and checkpoint.state["settings"].get("epochs") != longer.training.epochs:
            tell(Caution(_about_other_epochs(longer)))
        session = _session(longer, recorded, run, checkpoint, tell, quiet=quiet)
        # From here on the folder changes.
        if checkpoint is not None:
            checkpoints.forget_after(checkpoint.step)
        (run / SUMMARY_FILE).unlink(missing_ok=True)
        before = {name: value for name, value in recorded.items() if name != CHANGES}
        write_json(run / CONFIGURATION_FILE, before | longer.as_dict())
        return train(session, quiet=quiet, started=started)


def _latest(
    run: Path,
    checkpoints: Checkpoints,
    configuration: AlignConfiguration,
    tell: Callable[[str], None],
    *,
    exact: bool,
    back: bool,
) -> Checkpoint | None:
    """Where the run goes on; None where it was stopped before it had done or kept anything.

    ``back`` goes back to before the updates that were left out in a row, where a checkpoint of then is whole: the step that made the
    next ones impossible is taken once more.
    """
    try:
        checkpoint, passed_over = checkpoints.latest(exact=exact)
    except UsageError:
        metrics = run / METRICS_FILE
        if checkpoints.steps() or (metrics.exists() and metrics.stat().st_size):
            raise
        tell("it was stopped before its first checkpoint, and begins at its start")
        return None
    for earlier in reversed(checkpoints.steps()) if back and _left_out(checkpoint) else ():
        with suppress(Damaged):
            if earlier < checkpoint.step and not _left_out(found := checkpoints.read(earlier)):
                said = f"{_left_out(checkpoint)} updates were left out in a row; it goes on from before them"
                passed_over.append(Caution(said))
                checkpoint = found
                break
    for sentence in passed_over:
        tell(sentence)
    step = "iteration" if configuration.method == "ppo" else "update"
    tell(f"going on from the checkpoint at {step} {checkpoint.step:,}, which is {'exact' if checkpoint.exact else 'not exact'}")
    before, libraries = checkpoint.state.get("settings"), checkpoint.state.get("computed_with")
    if not isinstance(before, dict) or not isinstance(libraries, dict):
        raise UsageError(f"the checkpoint at {checkpoint.step} is not that of a run of alignment, or is of another version")
    rate = rate_at(configuration.learning_rate_changes, configuration.training.learning_rate, checkpoint.step)
    before = {**ADDED_LATER, **before}
    for name, value in (configuration.as_dict() | {"learning_rate": rate}).items():
        if name not in (*MAY_CHANGE, *PLACES, CHANGES) and before.get(name) != value:
            raise UsageError(
                f"{run / CONFIGURATION_FILE} says {name} {value}, where the run had {before.get(name)}; put that back"
            )
    if changed := changed_versions(libraries, computed_with()):
        tell(Caution(f"other than when the checkpoint was written: {changed}; numbers may be rounded otherwise from here on"))
    return checkpoint


def _session(
    configuration: AlignConfiguration,
    recorded: Mapping[str, Any],
    run: Path,
    checkpoint: Checkpoint | None,
    tell: Callable[[str], None],
    *,
    quiet: bool,
) -> Session:
    """Data and models as they were, or a sentence on what is not."""
    start = verified_start(run, recorded["start"])
    own = replace(configuration.model, model=str(start))
    tokenizer = load_tokenizer(str(start), trust_remote_code=own.trust_remote_code)
    found = _paths_from(replace(configuration, model=own), recorded["directory"])
    if isinstance(found.objective, DPOConfiguration) and not found.objective.live_reference and reference_folder(run).is_dir():
        found = replace(found, objective=replace(found.objective, reference_cache=str(reference_folder(run))))
    make_importable(Path(recorded["directory"]))  # where a reward's module may lie
    prepared = prepare(found, tokenizer, tell, quiet=quiet)
    call_by_name(prepared.model, configuration.model.model)
    _compare(prepared.fingerprints(), recorded["fingerprints"], configuration, tell)
    return Session(configuration, tokenizer, prepared, run, recorded["command"], checkpoint)


def _with_epochs(configuration: AlignConfiguration, epochs: int | None) -> AlignConfiguration:
    before = configuration.training.epochs
    if epochs is None:
        return configuration
    require(epochs >= before, f"--epochs may be raised from {before}, but is {epochs}")
    return replace(configuration, training=replace(configuration.training, epochs=epochs))


def _with_rate(
    configuration: AlignConfiguration, checkpoint: Checkpoint | None, learning_rate: float | None, tell: Callable[[str], None]
) -> AlignConfiguration:
    """The configuration with another learning rate from a checkpoint on, where one is given or the checkpoint had another."""
    training, changes = configuration.training, configuration.learning_rate_changes
    rate = training.learning_rate
    if learning_rate is not None:
        training = replace(training, learning_rate=learning_rate)
    if checkpoint is None:  # it begins again, and knows no other
        return replace(configuration, training=training, learning_rate_changes=())
    following = changes_from(changes, rate, checkpoint.step, training.learning_rate)
    if following and following[-1].step == checkpoint.step:
        goes_on = "" if training.learning_rate_schedule == "constant" else "; its schedule goes on from there"
        said = (
            f"from here on the learning rate is {following[-1].after:g} in place of {following[-1].before:g} (--learning-rate)"
        )
        tell(Caution(said + goes_on))
    return replace(configuration, training=training, learning_rate_changes=following)


def _left_out(checkpoint: Checkpoint) -> int:
    """How many updates had been left out one after the other when a checkpoint was written."""
    state = checkpoint.state.get("run")
    state = state.get("learner", state) if isinstance(state, dict) else {}
    count = state.get("skipped_in_row", 0) if isinstance(state, dict) else 0
    return count if type(count) is int else 0


def _about_other_epochs(configuration: AlignConfiguration) -> str:
    training = configuration.training
    if training.learning_rate_schedule == "constant" and training.warmup == 0:
        return f"{training.epochs} epochs: the step size does not depend on how many there are, so this is the run of so many"
    return (
        f"{training.epochs} epochs: the step size, {training.learning_rate_schedule} with a warm-up of {training.warmup:g}, depends"
        " on how many there are, and follows their schedule from here; the result is not that of so many epochs from the start"
    )


def _refuse_finished(run: Path, *, longer: bool) -> None:
    """Raise where there is nothing left to do."""
    if not (run / SUMMARY_FILE).exists():
        return
    summary = read_json(run / SUMMARY_FILE)
    if (ended := summary.get("ended_early")) is not None:
        raise UsageError(f"{run} is finished: it {ended}")
    require(
        summary.get("interrupted") is True or longer,
        f"{run} is finished; --epochs goes on with more passes over the data than it had",
    )


def _compare(
    now: Mapping[str, str], before: Mapping[str, str], configuration: AlignConfiguration, tell: Callable[[str], None]
) -> None:
    """Refuse other data and another reward model; a function may have been mended, which is said."""
    for option in now:
        if now[option] == before.get(option):
            continue
        value = configuration.as_dict()[option.removeprefix("--").replace("-", "_")]
        if isinstance(configuration.objective, PPOConfiguration) and option == "--reward" and ":" in value:
            said = f"--reward {value} is another file than when the run began: from here on this is another run than it would have been"
            tell(Caution(said))
            continue
        raise UsageError(f"{option} {value} is not what the run began with; put that back, or begin a new run")


def _paths_from(configuration: AlignConfiguration, directory: str) -> AlignConfiguration:
    """Relative paths as the process found them that began the run; those that lead nowhere from there stay as they are."""

    def found(name: str | None) -> str | None:
        place, _, function = (name or "").rpartition(":")
        file = place if function and place.endswith(".py") else name
        return name if not file or not Path(directory, file).exists() else str(Path(directory, str(name)))

    changes: dict[str, Any] = {}
    for part, names in (("data", ("data",)), ("training", ("eval_data",)), ("objective", ("reward", "reference_cache"))):
        value: Any = getattr(configuration, part)
        has = {field.name for field in fields(value)} if value is not None else set()
        changes[part] = value if value is None else replace(value, **{n: found(getattr(value, n)) for n in names if n in has})
    return replace(configuration, **changes)
