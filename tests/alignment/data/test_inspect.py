"""`surefoot inspect`: tokens with their marks, and counts."""

from __future__ import annotations

import json

import pytest

from surefoot.alignment.data.configuration import DataConfiguration
from surefoot.alignment.data.inspection import inspect_data, tokens_of
from surefoot.commands.inspect import run
from surefoot.errors import UsageError
from tests.alignment.data.helpers import PAIR, write_lines
from tests.alignment.tokenizers import gpt2_like, llama_like, qwen_like, word_level

ROWS = [
    {"prompt": "what is", "chosen": " the answer\n", "rejected": " no", "margin": 1.5},
    {"prompt": "what is", "chosen": " a", "rejected": " b"},
    {"prompt": "what is", "chosen": " a", "rejected": " b"},
    {"prompt": "the", "chosen": " a", "rejected": ""},
    {"prompt": "the", "chosen": " a", "rejected": " b"},
]


@pytest.fixture
def model(tmp_path):
    llama_like().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def data(tmp_path):
    return str(write_lines(tmp_path / "rows.jsonl", ROWS))


def printed(capsys, *arguments):
    assert run(list(arguments)) == 0
    return capsys.readouterr().out


def test_rows_are_shown_token_by_token(capsys, data, model):
    lines = printed(capsys, data, "--model", model, "--rows", "1").splitlines()
    start = lines.index("row 1 (margin 1.5)")
    tokens = [line.partition("): ")[2] for line in lines[start + 1 : start + 4]]
    assert [line.replace("|", "") for line in tokens] == ["<s>‹BOS›␣what␣is", "␣the␣answer↵</s>‹EOS›", "␣no</s>‹EOS›"]
    assert all(line.split("|")[-1] == "</s>‹EOS›" for line in tokens[1:])
    assert lines[start + 2].startswith("  answer 0, rank 1 (")
    assert not any(line.startswith("row 2") for line in lines)
    assert "\x1b" not in "".join(lines)


def test_counts_are_printed(capsys, data, model):
    out = printed(capsys, data, "--model", model, "--rows", "0")
    for fact in (
        "rows                5, of which 4 are used",
        "answers per row     K = 2 in 4 rows",
        "rankings with ties  0",
        "different prompts   2; 75% of the rows share theirs",
        "duplicate rows      1",
        "not used: an answer is empty (row 4)",
        "warning: 1 rows repeat an earlier row",
    ):
        assert fact in out
    assert "answers cut         0 of 8, at 1,024 tokens with the prompt" in out


def test_json_says_the_same(capsys, data, model):
    result = json.loads(printed(capsys, data, "--model", model, "--json", "--rows", "2"))
    assert [row["row"] for row in result["rows"]] == [1, 2]
    first = result["rows"][0]
    assert [token["mark"] for token in first["prompt"]][:2] == ["BOS", ""]
    assert [token["mark"] for token in first["answers"][1]] == [""] * (len(first["answers"][1]) - 1) + ["EOS"]
    assert "".join(token["text"] for token in first["answers"][0]) == " the answer\n</s>"
    assert first["ranks"] == [1, 2]
    assert result["description"]["used"] == 4
    assert result["description"]["duplicate_rows"] == 1
    assert result["description"]["share_of_rows_with_shared_prompt"] == 0.75
    assert any("an answer is empty" in notice for notice in result["notices"])


def test_data_cannot_steer_the_terminal(capsys, tmp_path, model):
    path = write_lines(
        tmp_path / "rows.jsonl", [{"prompt": "a\x1b[31m", "chosen": "b\r", "rejected": "\tc\u202e", "\x1b[2J": 1}]
    )
    out = printed(capsys, str(path), "--model", model)
    assert "\x1b" not in out
    assert "\r" not in out
    assert "not read: \\x1b[2J" in out
    assert "⇥" in out


def test_cut_answers_are_marked(capsys, data, model):
    out = printed(capsys, data, "--model", model, "--rows", "1", "--max-length", "9")
    assert ", no EOS (" in out
    assert "of the answers are cut at 9 tokens; raise --max-length" in out
    out = printed(capsys, data, "--model", model, "--rows", "0", "--max-length", "9", "--overlong", "drop")
    assert "answers cut         0 of 6" in out
    assert "not used: an answer goes beyond 9 tokens (row 1)" in out


