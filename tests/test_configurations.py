"""Every field of every configuration: the same values are right, and the same are wrong, whichever way they come in."""

from __future__ import annotations

import enum
import json
import re
from dataclasses import MISSING, fields, replace
from fractions import Fraction
from pathlib import Path
from types import NoneType
from typing import Literal, get_args, get_origin, get_type_hints

import jax.numpy as jnp
import numpy as np
import pytest

import surefoot
from surefoot.alignment import configuration as alignment
from surefoot.alignment.data.configuration import DataConfiguration
from surefoot.alignment.models.configuration import AdapterConfiguration, ModelConfiguration
from surefoot.alignment.rlhf.configuration import PPOConfiguration
from surefoot.alignment.tasks.files import TaskConfiguration
from surefoot.control import configuration as control
from surefoot.control.algorithms import configuration_for
from surefoot.control.playing import Request
from surefoot.errors import UsageError
from surefoot.runs.rates import RateChange

NEEDED = {"env": "CartPole-v1", "model": "some/model", "data": "data.jsonl", "reward": "rewards.py:best", "method": "dpo"}
NEEDED |= {"episodes": 16, "step": 16, "before": 0.25, "after": 0.25}
"""Values of the fields that have no default."""
PARTS = [
    control.RunConfiguration, control.NetworkConfiguration, control.NormalizationConfiguration, control.WeightConfiguration,
    control.LikelihoodObjective, control.SurrogateObjective, control.OptimizerConfiguration, control.PassesConfiguration,
    control.TrustRegionConfiguration, control.RecordedConfiguration,
    ModelConfiguration, AdapterConfiguration, DataConfiguration, alignment.TrainingConfiguration, alignment.RewardConfiguration,
    alignment.DPOConfiguration, PPOConfiguration, TaskConfiguration, RateChange, Request,
]  # fmt: skip
WHOLES = [control.TrainConfiguration, alignment.AlignConfiguration]
"""Configurations whose fields are parts."""
FIELDS = [(part, field.name) for part in PARTS for field in fields(part)]
TEXTS = {"env_kwargs": ("continuous=True", "gravity=-5"), "wrapper": ("gymnasium.wrappers:FlattenObservation",)}
"""Values of the fields that are several texts of one form."""
WITH = {
    ("AdapterConfiguration", "lora_alpha"): {"lora_rank": 2},
    ("AdapterConfiguration", "lora_dropout"): {"lora_rank": 2},
    ("AdapterConfiguration", "lora_targets"): {"lora_rank": 2},
    ("TrainingConfiguration", "patience"): {"held_out": 0.5},
    ("RunConfiguration", "env_workers"): {"num_envs": 16},
    ("Request", "env_workers"): {"num_envs": 16},
    ("TrainingConfiguration", "evaluate_every"): {"held_out": 0.5},
    ("RewardConfiguration", "ranking_top"): {"objective": "plackett-luce"},
    ("DPOConfiguration", "ranking_top"): {"objective": "plackett-luce"},
}
"""What a field needs beside it to be used at all."""


def needed(part):
    return {f.name: NEEDED[f.name] for f in fields(part) if f.default is MISSING and f.default_factory is MISSING}


def members(kind):
    """The types of a union, or the one type."""
    return get_args(kind) if get_origin(kind) is not Literal and NoneType in get_args(kind) else (kind,)


def right_value(part, name):
    """A value that the field may have, exact in every type of numbers."""
    first = next(member for member in members(get_type_hints(part)[name]) if member is not NoneType)
    if get_origin(first) is Literal:
        return get_args(first)[-1]
    if name in TEXTS:
        return TEXTS[name]
    return {int: 16, float: 0.25, bool: False, str: NEEDED.get(name, "word")}.get(first, (8, 8))


def alike(value):
    """The same value in the forms that it comes in from Python."""
    if isinstance(value, bool):
        return [np.bool_(value), int(value), np.array(value), jnp.asarray(value), float(value)]
    if isinstance(value, int):
        return [
            np.int64(value),
            np.int32(value),
            float(value),
            np.float32(value),
            np.array(value),
            jnp.asarray(value),
            Fraction(value),
        ]
    if isinstance(value, float):
        return [np.float64(value), np.float32(value), np.array(value), jnp.asarray(value), Fraction(value)]
    if isinstance(value, str):
        return [np.str_(value), enum.StrEnum("Word", {"one": value}).one]
    if isinstance(value[0], str):
        return [list(value), np.array(value)]
    return [list(value), np.array(value), [np.int64(v) for v in value], [float(v) for v in value]]


