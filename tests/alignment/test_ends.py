"""What is saved ends where surefoot's own sampling ends, and rewards are read where reward models were trained to give them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from surefoot.cli import main
from tests.alignment.data.helpers import assistant, user, write_lines
from tests.alignment.models.tiny import language_model
from tests.alignment.tokenizers import gemma_like, qwen_like, word_level

torch.set_num_threads(1)

CHOSEN, REJECTED = "yes", "no"
METHODS = {
    "sft": {"prompt": [user("?")], "completion": [assistant(CHOSEN)]},
    "reward": {"prompt": [user("?")], "chosen": [assistant(CHOSEN)], "rejected": [assistant(REJECTED)]},
    "dpo": {"prompt": [user("?")], "chosen": [assistant(CHOSEN)], "rejected": [assistant(REJECTED)]},
    "ppo": {"prompt": [user("?")]},
}


def ids_of(tokenizer, *names):
    return tuple(tokenizer.convert_tokens_to_ids(list(names)))


@pytest.fixture(autouse=True)
def own_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def save(folder, tokenizer, named, **changes):
    """A model whose settings name some ids as ends, and no token that pads."""
    changes = {"vocab_size": len(tokenizer), "eos_token_id": named, "pad_token_id": None, **changes}
    model = language_model(**changes)
    model.generation_config.eos_token_id = named
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def command(method, model, out, *options):
    data = write_lines(out.with_suffix(".jsonl"), [METHODS[method]])
    (out.parent / "rewards.py").write_text("def zero(prompts, completions):\n    return [0.0] * len(completions)\n")
    if method == "ppo":
        options += ("--reward", f"{out.parent / 'rewards.py'}:zero", "--weight", "leave-one-out", "--longest-answer", "4")
    return [
        "align",
        method,
        "--model",
        str(model),
        "--data",
        str(data),
        "--out",
        str(out),
        "--no-tensorboard",
        "--batch-size",
        "1",
        *options,
    ]


def trained(method, model, out, *options):
    assert main(command(method, model, out, "--quiet", "--json", *options)) == 0
    return out / "model"


def by_surefoot(capsys, model):
    capsys.readouterr()
    assert (
        main(["generate", str(model), "--prompt", "?", "--chat", "--temperature", "0", "--longest", "12", "--json", "--quiet"])
        == 0
    )
    (sample,) = json.loads(capsys.readouterr().out)["samples"]
    return sample["tokens"][0], sample["finished"][0], sample["completions"][0]


def by_transformers(model):
    """As the model card's example does."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    inputs = tokenizer.apply_chat_template([user("?")], add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = AutoModelForCausalLM.from_pretrained(model).generate(**inputs, max_new_tokens=12, do_sample=False)
    return len(output[0]) - inputs["input_ids"].shape[1]


@pytest.mark.parametrize("named", ["other", "none", "list"])
def test_a_saved_model_stops_in_plain_transformers_where_it_stops_here(tmp_path, capsys, named):
    """As after putting a chat tokenizer on a base model, whose settings name its own end or none."""
    tokenizer = qwen_like()
    end, other = ids_of(tokenizer, "<|im_end|>", "<|endoftext|>")
    settings = {"other": other, "none": None, "list": [other, 7]}[named]
    base = save(tmp_path / "base", tokenizer, settings)
    fitted = trained("sft", base, tmp_path / "sft", "--epochs", "60", "--learning-rate", "1e-2")
    said = []
    if named == "other":
        for method, options in (("dpo", ["--lora-rank", "2"]), ("ppo", [])):
            # The weights of a model that has learnt to stop, with settings that do not say so.
            AutoModelForCausalLM.from_pretrained(fitted).save_pretrained(tmp_path / "again")
            tokenizer.save_pretrained(tmp_path / "again")
            for name in ("config.json", "generation_config.json"):
                path = tmp_path / "again" / name
                path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": other}))
            said.append(trained(method, tmp_path / "again", tmp_path / method, *options))
    for model in (fitted, *said):
        tokens, finished, text = by_surefoot(capsys, model)
        assert (finished, text) == (True, CHOSEN)
        assert by_transformers(model) == tokens
        generation, config = GenerationConfig.from_pretrained(model), AutoConfig.from_pretrained(model)
        ends = generation.eos_token_id if isinstance(generation.eos_token_id, list) else [generation.eos_token_id]
        assert ends == list(dict.fromkeys([end, *([] if settings is None else np.atleast_1d(settings).tolist())]))
        assert config.eos_token_id == generation.eos_token_id
        assert generation.pad_token_id == config.pad_token_id == tokenizer.pad_token_id
        card = (model / "README.md").read_text()
        assert "Answers end at `<|im_end|>`" in card


def test_a_reward_models_settings_name_what_it_was_trained_on_as_the_end(tmp_path):
    tokenizer = gemma_like()
    text, turn = ids_of(tokenizer, "<|endoftext|>", "<|im_end|>")
    model = trained("reward", save(tmp_path / "base", tokenizer, turn), tmp_path / "reward")
    assert AutoConfig.from_pretrained(model).eos_token_id == [text, turn]


def test_it_is_said_at_the_start_of_a_run_and_by_inspect(tmp_path, capsys):
    tokenizer = qwen_like()
    base = save(tmp_path / "base", tokenizer, ids_of(tokenizer, "e")[0])
    sentences = (
        "answers end at EOS (<|im_end|>) or 'e'; the model's settings do not name EOS (<|im_end|>), and what is saved does",
        "answers also end at 'e', no special token, because the model's settings name it",
    )
    for method in ("sft", "ppo"):
        capsys.readouterr()
        assert main(command(method, base, tmp_path / method)) == 0
        lines = capsys.readouterr().err.splitlines()
        assert lines[0] == sentences[0]
        assert lines[1].startswith(sentences[1])
    assert main(["inspect", str(tmp_path / "sft.jsonl"), "--model", str(base)]) == 0
    shown = capsys.readouterr().out
    assert ["answers", "end", "at", "<|im_end|>,", "e"] in [line.split() for line in shown.splitlines()]
    assert all(sentence in shown for sentence in sentences)
    assert main(["inspect", str(tmp_path / "sft.jsonl"), "--model", str(base), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ends"]["ids"] == list(ids_of(tokenizer, "<|im_end|>", "e"))


def test_without_an_end_answers_have_the_longest_length(tmp_path, capsys):
    tokenizer = word_level()
    tokenizer.eos_token = None
    language_model(eos_token_id=None).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert main(["generate", str(tmp_path), "--prompt", "what is", "--longest", "6", "--json"]) == 0
    printed = capsys.readouterr()
    (sample,) = json.loads(printed.out)["samples"]
    assert (sample["tokens"], sample["finished"]) == ([6], [False])
    assert "no token ends an answer, so each has the longest length" in printed.err
