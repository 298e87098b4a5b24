"""Sampling against transformers' `generate`: the same model, the same prompts, in turn.

    python benchmarks/sampling_speed.py                # all groups: about six minutes on two quiet cores
    python benchmarks/sampling_speed.py one-answer     # one group

The model is that of alignment_speed.py, a Llama of random weights with 32,000 words, hidden size 256 and 6 layers; float32, 16
prompts of 64 tokens, 64 new tokens each. Rates are those of the sampling calls alone. `four-answers`: four answers to each prompt, which
are computed from one pass over it. `early-ends`: 500 of the words end an answer, so that answers have about 45 tokens; only
tokens up to the end count. Our side also reports bounds: by floating-point operations at the machine's rate for matrix products, and by the
bytes of weights, keys and values that each step reads. Raw results: benchmarks/results/sampling_speed/."""

from __future__ import annotations

import sys

import alignment_speed
import paired
from alignment_speed import MODEL, WORK
from paired import HERE, Comparison, Group, Side


def group(options: str, floor: float, aim: float) -> Group:
    sides = tuple(
        Side(name, f"{sys.executable} {HERE}/peers/generate.py {name} {MODEL} {options}")
        for name in ("surefoot", "transformers")
    )
    return Group(sides, (Comparison("surefoot", "transformers", floor, aim),), "tokens_per_second")


GROUPS = {
    "one-answer": group("", 2.5, 4),
    "four-answers": group("--answers 4", 2.5, 4),
    "early-ends": group("--ends 500", 2.5, 4),
}

if __name__ == "__main__":
    WORK.mkdir(exist_ok=True)
    alignment_speed.write_model(MODEL)
    paired.main(
        GROUPS,
        description=__doc__,
        results=HERE / "results" / "sampling_speed",
        libraries=("surefoot", "torch", "transformers"),
    )
