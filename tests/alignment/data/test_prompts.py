"""Prompts are those that training on answers would have made, with the row's other columns beside them."""

from __future__ import annotations

import numpy as np
import pytest

from surefoot.alignment.data.configuration import DataConfiguration
from surefoot.alignment.data.prompts import load_prompts, longest_groups, prompt_of
from surefoot.errors import UsageError
from tests.alignment.data.helpers import PAIR, assistant, load, user, write_lines
from tests.alignment.tokenizers import gpt2_like, llama_like, qwen_like, word_level

ASK = [user("what is the answer?")]
EARLIER = [user("hello"), assistant("hello!"), user("how are you?")]
TOKENIZERS = {"word-level": word_level, "gpt2": gpt2_like, "llama": llama_like, "qwen": qwen_like}
TEMPLATES = {"llama": llama_like, "qwen": qwen_like}


def prompts_of(tmp_path, rows, tokenizer, longest_answer=4, **options):
    path = write_lines(tmp_path / "rows.jsonl", rows)
    return load_prompts(DataConfiguration(str(path), **options), tokenizer, longest_answer=longest_answer)


TEXTS = [
    {"prompt": "what is", "chosen": " yes", "rejected": " no"},
    {"prompt": " the answer\n", "completions": ["a", "b", "c"], "ranks": [1, 2, 3]},
    {"prompt": "a", "responses": ["a", "b"], "pairs": [[0, 1]]},
    {"prompt": "what", "completions": [{"completion": "a", "score": 1}, {"completion": "b", "score": 2}]},
    {"prompt": "is yes", "completion": "no"},
    {"chosen": "what is it? a good", "rejected": "what is it? a bad"},
    {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
]
CONVERSATIONS = [
    {"messages": [*ASK, assistant("yes")]},
    {"messages": [*EARLIER, assistant("good")]},
    {"prompt": ASK, "completion": [assistant("yes")]},
    {"prompt": ASK, "chosen": "yes", "rejected": "no"},
    {"chosen": [*EARLIER, assistant("good")], "rejected": [*EARLIER, assistant("bad")]},
    {"prompt": "how are you?", "chosen": [*EARLIER, assistant("good")], "rejected": [*EARLIER, assistant("bad")]},
]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("row", TEXTS)
def test_the_ids_are_those_of_examples_with_answers(tmp_path, row, name):
    tokenizer = TOKENIZERS[name]()
    purpose = "sft" if "completion" in row else "preference"
    (example,) = load([row], tokenizer, purpose).examples
    (prompt,) = prompts_of(tmp_path, [row], tokenizer).prompts
    assert prompt.ids.dtype == np.int32
    assert prompt.ids.tolist() == example.prompt.tolist()
    if "prompt" in row:
        (alone,) = prompts_of(tmp_path, [{"prompt": row["prompt"]}], tokenizer).prompts
        assert alone.ids.tolist() == example.prompt.tolist()
        assert alone.text == prompt.text == row["prompt"]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("row", CONVERSATIONS)
def test_conversations_get_the_generation_prompt_that_examples_have(tmp_path, row, name):
    tokenizer = TEMPLATES[name]()
    purpose = "preference" if "chosen" in row else "sft"
    (example,) = load([row], tokenizer, purpose).examples
    (prompt,) = prompts_of(tmp_path, [row], tokenizer).prompts
    assert prompt.ids.tolist() == example.prompt.tolist()
    messages = EARLIER if row in (CONVERSATIONS[1], *CONVERSATIONS[4:]) else ASK
    assert prompt.text == tuple(messages)
    for alone in ({"prompt": messages}, {"messages": messages}):
        (same,) = prompts_of(tmp_path, [alone], tokenizer).prompts
        assert same.ids.tolist() == example.prompt.tolist()
        assert same.text == tuple(messages)
    written = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt.ids.tolist() == tokenizer(written, add_special_tokens=False).input_ids


def test_bos_stands_before_a_text_where_the_tokenizer_puts_it(tmp_path):
    (prompt,) = prompts_of(tmp_path, [{"prompt": "what is"}], llama_like()).prompts
    assert prompt.ids.tolist() == llama_like()("what is").input_ids
    assert prompt.ids[0] == 1


def test_other_columns_are_kept_as_they_stand(tmp_path):
    rows = [
        {"prompt": "what", "answer": 4, "tests": [{"in": 1}], "none": None},
        {"prompt": "is", "answer": "five"},
    ]
    data = prompts_of(tmp_path, rows, gpt2_like())
    assert [prompt.number for prompt in data.prompts] == [1, 2]
    assert data.prompts[0].columns == {"answer": 4, "tests": [{"in": 1}], "none": None}
    assert data.prompts[1].columns == {"answer": "five"}
    assert data.description["format"] == "prompt"
    assert data.notices == (
        f"{tmp_path}/rows.jsonl: prompts without answers (format prompt, columns prompt); 2 of 2 rows are used",
        "the prompts alone are read; reward functions can ask for the other columns: answer, tests, none",
    )


def test_answers_are_columns_too_under_their_own_names(tmp_path):
    row = {"prompt": "what", "responses": ["a", "b"], "pairs": [[0, 1]], "level": 3}
    data = prompts_of(tmp_path, [row], gpt2_like())
    assert data.prompts[0].columns == {"responses": ["a", "b"], "pairs": [[0, 1]], "level": 3}
    assert data.notices[1].endswith("other columns: pairs, responses, level")
    (prompt,) = prompts_of(tmp_path, [{"messages": ASK, "level": 3}], qwen_like()).prompts
    assert prompt.columns == {"messages": ASK, "level": 3}


def test_rows_that_cannot_be_used_are_counted_and_explained(tmp_path):
    rows = [
        {"prompt": "what is the answer ?"},
        {"prompt": " \n"},
        {"prompt": "a b c d e f g"},
        {"prompt": 3},
        {"prompt": None},
        {"question": "a"},
        {"prompt": "a b c d e f"},
        3,
        {"prompt": [user(" ")]},
        {"prompt": [*ASK, assistant("yes")]},
        {"prompt": []},
    ]
    data = prompts_of(tmp_path, rows, word_level(), longest_answer=4, max_length=10)
    assert [prompt.number for prompt in data.prompts] == [1, 7]
    assert data.description["unusable"] == {
        "its prompt is empty": 2,
        "it has no prompt": 2,
        "the prompt is neither a text nor a list of messages": 2,
        "its prompt leaves no room for an answer of 4 tokens within 10 tokens": 1,
        "it is no JSON object": 1,
        "the message before the answer is the assistant's own": 1,
    }
    assert "not used: its prompt is empty (rows 2, 9)" in data.notices
    assert "2 of 11 rows are used" in data.notices[0]
    assert data.description["rows"] == 11
    assert data.description["used"] == 2


@pytest.mark.parametrize(("longest_answer", "used"), [(4, 1), (5, 1), (6, 0)])
def test_a_prompt_must_leave_room_for_the_whole_answer(tmp_path, longest_answer, used):
    def attempt():
        return prompts_of(tmp_path, [{"prompt": "a b c d e"}], word_level(), longest_answer, max_length=10)

    if used:
        assert len(attempt().prompts) == 1
    else:
        with pytest.raises(UsageError, match=r"no row that can be used: its prompt leaves no room for an answer of 6 tokens"):
            attempt()


def test_answers_as_long_as_everything_may_be_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"answers of up to 10 tokens leave no room for a prompt within --max-length 10"):
        prompts_of(tmp_path, [{"prompt": "a"}], word_level(), 10, max_length=10)
    assert prompts_of(tmp_path, [{"prompt": "a"}], word_level(), 9, max_length=10).prompts


