"""What a pairing of benchmarks/agreement.py is, inputs, and how it reaches code that cannot simply be imported."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest.mock import MagicMock

import numpy as np

from surefoot import equations as eq

Arrays = dict[str, np.ndarray]
Inputs = Callable[[np.random.Generator], Arrays]
TIME, COLUMNS, GAMMA, LAMBDA, N = 37, 5, 0.97, 0.9, 3


PEERS = (
    "rlax", "distrax", "torchrl", "tianshou", "stable-baselines3", "sb3-contrib", "trl", "verl", "openrlhf", "choix", "scipy",
    "jax", "torch", "numpy", "transformers",
)  # fmt: skip


class Pairing(NamedTuple):
    names: tuple[str, ...]
    """Public functions of surefoot.equations that take part."""
    peer: str
    counterpart: str
    library: str
    inputs: Inputs
    ours: Callable[..., Any]
    theirs: Callable[[], Callable[..., Any]]
    """Imports the peer, and returns the call."""
    note: str = ""
    """How the definitions differ, and what the call on one side does about it."""
    gradient: str = ""
    """An argument by which the derivatives are compared as well."""


ROUNDED = "float32 inside"


def normal(shape: tuple[int, ...], *names: str, scale: float = 1.0) -> Inputs:
    return lambda rng: {name: scale * rng.normal(size=shape) for name in names}


def joined(*parts: Inputs) -> Inputs:
    return lambda rng: {k: v for part in parts for k, v in part(rng).items()}


def without(inputs: Inputs, *names: str) -> Inputs:
    return lambda rng: {k: v for k, v in inputs(rng).items() if k not in names}


def rollout(*, truncations: bool = True) -> Inputs:
    """V(s′_t) is V(s_{t+1}) within an episode, as most code has it, and a value of its own at ends."""

    def draw(rng: np.random.Generator) -> Arrays:
        x = {name: rng.normal(size=(TIME, COLUMNS)) for name in ("rewards", "values", "next_values")}
        kind = rng.random((TIME, COLUMNS))
        terminated, truncated = kind < 0.1, (kind > 0.9) & truncations
        x["next_values"][:-1] = np.where((terminated | truncated)[:-1], x["next_values"][:-1], x["values"][1:])
        return x | {"terminated": terminated, "truncated": truncated}

    return draw


def answers(*, holes: bool = False) -> Inputs:
    """Tokens of six answers, time first, padded behind their ends; with ``holes``, tokens of others stand between their own."""

    def draw(rng: np.random.Generator) -> Arrays:
        valid = np.arange(TIME)[:, None] < rng.integers(8, TIME + 1, 6)
        if holes:
            valid &= rng.random(valid.shape) < 0.7
            valid[0] = True
        x = {name: np.where(valid, rng.normal(size=valid.shape), 0.0) for name in ("rewards", "values")}
        following, terminated = np.zeros(valid.shape), np.zeros(valid.shape, bool)
        for column in range(6):
            rows = np.flatnonzero(valid[:, column])
            following[rows[:-1], column], terminated[rows[-1], column] = x["values"][rows[1:], column], True
        return x | {"next_values": following, "terminated": terminated, "truncated": ~valid & False, "valid": valid.astype(int)}

    return draw


def tokens(*names: str, scale: float = 0.5) -> Inputs:
    """Numbers of six answers' tokens, an answer a row, with their mask as PyTorch's code has it: 0 and 1."""

    def draw(rng: np.random.Generator) -> Arrays:
        valid = np.arange(TIME) < rng.integers(8, TIME + 1, (6, 1))
        return {name: scale * rng.normal(size=valid.shape) for name in names} | {"valid": valid.astype(int)}

    return draw


def system(rng: np.random.Generator) -> Arrays:
    square = rng.normal(size=(8, 8))
    return {"matrix": square @ square.T + np.eye(8), "vector": rng.normal(size=8)}


def modules_of(package: str, *bare: str, stubs: tuple[str, ...]) -> Callable[[str], Any]:
    """Modules of an installed package whose ``__init__`` files are passed over, ``bare`` among them: they import engines that serve
    models on many devices. ``stubs`` are such engines that the modules themselves import and the equations do not call."""

    def load(module: str) -> Any:
        for stub in stubs:
            if stub not in sys.modules and importlib.util.find_spec(stub) is None:
                sys.modules[stub] = MagicMock(__spec__=importlib.machinery.ModuleSpec(stub, None))
        if package not in sys.modules:
            found = importlib.util.find_spec(package)
            if found is None:
                raise ModuleNotFoundError(f"{package} is not installed")
            (root,) = found.submodule_search_locations
            for name in (package, *(f"{package}.{part}" for part in bare)):
                sys.modules[name] = types.ModuleType(name)
                sys.modules[name].__path__ = ["/".join((root, *name.split(".")[1:]))]
        return importlib.import_module(f"{package}.{module}")

    return load


verl = modules_of("verl", "trainer", "trainer.ppo", stubs=("ray", "deepspeed"))
openrlhf = modules_of("openrlhf", "models", "trainer", "trainer.ppo_utils", stubs=("ray", "deepspeed"))


def by_column(call: Callable[..., Any]) -> Callable[[], Callable[..., Any]]:
    """``call(rlax, …)`` for every column: rlax takes one row of time."""

    def load() -> Callable[..., Any]:
        import jax
        import rlax

        return lambda **x: jax.vmap(lambda column: call(rlax, **column), in_axes=1, out_axes=1)(x)

    return load


def importer(module: str, call: Callable[..., Any]) -> Callable[[], Callable[..., Any]]:
    """``call(module, …)``, the module imported when the pairing runs."""

    def load() -> Callable[..., Any]:
        found = importlib.import_module(module)
        return lambda **x: call(found, **x)

    return load


def part_of(load: Callable[[str], Any], module: str, call: Callable[..., Any]) -> Callable[[], Callable[..., Any]]:
    """The same for modules of packages that are not imported whole."""

    def prepare() -> Callable[..., Any]:
        importlib.import_module("transformers")  # before stubs, which it would look for
        found = load(module)
        return lambda **x: call(found, **x)

    return prepare


LOGITS = joined(normal((50, 6), "logits", "other", scale=2.0), lambda rng: {"actions": rng.integers(0, 6, 50)})
RETURNS = {"discount": GAMMA, "trace_decay": LAMBDA}


def scores(p: Any, q: Any, actions: Any) -> tuple[Any, ...]:
    return p.log_probability(actions), p.entropy(), p.kl_divergence(q)


def ratio_of(new: Any, old: Any) -> Any:
    return eq.importance_ratio(log_probabilities=new, behavior_log_probabilities=old)
