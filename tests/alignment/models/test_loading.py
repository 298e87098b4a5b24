"""Policies from folders: exactly the weights in the file, or a sentence."""

from __future__ import annotations

import json
import socket

import pytest
import torch
import transformers as t
from safetensors.torch import load_file, save_file

from surefoot.alignment.models.adapters import add_adapter
from surefoot.alignment.models.configuration import AdapterConfiguration, ModelConfiguration
from surefoot.alignment.models.loading import hidden_states_and_head, load_policy
from surefoot.errors import UsageError
from tests.alignment.models.tiny import FAMILIES, language_model, reward_model, save_language_model
from tests.alignment.tokenizers import gpt2_like, word_level

IDS = torch.tensor([[3, 5, 4, 9], [6, 3, 8, 1]])
PROJECTION = "model.layers.0.mlp.up_proj.weight"


def policy(folder, tokenizer=None, **options):
    return load_policy(ModelConfiguration(str(folder), **options), tokenizer or word_level())


def refused(folder, sentence, tokenizer=None, **options):
    with pytest.raises(UsageError, match=sentence) as error:
        policy(folder, tokenizer, **options)
    assert "\n" not in str(error.value)


@pytest.fixture
def llama(tmp_path):
    save_language_model(tmp_path / "llama")
    return tmp_path / "llama"


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_policy_computes_what_was_saved(tmp_path, family, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a local folder needs no network"))
    original = save_language_model(tmp_path, family).eval()
    loaded = policy(tmp_path)
    assert loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    torch.testing.assert_close(loaded(IDS).logits, original(IDS).logits, rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("adapted", [False, True])
def test_the_head_on_the_hidden_states_gives_the_logits(family, adapted):
    model = language_model(family).eval()
    if adapted:
        model = add_adapter(model, AdapterConfiguration(lora_rank=2)).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_()
    trunk, head = hidden_states_and_head(model)
    assert torch.equal(head(trunk(IDS).last_hidden_state), model(IDS).logits)
    if adapted:
        with model.disable_adapter():
            plain = head(trunk(IDS).last_hidden_state)
        assert not torch.allclose(plain, model(IDS).logits)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("adapted", [False, True])
def test_the_reward_head_on_the_hidden_states_gives_the_score(family, adapted):
    model = reward_model(family).eval()
    if adapted:
        model = add_adapter(model, AdapterConfiguration(lora_rank=2)).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name or "score.modules_to_save" in name:
                    parameter.normal_()
    trunk, head = hidden_states_and_head(model)
    assert head.weight.shape[0] == 1
    assert torch.equal(head(trunk(IDS).last_hidden_state)[:, -1], model(IDS).logits)


def test_weights_in_half_precision_become_float32_unless_bfloat16_is_asked_for(tmp_path):
    save_language_model(tmp_path).to(torch.bfloat16).save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")[PROJECTION]
    assert saved.dtype == torch.bfloat16
    for precision, expected in (("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        loaded = policy(tmp_path, device="cpu", precision=precision)
        assert {parameter.dtype for parameter in loaded.parameters()} == {expected}
        assert torch.equal(loaded.get_parameter(PROJECTION).to(torch.bfloat16), saved)


@pytest.mark.parametrize("family", ["gpt2", "opt", "gpt_neox", "llama", "phi3"])
def test_dropout_is_off_unless_it_is_asked_for(tmp_path, family):
    rates = {
        "gpt2": {"resid_pdrop": 0.5, "attn_pdrop": 0.0, "embd_pdrop": 0.0},
        "opt": {"dropout": 0.0, "layerdrop": 0.5},
        "gpt_neox": {"hidden_dropout": 0.5},
        "llama": {"attention_dropout": 0.5},
        "phi3": {"resid_pdrop": 0.5},
    }[family]
    original = save_language_model(tmp_path, family, **rates).eval()
    notices = []
    quiet = load_policy(ModelConfiguration(str(tmp_path)), word_level(), notify=notices.append)
    for _ in range(3):
        assert torch.equal(quiet(IDS).logits, original(IDS).logits)
    (active,) = [name for name, rate in rates.items() if rate]
    assert notices == [f"dropout is off: 1 of the model's settings became 0 ({active} 0.5); --dropout keeps them"]
    noisy = policy(tmp_path, dropout=True)
    assert any(not torch.equal(noisy(IDS).logits, original(IDS).logits) for _ in range(10))


def test_dropout_that_the_model_does_not_have_is_refused(llama):
    refused(llama, "--dropout would do nothing: .* is configured without any", dropout=True)


def test_gradient_checkpointing_changes_memory_and_not_gradients(llama):
    gradients = []
    for checkpointing in (False, True):
        model = policy(llama, gradient_checkpointing=checkpointing)
        assert model.model.layers[0].gradient_checkpointing is checkpointing
        model(IDS).logits.square().mean().backward()
        gradients.append(model.get_parameter(PROJECTION).grad)
    torch.testing.assert_close(*gradients)


def test_gradients_reach_an_adapter_through_checkpoints(llama):
    model = add_adapter(policy(llama, gradient_checkpointing=True), AdapterConfiguration(lora_rank=2))
    model(IDS).logits.square().mean().backward()
    found = [parameter.grad is not None for name, parameter in model.named_parameters() if "lora_B" in name]
    assert found
    assert all(found)


def test_the_end_of_an_answer_learns_even_where_it_also_pads(tmp_path):
    save_language_model(tmp_path, pad_token_id=1)
    model = policy(tmp_path)
    model(torch.tensor([[3, 1, 4]])).logits.square().mean().backward()
    assert model.get_input_embeddings().weight.grad[1].abs().sum() > 0


def test_weights_that_are_missing_are_an_error(llama):
    change_weights(llama, lambda weights: weights.pop(PROJECTION))
    refused(llama, f"lacks weights: {PROJECTION}; give a folder with all of them")


def test_a_missing_head_is_an_error_unless_it_is_the_embedding(tmp_path):
    save_language_model(tmp_path / "own")
    change_weights(tmp_path / "own", lambda weights: weights.pop("lm_head.weight"))
    refused(tmp_path / "own", "lacks weights: lm_head.weight")
    save_language_model(tmp_path / "tied", "qwen2")
    assert "lm_head.weight" not in load_file(tmp_path / "tied" / "model.safetensors")
    model = policy(tmp_path / "tied")
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_model_that_does_not_say_what_saved_it_is_taken_for_what_its_weights_are(llama):
    change_config(llama, architectures=None)
    torch.testing.assert_close(policy(llama)(IDS).logits, language_model()(IDS).logits)


def test_weights_of_the_wrong_shape_are_an_error(llama):
    change_weights(llama, lambda weights: weights.update({PROJECTION: torch.zeros(3, 5)}))
    refused(llama, rf"{PROJECTION} has shape \(3, 5\) in the file, and \(24, 16\) by config.json")


def test_weights_without_a_place_are_told(llama):
    change_weights(llama, lambda weights: weights.update({"v_head.weight": torch.zeros(1, 16)}))
    notices = []
    load_policy(ModelConfiguration(str(llama)), word_level(), notify=notices.append)
    assert notices == [f"{llama} holds weights that the model has no place for, and that are left out: v_head.weight"]


def test_weights_that_are_not_finite_are_an_error(llama):
    change_weights(llama, lambda weights: weights[PROJECTION].fill_(torch.nan))
    refused(llama, "computes numbers that are not finite")


def test_a_torn_file_is_an_error(llama):
    content = (llama / "model.safetensors").read_bytes()
    (llama / "model.safetensors").write_bytes(content[: len(content) // 2])
    refused(llama, "cannot be loaded: ")


def test_folders_that_hold_no_model_are_refused(tmp_path, llama):
    refused(tmp_path / "not" / "there", "does not exist; give a folder with a model, or its name on the hub")
    refused(llama / "config.json", "is a file; give the folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no config.json")
    (llama / "model.safetensors").unlink()
    refused(llama, r"holds no \*.safetensors, so no weights")


def test_pickled_weights_are_refused_with_how_to_convert_them(llama, tmp_path, monkeypatch):
    (llama / "model.safetensors").unlink()
    torch.save(language_model().state_dict(), llama / "pytorch_model.bin")
    with pytest.raises(UsageError, match="pickle, which can run code") as error:
        policy(llama)
    monkeypatch.chdir(tmp_path)
    exec(str(error.value).partition('-c "')[2].partition('", copy')[0])
    word_level().save_pretrained(tmp_path / "converted")
    torch.testing.assert_close(policy(tmp_path / "converted")(IDS).logits, language_model().eval()(IDS).logits)


def test_models_of_another_kind_are_refused(tmp_path):
    reward_model().save_pretrained(tmp_path / "reward")
    refused(tmp_path / "reward", "is a reward model: it was saved by LlamaForSequenceClassification")
    language_model().model.save_pretrained(tmp_path / "trunk")
    refused(tmp_path / "trunk", "is no causal language model: it was saved by LlamaModel")
    shape = {"vocab_size": 24, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    t.BertForMaskedLM(t.BertConfig(**shape)).save_pretrained(tmp_path / "encoder")
    refused(tmp_path / "encoder", "is no causal language model: it was saved by BertForMaskedLM")
    torch.manual_seed(0)
    t.BertLMHeadModel(t.BertConfig(**shape, initializer_range=0.5)).save_pretrained(tmp_path / "disguised")
    refused(tmp_path / "disguised", "what it predicts depends on the tokens that follow")
    change_config(tmp_path / "reward", model_type="unheard-of")
    refused(tmp_path / "reward", "cannot be loaded: .*unheard-of")


def test_a_tokenizer_with_more_ids_than_the_embedding_is_refused(llama):
    refused(llama, "its embedding has 24 rows, and its tokenizer ids up to 3", gpt2_like())


def test_quantised_weights_are_refused(llama):
    change_config(llama, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    refused(llama, "has quantised weights, which cannot be trained")


def test_code_that_comes_with_a_model_runs_only_when_asked_for(llama):
    refused(llama, "--trust-remote-code would do nothing", trust_remote_code=True)
    (llama / "mine.py").write_text(
        "from transformers import LlamaConfig\nclass MineConfig(LlamaConfig):\n    model_type = 'mine'\n"
    )
    change_config(llama, model_type="mine", auto_map={"AutoConfig": "mine.MineConfig"})
    refused(llama, "allow it with --trust-remote-code")


def test_a_name_that_the_hub_cannot_be_asked_for_is_one_sentence(monkeypatch, tmp_path):
    def down(*_):
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", down)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    refused("some-organisation/some-model", "is no folder here, and the hub cannot be reached to look for it")


def test_a_model_of_the_hub_keeps_its_name(llama, monkeypatch):
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: asked.append(name) or str(llama))
    model = policy("organisation/name")
    assert asked == ["organisation/name"]
    assert model.name_or_path == model.config.name_or_path == "organisation/name"


def test_a_model_that_cannot_compute_two_tokens_is_one_sentence(llama, monkeypatch):
    def fail(*_, **__):
        raise IndexError("list index out of range")

    monkeypatch.setattr(t.LlamaForCausalLM, "forward", fail)
    refused(llama, "^--model .* cannot compute two tokens: list index out of range$")
