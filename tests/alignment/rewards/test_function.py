"""Functions in Python as rewards: what they are called with, and a sentence for whatever may go wrong."""

from __future__ import annotations

import functools
import sys

import numpy as np
import pytest

from surefoot.alignment.models.configuration import ModelConfiguration
from surefoot.alignment.rewards import FunctionReward, open_reward
from surefoot.alignment.tasks import grammar
from surefoot.errors import RunError, UsageError
from tests.alignment.rewards.helpers import answers_of, prompts_of
from tests.alignment.tokenizers import gpt2_like, qwen_like, word_level

TOKENIZER = gpt2_like()
CALLS: list[dict] = []


@pytest.fixture
def source(tmp_path):
    """A reward source from lines of Python."""

    def of(code, name="reward", tokenizer=TOKENIZER):
        path = tmp_path / "rewarding.py"
        path.write_text(code)
        return FunctionReward(f"{path}:{name}", tokenizer)

    return of


def score(reward, prompts, answers, finished=None, tokenizer=TOKENIZER):
    answers = [answers_of(own, tokenizer) for own in answers]
    count = sum(map(len, answers))
    return reward.rewards(prompts, answers, np.ones(count, bool) if finished is None else np.array(finished))


def calls(function_line):
    """A function that remembers what it was called with."""
    return (
        f"import tests.alignment.rewards.test_function as t\n{function_line}\n    t.CALLS.append(locals())\n"
        "    return [0.0] * len(next(iter(locals().values())))\n"
    )


def test_prompts_and_completions_are_texts_with_one_prompt_per_answer(source):
    prompts = prompts_of(["what is", "the capital of"], TOKENIZER)
    for line in (
        "def reward(prompts, completions):",
        "def reward(completions, prompts):",
        "def reward(*, completions, prompts):",
    ):
        CALLS.clear()
        assert score(source(calls(line)), prompts, [[" yes", " no", "?"], [" France"]]).tolist() == [0.0] * 4
        assert CALLS[0]["prompts"] == ["what is"] * 3 + ["the capital of"]
        assert CALLS[0]["completions"] == [" yes", " no", "?", " France"]
    CALLS.clear()
    score(source(calls("def reward(questions, texts):")), prompts, [[" yes"], [" no"]])
    assert CALLS == [{"questions": ["what is", "the capital of"], "texts": [" yes", " no"]}]
    CALLS.clear()
    score(source(calls("def reward(completions):")), prompts, [[" yes"], [" no"]])
    assert CALLS == [{"completions": [" yes", " no"]}]


def test_what_ended_an_answer_is_not_in_its_text_though_it_is_no_special_token(source):
    tokenizer = qwen_like()
    tokenizer.add_tokens(["<end>"])
    tokenizer.eos_token = "<end>"
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", "<end>")
    prompts = prompts_of(["what is", ({"role": "user", "content": "a?"},)], tokenizer)
    CALLS.clear()
    score(
        source(calls("def reward(prompts, completions):"), tokenizer=tokenizer),
        prompts,
        [[" blue"], ["blue"]],
        tokenizer=tokenizer,
    )
    assert CALLS[0]["completions"] == [" blue", "blue"]


def test_conversations_are_lists_of_messages_and_their_answers_stripped(source):
    tokenizer = qwen_like()
    messages = ({"role": "user", "content": "a?"},)
    (prompt,) = prompts_of([messages], tokenizer)
    code = calls("def reward(prompts, completions):") + "\n    "
    CALLS.clear()
    score(source(code.rstrip(), tokenizer=tokenizer), [prompt], [["yes ", "\nno"]], tokenizer=tokenizer)
    assert CALLS[0]["prompts"] == [list(messages)] * 2
    assert CALLS[0]["completions"] == ["yes", "no"]
    CALLS[0]["prompts"][0][0]["content"] = "changed"
    assert prompt.text[0]["content"] == "a?", "a function cannot change the data"


