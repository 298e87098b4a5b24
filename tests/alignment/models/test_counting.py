"""Operations counted by formula, against PyTorch's own count of what it ran."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from surefoot.alignment.models.adapters import add_adapter
from surefoot.alignment.models.configuration import AdapterConfiguration
from surefoot.alignment.models.counting import backward_flops, forward_flops, matrix_rate
from tests.alignment.models.tiny import FAMILIES, language_model, reward_model

BATCH, LENGTH = 2, 6
IDS = torch.randint(3, 24, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
COUNTS = {"tokens": BATCH * LENGTH, "scored": BATCH * LENGTH, "attention_pairs": BATCH * LENGTH * LENGTH}


def counted(model):
    """(forward, backward)."""
    model.set_attn_implementation("eager")  # which computes all pairs, causal or not
    with FlopCounterMode(display=False) as forward:
        logits = model(IDS, use_cache=False).logits
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_forward_and_a_backward_pass_cost_what_pytorch_counts(family):
    model = language_model(family)
    forward, backward = forward_flops(model, **COUNTS), backward_flops(model, **COUNTS)
    assert (forward, backward) == counted(model)
    assert backward == 2 * forward


def test_by_hand():
    model = language_model("qwen3")  # 16 wide, 4 heads of 8 over 2 of keys and values, 24 in between, 24 words, 2 layers
    layer = 16 * 32 + 2 * 16 * 16 + 32 * 16 + 3 * 16 * 24
    assert forward_flops(model, tokens=1, scored=0, attention_pairs=0) == 2 * 2 * layer
    assert forward_flops(model, tokens=0, scored=1, attention_pairs=0) == 2 * 16 * 24
    assert forward_flops(model, tokens=0, scored=0, attention_pairs=1) == 2 * 2 * (2 * 4 * 8)


def test_a_reward_head_costs_one_row():
    model = reward_model()
    assert forward_flops(model, tokens=0, scored=5, attention_pairs=0) == 2 * 16 * 5
    assert (forward_flops(model, **COUNTS), backward_flops(model, **COUNTS)) == counted(model)


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_frozen_weights_need_no_gradient_of_their_own(family):
    model = add_adapter(language_model(family), AdapterConfiguration(lora_rank=2))
    model.enable_input_require_grads()  # else PyTorch spares the first layer's input, which the formula does not
    forward, backward = counted(model)
    assert forward_flops(model, **COUNTS) == forward
    assert backward_flops(model, **COUNTS) == backward
    assert forward < backward < 2 * forward


def test_an_adapted_reward_models_head_is_trained():
    model = add_adapter(reward_model(), AdapterConfiguration(lora_rank=2))
    assert backward_flops(model, tokens=0, scored=5, attention_pairs=0) == 2 * 2 * 16 * 5


def test_the_rate_is_that_of_the_best_product():
    rate = matrix_rate(torch.device("cpu"), 0.1)
    left, right = torch.randn(2, 512, 512)
    with FlopCounterMode(display=False) as counter:
        left @ right
    assert counter.get_total_flops() == 2 * 512**3
    assert 1e8 < rate < 1e14


def test_the_rate_is_operations_over_the_shortest_time(monkeypatch):
    from surefoot.alignment.models import counting

    times = iter([0.01, 5.0, 0.25, 0.5, 99.0])
    monkeypatch.setattr(counting, "_timed_product", lambda left, right: next(times))
    assert matrix_rate(torch.device("cpu"), 1.0) == 2 * 1024**3 / 0.25
    assert next(times) == 99, "one to warm up, then at least three"
