"""``surefoot evaluate``: how good a trained policy is."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from surefoot.commands.options import DONE, Output, parse
from surefoot.control.configuration import Backend


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


def run(arguments: list[str]) -> int:
    """Evaluate, and report."""
    chosen: Evaluate = parse(Evaluate, arguments, program="surefoot evaluate")
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
