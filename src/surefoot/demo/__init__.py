"""The demo: the whole road in about three minutes, from a pole on a cart to a language model that learnt what people prefer."""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path
from typing import Any

from surefoot.demo.control import balance_a_pole

LIBRARIES = ("torch", "transformers", "peft", "datasets")


def run_demo(*, out: str | None, seed: int, quiet: bool, started: float) -> dict[str, Any]:
    """PPO on CartPole-v1; then, on a generated language task, fine-tuning, a reward model, and PPO and DPO from the same start.

    Returns:
        ``control`` and ``language``, each with its own numbers, whether both have ``learned`` what they should, and ``seconds``.
        ``language`` is None where the libraries of the extra ``alignment`` are not installed, which is said.
    """
    folder = Path(out or f"runs/demo-{time.strftime('%Y%m%d-%H%M%S')}")

    def say(line: str) -> None:
        if not quiet:
            print(line, file=sys.stderr, flush=True)

    control = balance_a_pole(folder / "cartpole", seed=seed, quiet=quiet, started=started, say=say)
    language = None
    if control["interrupted"]:
        pass
    elif missing := [name for name in LIBRARIES if importlib.util.find_spec(name) is None]:
        say(f"\nThe second half trains language models, and needs {missing[0]}: pip install 'surefoot[alignment]'")
    else:
        from surefoot.demo.language import follow_the_road

        language = follow_the_road(folder, seed=seed, quiet=quiet, say=say)
    return {
        "control": control,
        "language": language,
        "learned": control["learned"] and (language is None or language["learned"]),
        "seconds": time.time() - started,
    }
