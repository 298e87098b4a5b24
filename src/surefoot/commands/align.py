"""``surefoot align``: fine-tuning, reward models, DPO and PPO on Hugging Face models."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from surefoot.alignment.configuration import METHODS, REQUIRED, AlignConfiguration, MethodName, configure
from surefoot.commands.options import DONE, FAILED, WRONG_INPUT, Output, given, parse_configuration, value_of
from surefoot.errors import UsageError
from surefoot.runs.directory import CHECKPOINTS_FOLDER

ANSWERS = "a file of prompts and answers, or a name on the Hugging Face hub"
DATA = dict.fromkeys(("sft", "reward", "dpo"), ANSWERS) | {"ppo": "a file of prompts, or a name on the Hugging Face hub"}


def run(arguments: list[str], *, started: float) -> int:
    """Align; ``started`` is when the process began."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: surefoot align METHOD --model MODEL --data DATA ...\n\nmethods:")
        for name, summary in METHODS.items():
            print(f"  {name:<8} {summary}")
        print("\n`surefoot align METHOD --help` lists a method's options.")
        return DONE if arguments else WRONG_INPUT
    method: Any = arguments[0]
    if method not in METHODS:
        *most, last = METHODS
        raise UsageError(f"there is no method {method!r}; there are {', '.join(most)} and {last}")
    configuration, output = _options(method, arguments[1:])
    from surefoot.alignment.training import align

    command = shlex.join(["surefoot", "align", *arguments])
    result = align(configuration, quiet=output.quiet, started=started, command=command)
    status = report(result)
    output.give(result)
    return status


def _options(method: MethodName, arguments: list[str]) -> tuple[AlignConfiguration, Output]:
    """The options of one method: the parts of its configuration side by side."""
    wanted = [("--model", "a folder with a Hugging Face model, or a name on the Hugging Face hub"), ("--data", DATA[method])]
    if method == "ppo":
        wanted.append(("--reward", "a reward model's folder, or a Python function as module:function"))
        if option := given(("--top-k", "--top-p"), arguments):
            raise UsageError(
                f"{option} is refused in training: a token that was sampled could leave the next policy's support, and its ratio would"
                " mean nothing; --temperature is what changes sampling, and `surefoot generate` takes --top-k and --top-p"
            )
    if not {"-h", "--help"} & set(arguments):
        for option, what in wanted:
            if value_of(option, arguments) is None:
                raise UsageError(f"{option} is missing; give {what}")
    named = {name: value_of(f"--{name}", arguments) or REQUIRED for name in ("model", "data", "reward")}
    defaults = configure(method, **named)
    return parse_configuration(defaults, arguments, program=f"surefoot align {method}", summary=METHODS[method])


def report(result: dict[str, Any]) -> int:
    """Say how a run ended and how to go on with it; returns the exit status."""
    named = (("loss", "final_loss"), ("accuracy", "accuracy"), ("reward", "reward"), ("KL to the reference", "kl_reference"))
    reached = ", ".join(f"{name} {result[key]:.4g}" for name, key in named if result.get(key) is not None)
    rate = result["prompts_per_second"] or 0.0
    print(
        f"{'stopped early' if result['interrupted'] else 'done'}: {reached}, {result['prompts']:,} prompts in {result['seconds']:.1f} s"
        f" ({result['startup_seconds']:.1f} s of start-up, then {rate:,.1f} prompts/s); model in {result['model']}",
        file=sys.stderr,
    )
    if result["interrupted"] and (Path(result["run"]) / CHECKPOINTS_FOLDER).is_dir():
        print(f"to go on: {shlex.join(['surefoot', 'resume', result['run']])}", file=sys.stderr)
    return FAILED if result["interrupted"] else DONE
