"""Loading a tokenizer, with its mistakes as sentences."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer

from surefoot.alignment.data.reading import hub
from surefoot.alignment.data.tokenization.tokenizer import load_tokenizer
from surefoot.errors import UsageError
from tests.alignment.tokenizers import gpt2_like, llama_like, qwen_like


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr(hub, "_reachable", lambda endpoint: False)


@pytest.mark.parametrize("build", [gpt2_like, llama_like, qwen_like])
def test_a_saved_tokenizer_comes_back(tmp_path, build):
    build().save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert loaded("What is the answer?").input_ids == build()("What is the answer?").input_ids
    assert (loaded.eos_token, loaded.bos_token, loaded.chat_template) == (
        build().eos_token,
        build().bos_token,
        build().chat_template,
    )


def test_a_folder_is_never_looked_for_on_the_network(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "_reachable", lambda endpoint: pytest.fail("asked for the network"))
    asked = []
    read = AutoTokenizer.from_pretrained
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda model, **how: asked.append(how) or read(model, **how))
    gpt2_like().save_pretrained(tmp_path)
    load_tokenizer(str(tmp_path))
    assert asked == [{"trust_remote_code": False, "local_files_only": True}]
    with pytest.raises(UsageError, match="does not exist; give a model's folder, or a name on the Hugging Face hub"):
        load_tokenizer(str(tmp_path / "nowhere"))


def test_a_folder_without_a_tokenizer_is_a_sentence(tmp_path):
    with pytest.raises(UsageError, match=r"holds no tokenizer; a model's folder has one in tokenizer\.json"):
        load_tokenizer(str(tmp_path))
    gpt2_like().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UsageError, match="holds no tokenizer"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(UsageError, match="has no tokens but special ones; its vocabulary is missing"):
        load_tokenizer(str(tmp_path))


def test_a_damaged_tokenizer_is_a_sentence(tmp_path):
    gpt2_like().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UsageError, match="holds no tokenizer that can be read: "):
        load_tokenizer(str(tmp_path))


def test_code_that_comes_with_a_model_runs_only_where_it_is_allowed(tmp_path):
    gpt2_like().save_pretrained(tmp_path)
    configuration = json.loads((tmp_path / "tokenizer_config.json").read_text())
    configuration |= {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", "mine.Mine"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(configuration))
    (tmp_path / "mine.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom transformers import PreTrainedTokenizerFast as Mine\n"
    )
    with pytest.raises(UsageError, match="is code that comes with the model; read that code, and allow it with"):
        load_tokenizer(str(tmp_path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.usefixtures("no_network")
def test_a_name_without_network_is_one_sentence(capfd):
    with pytest.raises(UsageError, match=r"surefoot-nobody/nothing is no folder here, .* give a folder, or connect"):
        load_tokenizer("surefoot-nobody/nothing")
    assert capfd.readouterr().err == ""


def test_an_adapter_on_the_hub_has_its_base_models_tokenizer(tmp_path, monkeypatch):
    gpt2_like().save_pretrained(tmp_path / "base")
    (tmp_path / "snapshot").mkdir()
    settings = tmp_path / "snapshot" / "adapter_config.json"
    settings.write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "base")}))
    monkeypatch.setattr(hub, "_reachable", lambda endpoint: True)
    read = AutoTokenizer.from_pretrained

    def only_folders(model, **how):
        if model == "organisation/adapter":
            raise OSError("organisation/adapter does not have a tokenizer")
        return read(model, **how)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", only_folders)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda name, file: str(settings))
    assert load_tokenizer("organisation/adapter").get_vocab() == gpt2_like().get_vocab()


def test_adapters_that_name_each_other_lead_nowhere(tmp_path):
    for one, other in (("a", "b"), ("b", "a")):
        (tmp_path / one).mkdir()
        (tmp_path / one / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / other)}))
    with pytest.raises(UsageError, match="holds no tokenizer"):
        load_tokenizer(str(tmp_path / "a"))
