"""Everything that an environment may draw from, seeded. Nothing here imports JAX: worker processes start with it.

Beside its own ``np_random``, which Gymnasium seeds in ``reset``, an environment may draw from its spaces, and from generators that a
whole process shares: ``random``, ``numpy.random`` and, where it is loaded, PyTorch's.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv

NAMES = ("action_space", "observation_space", "single_action_space", "single_observation_space")
SHARED, SPACES = 0, 1
"""What seeds are for: no two generators get the same, since two that are alike would draw the same numbers."""


def seed_shared(seed: int) -> None:
    """Seed the generators that this process shares."""
    words = [int(word) for word in np.random.SeedSequence([seed, SHARED]).generate_state(3)]
    random.seed(words[0])
    with contextlib.suppress(TypeError):  # somebody put another kind of generator there, which cannot be seeded anew
        np.random.seed(words[1])
    if (torch := _torch()) is not None:
        torch.manual_seed(words[2])


def seed_environment(environment: gymnasium.Env, seed: int) -> None:
    """Seed what an environment may draw from beside its own generator, which its reset seeds: its spaces, and what is shared.

    Args:
        environment: with its wrappers.
        seed: that its reset is given.
    """
    seed_shared(seed)
    _seed_spaces(environment, seed)


def seed_vector(environments: VectorEnv, seed: int) -> None:
    """Likewise for a vector environment, and for those that it has in this process: environment i with ``seed + i``."""
    seed_shared(seed)
    _seed_spaces(environments, seed)
    for i, environment in enumerate(getattr(environments.unwrapped, "envs", ())):
        _seed_spaces(environment, seed + i)


def _seed_spaces(environment: gymnasium.Env | VectorEnv, seed: int) -> None:
    """Seed the spaces of every layer, which may be its own or those of the layer below."""
    spaces: dict[int, gymnasium.Space] = {}
    layer: Any = environment
    while True:
        found = (getattr(layer, name, None) for name in NAMES)
        spaces |= {id(space): space for space in found if isinstance(space, gymnasium.Space)}
        if layer is layer.unwrapped:
            break
        layer = layer.env
    words = np.random.SeedSequence([seed, SPACES]).generate_state(len(spaces))
    for space, word in zip(spaces.values(), words, strict=True):
        space.seed(int(word))


@contextmanager
def shared_generators_restored() -> Iterator[None]:
    """After it the generators that this process shares are where they were: they are the user's."""
    torch = _torch()
    python, of_numpy = random.getstate(), np.random.get_state(legacy=False)
    of_torch = None if torch is None else torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(of_numpy)
        if torch is not None:
            torch.set_rng_state(of_torch)


def _torch() -> Any:
    """PyTorch, where something has loaded it."""
    torch = sys.modules.get("torch")
    return torch if hasattr(torch, "manual_seed") else None
