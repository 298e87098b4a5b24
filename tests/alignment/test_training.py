"""Whole runs on a tiny model: what they leave, what they report, and that every option does something."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from surefoot.alignment.configuration import configure
from surefoot.alignment.evaluation import evaluate_alignment
from surefoot.alignment.learning.optimization import learning_rate_at
from surefoot.alignment.training import align
from surefoot.errors import RunError, UsageError
from surefoot.runs.metrics import read_metrics
from tests.alignment.models.tiny import save_language_model
from tests.alignment.tokenizers import WORDS

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def model(tmp_path):
    save_language_model(tmp_path / "model")
    return tmp_path / "model"


def words(rng, count):
    return " ".join(rng.choice(WORDS, count))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pairs(path, count=12, seed=0):
    """The answer with the word `good` in it is the better one."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        rows.append({"prompt": words(rng, 3 + i % 3), "chosen": f"{words(rng, 2)} good", "rejected": f"{words(rng, 1)} bad b"})
    return write(path / f"pairs-{seed}.jsonl", rows)


def rankings(path, count=8):
    rng = np.random.default_rng(1)
    rows = [
        {"prompt": words(rng, 3), "completions": [words(rng, 1 + k) + " a b"[: 2 * k] for k in range(4)], "ranks": [2, 4, 1, 3]}
        for _ in range(count)
    ]
    return write(path / "rankings.jsonl", rows)


def settings(method, model, data, out, *, adapter=None, data_options=None, objective=None, **training):
    defaults = configure(method, model=str(model), data=str(data))
    training = {"batch_size": 4, "learning_rate": 0.01, "out": str(out), "tensorboard": False, **training}
    return replace(
        defaults,
        adapter=replace(defaults.adapter, **(adapter or {})),
        data=replace(defaults.data, **(data_options or {})),
        training=replace(defaults.training, **training),
        objective=None if defaults.objective is None else replace(defaults.objective, **(objective or {})),
    )


def run(*arguments, **choices):
    return align(settings(*arguments, **choices), quiet=True)


def weights_of(result):
    kind = AutoModelForSequenceClassification if result["method"] == "reward" else AutoModelForCausalLM
    return dict(kind.from_pretrained(result["model"]).named_parameters())


def same(one, other, tolerance=0.0):
    return all(float((a - other[name]).detach().abs().max()) <= tolerance for name, a in one.items())


@pytest.mark.parametrize("method", ["sft", "reward", "dpo"])
def test_a_run_leaves_a_model_that_plain_transformers_opens_and_learns(method, model, tmp_path):
    data = pairs(tmp_path)
    result = run(method, model, data, tmp_path / "run", epochs=6, held_out=0.25)
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["update"] for line in lines] == list(range(1, result["updates"] + 1))
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"]
    assert lines[-1]["evaluation/loss"] == result["final_loss"]
    if method == "dpo":
        assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert result["prompts"] == 6 * 9
    assert result["pairs"] == (0 if method == "sft" else 6 * 9)
    assert 0 < result["startup_seconds"] < result["seconds"]
    assert result["prompts_per_second"] == pytest.approx(54 / (result["seconds"] - result["startup_seconds"]), rel=1e-3)
    if method != "reward":
        assert not same(weights_of(result), dict(AutoModelForCausalLM.from_pretrained(model).named_parameters()))
    assert AutoTokenizer.from_pretrained(result["model"]).eos_token == "<eos>"
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert str(tmp_path) not in card
    assert "pairs-0.jsonl" in card
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == result
    assert json.loads((tmp_path / "run" / "config.json").read_text())["method"] == method


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(model, tmp_path):
    data = pairs(tmp_path)
    first, second, third = (
        weights_of(run("dpo", model, data, tmp_path / f"run-{i}", seed=seed)) for i, seed in enumerate((3, 3, 4))
    )
    assert same(first, second)
    assert not same(first, third)