def test_repeated_prompts_are_kept_share_their_array_and_are_counted(tmp_path):
    rows = [{"prompt": "a", "n": 1}, {"prompt": "b"}, {"prompt": "a", "n": 2}, {"prompt": "a", "n": 3}]
    data = prompts_of(tmp_path, rows, word_level())
    assert [prompt.columns.get("n") for prompt in data.prompts] == [1, None, 2, 3]
    assert data.prompts[0].ids is data.prompts[2].ids
    assert data.description["repeated_prompts"] == 2
    assert data.notices[-1] == "2 rows repeat an earlier row's prompt, and are kept"


def test_the_fingerprint_is_of_what_the_prompts_depend_on(tmp_path):
    rows = [{"prompt": "what"}]
    one = prompts_of(tmp_path, rows, gpt2_like()).fingerprint
    assert one == prompts_of(tmp_path, rows, gpt2_like()).fingerprint
    others = {
        prompts_of(tmp_path, rows, gpt2_like(), longest_answer=5).fingerprint,
        prompts_of(tmp_path, rows, gpt2_like(), max_length=100).fingerprint,
        prompts_of(tmp_path, rows, qwen_like()).fingerprint,
        prompts_of(tmp_path, [{"prompt": "what "}], gpt2_like()).fingerprint,
        load(rows and [PAIR], gpt2_like()).fingerprint,
    }
    assert len({one, *others}) == 6


