"""What training changes, as arrays of NumPy's and back, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from surefoot.alignment.learning.optimization import NamedParameters
from surefoot.errors import UsageError

Arrays = dict[str, np.ndarray]
State = dict[str, Any]
"""Numbers, texts, lists and dictionaries of them, as JSON holds them."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW remembers of a parameter, by PyTorch's names, in the parameter's own shape."""
STEPS = "step"
"""How many steps it has taken with it."""


def to_array(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's bits; bfloat16, which NumPy does not know, as whole numbers of 16 bits."""
    tensor = tensor.detach().cpu().contiguous()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


class Saved:
    """Arrays of a checkpoint, of which each finds its place and is held no longer.

    Args:
        arrays: by name; it is emptied.
    """

    def __init__(self, arrays: Arrays) -> None:
        self._left = arrays

    def has(self, name: str) -> bool:
        """Whether there is one of that name left."""
        return name in self._left

    @torch.no_grad()
    def fill(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        """Give a tensor the bits of the array of that name.

        Raises:
            UsageError: there is none, or it is of another kind.
        """
        bits = tensor.dtype if tensor.dtype != torch.bfloat16 else torch.int16
        array = self._left.pop(name, None)
        found = None if array is None else torch.from_numpy(np.array(array))  # a copy: what was read cannot be written to
        # A number without dimensions comes back as one with a single entry.
        if (
            found is None
            or found.dtype != bits
            or found.numel() != tensor.numel()
            or (tensor.dim() and found.shape != tensor.shape)
        ):
            what = "is not there" if found is None else f"is {found.dtype} {tuple(found.shape)}"
            raise UsageError(
                f"the checkpoint is of another run: {name} should be {bits} {tuple(tensor.shape)}, and {what}; config.json or the"
                " checkpoint was altered"
            )
        found = found.reshape(tensor.shape)
        tensor.copy_(found.view(torch.bfloat16) if tensor.dtype == torch.bfloat16 else found)
        return tensor

    def all_used(self) -> None:
        """Make sure that nothing is left over.

        Raises:
            UsageError: there is an array that the run has no place for.
        """
        if self._left:
            raise UsageError(
                f"the checkpoint is of another run, which has no {min(self._left)}; config.json or the checkpoint was altered"
            )


def learned(parameters: NamedParameters, optimizer: torch.optim.Optimizer, *, of: str = "") -> Arrays:
    """Parameters, and what AdamW remembers of each.

    Args:
        parameters: all that the optimiser changes.
        optimizer: AdamW. What its groups say, step size and decay, follows from the settings.
        of: begins every name, where there are two optimisers.
    """
    arrays = {f"{of}parameter/{name}": to_array(parameter) for name, parameter in parameters}
    for name, parameter in parameters:
        remembered = optimizer.state.get(parameter, {})
        arrays |= {f"{of}{kind}/{name}": to_array(value) for kind, value in remembered.items()}
    return arrays


def learn_again(parameters: NamedParameters, optimizer: torch.optim.Optimizer, saved: Saved, *, of: str = "") -> None:
    """The inverse of :func:`learned`, into parameters of the same names.

    Raises:
        UsageError: the arrays are of other parameters.
    """
    for name, parameter in parameters:
        saved.fill(parameter.data, f"{of}parameter/{name}")
        if not saved.has(f"{of}{STEPS}/{name}"):
            continue  # it never had a gradient
        steps = torch.zeros((), dtype=torch.float32, device=parameter.device)
        remembered = {STEPS: saved.fill(steps, f"{of}{STEPS}/{name}")}
        for kind in MOMENTS:
            remembered[kind] = saved.fill(torch.zeros_like(parameter.data), f"{of}{kind}/{name}")
        optimizer.state[parameter] = remembered


def numbers_of(run: Any, names: tuple[str, ...]) -> State:
    """Some of a run's attributes."""
    return {name: getattr(run, name) for name in names}


def set_numbers(run: Any, names: tuple[str, ...], state: Mapping[str, Any]) -> None:
    """The inverse of :func:`numbers_of`.

    Raises:
        UsageError: one is not there, or is of another kind than the run has now.
    """
    for name in names:
        if name not in state or not _alike(state[name], getattr(run, name), text=name == "ended_early"):
            raise UsageError(f"the checkpoint's {name} is {state.get(name)!r:.60}; it was altered, or is of another version")
        setattr(run, name, state[name])


def _alike(value: Any, present: Any, *, text: bool) -> bool:
    """Whether a value from a file may take the place of the one that is there; instead of None, a text or a number."""
    if isinstance(present, dict):
        numbers = value.values() if isinstance(value, dict) else [None]
        return all(_is_number(n) or (isinstance(n, list) and len(n) == 2 and all(map(_is_number, n))) for n in numbers)
    if present is None:
        return value is None or (isinstance(value, str) if text else _is_number(value))
    if isinstance(present, int):
        return type(value) is int and value >= 0
    return _is_number(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
