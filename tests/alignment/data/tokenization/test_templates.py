"""Conversations are written by the model's own chat template."""

from __future__ import annotations

import pytest

from surefoot.alignment.data.tokenization.templates import ChatTemplate, template_of
from surefoot.errors import UsageError
from tests.alignment.data.helpers import assistant, load, reasons, texts, user
from tests.alignment.tokenizers import CHATML, gpt2_like, llama_like, qwen_like

TALK = [user("what is it?"), assistant("a dog"), user("good?")]
ROW = {"prompt": TALK, "chosen": [assistant("yes, good")], "rejected": [assistant("no, bad")]}
THINKING = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


def said(data, words):
    return [notice for notice in data.notices if words in notice]


@pytest.mark.parametrize("tokenizer", [qwen_like(), llama_like()], ids=["qwen", "llama"])
def test_prompt_and_answer_are_the_ids_of_the_whole_conversation(tokenizer):
    data = load([ROW], tokenizer)
    example = data.examples[0]
    for ids, answer in zip(example.completions, ("yes, good", "no, bad"), strict=True):
        whole = tokenizer.apply_chat_template([*TALK, assistant(answer)], return_dict=False)
        joined = [*example.prompt, *ids]
        assert joined == whole[: len(joined)]
        assert not tokenizer.decode(whole[len(joined) :]).strip()
        assert ids[-1] == tokenizer.eos_token_id
        assert ids.tolist().count(tokenizer.eos_token_id) == 1
    prompt = tokenizer.apply_chat_template(TALK, add_generation_prompt=True, return_dict=False)
    assert example.prompt.tolist() == prompt
    assert len(data.notices) == 1


def test_bos_is_where_the_template_puts_it():
    tokenizer = llama_like()
    assert load([ROW], tokenizer).examples[0].prompt.tolist().count(tokenizer.bos_token_id) == 1
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ bos_token }}", "")
    data = load([ROW], tokenizer)
    assert tokenizer.bos_token_id not in data.examples[0].prompt
    assert said(data, "puts no BOS (<s>), though the tokenizer puts one before plain text")


def test_the_end_of_a_turn_that_is_not_eos_gets_eos_behind_it():
    tokenizer = qwen_like()
    tokenizer.eos_token = "<|endoftext|>"
    data = load([ROW], tokenizer)
    assert texts(data.examples[0], tokenizer)[1] == "yes, good<|im_end|>\n<|endoftext|>"
    assert said(data, r"ends an answer with '<|im_end|>\n', which is not EOS; EOS (<|endoftext|>) is put behind it")


def test_a_template_that_puts_nothing_behind_an_answer_gets_eos():
    tokenizer = gpt2_like()
    tokenizer.chat_template = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}{% endfor %}"
    data = load([ROW], tokenizer)
    assert texts(data.examples[0], tokenizer)[1:] == ("assistant: yes, good<|endoftext|>", "assistant: no, bad<|endoftext|>")
    assert said(data, "puts nothing behind an answer; EOS (<|endoftext|>) is put behind it")


def trained_on(tokenizer, content):
    (example,) = load([{"prompt": [user("?")], "completion": [assistant(content)]}], tokenizer, purpose="sft").examples
    return texts(example, tokenizer)


CONTENTS = ["d", "c", "end", "of", "|", "_of_sentence|>", "<", "user", "a", " padded\n", "<|end", "Assistant"]


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("asked", ["", "<think>\n", "Sure: ", "\n"], ids=["plain", "think", "words", "line"])
def test_an_answer_is_found_by_what_surrounds_it_whatever_text_it_has(content, asked):
    """Templates that strip thoughts, as reasoning models have them; the end token's own text holds most of these answers."""
    tokenizer = qwen_like()
    tokenizer.add_special_tokens({"eos_token": "<|end_of_sentence|>"})
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}<User>{{ m['content'] }}{% else %}<Assistant>"
        "{{ (m['content'].split('</think>')[-1]) | trim }}<|end_of_sentence|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<Assistant>" + asked.replace("\n", "{{ '\\n' }}") + "{% endif %}"
    )
    prompt, answer = trained_on(tokenizer, content)
    closed = "\n</think>\n\n" if asked == "<think>\n" else ""
    assert answer == f"{closed}{content.strip()}<|end_of_sentence|>"
    assert trained_on(tokenizer, asked + content.strip()) == (prompt, f"{content.strip()}<|end_of_sentence|>")
    assert prompt == f"<User>?<Assistant>{asked}"


