"""Rows of every format become prompts, answers and preferences; what cannot is counted with its reason."""

from __future__ import annotations

import pytest

from surefoot.alignment.data.configuration import DataConfiguration
from surefoot.alignment.data.examples import Row
from surefoot.alignment.data.reading.files import Malformed
from surefoot.alignment.data.reading.formats import FORMATS, recognise, with_usual_columns
from surefoot.alignment.data.reading.rows import demonstrated, preferred, read_prompt, read_row
from surefoot.alignment.data.reading.tally import Unusable
from surefoot.errors import UsageError
from tests.alignment.data.helpers import assistant, user

ASK = [user("which?")]


def read(shape, **fields):
    return read_row(7, with_usual_columns(fields), FORMATS[shape])


def reason(shape, **fields):
    with pytest.raises(Unusable) as caught:
        read(shape, **fields)
    return str(caught.value)


def test_chosen_and_rejected_are_a_ranking_of_two():
    row = read("preference", prompt="p", chosen="a", rejected="b", margin=2)
    assert row == Row(7, "p", ("a", "b"), ranks=(1, 2), pairs=((0, 1),), margins=(2.0,))
    for none in (None, "high", "1", float("nan"), True):  # only training with margins needs numbers
        assert read("preference", prompt="p", chosen="a", rejected="b", margin=none).margins is None
    assert preferred(row) is row


def test_an_implicit_prompt_is_the_shared_beginning():
    row = read("implicit", chosen="what is it? a cat", rejected="what is it? a dog")
    assert row == Row(7, "what is it? a", (" cat", " dog"), ranks=(1, 2), pairs=((0, 1),))
    row = read("implicit", chosen=[*ASK, assistant("a")], rejected=[*ASK, assistant("b")], margin=0.5)
    assert row.prompt == tuple(ASK)
    assert row.completions == ((assistant("a"),), (assistant("b"),))
    assert row.margins == (0.5,)


def test_conversations_may_be_given_apart_or_whole():
    expected = Row(7, tuple(ASK), ((assistant("a"),), (assistant("b"),)), ranks=(1, 2), pairs=((0, 1),))
    whole = [*ASK, assistant("a")], [*ASK, assistant("b")]
    assert read("preference", prompt=ASK, chosen=[assistant("a")], rejected=[assistant("b")]) == expected
    assert read("preference", prompt=ASK, chosen=whole[0], rejected=whole[1]) == expected
    assert read("preference", prompt=ASK, chosen="a", rejected="b") == expected
    assert read("preference", prompt="which?", chosen=[assistant("a")], rejected=[assistant("b")]) == expected
    assert read("preference", prompt=" which? ", chosen=whole[0], rejected=whole[1]) == expected
    assert reason("preference", prompt="who?", chosen=whole[0], rejected=whole[1]).endswith("do not hold its prompt")


def test_ranks_are_kept_without_gaps_and_imply_pairs():
    row = read("ranked", prompt="p", completions=["a", "b", "c", "d"], ranks=[4, 2.0, 2, 0])
    assert row.ranks == (3, 2, 2, 1)
    assert set(row.pairs) == {(1, 0), (2, 0), (3, 0), (3, 1), (3, 2)}
    inside = [{"completion": "a", "rank": 2}, {"completion": "b", "rank": 1}]
    assert read("ranked", prompt="p", completions=inside).ranks == (2, 1)
    assert read("ranked", prompt="p", completions=inside, ranks=[1, 2]).ranks == (1, 2)


def test_higher_scores_are_better_and_equal_ones_tie():
    row = read("scored", prompt="p", completions=["a", "b", "c"], scores=[0.5, 3, 0.5])
    assert row.ranks == (2, 1, 2)
    assert set(row.pairs) == {(1, 0), (1, 2)}
    inside = [{"completion": "a", "score": -2}, {"completion": "b", "score": 1}]
    assert read("scored", prompt="p", completions=inside).ranks == (2, 1)


def test_pairs_are_places_in_the_list_from_zero():
    row = read("pairs", prompt="p", responses=["a", "b", "c"], pairs=[[2, 0], [0, 1]])
    assert row == Row(7, "p", ("a", "b", "c"), pairs=((2, 0), (0, 1)))


def test_demonstrations_have_one_answer():
    assert read("completion", prompt="p", completion="a") == Row(7, "p", ("a",))
    assert read("completion", prompt=ASK, completion=[assistant("a")]) == Row(7, tuple(ASK), ((assistant("a"),),))
    assert read("messages", messages=[*ASK, assistant("a")]) == Row(7, tuple(ASK), ((assistant("a"),),))
    named = [{"role": "user", "content": "which?", "name": "x"}, assistant("a")]
    assert read("messages", messages=named).prompt == tuple(ASK)


