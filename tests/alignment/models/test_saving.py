"""Saved models: what plain transformers opens, whole or absent whatever happens while they are written."""

from __future__ import annotations

import json
import resource
import socket

import peft
import pytest
import torch
import transformers as t
from safetensors.torch import load_file

from surefoot.alignment.models import saving
from surefoot.alignment.models.adapters import add_adapter, trainable_parameters
from surefoot.alignment.models.configuration import AdapterConfiguration, ModelConfiguration
from surefoot.alignment.models.loading import load_policy, load_reward_model
from surefoot.alignment.models.saving import rehearse_saving, replace_folders, save_model
from surefoot.errors import RunError, UsageError
from tests.alignment.models.tiny import FAMILIES, language_model, save_language_model
from tests.alignment.tokenizers import gpt2_like, qwen_like, word_level

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
IDS = torch.tensor([[3, 5, 4, 9], [6, 3, 8, 1]])


def policy(folder):
    return load_policy(ModelConfiguration(str(folder)), word_level(), notify=lambda notice: None)


def nudged(model):
    """As if training had changed every weight that it may."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in trainable_parameters(model):
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_transformers_opens_what_was_trained(tmp_path, family, monkeypatch):
    save_language_model(tmp_path / "base", family)
    model = nudged(policy(tmp_path / "base"))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("saving needs no network"))
    save_model(model, word_level(), tmp_path / "model", card="# A card\n")
    plain, report = t.AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(plain(IDS).logits, model.eval()(IDS).logits)
    assert (tmp_path / "model" / "README.md").read_text() == "# A card\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "model"]
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in (tmp_path / "model").iterdir())


@pytest.mark.parametrize("family", FAMILIES)
def test_of_an_adapted_model_the_merged_one_and_the_adapter_are_saved(tmp_path, family, monkeypatch):
    save_language_model(tmp_path / "base", family)
    model = nudged(add_adapter(policy(tmp_path / "base"), AdapterConfiguration(lora_rank=2)))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("saving needs no network"))
    save_model(model, word_level(), tmp_path / "run" / "model", card="")
    expected = model.eval()(IDS).logits
    merged = t.AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    torch.testing.assert_close(merged(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    base = t.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "run" / "adapter")
    torch.testing.assert_close(adapted.eval()(IDS).logits, expected, rtol=1e-5, atol=1e-5)
    settings = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(tmp_path / "base")
    names = sorted(path.name for path in (tmp_path / "run" / "adapter").iterdir())
    assert names == ["adapter_config.json", "adapter_model.safetensors"]


@pytest.mark.parametrize(
    "failure", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError(), RuntimeError("Only Tensors …")]
)
def test_an_adapter_that_cannot_be_merged_is_kept_and_that_is_said(tmp_path, failure, monkeypatch):
    save_language_model(tmp_path / "base")
    model = nudged(add_adapter(policy(tmp_path / "base"), AdapterConfiguration(lora_rank=2)))

    def no_float32(tensor, *arguments, **options):
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "to", no_float32)
        with pytest.raises(RunError, match=r"cannot be merged into its model: .*; the adapter is kept in"):
            save_model(model, word_level(), tmp_path / "run" / "model", card="")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["adapter"]
    adapted = peft.PeftModel.from_pretrained(
        t.AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "run" / "adapter"
    )
    assert torch.equal(adapted.eval()(IDS).logits, model.eval()(IDS).logits)


@pytest.mark.parametrize("adapted", [False, True])
def test_weights_that_a_library_cannot_save_are_kept_by_name(tmp_path, adapted, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("The weights trying to be saved contained shared tensors")

    save_language_model(tmp_path / "base", "qwen2")
    model = policy(tmp_path / "base")
    model = nudged(add_adapter(model, AdapterConfiguration(lora_rank=2)) if adapted else model)
    monkeypatch.setattr(peft.PeftModel if adapted else t.PreTrainedModel, "save_pretrained", fail)
    with pytest.raises(
        RunError, match=r"cannot be written as usual: .*shared tensors; what was trained is in .*trained\.safetensors"
    ):
        save_model(model, word_level(), tmp_path / "run" / "model", card="")
    (kept,) = (tmp_path / "run").iterdir()
    found = load_file(kept / "trained.safetensors")
    assert found.keys() == dict(trainable_parameters(model)).keys()
    assert all(torch.equal(found[name], parameter) for name, parameter in trainable_parameters(model))


def test_an_adapter_is_kept_where_the_disk_has_no_room_for_the_model(tmp_path):
    save_language_model(tmp_path / "base", vocab_size=3000)
    model = add_adapter(policy(tmp_path / "base"), AdapterConfiguration(lora_rank=2))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(RunError, match=r"cannot write .*model: .*(?i:file too large).*; the adapter is kept in .*adapter"):
            save_model(model, word_level(), tmp_path / "run" / "model", card="")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["adapter"]


def test_a_model_that_keeps_states_between_calls_is_merged(tmp_path):
    shape = {"num_hidden_layers": 3, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "lru_width": 16}
    torch.manual_seed(0)
    t.RecurrentGemmaForCausalLM(t.RecurrentGemmaConfig(vocab_size=24, attention_window_size=8, **shape)).save_pretrained(
        tmp_path / "base"
    )
    model = nudged(add_adapter(policy(tmp_path / "base"), AdapterConfiguration(lora_rank=2)))
    model(IDS).logits.sum().backward()
    save_model(model, word_level(), tmp_path / "run" / "model", card="")
    merged = t.AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    torch.testing.assert_close(merged.eval()(IDS).logits, model.eval()(IDS).logits, rtol=1e-4, atol=1e-4)


def test_what_can_be_read_and_not_be_written_is_found_before_training(tmp_path):
    save_language_model(tmp_path / "base")
    model, tokenizer = policy(tmp_path / "base"), word_level()
    rehearse_saving(model, tokenizer, "m")
    model.generation_config.num_return_sequences = -1
    model.generation_config.max_new_tokens = -3
    with pytest.raises(UsageError, match=r"--model m cannot be saved again once it is trained: .*max_new_tokens"):
        rehearse_saving(model, tokenizer, "m")


def test_an_adapter_to_a_model_of_the_hub_names_it_and_asks_nothing(tmp_path, monkeypatch):
    save_language_model(tmp_path / "base")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path / "base"))
    model = add_adapter(policy("organisation/name"), AdapterConfiguration(lora_rank=2))
    monkeypatch.setattr("huggingface_hub.HfApi.file_exists", lambda *_, **__: pytest.fail("saving needs no network"))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("saving needs no network"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: pytest.fail("saving needs no network"))
    save_model(model, word_level(), tmp_path / "model", card="")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "organisation/name"


def test_a_reward_adapter_has_its_head(tmp_path):
    save_language_model(tmp_path / "base")
    model, _ = load_reward_model(ModelConfiguration(str(tmp_path / "base")), word_level(), new_head=True)
    model = nudged(add_adapter(model, AdapterConfiguration(lora_rank=2)))
    save_model(model, word_level(), tmp_path / "model", card="", adapter=tmp_path / "elsewhere")
    expected = model.eval()(IDS).logits
    merged = t.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(merged(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    base = t.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "elsewhere").eval()
    torch.testing.assert_close(adapted(IDS).logits, expected, rtol=1e-5, atol=1e-5)


def test_a_place_for_an_adapter_needs_one(tmp_path):
    with pytest.raises(ValueError, match="the model has none"):
        save_model(language_model(), word_level(), tmp_path / "model", card="", adapter=tmp_path / "adapter")
    assert list(tmp_path.iterdir()) == []


def test_settings_and_the_chat_template_are_kept(tmp_path):
    tokenizer = qwen_like()
    original = save_language_model(tmp_path / "base", vocab_size=len(tokenizer))
    original.generation_config.update(do_sample=True, temperature=0.25)
    original.generation_config.save_pretrained(tmp_path / "base")
    configuration = ModelConfiguration(str(tmp_path / "base"), precision="bfloat16", device="cpu")
    model = load_policy(configuration, tokenizer)
    assert model.config.use_cache is False
    save_model(model, tokenizer, tmp_path / "model", card="")
    assert model.config.use_cache is False, "the model in training stays as it was"
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["use_cache"] is True
    assert config["dtype"] == "bfloat16"
    plain = t.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert plain.dtype == torch.bfloat16
    assert plain.generation_config.temperature == 0.25
    messages = [{"role": "user", "content": "what?"}]
    again = t.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert again.apply_chat_template(messages, tokenize=False) == tokenizer.apply_chat_template(messages, tokenize=False)
    for path in (tmp_path / "model").glob("*.json"):
        assert str(tmp_path) not in path.read_text(), "no place on this machine is told"


def test_generation_settings_that_were_published_with_a_mistake_are_saved_again(tmp_path):
    save_language_model(tmp_path / "base")
    path = tmp_path / "base" / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "do_sample": False, "temperature": 0.5}))
    save_model(policy(tmp_path / "base"), word_level(), tmp_path / "model", card="")
    assert t.GenerationConfig.from_pretrained(tmp_path / "model").temperature == 0.5


def test_tied_weights_are_saved_once_and_come_back_tied(tmp_path):
    tokenizer = gpt2_like()
    model = save_language_model(tmp_path / "base", "gpt2", vocab_size=len(tokenizer))
    save_model(model, tokenizer, tmp_path / "model", card="")
    plain = t.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert plain.lm_head.weight is plain.transformer.wte.weight


@pytest.fixture
def saved(tmp_path):
    save_model(language_model(), word_level(), tmp_path / "model", card="old")
    return tmp_path / "model"


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_older_model_is_replaced(saved):
    (saved / "stray").write_text("")
    save_model(nudged(language_model()), word_level(), saved, card="new")
    assert (saved / "README.md").read_text() == "new"
    assert not (saved / "stray").exists()
    plain = t.AutoModelForCausalLM.from_pretrained(saved)
    assert torch.equal(plain(IDS).logits, nudged(language_model()).eval()(IDS).logits)
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("bytes_free", [100, 3000, 8000])
def test_a_full_disk_leaves_the_old_model_whole(saved, bytes_free):
    before = content(saved)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_free, hard))  # the largest file that this process may write
    try:
        with pytest.raises(
            RunError, match=r"cannot write .*model: .*(?i:file too large).*; what stood there before is untouched"
        ):
            save_model(nudged(language_model()), word_level(), saved, card="new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert content(saved) == before
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*model: Not a directory; what stood there before is untouched"):
        save_model(language_model(), word_level(), tmp_path / "file" / "model", card="")


def test_what_is_written_reaches_the_disk_before_its_name(saved, monkeypatch):
    order = []
    fsync, rename = saving.os.fsync, type(saved).rename

    def flushed(descriptor):
        order.append(saving.os.path.basename(saving.os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def renamed(path, target):
        order.append((path.name, target.name))
        return rename(path, target)

    monkeypatch.setattr(saving.os, "fsync", flushed)
    monkeypatch.setattr(type(saved), "rename", renamed)
    save_model(language_model(), word_level(), saved, card="new")
    first = order.index(("model", ".model.previous"))
    assert set(content(saved)) | {".model.writing"} <= set(order[:first])
    assert order[first + 1 :] == [(".model.writing", "model"), saved.parent.name]


@pytest.mark.parametrize("step", [0, 1])
def test_a_failure_between_the_renames_puts_the_old_model_back(saved, monkeypatch, step):
    before = content(saved)
    rename, count = type(saved).rename, 0

    def failing(path, target):
        nonlocal count
        count += 1
        if count == step + 1:
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(type(saved), "rename", failing)
    with pytest.raises(RunError, match="Input/output error; what stood there before is untouched"):
        save_model(language_model(), word_level(), saved, card="new")
    assert content(saved) == before
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_a_machine_that_stopped_between_the_renames_loses_nothing(saved):
    before = content(saved)
    saved.rename(saved.parent / ".model.previous")
    (saved.parent / ".model.writing").mkdir()
    (saved.parent / ".model.writing" / "torn").write_text("")

    def fail(part):
        assert content(saved) == before, "the old model is back before anything is written"
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError):
        replace_folders({saved: fail})
    assert content(saved) == before
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_no_folder_changes_before_all_are_written(tmp_path, saved):
    before = content(saved)

    def fail(part):
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match=r"cannot write .*second: No space left"):
        replace_folders({saved: lambda part: (part / "new").write_text(""), tmp_path / "second": fail})
    assert content(saved) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