@pytest.mark.parametrize("method", ["sft", "reward", "dpo"])
def test_a_batch_in_parts_is_the_same_update(method, model, tmp_path):
    data = rankings(tmp_path) if method != "sft" else pairs(tmp_path)
    whole = weights_of(run(method, model, data, tmp_path / "whole", batch_size=8, learning_rate=1e-3))
    cut = weights_of(run(method, model, data, tmp_path / "cut", batch_size=8, accumulation=8, learning_rate=1e-3))
    assert same(whole, cut, 2e-5)


@pytest.mark.parametrize("adapter", [{}, {"lora_rank": 2}], ids=["all weights", "adapter"])
def test_a_kept_reference_is_the_live_one(adapter, model, tmp_path):
    data = pairs(tmp_path)
    results = [
        run("dpo", model, data, tmp_path / str(live), epochs=3, adapter=adapter, objective={"live_reference": live})
        for live in (False, True)
    ]
    assert results[0]["final_loss"] == pytest.approx(results[1]["final_loss"], abs=1e-5)
    # AdamW's first steps divide by the gradient's size, so rounding in it is not damped
    assert same(weights_of(results[0]), weights_of(results[1]), 2e-3)
    first = [read_metrics(tmp_path / str(live) / "metrics.jsonl")[0] for live in (False, True)]
    assert first[0]["loss"] == pytest.approx(first[1]["loss"], abs=1e-6)


def test_kept_reference_values_are_found_again_and_follow_data_and_weights(model, tmp_path):
    data = pairs(tmp_path)
    cache = tmp_path / "reference"

    def files():
        return sorted(cache.iterdir())

    choices = {"objective": {"reference_cache": str(cache)}}
    first = run("dpo", model, data, tmp_path / "a", **choices)
    (kept,) = files()
    again = run("dpo", model, data, tmp_path / "b", **choices)
    assert files() == [kept]
    assert same(weights_of(first), weights_of(again))
    run("dpo", model, pairs(tmp_path, seed=5), tmp_path / "c", **choices)
    assert len(files()) == 2
    run("dpo", first["model"], data, tmp_path / "d", **choices)
    assert len(files()) == 3


def test_a_stale_or_damaged_cache_is_refused(model, tmp_path):
    data, other = pairs(tmp_path), pairs(tmp_path, seed=5)
    cache = tmp_path / "reference"
    choices = {"objective": {"reference_cache": str(cache)}}
    run("dpo", model, data, tmp_path / "a", **choices)
    (kept,) = cache.iterdir()
    run("dpo", model, other, tmp_path / "b", **choices)
    (new,) = set(cache.iterdir()) - {kept}
    whole = kept.read_bytes()
    kept.write_bytes(new.read_bytes())
    with pytest.raises(UsageError, match="another model or other data"):
        run("dpo", model, data, tmp_path / "c", **choices)
    header = 8 + int.from_bytes(whole[:8], "little")
    for at in (40, *range(header, len(whole), 11)):
        kept.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(UsageError, match="delete it"):
            run("dpo", model, data, tmp_path / "c", **choices)
    kept.write_bytes(whole[:-10])
    with pytest.raises(UsageError, match="delete it"):
        run("dpo", model, data, tmp_path / "c", **choices)
    assert not (tmp_path / "c" / "model").exists()


def test_an_adapter_leaves_the_base_alone_and_is_merged_in_the_model_that_is_kept(model, tmp_path):
    data = pairs(tmp_path)
    result = run("dpo", model, data, tmp_path / "run", epochs=4, adapter={"lora_rank": 2})
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(model).eval()
    ids = torch.tensor([[4, 5, 6, 7]])
    before = base(ids).logits
    adapted = PeftModel.from_pretrained(base, tmp_path / "run" / "adapter").eval()
    merged = AutoModelForCausalLM.from_pretrained(result["model"]).eval()
    torch.testing.assert_close(adapted(ids).logits, merged(ids).logits, rtol=0, atol=1e-5)
    assert (merged(ids).logits - before).abs().max() > 1e-3
    with adapted.disable_adapter():
        assert torch.equal(adapted(ids).logits, before)


