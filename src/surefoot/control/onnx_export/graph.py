"""A policy as an ONNX graph: observations go in as the environment gives them, actions come out as it takes them."""

from __future__ import annotations

import itertools
import json
from typing import Any

import gymnasium
import numpy as np
import onnx
from onnx import helper, numpy_helper

from surefoot import __version__
from surefoot.control.policies.policy import Policy
from surefoot.errors import UsageError

OPSET, IR_VERSION = 17, 8
"""Of 2022: runtimes that are several years old read them, and no operator here has changed since."""
LARGEST_FILE = 2**31 - 2**20
"""A protocol buffer ends at 2 GiB, and weights in files of their own would be easily lost."""

MEANING = (
    "action: the most probable one, as the environment takes it. mean, log_std: a normal distribution in the environment's"
    " units, before an action is clipped. logits: of all choices side by side, or of every bit."
)


class Graph:
    """Nodes and constants of a graph that grows from its inputs to its outputs."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: Any) -> str:
        """A constant array, of lists of integers in int64; returns its name."""
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def add(self, operator: str, *inputs: str, name: str, **attributes: Any) -> str:
        """One operation, whose only output gets ``name``; returns that."""
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def cast(self, x: str, dtype: Any, *, name: str) -> str:
        """To a NumPy dtype."""
        return self.add("Cast", x, name=name, to=element_type(dtype))

    def clip(self, x: str, low: np.ndarray, high: np.ndarray, *, name: str) -> str:
        """Every component between bounds of its own, which ONNX's Clip does not have."""
        raised = self.add("Max", x, self.constant(f"{name}/low", low), name=f"{name}/raised")
        return self.add("Min", raised, self.constant(f"{name}/high", high), name=name)


def element_type(dtype: Any) -> int:
    """ONNX's number for a NumPy dtype.

    Raises:
        UsageError: ONNX has no such type.
    """
    try:
        return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
    except (KeyError, ValueError):
        raise UsageError(f"ONNX has no numbers of type {dtype}; wrap the environment so that it takes float32") from None


def policy_graph(policy: Policy, observation_space: gymnasium.spaces.Box, action_space: gymnasium.Space) -> onnx.ModelProto:
    """The graph of a policy's most probable action, and of what a sample needs.

    Args:
        policy: what acts.
        observation_space: the environment's; its dtype is that of the input.
        action_space: the environment's; its dtype is that of the output.

    Returns:
        a model with the input ``observation``, shape (batch, observation size), and the outputs ``action`` and, for a
        Box, ``mean`` and ``log_std`` in the environment's units before they are clipped, else ``logits``; the first axis of
        all is the batch.

    Raises:
        UsageError: the weights do not fit into one file, or ONNX has no such dtype.
    """
    if sum(value.nbytes for value in policy.parameters.values()) > LARGEST_FILE:
        raise UsageError("the policy's weights exceed the 2 GiB that one ONNX file can hold; train a smaller network")
    graph = Graph()
    if policy.spaces.action.kind == "box":
        _continuous(graph, policy, observation_space.dtype, action_space)
        described = ["mean", "log_std"]
    else:
        _discrete(graph, policy, observation_space.dtype, action_space)
        described = ["logits"]
    size, width = policy.spaces.observation_size, policy.spaces.action.outputs
    value = helper.make_tensor_value_info
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "policy",
            [value("observation", element_type(observation_space.dtype), ["batch", size])],
            [
                value("action", element_type(action_space.dtype), ["batch", *(action_space.shape or ())]),
                *(value(name, onnx.TensorProto.FLOAT, ["batch", width]) for name in described),
            ],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="surefoot",
        producer_version=__version__,
        doc_string=MEANING,
    )
    helper.set_model_props(model, _properties(policy, observation_space, action_space))
    onnx.checker.check_model(model, full_check=True)
    return model


def _network(graph: Graph, policy: Policy, dtype: np.dtype, *, name: str) -> str:
    """From the observation in a ``dtype`` to what the network puts out, under ``name``: the normaliser, then the layers."""
    known = policy.observation_statistics
    if known is None:
        x = graph.cast("observation", np.float32, name="observation/float32")
    else:
        # Computed as the policy does, so that the numbers are the same ones: the mean is subtracted before what is finer than
        # float32 becomes that.
        finer = np.promote_types(dtype, np.float32)
        x = graph.cast("observation", finer, name="observation/finer")
        x = graph.add("Sub", x, graph.constant("normalizer/mean", known.mean.astype(finer)), name="normalizer/shifted")
        x = graph.cast(x, np.float32, name="normalizer/float32")
        x = graph.add("Sub", x, graph.constant("normalizer/remainder", known.remainder), name="normalizer/centered")
        deviation = np.sqrt(known.variance)
        limit = policy.observation_clip * deviation
        x = graph.clip(x, -limit, limit, name="normalizer/clipped")
        divisor = graph.constant("normalizer/deviation", np.where(deviation > 0, deviation, np.float32(1)))
        x = graph.add("Div", x, divisor, name="normalizer/scaled")
    layers = sum(name.endswith("/weight") for name in policy.parameters)
    for i in range(layers):
        weight, bias = (graph.constant(key, policy.parameters[key]) for key in (f"layer_{i}/weight", f"layer_{i}/bias"))
        x = graph.add("Gemm", x, weight, bias, name=f"layer_{i}" if i < layers - 1 else name)
        if i < layers - 1:
            x = graph.add("Tanh" if policy.activation == "tanh" else "Relu", x, name=f"layer_{i}/activation")
    return x


