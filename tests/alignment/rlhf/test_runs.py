"""Whole runs of ``surefoot align ppo`` on a tiny model: what they reach, what they leave, and what stops them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from surefoot.alignment.configuration import configure
from surefoot.alignment.data.tokenization.tokenizer import load_tokenizer
from surefoot.alignment.models.loading import load_policy, load_reward_model
from surefoot.alignment.reference import LiveReference
from surefoot.alignment.rlhf import online, opening
from surefoot.alignment.rlhf.online import Online
from surefoot.alignment.training import align
from surefoot.errors import RunError, UsageError
from surefoot.runs.metrics import read_metrics
from tests.alignment.models.tiny import language_model, reward_model, save_language_model
from tests.alignment.rlhf.experiences import weights_of
from tests.alignment.tokenizers import WORDS, gpt2_like, word_level

torch.set_num_threads(1)

REWARDS = '''
import os, signal

calls = 0

def good(prompts, completions):
    """How often the word occurs."""
    return [float(text.split().count("good")) for text in completions]

def _later(prompts, completions, what):
    global calls
    calls += 1
    return what() if calls == 3 else good(prompts, completions)

def raises_at_once(prompts, completions):
    raise ValueError("there is no reward")

def raises(prompts, completions):
    return _later(prompts, completions, lambda: 1 / 0)

def not_a_number(prompts, completions):
    return _later(prompts, completions, lambda: [0.0, float("nan"), *good(prompts, completions)[2:]])

def stops(prompts, completions):
    global calls
    calls += 1
    if calls == 2:
        os.kill(os.getpid(), signal.SIGTERM)
    return good(prompts, completions)
'''
EVERYWHERE = {
    "iteration", "prompts", "epoch", "reward", "reward/deviation", "return", "kl/reference", "kl/coefficient", "kl/update", "entropy",
    "length", "length/longest", "finished", "clip_fraction", "ratio/lowest", "ratio/highest", "steps", "learning_rate",
    "gradient_norm", "loss/policy", "weight/deviation", "speed/sampling_tokens_per_second", "speed/scoring_tokens_per_second",
    "speed/update_tokens_per_second", "speed/utilization",
}  # fmt: skip
WITH_CRITIC = {"loss/value", "critic/explained_variance", "critic/value_mean", "critic/gradient_norm"}


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "rewards.py").write_text(REWARDS)


@pytest.fixture
def model(tmp_path):
    save_language_model(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    rows = [{"prompt": " ".join(rng.choice(WORDS, 2 + i % 3)), "about": i} for i in range(8)]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(model, data, out, *, reward="good", adapter=None, objective=None, **training):
    named = f"{data.parent / 'rewards.py'}:{reward}" if reward.isidentifier() else reward
    defaults = configure("ppo", model=str(model), data=str(data), reward=named)
    plain = {
        "batch_size": 8,
        "learning_rate": 0.02,
        "learning_rate_schedule": "constant",
        "out": str(out),
        "tensorboard": False,
    }
    chosen = {"answers_per_prompt": 4, "longest_answer": 5, "beta": 0.02}
    return replace(
        defaults,
        adapter=replace(defaults.adapter, **(adapter or {})),
        training=replace(defaults.training, **(plain | training)),
        objective=replace(defaults.objective, **(chosen | (objective or {}))),
    )


def run(*arguments, **choices):
    return align(settings(*arguments, **choices), quiet=True)


def metrics_of(result):
    return read_metrics(Path(result["run"]) / "metrics.jsonl")


def weights(result):
    return weights_of(AutoModelForCausalLM.from_pretrained(result["model"]))


@pytest.mark.parametrize("weight", ["gae", "reward-to-go", "group", "leave-one-out"])
def test_a_run_learns_what_it_is_paid_for_and_leaves_what_plain_transformers_opens(weight, model, data, tmp_path):
    chosen = {"weight": weight} | ({"trace_decay": 1.0} if weight == "gae" else {})
    result = run(model, data, tmp_path / "run", epochs=14, objective=chosen)
    lines = metrics_of(result)
    assert result["first_reward"] < 1
    assert np.mean([line["reward"] for line in lines[-3:]]) > 2
    expected = EVERYWHERE | (WITH_CRITIC if weight == "gae" else set())
    assert all(set(line) == expected for line in lines)
    assert all(value is not None and math.isfinite(value) for line in lines for value in line.values())
    assert [line["iteration"] for line in lines] == list(range(1, 15))
    assert [line["prompts"] for line in lines] == [8 * i for i in range(1, 15)]
    assert lines[-1]["epoch"] == 14
    assert result["iterations"] == 14
    assert result["prompts"] == 14 * 8
    assert result["answers"] == 14 * 8 * 4
    assert result["reward"] == lines[-1]["reward"]
    assert result["first_reward"] == lines[0]["reward"]
    assert result["kl_reference"] == lines[-1]["kl/reference"] > 0.1
    assert abs(lines[0]["kl/reference"]) < 1e-5
    assert result["ratio_error"] <= 1e-5
    assert result["beta"] == 0.02
    assert not result["interrupted"]
    folder = tmp_path / "run"
    assert json.loads((folder / "summary.json").read_text()) == result
    assert json.loads((folder / "config.json").read_text())["weight"] == weight
    # the model that was kept is the one that learnt: it says the word
    tokenizer = AutoTokenizer.from_pretrained(result["model"])
    kept = AutoModelForCausalLM.from_pretrained(result["model"])
    assert kept.config.use_cache
    ids = torch.tensor([tokenizer("a b")["input_ids"]])
    said = tokenizer.decode(kept.generate(ids, max_new_tokens=5, do_sample=False)[0, 2:])
    assert said.split().count("good") >= 2
    card = (folder / "model" / "README.md").read_text()
    assert "ppo" in card
    assert "prompts.jsonl" in card
    assert str(tmp_path) not in card


def test_answers_can_be_read_while_the_run_goes_on(model, data, tmp_path):
    result = run(model, data, tmp_path / "run", epochs=8, objective={"weight": "group", "samples_every": 3})
    entries = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert sorted({entry["iteration"] for entry in entries}) == [1, 4, 7, 8]
    assert len(entries) == 4 * 4 * 4
    assert any(entry["finished"] for entry in entries)
    texts = [json.loads(line)["prompt"] for line in data.read_text().splitlines()]
    for entry in entries:
        assert set(entry) == {"iteration", "row", "prompt", "answer", "finished", "reward", "kl"}
        assert entry["prompt"] == texts[entry["row"] - 1]
        assert entry["reward"] == entry["answer"].split().count("good")
        assert "<" not in entry["answer"]
        assert entry["kl"] == pytest.approx(0, abs=1e-4) or entry["iteration"] > 1
    assert result["iterations"] == 8
    run(model, data, tmp_path / "silent", epochs=1, objective={"weight": "group", "samples_every": 0})
    assert not (tmp_path / "silent" / "samples.jsonl").exists()


@pytest.mark.parametrize("share_prompts", [True, False])
@pytest.mark.parametrize("critic", ["reward", "policy"])
def test_rows_that_are_no_token_are_never_drawn_and_ratios_are_of_the_rest(
    critic, share_prompts, data, tmp_path, capsys, monkeypatch
):
    """As of vocabularies that are rounded up; a reward model with a row per token could not read the others."""
    rows, tokens = 60, len(word_level())
    save_language_model(tmp_path / "large", vocab_size=rows)
    reward_model().save_pretrained(tmp_path / "judge")
    word_level().save_pretrained(tmp_path / "judge")
    seen, completions = [], LiveReference.completions

    def counted(self, groups, *, under):
        seen.extend(int(token) for _, answers in groups for answer in answers for token in answer)
        return completions(self, groups, under=under)

    monkeypatch.setattr(LiveReference, "completions", counted)
    chosen = {"critic": critic, "shortest_answer": 2}
    configuration = settings(
        tmp_path / "large",
        data,
        tmp_path / "run",
        reward=str(tmp_path / "judge"),
        objective=chosen,
        epochs=3,
        share_prompts=share_prompts,
    )
    result = align(configuration)
    assert f"{rows - tokens} rows of the model's vocabulary are no token" in capsys.readouterr().err
    assert len(seen) > 50
    assert max(seen) < tokens
    assert result["ratio_error"] <= 1e-5


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_without_a_penalty_there_is_no_reference_model(lora_rank, model, data, tmp_path, monkeypatch):
    """No copy, no forward pass, no log-probabilities; unless the run is to stop by its distance from it."""
    made, computed = [], []
    live, completions = online.live_reference, LiveReference.completions
    monkeypatch.setattr(online, "live_reference", lambda *arguments: made.append(1) or live(*arguments))
    monkeypatch.setattr(
        LiveReference, "completions", lambda self, *a, **options: computed.append(1) or completions(self, *a, **options)
    )
    chosen = {"weight": "group", "beta": 0.0, "samples_every": 1}
    choices = {"epochs": 3, "adapter": {"lora_rank": lora_rank}}
    result = run(model, data, tmp_path / "run", objective=chosen, **choices)
    assert (made, computed) == ([], [])
    assert all(set(line) == EVERYWHERE - {"kl/reference"} for line in metrics_of(result))
    assert result["kl_reference"] is None
    entries = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert all("reward" in entry and "kl" not in entry for entry in entries)
    measured = run(model, data, tmp_path / "measured", objective=chosen | {"stop_kl": 1e9}, **choices)
    assert made == [1]
    assert len(computed) == 2  # in the first iteration the policy is the reference
    assert measured["kl_reference"] != 0
    assert torch.equal(weights(measured), weights(result))
    compared = run(model, data, tmp_path / "compared", objective=chosen | {"beta": 1e-9}, **choices)
    assert compared["kl_reference"] == pytest.approx(measured["kl_reference"], rel=1e-3)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(model, data, tmp_path):
    results = [run(model, data, tmp_path / str(i), epochs=1, batch_size=3, seed=seed) for i, seed in enumerate((5, 5, 6))]
    first, second, third = map(weights, results)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert results[0]["iterations"] == 3
    assert results[0]["prompts"] == 8


def test_a_stop_keeps_the_model_that_the_iteration_made(model, data, tmp_path):
    choices = {"epochs": 6, "objective": {"weight": "leave-one-out"}}
    result = run(model, data, tmp_path / "run", reward="stops", **choices)
    assert result["interrupted"]
    assert result["iterations"] == 2
    assert len(metrics_of(result)) == 2
    short = run(model, data, tmp_path / "short", **{**choices, "epochs": 2})
    assert torch.equal(weights(result), weights(short))
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["interrupted"]


@pytest.mark.parametrize(("reward", "said"), [("raises", "ZeroDivisionError"), ("not_a_number", "nan")])
def test_a_reward_that_cannot_be_had_names_the_prompt_and_keeps_the_model_before_it(reward, said, model, data, tmp_path):
    choices = {"objective": {"weight": "leave-one-out"}}
    with pytest.raises(RunError, match=r"row \d") as raised:
        run(model, data, tmp_path / "run", reward=reward, epochs=6, **choices)
    assert said in str(raised.value)
    kept = {"model": str(tmp_path / "run" / "model")}
    short = run(model, data, tmp_path / "short", epochs=2, **choices)
    assert torch.equal(weights(kept), weights(short))
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 2


def test_a_reward_that_fails_at_once_leaves_the_model_as_it_was(model, data, tmp_path):
    with pytest.raises(RunError, match="there is no reward"):
        run(model, data, tmp_path / "run", reward="raises_at_once")
    assert torch.equal(weights({"model": tmp_path / "run" / "model"}), weights({"model": model}))
    assert (tmp_path / "run" / "config.json").exists()
    assert not (tmp_path / "run" / "summary.json").exists()


def test_too_far_from_the_reference_the_run_ends_by_itself(model, data, tmp_path):
    result = run(model, data, tmp_path / "run", epochs=14, objective={"weight": "leave-one-out", "stop_kl": 0.5})
    lines = metrics_of(result)
    assert "--stop-kl 0.5" in result["ended_early"]
    assert not result["interrupted"]
    assert result["iterations"] < 14
    assert lines[-1]["kl/reference"] > 0.5
    assert all(line["kl/reference"] <= 0.5 for line in lines[:-1])


def test_without_critic_none_is_loaded(model, data, tmp_path, monkeypatch):
    def loaded(*arguments, **options):
        raise AssertionError("a critic was loaded")

    monkeypatch.setattr(opening, "load_reward_model", loaded)
    monkeypatch.setattr(opening.Critic, "sharing", loaded)
    for weight in ("reward-to-go", "group", "leave-one-out"):
        run(model, data, tmp_path / weight, epochs=1, objective={"weight": weight})
    for critic in ("policy", "shared"):
        with pytest.raises(AssertionError, match="was loaded"):
            run(model, data, tmp_path / critic, epochs=1, objective={"critic": critic})


def test_an_adapter_is_trained_and_kept_and_the_base_is_the_reference(model, data, tmp_path):
    result = run(model, data, tmp_path / "run", epochs=8, adapter={"lora_rank": 4}, learning_rate=0.05)
    lines = metrics_of(result)
    assert abs(lines[0]["kl/reference"]) < 1e-5
    assert result["kl_reference"] > 0.1
    assert result["reward"] > result["first_reward"] + 0.5
    assert lines[0]["critic/value_mean"] == 0
    assert lines[1]["critic/value_mean"] != 0  # the critic's head is trained beside its own adapter
    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(model).eval()
    ids = torch.tensor([[4, 5, 6, 7]])
    before = base(ids).logits
    adapted = PeftModel.from_pretrained(base, tmp_path / "run" / "adapter").eval()
    merged = AutoModelForCausalLM.from_pretrained(result["model"]).eval()
    torch.testing.assert_close(adapted(ids).logits, merged(ids).logits, rtol=0, atol=1e-5)
    assert (merged(ids).logits - before).abs().max() > 1e-2


def rewarding(model, tmp_path):
    """A reward model to which the word `good` is worth something."""
    rng = np.random.default_rng(2)

    def words(count):
        return " ".join(rng.choice([w for w in WORDS if w != "good"], count))

    rows = [{"prompt": words(3), "chosen": f"{words(1)} good {words(1)}", "rejected": words(3)} for _ in range(24)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    defaults = configure("reward", model=str(model), data=str(tmp_path / "pairs.jsonl"))
    options = {"batch_size": 8, "epochs": 6, "learning_rate": 0.01, "tensorboard": False, "out": str(tmp_path / "judge")}
    return align(replace(defaults, training=replace(defaults.training, **options)), quiet=True)["model"]


def test_a_reward_model_is_the_reward_and_where_the_critic_starts(model, data, tmp_path, capsys):
    judge = rewarding(model, tmp_path)
    chosen = settings(model, data, tmp_path / "run", reward=judge, epochs=10, objective={"trace_decay": 1.0})
    result = align(chosen)
    assert "copy of the reward model" in capsys.readouterr().err
    assert result["reward"] > result["first_reward"] + 1
    folder = settings(model, data, tmp_path / "other", reward=judge)
    tokenizer = load_tokenizer(str(model))
    told = []
    prepared = Online.prepare(folder, tokenizer, told.append, quiet=True)
    plain, _ = load_reward_model(replace(folder.model, model=judge), tokenizer, new_head=False)
    assert torch.equal(weights_of(prepared.critic.likelihood.model), weights_of(plain))
    # and the policy where that is asked for, with a head that says 0
    apart = replace(folder, objective=replace(folder.objective, critic="policy"))
    prepared = Online.prepare(apart, tokenizer, told.append, quiet=True)
    policy = load_policy(folder.model, tokenizer)
    critic = prepared.critic.likelihood.model
    assert torch.equal(weights_of(critic.model), weights_of(policy.model))
    assert not bool(critic.score.weight.any())


def test_a_critic_that_cannot_start_from_the_reward_is_refused(model, data, tmp_path):
    with pytest.raises(UsageError, match="a function has no weights"):
        run(model, data, tmp_path / "run", objective={"critic": "reward"})
    assert not (tmp_path / "run").exists()


def test_answers_end_with_every_token_that_the_model_names(model, data, tmp_path):
    generation = {"eos_token_id": [7], "pad_token_id": 0}
    (model / "generation_config.json").write_text(json.dumps(generation))
    prepared = Online.prepare(settings(model, data, tmp_path / "run"), load_tokenizer(str(model)), print, quiet=True)
    assert prepared.ends.sampling == (1, 7)
    result = run(model, data, tmp_path / "run", epochs=1, objective={"weight": "group", "longest_answer": 20})
    assert result["tokens"] < 0.9 * 32 * 20  # 2 of 24 tokens end an answer


def test_a_policy_whose_answers_could_not_end_is_refused(model, data, tmp_path):
    tokenizer = json.loads((model / "tokenizer_config.json").read_text())
    del tokenizer["eos_token"]
    (model / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (model / "special_tokens_map.json").unlink(missing_ok=True)
    with pytest.raises(UsageError, match="EOS"):
        run(model, data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("critic", ["policy", "shared"])
def test_a_tokenizer_without_a_padding_token_still_fits_the_policy_that_is_kept(critic, data, tmp_path):
    tokenizer = gpt2_like()
    language_model("gpt2", vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, pad_token_id=None).save_pretrained(
        tmp_path / "small"
    )
    tokenizer.save_pretrained(tmp_path / "small")
    result = run(tmp_path / "small", data, tmp_path / "run", epochs=1, objective={"critic": critic})
    kept = AutoModelForCausalLM.from_pretrained(result["model"])
    assert max(AutoTokenizer.from_pretrained(result["model"]).get_vocab().values()) < kept.get_input_embeddings().num_embeddings
    run(result["model"], data, tmp_path / "again", epochs=1, objective={"critic": critic})


def test_prompts_that_are_not_shared_give_the_same_answers_and_nearly_the_same_policy(model, data, tmp_path):
    choices = {"epochs": 1, "learning_rate": 1e-3, "adam_epsilon": 1e-3, "objective": {"weight": "leave-one-out"}}
    shared, apart = (run(model, data, tmp_path / str(share), share_prompts=share, **choices) for share in (True, False))
    assert shared["tokens"] == apart["tokens"]
    assert shared["reward"] == apart["reward"]
    assert apart["ratio_error"] <= 1e-5
    torch.testing.assert_close(weights(shared), weights(apart), rtol=0, atol=2e-5)


def test_several_epochs_ask_every_prompt_as_often_in_another_order(model, data, tmp_path):
    run(model, data, tmp_path / "run", epochs=2, batch_size=4, objective={"weight": "group", "samples_every": 1})
    entries = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    rows = [entry["row"] for entry in entries[::4]]
    assert sorted(rows[:8]) == sorted(rows[8:]) == list(range(1, 9))
    assert rows[:8] != rows[8:]