def test_patience_keeps_the_best_model(model, tmp_path):
    data, evaluation = pairs(tmp_path), pairs(tmp_path, seed=9)
    choices = {"epochs": 40, "eval_data": str(evaluation), "learning_rate": 0.05, "patience": 2}
    result = run("sft", model, data, tmp_path / "run", **choices)
    losses = [
        line["evaluation/loss"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if line.get("evaluation/loss")
    ]
    assert result["ended_early"] is not None
    assert not result["interrupted"]
    assert losses[-1] > min(losses) == losses[-3]
    assert result["final_loss"] == pytest.approx(min(losses), abs=1e-6)
    assert evaluate_alignment(tmp_path / "run", data=str(evaluation))["loss"] == pytest.approx(min(losses), abs=1e-5)


def test_what_is_evaluated_afterwards_is_what_the_run_reported(model, tmp_path):
    data, evaluation = pairs(tmp_path), pairs(tmp_path, seed=9)
    for method in ("reward", "dpo"):
        result = run(method, model, data, tmp_path / method, epochs=3, eval_data=str(evaluation))
        again = evaluate_alignment(tmp_path / method, data=str(evaluation))
        assert again["accuracy"] == result["accuracy"]
        assert again["loss"] == pytest.approx(result["final_loss"], abs=1e-5)
        assert again["pairs"] == 12


def test_the_implicit_reward_needs_the_reference_that_it_was_trained_against(model, tmp_path):
    data = pairs(tmp_path)
    run("dpo", model, data, tmp_path / "run")
    elsewhere = tmp_path / "elsewhere"
    model.rename(elsewhere)
    with pytest.raises(UsageError, match="--reference says where"):
        evaluate_alignment(tmp_path / "run", data=str(data))
    assert evaluate_alignment(tmp_path / "run", data=str(data), reference=str(elsewhere))["accuracy"] >= 0
    with pytest.raises(UsageError, match="does not have the weights"):
        evaluate_alignment(tmp_path / "run", data=str(data), reference=str(tmp_path / "run" / "model"))


def test_a_reward_model_without_its_head_is_an_error(model, tmp_path):
    from safetensors.torch import load_file, save_file

    data = pairs(tmp_path)
    run("reward", model, data, tmp_path / "run")
    weights = tmp_path / "run" / "model" / "model.safetensors"
    save_file({name: w for name, w in load_file(weights).items() if "score" not in name}, weights, metadata={"format": "pt"})
    with pytest.raises(UsageError, match="score"):
        evaluate_alignment(tmp_path / "run", data=str(data))
    with pytest.raises(UsageError, match="score"):
        run("reward", tmp_path / "run" / "model", data, tmp_path / "again")


def test_two_halves_at_once_are_the_batch_to_rounding_and_themselves_to_the_bit(model, tmp_path):
    data = rankings(tmp_path)
    torch.set_num_threads(2)
    try:
        halves = [weights_of(run("dpo", model, data, tmp_path / f"halves-{i}", learning_rate=1e-3)) for i in range(3)]
    finally:
        torch.set_num_threads(1)
    whole = weights_of(run("dpo", model, data, tmp_path / "whole", learning_rate=1e-3))
    assert same(halves[0], halves[1])
    assert same(halves[0], halves[2])
    # Adam divides by the gradient's size: where that is nearly nothing, rounding is a share of a step, which is 1e-3 long.
    assert same(halves[0], whole, 1e-4)


def test_without_data_for_evaluation_the_last_epochs_means_are_reported(model, tmp_path):
    result = run("sft", model, pairs(tmp_path, count=10), tmp_path / "run", epochs=2)
    sizes, lines = (4, 4, 2), read_metrics(tmp_path / "run" / "metrics.jsonl")[3:]
    assert result["final_loss"] == pytest.approx(sum(n * line["loss"] for n, line in zip(sizes, lines, strict=True)) / 10)


def test_data_for_evaluation_decide_nothing_about_the_training(model, tmp_path):
    data = rankings(tmp_path)
    alone = run("reward", model, data, tmp_path / "alone")
    result = run("reward", model, data, tmp_path / "run", eval_data=str(pairs(tmp_path)))
    first = [read_metrics(tmp_path / name / "metrics.jsonl")[0]["loss"] for name in ("alone", "run")]
    assert first[0] == first[1]
    assert same(weights_of(alone), weights_of(result))


@pytest.mark.parametrize(
    ("method", "kind", "choices"),
    [
        ("dpo", pairs, {"objective": {"label_smoothing": 0.3}}),
        ("dpo", pairs, {"objective": {"objective": "ipo"}}),
        ("dpo", pairs, {"objective": {"objective": "ipo", "length_normalized": True}}),
        ("dpo", rankings, {"objective": {"length_normalized": True}}),
        ("reward", rankings, {"objective": {"objective": "bradley-terry"}}),
        ("dpo", rankings, {"objective": {"ranking_top": 1}}),
        ("dpo", pairs, {"data_options": {"max_length": 7, "overlong": "drop"}}),
    ],
)
def test_evaluation_afterwards_computes_the_loss_that_the_run_had(method, kind, choices, model, tmp_path):
    data = kind(tmp_path)
    result = run(method, model, data, tmp_path / "run", eval_data=str(data), **choices)
    again = evaluate_alignment(tmp_path / "run", data=str(data))
    assert again["loss"] == pytest.approx(result["final_loss"], abs=1e-5)


def test_a_run_of_before_there_were_means_is_one_of_sums(model, tmp_path):
    data = pairs(tmp_path)
    result = run("dpo", model, data, tmp_path / "run", eval_data=str(data))
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())
    assert recorded.pop("length_normalized") is False
    (tmp_path / "run" / "config.json").write_text(json.dumps(recorded))
    again = evaluate_alignment(tmp_path / "run", data=str(data))
    assert again["loss"] == pytest.approx(result["final_loss"], abs=1e-5)


