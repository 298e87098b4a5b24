"""Adapters as PEFT and its users save them: merged they compute what they did, or a sentence says what does not fit."""

from __future__ import annotations

import json
import shutil

import peft
import pytest
import torch
import transformers as t
from safetensors.torch import load_file, save_file

from surefoot.alignment.data.tokenization.tokenizer import load_tokenizer
from surefoot.alignment.models.adapters import add_adapter
from surefoot.alignment.models.configuration import AdapterConfiguration, ModelConfiguration
from surefoot.alignment.models.loading import load_policy
from surefoot.alignment.models.saving import save_model
from surefoot.errors import UsageError
from tests.alignment.likelihood.architectures import build
from tests.alignment.models.tiny import save_language_model
from tests.alignment.tokenizers import word_level

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*(embedding|tie_word|tied).*:UserWarning"),
]
IDS = torch.tensor([[3, 5, 4, 9], [6, 3, 8, 1]])


def policy(folder, notices=None, **options):
    notify = (lambda notice: None) if notices is None else notices.append
    return load_policy(ModelConfiguration(str(folder), **options), word_level(), notify=notify)


def refused(folder, sentence, **options):
    with pytest.raises(UsageError, match=sentence) as error:
        policy(folder, **options)
    assert "\n" not in str(error.value)


@pytest.fixture
def llama(tmp_path):
    save_language_model(tmp_path / "llama")
    return tmp_path / "llama"


def trained_by_peft(tmp_path, family, *, rows=None, save_embedding_layers="auto", **options):
    """A folder that PEFT saved an adapter in, and the logits that it had."""
    save_language_model(tmp_path / "base", family)
    model = t.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    if rows is not None:
        model.resize_token_embeddings(rows, mean_resizing=False)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, task_type="CAUSAL_LM", **options)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
        logits = adapted(IDS).logits
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=save_embedding_layers)
    return tmp_path / "adapter", logits


@pytest.mark.parametrize("family", ["llama", "qwen2"])  # whose head is its embedding
@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["lm_head", "q_proj"]},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "rows": 26, "save_embedding_layers": True},
        {"target_modules": ["embed_tokens", "lm_head"], "rows": 26},
    ],
    ids=["head", "embedding", "embedding whole", "head whole", "new tokens", "both with new tokens"],
)
def test_an_adapter_that_reaches_the_vocabulary_computes_what_it_did_and_so_does_what_is_saved_of_it(family, options, tmp_path):
    adapter, logits = trained_by_peft(tmp_path, family, **options)
    merged = policy(adapter)
    torch.testing.assert_close(merged(IDS).logits, logits, rtol=1e-4, atol=1e-4)
    save_model(merged, word_level(), tmp_path / "saved", card="")
    plain = t.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(plain(IDS).logits, logits, rtol=1e-4, atol=1e-4)
    said = json.loads((tmp_path / "saved" / "config.json").read_text())["tie_word_embeddings"]
    one_matrix = "lm_head.weight" not in load_file(tmp_path / "saved" / "model.safetensors")
    assert said == one_matrix


def test_new_tokens_of_a_shared_matrix_reach_the_head_too(tmp_path):
    adapter, logits = trained_by_peft(tmp_path, "qwen2", rows=26, target_modules=["embed_tokens"])
    assert torch.allclose(policy(adapter)(IDS).logits, logits, rtol=1e-4, atol=1e-4)


def test_a_base_layer_in_another_precision_does_not_replace_the_bases_own(tmp_path):
    adapter, _ = trained_by_peft(tmp_path, "llama", target_modules=["lm_head"])
    weights = load_file(adapter / "adapter_model.safetensors")
    key = "base_model.model.lm_head.base_layer.weight"
    save_file({**weights, key: weights[key].bfloat16()}, adapter / "adapter_model.safetensors")
    added = 8 / 2 * weights["base_model.model.lm_head.lora_B.weight"] @ weights["base_model.model.lm_head.lora_A.weight"]
    base = load_file(tmp_path / "base" / "model.safetensors")["lm_head.weight"]
    notices = []
    assert torch.allclose(policy(adapter, notices).lm_head.weight, base + added, rtol=0, atol=1e-6)
    assert not any("replace" in notice for notice in notices)
    save_file({**weights, key: weights[key] + 1}, adapter / "adapter_model.safetensors")
    assert torch.allclose(policy(adapter, notices).lm_head.weight, base + 1 + added, rtol=0, atol=1e-6)
    assert any("brings weights of the whole model along, which replace those of" in notice for notice in notices)


