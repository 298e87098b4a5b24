"""log π(y|x) of answers to prompts, for fine-tuning, DPO and RLHF alike, and the hidden states that reward models score."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from transformers import PreTrainedModel

from surefoot.alignment.likelihood.attention import SHARED_ATTENTION
from surefoot.alignment.likelihood.head import token_log_probabilities
from surefoot.alignment.likelihood.packing import Group, Packed, Spans, pack
from surefoot.alignment.models.counting import backward_flops, forward_flops
from surefoot.alignment.models.loading import hidden_states_and_head
from surefoot.errors import UsageError

TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-4}
LOW_PRECISION_TOLERANCE = 5e-2
"""Largest difference between two ways to compute the same, relative to the largest value, that rounding of the weights' type
explains."""
CHANGED_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Settings under which a model does more to its logits than one linear layer; where weights have half the bits, comparing alone might
miss it."""
HEAD_TOKENS = 4
"""Tokens of a prompt, and of an answer, on which the head is compared."""


@dataclass
class Work:
    """Floating-point operations that have been needed: what was computed twice to save memory counts once."""

    operations: float = 0.0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()  # two halves of a batch may be computed at once

    def add(self, operations: float) -> None:
        """Count some more."""
        with self._lock:
            self.operations += operations


@dataclass(frozen=True, eq=False)
class CompletionLogProbabilities:
    """log π(y_t | x, y_<t) of every completion token of N answers."""

    tokens: Float[torch.Tensor, " S"]
    """In nats, float32."""
    completion_of: Int[torch.Tensor, " S"]
    """Which answer each token belongs to. Within an answer the order is that of its tokens."""
    count: int
    """N."""

    def sums(self) -> Float[torch.Tensor, " N"]:
        """Log π(y|x) = Σ_t log π(y_t | x, y_<t)."""
        return self.tokens.new_zeros(self.count).index_add(0, self.completion_of, self.tokens)