def test_columns_are_given_by_name_one_value_per_answer(source):
    prompts = prompts_of(["a", "b"], TOKENIZER, [{"answer": 4, "level": "x", "completions": 1, "prompts": 1}, {"answer": 5}])
    CALLS.clear()
    reward = source(calls("def reward(prompts, completions, answer, *, level):"))
    reward.check(prompts)
    score(reward, prompts, [["4", "5"], ["5"]])
    assert CALLS[0]["answer"] == [4, 4, 5]
    assert CALLS[0]["level"] == ["x", "x", None]
    CALLS.clear()
    score(source(calls("def reward(prompts, completions, **columns):")), prompts, [["4", "5"], ["5"]])
    assert CALLS[0]["columns"] == {"answer": [4, 4, 5], "level": ["x", "x", None]}
    CALLS.clear()
    score(source(calls("def reward(prompts, completions, level, **others):")), prompts, [["4"], ["5"]])
    assert CALLS[0]["level"] == ["x", None]
    assert CALLS[0]["others"] == {"answer": [4, 5]}


def test_ids_and_whether_an_answer_ended_can_be_asked_for(source):
    prompts = prompts_of(["a", "b"], TOKENIZER)
    CALLS.clear()
    reward = source(calls("def reward(prompts, completions, finished, completion_ids):"))
    reward.check(prompts)
    score(reward, prompts, [["yes"], ["no"]], finished=[True, False])
    assert CALLS[0]["finished"] == [True, False]
    assert CALLS[0]["completion_ids"] == [answers_of([text], TOKENIZER)[0].tolist() for text in ("yes", "no")]


def test_a_parameter_that_is_no_column_is_named_before_training(source):
    reward = source("def reward(prompts, completions, anwser): return []")
    with pytest.raises(
        UsageError, match=r"asks for anwser, and the data have no column of that name .* there are: answer, level$"
    ):
        reward.check(prompts_of(["a", "b"], TOKENIZER, [{"answer": 1}, {"level": 1}]))
    with pytest.raises(UsageError, match="there are: none"):
        score(reward, prompts_of(["a"], TOKENIZER), [["x"]])


def test_a_default_stands_where_there_is_no_column_and_that_is_said(source):
    reward = source(
        "def reward(prompts, completions, scale=2.0): return [scale if isinstance(scale, float) else 5] * len(prompts)"
    )
    assert score(reward, prompts_of(["a"], TOKENIZER), [["x"]]).tolist() == [2.0]
    assert reward.notices == (f"{reward.name}: the data have no column scale, so that parameter keeps its default",)
    reward = source("def reward(prompts, completions, scale=2.0): return scale")
    assert score(reward, prompts_of(["a"], TOKENIZER, [{"scale": 7}]), [["x"]]).tolist() == [7.0]
    assert reward.notices == ()


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("[1, 2.5, True]", [1, 2.5, 1]),
        ("(1, 2, 3)", [1, 2, 3]),
        ("numpy.array([1, 2, 3], numpy.float32)", [1, 2, 3]),
        ("numpy.array([True, False, True])", [1, 0, 1]),
        ("torch.tensor([1.5, 2, 3], dtype=torch.bfloat16)", [1.5, 2, 3]),
        ("torch.tensor([1.0, 2, 3], requires_grad=True)", [1, 2, 3]),
        ("[numpy.float32(1), torch.tensor(2), numpy.int64(3)]", [1, 2, 3]),
        ("[fractions.Fraction(1, 2), 0, 10**300]", [0.5, 0, 1e300]),
    ],
)
def test_numbers_may_come_in_any_list(source, expression, expected):
    reward = source(f"import fractions, numpy, torch\ndef reward(prompts, completions): return {expression}")
    given = score(reward, prompts_of(["a"], TOKENIZER), [["x", "y", "z"]])
    assert given.dtype == np.float64
    assert given.tolist() == expected


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("[1, 2, 3, float('nan')]", r"returned nan for the prompt of row 11 \('the capital of'\), answer 'France'; a reward is a finite"),
        ("[1, None, 3, 4]", r"returned None for the prompt of row 10 \('what is'\), answer 'no'"),
        ("[1, 2, float('inf'), 4]", r"returned inf for the prompt of row 10 .*, answer '\?'"),
        ("[1, 2, 3, '4']", r"returned '4' for the prompt of row 11"),
        ("[1, 2, 3, 10**400]", r"returned (10000.*|a int) for the prompt of row 11"),
        ("[1, 2, 3, 1j]", r"returned 1j for the prompt of row 11"),
        ("numpy.zeros((4, 1))", r"returned \[0.0\] for the prompt of row 10"),
        ("numpy.array([0, numpy.nan, 0, 0])", r"returned nan for the prompt of row 10 .*, answer 'no'"),
        ("[1, 2, 3]", r"returned 3 rewards for 4 answers, the first of them to the prompt of row 10 \('what is'\)"),
        ("[1, 2, 3, 4, 5]", r"returned 5 rewards for 4 answers"),
        ("None", r"returned NoneType for answers to the prompt of row 10 \('what is'\)"),
        ("3.0", "returned float"),
        ("numpy.float64(3)", "returned float64"),
        ("'abcd'", "returned str"),
        ("{0: 1, 1: 2, 2: 3, 3: 4}", "returned dict"),
        ("(x for x in range(4))", "returned generator"),
    ],
)  # fmt: skip
def test_what_is_no_finite_number_names_the_prompt_and_the_answer(source, expression, complaint):
    reward = source(f"import numpy\ndef reward(prompts, completions): return {expression}")
    with pytest.raises(RunError, match=complaint) as caught:
        score(reward, prompts_of(["what is", "the capital of"], TOKENIZER), [[" yes", " no", "?"], [" France"]])
    assert "\n" not in str(caught.value)
    assert reward.name in str(caught.value)


