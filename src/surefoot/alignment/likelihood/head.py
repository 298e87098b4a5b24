"""Log-probabilities of chosen tokens, from hidden states: the vocabulary projection, only where it is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch.autograd.function import once_differentiable

KEEP_BYTES = 512 * 2**20
"""Up to this size, the probabilities of all scored rows are kept between forward and backward; above it they are computed twice."""
CHUNK_BYTES = 64 * 2**20
"""What is computed twice is computed in chunks of about this size."""
BLOCK_BYTES = 2**20
"""Entropies are computed in blocks of about this size, which stay in a core's cache between the steps."""
TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, eq=False)
class Excluded:
    """Tokens that cannot be drawn: their logits count as −∞."""

    rows: Int[torch.Tensor, " E"]
    """In these, increasing,"""
    tokens: Int[torch.Tensor, " M"]
    """these tokens,"""
    everywhere: Int[torch.Tensor, " W"] | None = None
    """and in all rows these."""

    def fill(self, x: torch.Tensor, begin: int, value: float) -> None:
        """Write a value there; x are the rows from ``begin`` on."""
        rows = self.rows[(self.rows >= begin) & (self.rows < begin + x.shape[0])] - begin
        x[rows[:, None], self.tokens] = value
        if self.everywhere is not None:
            x.index_fill_(1, self.everywhere, value)


def token_log_probabilities(
    *,
    hidden: Float[torch.Tensor, "R D"],
    weight: Float[torch.Tensor, "V D"],
    bias: Float[torch.Tensor, " V"] | None,
    row_of: Int[torch.Tensor, " S"],
    target: Int[torch.Tensor, " S"],
    excluded: Excluded | None = None,
    keep_bytes: int = KEEP_BYTES,
    chunk_bytes: int = CHUNK_BYTES,
) -> Float[torch.Tensor, " S"]:
    """Log softmax(W h + b) at one token each: log p_s = z_{r(s),y_s} − log Σ_v exp z_{r(s),v}, with z_r = W h_r + b.

    Reductions over the vocabulary are float32 whatever the weights are. The gradient of log p_s with respect to z_r is the
    one-hot of y_s minus the softmax, so the softmax is all that the backward pass needs: it is kept where it is small, and
    computed again in chunks of rows where it is large. Either way no second array of the logits' size is made.

    Args:
        hidden: h, one row per predicting token.
        weight: W, the vocabulary projection.
        bias: b, or None.
        row_of: r(s), which row predicts token s; not decreasing. Several tokens may share a row.
        target: y_s.
        excluded: pairs of a row and a token for which z is −∞; they get no gradient.
        keep_bytes: the largest softmax to keep.
        chunk_bytes: the size of a chunk where it is not kept.

    Returns:
        log p_s in nats, float32.
    """
    sizes = {"keep_bytes": keep_bytes, "chunk_bytes": chunk_bytes}
    return _apply(hidden, weight, bias, row_of, target, excluded, entropies=False, **sizes)[0]


