"""A generated task is files that everything else here, and plain transformers, can read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from surefoot.alignment.data import DataConfiguration, load_examples, load_tokenizer
from surefoot.alignment.tasks import grammar
from surefoot.alignment.tasks.files import TaskConfiguration, ceiling, write_grammar_task
from surefoot.cli import main
from surefoot.errors import UsageError

SMALL = {"prompts": 40, "held_out": 30, "hidden_size": 16, "layers": 1, "answers": 3, "temperature": 0.5}
NAMES = {"sft.jsonl", "pairs.jsonl", "ranked.jsonl", "clean.jsonl", "noisy.jsonl", "model"}


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grammar") / "deep" / "task"
    return folder, write_grammar_task(folder, TaskConfiguration(**SMALL))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_files_are_those_that_were_asked_for(task):
    folder, said = task
    assert {file.name for file in folder.iterdir()} == NAMES
    counts = {name: len(rows(folder / name)) for name in NAMES - {"model"}}
    assert counts == {"sft.jsonl": 40, "pairs.jsonl": 40, "ranked.jsonl": 40, "clean.jsonl": 30, "noisy.jsonl": 30}
    assert said == counts | {"ceiling": ceiling(rows(folder / "noisy.jsonl"))}
    assert {len(row["completions"]) for row in rows(folder / "ranked.jsonl")} == {3}


def test_evaluation_has_one_file_in_the_true_order_and_one_as_noisy_as_training(task):
    folder, _ = task
    mistakes = {
        name: sum(row["true_rewards"][0] < row["true_rewards"][1] for row in rows(folder / f"{name}.jsonl"))
        for name in ("pairs", "clean", "noisy")
    }
    assert mistakes["clean"] == 0
    assert mistakes["pairs"] > 0
    assert mistakes["noisy"] > 0


def test_no_file_repeats_another(task):
    folder, _ = task
    answers = {
        name: [(row["prompt"], *sorted((row["chosen"], row["rejected"]))) for row in rows(folder / f"{name}.jsonl")]
        for name in ("pairs", "clean", "noisy")
    }
    every = [pair for pairs in answers.values() for pair in pairs]
    assert len(set(every)) == len(every)


@pytest.mark.parametrize(
    ("name", "purpose", "answers"),
    [
        ("sft", "sft", 1),
        ("pairs", "preference", 2),
        ("ranked", "preference", 3),
        ("clean", "preference", 2),
        ("pairs", "sft", 1),
    ],
)
def test_every_row_is_used_and_every_word_has_a_token(task, name, purpose, answers):
    folder, _ = task
    tokenizer = load_tokenizer(str(folder / "model"))
    loaded = load_examples(DataConfiguration(data=str(folder / f"{name}.jsonl"), cache=False), tokenizer, purpose=purpose)
    content = rows(folder / f"{name}.jsonl")
    assert loaded.description["rows"] == loaded.description["used"] == len(loaded.examples) == len(content)
    for example, row in zip(loaded.examples, content, strict=True):
        assert len(example.completions) == answers
        assert tokenizer.decode(example.prompt) == row["prompt"]
        for ids in (example.prompt, *example.completions):
            assert tokenizer.unk_token_id not in ids
        for ids in example.completions:
            assert ids[-1] == tokenizer.eos_token_id
            assert grammar.reward(row["prompt"], tokenizer.decode(ids[:-1])) > grammar.UNGRAMMATICAL
        if name == "ranked":
            assert example.ranks == tuple(row["ranks"])


def test_the_model_opens_in_plain_transformers(task):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, _ = task
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    assert (model.config.hidden_size, model.config.num_hidden_layers) == (16, 1)
    assert model.config.vocab_size == len(tokenizer) == len(grammar.WORDS) + 3
    for config in (model.config, model.generation_config):
        assert (config.pad_token_id, config.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
    prompt = "the soup and the waiter . what about the latter ?"
    ids = tokenizer([prompt], return_tensors="pt")
    assert tokenizer.decode(ids["input_ids"][0]) == prompt
    written = model.generate(**ids, max_new_tokens=3, do_sample=False)
    assert 11 < written.shape[1] <= 14


def test_a_seed_decides_every_byte_and_leaves_global_randomness_alone(task, tmp_path):
    import torch

    folder, _ = task
    torch.manual_seed(7)
    before = torch.get_rng_state()
    write_grammar_task(tmp_path / "again", TaskConfiguration(**SMALL))
    assert torch.equal(torch.get_rng_state(), before)
    assert contents(tmp_path / "again") == contents(folder)
    write_grammar_task(tmp_path / "other", TaskConfiguration(**SMALL, seed=1))
    other = contents(tmp_path / "other")
    same = {name for name, content in contents(folder).items() if other[name] == content}
    assert same == {name for name in other if name.startswith("model/") and not name.endswith(".safetensors")}


@pytest.mark.parametrize("name", sorted(NAMES))
def test_nothing_that_is_there_is_written_over(tmp_path, name):
    (tmp_path / name).mkdir() if name == "model" else (tmp_path / name).write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=rf"already holds {name}; choose another --out, or delete it"):
        write_grammar_task(tmp_path, TaskConfiguration(**SMALL))
    assert contents(tmp_path) == before
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"prompts": 0}, "--prompts must be at least 1, but is 0"),
        ({"held_out": 0}, "--held-out must be at least 1, but is 0"),
        ({"layers": 0}, "--layers must be at least 1, but is 0"),
        ({"answers": 1}, "--answers must lie between 2 and 100, but is 1"),
        ({"answers": 101}, "--answers must lie between 2 and 100, but is 101"),
        ({"temperature": -0.1}, "--temperature must be a finite number and not negative, but is -0.1"),
        ({"temperature": float("nan")}, "--temperature must be a finite number and not negative, but is nan"),
        ({"temperature": float("inf")}, "--temperature must be a finite number and not negative, but is inf"),
        ({"hidden_size": 12}, "--hidden-size must be a multiple of 8, for four heads of even width, but is 12"),
        ({"hidden_size": 0}, "--hidden-size must be a multiple of 8, for four heads of even width, but is 0"),
        ({"seed": -1}, "--seed must lie between 0 and 2147483647, but is -1"),
        ({"seed": 2**31}, "--seed must lie between 0 and 2147483647, but is 2147483648"),
    ],
)
def test_a_wrong_option_is_a_sentence(options, sentence, tmp_path, capsys):
    with pytest.raises(UsageError) as caught:
        TaskConfiguration(**options)
    assert str(caught.value) == sentence
    [(name, value)] = options.items()
    assert main(["task", "grammar", "--out", str(tmp_path / "x"), f"--{name.replace('_', '-')}={value}"]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_the_ceiling_counts_equal_rewards_as_half_right():
    assert ceiling([{"true_rewards": pair} for pair in ([1, 0], [0, 1], [2, 1], [1, 1])]) == 0.625


def test_the_command_says_what_it_wrote_and_what_comes_next(tmp_path, capsys):
    out = tmp_path / "task"
    small = "--prompts 5 --held-out 4 --hidden-size 8 --layers 1 --temperature 0"
    assert main(f"task grammar --out {out} {small} --json".split()) == 0
    said = capsys.readouterr()
    counts = {"sft.jsonl": 5, "pairs.jsonl": 5, "ranked.jsonl": 5, "clean.jsonl": 4, "noisy.jsonl": 4}
    assert json.loads(said.out) == {"task": "grammar", "folder": str(out), **counts, "ceiling": 1.0}
    assert f"surefoot align sft --model {out / 'model'} --data {out / 'sft.jsonl'}" in said.err
    assert main(f"task grammar --out {out} {small}".split()) == 2
    assert "already holds sft.jsonl" in capsys.readouterr().err
    assert main(f"task grammar --out {tmp_path / 'silent'} {small} --quiet".split()) == 0
    assert capsys.readouterr() == ("", "")


def test_a_task_that_does_not_exist_is_a_sentence(capsys):
    assert main(["task", "chess"]) == 2
    assert "there is no task 'chess'; there is grammar" in capsys.readouterr().err
    assert main(["task", "--help"]) == 0
    assert "grammar" in capsys.readouterr().out
    assert main(["task"]) == 2