def test_conversations_need_a_chat_template(tmp_path):
    with pytest.raises(UsageError, match="has no chat template"):
        prompts_of(tmp_path, [{"prompt": ASK}], word_level())


def test_prompts_teach_nothing_by_themselves():
    for purpose in ("sft", "preference"):
        with pytest.raises(
            UsageError, match=r"there are prompt, x, which is prompts without answers and leaves nothing to learn"
        ):
            load([{"prompt": "a", "x": 1}], word_level(), purpose)
        with pytest.raises(UsageError, match=r"--format prompt is prompts without answers, which leaves nothing to learn from"):
            load([PAIR], word_level(), purpose, format="prompt")


def test_a_csv_file_and_a_forced_format_will_do(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('prompt,answer\nwhat,4\n"[{""role"": ""user"", ""content"": ""a""}]",5\n')
    data = load_prompts(DataConfiguration(str(path)), qwen_like(), longest_answer=3)
    assert [prompt.text for prompt in data.prompts] == ["what", (user("a"),)]
    assert data.prompts[0].columns == {"answer": "4"}
    rows = [{"prompt": "a", "chosen": "b"}, {"prompt": "b", "chosen": "b"}]
    with pytest.raises(UsageError, match=r"; --format prompt reads the prompts alone$"):
        prompts_of(tmp_path, rows, word_level())
    assert len(prompts_of(tmp_path, rows, word_level(), format="prompt").prompts) == 2


def test_a_prompt_of_its_own_is_the_same_as_one_from_a_file(tmp_path):
    tokenizer = llama_like()
    for text in ("what is", tuple(ASK)):
        (loaded,) = prompts_of(tmp_path, [{"prompt": text}], tokenizer).prompts
        own = prompt_of(text, tokenizer, max_length=100, longest_answer=4)
        assert own.ids.tolist() == loaded.ids.tolist()
        assert (own.text, own.columns, own.number) == (text, {}, 1)
    with pytest.raises(UsageError, match=r"the prompt cannot be used: its prompt leaves no room for an answer of 4 tokens"):
        prompt_of("what is", tokenizer, max_length=5, longest_answer=4)


def test_the_longest_prompts_are_checked_with_the_longest_answers():
    ids = [np.arange(n, dtype=np.int32) for n in (2, 5, 3)]
    groups = longest_groups(ids, longest_answer=7)
    assert [len(prompt) for prompt, _ in groups] == [5, 3]
    assert all(len(answer) == 7 for _, answers in groups for answer in answers)
    assert groups[1][1][0].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert groups[1][1][1].tolist() == [2, 1, 0, 2, 1, 0, 2]