def token_log_probabilities_and_entropies(
    *,
    hidden: Float[torch.Tensor, "R D"],
    weight: Float[torch.Tensor, "V D"],
    bias: Float[torch.Tensor, " V"] | None,
    row_of: Int[torch.Tensor, " S"],
    target: Int[torch.Tensor, " S"],
    excluded: Excluded | None = None,
    keep_bytes: int = KEEP_BYTES,
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[Float[torch.Tensor, " S"], Float[torch.Tensor, " R"]]:
    """:func:`token_log_probabilities`, and each row's entropy H_r = −Σ_v p_{r,v} log p_{r,v} with p_r = softmax(z_r).

    ∂H/∂z_v = −p_v (log p_v + H), which again the softmax alone determines. An excluded token adds nothing to H.

    Args:
        hidden: as there, and so are the others.

    Returns:
        log p_s and H_r, both in nats and float32.
    """
    sizes = {"keep_bytes": keep_bytes, "chunk_bytes": chunk_bytes}
    return _apply(hidden, weight, bias, row_of, target, excluded, entropies=True, **sizes)


def _apply(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    row_of: torch.Tensor,
    target: torch.Tensor,
    excluded: Excluded | None,
    *,
    entropies: bool,
    keep_bytes: int,
    chunk_bytes: int,
) -> Any:
    vocabulary = weight.shape[0]
    size = hidden.shape[0] * vocabulary * 4
    needed = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (hidden, weight, bias))
    keep = needed and size <= keep_bytes
    rows = hidden.shape[0] if keep else max(1, chunk_bytes // (4 * vocabulary))
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    return _TokenLogProbabilities.apply(hidden, weight, bias, row_of, target, excluded, entropies, keep, rows, dtype)


class _TokenLogProbabilities(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        row_of: torch.Tensor,
        target: torch.Tensor,
        excluded: Excluded | None,
        with_entropies: bool,
        keep: bool,
        rows: int,
        dtype: torch.dtype,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        result = torch.empty(len(target), dtype=torch.float32, device=hidden.device)
        probabilities = None
        normalizers = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
        entropies = torch.empty_like(normalizers) if with_entropies else None
        projection = _Projection(hidden, weight, bias, dtype)
        for begin, end, first, last in _chunks(row_of, hidden.shape[0], rows):
            logits = projection.logits(begin, end)
            if excluded is not None:
                excluded.fill(logits, begin, -torch.inf)
            chosen = logits[row_of[first:last] - begin, target[first:last]]
            largest = logits.amax(dim=1)
            softmax = torch.softmax(logits, dim=1, out=logits)
            # It is 1/Σ exp(z − max) where z is largest; that is five times faster than another pass for the logarithm of the sum.
            normalizer = largest - softmax.amax(dim=1).log()
            if keep:
                probabilities = softmax
            if entropies is not None:
                _write_entropies(softmax, entropies[begin:end])
            normalizers[begin:end] = normalizer
            result[first:last] = chosen - normalizer[row_of[first:last] - begin]
        ctx.rows, ctx.dtype, ctx.excluded = rows, dtype, excluded
        kept = (bias, entropies, probabilities)
        ctx.present = [x is not None for x in kept]
        ctx.save_for_backward(hidden, weight, row_of, target, normalizers, *(x for x in kept if x is not None))
        ctx.set_materialize_grads(False)
        return result, entropies

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, of_tokens: torch.Tensor | None, of_entropies: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, row_of, target, normalizers, *rest = ctx.saved_tensors
        bias, entropies, probabilities = (rest.pop(0) if there else None for there in ctx.present)
        projection = _Projection(hidden, weight, bias, ctx.dtype)
        per_row = torch.zeros_like(normalizers)
        if of_tokens is not None:
            per_row.index_add_(0, row_of, of_tokens.float())
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        of_hidden = torch.empty_like(hidden) if wants_hidden else None
        of_weight = of_bias = None
        for begin, end, first, last in _chunks(row_of, hidden.shape[0], ctx.rows):
            # A softmax that was kept is used up: nothing else reads it after this.
            slope = probabilities
            if slope is None:
                slope = projection.logits(begin, end).sub_(normalizers[begin:end, None]).exp_()
                if ctx.excluded is not None:
                    ctx.excluded.fill(slope, begin, 0)
            if of_entropies is None or entropies is None:
                slope.mul_(-per_row[begin:end, None])
            else:
                _weigh(slope, per_row[begin:end], of_entropies[begin:end].float(), entropies[begin:end])
            if of_tokens is not None:
                place = (row_of[first:last] - begin, target[first:last])
                slope.index_put_(place, of_tokens[first:last].float(), accumulate=True)
                if ctx.excluded is not None:
                    ctx.excluded.fill(slope, begin, 0)  # a target may be among them; its log-probability is −∞ wherever z is
            if wants_bias:
                part = slope.sum(dim=0)
                of_bias = part if of_bias is None else of_bias.add_(part)
            slope = slope.to(ctx.dtype)
            if of_hidden is not None:
                of_hidden[begin:end] = projection.to_hidden(slope)
            if wants_weight:
                part = projection.to_weight(slope, begin, end)  # float32, or chunks would add up rounding
                of_weight = part if of_weight is None else of_weight.add_(part)
        return (
            of_hidden,
            None if of_weight is None else of_weight.to(weight.dtype),
            None if of_bias is None or bias is None else of_bias.to(bias.dtype),
            *[None] * 7,
        )


def _write_entropies(probabilities: torch.Tensor, entropies: torch.Tensor) -> None:
    for rows in _blocks(probabilities):
        p = probabilities[rows]
        torch.sum(p.clamp_min(TINY).log_().mul_(p), dim=1, out=entropies[rows]).neg_()


def _weigh(probabilities: torch.Tensor, per_row: torch.Tensor, gradient: torch.Tensor, entropies: torch.Tensor) -> None:
    """Overwrite p with −p (c + g (log p + H)), c the row's gradient of log-probabilities and g that of its entropy."""
    constant = per_row + gradient * entropies
    for rows in _blocks(probabilities):
        p = probabilities[rows]
        p.mul_(p.clamp_min(TINY).log_().mul_(gradient[rows, None]).add_(constant[rows, None]).neg_())


def _blocks(x: torch.Tensor) -> list[slice]:
    """Rows, a few at a time."""
    step = max(1, BLOCK_BYTES // (4 * x.shape[1]))
    return [slice(begin, begin + step) for begin in range(0, x.shape[0], step)]


class _Projection:
    """z = W h + b and its transposes, with products in one dtype whatever autocast is around, and results of the logits' size and
    of the weight's in float32.
    """

    def __init__(self, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        self._hidden, self._weight, self._bias = hidden.to(dtype), weight.to(dtype), bias

    def logits(self, begin: int, end: int) -> torch.Tensor:
        with torch.autocast(self._hidden.device.type, enabled=False):
            logits = (self._hidden[begin:end] @ self._weight.t()).float()
        return logits if self._bias is None else logits.add_(self._bias.float())

    def to_hidden(self, slope: torch.Tensor) -> torch.Tensor:
        return slope @ self._weight

    def to_weight(self, slope: torch.Tensor, begin: int, end: int) -> torch.Tensor:
        return (slope.t() @ self._hidden[begin:end]).float()


def _chunks(row_of: torch.Tensor, count: int, rows: int) -> list[tuple[int, int, int, int]]:
    """(first row, row behind the last, first token, token behind the last) of every chunk."""
    begins = list(range(0, count, rows))
    if len(begins) == 1:
        return [(0, count, 0, len(row_of))]
    edges = torch.searchsorted(row_of, torch.tensor([*begins, count], device=row_of.device)).tolist()
    return [(begin, min(begin + rows, count), edges[i], edges[i + 1]) for i, begin in enumerate(begins)]
