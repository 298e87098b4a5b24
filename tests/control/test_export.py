"""A policy as an ONNX file: the file acts as the policy does, alone and in plain Python, and one that does not is not kept."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import onnx
import onnxruntime
import pytest
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete

import surefoot
from surefoot.cli import main
from surefoot.control.evaluation import evaluate
from surefoot.control.onnx_export import export as exporting
from surefoot.control.onnx_export import graph
from surefoot.control.onnx_export.comparison import compare
from surefoot.control.onnx_export.export import export_policy
from surefoot.control.policies.networks import draw_network
from surefoot.control.policies.normalization import RunningStatistics, statistics_of
from surefoot.control.policies.policy import Policy
from surefoot.control.policies.spaces import describe_spaces
from surefoot.control.training import train
from surefoot.errors import RunError, UsageError
from tests.control.helpers import configure

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
INFINITE = np.asarray([np.inf, np.inf])


class Random(gymnasium.Env):
    """Random observations, episodes of six steps; keeps what it was asked to do."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space
        self.seen, self.done = [], []

    def observe(self):
        self.seen.append(self.observation_space.sample())
        return self.seen[-1]

    def reset(self, *, seed=None, options=None):
        self.observation_space.seed(seed)
        self.steps = 0
        return self.observe(), {}

    def step(self, action):
        self.steps += 1
        self.done.append((self.seen[-1], action))
        return self.observe(), 0.0, self.steps == 6, False, {}


def policy_for(observation_space, action_space, *, normalized=True, activation="tanh", hidden=(8, 8), spread=3.0):
    """A policy with random weights, none of them zero."""
    generator = np.random.default_rng(0)
    spaces = describe_spaces(observation_space, action_space, name="random")
    size, outputs = spaces.observation_size, spaces.action.outputs
    parameters = draw_network(generator, (size, *hidden, outputs), orthogonal=False, head_gain=1.0)
    if spaces.action.kind == "box":
        parameters["log_std"] = np.linspace(-1, 0.5, outputs).astype(np.float32)
    mean, variance = (generator.uniform(*ends, size).astype(np.float32) for ends in ((-1, 2), (0.1, spread)))
    return Policy(
        spaces=spaces,
        activation=activation,
        parameters=parameters,
        observation_statistics=RunningStatistics(mean, variance, np.float32(100)) if normalized else None,
        observation_clip=4.0,
        description={"algorithm": "ppo", "env": "random", "backend": "gymnasium", "steps": 1234},
    )


def network_by_hand(policy, observations):
    """The network's outputs in float64."""
    x = np.asarray(observations, np.float32).astype(np.float64)
    if policy.observation_statistics is not None:
        mean, variance, _, _ = policy.observation_statistics
        x = np.clip((x - mean) / np.sqrt(variance), -policy.observation_clip, policy.observation_clip)
    weights = [policy.parameters[n].astype(np.float64) for n in sorted(policy.parameters) if n.endswith("weight")]
    biases = [policy.parameters[n] for n in sorted(policy.parameters) if n.endswith("bias")]
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        x = x @ weight + bias
        x = np.tanh(x) if policy.activation == "tanh" else np.where(x > 0, x, 0)
    return x @ weights[-1] + biases[-1]


def opened(file):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def answers(session, observations):
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"observation": observations}), strict=True))


def parts(*sizes):
    """Observation spaces of four components."""
    return Box(-5, 5, (4,), *sizes)


