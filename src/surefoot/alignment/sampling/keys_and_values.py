"""The keys and values of prompts and of the answers that grow behind them, and the attention of one more token each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int

from surefoot.alignment.likelihood.attention import shared_prompt_attention, side_by_side
from surefoot.alignment.likelihood.packing import Packed

SLOTS = 64
"""Tokens of an answer that there is room for at first; the room grows by as much as there was where it is not enough."""


@dataclass
class Layer:
    """One layer's keys and values, [sequences · heads, slots, d] each."""

    heads: int
    keys: torch.Tensor
    """Of the answers; where a prompt has one answer, the prompt's stand in front of it."""
    values: torch.Tensor
    prompt_keys: torch.Tensor
    """Of the prompts, where several answers share them."""
    prompt_values: torch.Tensor


class SharedKeysAndValues:
    """Keys and values, layer by layer: each prompt's once, however many answers it has, and each answer's own.

    The first forward pass is that of the prompts alone; every other one feeds a token of each answer, which attends to its prompt
    and to its answer so far, in one softmax. A prompt's keys are read once for all of its answers: their queries are the rows of
    one product. Layers are told apart by the order in which they ask.

    Args:
        prompts: the prompts, packed.
        answers: K, of each prompt.
        tokens: the most that an answer will feed.
        dtype: what attention is computed in, where autocast says so.
    """

    def __init__(self, prompts: Packed, *, answers: int, tokens: int, dtype: torch.dtype | None) -> None:
        spans = prompts.prompts
        self.longest = spans.longest + tokens
        self._packed, self._dtype = prompts, dtype
        self._layers: list[Layer] = []
        self._turn = 0
        self._prompts_are_fed = False
        self._shared = answers > 1
        self._filled = 0 if self._shared else spans.longest  # slots of an answer's keys
        self._most = self._filled + tokens
        self._room = min(self._most, self._filled + SLOTS)
        self._prompt_of = np.repeat(np.arange(spans.count), answers)
        self._padding: torch.Tensor | None = None
        if not spans.equal:
            slots = torch.arange(spans.longest, device=spans.device)
            self._padding = slots >= torch.from_numpy(spans.lengths).to(spans.device)[:, None]  # [B, P]
        self._seats = Seats(self._prompt_of, spans.device)

    def begin(self) -> None:
        """A forward pass begins that feeds one token of each answer."""
        self._prompts_are_fed, self._turn = True, 0
        if self._filled == self._room:
            self._room = min(self._most, 2 * self._room)
            for layer in self._layers:
                layer.keys, layer.values = (self._with_room(x, layer.heads) for x in (layer.keys, layer.values))
        self._filled += 1

    def attend(
        self, module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scaling: float | None
    ) -> torch.Tensor:
        """The next layer's turn; shapes as for :func:`shared_prompt_attention`."""
        if self._dtype is not None:
            query, key, value = (x.to(self._dtype) for x in (query, key, value))
        if not self._prompts_are_fed:
            self._layers.append(self._new_layer(key, value))
            return shared_prompt_attention(module, query, key, value, None, scaling=scaling, packed=self._packed)[0]
        layer = self._layers[self._turn]
        self._turn += 1
        size, last = query.shape[-1], self._filled - 1
        scale = size**-0.5 if scaling is None else scaling
        rows = query.shape[2] * layer.heads
        queries = query.transpose(1, 2).reshape(rows, -1, size)  # [n · heads of keys, heads of a group, d]
        keys, values = layer.keys[:rows, : self._filled], layer.values[:rows, : self._filled]
        keys[:, last] = key.transpose(1, 2).reshape(rows, size)
        values[:, last] = value.transpose(1, 2).reshape(rows, -1)
        scores = _scores(queries, keys, scale)
        if self._shared:
            of_prompt = self._scores_of_prompts(queries, layer, scale)
            weights = _softmax(torch.cat([of_prompt, scores], dim=-1))
            first = of_prompt.shape[-1]
            attended = torch.bmm(weights[:, :, first:], values).add_(self._values_of_prompts(weights[:, :, :first], layer))
        else:
            self._hide_padding(scores)
            attended = torch.bmm(_softmax(scores), values)
        return attended.view(1, query.shape[2], query.shape[1], -1)

    def keep(self, order: Int[np.ndarray, " m"]) -> None:
        """Keep only some answers: answer i is the one that was ``order[i]``."""
        for layer in self._layers:
            self._move(layer.keys[:, : self._filled], layer.heads, order)
            self._move(layer.values[:, : self._filled], layer.heads, order)
        self._prompt_of = self._prompt_of[order]
        prompts = order  # where each has one answer, it goes with it
        if self._shared:
            prompts = without_holes(np.isin(np.arange(self._seats.prompts), self._prompt_of))
            for layer in self._layers:
                self._move(layer.prompt_keys, layer.heads, prompts)
                self._move(layer.prompt_values, layer.heads, prompts)
            number = np.zeros(self._seats.prompts, dtype=np.int64)
            number[prompts] = np.arange(len(prompts))
            self._prompt_of = number[self._prompt_of]
            self._seats = Seats(self._prompt_of, self._seats.device)
        if self._padding is not None:
            self._padding = self._padding[torch.from_numpy(prompts).to(self._padding.device)]

    def _new_layer(self, key: torch.Tensor, value: torch.Tensor) -> Layer:
        prompts = self._packed.prompts
        of_prompts = [side_by_side(x[0].transpose(0, 1), prompts).flatten(0, 1) for x in (key, value)]  # [B · heads, P, d]
        rows = len(self._prompt_of) * key.shape[1]
        own = [x.new_empty(rows, self._room, x.shape[-1]) for x in of_prompts]
        if not self._shared:
            for mine, x in zip(own, of_prompts, strict=True):
                mine[:, : prompts.longest] = x
        return Layer(key.shape[1], *own, *(x.contiguous() for x in of_prompts))

    def _with_room(self, x: torch.Tensor, heads: int) -> torch.Tensor:
        rows = len(self._prompt_of) * heads
        roomier = x.new_empty(rows, self._room, x.shape[-1])
        roomier[:, : self._filled] = x[:rows, : self._filled]
        return roomier

    def _move(self, x: torch.Tensor, heads: int, order: np.ndarray) -> None:
        """Copy the sequences that change their place."""
        moved = np.flatnonzero(order != np.arange(len(order)))
        if len(moved) > 0:
            sequences = x.unflatten(0, (-1, heads))
            to, since = (torch.from_numpy(i).to(x.device) for i in (moved, order[moved]))
            sequences[to] = sequences[since]

    def _hide_padding(self, scores: torch.Tensor) -> None:
        """Set the scores of the slots behind a shorter prompt to −∞; scores: [sequences · …, …, prompt's slots first]."""
        if self._padding is not None:
            rows, slots = self._padding.shape
            scores.view(rows, -1, scores.shape[-1])[:, :, :slots].masked_fill_(self._padding[:, None], -torch.inf)

    def _scores_of_prompts(self, queries: torch.Tensor, layer: Layer, scale: float) -> torch.Tensor:
        """[n · heads, g, d] → [n · heads, g, P]."""
        seated = self._seats.take(queries, layer.heads)
        scores = _scores(seated, layer.prompt_keys[: len(seated)], scale)
        self._hide_padding(scores)
        return self._seats.leave(scores, layer.heads)

    def _values_of_prompts(self, weights: torch.Tensor, layer: Layer) -> torch.Tensor:
        """[n · heads, g, P] → [n · heads, g, d]."""
        seated = self._seats.take(weights, layer.heads)
        return self._seats.leave(torch.bmm(seated, layer.prompt_values[: len(seated)]), layer.heads)


