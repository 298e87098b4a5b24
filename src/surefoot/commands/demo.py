"""``surefoot demo``: see that everything works."""

from __future__ import annotations

from dataclasses import dataclass, field

import tyro

from surefoot.commands.options import DONE, FAILED, Output, parse


@dataclass(frozen=True)
class Demo:
    """PPO on CartPole-v1; then fine-tuning, a reward model, PPO and DPO on a tiny language task: about three minutes, nothing to choose."""

    out: str | None = None
    """Folder of the runs; by default runs/demo-TIME."""
    seed: int = 0
    """Seed of everything."""
    output: tyro.conf.OmitArgPrefixes[Output] = field(default_factory=Output)


def run(arguments: list[str], *, started: float) -> int:
    """Run the demo; ``started`` is when the process began."""
    chosen: Demo = parse(Demo, arguments, program="surefoot demo")
    from surefoot.demo import run_demo

    result = run_demo(out=chosen.out, seed=chosen.seed, quiet=chosen.output.quiet, started=started)
    chosen.output.give(result)
    return DONE if result["learned"] else FAILED