def test_purpose_and_format_are_obeyed(capsys, data, model):
    result = json.loads(printed(capsys, data, "--model", model, "--json", "--purpose", "sft", "--format", "preference"))
    assert result["description"]["ranking_sizes"] == {"1": 5}
    assert result["rows"][0]["ranks"] is None
    with pytest.raises(UsageError, match="ranked"):
        run([data, "--model", model, "--format", "ranked"])


def test_mistakes_are_sentences(data, model):
    with pytest.raises(UsageError, match="--rows must be 0 or more, but is -1"):
        run([data, "--model", model, "--rows", "-1"])
    with pytest.raises(UsageError, match="model"):
        run([data])


def inspected(tmp_path, rows, tokenizer, **options):
    path = write_lines(tmp_path / "rows.jsonl", rows)
    return inspect_data(DataConfiguration(str(path), **options), tokenizer, rows=3)


def test_what_is_likely_a_mistake_is_a_warning(tmp_path):
    tokenizer = word_level()
    tokenizer.eos_token = None
    tied = {"prompt": "what", "completions": ["a", "b", "c"], "ranks": [1, 2, 2]}
    result = inspected(tmp_path, [tied], tokenizer)
    assert result["warnings"] == [
        "the tokenizer has no EOS, so answers have no end that could be learnt; training refuses it",
        "3 of 3 answers begin with a letter or digit right behind the prompt's last character, without white space between them",
        "training refuses rankings with ties unless --ties pairs is given",
    ]
    assert result["description"]["tied"] == 1
    assert inspected(tmp_path, [PAIR | {"chosen": " yes"}], gpt2_like())["warnings"] == []


def test_demonstrations_and_pairs_are_shown(tmp_path, capsys, model):
    path = write_lines(tmp_path / "rows.jsonl", [{"prompt": "what", "completion": " a"}])
    assert "answer 0 (" in printed(capsys, str(path), "--model", model)
    write_lines(path, [{"prompt": "what", "responses": [" a", " b", " c"], "pairs": [[2, 0], [0, 1]]}])
    out = printed(capsys, str(path), "--model", model)
    assert "row 1 (better > worse: 2 > 0, 0 > 1)" in out
    assert "answers per row     K = 3 in 1 rows" in out


def test_the_same_token_is_bos_before_and_eos_behind():
    tokenizer = gpt2_like()
    ids = [tokenizer.bos_token_id, *tokenizer(" is ü").input_ids]
    shown = tokens_of(ids, tokenizer, marks=("BOS", "EOS"))
    assert [token.mark for token in shown[:2]] == ["BOS", ""]
    assert tokens_of(ids, tokenizer, marks=("EOS",))[0].mark == "EOS"
    assert [token.text for token in shown[:2]] == ["<|endoftext|>", " is"]
    assert [token.text for token in shown[-2:]] == ["<0xC3>", "<0xBC>"], "half a character is shown as a byte"


def test_a_token_of_a_line_end_is_shown():
    assert tokens_of(qwen_like()("\n").input_ids, qwen_like(), marks=())[0].text == "\n"


def test_prompts_without_answers_are_shown(tmp_path, capsys, model):
    rows = [{"prompt": "what is", "answer": 4}, {"prompt": "the"}, {"prompt": "the"}, {"prompt": ""}]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    out = printed(capsys, str(path), "--model", model, "--rows", "1")
    lines = out.splitlines()
    assert lines[lines.index("row 1") + 1].partition("): ")[2].replace("|", "") == "<s>‹BOS›␣what␣is"
    assert "answer 0" not in out
    assert "rows               4, of which 3 are used" in out
    assert "different prompts  2; 67% of the rows share theirs" in out
    assert "answers" not in out.split("prompts, tokens")[1].split("different")[0]
    assert "reward functions can ask for the other columns: answer" in out
    assert "1 row repeats an earlier row's prompt, and is kept" in out
    assert "not used: its prompt is empty (row 4)" in out
    result = json.loads(printed(capsys, str(path), "--model", model, "--json"))
    assert result["description"]["purpose"] == "prompts"
    assert result["rows"][0]["answers"] == []


def test_the_prompts_of_data_with_answers_can_be_asked_for(capsys, data, model):
    result = json.loads(printed(capsys, data, "--model", model, "--json", "--purpose", "prompts"))
    assert (result["description"]["format"], result["description"]["used"]) == ("preference", 5)
    assert [row["answers"] for row in result["rows"]] == [[], [], []]
    assert result["warnings"] == []