class Seats:
    """Answers laid out by prompt: S seats each, S the most answers that a prompt has; empty ones repeat some answer.

    Args:
        prompt_of: which prompt each answer belongs to; each of them has one.
        device: where.
    """

    def __init__(self, prompt_of: Int[np.ndarray, " n"], device: torch.device) -> None:
        counts = np.bincount(prompt_of)
        self.device, self.prompts, self._each = device, len(counts), int(counts.max())
        order = np.argsort(prompt_of, kind="stable")
        rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        seat = np.empty_like(order)
        seat[order] = prompt_of[order] * self._each + rank
        answer = np.zeros(self.prompts * self._each, dtype=np.int64)
        answer[seat] = np.arange(len(seat))
        self._straight = len(seat) == len(answer) and bool((seat == np.arange(len(seat))).all())
        self._seat, self._answer = (torch.from_numpy(x).to(device) for x in (seat, answer))

    def take(self, x: torch.Tensor, heads: int) -> torch.Tensor:
        """[n · heads, g, m] → [B · heads, S · g, m]."""
        x = x.unflatten(0, (-1, heads))
        x = x if self._straight else x.index_select(0, self._answer)
        return x.unflatten(0, (self.prompts, self._each)).transpose(1, 2).flatten(2, 3).flatten(0, 1)

    def leave(self, x: torch.Tensor, heads: int) -> torch.Tensor:
        """[B · heads, S · g, m] → [n · heads, g, m]."""
        x = x.unflatten(0, (self.prompts, heads)).unflatten(2, (self._each, -1)).transpose(1, 2).flatten(0, 1)
        return (x if self._straight else x.index_select(0, self._seat)).flatten(0, 1)


def without_holes(alive: Bool[np.ndarray, " n"]) -> Int[np.ndarray, " m"]:
    """An order of those that are alive in which the last ones fill the holes, and all others stay where they are."""
    count = int(alive.sum())
    order = np.arange(count)
    order[~alive[:count]] = count + np.flatnonzero(alive[count:])
    return order


def _scores(queries: torch.Tensor, keys: torch.Tensor, scale: float) -> torch.Tensor:
    unread = queries.new_empty(1, 1, 1)
    return torch.baddbmm(unread, queries, keys.transpose(1, 2), beta=0, alpha=scale)


def _softmax(scores: torch.Tensor) -> torch.Tensor:
    """At least float32."""
    if scores.dtype in (torch.float32, torch.float64):
        return scores.softmax(dim=-1)
    return scores.softmax(dim=-1, dtype=torch.float32).to(scores.dtype)
