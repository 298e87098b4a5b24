"""What is kept of a run between two processes: tensors, orders, random numbers, settings, and the model that it began with."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

from surefoot.alignment.configuration import ADDED_LATER, METHODS, AlignConfiguration, TrainingConfiguration, configure
from surefoot.alignment.data.examples import Example
from surefoot.alignment.data.fingerprint import examples_fingerprint, prompts_fingerprint
from surefoot.alignment.data.prompts import Prompt
from surefoot.alignment.data.tokenization.encoder import content_of
from surefoot.alignment.data.tokenization.templates import template_of
from surefoot.alignment.data.tokenization.tokenizer import load_tokenizer
from surefoot.alignment.durability.start import keep_start, start_checksum, verified_start
from surefoot.alignment.durability.state import Saved, learn_again, learned, to_array
from surefoot.alignment.learning.optimization import make_optimizer
from surefoot.alignment.learning.randomness import data_order, drawing_anew
from surefoot.alignment.likelihood.distribution import PLAIN
from surefoot.alignment.likelihood.likelihood import Likelihood
from surefoot.alignment.models.configuration import ModelConfiguration
from surefoot.alignment.models.fingerprint import weights_fingerprint
from surefoot.alignment.models.loading import load_policy
from surefoot.alignment.sampling.decoding import WholeSequences
from surefoot.alignment.sampling.sampler import Sampler
from surefoot.errors import UsageError
from tests.alignment.models.tiny import FAMILIES, language_model, save_language_model
from tests.alignment.tokenizers import gpt2_like, llama_like, qwen_like, word_level

torch.set_num_threads(1)
CPU = torch.device("cpu")


def through_a_file(arrays):
    return load(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_every_bit_of_a_tensor_comes_back(dtype):
    whole = torch.tensor([[0.1, -0.0, float("nan")], [float("inf"), 1e-42, -3.0]]).to(dtype)
    for tensor in (whole, whole.T, whole[:, 1], whole[0, 0], whole[:0]):
        saved = Saved(through_a_file({"x": to_array(tensor)}))
        back = saved.fill(torch.zeros_like(tensor), "x")
        bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
        assert torch.equal(back.contiguous().view(bits), tensor.contiguous().view(bits))
        saved.all_used()


def test_an_array_of_another_run_is_refused():
    arrays = {"x": np.zeros((2, 3), np.float32)}
    for tensor in (
        torch.zeros(3, 2),
        torch.zeros(6),
        torch.zeros(2, 3, dtype=torch.float64),
        torch.zeros(2, 3, dtype=torch.bfloat16),
    ):
        with pytest.raises(UsageError, match="x should be"):
            Saved(dict(arrays)).fill(tensor, "x")
    with pytest.raises(UsageError, match="y should be"):
        Saved(dict(arrays)).fill(torch.zeros(2, 3), "y")
    with pytest.raises(UsageError, match="has no x"):
        Saved(dict(arrays)).all_used()


def test_an_optimiser_goes_on_where_it_was():
    def weights(seed):
        torch.manual_seed(seed)
        return [
            (name, torch.nn.Parameter(torch.randn(shape)))
            for name, shape in (("matrix", (3, 4)), ("bias", (4,)), ("unused", (2,)))
        ]

    def step(parameters, optimizer, number):
        generator = torch.Generator().manual_seed(number)
        for name, parameter in parameters:
            parameter.grad = None if name == "unused" else torch.randn(parameter.shape, generator=generator)
        optimizer.step()

    training = TrainingConfiguration(weight_decay=0.1, learning_rate=0.1)
    first = weights(0)
    optimizer = make_optimizer(first, training)
    for number in range(5):
        step(first, optimizer, number)
    arrays = through_a_file(learned(first, optimizer, of="a/"))
    assert "a/exp_avg/unused" not in arrays
    second = weights(1)
    other = make_optimizer(second, training)
    learn_again(second, other, saved := Saved(arrays), of="a/")
    saved.all_used()
    assert not arrays  # what has found its place is held no longer
    for number in range(5, 9):
        step(first, optimizer, number)
        step(second, other, number)
    assert all(torch.equal(p, q) for (_, p), (_, q) in zip(first, second, strict=True))
    assert learned(first, optimizer).keys() == learned(second, other).keys()


def test_every_epoch_has_an_order_of_its_own_that_follows_from_the_seed():
    orders = [tuple(data_order(seed, epoch, 50)) for seed in (0, 1) for epoch in range(3)]
    assert len(set(orders)) == 6
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert tuple(data_order(1, 2, 50)) == orders[-1]


def test_random_numbers_of_an_update_follow_from_its_number_and_leave_no_trace():
    def drawn(seed, number):
        with drawing_anew(seed, number, CPU):
            return torch.rand(4)

    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    first = drawn(3, 7)
    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(drawn(3, 7), first)
    assert not torch.equal(drawn(3, 8), first)
    assert not torch.equal(drawn(4, 7), first)


def test_a_sampler_takes_the_way_that_it_took_before():
    likelihood = Likelihood(language_model("llama"))
    first, second = (Sampler(likelihood, under=PLAIN, longest=4) for _ in range(2))
    before = second.state()
    first._whole("a reason")
    first._verified = (9, True)
    state = json.loads(json.dumps(first.state()))
    assert state != json.loads(json.dumps(before))
    second.restore(state)
    assert second.state() == first.state()
    assert second._way is WholeSequences
    assert "a reason" in second.notice


def example(**changes):
    plain = {
        "number": 1,
        "prompt": np.array([3, 4], np.int32),
        "completions": (np.array([5], np.int32), np.array([6, 1], np.int32)),
    }
    return Example(**(plain | {"ranks": (1, 2), "pairs": ((0, 1),), "margins": None} | changes))


def test_examples_that_differ_in_anything_have_another_fingerprint():
    ids = [np.array(x, np.int32) for x in ([3], [4, 5], [6, 1], [4], [5], [3, 4])]
    others = [
        [],
        [example()] * 2,
        [example(number=2)],
        [example(prompt=ids[0], completions=(ids[1], ids[2]))],
        [example(completions=(ids[4], ids[2], ids[2]))],
        [example(completions=(ids[2], ids[4]))],
        [example(ranks=(2, 1))],
        [example(ranks=None)],
        [example(pairs=((1, 0),))],
        [example(margins=(1.0,))],
    ]
    prints = [examples_fingerprint(one) for one in ([example()], *others)]
    assert len(set(prints)) == len(prints)
    assert examples_fingerprint([example()]) == prints[0]


def test_prompts_that_differ_in_anything_have_another_fingerprint():
    def prompt(**changes):
        plain = {"number": 1, "ids": np.array([3, 4], np.int32), "text": "a b", "columns": {"answer": 3, "of": None}}
        return Prompt(**(plain | changes))

    others = [
        {"number": 2},
        {"ids": np.array([3, 5], np.int32)},
        {"text": "a  b"},
        {"text": ({"role": "user", "content": "a b"},)},
        {"columns": {"answer": 4, "of": None}},
        {"columns": {"answer": "3", "of": None}},
        {"columns": {"answer": 3}},
        {"columns": {"answer": b"3", "of": None}},
    ]
    prints = [prompts_fingerprint([prompt(**changes)]) for changes in ({}, *others)]
    assert len(set(prints)) == len(prints)
    assert prompts_fingerprint([prompt(columns={"of": None, "answer": 3})]) == prints[0]


@pytest.mark.parametrize("method", METHODS)
def test_settings_come_back_from_json(method):
    plain = configure(method, model="a model", data="some data", reward="somewhere:something")
    changed = replace(
        plain,
        adapter=replace(plain.adapter, lora_rank=4, lora_alpha=3.0),
        training=replace(
            plain.training, eval_data="other data", patience=None if method == "ppo" else 3, checkpoint_every="10m", seed=7
        ),
    )
    for configuration in (plain, changed):
        assert AlignConfiguration.from_dict(json.loads(json.dumps(configuration.as_dict()))) == configuration


@pytest.mark.parametrize("method", METHODS)
def test_a_setting_that_is_unknown_missing_or_of_another_type_is_named(method):
    whole = configure(method, model="a model", data="some data", reward="somewhere:something").as_dict()
    with pytest.raises(UsageError, match="did you mean learning_rate"):
        AlignConfiguration.from_dict(whole | {"learning_rat": 1.0})
    with pytest.raises(UsageError, match="value_clip"):
        AlignConfiguration.from_dict(configure("sft").as_dict() | {"value_clip_range": 1.0})
    for name in whole:
        without = {k: v for k, v in whole.items() if k != name}
        if name in ADDED_LATER:
            assert AlignConfiguration.from_dict(without).as_dict() == without | {name: ADDED_LATER[name]}
        else:
            with pytest.raises(UsageError, match=name):
                AlignConfiguration.from_dict(without)
        with pytest.raises(UsageError, match=name):
            AlignConfiguration.from_dict(whole | {name: {"a": 1}})


def test_every_field_of_training_is_a_setting():
    assert {field.name for field in fields(TrainingConfiguration)} <= configure("sft").as_dict().keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_start_is_the_model_it_was_kept_of(family, tmp_path):
    save_language_model(tmp_path / "model", family)
    tokenizer = load_tokenizer(str(tmp_path / "model"))
    model = load_policy(ModelConfiguration(str(tmp_path / "model")), tokenizer)
    keep_start(tmp_path, model, tokenizer)
    folder = verified_start(tmp_path, start_checksum(tmp_path))
    again = load_policy(ModelConfiguration(str(folder)), load_tokenizer(str(folder)))
    assert weights_fingerprint(again) == weights_fingerprint(model)
    one, other = dict(model.named_parameters()), dict(again.named_parameters())
    assert one.keys() == other.keys()
    assert all(torch.equal(p, other[name]) for name, p in one.items())


@pytest.mark.parametrize("make", [word_level, gpt2_like, qwen_like, llama_like])
def test_a_start_has_the_tokenizer_it_was_kept_of(make, tmp_path):
    make().save_pretrained(tmp_path / "first")
    tokenizer = load_tokenizer(str(tmp_path / "first"))
    save_language_model(tmp_path / "model")
    model = load_policy(ModelConfiguration(str(tmp_path / "model")), word_level())
    keep_start(tmp_path, model, tokenizer)
    again = load_tokenizer(str(tmp_path / "start"))
    assert content_of(again) == content_of(tokenizer)
    assert again.special_tokens_map == tokenizer.special_tokens_map
    assert template_of(again) == template_of(tokenizer)


def test_a_byte_anywhere_in_a_start_is_noticed(tmp_path):
    save_language_model(tmp_path / "model")
    tokenizer = load_tokenizer(str(tmp_path / "model"))
    keep_start(tmp_path, load_policy(ModelConfiguration(str(tmp_path / "model")), tokenizer), tokenizer)
    checksum, rng = start_checksum(tmp_path), np.random.default_rng(0)
    paths = [path for path in (tmp_path / "start").rglob("*") if path.is_file()]
    assert len(paths) >= 4
    for path in paths:
        whole = path.read_bytes()
        for place in rng.integers(0, len(whole), 8):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << rng.integers(8))]) + whole[place + 1 :])
            with pytest.raises(UsageError, match="start"):
                verified_start(tmp_path, checksum)
        path.write_bytes(whole)
    assert verified_start(tmp_path, checksum) == tmp_path / "start"
