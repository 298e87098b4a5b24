"""Tokens on disk are those that were put there, and are used for nothing else."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import platformdirs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from surefoot.alignment.data import cache, loading
from surefoot.alignment.data.configuration import DataConfiguration
from surefoot.alignment.data.examples import Example
from surefoot.alignment.data.loading import load_examples
from surefoot.alignment.data.reading.sources import open_source
from surefoot.alignment.data.tokenization.tokenizer import load_tokenizer
from tests.alignment.data.helpers import PAIR, write_lines
from tests.alignment.tokenizers import CHATML, gpt2_like, llama_like, qwen_like, word_level

ROWS = [PAIR | {"margin": 0.5}, PAIR | {"prompt": "the"}, PAIR | {"prompt": "the", "chosen": ""}]
RANKED = [
    {"prompt": "what", "completions": ["a", "b", "c"], "ranks": [2, 1, 3]},
    {"prompt": "the", "completions": ["a", "b"], "ranks": [1, 2]},
]


def content(examples):
    return [
        (e.number, e.prompt.tolist(), [ids.tolist() for ids in e.completions], e.ranks, e.pairs, e.margins) for e in examples
    ]


@pytest.fixture
def data(tmp_path):
    return DataConfiguration(str(write_lines(tmp_path / "rows.jsonl", ROWS)))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def load(configuration, folder, tokenizer=None):
    return load_examples(configuration, tokenizer or gpt2_like(), purpose="preference", cache_folder=folder)


@pytest.mark.parametrize("rows", [ROWS, RANKED])
def test_a_second_run_reads_and_tokenises_nothing(tmp_path, folder, monkeypatch, rows):
    data = DataConfiguration(str(write_lines(tmp_path / "rows.jsonl", rows)))
    first = load(data, folder)
    monkeypatch.setattr(loading, "read_examples", None)
    second = load(data, folder)
    assert content(second.examples) == content(first.examples)
    assert (second.notices, second.description, second.fingerprint) == (first.notices, first.description, first.fingerprint)
    for example in second.examples:
        assert example.prompt.dtype == example.completions[0].dtype == np.int32
        assert example.prompt.flags.writeable
        assert example.completions[0].flags.writeable


def test_the_same_content_elsewhere_is_the_same_entry(tmp_path, data, folder, monkeypatch):
    first = load(data, folder)
    monkeypatch.setattr(loading, "read_examples", None)
    copy = load(replace(data, data=str(write_lines(tmp_path / "copy.jsonl", ROWS))), folder)
    assert copy.fingerprint == first.fingerprint
    assert copy.description["source"] == str(tmp_path / "copy.jsonl")
    assert copy.notices[0].startswith(str(tmp_path / "copy.jsonl"))


def changed_vocabulary():
    return word_level(("what", "is", "the", "yes", "no"))


def changed_special_token():
    tokenizer = word_level()
    tokenizer.eos_token = "<pad>"
    return tokenizer


def changed_template():
    tokenizer = word_level()
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.mark.parametrize("changed", [changed_vocabulary, changed_special_token, changed_template])
def test_a_changed_tokenizer_is_another_entry(data, folder, changed):
    first, second = load(data, folder, word_level()), load(data, folder, changed())
    assert first.fingerprint != second.fingerprint
    assert second.fingerprint == load(replace(data, cache=False), folder, changed()).fingerprint


def test_the_old_tokens_are_not_given_for_a_changed_tokenizer(data, folder):
    load(data, folder, word_level())
    assert content(load(data, folder, changed_vocabulary()).examples) == content(
        load(replace(data, cache=False), folder, changed_vocabulary()).examples
    )


@pytest.mark.parametrize(
    "change", [{"max_length": 7}, {"overlong": "drop"}, {"ties": "pairs"}, {"format": "implicit"}, {"format": "preference"}]
)
def test_other_options_are_another_entry(data, change):
    source = open_source(data.data)
    tokenizer = gpt2_like()
    keys = {cache.key_of(source.checksum, c, tokenizer, purpose="preference") for c in (data, replace(data, **change))}
    assert len(keys) == 2


def test_other_rows_another_purpose_and_another_version_are_another_entry(data, monkeypatch):
    tokenizer = gpt2_like()
    keys = [cache.key_of(*of, purpose=p) for of, p in ((("a", data, tokenizer), "sft"), (("b", data, tokenizer), "sft"))]
    keys.append(cache.key_of("a", data, tokenizer, purpose="preference"))
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    keys.append(cache.key_of("a", data, tokenizer, purpose="sft"))
    assert len(set(keys)) == 4


def test_what_was_done_with_a_tokenizer_before_makes_no_difference(data, tmp_path):
    used = llama_like()
    fresh = cache.key_of("a", data, used, purpose="sft")
    used.pad_token = used.eos_token
    padded = cache.key_of("a", data, used, purpose="sft")
    used(["a", "b c d"], padding=True, truncation=True, max_length=2)
    assert padded != fresh
    assert cache.key_of("a", data, used, purpose="sft") == padded
    used.save_pretrained(tmp_path / "saved")
    assert cache.key_of("a", data, load_tokenizer(str(tmp_path / "saved")), purpose="sft") == padded


def flip(path):
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(cache.unpack(bytes(damaged))[0][0].prompt.tobytes())] ^= 1
    path.write_bytes(bytes(damaged))


DAMAGES = {
    "a bit of the tokens": lambda tokens, manifest: flip(tokens),
    "tokens cut short": lambda tokens, manifest: tokens.write_bytes(tokens.read_bytes()[:-10]),
    "no tokens": lambda tokens, manifest: tokens.unlink(),
    "manifest is no JSON": lambda tokens, manifest: manifest.write_text("{"),
    "manifest is a list": lambda tokens, manifest: manifest.write_text("[]"),
    "manifest of another entry": lambda tokens, manifest: manifest.write_text(
        json.dumps(json.loads(manifest.read_text()) | {"key": "0"})
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_entry_is_said_and_made_anew(data, folder, damage):
    first = load(data, folder)
    damage(folder / f"{first.fingerprint}.safetensors", folder / f"{first.fingerprint}.json")
    second = load(data, folder)
    assert content(second.examples) == content(first.examples)
    assert second.notices[:-1] == first.notices
    assert second.notices[-1].startswith("tokens in the cache are damaged (")
    assert load(data, folder).notices == first.notices


def test_an_entry_without_its_manifest_is_not_there(data, folder):
    first = load(data, folder)
    (folder / f"{first.fingerprint}.json").unlink()
    assert load(data, folder).notices == first.notices


def test_a_folder_that_cannot_be_written_is_said_and_the_run_goes_on(data, folder):
    folder.write_text("a file")
    loaded = load(data, folder)
    assert len(loaded.examples) == 2
    assert loaded.notices[-1].startswith("tokens are not kept for the next run: cannot write")


def test_the_cache_can_be_switched_off(data, folder):
    load(replace(data, cache=False), folder)
    assert not folder.exists()


def test_tokens_are_kept_in_the_users_cache_folder(data, tmp_path, monkeypatch):
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / name)
    loaded = load(data, None)
    assert {path.name for path in (tmp_path / "surefoot" / "tokens").iterdir()} == {
        f"{loaded.fingerprint}.safetensors",
        f"{loaded.fingerprint}.json",
    }


@pytest.mark.parametrize("build", [gpt2_like, qwen_like, llama_like, word_level])
def test_tokenizers_that_are_alike_have_the_same_key(data, build):
    assert cache.key_of("a", data, build(), purpose="sft") == cache.key_of("a", data, build(), purpose="sft")


ids = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=4).map(lambda tokens: np.array(tokens, dtype=np.int32))


@st.composite
def example(draw):
    completions = tuple(draw(st.lists(ids, min_size=1, max_size=4)))
    place = st.integers(0, len(completions) - 1)
    pairs = tuple(draw(st.lists(st.tuples(place, place), max_size=3)))
    ranks = tuple(draw(place) + 1 for _ in completions) if draw(st.booleans()) else None
    margins = tuple(draw(st.floats(allow_nan=False)) for _ in pairs) if draw(st.booleans()) else None
    return Example(draw(st.integers(1, 2**40)), draw(ids), completions, ranks, pairs, margins)


@given(st.lists(example(), max_size=5))
def test_packed_examples_come_back(examples):
    said = {"a": [1, "ü"]}
    packed = cache.pack(examples, said)
    back, said_back = cache.unpack(packed)
    assert content(back) == content(examples)
    assert said_back == said
    assert cache.pack(examples, said) == packed
