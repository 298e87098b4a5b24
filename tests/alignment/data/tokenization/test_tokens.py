"""Prompts and answers as ids: where they join, where BOS and EOS stand, what happens at the limit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers, processors
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from surefoot.alignment.data.examples import Row
from surefoot.alignment.data.reading.tally import Tally
from surefoot.alignment.data.tokenization.encoder import Encoder
from surefoot.alignment.data.tokenization.tokens import tokenise
from surefoot.errors import UsageError
from tests.alignment.data.helpers import PAIR, load, reasons, texts
from tests.alignment.tokenizers import gpt2_like, llama_like, qwen_like, word_level

KINDS = {
    "word-level": word_level(),
    "gpt2": gpt2_like(),
    "gpt2-with-space": gpt2_like(add_prefix_space=True),
    "qwen": qwen_like(),
    "llama": llama_like(),
    "llama-always": llama_like(scheme="always"),
    "llama-legacy": llama_like(legacy=True),
}
PIECES = [name for name in KINDS if name.startswith("llama")]
every_kind = pytest.mark.parametrize("tokenizer", KINDS.values(), ids=KINDS)
every_llama = pytest.mark.parametrize("tokenizer", [KINDS[name] for name in PIECES], ids=PIECES)


def tokenised(tokenizer, prompt, *answers, max_length=100, **options):
    tally = Tally()
    rows = [Row(1, prompt, answers)]
    return tokenise(rows, tokenizer, tally, max_length=max_length, **options), tally.counts()


def example(tokenizer, prompt, *answers, **options):
    result, unusable = tokenised(tokenizer, prompt, *answers, **options)
    assert not unusable
    return result.examples[0]


def why_not(tokenizer, prompt, *answers, **options):
    result, unusable = tokenised(tokenizer, prompt, *answers, **options)
    assert not result.examples
    return ", ".join(unusable)


@every_kind
def test_a_prompt_has_the_ids_that_the_tokenizer_gives_it(tokenizer):
    text = "What is the answer ?"
    ids = example(tokenizer, text, "yes").prompt
    assert ids.dtype == np.int32
    assert ids.tolist() == tokenizer(text).input_ids


@every_kind
def test_an_answer_ends_with_the_one_eos(tokenizer):
    answer = example(tokenizer, "What is", " the answer").completions[0]
    assert answer.dtype == np.int32
    assert answer[-1] == tokenizer.eos_token_id
    assert answer[:-1].tolist() == tokenizer(" the answer", add_special_tokens=False).input_ids[-len(answer) + 1 :]


printable = st.text("abcXYZ .,?!\n'é", min_size=1, max_size=12)


@settings(max_examples=60)
@given(st.sampled_from([name for name in KINDS if name != "word-level"]), printable, printable.filter(str.strip))
def test_prompt_and_answer_together_say_what_their_texts_said(name, prompt, answer):
    tokenizer = KINDS[name]
    joined = example(tokenizer, prompt, answer)
    ids = [*joined.prompt, *joined.completions[0]]
    said = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert said.lstrip(" ") == (prompt + answer).lstrip(" "), "tokenizers differ in what they make of the very first space"


@every_llama
def test_no_space_stands_before_an_answer_that_has_none(tokenizer):
    joined = example(tokenizer, "The capital is ", "Paris", " Paris")
    first = [tokenizer.convert_ids_to_tokens(ids.tolist())[0] for ids in joined.completions]
    assert not first[0].startswith("▁")
    assert first[1].startswith("▁")
    assert first[1] != "▁▁"


@every_llama
def test_behind_an_empty_prompt_an_answer_begins_the_text(tokenizer):
    joined = example(tokenizer, "", "Paris")
    assert [*joined.prompt, *joined.completions[0]] == [*tokenizer("Paris").input_ids, tokenizer.eos_token_id]


@pytest.mark.parametrize(
    ("name", "start"),
    [("llama", "<s>"), ("gpt2", "<|endoftext|>"), ("qwen", "<|im_end|>"), ("word-level", "<eos>")],
)
def test_an_empty_prompt_begins_with_bos_or_else_with_eos(name, start):
    result, _ = tokenised(KINDS[name], "", "yes")
    assert result.examples[0].prompt.tolist() == [KINDS[name].convert_tokens_to_ids(start)]
    assert (result.empty_prompts, result.special_tokens["start"]) == (1, start)


def test_a_bos_that_the_tokenizer_puts_nowhere_still_begins_an_empty_prompt():
    tokenizer = llama_like()
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()
    assert example(tokenizer, "the", "yes").prompt[0] != tokenizer.bos_token_id
    assert example(tokenizer, "", "yes").prompt.tolist() == [tokenizer.bos_token_id]


def test_an_empty_prompt_without_bos_and_eos_is_unusable():
    tokenizer = word_level()
    tokenizer.eos_token = None
    assert why_not(tokenizer, " ", "yes") == "its prompt is empty, and the tokenizer has neither BOS nor EOS to begin with"


@pytest.mark.parametrize(("name", "bos"), [("llama", "<s>"), ("llama-legacy", "<s>"), ("gpt2", "<|endoftext|>")])
def test_bos_that_the_text_brings_is_the_only_one(name, bos):
    tokenizer = KINDS[name]
    plain = example(tokenizer, "the answer", "yes").prompt.tolist()
    with_bos = [tokenizer.bos_token_id, *(token for token in plain if token != tokenizer.bos_token_id)]
    assert example(tokenizer, f"{bos}the answer", "yes").prompt.tolist() == with_bos
    assert example(tokenizer, f"{bos}{bos}the answer", "yes").prompt.tolist() == with_bos
    assert example(tokenizer, bos, "yes").prompt.tolist() == [tokenizer.bos_token_id]


def test_bos_in_the_middle_is_unusable():
    assert why_not(KINDS["llama"], "the <s> answer", "yes") == "its prompt holds BOS once more behind its beginning"
    assert why_not(KINDS["llama"], "the answer", "<s>yes") == "an answer holds BOS"


def begins_turns_with_bos():
    tokenizer = qwen_like()
    tokenizer.bos_token = "<|im_start|>"
    return tokenizer


def llama_2():
    tokenizer = llama_like()
    tokenizer.chat_template = None
    return tokenizer


RENDERED = {
    "turns": (begins_turns_with_bos(), "<|im_start|>user\nname a colour<|im_end|>\n<|im_start|>assistant\n"),
    "behind EOS": (llama_2(), "<s>[INST] a [/INST] b </s><s>[INST] c [/INST]"),
    "documents": (gpt2_like(), "<|endoftext|>one<|endoftext|>two"),
    "documents, not at the beginning": (gpt2_like(), "one<|endoftext|>two"),
}


@pytest.mark.parametrize(("tokenizer", "text"), RENDERED.values(), ids=RENDERED)
def test_bos_within_a_prompt_is_the_datas_business_where_it_begins_a_turn_or_another_text(tokenizer, text):
    result, unusable = tokenised(tokenizer, text, "blue")
    assert not unusable
    begun = [tokenizer.bos_token_id] * text.startswith(tokenizer.bos_token)
    rest = tokenizer(text.removeprefix(tokenizer.bos_token), add_special_tokens=False).input_ids
    assert result.examples[0].prompt.tolist() == [*begun, *rest]
    assert result.bos_within == 1
    assert tokenised(tokenizer, tokenizer.bos_token + "one", "blue")[0].bos_within == 0


def test_bos_within_prompts_is_said():
    data = load([{"prompt": RENDERED["turns"][1], "completion": "blue"}] * 2, begins_turns_with_bos(), purpose="sft")
    assert any("2 prompts hold BOS (<|im_start|>) behind their beginning too" in notice for notice in data.notices)


def test_a_beginning_that_is_doubled_is_unusable():
    tokenizer = llama_like(scheme="never")
    assert why_not(tokenizer, " <s><s>the answer", "yes") == "its prompt holds BOS once more behind its beginning"
    tokenizer.backend_tokenizer.normalizer = normalizers.Strip()
    assert why_not(tokenizer, " <s>the answer", "yes") == "its prompt begins with BOS twice"


def test_a_tokenizer_that_also_puts_eos_behind_a_text_puts_none_behind_a_prompt():
    tokenizer = llama_like()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    assert tokenizer("a").input_ids[-1] == 2
    assert example(tokenizer, "the answer", "yes").prompt.tolist() == tokenizer("the answer").input_ids[:-1]
    assert example(tokenizer, "", "yes").prompt.tolist() == [1]


def test_what_a_tokenizer_puts_before_a_text_is_found_though_it_knows_few_letters():
    backend = Tokenizer(BPE(vocab={"b": 0, "<s>": 1, "</s>": 2}, merges=[]))
    backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    assert example(tokenizer, "bb", "b").prompt.tolist() == [1, 0, 0]


@every_kind
@pytest.mark.parametrize("behind", ["{eos}", "{eos}\n", " {eos}", "{eos} {eos}\n"])
def test_eos_that_the_text_brings_is_the_only_one(tokenizer, behind):
    space = " " if behind.startswith(" ") else ""
    expected = example(tokenizer, "what is", f"the answer{space}").completions[0]
    given = example(tokenizer, "what is", "the answer" + behind.format(eos=tokenizer.eos_token)).completions[0]
    assert given.tolist() == expected.tolist()


@every_kind
def test_an_answer_that_goes_on_behind_eos_is_unusable(tokenizer):
    assert why_not(tokenizer, "what is", f"yes{tokenizer.eos_token} no") == "an answer goes on behind EOS"
    assert why_not(tokenizer, "what is", f"{tokenizer.eos_token}") == "an answer is empty"


def test_eos_that_only_the_tokenizer_sees_in_an_answer_is_found():
    backend = Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = Split(" ", "removed")
    backend.add_special_tokens([AddedToken("<eos>", normalized=True, special=True)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=AddedToken("<eos>", normalized=True, special=True))
    assert why_not(tokenizer, "a", "a <EOS> b") == "an answer goes on behind EOS"


parts = st.sampled_from(["yes", " no", "a", " ", "\n", "BOS", "EOS", "é", "<s", "▁"])
texts_with_marks = st.lists(parts, max_size=6).map("".join)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(list(KINDS)), texts_with_marks, texts_with_marks, texts_with_marks, st.integers(2, 12))
def test_whatever_the_texts_hold_there_is_one_eos_and_at_most_one_bos(name, prompt, one, other, max_length):
    tokenizer = KINDS[name]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    marked = [
        text.replace("BOS", tokenizer.bos_token or "").replace("EOS", tokenizer.eos_token) for text in (prompt, one, other)
    ]
    result, unusable = tokenised(tokenizer, *marked, max_length=max_length)
    assert len(result.examples) + sum(unusable.values()) == 1
    for joined in result.examples:
        cut = 0
        assert len(joined.prompt) >= 1
        for answer in map(np.ndarray.tolist, joined.completions):
            assert 1 <= len(answer) <= max_length - len(joined.prompt)
            assert answer.count(eos) == (answer[-1] == eos)
            if answer[-1] != eos:
                assert len(joined.prompt) + len(answer) == max_length
                cut += 1
            if bos is not None:
                assert [*joined.prompt, *answer[:-1]].count(bos) <= 1
                assert bos == eos or bos not in joined.prompt.tolist()[1:]
        assert result.truncated == cut


def test_answers_are_cut_at_the_limit_and_then_have_no_eos():
    tokenizer = word_level()
    words, eos = tokenizer.convert_tokens_to_ids(["a", "b", "c", "d"]), tokenizer.eos_token_id
    prompt, answers = "what is", ("a b", "a b c", "a b c d")
    ids = [answer.tolist() for answer in example(tokenizer, prompt, *answers, max_length=7).completions]
    assert ids == [[*words[:2], eos], [*words[:3], eos], [*words, eos]]
    result, _ = tokenised(tokenizer, prompt, *answers, max_length=6)
    assert [answer.tolist() for answer in result.examples[0].completions] == [[*words[:2], eos], [*words[:3], eos], words]
    assert result.truncated == 1
    assert result.answer_lengths == [3, 4, 5]
    assert result.prompt_lengths == [2]
    assert why_not(tokenizer, prompt, *answers, max_length=5) == "two answers are identical up to the limit"
    assert why_not(tokenizer, prompt, *answers, max_length=6, overlong="drop") == "an answer goes beyond 6 tokens"
    assert len(example(tokenizer, prompt, *answers, max_length=7, overlong="drop").completions) == 3


def test_a_prompt_must_leave_room_for_a_token():
    tokenizer = word_level()
    assert example(tokenizer, "what is", "a b", max_length=3).completions[0].tolist() == [tokenizer.convert_tokens_to_ids("a")]
    assert why_not(tokenizer, "what is", "a b", max_length=2) == "its prompt leaves no room for an answer within 2 tokens"


def test_answers_that_are_the_same_tokens_are_identical():
    assert why_not(word_level(), "what is", "zebra", "giraffe") == "two answers are identical"
    assert why_not(word_level(), "what is", "\u2003", "a") == "an answer is empty"


def test_ranks_pairs_margins_and_numbers_are_kept():
    rows = [
        Row(3, "a", ("b", "c"), ranks=(1, 2), pairs=((0, 1),), margins=(0.5,)),
        Row(9, "a", ("b", "c", "d"), pairs=((2, 1),)),
    ]
    first, second = tokenise(rows, word_level(), Tally(), max_length=9).examples
    assert (first.number, first.ranks, first.pairs, first.margins) == (3, (1, 2), ((0, 1),), (0.5,))
    assert (second.number, second.ranks, second.pairs, second.margins) == (9, None, ((2, 1),), None)
    assert first.prompt is second.prompt
    assert first.tokens == 1 + 2 + 2


def test_a_text_is_tokenised_once_however_often_it_stands_there(monkeypatch):
    seen = []
    encode = Encoder.encode
    monkeypatch.setattr(Encoder, "encode", lambda self, texts, **how: seen.extend(texts) or encode(self, texts, **how))
    tokenise([Row(i, "what", ("yes", "no")) for i in range(5)], gpt2_like(), Tally(), max_length=9)
    assert sorted(seen) == ["no", "what", "yes"]


def test_truncation_and_padding_left_in_the_tokenizer_change_nothing():
    tokenizer = gpt2_like()
    plain = example(tokenizer, "what is the answer", "yes or no", "no")
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    before = tokenizer.backend_tokenizer.to_str()
    same = example(tokenizer, "what is the answer", "yes or no", "no")
    assert same.prompt.tolist() == plain.prompt.tolist()
    assert [ids.tolist() for ids in same.completions] == [ids.tolist() for ids in plain.completions]
    assert tokenizer.backend_tokenizer.to_str() == before


def test_special_tokens_are_text_where_the_tokenizer_says_so():
    tokenizer = llama_like()
    tokenizer.split_special_tokens = True
    joined = example(tokenizer, "say <unk> now", "yes")
    assert joined.prompt.tolist() == tokenizer("say <unk> now").input_ids
    assert tokenizer.unk_token_id not in joined.prompt


def test_a_tokenizer_without_a_token_for_the_text_is_a_sentence():
    backend = Tokenizer(WordLevel({"a": 0, "<eos>": 1}, unk_token="?"))
    backend.pre_tokenizer = Split(" ", "removed")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    with pytest.raises(UsageError, match="the tokenizer cannot encode a text of these data"):
        tokenised(tokenizer, "a", "zebra")


def test_words_that_run_together_are_counted():
    result, _ = tokenised(gpt2_like(), "What?", "The end", " the end", "... end", "7", "是")
    assert result.run_together == 2
    assert tokenised(gpt2_like(), "What?\n", "The end")[0].run_together == 0
    assert tokenised(gpt2_like(), "", "The end")[0].run_together == 0


def test_texts_come_back_as_they_were():
    data = load([PAIR | {"chosen": " yes"}], gpt2_like())
    assert texts(data.examples[0], gpt2_like()) == ("what is the answer ?", " yes<|endoftext|>", "no<|endoftext|>")
    assert not reasons(data)