def _continuous(graph: Graph, policy: Policy, dtype: np.dtype, action_space: gymnasium.Space) -> None:
    """Action, mean and log σ of a Box: scaled to the environment's units, the action clipped at its bounds."""
    action = policy.spaces.action
    center, scale = action.scaling()
    outputs = _network(graph, policy, dtype, name="network")
    scaled = graph.add("Mul", outputs, graph.constant("action/scale", scale), name="action/scaled")
    mean = graph.add("Add", scaled, graph.constant("action/center", center), name="mean")
    with np.errstate(divide="ignore"):  # a component that has one value only has a scale of 0
        log_std = (policy.parameters["log_std"] + np.log(scale)).astype(np.float32)
    shape = graph.add("Shape", mean, name="mean/shape")
    graph.add("Expand", graph.constant("action/log_std", log_std), shape, name="log_std")
    low, high = np.asarray(action.low, np.float32), np.asarray(action.high, np.float32)
    clipped = graph.clip(mean, low, high, name="action/clipped")
    if action_space.dtype == np.float64:
        # float32 may have rounded the bounds outwards.
        graph.clip(graph.cast(clipped, np.float64, name="action/float64"), action_space.low, action_space.high, name="action")
    else:
        graph.cast(clipped, action_space.dtype, name="action")


def _discrete(graph: Graph, policy: Policy, dtype: np.dtype, action_space: gymnasium.Space) -> None:
    """Logits, and of them the most probable choice of every part, the first where several are, counted as the environment
    counts; or the bits that are likelier 1 than 0.
    """
    action = policy.spaces.action
    logits = _network(graph, policy, dtype, name="logits")
    if action.kind == "multibinary":
        chosen = graph.add("Greater", logits, graph.constant("action/even", np.float32(0)), name="action/chosen")
    elif action.kind == "discrete":
        chosen = graph.add("ArgMax", logits, name="action/chosen", axis=1, keepdims=0)
    else:
        axis = graph.constant("action/axis", [1])
        edges = [graph.constant(f"action/edge_{i}", [sum(action.sizes[:i])]) for i in range(len(action.sizes) + 1)]
        parts = [
            graph.add("Slice", logits, first, after, axis, name=f"action/logits_{i}")
            for i, (first, after) in enumerate(itertools.pairwise(edges))
        ]
        choices = [graph.add("ArgMax", part, name=f"{part}/chosen", axis=1, keepdims=1) for part in parts]
        chosen = graph.add("Concat", *choices, name="action/chosen", axis=1)
    if any(action.start):
        chosen = graph.add("Add", chosen, graph.constant("action/start", action.start), name="action/counted")
    graph.cast(chosen, action_space.dtype, name="action")


def _properties(policy: Policy, observation_space: gymnasium.spaces.Box, action_space: gymnasium.Space) -> dict[str, str]:
    """Where the policy comes from, as texts."""
    said = policy.description
    return {
        "environment": policy.environment.name,
        "algorithm": str(said["algorithm"]),
        "training_steps": str(said.get("steps", "")),
        "observation_space": json.dumps(_described(observation_space)),
        "action_space": json.dumps(_described(action_space)),
        "surefoot_version": __version__,
        **{name: json.dumps(said[name]) for name in ("env_kwargs", "wrapper") if said.get(name)},
    }


def _described(space: gymnasium.Space) -> dict[str, Any]:
    """A space for JSON, which has no infinity: bounds that are infinite are texts."""
    described: dict[str, Any] = {"type": type(space).__name__, "dtype": str(space.dtype), "shape": list(space.shape or ())}
    for name in ("n", "nvec", "start", "low", "high"):
        if (value := getattr(space, name, None)) is not None:
            listed = np.asarray(value).tolist()
            described[name] = [x if np.isfinite(x) else str(x) for x in listed] if isinstance(listed, list) else listed
    return described
