"""What ends an answer, from tokenizer, settings and chat template together."""

from __future__ import annotations

import numpy as np
import pytest

from surefoot.alignment.data.tokenization.ends import AnswerEnds
from tests.alignment.data.helpers import assistant, load, user
from tests.alignment.tokenizers import gemma_like, gpt2_like, llama_like, qwen_like, word_level


def without_template():
    tokenizer = llama_like()
    tokenizer.chat_template = None
    return tokenizer


TOKENIZERS = {"qwen": qwen_like, "gemma": gemma_like, "llama": llama_like, "gpt2": gpt2_like, "no template": without_template}


def ids_of(tokenizer, *names):
    return tuple(tokenizer.convert_tokens_to_ids(list(names)))


@pytest.mark.parametrize("maker", TOKENIZERS.values(), ids=TOKENIZERS)
def test_what_stands_behind_an_answer_in_training_is_what_the_data_loading_puts_there(maker):
    tokenizer = maker()
    ends = AnswerEnds.of(tokenizer)
    rows = {False: {"prompt": "what is", "completion": " yes"}}
    if tokenizer.chat_template:
        rows[True] = {"prompt": [user("what is")], "completion": [assistant("yes")]}
    for conversation, row in rows.items():
        (example,) = load([row], tokenizer, purpose="sft").examples
        ids, end = example.completions[0], ends.trained(conversation=conversation)
        assert tuple(ids[-len(end) :].tolist()) == end
        assert tokenizer.decode(ids[: -len(end)]).strip() == "yes"
        assert ends.as_trained(ids, conversation=conversation).tolist() == ids.tolist()
        assert ends.without(ids, conversation=conversation).tolist() == ids[: -len(end)].tolist()


def test_an_answer_is_ended_as_in_training_whatever_ended_it():
    tokenizer = gemma_like()
    turn, line, text = ids_of(tokenizer, "<|im_end|>", "Ċ", "<|endoftext|>")
    ends = AnswerEnds.of(tokenizer, [text, turn])
    assert (ends.turn, ends.sampling) == ((turn, line, text), (text, turn))
    content = tokenizer("yes, no").input_ids
    for sampled in ([turn], [text], [turn, line, text], [7]):
        answer = np.array([*content, *sampled], np.int32)
        assert ends.as_trained(answer, conversation=True).tolist() == [*content, turn, line, text]
        assert ends.without(answer, conversation=True).tolist() == content
        assert ends.as_trained(answer, conversation=True).dtype == np.int32
    plain = np.array([*content, turn], np.int32)
    assert ends.as_trained(plain, conversation=False).tolist() == [*content, text]
    assert ends.as_trained(np.array([turn], np.int32), conversation=True).tolist() == [turn, line, text], "an empty answer"


def test_sampling_ends_at_eos_at_what_the_settings_name_and_at_the_templates_end_of_a_turn():
    tokenizer = gemma_like()
    turn, text = ids_of(tokenizer, "<|im_end|>", "<|endoftext|>")
    assert AnswerEnds.of(tokenizer).sampling == (text, turn)
    assert AnswerEnds.of(tokenizer, [turn]).sampling == (text, turn)
    assert AnswerEnds.of(tokenizer, [turn]).notices == (
        r"answers end at EOS (<|endoftext|>) or '<|im_end|>'; training puts '<|im_end|>\n<|endoftext|>' behind a conversation's answer;"
        " the model's settings do not name EOS (<|endoftext|>), and what is saved does",
    )
    assert AnswerEnds.of(qwen_like(), ids_of(qwen_like(), "<|im_end|>")).notices == ("answers end at EOS (<|im_end|>)",)
    assert AnswerEnds.of(llama_like(), [2]).sampling == (2,), "the space that this template puts behind an answer ends none"
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", "\n<|im_end|>")
    assert AnswerEnds.of(tokenizer).sampling == (text, turn)
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", "<|im_start|>end<|im_end|>")
    assert AnswerEnds.of(tokenizer).sampling == (text,), "a token that begins a longer end may stand within an answer"


def test_an_end_that_is_a_word_is_named():
    tokenizer = qwen_like()
    word, end = ids_of(tokenizer, "e", "<|im_end|>")
    ends = AnswerEnds.of(tokenizer, [word])
    assert (ends.ordinary, ends.sampling) == ((word,), (end, word))
    assert ends.notices[1].startswith(
        "answers also end at 'e', no special token, because the model's settings name it: take it out"
    )
    assert AnswerEnds.of(tokenizer, [end, *ids_of(tokenizer, "<|endoftext|>")]).ordinary == ()
    assert "id 5000, which is no token" in AnswerEnds.of(tokenizer, [5000]).notices[1]


def test_a_tokenizer_without_eos_ends_answers_where_the_settings_say_or_nowhere():
    tokenizer = word_level()
    tokenizer.eos_token = None
    ends = AnswerEnds.of(tokenizer)
    assert (ends.sampling, ends.turn) == ((), ())
    assert ends.notices == ("no token ends an answer, so each has the longest length",)
    answer = np.array([5, 6], np.int32)
    assert ends.as_trained(answer, conversation=False).tolist() == [5, 6]
    assert AnswerEnds.of(tokenizer, [1]).sampling == (1,)


def test_a_template_that_refuses_a_short_conversation_leaves_eos():
    tokenizer = qwen_like()
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    assert AnswerEnds.of(tokenizer).turn == ids_of(tokenizer, "<|im_end|>")
