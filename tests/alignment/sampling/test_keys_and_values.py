"""Attention of newest tokens over kept keys and values; the oracle attends to every answer by itself."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from surefoot.alignment.likelihood.packing import pack
from surefoot.alignment.sampling import keys_and_values
from surefoot.alignment.sampling.keys_and_values import SharedKeysAndValues, without_holes

HEADS, GROUPS, SIZE, LAYERS = 2, 3, 4, 2


@given(alive=st.lists(st.booleans(), min_size=1, max_size=20))
def test_the_last_ones_fill_the_holes(alive):
    alive = np.array(alive)
    order = without_holes(alive)
    assert sorted(order) == np.flatnonzero(alive).tolist()
    stay = order == np.arange(len(order))
    assert stay.sum() == alive[: len(order)].sum()
    assert (order[~stay] >= len(order)).all()


def naive(query, keys, values, scale):
    """One answer: query [heads · groups, d], keys and values [heads, tokens, d]."""
    keys, values = (x.repeat_interleave(GROUPS, dim=0) for x in (keys, values))
    weights = (torch.einsum("hd,hld->hl", query, keys) * scale).softmax(dim=-1)
    return torch.einsum("hl,hld->hd", weights, values)


@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("lengths", [(3, 3), (2, 5, 1)], ids=["even", "uneven"])
@pytest.mark.parametrize("answers", [1, 3])
def test_each_answer_attends_to_its_prompt_and_itself(answers, lengths, scaling, monkeypatch):
    monkeypatch.setattr(keys_and_values, "SLOTS", 2)
    generator = torch.Generator().manual_seed(0)

    def draw(tokens):
        heads = (HEADS * GROUPS, HEADS, HEADS)
        return [torch.randn(1, count, tokens, SIZE, generator=generator, dtype=torch.float64) for count in heads]

    words = [np.arange(n) for n in lengths]
    packed = pack([(prompt, [prompt[:1]]) for prompt in words], device=torch.device("cpu"), feed_last=False)
    kept = SharedKeysAndValues(packed, answers=answers, tokens=9, dtype=None)
    assert kept.longest == max(lengths) + 9
    edges = np.cumsum([0, *lengths])
    history = {}  # layer and answer → keys and values
    scale = SIZE**-0.5 if scaling is None else scaling
    for layer in range(LAYERS):
        query, key, value = draw(sum(lengths))
        attended = kept.attend(torch.nn.Module(), query, key, value, scaling=scaling)
        for b, (begin, end) in enumerate(pairwise(edges)):
            last = naive(query[0, :, end - 1], key[0, :, begin:end], value[0, :, begin:end], scale)
            torch.testing.assert_close(attended[0, end - 1], last)
            for k in range(answers):
                history[layer, b * answers + k] = [x[0, :, begin:end] for x in (key, value)]
    rows = list(range(len(lengths) * answers))
    dropped = iter([[], [1], [], [0, 2] if answers > 1 else [0], [], [3, 4, 5] if answers > 1 else [], []])
    for _ in range(7):
        kept.begin()
        for layer in range(LAYERS):
            query, key, value = draw(len(rows))
            attended = kept.attend(torch.nn.Module(), query, key, value, scaling=scaling)
            assert attended.shape == (1, len(rows), HEADS * GROUPS, SIZE)
            for place, row in enumerate(rows):
                mine = history[layer, row]
                mine[:] = [torch.cat([x, new[0, :, place, None]], dim=1) for x, new in zip(mine, (key, value), strict=True)]
                torch.testing.assert_close(attended[0, place], naive(query[0, :, place], *mine, scale))
        gone = next(dropped)
        order = without_holes(~np.isin(rows, gone))
        if len(order) == 0:
            break
        if len(order) < len(rows):
            kept.keep(order)
            rows = [rows[i] for i in order]