def test_an_adapter_of_a_larger_vocabulary_that_lacks_its_rows_is_refused_with_both_sizes(tmp_path):
    adapter, _ = trained_by_peft(tmp_path, "llama", target_modules=["embed_tokens"], rows=26, save_embedding_layers=False)
    refused(adapter, "its embedding has 26 rows and the base's 24: it was trained with new tokens, whose rows it does not hold")


def test_an_adapter_of_another_size_is_refused_with_what_differs(tmp_path):
    adapter, _ = trained_by_peft(tmp_path, "llama", target_modules=["q_proj"])
    save_language_model(tmp_path / "base", "llama", hidden_size=32)
    refused(
        adapter, r"cannot be loaded: Error.* in loading state_dict for .*: size mismatch for .*q_proj.*\[2, 16\].*\[2, 32\]"
    )


def test_an_adapter_that_is_not_finite_is_refused(tmp_path):
    adapter, _ = trained_by_peft(tmp_path, "llama", target_modules=["up_proj"])
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({key: weight * torch.nan for key, weight in weights.items()}, adapter / "adapter_model.safetensors")
    refused(adapter, "with it, the model computes numbers that are not finite")


def test_an_adapter_that_computes_something_else_once_it_is_merged_is_refused(tmp_path):
    build("mamba").save_pretrained(tmp_path / "base")
    model = t.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["dt_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    refused(tmp_path / "adapter", r"merged into its base model it computes logits that differ by .* of the largest")


def test_two_matrices_are_two_whatever_the_configuration_says(tmp_path):
    base = save_language_model(tmp_path / "base", "llama")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    model = policy(tmp_path / "base")
    assert torch.equal(model.lm_head.weight, base.lm_head.weight)
    assert model.config.tie_word_embeddings is False


def test_an_adapter_without_a_tokenizer_has_its_base_models(tmp_path, llama):
    model = add_adapter(policy(llama), AdapterConfiguration(lora_rank=2))
    save_model(model, word_level(), tmp_path / "run" / "model", card="")
    notices = []
    policy(tmp_path / "run" / "adapter", notices)
    assert notices[-1].endswith("; it holds no tokenizer, so that the base model's is taken")
    assert load_tokenizer(str(tmp_path / "run" / "adapter")).get_vocab() == word_level().get_vocab()
    word_level(("other",)).save_pretrained(tmp_path / "run" / "adapter")
    policy(tmp_path / "run" / "adapter", notices)
    assert notices[-1].endswith(f"it is merged into its base model, {llama}")
    assert load_tokenizer(str(tmp_path / "run" / "adapter")).get_vocab() == word_level(("other",)).get_vocab()


def test_an_adapter_is_merged_into_its_base_model(llama, tmp_path):
    adapted = add_adapter(policy(llama), AdapterConfiguration(lora_rank=2, lora_alpha=3))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    word_level().save_pretrained(tmp_path / "adapter")
    notices = []
    merged = load_policy(ModelConfiguration(str(tmp_path / "adapter")), word_level(), notify=notices.append)
    assert notices == [f"{tmp_path / 'adapter'} is an adapter: it is merged into its base model, {llama}"]
    assert type(merged) is t.LlamaForCausalLM
    assert all(parameter.requires_grad for parameter in merged.parameters())
    torch.testing.assert_close(merged(IDS).logits, adapted(IDS).logits, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(merged(IDS).logits, policy(llama)(IDS).logits)


def test_an_adapter_that_cannot_be_merged_is_refused(llama, tmp_path):
    adapter = tmp_path / "adapter"
    add_adapter(policy(llama), AdapterConfiguration(lora_rank=2)).save_pretrained(adapter, save_embedding_layers=False)
    weights = load_file(adapter / "adapter_model.safetensors")
    name = next(iter(weights))
    save_file({k: v for k, v in weights.items() if k != name}, adapter / "adapter_model.safetensors")
    refused(adapter, f"does not fit its base model {llama}, as {name} shows")
    (adapter / "adapter_model.safetensors").unlink()
    refused(adapter, "is an adapter without adapter_model.safetensors")
    save_file(weights, adapter / "adapter_model.safetensors")
    shutil.rmtree(llama)
    refused(adapter, f"is an adapter to a base model, and --model {llama} does not exist")
