"""Fingerprints: the same weights give the same, and nothing else does."""

from __future__ import annotations

import copy
import time

import pytest
import torch

from surefoot.alignment.models import fingerprint
from surefoot.alignment.models.adapters import adapter_switched_off, add_adapter, trainable_parameters
from surefoot.alignment.models.configuration import AdapterConfiguration, ModelConfiguration
from surefoot.alignment.models.fingerprint import weights_fingerprint
from surefoot.alignment.models.loading import load_policy
from tests.alignment.models.tiny import FAMILIES, language_model, reward_model, save_language_model
from tests.alignment.tokenizers import word_level

RANK_TWO = AdapterConfiguration(lora_rank=2)


def flip_one_bit(tensor):
    tensor.data.reshape(-1).view(torch.int32)[-1] ^= 1


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_and_loaded_weights_have_the_same_fingerprint(tmp_path, family):
    model = save_language_model(tmp_path, family)
    first = weights_fingerprint(model)
    assert len(first) == 64
    assert int(first, 16) >= 0
    loaded = load_policy(ModelConfiguration(str(tmp_path)), word_level(), notify=lambda notice: None)
    assert weights_fingerprint(loaded) == first
    assert weights_fingerprint(copy.deepcopy(model)) == first


@pytest.mark.parametrize("family", FAMILIES)
def test_every_bit_of_every_weight_counts(family):
    model = language_model(family)
    first = weights_fingerprint(model)
    for parameter in model.parameters():
        flip_one_bit(parameter)
        assert weights_fingerprint(model) != first
        flip_one_bit(parameter)
    assert weights_fingerprint(model) == first


def test_names_shapes_and_types_count():
    def layer(weight, name="weight"):
        module = torch.nn.Module()
        module.register_parameter(name, torch.nn.Parameter(weight))
        return module

    weight = torch.zeros(2, 6)
    kinds = [
        layer(weight),
        layer(weight, "other"),
        layer(weight.reshape(3, 4)),
        layer(torch.zeros(2, 12, dtype=torch.bfloat16)),
    ]
    kinds.append(layer(torch.zeros(2, 12, dtype=torch.float16)))
    kinds.append(layer(torch.zeros(2, 6, dtype=torch.float64)))
    assert len({weights_fingerprint(kind) for kind in kinds}) == len(kinds)


def test_buffers_count_even_those_that_are_not_saved():
    slow, fast = language_model(), language_model(rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    assert slow.state_dict().keys() == fast.state_dict().keys()
    assert all(torch.equal(tensor, fast.state_dict()[name]) for name, tensor in slow.state_dict().items())
    assert weights_fingerprint(slow) != weights_fingerprint(fast)


def test_layout_in_memory_and_the_size_of_chunks_do_not_count(monkeypatch):
    model = language_model()
    first = weights_fingerprint(model)
    weight = model.lm_head.weight
    weight.data = weight.data.t().contiguous().t()
    assert not weight.is_contiguous()
    assert weights_fingerprint(model) == first
    monkeypatch.setattr(fingerprint, "CHUNK", 7)
    assert weights_fingerprint(model) == first


@pytest.mark.parametrize("make", [language_model, reward_model])
def test_an_adapter_counts_when_it_is_on_and_the_base_alone_when_it_is_off(make):
    plain = weights_fingerprint(make())
    model = add_adapter(make(), RANK_TWO)
    on = weights_fingerprint(model)
    assert on != plain
    for name, parameter in trainable_parameters(model):
        flip_one_bit(parameter)
        assert weights_fingerprint(model) != on, name
        with adapter_switched_off(model):
            assert weights_fingerprint(model) == plain
        flip_one_bit(parameter)
    assert weights_fingerprint(model) == on
    base = model.get_base_model().model.layers[0].self_attn.q_proj.base_layer.weight
    flip_one_bit(base)
    assert weights_fingerprint(model) != on
    with adapter_switched_off(model):
        assert weights_fingerprint(model) != plain


def test_an_adapters_scale_counts():
    models = [add_adapter(language_model(), AdapterConfiguration(lora_rank=2, lora_alpha=alpha)) for alpha in (1, 2)]
    assert len({weights_fingerprint(model) for model in models}) == 2


def test_mode_and_gradients_do_not_count():
    model = language_model()
    first = weights_fingerprint(model.train())
    model(torch.tensor([[3, 4]])).logits.sum().backward()
    assert weights_fingerprint(model.eval()) == first


def test_it_takes_a_second_for_gigabytes():
    model = torch.nn.Linear(8192, 2048)  # 64 MiB
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        weights_fingerprint(model)
        times.append(time.perf_counter() - begin)
    assert 2**26 / min(times) > 200e6, "bytes per second, of a processor that others use too"