CHOICES = {
    "discrete": (parts(np.float32), Discrete(3), {}),
    "discrete, counted from 7, no normaliser": (parts(np.float64), Discrete(4, start=7), {"normalized": False}),
    "several choices, relu, bytes": (
        Box(0, 255, (4,), np.uint8),
        MultiDiscrete([3, 2, 4], start=[5, 0, -1]),
        {"normalized": False, "activation": "relu"},
    ),
    "bits, long integers": (Box(-(2**60), 2**60, (4,), np.int64), MultiBinary(3), {"spread": 1e30}),
    "no hidden layer, booleans": (Box(0, 1, (4,), np.bool_), Discrete(2), {"hidden": (), "normalized": False}),
}
BOXES = {
    "scaled": (parts(np.float32), Box(np.float32([2, -1]), np.float32([6, 1])), {}),
    "unbounded, relu, short floats": (
        Box(-np.inf, np.inf, (4,), np.float16),
        Box(-INFINITE.astype(np.float32), INFINITE.astype(np.float32)),
        {"activation": "relu"},
    ),
    "float64, half bounded, no normaliser": (
        Box(-np.inf, np.inf, (4,), np.float64),
        Box(np.asarray([0.7, 0.0]), np.asarray([0.8, np.inf]), dtype=np.float64),
        {"normalized": False},
    ),
    "one value only": (Box(-np.inf, np.inf, (4,), np.float32), Box(np.float32([3, -9]), np.float32([3, 1e5])), {}),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Policy, result and file of a case, written once."""
    done = {}

    def export(case):
        if case not in done:
            observation_space, action_space, options = (CHOICES | BOXES)[case]
            observation_space.seed(0)
            policy, file = policy_for(observation_space, action_space, **options), tmp_path_factory.mktemp("file") / "a.onnx"
            done[case] = policy, export_policy(policy, file, environment=lambda: Random(observation_space, action_space)), file
        return done[case]

    return export


@pytest.mark.parametrize("case", CHOICES)
def test_choices_are_those_of_a_forward_pass_by_hand(case, exported):
    (observation_space, action_space, _), (policy, result, file) = CHOICES[case], exported(case)
    session = opened(file)
    assert [output.name for output in session.get_outputs()] == ["action", "logits"]
    observations = np.stack([observation_space.sample() for _ in range(300)])
    got, logits = answers(session, observations), network_by_hand(policy, observations)
    np.testing.assert_allclose(got["logits"], logits, rtol=1e-5, atol=1e-5 * np.abs(logits).max())
    if isinstance(action_space, MultiBinary):
        expected = logits > 0
    elif isinstance(action_space, Discrete):
        expected = logits.argmax(axis=1) + action_space.start
    else:
        ends = np.cumsum(action_space.nvec)
        pieces = [logits[:, end - n : end].argmax(axis=1) for n, end in zip(action_space.nvec, ends, strict=True)]
        expected = np.stack(pieces, axis=1) + action_space.start
    np.testing.assert_array_equal(got["action"], expected)
    assert all(action_space.contains(action) for action in got["action"])
    assert len(np.unique(got["action"], axis=0)) > 1
    assert got["action"].dtype == action_space.dtype
    assert result["largest_difference"].keys() == {"logits"}
    assert result["ties"] == 0


@pytest.mark.parametrize("case", BOXES)
def test_continuous_actions_are_those_of_a_forward_pass_by_hand(case, exported):
    (observation_space, action_space, _), (policy, result, file) = BOXES[case], exported(case)
    session = opened(file)
    assert [output.name for output in session.get_outputs()] == ["action", "mean", "log_std"]
    observations = np.stack([observation_space.sample() for _ in range(300)])
    got, outputs = answers(session, observations), network_by_hand(policy, observations)
    center, scale = np.zeros(2), np.ones(2)
    for i, (low, high) in enumerate(zip(action_space.low, action_space.high, strict=True)):
        if np.isfinite([low, high]).all():
            center[i], scale[i] = (low + high) / 2, (high - low) / 2
    np.testing.assert_allclose(got["mean"], center + scale * outputs, rtol=1e-5, atol=1e-5 * scale.max())
    expected = np.clip(center + scale * outputs, action_space.low, action_space.high)
    np.testing.assert_allclose(got["action"], expected, rtol=1e-5, atol=1e-5 * scale.max())
    std = np.broadcast_to(np.exp(policy.parameters["log_std"]) * scale, (300, 2))
    np.testing.assert_allclose(np.exp(got["log_std"]), std, rtol=1e-5)
    assert all(action_space.contains(action) for action in got["action"])
    assert got["action"].dtype == action_space.dtype
    assert result["largest_difference"].keys() == {"action", "mean", "log_std"}
    assert 0 < result["largest_difference"]["mean"] < 1e-4 * scale.max() * np.abs(outputs).max()


@pytest.mark.parametrize("case", [*CHOICES, *BOXES])
def test_actions_are_those_that_an_evaluation_takes(case, tmp_path, exported):
    (observation_space, action_space, _), (policy, _, file), environments = (CHOICES | BOXES)[case], exported(case), []
    policy.save(tmp_path)
    environment = lambda: environments.append(Random(observation_space, action_space)) or environments[-1]  # noqa: E731
    evaluate(tmp_path, episodes=4, deterministic=True, environment=environment)
    observations, taken = (np.stack(column) for column in zip(*(d for e in environments for d in e.done), strict=True))
    assert len(taken) >= 24
    got = answers(opened(file), observations)["action"]
    assert got.dtype == taken.dtype
    np.testing.assert_allclose(got, taken, rtol=1e-5, atol=1e-5 if action_space.dtype.kind == "f" else 0)


def test_the_file_stands_alone_and_says_where_it_comes_from(exported):
    _, result, file = exported("float64, half bounded, no normaliser")
    assert [path.name for path in file.parent.iterdir()] == ["a.onnx"], "weights are inside, and nothing is left aside"
    model = onnx.load(file, load_external_data=False)
    assert all(constant.data_location == onnx.TensorProto.DEFAULT for constant in model.graph.initializer)
    assert {entry.domain for entry in model.opset_import} == {""}, "operators of the standard alone"
    assert not model.functions
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert properties["environment"] == "random"
    assert properties["algorithm"] == "ppo"
    assert properties["training_steps"] == "1234"
    assert properties["surefoot_version"] == surefoot.__version__
    assert json.loads(properties["observation_space"])["low"] == ["-inf"] * 4
    said = json.loads(properties["action_space"])
    assert said == {"type": "Box", "dtype": "float64", "shape": [2], "low": [0.7, 0.0], "high": [0.8, "inf"]}
    assert result["bytes"] == file.stat().st_size
    session = opened(file)
    assert [entry.shape for entry in session.get_inputs()] == [["batch", 4]]
    many = answers(session, observations := np.random.default_rng(0).normal(size=(5, 4)))
    for i, row in enumerate(observations):
        np.testing.assert_allclose(answers(session, row[None])["action"][0], many["action"][i], rtol=1e-6)


def changed(policy, what):
    """The policy with one thing that is not as it was."""
    parameters = dict(policy.parameters)
    if what == "clip":
        return replace(policy, observation_clip=4.01)
    if what == "normaliser":
        statistics = policy.observation_statistics
        return replace(policy, observation_statistics=statistics._replace(variance=statistics.variance * np.float32(1.001)))
    if what == "activation":
        return replace(policy, activation="relu")
    if what in ("start", "high"):
        action = policy.spaces.action
        by = {"start": (action.start[0] + 1,)} if what == "start" else {"high": (6.0, 1.001)}
        return replace(policy, spaces=replace(policy.spaces, action=replace(action, **by)))
    index = (0,) * parameters[what].ndim
    parameters[what] = parameters[what].copy()
    parameters[what][index] += 1e-3
    return replace(policy, parameters=parameters)


@pytest.mark.parametrize(
    ("case", "what"),
    [
        *(("discrete", what) for what in ("clip", "normaliser", "activation", "layer_1/weight", "layer_2/bias")),
        ("discrete, counted from 7, no normaliser", "start"),
        *(("scaled", what) for what in ("layer_0/weight", "log_std", "high", "clip")),
    ],
)
def test_a_graph_that_differs_is_refused_and_leaves_nothing(case, what, tmp_path, monkeypatch):
    observation_space, action_space, options = (CHOICES | BOXES)[case]
    policy, build = policy_for(observation_space, action_space, **options), exporting.policy_graph
    monkeypatch.setattr(exporting, "policy_graph", lambda policy, *spaces: build(changed(policy, what), *spaces))
    file = tmp_path / "a.onnx"
    for before in (None, b"an older one"):
        if before is not None:
            file.write_bytes(before)
        with pytest.raises(RunError, match="does not do what the policy does"):
            export_policy(policy, file, environment=lambda: Random(observation_space, action_space))
        assert list(tmp_path.iterdir()) == ([] if before is None else [file])
    assert file.read_bytes() == b"an older one"


def test_choices_that_are_equally_good_within_rounding_are_counted(tmp_path, monkeypatch):
    """The policy prefers the first choice by nothing, the graph the second by next to nothing."""
    observation_space, action_space, _ = CHOICES["discrete"]
    policy = policy_for(observation_space, action_space)
    weight, bias = policy.parameters["layer_2/weight"].copy(), np.float32([9, 9, 0])
    weight[:, 1] = weight[:, 0]
    policy = replace(policy, parameters={**policy.parameters, "layer_2/weight": weight, "layer_2/bias": bias})
    nudged = replace(policy, parameters={**policy.parameters, "layer_2/bias": np.float32([9, 9 + 4e-6, 0])})
    build = exporting.policy_graph
    monkeypatch.setattr(exporting, "policy_graph", lambda _, *spaces: build(nudged, *spaces))
    result = export_policy(policy, tmp_path / "a.onnx", environment=lambda: Random(observation_space, action_space))
    assert result["ties"] > 4000


def test_what_a_file_cannot_hold_is_refused(tmp_path, monkeypatch):
    observation_space, action_space, _ = CHOICES["discrete"]
    policy = policy_for(observation_space, action_space)
    policy.parameters["layer_1/bias"][2] = np.nan
    environment = lambda: Random(observation_space, action_space)  # noqa: E731
    with pytest.raises(UsageError, match="weights that are not finite"):
        export_policy(policy, tmp_path / "a.onnx", environment=environment)
    wide = Box(-1, 1, (4,), np.longdouble)
    with pytest.raises(UsageError, match="ONNX has no numbers of type"):
        export_policy(policy_for(wide, action_space), tmp_path / "a.onnx", environment=lambda: Random(wide, action_space))
    monkeypatch.setattr(graph, "LARGEST_FILE", 500)
    with pytest.raises(UsageError, match="exceed the 2 GiB"):
        export_policy(policy_for(observation_space, action_space), tmp_path / "a.onnx", environment=environment)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("env", "options"),
    [("CartPole-v1", {"backend": "gymnasium"}), ("Pendulum-v1", {"backend": "gymnasium-sync", "normalize_observations": True})],
)
def test_the_script_of_the_documentation_plays_the_episodes_of_the_policy(env, options, tmp_path, capsys):
    """In a process with neither surefoot nor JAX."""
    run = tmp_path / "run"
    train(configure(env=env, out=str(run), total_steps=128, **options), quiet=True)
    assert main(["export", str(run), "--format", "onnx", "--json"]) == 0
    output = capsys.readouterr()
    result = json.loads(output.out)
    assert result["file"] == str(run / "policy" / "policy.onnx")
    assert "on 4,096 random observations the largest difference from the policy is" in output.err
    (script,) = re.findall("```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    script += "\nimport sys\nassert not {'surefoot', 'jax', 'torch', 'onnx'} & set(sys.modules)\n"
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", script], cwd=run / "policy", env=plain, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    returns = [float(line.split()[-1]) for line in done.stdout.splitlines()]
    policy, expected = surefoot.load(run), []
    for seed in range(len(returns)):
        environment, total, over = gymnasium.make(env), 0.0, False
        observation, _ = environment.reset(seed=seed)
        while not over:
            observation, reward, terminated, truncated, _ = environment.step(policy(observation, deterministic=True))
            total, over = total + float(reward), terminated or truncated
        expected.append(total)
    assert len(returns) == 3
    assert len(set(returns)) > 1
    np.testing.assert_allclose(returns, expected, rtol=1e-4)


def test_runs_without_one_policy_are_refused(tmp_path, capsys):
    aligned, unfinished, seeds = (tmp_path / name for name in ("aligned", "unfinished", "seeds"))
    for folder, settings in ((aligned, {"method": "dpo"}), (unfinished, {"algorithm": "ppo"})):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(settings))
    (aligned / "model").mkdir()
    policy = policy_for(*CHOICES["discrete"][:2])
    for seed in range(2):
        policy.save(seeds / f"seed-{seed}")
    for arguments, words in (
        ([aligned], f"its result, {aligned / 'model'}, is a Hugging Face folder already"),
        ([unfinished], "holds a run without a policy"),
        ([seeds], f"holds several seeds; give the folder of one, such as {seeds / 'seed-0'}"),
        ([tmp_path / "nowhere"], "is not a run"),
        ([seeds / "seed-0"], "there is no environment random"),
        ([seeds / "seed-0", "--out", tmp_path / "policy.safetensors"], "--out must be a file whose name ends in .onnx"),
        ([seeds / "seed-0", "--format", "tflite"], "tflite"),
    ):
        assert main(["export", *map(str, arguments)]) == 2
        output = capsys.readouterr()
        assert words in output.err
        assert output.err.startswith("surefoot: ")
        assert output.err.count("\n") == 1
    assert not list(tmp_path.rglob("*.onnx"))


def test_a_missing_extra_is_one_sentence(tmp_path, capsys, monkeypatch):
    policy_for(*CHOICES["discrete"][:2]).save(tmp_path)
    for name in [name for name in sys.modules if name.startswith("surefoot.control.onnx_export")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["export", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "surefoot: this needs onnxruntime; install it with: pip install 'surefoot[onnx]'\n"


@pytest.mark.parametrize(
    ("unit", "offset", "dtype"), [(0.3, 1e8, np.float64), (1e-12, 0.0, np.float32), (1e12, 1e13, np.float64)]
)
def test_the_file_knows_no_unit_and_keeps_digits(unit, offset, dtype):
    """Against the same network in float64 on the samples' own mean and standard deviation."""
    space, actions = Box(-np.inf, np.inf, (4,), dtype), Discrete(3)
    shown = (offset + unit * np.random.default_rng(0).normal(size=(50, 4))).astype(dtype)
    policy = replace(policy_for(space, actions), observation_statistics=statistics_of(shown))
    model = graph.policy_graph(policy, space, actions).SerializeToString()
    compare(model, policy, space, actions)
    wide = shown.astype(np.longdouble)
    standard = ((wide - wide.mean(axis=0)) / wide.std(axis=0)).astype(np.float64)
    assert np.abs(standard).max() < policy.observation_clip
    expected = network_by_hand(replace(policy, observation_statistics=None), standard)
    np.testing.assert_allclose(answers(opened(model), shown)["logits"], expected, atol=1e-5)
    np.testing.assert_allclose(policy.distribution(shown).logits, expected, atol=1e-5)
