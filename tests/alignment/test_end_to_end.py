"""The whole road on the command line: generate data, fine-tune, train a reward model and a policy, open both in plain transformers."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from surefoot.alignment.tasks.grammar import parse, reward
from surefoot.cli import main

torch.set_num_threads(1)


def surefoot(capsys, *arguments):
    status = main([*map(str, arguments), "--json"])
    output = capsys.readouterr()
    assert status == 0, output.err
    return json.loads(output.out.splitlines()[-1])


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def sampled(folder, prompts):
    """One answer to each prompt from plain transformers' own sampling."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    torch.manual_seed(0)
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    inputs.pop("token_type_ids", None)
    output = model.generate(**inputs, do_sample=True, max_new_tokens=20, top_k=0)
    return [tokenizer.decode(ids, skip_special_tokens=True) for ids in output[:, inputs["input_ids"].shape[1] :]]


def scored(folder, prompts, answers):
    """The scores of plain transformers, in a padded batch."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right")
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    texts = [f"{prompt}{answer} {tokenizer.eos_token}" for prompt, answer in zip(prompts, answers, strict=True)]
    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        return model(**inputs).logits[:, 0]


def test_from_generated_data_to_aligned_models_that_plain_transformers_opens(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    task = tmp_path / "task"
    generated = surefoot(capsys, "task", "grammar", "--out", task, "--prompts", 3000, "--held-out", 300, "--hidden-size", 64)
    assert generated["pairs.jsonl"] == 3000
    shared = ("--batch-size", 32, "--no-tensorboard", "--no-cache")
    model = ("--model", task / "model", "--data", task / "sft.jsonl")
    sft = surefoot(capsys, "align", "sft", *model, "--learning-rate", 4e-3, "--epochs", 3, "--out", task / "sft", *shared)
    preferences = ("--model", sft["model"], "--data", task / "pairs.jsonl", *shared)
    rate = "--learning-rate"
    trained = surefoot(capsys, "align", "reward", *preferences, rate, 1e-3, "--epochs", 2, "--out", task / "reward")
    policy = surefoot(capsys, "align", "dpo", *preferences, rate, 3e-4, "--beta", 0.2, "--out", task / "dpo")

    clean = rows(task / "clean.jsonl")
    prompts = [row["prompt"] for row in clean]
    chosen, rejected = (scored(trained["model"], prompts, [row[name] for row in clean]) for name in ("chosen", "rejected"))
    by_transformers = float(((chosen > rejected).float() + 0.5 * (chosen == rejected)).mean())
    by_surefoot = surefoot(capsys, "evaluate", trained["run"], "--data", task / "clean.jsonl")
    assert by_transformers == pytest.approx(by_surefoot["accuracy"], abs=0.005)
    assert by_surefoot["accuracy"] > 0.6
    assert surefoot(capsys, "evaluate", policy["run"], "--data", task / "clean.jsonl")["accuracy"] > 0.6

    before, after = (sampled(result["model"], prompts) for result in (sft, policy))
    grammatical = [sum(parse(p, a) is not None for p, a in zip(prompts, x, strict=True)) / 300 for x in (before, after)]
    assert min(grammatical) > 0.6
    rewards = [sum(reward(p, a) for p, a in zip(prompts, x, strict=True)) / 300 for x in (before, after)]
    assert rewards[1] > rewards[0] + 0.1

    shown = surefoot(capsys, "inspect", task / "ranked.jsonl", "--model", sft["model"])
    assert shown["description"]["ranking_sizes"] == {"4": 3000}
