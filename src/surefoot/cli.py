"""The command line, made from the configuration's dataclasses."""

from __future__ import annotations

import contextlib
import difflib
import io
import itertools
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import tyro

from surefoot.control.algorithms import ALGORITHMS, Algorithm
from surefoot.control.configuration import Backend, TrainConfiguration
from surefoot.errors import RunError, UsageError

STARTED = time.time()
ENGINE = ("jax", "gymnasium", "optax", "flax")
DONE, FAILED, WRONG_INPUT = 0, 1, 2


@dataclass(frozen=True)
class Output:
    """What is printed."""

    json: bool = False
    """Print one JSON object as the last line of standard output."""
    quiet: bool = False
    """No progress."""


@dataclass(frozen=True)
class Evaluate:
    """Run a trained policy for whole episodes in Gymnasium's own environment, and report its return."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    episodes: int = 100
    """How many episodes."""
    deterministic: bool = False
    """Take the most probable action instead of a sample."""
    backend: Backend = "gymnasium-sync"
    """What steps the environment: gymnasium-sync is Gymnasium's own; gymnasium (vectorised), envpool and auto are
    re-implementations."""
    seed: int = 0
    """Seed of environments and actions."""
    output: tyro.conf.OmitArgPrefixes[Output] = field(default_factory=Output)


@dataclass(frozen=True)
class Demo:
    """Train PPO on CartPole-v1 and show that it learns: about half a minute, nothing to choose."""

    out: str | None = None
    """Folder of the run; by default runs/demo-TIME."""
    seed: int = 0
    """Seed of the run."""
    output: tyro.conf.OmitArgPrefixes[Output] = field(default_factory=Output)


HELP = """usage: surefoot COMMAND ...

Policy optimisation that never takes a step it cannot trust.

commands:
  train ALGORITHM --env ID   train a policy in a Gymnasium environment
  evaluate RUN               run a trained policy for whole episodes
  demo                       train PPO on CartPole-v1 and show that it learns

