"""Where all answers earn the same there is nothing to learn: the policy stays as it is, to the bit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from surefoot.alignment.models.adapters import add_adapter
from surefoot.alignment.models.configuration import AdapterConfiguration
from surefoot.alignment.reference import LiveReference
from tests.alignment.models.tiny import language_model
from tests.alignment.rlhf.experiences import digest, iterate, learner, moved, plain_training, some_prompts, weights_of

torch.set_num_threads(1)


@dataclass
class Constant:
    """Every answer earns the same."""

    reward: float = 0.0
    name: str = "a constant"

    def rewards(self, prompts, answers, finished):
        return np.full(len(finished), self.reward)


KINDS = [
    {"weight": "group"},
    {"weight": "group", "divide_by_deviation": True},
    {"weight": "group", "divide_by_deviation": True, "kl_placement": "loss"},
    {"weight": "group", "kl_placement": "loss", "minibatches": 2},
    {"weight": "leave-one-out", "minibatches": 2},
    {"weight": "leave-one-out", "whiten_advantages": True},
    {"weight": "group", "whiten_rewards": True},
    {"weight": "reward-to-go"},
    {"weight": "reward-to-go", "whiten_advantages": True, "kl_placement": "loss"},
    {"weight": "gae", "critic": "shared"},
    {"weight": "gae", "critic": "shared", "whiten_advantages": True, "whiten_rewards": True},
]


def constant(reward=0.0, adapter=False, **choices):
    model = language_model()
    if adapter:
        model = add_adapter(model.train(), AdapterConfiguration(lora_rank=2), seed=0)
    critic = choices.pop("critic", None)
    one = learner(critic=critic, model=model, training=plain_training(), **{"answers_per_prompt": 4} | choices)
    one.reward = Constant(reward)
    return one


@pytest.mark.parametrize("beta", [0.0, 1e-6, 0.05])
@pytest.mark.parametrize("choices", KINDS)
def test_nothing_moves(choices, beta):
    one = constant(beta=beta, **choices)
    before = digest(one)
    for metrics in iterate(one, 3):
        assert metrics["weight/deviation"] == 0
        assert metrics.get("kl/reference", 0.0) == 0  # and not what rounding leaves
    assert digest(one) == before


@pytest.mark.parametrize(
    "choices", [{"at_once": True}, {"adapter": True}, {"reward": 0.1}, {"reward": 0.1, "whiten_rewards": True}]
)
def test_nothing_moves_however_it_is_computed(choices):
    one = constant(weight="group", divide_by_deviation=True, temperature=0.7, shortest_answer=2, **choices)
    before = digest(one)
    iterate(one, 2)
    one.close()
    assert digest(one) == before


@pytest.mark.parametrize("adapter", [False, True])
def test_a_policy_that_was_moved_is_compared_with_its_reference(adapter):
    one = constant(weight="group", adapter=adapter)
    iterate(one)
    if adapter:
        with torch.no_grad():
            for name, parameter in one.actor.model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(generator=torch.Generator().manual_seed(0))
    else:
        moved(one.actor.model, 0.05)
    before = weights_of(one.actor.model)
    (metrics,) = iterate(one)
    assert abs(metrics["kl/reference"]) > 1e-3
    assert not torch.equal(weights_of(one.actor.model), before)


def forwards(monkeypatch):
    """How often the reference is computed."""
    seen = []
    computed = LiveReference.completions
    monkeypatch.setattr(
        LiveReference, "completions", lambda self, groups, **options: seen.append(1) or computed(self, groups, **options)
    )
    return seen


@pytest.mark.parametrize("placement", ["reward", "loss"])
def test_the_reference_is_computed_only_where_it_differs_from_the_policy_and_counts(placement, monkeypatch):
    seen = forwards(monkeypatch)
    one = learner(critic=None, weight="leave-one-out", kl_placement=placement, beta=0.05)
    iterate(one)
    assert len(seen) == 0  # the policy is the reference
    iterate(one, 2)
    assert len(seen) == 2
    without = learner(critic=None, weight="leave-one-out", beta=0.0)
    without.reference = None
    for metrics in iterate(without, 3):
        assert "kl/reference" not in metrics
    assert len(seen) == 2
    experience = without.experience(some_prompts())
    assert experience.reference is None
    assert experience.kl_to_reference is None
