"""``surefoot demo``: see that everything works."""

from __future__ import annotations

from dataclasses import dataclass, field

import tyro

from surefoot.commands.options import DONE, FAILED, Output, parse


@dataclass(frozen=True)
class Demo:
    """Train PPO on CartPole-v1 and show that it learns: about half a minute, nothing to choose."""

    out: str | None = None
    """Folder of the run; by default runs/demo-TIME."""
    seed: int = 0
    """Seed of the run."""
    output: tyro.conf.OmitArgPrefixes[Output] = field(default_factory=Output)


def run(arguments: list[str], *, started: float) -> int:
    """Run the demo; ``started`` is when the process began."""
    chosen: Demo = parse(Demo, arguments, program="surefoot demo")
    from surefoot.demo import run_demo

    result = run_demo(out=chosen.out, seed=chosen.seed, quiet=chosen.output.quiet, started=started)
    chosen.output.give(result)
    return DONE if result["learned"] else FAILED
