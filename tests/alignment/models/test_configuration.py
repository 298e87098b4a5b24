"""What can be chosen about a model, and what is refused."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from surefoot.alignment.models.configuration import AdapterConfiguration, ModelConfiguration
from surefoot.alignment.models.precision import autocast_dtype, device_of, weights_dtype
from surefoot.errors import UsageError


def test_configurations_need_no_engine():
    code = "import sys, surefoot.alignment.models.configuration; print({'torch', 'transformers', 'peft'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_alpha_is_twice_the_rank_unless_given():
    assert AdapterConfiguration(lora_rank=8).alpha == 16
    assert AdapterConfiguration(lora_rank=8, lora_alpha=3).alpha == 3


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"lora_rank": -1}, "--lora-rank must be at least 1"),
        ({"lora_rank": 2, "lora_alpha": 0.0}, "--lora-alpha must be positive"),
        ({"lora_rank": 2, "lora_alpha": float("inf")}, "--lora-alpha must be positive and finite"),
        ({"lora_rank": 2, "lora_dropout": 1.0}, "--lora-dropout must be at least 0 and less than 1"),
        ({"lora_rank": 2, "lora_targets": "q_proj,,v_proj"}, "has an empty name"),
        ({"lora_alpha": 2.0}, "--lora-alpha would do nothing: with --lora-rank 0 there is no adapter"),
        ({"lora_dropout": 0.1}, "--lora-dropout would do nothing"),
        ({"lora_targets": "q_proj"}, "--lora-targets would do nothing"),
    ],
)
def test_adapters_that_make_no_sense_are_refused(options, sentence):
    with pytest.raises(UsageError, match=sentence):
        AdapterConfiguration(**options)


def test_without_a_rank_all_other_options_are_idle_and_with_one_none_is():
    assert set(AdapterConfiguration().idle_options()) == {"lora_alpha", "lora_dropout", "lora_targets"}
    assert AdapterConfiguration(lora_rank=1).idle_options() == {}


def test_an_empty_model_is_refused():
    with pytest.raises(UsageError, match="--model is empty"):
        ModelConfiguration(" ")


@pytest.mark.parametrize(
    ("gpu", "device", "precision", "expected"),
    [
        (False, "auto", "auto", ("cpu", torch.float32, None)),
        (False, "cpu", "bfloat16", ("cpu", torch.bfloat16, None)),
        (True, "auto", "auto", ("cuda", torch.float32, torch.bfloat16)),
        (True, "cuda", "float32", ("cuda", torch.float32, None)),
        (True, "cuda", "bfloat16", ("cuda", torch.bfloat16, None)),
        (True, "cpu", "auto", ("cpu", torch.float32, None)),
    ],
)
def test_where_and_in_what_precision_a_model_is_computed(monkeypatch, gpu, device, precision, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    configuration = ModelConfiguration("x", device=device, precision=precision)
    assert (device_of(configuration).type, weights_dtype(configuration), autocast_dtype(configuration)) == expected


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="--device cuda: PyTorch sees no GPU"):
        device_of(ModelConfiguration("x", device="cuda"))
