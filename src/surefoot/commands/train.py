"""``surefoot train``: one algorithm, one environment, one run."""

from __future__ import annotations

import shlex
import sys
from typing import Any

from surefoot.commands.options import DONE, FAILED, WRONG_INPUT, Output, parse_configuration, value_of
from surefoot.control.algorithms import ALGORITHMS, Algorithm, algorithm_named
from surefoot.control.configuration import FROM_DATA, TrainConfiguration
from surefoot.errors import UsageError
from surefoot.runs.statistics import readable


def run(arguments: list[str], *, started: float) -> int:
    """Train; ``started`` is when the process began."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: surefoot train ALGORITHM --env ID ...\n\nalgorithms:")
        for algorithm in ALGORITHMS.values():
            print(f"  {algorithm.name:<14} {algorithm.summary}")
        print("\n`surefoot train ALGORITHM --help` lists an algorithm's options.")
        return DONE if arguments else WRONG_INPUT
    algorithm, arguments = algorithm_named(arguments[0]), arguments[1:]
    env = value_of("--env", arguments)
    from_data = value_of("--from-data", arguments)
    if from_data is not None and algorithm.recorded is None:
        able = " and ".join(a.name for a in ALGORITHMS.values() if a.recorded is not None)
        raise UsageError(f"--from-data: {algorithm.name} cannot learn from recorded data; {able} can")
    if env is None and from_data is None and not {"-h", "--help"} & set(arguments):
        raise UsageError("--env is missing; give a Gymnasium id such as --env CartPole-v1")
    configuration, output = _training_options(algorithm, env, arguments, from_data)
    if not output.quiet:
        _tell_preset(algorithm, configuration)
    from surefoot.control.training import train

    result = train(configuration, quiet=output.quiet, started=started)
    status = report(result)
    output.give(result)
    return status


def _training_options(
    algorithm: Algorithm, env: str | None, arguments: list[str], from_data: str | None
) -> tuple[TrainConfiguration, Output]:
    """The options of one algorithm: the parts of its configuration side by side, each with its preset's defaults."""
    source = {} if from_data is None else {"from_data": from_data}
    defaults = algorithm.configure(env or ("ID" if from_data is None else FROM_DATA), **source)
    return parse_configuration(defaults, arguments, program=f"surefoot train {algorithm.name}", summary=algorithm.summary)


def _tell_preset(algorithm: Algorithm, configuration: TrainConfiguration) -> None:
    env, settings = configuration.run.env, configuration.as_dict()
    from_data = settings.get("from_data") is not None
    if not (preset := algorithm.preset_for(env, from_data=from_data)):
        return
    env = "recorded data" if from_data else env
    used = [f"{k} {settings[k]}" for k, v in preset.items() if settings[k] == v]
    changed = [f"{k} {settings[k]} instead of {v}" for k, v in preset.items() if settings[k] != v]
    parts = [", ".join(used)] * bool(used) + [f"by option: {', '.join(changed)}"] * bool(changed)
    print(f"preset for {env}: {'; '.join(parts)}", file=sys.stderr)


def _unfinished(result: dict[str, Any]) -> str:
    """That the mean return is old, where no episode ended lately, and that it may be of the few that ended at all."""
    running, finished = result["running_steps"], result["finished_steps"]
    if result["mean_return"] is None or result["last_finished_episodes"] != 0:
        return ""
    longer = f"; those going on are longer than all that ended together, {running:,} steps to {finished:,}"
    return f" (none ended in the last report{longer if running > finished else ''})"


def report(result: dict[str, Any]) -> int:
    """Say how a run ended and how to go on with it; returns the exit status."""
    reached = "no episode finished" if result["mean_return"] is None else f"mean return {readable(result['mean_return'])}"
    episodes = f"{reached} over the last training episodes{_unfinished(result)}"
    if result["backend"] == "recorded":
        episodes = "learnt from recorded data"
    rate = result["steps_per_second"] or 0.0
    print(
        f"{'stopped early' if result['interrupted'] else 'done'}: {episodes},"
        f" {result['total_steps']:,} steps in {result['seconds']:.1f} s"
        f" ({result['startup_seconds']:.1f} s of start-up, then {rate:,.0f} steps/s); run in {result['run']}",
        file=sys.stderr,
    )
    if summary := result.get("summary"):
        print(
            f"{summary['seeds']} seeds: interquartile mean {readable(summary['interquartile_mean'])},"
            f" 95 % interval {readable(summary['low'])} … {readable(summary['high'])}",
            file=sys.stderr,
        )
    if result["interrupted"] and (last := result["checkpoint"]) is not None:
        kept = "exact" if last["exact"] else "inexact: its environments begin afresh"
        if not last["exact"] and (exact := result["exact_checkpoint"]) is not None:
            kept += f"; with --exact from step {exact:,}, as if it had never been stopped"
        print(
            f"to go on from step {last['step']:,} ({kept}): {shlex.join(['surefoot', 'resume', result['run']])}",
            file=sys.stderr,
        )
    return FAILED if result["interrupted"] else DONE
