"""Commands run in turn on the same work, A B C, A B C, …, and compared as the median of paired ratios."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
LESS_IS_BETTER = ("process_seconds", "peak_mb")


@dataclass(frozen=True)
class Side:
    """A command; `ours` ones are surefoot's, and get a folder to write to."""

    name: str
    command: str
    ours: bool = False
    environment: str = ""
    """A variable to set, NAME=VALUE."""


@dataclass(frozen=True)
class Comparison:
    ours: str
    peer: str
    floor: float
    aim: float
    measure: str | None = None
    """Which number counts; the group's by default. Where less is better a ratio is peer ÷ ours."""


@dataclass(frozen=True)
class Group:
    sides: tuple[Side, ...]
    comparisons: tuple[Comparison, ...]
    measure: str = "steps_per_second"


Finish = Callable[[Side, Path, dict], None]
"""Adds to a side's result while its folder is still there."""


def run(side: Side, folder: Path, attempt: int, finish: Finish) -> dict:
    """Run one side once; returns the JSON that it prints, with the seconds of the whole process."""
    environment = dict(os.environ)
    if side.environment:
        name, _, value = side.environment.partition("=")
        environment[name] = str(folder / (f"empty-{attempt}" if value == "empty" else value))
    command = shlex.split(side.command)
    out = folder / f"{side.name.replace(' ', '-')}-{attempt}"
    if side.ours:
        command = [sys.executable, "-m", "surefoot", *command, "--out", str(out)]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    seconds = time.perf_counter() - start
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    result = json.loads(done.stdout.splitlines()[-1])
    for path in ("run", "model"):
        result.pop(path, None)
    result["process_seconds"] = result.get("seconds_from_start", seconds)  # the peer's own evaluation does not count
    finish(side, out, result)
    shutil.rmtree(out, ignore_errors=True)
    return result


def run_group(name: str, group: Group, *, rounds: int, libraries: Sequence[str], finish: Finish) -> dict:
    """Run all sides in turn, `rounds` times."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        if any(side.environment.endswith("kept") for side in group.sides):
            kept = next(side for side in group.sides if side.environment.endswith("kept"))
            run(kept, Path(folder), -1, finish)  # fills the cache
        for attempt in range(rounds):
            row = {}
            for side in group.sides:
                row[side.name] = run(side, Path(folder), attempt, finish)
                print(f"{name} {attempt} {side.name}: {row[side.name][group.measure]:,.2f} {group.measure}", file=sys.stderr)
            rows.append(row)
    comparisons = []
    for c in group.comparisons:
        measure = c.measure or group.measure
        pairs = [(row[c.ours][measure], row[c.peer][measure]) for row in rows]
        ratios = [theirs / mine if measure in LESS_IS_BETTER else mine / theirs for mine, theirs in pairs]
        comparisons.append(
            {
                "ours": c.ours,
                "peer": c.peer,
                "measure": measure,
                "ratio": statistics.median(ratios),
                "ratios": ratios,
                "floor": c.floor,
                "aim": c.aim,
                "ours_median": statistics.median(mine for mine, _ in pairs),
                "peer_median": statistics.median(theirs for _, theirs in pairs),
            }
        )
    return {
        "group": name,
        "measure": group.measure,
        "commands": {
            side.name: ("surefoot " if side.ours else "") + side.command.replace(f"{ROOT}/", "") for side in group.sides
        },
        "comparisons": comparisons,
        "rounds": rows,
        "date": time.strftime("%Y-%m-%d"),
        "machine": {"cpus": os.cpu_count(), "processor": processor()},
        "versions": {name: version(name) for name in libraries},
    }


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def main(
    groups: Mapping[str, Group],
    *,
    description: str | None,
    results: Path,
    libraries: Sequence[str],
    finish: Finish = lambda side, out, result: None,
) -> None:
    """The command line of a script of groups."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", help=f"groups to run, of {', '.join(groups)}; all by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=results)
    arguments = parser.parse_args()
    for name in arguments.groups or groups:
        result = run_group(name, groups[name], rounds=arguments.rounds, libraries=libraries, finish=finish)
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
        for c in result["comparisons"]:
            reached = "aim" if c["ratio"] >= c["aim"] else "floor" if c["ratio"] >= c["floor"] else "NOTHING"
            print(
                f"{name}: {c['ours']} against {c['peer']}: {c['ratio']:.2f} × ({c['ours_median']:,.1f} to {c['peer_median']:,.1f}"
                f" {c['measure']}; floor {c['floor']}, aim {c['aim']}): {reached} reached",
                flush=True,
            )