def plain(value):
    """Whether JSON gives back what it was given, type and all."""
    return type(value) in (int, float, bool, str, NoneType) or (
        type(value) is tuple and all(type(item) in (int, float, bool, str) for item in value)
    )


def test_no_configuration_is_forgotten():
    """Every class of settings in the source is walked over here, but for what a run's own record is read as; and no configuration is
    something else.
    """
    source = "\n".join(path.read_text() for path in Path(surefoot.__file__).parent.rglob("*.py"))
    found = set(re.findall(r"^class (\w+)\(Settings\):", source, re.MULTILINE))
    assert found - {"_Recorded"} == {part.__name__ for part in PARTS + WHOLES}
    assert set(re.findall(r"^class (\w+Configuration)\b", source, re.MULTILINE)) <= found


@pytest.mark.parametrize(("part", "name"), FIELDS, ids=lambda x: getattr(x, "__name__", x))
def test_equal_values_make_equal_configurations(part, name):
    value = right_value(part, name)
    beside = needed(part) | WITH.get((part.__name__, name), {})
    made = part(**beside | {name: value})
    for other in alike(value):
        for again in (part(**beside | {name: other}), replace(made, **{name: other})):
            assert again == made
            assert all(plain(v) for v in vars(again).values())
            assert type(getattr(again, name)) is type(getattr(made, name))
    written = json.loads(json.dumps({k: list(v) if isinstance(v, tuple) else v for k, v in vars(made).items()}))
    assert part(**written) == made


WRONG = [
    object(),
    len,
    b"word",
    "a\0b",
    1j,
    [object()],
    {"a": 1},
    {1},
    True,
    0.5,
    "word",
    None,
    float("nan"),
    float("inf"),
    10**400,
]
"""Each is right for some types of fields, and wrong for all others."""


def may_be(value, kind):
    """Whether a type has this value, by the definition of the type rather than by what is tested."""
    kinds = members(kind)
    if value is None:
        return NoneType in kinds
    if value is True:
        return bool in kinds
    if value == "word":
        return str in kinds
    if value == 10**400:
        return int in kinds
    return value == 0.5 and float in kinds


@pytest.mark.parametrize(("part", "name"), FIELDS, ids=lambda x: getattr(x, "__name__", x))
def test_wrong_values_are_a_sentence(part, name):
    kind = get_type_hints(part)[name]
    for value in WRONG:
        if may_be(value, kind) or (name == "env_kwargs" and value == {"a": 1}):
            continue
        with pytest.raises(UsageError) as caught:
            part(**needed(part) | WITH.get((part.__name__, name), {}) | {name: value})
        said = str(caught.value)
        assert name in said or f"--{name.replace('_', '-')}" in said, (value, said)
        assert "\n" not in said
        assert len(said) < 400


@pytest.mark.parametrize("whole", WHOLES)
def test_parts_must_be_parts(whole):
    made = {
        control.TrainConfiguration: configuration_for("ppo", "CartPole-v1"),
        alignment.AlignConfiguration: alignment.configure("dpo", model="m", data="d"),
    }[whole]
    for field in fields(whole):
        for wrong in ({"a": 1}, 3, RewardOnly()):
            with pytest.raises(UsageError, match=field.name):
                replace(made, **{field.name: wrong})


class RewardOnly:
    """Of no configuration."""


