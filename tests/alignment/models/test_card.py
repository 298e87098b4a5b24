"""Model cards: what the hub reads, what a reader can run, and nothing about the machine."""

from __future__ import annotations

import re

import pytest
import torch
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st

from surefoot.alignment.data.tokenization.ends import AnswerEnds
from surefoot.alignment.models.card import METHODS, model_card, without_paths, without_paths_in_command
from surefoot.alignment.models.configuration import ModelConfiguration
from surefoot.alignment.models.loading import load_reward_model
from surefoot.alignment.models.saving import save_model
from tests.alignment.data.helpers import assistant, load, user
from tests.alignment.models.tiny import language_model, save_language_model
from tests.alignment.tokenizers import gemma_like, llama_like, qwen_like


def card(method="dpo", base_model="organisation/model-1.5B", **changes):
    parts = {
        "command": "surefoot align dpo --model /home/someone/models/base --data=/mnt/data/pairs.jsonl --out runs/x",
        "data": {"training": 1200, "source": "/mnt/data/pairs.jsonl"},
        "settings": {"learning_rate": 5e-7, "beta": 0.1, "target": None, "share": True, "a|b": "line\nbreak"},
        "metrics": {"reward_accuracy": 0.71284999, "steps": 300, "loss": float("nan")},
    }
    return model_card(method=method, base_model=base_model, **{**parts, **changes})


@pytest.mark.parametrize("method", METHODS)
def test_the_head_is_what_the_hub_reads(method):
    head = ModelCard(card(method)).data.to_dict()
    reward = method == "reward"
    assert head == {
        "library_name": "transformers",
        "pipeline_tag": "text-classification" if reward else "text-generation",
        "tags": ["surefoot", "reward-model" if reward else method],
        "base_model": "organisation/model-1.5B",
    }


def test_an_unknown_method_is_an_error():
    with pytest.raises(ValueError, match="there is no method 'magic'; there are sft, reward"):
        card("magic")


def test_only_names_of_the_hub_are_base_models_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "sft").mkdir(parents=True)
    for folder in ("/home/someone/model", "runs/sft", "runs/sft/model", "./model", "../model", "~/model"):
        assert "base_model" not in ModelCard(card(base_model=folder)).data.to_dict()
    assert ModelCard(card(base_model="gpt2")).data.base_model == "gpt2"


def test_tables_show_every_value():
    text = card()
    rows = dict(re.findall(r"^\| (.*?[^\\]) \| (.*) \|$", text, re.M))
    for name, shown in {
        "training": "1200",
        "learning_rate": "5e-07",
        "beta": "0.1",
        "target": "none",
        "share": "yes",
        "a\\|b": "line break",
        "reward_accuracy": "0.7128",
        "steps": "300",
        "loss": "nan",
        "source": "pairs.jsonl",
    }.items():
        assert rows[name] == shown
    assert rows["torch"].startswith(torch.__version__.split("+")[0])
    assert {"surefoot", "transformers"} <= rows.keys()
    assert "## Results" not in card(metrics={})


def test_no_path_of_the_machine_is_told():
    text = card(base_model="/home/someone/secret/base")
    assert "# Direct preference optimisation of base" in text
    assert "surefoot align dpo --model base --data=pairs.jsonl --out runs/x" in text
    assert not re.search("someone|secret|/mnt|/home", text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/a/b/c.json", "c.json"),
        ("/a/with spaces/c d.json", "c d.json"),
        ("~/b/c", "c"),
        ("C:\\Users\\me\\x.json", "x.json"),
        ("D:/data/x.json", "x.json"),
        ("file:///a/b.json", "b.json"),
        ("read /a/b.json, then '/c/d e'", "read b.json, then 'd e'"),
        ("['/a/b.json', '/c/d.json']", "['b.json', 'd.json']"),
        (
            "https://host/a/b and org/name and runs/x and 3/4 and a ~ b",
            "https://host/a/b and org/name and runs/x and 3/4 and a ~ b",
        ),
        ("/", "…"),
    ],
)
def test_absolute_paths_become_their_last_part(text, expected):
    assert without_paths(text) == expected


def test_paths_in_a_command_are_found_argument_by_argument():
    command = "surefoot align sft --data '/home/me/my data/x.jsonl' '--out=/tmp/my o/p' --model org/name --name 'a b'"
    assert without_paths_in_command(command) == "surefoot align sft --data x.jsonl --out=p --model org/name --name 'a b'"
    assert without_paths_in_command("/usr/local/bin/surefoot align") == "surefoot align"


@given(st.lists(st.text("abc.-_ é", min_size=1).filter(str.strip), min_size=2), st.sampled_from(["", "~"]))
def test_of_any_path_only_the_last_part_is_left(parts, home):
    parts = [part.strip() for part in parts]
    shown = without_paths(f"{home}/" + "/".join(parts))
    assert "/" not in shown


def snippet(text):
    return text.partition("```python\n")[2].partition("```")[0]


@pytest.mark.parametrize("chat", [False, True])
def test_the_example_generates_with_plain_transformers(tmp_path, monkeypatch, capsys, chat):
    tokenizer = qwen_like() if chat else llama_like()
    text = card("sft", chat=chat)
    save_model(language_model(vocab_size=len(tokenizer)), tokenizer, tmp_path / "model", card=text)
    monkeypatch.chdir(tmp_path / "model")
    exec(snippet(text).replace("max_new_tokens=64", "max_new_tokens=3"))
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("maker", [llama_like, qwen_like, gemma_like])
@pytest.mark.parametrize("chat", [False, True])
def test_the_example_reads_the_score_that_was_trained(tmp_path, monkeypatch, capsys, maker, chat):
    tokenizer = maker()
    save_language_model(tmp_path / "base", vocab_size=len(tokenizer))
    model, _ = load_reward_model(ModelConfiguration(str(tmp_path / "base")), tokenizer, new_head=True)
    text = card("reward", chat=chat, ends=AnswerEnds.of(tokenizer))
    save_model(model, tokenizer, tmp_path / "model", card=text)
    row = {"prompt": "A question", "completion": " An answer"}
    if chat:
        row = {"prompt": [user("A question")], "completion": [assistant("An answer")]}
    (example,) = load([row], tokenizer, purpose="sft").examples
    monkeypatch.chdir(tmp_path / "model")
    exec(snippet(text))
    ids = [*example.prompt, *example.completions[0]]
    expected = model.eval().score(model.model(torch.tensor([ids])).last_hidden_state)[0, -1, 0].item()
    assert float(capsys.readouterr().out) == pytest.approx(expected, rel=1e-4)
