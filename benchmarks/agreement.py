"""Every public function of surefoot.equations against its counterparts in code that others wrote: the largest differences.

    make peers-agreement/.ready                       # an environment of its own, about 2.5 GB with PyTorch for CPUs
    peers-agreement/bin/python benchmarks/agreement.py                                     # two minutes on two cores

Pairings stand in agreement_control.py and agreement_alignment.py: inputs, what is called here, what is called there. Inputs are
random, with ends of both kinds, padding and masks where both sides have them, in float64 unless a peer computes in float32. A
difference is the largest over all numbers and seeds, divided by the largest number of the result, or by 1 where that is smaller.
Writes benchmarks/results/agreement.json; `python benchmarks/tables.py` makes the table of docs/agreement.md from it.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from agreement_alignment import PAIRINGS as ALIGNMENT
from agreement_control import PAIRINGS as CONTROL
from agreement_sides import PEERS, Pairing
from surefoot import equations

SEEDS = 5
RESULT = Path(__file__).parent / "results" / "agreement.json"
NO_EQUATION = {"Array", "Distribution", "WEIGHTS", "WEIGHT_NEEDS", "Weight", "namespace"}


def converter(pairing: Pairing) -> Callable[[np.ndarray], Any]:
    """The arrays of the library that the peer is written for: both sides get the same."""
    if pairing.library == "torch":
        import torch

        return lambda x: torch.from_numpy(x.copy())
    if pairing.library == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
        return jax.numpy.asarray
    return lambda x: x


def flat(results: Any) -> np.ndarray:
    """All numbers of a result, or of several, in one row."""
    parts = results if isinstance(results, tuple) else (results,)
    return np.concatenate([np.ravel(np.asarray(x.detach() if hasattr(x, "detach") else x, np.float64)) for x in parts])


def gradient(function: Callable[..., Any], arguments: dict[str, Any], name: str, library: str) -> np.ndarray:
    """The derivative of Σ_i (i + 1) y_i / n, y the function's numbers, by one argument: no two outputs weigh the same."""
    others = {k: v for k, v in arguments.items() if k != name}
    if library == "jax":
        import jax
        import jax.numpy as jnp

        def total(x: Any) -> Any:
            y = jnp.ravel(function(**{name: x}, **others))
            return (y * jnp.arange(1, y.size + 1)).sum() / y.size

        return flat(jax.grad(total)(arguments[name]))
    import torch

    x = arguments[name].clone().requires_grad_()
    y = function(**{name: x}, **others).reshape(-1)
    (y * torch.arange(1, len(y) + 1)).sum().div(len(y)).backward()
    return flat(x.grad)


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    if ours.shape != theirs.shape:
        raise ValueError(f"{ours.shape} numbers here, {theirs.shape} there")
    if not np.isfinite(theirs).all():
        raise ValueError("the peer's result is not finite")
    return float(np.abs(ours - theirs).max() / max(1.0, np.abs(theirs).max()))


def compare(pairing: Pairing) -> dict[str, Any]:
    """One row of the result: numbers compared, the largest difference, or why there is none."""
    row = {"ours": list(pairing.names), "peer": pairing.peer, "counterpart": pairing.counterpart, "note": pairing.note}
    try:
        theirs = pairing.theirs()  # imports the peer
        convert, numbers, largest, slopes = converter(pairing), 0, 0.0, 0.0
        for seed in range(SEEDS):
            given = {k: convert(v) for k, v in pairing.inputs(np.random.default_rng(seed)).items()}
            right = flat(theirs(**given))
            numbers += right.size
            largest = max(largest, difference(flat(pairing.ours(**given)), right))
            if pairing.gradient:
                slope = gradient(theirs, given, pairing.gradient, pairing.library)
                numbers += slope.size
                slopes = max(slopes, difference(gradient(pairing.ours, given, pairing.gradient, pairing.library), slope))
    except Exception as error:  # a peer that is missing, or that fails, is a row that says so
        return row | {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
    return row | {"numbers": numbers, "difference": largest} | ({"gradient_difference": slopes} if pairing.gradient else {})


def main() -> None:
    rows = []
    for pairing in (*CONTROL, *ALIGNMENT):
        rows.append(compare(pairing))
        print(json.dumps(rows[-1]), flush=True)
    compared = {name for row in rows if "failed" not in row for name in row["ours"]}
    public = {
        name for name in equations.__all__ if name not in NO_EQUATION and not hasattr(getattr(equations, name), "_fields")
    }
    versions = {}
    for name in PEERS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    report = {
        "command": "python benchmarks/agreement.py",
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "seeds": SEEDS,
        "peers": versions,
        "without_counterpart": sorted(public - compared),
        "rows": rows,
    }
    RESULT.write_text(json.dumps(report, indent=1) + "\n")
    failed = [f"{row['counterpart']}: {row['failed']}" for row in rows if "failed" in row]
    print(
        f"{len(rows)} pairings, {sum(row.get('numbers', 0) for row in rows):,} numbers, {len(failed)} not run",
        *failed,
        sep="\n",
    )


if __name__ == "__main__":
    main()
