"""The text of an answer is what stands behind its prompt."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surefoot.alignment.data.tokenization.decoding import answer_texts
from tests.alignment.data.helpers import assistant, load, user
from tests.alignment.tokenizers import gpt2_like, llama_like, qwen_like, word_level

EXACT = {
    "gpt2": gpt2_like(),
    "gpt2 with a space": gpt2_like(add_prefix_space=True),
    "qwen": qwen_like(),
    "llama": llama_like(),
    "legacy llama": llama_like(legacy=True),
    "llama without a space": llama_like(scheme="never"),
}


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(EXACT)), st.text("ab é?\n", min_size=1, max_size=8), st.text("ab é?\n", min_size=1, max_size=8))
def test_prompt_and_answer_together_are_the_text(name, prompt, answer):
    tokenizer = EXACT[name]
    row = {"prompt": "a" + prompt, "completion": answer}
    if not answer.strip():
        return
    (example,) = load([row], tokenizer, "sft").examples
    assert answer_texts(example.prompt, example.completions, tokenizer, conversation=False) == [answer]
    assert answer_texts(example.prompt, [example.completions[0][:-1]], tokenizer, conversation=False) == [answer], "no EOS"


def test_words_that_were_split_at_spaces_get_them_back():
    tokenizer = word_level()
    prompt, answer = (np.array(tokenizer(text).input_ids, np.int32) for text in ("what is the answer ?", "yes or no"))
    whole = np.append(answer, 1)
    assert answer_texts(prompt, [whole, answer[:1]], tokenizer, conversation=False) == [" yes no", " yes"]


@pytest.mark.parametrize("tokenizer", [llama_like(), qwen_like()])
def test_what_a_conversation_says_has_no_space_around_it(tokenizer):
    (example,) = load([{"messages": [user("what?"), assistant("yes, a dog")]}], tokenizer, "sft").examples
    assert answer_texts(example.prompt, example.completions, tokenizer, conversation=True) == ["yes, a dog"]


def test_an_answer_that_says_nothing_is_an_empty_text():
    tokenizer = gpt2_like()
    prompt = np.array(tokenizer("what").input_ids, np.int32)
    assert answer_texts(prompt, [np.array([tokenizer.eos_token_id], np.int32)], tokenizer, conversation=False) == [""]


def test_behind_an_empty_prompt_the_answer_begins_the_text():
    tokenizer = llama_like()
    ids = np.array(tokenizer("a dog").input_ids, np.int32)
    assert answer_texts(ids[:1], [ids[1:]], tokenizer, conversation=False) == ["a dog"]


def test_a_prompt_that_ends_within_a_character_changes_no_answer():
    tokenizer = gpt2_like()
    ids = np.array(tokenizer("é yes").input_ids, np.int32)
    assert answer_texts(ids[:1], [ids[1:]], tokenizer, conversation=False) == ["\ufffd yes"]