class Likelihood:
    """A model's view of prompts and answers.

    Shared, the batch is one row of tokens without padding: each prompt once, its answers behind it, every answer attending to
    its own prompt and itself (:mod:`surefoot.alignment.likelihood.attention`). Where a model cannot do that exactly, which
    :meth:`check` finds out, each answer is run behind its own copy of the prompt, in a padded batch and with the model's own
    attention. Either way only the rows that predict a completion token reach the vocabulary projection.

    Args:
        model: causal, or for sequence classification; with or without an adapter.
        share_prompts: False runs separately without asking.
        autocast: dtype of the matrix products; None for that of the weights.
    """

    def __init__(self, model: PreTrainedModel, *, share_prompts: bool = True, autocast: torch.dtype | None = None) -> None:
        self.model, self._autocast = model, autocast
        self.trunk, self.head = hidden_states_and_head(model)
        self._own_attention = self.trunk.config._attn_implementation
        self._plain_head = True
        self.shared = False
        self.work = Work()
        if share_prompts:
            self._share(True)

    def of(self, model: PreTrainedModel) -> Likelihood:
        """The same way of computing, for another model of the same architecture; the work of both is counted together."""
        other = Likelihood(model, share_prompts=self.shared, autocast=self._autocast)
        other._plain_head, other._own_attention, other.work = self._plain_head, self._own_attention, self.work
        return other

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.head.weight.device

    @property
    def positions_depend_on_batch(self) -> bool:
        """Whether rotary frequencies are chosen, and kept in the model, by the longest sequence that is computed together."""
        rotary = getattr(self.trunk.config.get_text_config(), "rope_parameters", None) or {}
        return rotary.get("rope_type") in ("longrope", "dynamic")

    def check(self, groups: Sequence[Group]) -> str | None:
        """Compare with what the model itself computes, and stop sharing prompts where that differs.

        Args:
            groups: prompts with answers as long as any that will come: a sliding window shows only beyond its length.

        Returns:
            a sentence on what is computed the slow way and why, or None where nothing is. Compared is in the precision of the
            weights, without autocast.

        Raises:
            UsageError: a reward model whose score is not a linear layer on the last token's hidden state.
        """
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                reason = self._why_not_shared(groups) if self.shared else None
                if reason is not None:
                    self._share(False)
                self._plain_head = self._head_is_all(groups)
        finally:
            self.model.train(was_training)
        kind = self.trunk.config.model_type
        if not self._plain_head:
            self._share(False)
            return f"whole logits are computed for every answer, which is slow: {kind} does more to them than one linear layer"
        if reason is not None:
            return f"prompts are computed once per answer, which is slower: {kind} cannot share them exactly ({reason})"
        return None

    def completions(self, groups: Sequence[Group]) -> CompletionLogProbabilities:
        """Log π of every completion token, given the prompt and the answer so far."""
        packed = pack(groups, device=self.device, feed_last=False)
        self._count(packed, len(packed.scored_rows))
        with self._precision():
            if self._plain_head:
                hidden = self._hidden(packed)[packed.scored_rows]
                tokens = token_log_probabilities(
                    hidden=hidden, weight=self.head.weight, bias=self.head.bias, row_of=packed.row_of, target=packed.target
                )
            else:
                logits = self._separately(self.model, packed).logits.flatten(0, 1)
                rows = self._slots(packed)[packed.scored_rows][packed.row_of]
                tokens = logits[rows].float().log_softmax(dim=-1).gather(1, packed.target[:, None])[:, 0]
        return CompletionLogProbabilities(tokens, packed.completion_of, packed.completions.count)

    def scores(self, groups: Sequence[Group]) -> Float[torch.Tensor, " N"]:
        """r(x, y): the reward head at each answer's last token, float32."""
        packed = pack(groups, device=self.device, feed_last=True)
        self._count(packed, len(packed.last))
        with self._precision():
            hidden = self._hidden(packed)[packed.last]
        # Scores near 10 would be rounded to steps of 0.06 in half the bits.
        return torch.nn.functional.linear(hidden.float(), self.head.weight.float())[:, 0]

    def _precision(self) -> AbstractContextManager[object]:
        return nullcontext() if self._autocast is None else torch.autocast(self.device.type, self._autocast)

    def _share(self, shared: bool) -> None:
        self.shared = shared
        self.trunk.set_attn_implementation(SHARED_ATTENTION if shared else self._own_attention)

    def _count(self, packed: Packed, scored: int) -> None:
        """Add to the work what the batch costs: separately, every answer with its own copy of the prompt."""
        lengths = _whole_lengths(packed).astype(np.int64)
        tokens, pairs = packed.input_ids.shape[1], packed.attention_pairs
        if not self.shared:
            tokens, pairs = int(lengths.sum()), int((lengths * (lengths + 1) // 2).sum())
        counts = {"tokens": tokens, "scored": scored, "attention_pairs": pairs}
        self.work.add(forward_flops(self.model, **counts))
        if torch.is_grad_enabled():
            self.work.add(backward_flops(self.model, **counts))

    def release(self) -> None:
        """Give the model its own attention back."""
        self._share(False)

    def _hidden(self, packed: Packed) -> Float[torch.Tensor, "T D"]:
        """The last hidden state of every token of the packed row, however it is computed."""
        if not self.shared:
            return self._separately(self.trunk, packed).last_hidden_state.flatten(0, 1)[self._slots(packed)]
        # A mask of four dimensions is taken as it is: none of the model's own is built, and the attention reads the layout.
        no_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.device)
        output = self.trunk(
            input_ids=packed.input_ids, position_ids=packed.position_ids, attention_mask=no_mask, use_cache=False, packed=packed
        )
        return output.last_hidden_state[0]

    def _separately(self, module: torch.nn.Module, packed: Packed) -> Any:
        """The output for a batch [N, L], each answer behind its own copy of the prompt, padded on the right."""
        lengths = _whole_lengths(packed)
        slot = np.arange(int(lengths.max()))[None, :]
        of_prompt = packed.prompts.lengths[packed.prompt_of][:, None]
        in_prompt = _starts(packed.prompts)[packed.prompt_of][:, None] + slot
        token = np.where(slot < of_prompt, in_prompt, _starts(packed.completions)[:, None] + slot - of_prompt)
        real = slot < lengths[:, None]
        source, mask = (torch.from_numpy(x).to(self.device) for x in (np.where(real, token, 0), real.astype(np.int64)))
        return module(input_ids=packed.input_ids[0][source], attention_mask=mask, use_cache=False)

    def _slots(self, packed: Packed) -> Int[torch.Tensor, " T"]:
        """For every token of the packed row, its slot in the padded batch; a prompt's in its first answer's row."""
        longest, of_prompt = int(_whole_lengths(packed).max()), packed.prompts.lengths
        first = np.searchsorted(packed.prompt_of, np.arange(packed.prompts.count))
        of_prompts = [row * longest + np.arange(n) for row, n in zip(first, of_prompt, strict=True)]
        before = of_prompt[packed.prompt_of]
        of_answers = [
            row * longest + p + np.arange(n) for row, (p, n) in enumerate(zip(before, packed.completions.lengths, strict=True))
        ]
        return torch.from_numpy(np.concatenate(of_prompts + of_answers)).to(self.device)

    def _why_not_shared(self, groups: Sequence[Group]) -> str | None:
        packed = pack(groups, device=self.device, feed_last=True)
        try:
            shared = self._hidden(packed)
        except (NotImplementedError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            return str(error).splitlines()[0][:200]
        self._share(False)
        separate = self._hidden(packed)
        self._share(True)
        if self._equal(shared, separate):
            return None
        return f"hidden states differ by {self._difference(shared, separate):.1e} of the largest"

    def _head_is_all(self, groups: Sequence[Group]) -> bool:
        """Whether the model's output is its head's, and nothing is done to it afterwards."""
        shared = self.shared
        self._share(False)
        prompt, answers = groups[0]
        short = (prompt[-HEAD_TOKENS:], [answers[0][:HEAD_TOKENS]])
        packed = pack([short], device=self.device, feed_last=True)
        whole = self._separately(self.model, packed).logits
        own = self.head(self._hidden(packed))
        self._share(shared)
        if whole.dim() == 2:
            if not self._equal(whole[0], own[-1]):
                raise UsageError(
                    f"{self.trunk.config.model_type}: its score is more than one linear layer on the last token's hidden state;"
                    " reward models of causal architectures (Llama, Qwen, Mistral, GPT-2, …) have such a head"
                )
            return True
        changed = any(getattr(self.trunk.config, name, None) not in (None, 1.0) for name in CHANGED_LOGITS)
        return not changed and self._equal(whole[0], own)

    def _equal(self, one: torch.Tensor, other: torch.Tensor) -> bool:
        return self._difference(one, other) <= TOLERANCES.get(self.head.weight.dtype, LOW_PRECISION_TOLERANCE)

    @staticmethod
    def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
        return float((one - other).abs().max() / other.abs().max())


def _starts(spans: Spans) -> np.ndarray:
    """Where in the packed row each sequence begins."""
    return spans.start + np.cumsum(spans.lengths) - spans.lengths


def _whole_lengths(packed: Packed) -> np.ndarray:
    """Tokens of each answer with its prompt."""
    return packed.prompts.lengths[packed.prompt_of] + packed.completions.lengths
