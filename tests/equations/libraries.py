"""One test, four array libraries: float64 NumPy, array-api-strict, JAX under jit, PyTorch with autograd."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import array_api_strict
import jax
import numpy as np
import torch


@dataclass(frozen=True)
class Library:
    name: str
    convert: Callable[[Any], Any]
    to_numpy: Callable[[Any], np.ndarray]

    def call(self, function: Callable[..., Any], /, **arguments: Any) -> Any:
        """Call with arrays converted, anything else as it is, and convert the result back."""
        arrays = {k: v for k, v in arguments.items() if isinstance(v, np.ndarray)}
        others = {k: v for k, v in arguments.items() if k not in arrays}
        if self.name == "jax":
            with jax.enable_x64(True):
                result = jax.jit(lambda a: function(**a, **others))({k: self.convert(v) for k, v in arrays.items()})
                return jax.tree.map(np.asarray, result)
        result = function(**{k: self.convert(v) for k, v in arrays.items()}, **others)
        return tuple(map(self.to_numpy, result)) if isinstance(result, tuple) else self.to_numpy(result)

    def gradient(self, function: Callable[..., Any], at: np.ndarray) -> np.ndarray:
        """∂ Σ function(x) / ∂x by autograd, where there is one, else by central differences."""
        if self.name == "jax":
            with jax.enable_x64(True):
                return np.asarray(jax.jit(jax.grad(lambda x: function(x).sum()))(self.convert(at)))
        if self.name == "torch":
            x = torch.from_numpy(at.copy()).requires_grad_()
            total = function(x).sum()
            if not total.requires_grad:
                return np.zeros_like(at)
            total.backward()
            return x.grad.numpy()
        return finite_differences(lambda x: self.to_numpy(function(self.convert(x))).sum(), at)


def finite_differences(function: Callable[[np.ndarray], float], at: np.ndarray, step: float = 1e-6) -> np.ndarray:
    gradient = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        up, down = at.copy(), at.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (function(up) - function(down)) / (2 * step)
    return gradient


def jax_array(x: Any) -> jax.Array:
    with jax.enable_x64(True):
        return jax.numpy.asarray(x)


NUMPY = Library("numpy", np.asarray, np.asarray)
LIBRARIES = [
    NUMPY,
    Library("strict", array_api_strict.asarray, lambda x: np.from_dlpack(x) if hasattr(x, "__dlpack__") else np.asarray(x)),
    Library("jax", jax_array, np.asarray),
    Library("torch", lambda x: torch.from_numpy(np.array(x)), lambda x: x.detach().numpy()),
]
AUTOGRAD = LIBRARIES[2:]
