"""Low-rank adapters: the function that they compute, what they leave alone, and what is trained."""

from __future__ import annotations

import pytest
import torch

from surefoot.alignment.models.adapters import (
    adapter_switched_off,
    add_adapter,
    is_adapted,
    merged_weights,
    trainable_parameters,
)
from surefoot.alignment.models.configuration import AdapterConfiguration
from surefoot.errors import UsageError
from tests.alignment.likelihood.architectures import build
from tests.alignment.models.tiny import FAMILIES, language_model, reward_model

IDS = torch.tensor([[3, 5, 4, 9], [6, 3, 8, 1]])
RANK_TWO = AdapterConfiguration(lora_rank=2)


def trained(model):
    """As if training had changed every weight that it may."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in trainable_parameters(model):
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    return model


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(left, right):
    assert left.keys() == right.keys()
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_adapter_computes_what_the_model_did(family):
    model = language_model(family).eval()
    before = model(IDS).logits
    assert torch.equal(add_adapter(model, RANK_TWO).eval()(IDS).logits, before)


def test_an_adapted_layer_is_the_published_formula():
    adapted = trained(add_adapter(language_model(), AdapterConfiguration(lora_rank=2, lora_alpha=6)))
    layer = adapted.get_base_model().model.layers[1].self_attn.q_proj
    x = torch.randn(5, 16)
    expected = x @ (layer.base_layer.weight + 6 / 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight).T
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_layers_but_the_head_are_adapted(family):
    adapted = add_adapter(language_model(family), RANK_TWO)
    names = [name for name, _ in trainable_parameters(adapted)]
    assert all("lora_A" in name or "lora_B" in name for name in names)
    assert not any("head" in name or "embed" in name for name in names)
    layers = {name.split(".lora_")[0] for name in names}
    per_layer = {"gpt2": 4, "gpt_neox": 4, "opt": 6, "phi3": 4}.get(family, 7)
    assert len([name for name in layers if ".0." in name]) == per_layer
    outside = {"opt": 2}.get(family, 0)  # its projections between embedding and layers
    assert len(layers) == 2 * per_layer + outside


def test_only_named_layers_are_adapted_and_unknown_names_are_refused():
    adapted = add_adapter(language_model(), AdapterConfiguration(lora_rank=2, lora_targets="q_proj, v_proj"))
    layers = {name.split(".lora_")[0].rpartition(".")[2] for name, _ in trainable_parameters(adapted)}
    assert layers == {"q_proj", "v_proj"}
    for wrong in ("q_proj,w_proj", "w_proj"):
        with pytest.raises(UsageError, match=r"no linear layer 'w_proj'; it has down_proj, gate_proj, k_proj, o_proj, q_proj"):
            add_adapter(language_model(), AdapterConfiguration(lora_rank=2, lora_targets=wrong))
    for outside in ("lm_head", "embed_tokens"):
        with pytest.raises(UsageError, match=f"no linear layer '{outside}'"):
            add_adapter(language_model(), AdapterConfiguration(lora_rank=2, lora_targets=outside))


def test_a_reward_models_head_is_trained_as_a_whole():
    names = [name for name, _ in trainable_parameters(add_adapter(reward_model(), RANK_TWO))]
    assert [name for name in names if "lora" not in name] == ["base_model.model.score.modules_to_save.default.weight"]


def test_without_an_adapter_everything_is_trained_and_tied_weights_once():
    model = language_model("qwen2")
    found = trainable_parameters(model)
    assert len({id(parameter) for _, parameter in found}) == len(found)
    assert sum(parameter.numel() for _, parameter in found) == model.num_parameters()


def test_the_first_weights_come_from_the_seed_alone():
    first, again, other = (weights(add_adapter(language_model(), RANK_TWO, seed=seed)) for seed in (3, 3, 4))
    assert same(first, again)
    assert not same(first, other)
    model = language_model()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    add_adapter(model, RANK_TWO, seed=3)
    assert torch.equal(torch.rand(3), expected), "PyTorch's own random state is where it was"


@pytest.mark.parametrize("make", [language_model, reward_model])
def test_switched_off_the_model_is_what_it_was(make):
    model = make().eval()
    before = model(IDS).logits
    adapted = trained(add_adapter(model, RANK_TWO)).eval()
    after = adapted(IDS).logits
    assert not torch.allclose(after, before)
    names = [name for name, _ in trainable_parameters(adapted)]
    with adapter_switched_off(adapted):
        assert torch.equal(adapted(IDS).logits, before)
    assert torch.equal(adapted(IDS).logits, after)
    assert [name for name, _ in trainable_parameters(adapted)] == names


def test_it_is_switched_on_again_after_an_error():
    adapted = trained(add_adapter(language_model(), RANK_TWO)).eval()
    after = adapted(IDS).logits
    with pytest.raises(KeyboardInterrupt), adapter_switched_off(adapted):
        raise KeyboardInterrupt
    assert torch.equal(adapted(IDS).logits, after)


def test_a_model_without_adapter_is_no_reference_of_itself():
    with pytest.raises(ValueError, match="no adapter that could be switched off"), adapter_switched_off(language_model()):
        pass
    assert not is_adapted(language_model())
    assert is_adapted(add_adapter(language_model(), RANK_TWO))


@pytest.mark.parametrize(
    ("family", "make"), [*((family, language_model) for family in FAMILIES), ("llama", reward_model), ("gpt2", reward_model)]
)
def test_merging_gives_the_weights_of_a_plain_model_and_leaves_the_adapted_one_alone(family, make):
    plain = make(family)
    adapted = trained(add_adapter(make(family), RANK_TWO)).train()
    adapted(IDS).logits.sum().backward()
    before, expected = weights(adapted), adapted.eval()(IDS).logits
    adapted.train()
    plain.load_state_dict(merged_weights(adapted))  # which refuses names that are missing, or too many
    torch.testing.assert_close(plain.eval()(IDS).logits, expected, rtol=1e-3, atol=1e-3)
    assert same(weights(adapted), before)
    assert adapted.training
    assert all(parameter.grad is not None for _, parameter in trainable_parameters(adapted))


def test_merging_keeps_tied_weights_tied_and_copies_nothing_that_it_does_not_change():
    adapted = add_adapter(language_model("qwen2"), RANK_TWO)
    merged = merged_weights(adapted)
    embedding = adapted.get_base_model().model.embed_tokens.weight
    assert merged["lm_head.weight"].data_ptr() == merged["model.embed_tokens.weight"].data_ptr() == embedding.data_ptr()


def test_merged_weights_are_float32_whatever_was_trained():
    adapted = trained(add_adapter(language_model("qwen2").to(torch.bfloat16), RANK_TWO))
    layer = adapted.get_base_model().model.layers[0].self_attn.q_proj
    added = 2 * layer.lora_B["default"].weight.double() @ layer.lora_A["default"].weight.double()  # α/r is 2
    merged = merged_weights(adapted)
    assert {weight.dtype for weight in merged.values()} == {torch.float32}
    expected = layer.base_layer.weight.double() + added
    torch.testing.assert_close(merged["model.layers.0.self_attn.q_proj.weight"].double(), expected, rtol=1e-5, atol=1e-6)


def test_layers_that_an_adapter_would_not_reach_are_left_out_and_named():
    notices = []
    adapted = trained(add_adapter(build("mamba"), RANK_TWO, notify=notices.append))
    layers = {name.split(".lora_")[0].rpartition(".")[2] for name, _ in trainable_parameters(adapted)}
    assert layers == {"in_proj", "x_proj"}
    assert notices == ["no adapter for dt_proj, out_proj: mamba does not use such layers as plain linear ones"]
    plain = build("mamba")
    plain.load_state_dict(merged_weights(adapted))
    torch.testing.assert_close(plain(IDS).logits, adapted.eval()(IDS).logits, rtol=1e-3, atol=1e-3)
    for name in ("dt_proj", "out_proj"):
        with pytest.raises(UsageError, match=f"--lora-targets: '{name}' cannot have an adapter: mamba does not use it"):
            add_adapter(build("mamba"), AdapterConfiguration(lora_rank=2, lora_targets=f"in_proj,{name}"))
    notices.clear()
    add_adapter(language_model(), RANK_TWO, notify=notices.append)
    assert notices == []


@pytest.mark.parametrize(
    "name", ["llama4_text", "mixtral", "jamba"]
)  # a router that is a layer of its own, experts in one tensor, both
def test_what_is_merged_computes_what_was_trained(name):
    adapted = trained(add_adapter(build(name), RANK_TWO, notify=lambda sentence: None))
    plain = build(name)
    plain.load_state_dict(merged_weights(adapted))
    expected = adapted.eval()(IDS).logits
    torch.testing.assert_close(plain(IDS).logits, expected, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(build(name)(IDS).logits, expected, rtol=1e-3, atol=1e-3)


def test_what_peft_complains_about_is_one_sentence(monkeypatch):
    def refuse(*_, **__):
        raise ValueError("Errors in the adapter:\n  no such thing\n  and more")

    monkeypatch.setattr("peft.get_peft_model", refuse)
    with pytest.raises(
        UsageError, match=r"^--model llama cannot be given an adapter: Errors in the adapter: no such thing and more$"
    ):
        add_adapter(language_model(), RANK_TWO)
