"""``surefoot task``: something to learn, generated."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from surefoot.alignment.tasks.files import MODEL, PAIRS, SUPERVISED, TaskConfiguration, write_grammar_task
from surefoot.commands.options import DONE, WRONG_INPUT, Output, parse
from surefoot.errors import UsageError

TASKS = {"grammar": "judgements in which negation, intensity and reference decide the reward: data, and a tiny untrained model"}


@dataclass(frozen=True)
class Grammar:
    """Write a generated language task: JSONL files for every method of `surefoot align`, and a tiny untrained model."""

    out: Path
    """Folder for the data and the model."""
    configuration: tyro.conf.OmitArgPrefixes[TaskConfiguration] = field(default_factory=TaskConfiguration)
    output: tyro.conf.OmitArgPrefixes[Output] = field(default_factory=Output)


def run(arguments: list[str]) -> int:
    """Write a task."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: surefoot task TASK --out FOLDER ...\n\ntasks:")
        for name, summary in TASKS.items():
            print(f"  {name:<8} {summary}")
        print("\n`surefoot task TASK --help` lists a task's options.")
        return DONE if arguments else WRONG_INPUT
    if arguments[0] not in TASKS:
        raise UsageError(f"there is no task {arguments[0]!r}; there is {', '.join(TASKS)}")
    chosen: Grammar = parse(Grammar, arguments[1:], program="surefoot task grammar")
    written = write_grammar_task(chosen.out, chosen.configuration)
    if not chosen.output.quiet:
        print(
            f"written to {chosen.out}: {written[SUPERVISED]:,} demonstrations, {written[PAIRS]:,} pairs and as many rankings of"
            f" {chosen.configuration.answers}, two sets of held-out pairs and an untrained model; on noisy.jsonl the true"
            f" reward itself has an accuracy of {written['ceiling']:.3f}\n"
            f"next: surefoot align sft --model {chosen.out / MODEL} --data {chosen.out / SUPERVISED} --learning-rate 3e-3"
            f" --epochs 2 --out {chosen.out / 'sft'}",
            file=sys.stderr,
        )
    chosen.output.give({"task": arguments[0], "folder": str(chosen.out), **written})
    return DONE