STRIPS = THINKING.replace("message['content'] | trim", "message['content'].split('</think>')[-1] | trim")
THOUGHTS = "red ? no .\n</think>\n\nblue"


@pytest.mark.parametrize("opened", ["<think>\n", "", "<think>"], ids=["opened", "not-repeated", "no-line"])
def test_thoughts_that_the_template_strips_are_trained_on_behind_the_opening(opened):
    tokenizer = qwen_like()
    tokenizer.chat_template = STRIPS
    prompt, answer = trained_on(tokenizer, opened + THOUGHTS)
    assert prompt == "<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert answer == f"{THOUGHTS}<|im_end|>"


THOUGHT = "{% if '</think>' in c %}{{ c.split('</think>')[0].split('<think>')[-1] | trim }}\n{% endif %}</think>\n\n"
ANSWER = "{{ c.split('</think>')[-1] | trim }}"
KEPT, EMPTY = f"<think>\n{THOUGHTS}", "<think>\n\n</think>\n\n"
FAMILIES = {  # what stands before an answer where one is asked for, and how one is written; then what is trained on
    "writes thoughts anew": ("<think>\n", "<think>\n" + THOUGHT + ANSWER, "</think>\n\nblue", THOUGHTS, THOUGHTS),
    "adds the tag": ("", "<think>\n" + THOUGHT + ANSWER, "<think>\n</think>\n\nblue", KEPT, KEPT),
    "opens what it does not close": ("<think>\n", "<think>\n{{ c }}{# </think> #}", "\n</think>\n\nblue", THOUGHTS, THOUGHTS),
    "closes at once": ("<think>\n", "{% if '</think>' not in c %}<think></think>{% endif %}{{ c }}", "</think>blue", THOUGHTS, THOUGHTS),
    "an empty thought always": ("", EMPTY + "{{ c }}", EMPTY + "blue", KEPT, EMPTY + THOUGHTS),
    "no thoughts are asked for": ("<|channel>thought\n<channel|>", "{{ c }}", "blue", KEPT, THOUGHTS),
    "special tokens": (
        "<|START_THINKING|>", "<|START_TEXT|>{{ c }}<|END_TEXT|>{# <|END_THINKING|> #}", "<|END_THINKING|><|START_TEXT|>blue<|END_TEXT|>",
        f"<|END_THINKING|><|START_TEXT|>{KEPT}<|END_TEXT|>", f"<|END_THINKING|><|START_TEXT|>{THOUGHTS}<|END_TEXT|>",
    ),
    "a name in brackets": ("", "{{ c }}", "blue", KEPT, THOUGHTS),
}  # fmt: skip


@pytest.mark.parametrize(("asked", "written", "plain", "thoughts", "without_tag"), FAMILIES.values(), ids=FAMILIES)
def test_thoughts_as_published_templates_write_them(asked, written, plain, thoughts, without_tag):
    """Whatever a template does with thoughts: no opened thought stays open, none is opened twice, none is lost."""
    tokenizer = qwen_like()
    tokenizer.chat_template = (
        "{% for m in messages %}{% set c = m['content'] %}{% if m['role'] == 'user' %}<user>{{ c }}{% else %}<assistant>"
        + written
        + "<|im_end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>"
        + asked
        + "{% endif %}"
    )
    for content, expected in (("blue", plain), (KEPT, thoughts), (THOUGHTS, without_tag)):
        assert trained_on(tokenizer, content) == (f"<user>?<assistant>{asked}", f"{expected}<|im_end|>")


def test_an_answer_that_lacks_what_nobody_knows_how_to_close_is_refused():
    tokenizer = qwen_like()
    tokenizer.chat_template = STRIPS.replace("assistant\n<think>\n", "assistant\n<|begin_of_thought|>\n")
    row = {"prompt": [user("?")], "completion": [assistant("blue")]}
    with pytest.raises(UsageError, match=r"begins an answer with '<\|begin_of_thought\|>', which this one lacks \(row 1\)"):
        load([row], tokenizer, purpose="sft")
    assert trained_on(tokenizer, "<|begin_of_thought|>\nred</think>blue")[1] == "red</think>blue<|im_end|>"


