"""``surefoot align``: fine-tuning, reward models and DPO on Hugging Face models."""

from __future__ import annotations

import shlex
import sys
from typing import Any

from surefoot.alignment.configuration import METHODS, REQUIRED, AlignConfiguration, MethodName, configure
from surefoot.commands.options import DONE, FAILED, WRONG_INPUT, Output, parse_configuration, value_of
from surefoot.errors import UsageError


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
    _report(result)
    output.give(result)
    return FAILED if result["interrupted"] else DONE


def _options(method: MethodName, arguments: list[str]) -> tuple[AlignConfiguration, Output]:
    """The options of one method: the parts of its configuration side by side."""
    if not {"-h", "--help"} & set(arguments):
        for option, what in (("--model", "a folder with a Hugging Face model"), ("--data", "a file of prompts and answers")):
            if value_of(option, arguments) is None:
                raise UsageError(f"{option} is missing; give {what}, or a name on the Hugging Face hub")
    defaults = configure(
        method, model=value_of("--model", arguments) or REQUIRED, data=value_of("--data", arguments) or REQUIRED
    )
    return parse_configuration(defaults, arguments, program=f"surefoot align {method}", summary=METHODS[method])


def _report(result: dict[str, Any]) -> None:
    named = (("loss", "final_loss"), ("accuracy", "accuracy"))
    reached = ", ".join(f"{name} {result[key]:.4g}" for name, key in named if result[key] is not None)
    rate = result["prompts_per_second"] or 0.0
    print(
        f"{'stopped early' if result['interrupted'] else 'done'}: {reached}, {result['prompts']:,} prompts in {result['seconds']:.1f} s"
        f" ({result['startup_seconds']:.1f} s of start-up, then {rate:,.1f} prompts/s); model in {result['model']}",
        file=sys.stderr,
    )
