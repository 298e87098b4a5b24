"""Weights of half the bits, and steps that they round away; the oracle is the addition itself."""

from __future__ import annotations

import re

import pytest
import torch

from surefoot.alignment.learning.rounding import rounded_away
from surefoot.alignment.training import align
from tests.durability.alignment.runs import material, settings

torch.set_num_threads(1)


def weights(deviation, dtype=torch.bfloat16, count=20_000):
    values = deviation * torch.randn(count, generator=torch.Generator().manual_seed(0))
    return torch.nn.Parameter(values.to(dtype))


@pytest.mark.parametrize("deviation", [1e-3, 0.02, 0.3, 50.0])
@pytest.mark.parametrize("learning_rate", [1e-6, 1e-5, 1e-4, 1e-3])
def test_the_share_is_that_of_the_weights_that_such_steps_leave(deviation, learning_rate):
    weight = weights(deviation)
    stays = float(((weight + learning_rate == weight) & (weight - learning_rate == weight)).float().mean())
    warning = rounded_away([("w", weight)], learning_rate=learning_rate)
    assert (warning is not None) == (stays > 0.5)
    if warning is not None:
        assert int(re.search(r"in (\d+)% of", warning)[1]) / 100 == pytest.approx(stays, abs=0.02)
        enough = float(re.search(r"learning-rate of (\S+) or more", warning)[1])
        assert rounded_away([("w", weight)], learning_rate=enough) is None
        assert rounded_away([("w", weight)], learning_rate=enough / 4) is not None


def test_other_weights_lose_nothing_and_zeros_can_move():
    assert rounded_away([("w", weights(0.3, torch.float32))], learning_rate=1e-9) is None
    assert rounded_away([("w", torch.nn.Parameter(torch.zeros(9, dtype=torch.bfloat16)))], learning_rate=1e-9) is None
    mixed = [("w", weights(0.3)), ("v", weights(0.3, torch.float32, 30_000))]
    assert rounded_away(mixed, learning_rate=1e-6) is None


@pytest.mark.parametrize("method", ["sft", "reward", "dpo", "ppo"])
def test_a_run_says_that_its_steps_are_rounded_away(method, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    material(tmp_path)
    choices = {"training__epochs": 1, "training__learning_rate": 1e-6, "training__checkpoint_every": None}

    def said(**more):
        out = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        align(settings(method, tmp_path, out, **(choices | more)), quiet=True)
        return capsys.readouterr().err

    half = {"model__precision": "bfloat16"}
    warned = said(**half)
    assert "--precision bfloat16 rounds steps of --learning-rate 1e-06 away" in warned
    assert ("critic: --precision" in warned) == (method == "ppo")
    assert "rounds steps" not in said()
    assert "rounds steps" not in said(**half, training__learning_rate=0.01)
    assert "rounds steps" not in said(**half, adapter__lora_rank=2)