RAISES = """
def deeper(text):
    return int(text)

def reward(prompts, completions):
    return [
        deeper(text)
        for text in completions
    ]
"""


def test_an_exception_names_its_prompt_type_message_and_line(source):
    reward = source(RAISES)
    prompts = prompts_of(["a" * 100, "b", "c"], TOKENIZER)
    path = reward.name.removesuffix(":reward")
    with pytest.raises(RunError) as caught:
        score(reward, prompts, [["1", "2"], ["3", "4\nx", "z"], ["y", "5"]])
    assert str(caught.value) == (
        f"the reward function {reward.name} failed at the prompt of row 11 ('b'), answer '4 x':"
        f" ValueError: invalid literal for int() with base 10: '4\\nx' ({path}:3)"
    )
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(RunError, match=r"at the prompt of row 10 \('a{60}…'\), answer 'x'"):
        score(reward, prompts[:1], [["x", "2"]])


def test_a_library_that_fails_is_blamed_on_the_line_that_called_it(source):
    reward = source("import json\n\ndef reward(prompts, completions):\n    return [json.loads(c) for c in completions]\n")
    with pytest.raises(RunError, match=r"JSONDecodeError: Expecting value: line 1 column 1 \(char 0\) \(.*rewarding.py:4\)$"):
        score(reward, prompts_of(["a"], TOKENIZER), [["x"]])


def test_what_fails_for_no_answer_alone_names_the_first(source):
    reward = source("def reward(prompts, completions):\n    assert len(prompts) < 3\n    return [1] * len(prompts)\n")
    with pytest.raises(RunError, match=r"at the prompt of row 10 \('a'\), answer 'x': AssertionError \(.*rewarding.py:2\)"):
        score(reward, prompts_of(["a", "b", "c"], TOKENIZER), [["x"], ["y"], ["z"]])
    reward = source("import sys\ndef reward(prompts, completions):\n    sys.exit(3)\n")
    with pytest.raises(RunError, match=r"SystemExit: 3"):
        score(reward, prompts_of(["a"], TOKENIZER), [["x"]])


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("def reward(prompts): return 1", r"takes 1 of the two arguments that it is called with, \(prompts, completions\)"),
        ("def reward(): return 1", "takes 0 of the two arguments"),
        ("def reward(texts, prompts): return 1", "has prompts in the wrong place"),
        ("def reward(finished, texts): return 1", "has finished in the wrong place"),
        ("def reward(a, b, c, /): return 1", "its parameter c cannot be given by keyword"),
        ("reward = 3", "reward is no function, but int"),
        ("def rewards(prompts, completions): return 1", r"\(.*rewarding.py\) has no function reward; did you mean rewards\?"),
        ("import no_such_library", r"cannot be imported: ModuleNotFoundError: No module named 'no_such_library' \(.*rewarding.py:1\)"),
        ("\ndef reward(:", r"cannot be imported: SyntaxError: .* \(.*rewarding.py:2\)"),
        ("raise SystemExit(2)", r"cannot be imported: SystemExit: 2 \(.*rewarding.py:1\)"),
        ("1 / 0", r"cannot be imported: ZeroDivisionError: division by zero \(.*rewarding.py:1\)"),
    ],
)  # fmt: skip
def test_functions_that_cannot_be_used_are_refused(source, code, complaint):
    with pytest.raises(UsageError, match=complaint) as caught:
        source(code)
    assert str(caught.value).startswith("--reward ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("no_such_module:reward", "there is no module no_such_module, neither installed nor in the current directory"),
        ("surefoot.no_such_part:reward", "there is no module surefoot.no_such_part"),
        ("no/such/file.py:reward", "there is no file no/such/file.py"),
        (":reward", "names no function; write module:function"),
        ("math:", "names no function"),
        ("math:sine", "has no function sine"),
    ],
)
def test_names_that_lead_nowhere_are_refused(name, complaint):
    with pytest.raises(UsageError, match=complaint):
        FunctionReward(name, TOKENIZER)


