"""From a file to examples: every row is used or counted, and what was done is said."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from surefoot.alignment.data.configuration import DataConfiguration
from surefoot.alignment.data.loading import load_examples
from surefoot.alignment.data.prompts import load_prompts
from surefoot.alignment.data.reading.rows import MARKED_BAD
from surefoot.errors import UsageError
from tests.alignment.data.helpers import PAIR, assistant, load, reasons, texts, user
from tests.alignment.tokenizers import gpt2_like, llama_like, qwen_like, word_level

RANKED = {"prompt": "what", "completions": ["a", "b", "c"], "ranks": [2, 1, 3]}
TIED = RANKED | {"ranks": [1, 2, 2]}
TOKENIZERS = {"word-level": word_level(), "gpt2": gpt2_like(), "llama": llama_like(), "qwen": qwen_like()}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.sampled_from(["yes", "</s>", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "rank"]), inner, max_size=3)
    ),
    max_leaves=6,
)
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "x"]), "content": st.text(max_size=4)}), max_size=4
)
cells = json_values | messages | st.lists(st.text(max_size=3), max_size=3) | st.lists(st.integers(0, 3), max_size=3)
columns = st.sampled_from(
    ["prompt", "chosen", "rejected", "completions", "ranks", "scores", "pairs", "completion", "messages", "responses", "margin"]
)
likely = st.sampled_from([PAIR, RANKED, TIED, {"messages": [user("a"), assistant("b")]}, {"chosen": "q a", "rejected": "q b"}])
any_row = (
    json_values
    | st.dictionaries(columns, cells)
    | st.tuples(likely, st.dictionaries(columns, cells)).map(lambda both: both[0] | both[1])
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.tuples(st.lists(any_row, max_size=4), likely).map(lambda both: [*both[0], *[both[1]] * 5]),
    st.sampled_from(list(TOKENIZERS)),
    st.sampled_from(["sft", "preference"]),
    st.sampled_from(["truncate", "drop"]),
    st.integers(3, 20),
)
def test_whatever_the_rows_are_each_is_used_or_counted(rows, name, purpose, overlong, max_length):
    try:
        data = load(rows, TOKENIZERS[name], purpose, overlong=overlong, max_length=max_length, ties="pairs")
    except UsageError:
        return
    said = data.description
    assert said["rows"] == len(rows)
    assert said["used"] == len(data.examples) == len(rows) - sum(said["unusable"].values())
    json.dumps(said, allow_nan=False)
    for example in data.examples:
        assert (len(example.completions) == 1) == (purpose == "sft")
        assert bool(example.pairs) == (purpose == "preference")
        for ids in (example.prompt, *example.completions):
            assert len(ids)


def test_rows_that_cannot_be_used_are_counted_with_their_first_numbers():
    rows = [PAIR, PAIR | {"chosen": " "}, *[PAIR | {"chosen": "no"}] * 7, 3, PAIR]
    data = load(rows, gpt2_like())
    assert reasons(data) == {"two answers are identical": 7, "an answer is empty": 1, "it is no JSON object": 1}
    assert next(iter(reasons(data))) == "two answers are identical"
    assert data.notices[1:] == (
        "not used: two answers are identical (rows 3, 4, 5, 6, 7 and 2 more)",
        "not used: an answer is empty (row 2)",
        "not used: it is no JSON object (row 10)",
    )
    assert [example.number for example in data.examples] == [1, 11]


def test_a_reason_found_early_and_late_counts_its_rows_in_order():
    rows = [PAIR | {"chosen": "zebra", "rejected": "giraffe"}, PAIR | {"chosen": "no"}, PAIR]
    data = load(rows, word_level())
    assert data.description["unusable_rows"] == {"two answers are identical": [1, 2]}


def test_the_format_is_said_with_what_is_not_read():
    data = load([PAIR | {"source": "x", "margin": 1}], gpt2_like())
    assert data.notices[0].endswith(
        "rows.jsonl: a chosen and a rejected answer to a prompt (format preference, columns prompt, chosen, rejected, margin;"
        " not read: source); 1 of 1 rows are used"
    )
    assert data.description["format"] == "preference"
    assert data.description["with_margin"] == 1


def test_no_usable_row_is_an_error_with_the_reasons():
    with pytest.raises(UsageError, match=r"rows.jsonl has no row that can be used: an answer is empty \(rows 1, 2\)"):
        load([PAIR | {"chosen": ""}] * 2, gpt2_like())
    with pytest.raises(UsageError, match=r"rows.jsonl holds no rows"):
        load([], gpt2_like())


def test_a_tie_is_refused_by_its_row_or_read_as_pairs():
    rows = [RANKED, PAIR, TIED, TIED]
    with pytest.raises(UsageError, match=r"row 3 of .*rows.jsonl gives 2 answers the rank 2; --ties pairs breaks"):
        load(rows, gpt2_like())
    data = load(rows, gpt2_like(), ties="pairs")
    assert [(example.ranks, example.pairs, example.tied) for example in data.examples] == [
        ((2, 1, 3), ((1, 0), (0, 2), (1, 2)), False),
        ((1, 2, 2), ((0, 1), (0, 2)), True),
        ((1, 2, 2), ((0, 1), (0, 2)), True),
    ]
    assert data.description["tied"] == 2
    assert "2 rows have tied answers, read as the pairs that the ranking implies" in data.notices
    assert load(rows, gpt2_like(), "sft").description["used"] == 3


def test_answers_that_all_tie_prefer_nothing():
    with pytest.raises(UsageError, match=r"row 2 of .* gives 3 answers the rank 1"):
        load([RANKED, RANKED | {"ranks": [5, 5, 5]}], gpt2_like())
    assert reasons(load([RANKED, RANKED | {"ranks": [5, 5, 5]}], gpt2_like(), ties="pairs")) == {
        "no answer is preferred to another": 1
    }


def test_fine_tuning_on_preferences_takes_the_best_answer_and_says_so():
    tokenizer = gpt2_like()
    data = load([PAIR, PAIR], tokenizer, "sft")
    assert texts(data.examples[0], tokenizer)[1:] == ("yes<|endoftext|>",)
    assert "supervised fine-tuning imitates one answer per row: the chosen one is used, the others are not" in data.notices
    assert (data.examples[0].ranks, data.examples[0].pairs) == (None, ())
    data = load([RANKED], tokenizer, "sft")
    assert texts(data.examples[0], tokenizer)[1:] == ("b<|endoftext|>",)
    assert any("the best one is used" in notice for notice in data.notices)
    assert not any("imitates" in notice for notice in load([{"prompt": "a", "completion": "b"}], tokenizer, "sft").notices)


def test_implicit_prompts_without_a_turn_marker_are_said():
    rows = [{"chosen": f"\n\nHuman: {i}\n\nAssistant: a", "rejected": f"\n\nHuman: {i}\n\nAssistant: b"} for i in range(3)]
    assert len(load(rows, gpt2_like()).notices) == 1
    data = load([*rows, {"chosen": "what? a", "rejected": "what? b"}], gpt2_like())
    assert data.notices[1].startswith("1 row has no turn marker: what chosen and rejected share")


def test_cut_answers_and_empty_prompts_are_said():
    rows = [{"prompt": "", "chosen": "a b c d", "rejected": "d"}, {"prompt": "a", "chosen": "b", "rejected": "c"}]
    data = load(rows, word_level(), max_length=4)
    assert data.notices[1:] == (
        "1 of 4 answers goes beyond 4 tokens and is cut there, without EOS; --overlong drop leaves such rows out",
        "1 prompt is empty; it begins with <eos>",
    )
    assert data.description["answers"] == 4
    assert data.description["truncated"] == 1
    assert data.description["ranking_sizes"] == {"2": 2}
    assert data.description["prompt_tokens"] == {"min": 1, "median": 1, "percentile_95": 1, "max": 1}
    assert data.description["answer_tokens"]["max"] == 5


def test_a_tokenizer_without_eos_is_refused():
    tokenizer = word_level()
    tokenizer.eos_token = None
    with pytest.raises(UsageError, match="has no EOS, so no answer could end"):
        load([PAIR], tokenizer)


def test_csv_holds_rankings_as_json(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('prompt,completions,scores\nwhat,"[""a"", ""b""]","[1, 2]"\n')
    data = load_examples(DataConfiguration(str(path), cache=False), word_level(), purpose="preference")
    assert data.examples[0].ranks == (2, 1)
    assert data.description["source"] == str(path)


@pytest.mark.parametrize("row", [{"prompt": "what is", "completion": "no"}, {"messages": [user("what is"), assistant("no")]}])
@pytest.mark.parametrize(
    ("label", "used"), [(False, False), (0, False), ("False", False), (True, True), (None, True), ("sport", True)]
)
def test_an_answer_that_is_marked_as_bad_is_not_imitated(row, label, used):
    good = {**row, "label": True}
    data = load([good, {**row, "label": label}, good], qwen_like(), "sft")
    assert data.description["used"] == (3 if used else 2)
    assert reasons(data) == ({} if used else {MARKED_BAD: 1})
    assert "label" in data.description["columns"]
    assert used or any(MARKED_BAD in notice for notice in data.notices)


def test_data_of_bad_answers_alone_are_refused_in_a_sentence():
    with pytest.raises(UsageError, match="no row that can be used: its label marks its answer as a bad one"):
        load([{"prompt": "what is", "completion": "no", "label": False}] * 3, gpt2_like(), "sft")


def test_prompts_are_asked_whatever_their_recorded_answers_were_worth(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "what is", "completion": "no", "label": false}\n')
    configuration = DataConfiguration(str(tmp_path / "rows.jsonl"), cache=False)
    assert len(load_prompts(configuration, gpt2_like(), longest_answer=8).prompts) == 1
