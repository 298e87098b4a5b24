"""Every option of PPO does something, or is refused."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
import torch

from surefoot.alignment.configuration import configure
from surefoot.alignment.models.configuration import AdapterConfiguration, ModelConfiguration
from surefoot.alignment.rlhf.configuration import PPOConfiguration
from surefoot.commands.align import run as command
from surefoot.errors import UsageError
from tests.alignment.rlhf.experiences import learner, plain_training, settings, some_prompts, weights_of

torch.set_num_threads(1)

OPTIONS = {
    "weight": [{"weight": "reward-to-go"}, {"weight": "group"}, {"weight": "leave-one-out"}],
    "answers_per_prompt": [{"answers_per_prompt": 4}],
    "temperature": [{"temperature": 0.7}],
    "longest_answer": [{"longest_answer": 4}],
    "shortest_answer": [{"shortest_answer": 4}],
    "beta": [{"beta": 0.5}],
    "kl_placement": [{"kl_placement": "loss"}],
    "kl_target": [{"kl_target": 0.1}],
    "kl_horizon": [{"kl_target": 0.1, "kl_horizon": 20}],
    "discount": [{"discount": 0.8}],
    "trace_decay": [{"trace_decay": 0.5}],
    "critic": [{"critic": "shared"}],
    "critic_learning_rate": [{"critic_learning_rate": 0.1}],
    "value_coefficient": [{"critic": "shared", "value_coefficient": 3.0}],
    "value_clip_range": [{"value_clip_range": 0.001}],
    "update_epochs": [{"update_epochs": 3}],
    "minibatches": [{"minibatches": 2}],
    "clip_range": [{"clip_range": 0.001}],
    "target_kl": [{"target_kl": 1e-5}],
    "entropy_coefficient": [{"entropy_coefficient": 0.5}],
    "whiten_advantages": [{"whiten_advantages": True}],
    "whiten_rewards": [{"whiten_rewards": True}],
    "divide_by_deviation": [{"weight": "group", "divide_by_deviation": True}],
    "standardize_rewards": [{"standardize_rewards": "center"}, {"standardize_rewards": "scale"}],
    "unfinished_reward": [{"unfinished_reward": -2.0}],
    "unfinished_penalty": [{"unfinished_penalty": 2.0}],
}
IN_RUNS = {"reward", "stop_kl", "samples_every"}
"""Options that the run reads and not the learner: tests of whole runs have them."""
TRAINING = [
    {"learning_rate": 0.02},
    {"learning_rate_schedule": "linear"},
    {"learning_rate_schedule": "cosine"},
    {"warmup": 0.9},
    {"weight_decay": 0.5},
    {"adam_epsilon": 0.1},
    {"max_gradient_norm": 1e-9, "adam_epsilon": 0.1},
    {"seed": 1},
]


def outcome(*, training=None, times=2, **choices):
    """What two iterations make of the policy and of its critic."""
    critic = "shared" if choices.pop("critic", None) == "shared" else "own"
    one = learner(critic=critic, training=plain_training(**(training or {})), **{"update_epochs": 2} | choices)
    for _ in range(times):
        one.iterate(some_prompts(2))
    models = [one.actor.model]
    if one.critic is not None:
        models.append(one.critic.head if critic == "shared" else one.critic.likelihood.model)
    return torch.cat([weights_of(model) for model in models]).numpy().tobytes()


def test_no_option_is_forgotten():
    assert OPTIONS.keys() | IN_RUNS == {field.name for field in fields(PPOConfiguration)}


def test_no_option_is_dead():
    seen = {outcome(): "the defaults"}
    cases = [(options, {}) for kinds in OPTIONS.values() for options in kinds] + [({}, training) for training in TRAINING]
    for options, training in cases:
        result = outcome(training=training, **options)
        assert result not in seen, f"{options | training} changes nothing against {seen[result]}"
        seen[result] = options | training


@pytest.mark.parametrize(
    ("base", "changed"),
    [
        ({"weight": "group"}, {"discount": 0.5, "trace_decay": 0.5, "value_clip_range": 0.1, "critic": "policy"}),
        ({"weight": "reward-to-go"}, {"trace_decay": 0.5, "divide_by_deviation": True, "value_coefficient": 2.0}),
        ({"critic": "shared"}, {"critic_learning_rate": 0.5}),
        ({}, {"value_coefficient": 2.0, "kl_horizon": 20}),
        ({"beta": 0.0}, {"kl_placement": "loss"}),
        ({"update_epochs": 1}, {"clip_range": 0.01, "target_kl": 1e-4, "value_clip_range": 0.01}),
    ],
)
def test_what_is_called_idle_is(base, changed):
    idle = settings(**base | changed).idle_options()
    assert changed.keys() <= idle.keys()
    assert outcome(times=1, **base) == outcome(times=1, **base | changed)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--weight", "group", "--trace-decay", "0.9"], "no critic"),
        (["--weight", "leave-one-out", "--discount", "0.9"], "whole return"),
        (["--divide-by-deviation"], "divides by nothing"),
        (["--critic", "shared", "--critic-learning-rate", "1e-5"], "its head"),
        (["--value-coefficient", "0.5"], "own optimiser"),
        (["--kl-horizon", "100"], "does not adapt"),
        (["--beta", "0", "--kl-placement", "loss"], "no KL penalty"),
        (["--held-out", "0.1"], "measures reward"),
        (["--top-k", "5"], "support"),
        (["--top-p", "0.9"], "support"),
        (["--weight", "group", "--answers-per-prompt", "1"], "at least 2"),
        (["--temperature", "0"], "temperature"),
        (["--shortest-answer", "65"], "longer than"),
        (["--kl-target", "1", "--beta", "0"], "must be positive to begin with"),
        (["--unfinished-reward", "0", "--unfinished-penalty", "1"], "leave one out"),
        (["--stop-kl", "0"], "stop-kl"),
        (["--minibatches", "0"], "minibatches"),
        (["--minibatches", "17"], "17 cuts a batch of 16"),
        (["--kl-target", "1", "--kl-horizon", "63"], "64 answers of one iteration"),
        (["--weight", "group", "--standardize-rewards", "center"], "take scale"),
        (["--update-epochs", "1", "--clip-range", "0.3"], "every ratio is 1"),
    ],
)
def test_the_command_line_refuses_what_would_do_nothing_or_harm(arguments, said, tmp_path):
    given = ["ppo", "--model", str(tmp_path), "--data", str(tmp_path), "--reward", "no.where:at_all"]
    with pytest.raises(UsageError, match=said):
        command([*given, *arguments], started=0.0)


def test_a_reward_must_be_named(tmp_path):
    with pytest.raises(UsageError, match="--reward is missing"):
        command(["ppo", "--model", str(tmp_path), "--data", str(tmp_path)], started=0.0)
    with pytest.raises(UsageError, match="--reward is empty"):
        settings_of("  ")


def settings_of(reward):
    return replace(configure("ppo").objective, reward=reward)


@pytest.mark.parametrize(
    "wrong",
    [
        {"answers_per_prompt": 0},
        {"longest_answer": 0},
        {"update_epochs": 0},
        {"kl_horizon": 0},
        {"samples_every": -1},
        {"clip_range": 0.0},
        {"temperature": math.inf},
        {"kl_target": -1.0},
        {"target_kl": math.nan},
        {"critic_learning_rate": 0.0},
        {"value_clip_range": 0.0},
        {"beta": -0.1},
        {"beta": math.inf},
        {"value_coefficient": math.nan},
        {"entropy_coefficient": -1.0},
        {"unfinished_penalty": -1.0},
        {"unfinished_reward": math.nan},
        {"discount": 1.1},
        {"trace_decay": -0.1},
    ],
)
def test_numbers_outside_their_range_are_refused_by_name(wrong):
    (name,) = wrong
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')}"):
        settings(**wrong)


def test_the_defaults_are_those_that_the_literature_found_to_matter():
    chosen = configure("ppo")
    assert chosen.training.adam_epsilon == 1e-5
    assert chosen.training.warmup == 0
    assert not chosen.model.dropout


@pytest.mark.parametrize(
    "changes",
    [{"model": ModelConfiguration("m", dropout=True)}, {"adapter": AdapterConfiguration(lora_rank=2, lora_dropout=0.1)}],
)
def test_dropout_is_refused_since_answers_are_sampled_without_it(changes):
    with pytest.raises(UsageError, match="dropout is refused with ppo"):
        replace(configure("ppo", model="m", data="d", reward="r"), **changes)