`surefoot COMMAND --help` lists a command's options.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        the exit status: 0 done, 2 the input is wrong (one sentence on standard error), 1 anything else.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = _dispatch(arguments)
        sys.stdout.flush()
        return status
    except UsageError as error:
        print(f"surefoot: {error}", file=sys.stderr)
        return WRONG_INPUT
    except RunError as error:
        print(f"surefoot: {error}", file=sys.stderr)
        return FAILED
    except ModuleNotFoundError as error:
        if error.name not in ENGINE:
            raise
        print(f"surefoot: this needs {error.name}; install it with: pip install 'surefoot[control]'", file=sys.stderr)
        return WRONG_INPUT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read has gone; nobody is there to tell
        return FAILED
    except OSError as error:
        print(f"surefoot: {error.filename or 'output'}: {error.strerror}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("surefoot: stopped at once; what was saved before is kept", file=sys.stderr)
        return FAILED


def entry() -> None:
    """The console script."""
    sys.exit(main())


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return DONE if arguments else WRONG_INPUT
    if arguments[0] == "--version":
        from surefoot import __version__

        print(__version__)
        return DONE
    command, rest = arguments[0], arguments[1:]
    if command == "train":
        return _train(rest)
    if command == "evaluate":
        return _evaluate(_parse(Evaluate, rest, program="surefoot evaluate"))
    if command == "demo":
        return _demo(_parse(Demo, rest, program="surefoot demo"))
    raise UsageError(f"there is no command {command!r}; there are train, evaluate and demo")


def _parse(kind: Any, arguments: list[str], *, program: str, default: Any = None) -> Any:
    """Options to a dataclass; a wrong one becomes a sentence."""
    options: dict[str, Any] = {} if default is None else {"default": default}
    arguments = _spell_none(arguments)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            parsed, unknown = tyro.cli(kind, prog=program, args=arguments, return_unknown_args=True, **options)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UsageError(f"{program}: {_unboxed(complaint.getvalue())}; `{program} --help` lists the options") from None
    if unknown:
        near = difflib.get_close_matches(unknown[0].split("=")[0], _option_names(kind), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"`{program} --help` lists what there is"
        raise UsageError(f"{program} has no option {unknown[0]}; {hint}")
    return parsed


MAY_BE_NONE = ("--max-gradient-norm", "--value-clip-range", "--target-kl", "--clip-range", "--critic-learning-rate")


def _spell_none(arguments: list[str]) -> list[str]:
    """``none`` as the parser spells it, for the options that can be switched off."""
    spelt = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        name, equals, value = argument.partition("=")
        if before in MAY_BE_NONE and argument == "none":
            spelt.append("None")
        elif equals and name in MAY_BE_NONE and value == "none":
            spelt.append(f"{name}=None")
        else:
            spelt.append(argument)
    return spelt


def _unboxed(text: str) -> str:
    """The sentence inside the frame that the parser draws around its complaints, without the frame's title."""
    lines = [re.sub("\x1b\\[[0-9;]*m", "", line) for line in text.splitlines()]
    inside = (line.strip("│ ") for line in lines if not line.startswith(("╭", "╰")))
    kept = itertools.takewhile(lambda line: not line.startswith(("For full helptext", "Argument helptext", "──")), inside)
    return " ".join(line for line in kept if line).rstrip(".")


def _option_names(kind: Any) -> list[str]:
    """The options of a command; the parts of its configuration are dataclasses whose prefixes are left out."""
    names: list[str] = []
    hints = get_type_hints(kind)
    for part in fields(kind):
        inner = hints[part.name]
        names += _option_names(inner) if is_dataclass(inner) else [f"--{part.name.replace('_', '-')}"]
    return names


def _train(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: surefoot train ALGORITHM --env ID ...\n\nalgorithms:")
        for algorithm in ALGORITHMS.values():
            print(f"  {algorithm.name:<14} {algorithm.summary}")
        print("\n`surefoot train ALGORITHM --help` lists an algorithm's options.")
        return DONE if arguments else WRONG_INPUT
    if arguments[0] not in ALGORITHMS:
        *most, last = ALGORITHMS
        raise UsageError(f"there is no algorithm {arguments[0]!r}; there are {', '.join(most)} and {last}")
    algorithm, arguments = ALGORITHMS[arguments[0]], arguments[1:]
    env = _value_of("--env", arguments)
    if env is None and not {"-h", "--help"} & set(arguments):
        raise UsageError("--env is missing; give a Gymnasium id such as --env CartPole-v1")
    configuration, output = _training_options(algorithm, env, arguments)
    if not output.quiet:
        _tell_preset(algorithm, configuration)
    from surefoot.control.training import train

    result = train(configuration, quiet=output.quiet, started=STARTED)
    return _report_training(result, as_json=output.json)


def _training_options(algorithm: Algorithm, env: str | None, arguments: list[str]) -> tuple[TrainConfiguration, Output]:
    """The options of one algorithm: the parts of its configuration side by side, each with its preset's defaults."""
    defaults = algorithm.configure(env or "ID")
    parts = {**defaults.parts(), "output": Output()}
    members = [(name, tyro.conf.OmitArgPrefixes[type(part)], field(default=part)) for name, part in parts.items()]
    kind = make_dataclass(f"Train{algorithm.name}", members, frozen=True)
    kind.__doc__ = algorithm.summary
    chosen = _parse(kind, arguments, program=f"surefoot train {algorithm.name}", default=kind(**parts))
    configuration = replace(defaults, **{name: getattr(chosen, name) for name in defaults.parts()})
    for name, reason in configuration.idle_options().items():
        option = f"--{name.replace('_', '-')}"
        if any(argument.split("=")[0] in (option, option.replace("--", "--no-", 1)) for argument in arguments):
            raise UsageError(f"{option} would do nothing: {reason}; leave it out")
    return configuration, chosen.output


def _tell_preset(algorithm: Algorithm, configuration: TrainConfiguration) -> None:
    env, settings = configuration.run.env, configuration.as_dict()
    if not (preset := algorithm.preset_for(env)):
        return
    used = [f"{k} {settings[k]}" for k, v in preset.items() if settings[k] == v]
    changed = [f"{k} {settings[k]} instead of {v}" for k, v in preset.items() if settings[k] != v]
    print(f"preset for {env}: {', '.join(used)}" + (f"; by option: {', '.join(changed)}" if changed else ""), file=sys.stderr)


def _value_of(option: str, arguments: list[str]) -> str | None:
    """An option's value, before the other options are parsed: the environment decides their defaults."""
    value = None
    for i, argument in enumerate(arguments):
        if argument == option and i + 1 < len(arguments):
            value = arguments[i + 1]
        elif argument.startswith(option + "="):
            value = argument.partition("=")[2]
    return value


def _report_training(result: dict[str, Any], *, as_json: bool) -> int:
    reached = "no episode finished" if result["mean_return"] is None else f"mean return {result['mean_return']:.1f}"
    rate = result["steps_per_second"] or 0.0
    print(
        f"{'stopped early' if result['interrupted'] else 'done'}: {reached} over the last training episodes,"
        f" {result['total_steps']:,} steps in {result['seconds']:.1f} s"
        f" ({result['startup_seconds']:.1f} s of start-up, then {rate:,.0f} steps/s); run in {result['run']}",
        file=sys.stderr,
    )
    if summary := result.get("summary"):
        print(
            f"{summary['seeds']} seeds: interquartile mean {summary['interquartile_mean']:.1f},"
            f" 95 % interval {summary['low']:.1f} … {summary['high']:.1f}",
            file=sys.stderr,
        )
    if as_json:
        print(json.dumps(result))
    return FAILED if result["interrupted"] else DONE


def _evaluate(chosen: Evaluate) -> int:
    from surefoot.control.evaluation import evaluate

    result = evaluate(
        chosen.run, episodes=chosen.episodes, backend=chosen.backend, deterministic=chosen.deterministic, seed=chosen.seed
    )
    if not chosen.output.quiet:
        print(
            f"{result['env']}: mean return {result['mean_return']:.2f} ± {result['std_return']:.2f} (std)"
            f" over {result['episodes']} episodes",
            file=sys.stderr,
        )
    if chosen.output.json:
        print(json.dumps(result))
    return DONE


def _demo(chosen: Demo) -> int:
    from surefoot.demo import run_demo

    result = run_demo(out=chosen.out, seed=chosen.seed, quiet=chosen.output.quiet, started=STARTED)
    if chosen.output.json:
        print(json.dumps(result))
    return DONE if result["learned"] else FAILED