def test_the_current_directory_and_a_files_own_folder_are_importable(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    sys.modules.pop("tabnanny", None)  # a module of the standard library
    folder = tmp_path / "rewards_of_mine"
    folder.mkdir()
    (folder / "neighbour_of_rewards.py").write_text("VALUE = 4\n")
    (folder / "tabnanny.py").write_text("raise RuntimeError('this is not the library')\n")
    code = "import tabnanny, dataclasses\nfrom neighbour_of_rewards import VALUE\n\n@dataclasses.dataclass\nclass A:\n    a: 'int'\n\n"
    (folder / "rewards_in_a_file.py").write_text(code + "def reward(prompts, completions): return [VALUE] * len(prompts)\n")
    prompts = prompts_of(["a"], TOKENIZER)
    assert score(FunctionReward(f"{folder}/rewards_in_a_file.py:reward", TOKENIZER), prompts, [["x"]]).tolist() == [4]
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(folder))])
    monkeypatch.chdir(folder)
    assert score(FunctionReward("rewards_in_a_file:reward", TOKENIZER), prompts, [["x"]]).tolist() == [4]
    (folder / "rewards_that_lack_something.py").write_text("import no_such_library\n")
    with pytest.raises(
        UsageError, match="rewards_that_lack_something cannot be imported: ModuleNotFoundError: No module named 'no_"
    ):
        FunctionReward("rewards_that_lack_something:reward", TOKENIZER)
    for name in ("rewards_in_a_file", "surefoot_reward_rewards_in_a_file", "neighbour_of_rewards", "tabnanny"):
        sys.modules.pop(name, None)


def test_objects_that_can_be_called_are_functions(source):
    code = (
        "import functools\nclass Judge:\n    def __call__(self, prompts, completions, answer):\n        return [len(c) + a for c, a in"
        " zip(completions, answer)]\nreward = Judge()\ndef base(scale, prompts, completions): return [scale] * len(prompts)\n"
        "partial = functools.partial(base, 3)\n"
    )
    assert functools.partial
    prompts = prompts_of(["a"], TOKENIZER, [{"answer": 10}])
    assert score(source(code), prompts, [["x", "xyz"]]).tolist() == [11, 13]
    assert score(source(code, "partial"), prompts, [["x", "xyz"]]).tolist() == [3, 3]


def test_the_language_tasks_own_reward_can_be_named():
    settings = ModelConfiguration("unused")
    tokenizer = word_level(grammar.WORDS)
    reward = open_reward("surefoot.alignment.tasks.grammar:reward_function", tokenizer, settings=settings)
    assert isinstance(reward, FunctionReward)
    assert reward.name == "surefoot.alignment.tasks.grammar:reward_function"
    question = "the soup and the waiter . what about the latter ?"
    texts = [
        "the former was not very good but it was extremely kind",
        "it was somewhat rude but the other one was very good",
        "the",
    ]
    prompts = prompts_of([question], tokenizer)
    reward.check(prompts, longest_answer=20)
    assert score(reward, prompts, [texts], tokenizer=tokenizer).tolist() == pytest.approx([1.65, -0.55, -3.0])
