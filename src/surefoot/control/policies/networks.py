"""Multilayer perceptrons as flat dictionaries of arrays: drawn with NumPy, evaluated by any array library.

``layer_0/weight``, ``layer_0/bias``, … are the keys, the same in memory, in a checkpoint and in a policy's file.
Drawing weights in NumPy spares the compilation of a QR decomposition for every layer shape; evaluating over the array
API lets a saved policy, and the loop over Python environments, run the very same network without JAX.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np

from surefoot.equations import Array, namespace

Parameters = dict[str, Array]


def draw_network(
    generator: np.random.Generator, sizes: tuple[int, ...], *, orthogonal: bool, head_gain: float
) -> dict[str, np.ndarray]:
    """Draw the weights of a perceptron with layers of ``sizes``, inputs and outputs included.

    Args:
        generator: where the randomness comes from.
        sizes: units of every layer, from the input to the output.
        orthogonal: orthogonal weights with gain √2 (hidden) and ``head_gain`` (output), zero biases (Saxe et al.
            2014); else weights and biases uniform in ±1/√(inputs).
        head_gain: gain of the last layer.

    Returns:
        weights of shape (inputs, outputs) and biases of shape (outputs,), float32.
    """
    parameters: dict[str, np.ndarray] = {}
    for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        last = i == len(sizes) - 2
        if orthogonal:
            gaussian = generator.standard_normal((max(inputs, outputs), min(inputs, outputs)))
            q, r = np.linalg.qr(gaussian)
            q *= np.sign(np.diag(r))  # without it QR's sign convention would not give a uniform rotation
            weight = (head_gain if last else math.sqrt(2)) * (q if inputs >= outputs else q.T)
            bias = np.zeros(outputs)
        else:
            bound = 1 / math.sqrt(inputs)
            weight = generator.uniform(-bound, bound, (inputs, outputs))
            bias = generator.uniform(-bound, bound, outputs)
        parameters[f"layer_{i}/weight"] = weight.astype(np.float32)
        parameters[f"layer_{i}/bias"] = bias.astype(np.float32)
    return parameters


def evaluate_network(parameters: Mapping[str, Array], x: Array, *, activation: str) -> Array:
    """The perceptron's output, shape (…, outputs), for inputs of shape (…, inputs)."""
    xp = namespace(x)
    layers = sum(name.endswith("/weight") for name in parameters)
    for i in range(layers):
        x = x @ parameters[f"layer_{i}/weight"] + parameters[f"layer_{i}/bias"]
        if i < layers - 1:
            x = xp.tanh(x) if activation == "tanh" else xp.maximum(x, xp.zeros_like(x))
    return x
