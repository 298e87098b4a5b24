"""`surefoot generate`: answers for reading, the same for the same seed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from surefoot.alignment.tasks import grammar
from surefoot.commands.generate import run
from surefoot.errors import UsageError
from tests.alignment.data.helpers import user, write_lines
from tests.alignment.models.tiny import language_model, save_language_model
from tests.alignment.tokenizers import qwen_like, word_level

ROWS = [
    {"prompt": "what is the answer ?", "completion": " yes"},
    {"prompt": "a b", "completion": " no"},
    {"prompt": "the good", "completion": " a"},
]


@pytest.fixture
def model(tmp_path):
    save_language_model(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def data(tmp_path):
    return str(write_lines(tmp_path / "rows.jsonl", ROWS))


def result_of(capsys, *arguments):
    capsys.readouterr()
    assert run([*arguments, "--json", "--quiet"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_greedy_answers_are_the_models_most_probable_tokens(capsys, model, tmp_path):
    result = result_of(capsys, model, "--prompt", "what is the answer ?", "--temperature", "0", "--longest", "8")
    tokenizer, network = word_level(), language_model().eval()
    ids = tokenizer("what is the answer ?").input_ids
    start = len(ids)
    while len(ids) < start + 8:
        with torch.no_grad():
            token = int(network(torch.tensor([ids])).logits[0, -1].argmax())
        ids.append(token)
        if token == tokenizer.eos_token_id:
            break
    (sample,) = result["samples"]
    expected = tokenizer.decode(ids[start:], skip_special_tokens=True)
    assert sample["completions"] == [f" {expected}" if expected else ""]
    assert sample["tokens"] == [len(ids) - start]
    assert sample["finished"] == [ids[-1] == tokenizer.eos_token_id]
    assert (result["model"], result["prompts"], result["answers"]) == (model, 1, 1)
    assert result["tokens"] == len(ids) - start
    assert result["tokens_per_second"] > 0


def test_samples_depend_on_the_seed_and_not_on_the_batch(capsys, model, data):
    command = [model, "--data", data, "--answers", "3", "--longest", "6"]
    first = result_of(capsys, *command)
    assert [sample["row"] for sample in first["samples"]] == [1, 2, 3]
    assert [sample["prompt"] for sample in first["samples"]] == [row["prompt"] for row in ROWS]
    assert all(len(sample["completions"]) == len(sample["finished"]) == 3 for sample in first["samples"])
    assert (first["prompts"], first["answers"]) == (3, 9)
    assert first["tokens"] == sum(sum(sample["tokens"]) for sample in first["samples"])
    assert result_of(capsys, *command, "--batch-size", "1")["samples"] == first["samples"]
    assert result_of(capsys, *command, "--rows", "2")["samples"] == first["samples"][:2]
    assert result_of(capsys, *command, "--seed", "1")["samples"] != first["samples"]


def test_lengths_are_obeyed_and_cut_answers_said(capsys, model, data):
    command = [model, "--data", data, "--answers", "20"]
    long = result_of(capsys, *command, "--longest", "6", "--shortest", "6")
    assert all(sample["tokens"] == [6] * 20 for sample in long["samples"])
    short = result_of(capsys, *command, "--longest", "3")
    for sample in short["samples"]:
        assert all(1 <= tokens <= 3 for tokens in sample["tokens"])
        assert all(finished or tokens == 3 for tokens, finished in zip(sample["tokens"], sample["finished"], strict=True))


def test_top_k_top_p_and_temperature_narrow_what_is_drawn(capsys, model):
    command = [model, "--prompt", "what is", "--answers", "200", "--longest", "1"]

    def kinds(*options):
        (sample,) = result_of(capsys, *command, *options)["samples"]
        return set(sample["completions"])

    network = language_model().eval()
    with torch.no_grad():
        logits = network(torch.tensor([word_level()("what is").input_ids])).logits[0, -1]
    logits[len(word_level()) :] = -torch.inf  # rows that are no token
    order = logits.argsort(descending=True).tolist()
    words = [word_level().decode([i], skip_special_tokens=True) for i in order]
    named = [f" {word}" if word else "" for word in words]
    assert kinds("--top-k", "2") == set(named[:2])
    mass = logits.softmax(0).sort(descending=True).values.cumsum(0).tolist()
    needed = next(n for n, total in enumerate(mass, start=1) if total >= 0.5)
    assert kinds("--top-p", "0.5") == set(named[:needed])
    assert kinds("--temperature", "0.01") == {named[0]}
    assert len(kinds()) > needed


def test_answers_are_printed_for_reading(capsys, model, data):
    assert run([model, "--data", data, "--longest", "2", "--shortest", "2", "--answers", "2", "--rows", "1"]) == 0
    output = capsys.readouterr()
    lines = output.out.splitlines()
    assert lines[:2] == ["row 1", "  what is the answer ?"]
    assert lines[2].startswith("answer 1 (2 tokens")
    assert sum(line.startswith("answer ") for line in lines) == 2
    assert "one answer to a prompt (format completion" in output.err
    assert "answers: 2, to prompts: 1; 4 tokens at" in output.err


def test_samples_can_be_kept(capsys, model, data, tmp_path):
    out = tmp_path / "kept" / "samples.jsonl"
    result = result_of(capsys, model, "--data", data, "--longest", "4", "--out", str(out))
    assert [json.loads(line) for line in out.read_text().splitlines()] == result["samples"]
    with pytest.raises(UsageError, match=r"samples.jsonl exists; choose another --out"):
        run([model, "--data", data, "--out", str(out)])


def test_a_run_and_a_conversation_will_do(capsys, tmp_path):
    tokenizer = qwen_like()
    folder = tmp_path / "run" / "model"
    language_model(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (tmp_path / "run" / "config.json").write_text(json.dumps({"method": "sft"}))
    path = write_lines(tmp_path / "rows.jsonl", [{"prompt": [user("what?")]}])
    command = [str(tmp_path / "run"), "--longest", "5", "--shortest", "5"]
    loaded = result_of(capsys, *command, "--data", str(path))
    typed = result_of(capsys, *command, "--prompt", "what?", "--chat")
    assert loaded["model"] == str(folder)
    assert loaded["samples"] == typed["samples"]
    assert loaded["samples"][0]["prompt"] == [user("what?")]
    plain = result_of(capsys, *command, "--prompt", "what?")
    assert plain["samples"][0]["completions"] != typed["samples"][0]["completions"]
    assert run([*command, "--prompt", "what?\x1b[2J", "--chat", "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert "  user: what?\\x1b[2J" in printed.splitlines()
    assert "\x1b" not in printed


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("", "give either --data with prompts, or one --prompt"),
        ("--data x --prompt y", "give either --data"),
        ("--data x --chat", "--chat does nothing with --data"),
        ("--prompt x --rows 3", "--rows does nothing without --data"),
        ("--prompt x --format prompt", "--format does nothing without --data"),
        ("--prompt x --answers 0", "--answers must be at least 1, but is 0"),
        ("--prompt x --top-k 0", "--top-k must be at least 1, but is 0"),
        ("--prompt x --top-p 1.5", "--top-p must lie between 0 and 1"),
        ("--prompt x --shortest 5 --longest 4", "--shortest 5 exceeds --longest 4"),
        ("--prompt x --temperature -1", "--temperature must be a finite number and not negative, but is -1.0"),
        ("--prompt x --temperature 0 --top-p 0.5", "--top-p does nothing with --temperature 0"),
        ("--prompt x --temperature 0 --answers 2", "--answers 2 with --temperature 0 would be the same answer 2 times"),
        ("--prompt x --seed -1", "--seed must lie between 0 and 2147483647"),
        ("--prompt what --longest 1024", "leaves no room for an answer of 1,024 tokens"),
        ("--prompt what --chat", "no chat template"),
        ("--prompt x --top-q 3", "no option --top-q; did you mean --top-p"),
    ],
)  # fmt: skip
def test_mistakes_are_sentences(model, options, complaint):
    with pytest.raises(UsageError, match=complaint):
        run([model, *options.split()])


def test_an_empty_prompt_and_a_reward_model_are_refused(model, tmp_path):
    with pytest.raises(UsageError, match="--prompt is empty"):
        run([model, "--prompt", " "])
    with pytest.raises(UsageError, match=r"nowhere"):
        run([str(tmp_path / "nowhere"), "--prompt", "a"])


def test_the_language_tasks_prompts_are_answered(capsys, tmp_path):
    words = word_level(grammar.WORDS)
    language_model(vocab_size=len(words)).save_pretrained(tmp_path / "model")
    words.save_pretrained(tmp_path / "model")
    rows = list(grammar.supervised_rows(3, np.random.default_rng(0)))
    path = write_lines(tmp_path / "sft.jsonl", rows)
    result = result_of(capsys, str(tmp_path / "model"), "--data", str(path), "--longest", "12")
    assert [sample["prompt"] for sample in result["samples"]] == [row["prompt"] for row in rows]