@pytest.mark.parametrize(
    ("row", "best"),
    [
        (Row(7, "p", ("a",)), "a"),
        (Row(7, "p", ("a", "b", "c"), ranks=(3, 1, 2)), "b"),
        (Row(7, "p", ("a", "b", "c"), ranks=(2, 1, 1)), "b"),
        (Row(7, "p", ("a", "b", "c"), pairs=((1, 0), (2, 0), (2, 0))), "c"),
        (Row(7, "p", ("a", "b", "c"), pairs=((1, 0), (2, 0))), "b"),
        (Row(7, "p", ("a", ""), ranks=(1, 2)), "a"),
    ],
)
def test_the_best_answer_is_imitated(row, best):
    assert demonstrated(row) == Row(7, "p", (best,))


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (Row(7, "p", ()), "it has no answers"),
        (Row(7, "p", (" \n",)), "an answer is empty"),
        (Row(7, "p", ("", "a"), ranks=(1, 2)), "an answer is empty"),
        (Row(7, "p", ("a", "b"), pairs=((0, 1), (1, 0))), "every answer loses"),
    ],
)
def test_rows_without_an_answer_to_imitate_are_refused(row, why):
    with pytest.raises(Unusable, match=why):
        demonstrated(row)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (Row(7, "p", ("a",), ranks=(1,)), "fewer than two"),
        (Row(7, "p", ("a", "\t"), ranks=(1, 2), pairs=((0, 1),)), "an answer is empty"),
        (Row(7, (user("q"),), ((assistant("a"),), (assistant(""),)), ranks=(1, 2), pairs=((0, 1),)), "an answer is empty"),
        (Row(7, "p", ("a", "b", "a"), ranks=(1, 2, 3), pairs=((0, 1),)), "identical"),
        (Row(7, "p", ("a", "b"), ranks=(1, 1)), "no answer is preferred"),
    ],
)
def test_rows_without_a_preference_are_refused(row, why):
    with pytest.raises(Unusable, match=why):
        preferred(row)