TABLE = [
    ({"total_steps": 1e4}, 10_000), ({"restart_every": 1e6}, 1_000_000), ({"num_envs": 8.0}, 8), ({"total_steps": np.int64(4096)}, 4096),
    ({"learning_rate": np.float32(1e-3)}, float(np.float32(1e-3))), ({"out": Path("x") / "y"}, "x/y"), ({"checkpoint_every": 2048}, 2048),
    ({"hidden_sizes": [64, 32]}, (64, 32)), ({"hidden_sizes": np.array([64])}, (64,)), ({"learning_rate": 1}, 1.0),
    ({"activation": "ReLU"}, "activation is 'ReLU', where one of 'tanh', 'relu' is right"), ({"activation": "elu"}, "one of 'tanh'"),
    ({"learning_rate_schedule": "cosine"}, "one of 'constant', 'linear' is right"), ({"learning_rate_schedule": "Constant"}, "one of"),
    ({"clip_range_schedule": "lin"}, "clip_range_schedule is 'lin', where"), ({"learning_rate_schedule": len}, "one of"),
    ({"kl_penalty": "Adaptive"}, "one of 'none', 'fixed', 'adaptive'"), ({"advantage_normalization": "rollout"}, "one of 'minibatch'"),
    ({"normalize_rewards": "False"}, "normalize_rewards is 'False', where true or false"), ({"tensorboard": "no"}, "true or false"),
    ({"keep_discount": "no"}, "true or false"), ({"on_nonfinite": "ignore"}, "one of 'stop', 'skip'"),
    ({"on_worker_failure": "Restart"}, "one of 'stop', 'restart'"), ({"learning_rate": "3e-4"}, "where a finite number is right"),
    ({"hidden_sizes": 64}, "hidden_sizes is 64, where a list, each of it a whole number, is right"), ({"hidden_sizes": "64"}, "a list"),
    ({"optimizer": "adamw"}, "one of 'adam', 'rmsprop', 'sgd'"), ({"total_steps": 1e4 + 0.5}, "where a whole number is right"),
    ({"env": 5}, "env is 5, where a printable text is right"), ({"checkpoint_every": True}, "checkpoint_every is True"),
    ({"env_kwargs": ["gravity=-5", "sab=true", "map_name=4x4"]}, ("gravity=-5", "sab=True", "map_name='4x4'")),
    ({"env_kwargs": ["gravity"]}, "--env-kwargs gravity is not KEY=VALUE"), ({"env_kwargs": ["a=1", "a=2"]}, "gives a twice"),
    ({"wrapper": ["numpy"]}, "--wrapper numpy is not package.module:function"),
    ({"checkpoint_every": "often"}, "--checkpoint-every must be a number of steps"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "expected"), TABLE, ids=str)
def test_a_run_of_control_takes_what_its_configuration_file_takes(given, expected):
    """From Python and from ``config.json`` alike."""
    (name,) = given
    words = expected if isinstance(expected, str) and name != "out" else None

    def from_python():
        return configuration_for("ppo", **{"env": "CartPole-v1"} | given)

    def from_json():
        settings = configuration_for("ppo", "CartPole-v1").as_dict()
        value = given[name].tolist() if hasattr(given[name], "tolist") else given[name]
        return control.TrainConfiguration.from_dict(settings | {name: str(value) if name == "out" else value})

    for made in (from_python, from_json):
        if words is not None:
            with pytest.raises(UsageError) as caught:
                made()
            assert words in str(caught.value)
            continue
        configuration = made()
        value = next(getattr(part, name) for part in configuration.parts().values() if hasattr(part, name))
        assert (value, type(value)) == (expected, type(expected))
        assert control.TrainConfiguration.from_dict(json.loads(json.dumps(configuration.as_dict()))) == configuration


def test_a_trust_region_is_checked_too():
    with pytest.raises(UsageError, match="max_kl_schedule is 'cosine'"):
        configuration_for("trpo", "CartPole-v1", max_kl_schedule="cosine")


@pytest.mark.parametrize("method", list(alignment.METHODS))
def test_a_run_of_alignment_comes_back_from_json(method):
    configuration = alignment.configure(method, model=Path("some") / "model", data=np.str_("d.jsonl"), reward="r.py:f")
    training = replace(
        configuration.training, batch_size=8.0, learning_rate=np.float32(0.5), out=Path("x"), checkpoint_every=np.int64(5)
    )
    configuration = replace(configuration, training=training)
    assert (training.batch_size, training.learning_rate, training.out, training.checkpoint_every) == (8, 0.5, "x", 5)
    assert configuration.model.model == "some/model"
    assert alignment.AlignConfiguration.from_dict(json.loads(json.dumps(configuration.as_dict()))) == configuration


def test_names_of_algorithms_and_methods_are_checked():
    with pytest.raises(UsageError, match="there is no algorithm 'PPO'; there are reinforce"):
        configuration_for("PPO", "CartPole-v1")
    with pytest.raises(UsageError, match="there is no method 'DPO'; there are sft"):
        alignment.configure("DPO")