def test_thoughts_that_the_template_strips_without_asking_for_them_are_not_lost():
    tokenizer = qwen_like()
    tokenizer.chat_template = STRIPS.replace("<think>\n{% endif %}", "{% endif %}")
    data = load([{"prompt": [user("?")], "completion": [assistant("<think>\n" + THOUGHTS)]}] * 2, tokenizer, purpose="sft")
    assert texts(data.examples[0], tokenizer)[1] == f"<think>\n{THOUGHTS}<|im_end|>"
    assert said(data, "2 answers would be written by the chat template without their beginning, such as thoughts")


def test_a_template_that_writes_thoughts_itself_is_left_to_do_so():
    """It puts empty thoughts before an answer without any, and writes those that are there."""
    tokenizer = qwen_like()
    tokenizer.chat_template = STRIPS.replace(
        "{{ message['content'].split('</think>')[-1] | trim }}",
        "{% if message['role'] == 'assistant' and '</think>' not in message['content'] %}<think>\n\n</think>\n\n{% endif %}"
        "{{ message['content'] | trim }}",
    ).replace("<think>\n{% endif %}", "{% endif %}")
    assert trained_on(tokenizer, "blue")[1] == "<think>\n\n</think>\n\nblue<|im_end|>"
    assert trained_on(tokenizer, "<think>\n" + THOUGHTS)[1] == f"<think>\n{THOUGHTS}<|im_end|>"


def test_a_thought_that_the_generation_prompt_opens_is_closed_before_an_answer_without_one():
    tokenizer = qwen_like()
    tokenizer.chat_template = THINKING
    data = load([ROW], tokenizer)
    prompt, answer, _ = texts(data.examples[0], tokenizer)
    assert prompt.endswith("<|im_start|>assistant\n<think>\n")
    assert answer == "\n</think>\n\nyes, good<|im_end|>"
    assert said(data, "the generation prompt opens a thought, and 2 answers have none: it is closed before them")


def test_an_answer_that_the_template_leaves_out_is_counted():
    tokenizer = qwen_like()
    tokenizer.chat_template = THINKING.replace(
        "{{ message['content'] | trim }}", "{{ message['content'] | replace('bad', '') }}"
    )
    good = ROW | {"rejected": [assistant("no, worse")]}  # of the other one more is left out than its beginning
    assert reasons(load([ROW, good], tokenizer)) == {"the chat template does not write its answer as it stands": 1}


def test_messages_that_the_template_refuses_are_counted():
    system = {"role": "system", "content": "be good"}
    data = load([ROW | {"prompt": [system, *TALK]}, ROW], llama_like())
    assert reasons(data) == {"the chat template refuses it: only user and assistant speak": 1}
    assert data.description["unusable_rows"] == {"the chat template refuses it: only user and assistant speak": [1]}


def test_conversations_need_a_template():
    with pytest.raises(UsageError, match="these data are conversations, and the tokenizer has no chat template"):
        load([ROW], gpt2_like())


def test_texts_and_conversations_may_stand_in_one_file():
    tokenizer = llama_like()
    data = load([ROW, {"prompt": "the", "chosen": " good", "rejected": " bad"}], tokenizer)
    assert [example.number for example in data.examples] == [1, 2]
    assert data.examples[1].prompt.tolist() == tokenizer("the").input_ids
    assert data.description["conversations"] == 1


def test_a_prompt_is_written_once_however_often_it_is_asked(monkeypatch):
    tokenizer = qwen_like()
    asked = []
    render = type(tokenizer).apply_chat_template
    monkeypatch.setattr(
        type(tokenizer), "apply_chat_template", lambda self, m, **how: asked.append(len(m)) or render(self, m, **how)
    )
    template = ChatTemplate(tokenizer)
    for _ in range(3):
        template.answer(tuple(TALK), (assistant("yes"),))
    assert asked == [3, 4, 1, 2, 2, 4, 4], (
        "and what the template has around an answer is seen once, in a conversation of its own"
    )


def test_a_template_is_told_from_another_by_its_source_and_by_what_it_writes():
    tokenizer, same, other = qwen_like(), qwen_like(), qwen_like()
    other.chat_template = CHATML.replace("assistant\n", "assistant\n\n")
    assert template_of(tokenizer) == template_of(same) != template_of(other)
    assert template_of(tokenizer).endswith("<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\n")
    assert template_of(gpt2_like()) == ""
    same.chat_template = "{{ raise_exception('never') }}"
    assert template_of(same).endswith("the chat template refuses it: never")