@pytest.mark.parametrize(
    ("shape", "fields", "why"),
    [
        ("preference", {"prompt": "p", "chosen": "a"}, "it has no rejected"),
        ("preference", {"prompt": None, "chosen": "a", "rejected": "b"}, "it has no prompt"),
        ("preference", {"prompt": 3, "chosen": "a", "rejected": "b"}, "the prompt is neither a text nor a list of messages"),
        ("preference", {"prompt": "p", "chosen": 3, "rejected": "b"}, "an answer is no text"),
        ("preference", {"prompt": "p", "chosen": [3], "rejected": "b"}, "an answer is neither a text nor a list of messages"),
        ("preference", {"prompt": "p\ud800", "chosen": "a", "rejected": "b"}, "the prompt holds half a Unicode surrogate pair"),
        ("preference", {"prompt": [assistant("p")], "chosen": "a", "rejected": "b"}, "the message before the answer"),
        ("preference", {"prompt": ASK, "chosen": [user("a")], "rejected": "b"}, "an answer is not exactly one message"),
        ("preference", {"prompt": ASK, "chosen": [assistant("a")] * 2, "rejected": "b"}, "an answer is not exactly one message"),
        ("implicit", {"chosen": "a", "rejected": ASK}, "chosen and rejected are neither two texts nor two lists of messages"),
        ("implicit", {"chosen": [assistant("a")], "rejected": [assistant("b")]}, "no message stands before the answer"),
        ("ranked", {"prompt": "p", "completions": "a", "ranks": [1]}, "its completions are no list"),
        ("ranked", {"prompt": "p", "completions": ["a", "b"], "ranks": [1]}, "its ranks are not a list as long as"),
        ("ranked", {"prompt": "p", "completions": ["a", "b"], "ranks": 1}, "its ranks are not a list as long as"),
        ("ranked", {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 1.5]}, "its ranks are not whole numbers"),
        ("ranked", {"prompt": "p", "completions": ["a", "b"], "ranks": [1, -1]}, "its ranks are not whole numbers"),
        ("ranked", {"prompt": "p", "completions": ["a", "b"], "ranks": [1, None]}, "its ranks are not whole numbers"),
        ("scored", {"prompt": "p", "completions": ["a", "b"], "scores": [1, float("inf")]}, "a score is no finite number"),
        ("scored", {"prompt": "p", "completions": ["a", "b"], "scores": [1, 10**400]}, "a score is no finite number"),
        ("scored", {"prompt": "p", "completions": ["a", "b"], "scores": [1, 2, 3]}, "its scores are not a list as long as"),
        ("pairs", {"prompt": "p", "completions": ["a", "b"], "pairs": 3}, "its pairs are no list"),
        ("pairs", {"prompt": "p", "completions": ["a", "b"], "pairs": [[0, 2]]}, "a pair names an answer that is not there"),
        ("pairs", {"prompt": "p", "completions": ["a", "b"], "pairs": [[2, 0]]}, "a pair names an answer that is not there"),
        ("pairs", {"prompt": "p", "completions": ["a", "b"], "pairs": [[-1, 0]]}, "a pair names an answer that is not there"),
        ("pairs", {"prompt": "p", "completions": ["a", "b"], "pairs": [[1, 1]]}, "its pairs are not [better, worse]"),
        ("pairs", {"prompt": "p", "completions": ["a", "b"], "pairs": [[0, 1, 2]]}, "its pairs are not [better, worse]"),
        ("messages", {"messages": "text"}, "its messages are no list of messages"),
        ("messages", {"messages": []}, "its messages are no list of messages"),
        ("messages", {"messages": [assistant("a")]}, "no message stands before the answer"),
        ("messages", {"messages": ASK}, "no message stands before the answer"),
        ("messages", {"messages": [*ASK, *ASK]}, "an answer is not exactly one message"),
        ("messages", {"messages": [*ASK, {"role": "assistant", "content": None}]}, "the content of a message is no text"),
        ("messages", {"messages": [*ASK, {"role": "assistant", "content": "", "tool_calls": [1]}]}, "a message calls tools"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_says_why(shape, fields, why):
    assert reason(shape, **fields).startswith(why)


def test_what_is_no_row_says_why():
    with pytest.raises(Unusable, match="it is no JSON object"):
        read_row(1, [1, 2], FORMATS["preference"])
    with pytest.raises(Unusable, match="too short"):
        read_row(1, Malformed("too short"), FORMATS["preference"])


PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
LIST = {"prompt": "p", "completions": ["a", "b"]}


@pytest.mark.parametrize(
    ("rows", "purpose", "expected"),
    [
        ([PAIR], "preference", "preference"),
        ([PAIR | {"messages": [1]}], "preference", "preference"),
        ([PAIR | {"messages": [1]}], "sft", "messages"),
        ([PAIR], "sft", "preference"),
        ([PAIR | {"completion": "a"}], "sft", "completion"),
        ([{"chosen": "a", "rejected": "b"}], "preference", "implicit"),
        ([PAIR] * 3 + [{"chosen": "a", "rejected": "b"}], "preference", "preference"),
        ([PAIR] + [{"chosen": "a", "rejected": "b"}] * 2, "preference", "implicit"),
        ([LIST | {"ranks": [1, 2]}], "preference", "ranked"),
        ([LIST | {"ranks": [1, 2], "scores": [1, 2], "pairs": []}], "preference", "ranked"),
        ([LIST | {"scores": [1, 2]}], "preference", "scored"),
        ([{"prompt": "p", "responses": ["a", "b"], "pairs": [[0, 1]]}], "preference", "pairs"),
        ([{"prompt": "p", "completions": [{"completion": "a", "rank": 1}]}], "preference", "ranked"),
        ([{"prompt": "p", "completions": [{"completion": "a", "score": 1}]}], "preference", "scored"),
        ([{"prompt": "p", "completion": "a"}], None, "completion"),
        ([{"messages": [1]}], None, "messages"),
        ([PAIR | {"messages": [1]}], None, "preference"),
        ([3, "x", PAIR], None, "preference"),
        ([{"prompt": "p"}], None, "prompt"),
        ([{"prompt": "p", "answer": "a"}], "prompts", "prompt"),
        ([PAIR], "prompts", "preference"),
        ([{"prompt": "p", "completion": "a"}], "prompts", "completion"),
        ([{"messages": [1]}], "prompts", "messages"),
        ([{"chosen": "a", "rejected": "b"}], "prompts", "implicit"),
        ([LIST | {"ranks": [1, 2]}], "prompts", "ranked"),
        ([PAIR] + [{"prompt": "p", "chosen": "a"}] * 2, None, "preference"),
        ([{"prompt": "p", "messages": [1]}, {"prompt": "p", "messages": None}], "prompts", "messages"),
        ([{"prompt": "p", "completion": "a"}] + [{"prompt": "p"}] * 2, "prompts", "prompt"),
        ([{"prompt": "p", "completion": "a"}] + [{"prompt": "p"}] * 2, "sft", "completion"),
    ],
)
def test_the_format_that_most_rows_fit_is_recognised(rows, purpose, expected):
    records = [(i, with_usual_columns(row) if isinstance(row, dict) else row) for i, row in enumerate(rows)]
    assert recognise(records, name="x", wanted="auto", purpose=purpose).name == expected


def test_a_wanted_format_is_taken_though_others_fit_better():
    records = [(1, PAIR), (2, PAIR | {"messages": [1]})]
    assert recognise(records, name="x", wanted="implicit", purpose="preference").name == "implicit"
    assert recognise(records, name="x", wanted="messages", purpose="sft").name == "messages"


@pytest.mark.parametrize(
    ("row", "wanted", "purpose", "complaint"),
    [
        ({"question": "q", "answer": None}, "auto", "preference", r"x has no row .*: there are question; one of these is needed"),
        ({"question": "q"}, "auto", "preference", r" prompt, chosen, rejected \(preference\); chosen, rejected \(implicit\)$"),
        ({"question": "q"}, "auto", "sft", r"prompt, completion \(completion\); messages \(messages\); .*"),
        ({"prompt": "q", "completion": "a"}, "auto", "preference", "prompt, completion, which is one answer per prompt and says nothing"),
        (PAIR, "ranked", "preference", r"rejected; one of these is needed: prompt, completions, ranks \(ranked\)$"),
        (PAIR, "messages", "preference", "--format messages is one answer per prompt, which says nothing about preferences"),
        (3, "auto", "preference", "there are none"),
        ({"prompt": "q"}, "auto", "sft", "there are prompt, which is prompts without answers and leaves nothing to learn from; one"),
        (LIST, "auto", "preference", "there are prompt, completions; one"),
        (LIST, "auto", "prompts", r"prompt \(prompt\); --format prompt reads the prompts alone$"),
        ({"question": "q"}, "auto", "prompts", r"prompt \(prompt\)$"),
        (PAIR, "prompt", "sft", "--format prompt is prompts without answers, which leaves nothing to learn from; give data in one of"),
        ({f"c{i}": 1 for i in range(30)}, "auto", "sft", "c19 and 10 more; "),
    ],
)  # fmt: skip
def test_wrong_columns_say_what_is_there_and_what_is_needed(row, wanted, purpose, complaint):
    fields = with_usual_columns(row) if isinstance(row, dict) else row
    with pytest.raises(UsageError, match=complaint):
        recognise([(1, fields)], name="x", wanted=wanted, purpose=purpose)


@pytest.mark.parametrize(
    ("options", "complaint"), [({"data": ""}, "--data is empty"), ({"data": "x", "max_length": 1}, "max-length")]
)
def test_a_configuration_that_cannot_work_is_refused(options, complaint):
    with pytest.raises(UsageError, match=complaint):
        DataConfiguration(**options)


def prompt_of(shape, **fields):
    return read_prompt(7, with_usual_columns(fields), FORMATS[shape])


def test_a_prompt_is_read_without_its_answers():
    assert prompt_of("prompt", prompt="p", answer=3) == Row(7, "p", ())
    assert prompt_of("prompt", prompt=ASK) == Row(7, tuple(ASK), ())
    assert prompt_of("preference", prompt="p", chosen="", rejected="") == Row(7, "p", ()), "empty answers do not matter"
    assert prompt_of("messages", messages=[*ASK, assistant("a")]) == Row(7, tuple(ASK), ())
    assert prompt_of("messages", messages=[*ASK, assistant("a"), user("b")]).prompt == (*ASK, assistant("a"), user("b"))


@pytest.mark.parametrize(
    ("shape", "fields", "why"),
    [
        ("prompt", {"prompt": " \n"}, "its prompt is empty"),
        ("prompt", {"prompt": [*ASK, user(" ")]}, "its prompt is empty"),
        ("prompt", {"prompt": [*ASK, assistant("a")]}, "the message before the answer is the assistant's own"),
        ("prompt", {"prompt": "p\ud800"}, "the prompt holds half"),
        ("prompt", {"question": "p"}, "it has no prompt"),
        ("messages", {"messages": [assistant("a")]}, "no message stands before the answer"),
        ("messages", {"messages": [3]}, "its messages are no list of messages"),
        ("messages", {"messages": []}, "its messages are no list of messages"),
    ],
)
def test_prompts_that_cannot_be_read_say_why(shape, fields, why):
    with pytest.raises(Unusable, match=why):
        prompt_of(shape, **fields)


def test_rows_of_prompts_have_no_answer_to_imitate():
    with pytest.raises(Unusable, match="it has no answers"):
        demonstrated(read("prompt", prompt="p"))
