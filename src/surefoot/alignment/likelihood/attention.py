"""Attention over packed prompts and answers: every answer sees its own prompt and itself.

Registered with transformers under a name of its own, so that no model is patched: a model that asks the registry for its
attention takes part, whatever else its layers do. Without a packed layout among the keyword arguments it is ``sdpa``.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from surefoot.alignment.likelihood.packing import Packed, Spans

SHARED_ATTENTION = "surefoot_shared_prompt"


class KeysAndValues(Protocol):
    """Keys and values that are kept from one forward pass to the next, as sampling needs them."""

    longest: int
    """Tokens of the longest sequence that will be attended to."""

    def attend(
        self, module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scaling: float | None
    ) -> torch.Tensor:
        """The next layer's turn: keep its new keys and values, and attend to all that it has; shapes as for
        :func:`shared_prompt_attention`.
        """
        ...


def shared_prompt_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    packed: Packed | KeysAndValues | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """softmax(q kᵀ · scaling) v, over each token's own prompt and its own answer so far.

    Args:
        module: the layer that asks.
        query: [1, heads, T, d].
        key: [1, key–value heads, T, d].
        value: [1, key–value heads, T, d].
        attention_mask: not read where ``packed`` says who sees whom.
        dropout: probability of dropping an attention weight.
        scaling: 1/√d by default.
        packed: how the row of T tokens is laid out, or what keeps keys and values while answers grow token by token.
        options: what some models' attention wants besides; those that would change the result are refused.

    Returns:
        [1, T, heads, d], and no attention weights.

    Raises:
        NotImplementedError: the model wants a window, a bias or a cap that this attention does not have.
    """
    if packed is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options)
    window = options.get("sliding_window")
    if window is not None and packed.longest > window:
        raise NotImplementedError(f"a sliding window of {window} tokens, for sequences of up to {packed.longest}")
    if wanted := [name for name in ("softcap", "s_aux", "position_bias") if options.get(name) is not None]:
        raise NotImplementedError(f"attention with {' and '.join(wanted)}")
    if not isinstance(packed, Packed):
        return packed.attend(module, query, key, value, scaling=scaling), None
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))  # [T, heads, d]
    prompts, answers = packed.prompts, packed.completions
    settings = {"dropout_p": dropout, "scale": scaling, "enable_gqa": query.shape[1] != key.shape[1]}
    q, k, v = (side_by_side(x, prompts) for x in (query, key, value))  # [B, heads, P, d]
    of_prompts = _back(scaled_dot_product_attention(q, k, v, is_causal=True, **settings), prompts)
    if answers.total == 0:  # answers of one token each, all predicted by the prompts
        return of_prompts[None], None
    own_q, own_k, own_v = (side_by_side(x, answers) for x in (query, key, value))  # [N, heads, C, d]
    every_k, every_v = (_behind_prompts(x, own, packed) for x, own in ((k, own_k), (v, own_v)))
    if settings["enable_gqa"] and query.device.type != "cpu":
        # With a mask and grouped heads, a GPU has no kernel that does without the whole matrix of weights.
        every_k, every_v = (x.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for x in (every_k, every_v))
    attended = scaled_dot_product_attention(own_q, every_k, every_v, attn_mask=packed.mask, **settings)
    return torch.cat([of_prompts, _back(attended, answers)])[None], None


def side_by_side(tokens: torch.Tensor, spans: Spans) -> torch.Tensor:
    """[T, heads, d] → [sequences, heads, longest, d]."""
    own = tokens[spans.start : spans.start + spans.total]
    if not spans.equal:
        own = _Gather.apply(own, spans.side_by_side, spans.back)
    return own.unflatten(0, (spans.count, spans.longest)).transpose(1, 2)


def _back(sequences: torch.Tensor, spans: Spans) -> torch.Tensor:
    """[sequences, heads, longest, d] → [tokens, heads, d], padding left behind."""
    flat = sequences.transpose(1, 2).flatten(0, 1)
    return flat if spans.equal else _Ungather.apply(flat, spans.back)


def _behind_prompts(prompts: torch.Tensor, own: torch.Tensor, packed: Packed) -> torch.Tensor:
    """What an answer attends to: [N, heads, P + C, d]."""
    if (answers := packed.answers_per_prompt) is None:
        return torch.cat([prompts.index_select(0, packed.prompt_index), own], dim=2)
    # Where all prompts have as many answers, repeating them is a view, and its gradient a plain sum.
    repeated = prompts[:, None].expand(-1, answers, -1, -1, -1)
    return torch.cat([repeated, own.unflatten(0, (-1, answers))], dim=3).flatten(0, 1)


class _Gather(torch.autograd.Function):
    """Rows by index, where every row stands in exactly one slot that is read: the gradient gathers too, and adds up nothing.

    The slots that only fill up get no gradient: no query that counts ever sees them.
    """

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, slots: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(back)
        return rows.index_select(0, slots)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (back,) = ctx.saved_tensors
        return gradient.index_select(0, back), None, None


class _Ungather(torch.autograd.Function):
    """The slots that are read, each once: the gradient of the others is zero."""

    @staticmethod
    def forward(ctx: Any, slots: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(back)
        ctx.count = slots.shape[0]
        return slots.index_select(0, back)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (back,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.count, *gradient.shape[1:]).index_copy_(0, back, gradient), None


AttentionInterface.register(SHARED_ATTENTION, shared_prompt_attention)
AttentionMaskInterface.register(SHARED_ATTENTION, sdpa_mask)