def test_a_reward_model_with_an_adapter_shares_prompts_too(model, tmp_path, capsys):
    align(settings("reward", model, rankings(tmp_path), tmp_path / "run", adapter={"lora_rank": 2}))
    said = capsys.readouterr().err
    assert "objective plackett-luce" in said
    assert "slow" not in said


def test_sequences_beyond_a_table_of_positions_are_refused_and_nothing_is_left(tmp_path):
    save_language_model(tmp_path / "gpt2", "gpt2")
    rows = [{"prompt": "a b", "chosen": "c " * 80, "rejected": "d"}]
    with pytest.raises(UsageError, match="--max-length 64"):
        run("dpo", tmp_path / "gpt2", write(tmp_path / "long.jsonl", rows), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_reference_of_another_architecture_is_not_found_in_the_cache(tmp_path):
    save_language_model(tmp_path / "one", "gpt2")
    save_language_model(tmp_path / "two", "gpt2", n_head=2)
    data = pairs(tmp_path)
    for name in ("one", "two"):
        run("dpo", tmp_path / name, data, tmp_path / f"run-{name}")
        assert read_metrics(tmp_path / f"run-{name}" / "metrics.jsonl")[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_an_evaluation_that_is_not_finite_ends_the_run_with_a_sentence(model, tmp_path):
    with pytest.raises(RunError, match="held-out data"):
        run("sft", model, pairs(tmp_path), tmp_path / "run", batch_size=24, learning_rate=1e38, held_out=0.3, warmup=0)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["method"] == "sft"


PLAIN = {"epochs": 2, "held_out": 0.25}
OPTIONS = [
    ("dpo", "training", {"batch_size": 3}),
    ("dpo", "training", {"epochs": 3}),
    ("dpo", "training", {"learning_rate": 0.02}),
    ("dpo", "training", {"learning_rate_schedule": "linear"}),
    ("dpo", "training", {"learning_rate_schedule": "constant"}),
    ("dpo", "training", {"warmup": 0.9}),
    ("dpo", "training", {"weight_decay": 0.5}),
    ("dpo", "training", {"adam_epsilon": 0.1}),
    ("dpo", "training", {"max_gradient_norm": 1e-9, "adam_epsilon": 0.1}),
    ("dpo", "training", {"held_out": 0.5}),
    ("dpo", "training", {"seed": 1}),
    ("dpo", "data", {"max_length": 6}),
    ("dpo", "adapter", {"lora_rank": 2}),
    ("dpo", "adapter", {"lora_rank": 2, "lora_alpha": 64}),
    ("dpo", "adapter", {"lora_rank": 2, "lora_targets": "q_proj"}),
    ("dpo", "adapter", {"lora_rank": 2, "lora_dropout": 0.5}),
    ("dpo", "objective", {"beta": 1.0}),
    ("dpo", "objective", {"objective": "ipo"}),
    ("dpo", "objective", {"label_smoothing": 0.3}),
    ("dpo", "objective", {"length_normalized": True}),
    ("dpo", "objective", {"objective": "ipo", "length_normalized": True}),
    ("dpo", "objective", {"supervised_weight": 1.0}),
    ("reward", "objective", {"centering": 1.0}),
]


def test_no_option_is_dead(model, tmp_path):
    """Every option that a pair can feel changes the weights, each another way."""
    data = pairs(tmp_path)
    seen = {}
    for i, (method, part, options) in enumerate([("dpo", "training", {}), ("reward", "training", {}), *OPTIONS]):
        choices = {**PLAIN, **options} if part == "training" else {**PLAIN, part: options}
        part_names = {"data": "data_options"}
        choices = {part_names.get(k, k): v for k, v in choices.items()}
        weights = weights_of(run(method, model, data, tmp_path / f"run-{i}", **choices))
        digest = torch.cat([w.detach().flatten() for w in weights.values()]).numpy().tobytes()
        assert digest not in seen, f"{options} changes nothing against {seen.get(digest)}"
        seen[digest] = options


def test_rankings_feel_their_options_too(model, tmp_path):
    data = rankings(tmp_path)
    kinds = [{}, {"objective": "bradley-terry"}, {"ranking_top": 1}, {"ranking_top": 2}]
    for method in ("dpo", "reward"):
        results = [run(method, model, data, tmp_path / f"{method}-{i}", objective=kind) for i, kind in enumerate(kinds)]
        weights = [weights_of(result) for result in results]
        assert not any(same(a, b) for i, a in enumerate(weights) for b in weights[:i])
        assert results[0]["pairs"] == 8 * 6


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_model_before_it(model, tmp_path):
    data = pairs(tmp_path)
    with pytest.raises(RunError, match=r"not finite|is nan|is inf"):
        run("sft", model, data, tmp_path / "run", epochs=30, learning_rate=1e18, max_gradient_norm=None, warmup=0)
    kept = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert all(bool(torch.isfinite(p).all()) for p in kept.parameters())


def test_the_step_size_rises_and_falls_as_it_is_said_to():
    plain = configure("dpo").training
    linear = replace(plain, learning_rate=1.0, learning_rate_schedule="linear", warmup=0.2)
    assert [learning_rate_at(i, 10, linear) for i in range(10)] == pytest.approx(
        [0.5, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
    )
    cosine = replace(linear, learning_rate_schedule="cosine", warmup=0.0)
    assert [learning_rate_at(i, 4, cosine) for i in range(4)] == pytest.approx([1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5])
    constant = replace(linear, learning_rate_schedule="constant", warmup=0.0)
    assert {learning_rate_at(i, 7, constant) for i in range(7)} == {1.0}


def test_the_warning_when_the_chosen_answers_lose_likelihood():
    from surefoot.alignment.learning.watch import ChosenWatch

    watch = ChosenWatch()
    assert watch.look({"loss": 1.0}) is None
    assert [watch.look({"log_ratio/chosen": x}) for x in (0.0, -0.5, -0.9)] == [None] * 3
    said = [watch.look({"log_ratio/chosen": -5.0}) for _ in range(20)]
    assert sum(s is not None for s in said) == 1
    assert "--supervised-weight" in next(s for s in said if s)
