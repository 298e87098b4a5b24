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

from surefoot.alignment.learning.memory import is_lack_of_memory
from surefoot.alignment.likelihood.attention import SHARED_ATTENTION, KeysAndValues
from surefoot.alignment.likelihood.distribution import PLAIN, AnswerDistribution
from surefoot.alignment.likelihood.head import Excluded, token_log_probabilities, token_log_probabilities_and_entropies
from surefoot.alignment.likelihood.packing import Group, Packed, pack
from surefoot.alignment.models.counting import backward_flops, forward_flops
from surefoot.alignment.models.folders import sentences
from surefoot.alignment.models.loading import hidden_states_and_head
from surefoot.errors import UsageError, what_it_says

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
    step_of: Int[torch.Tensor, " S"]
    """Its index within that answer, t."""
    count: int
    """N."""
    entropies: Float[torch.Tensor, " S"] | None = None
    """−Σ_v π(v | x, y_<t) log π(v | x, y_<t), of the distribution that the token was drawn from, where it was asked for."""
    values: Float[torch.Tensor, " S"] | None = None
    """A value head at the row that predicts the token, where there is one: V(x, y_<t), float32."""

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
        self.model, self.autocast = model, autocast
        self.trunk, self.head = hidden_states_and_head(model)
        self._own_attention = self.trunk.config._attn_implementation
        self.plain_head = True
        self.shared = False
        self.work = Work()
        self._alike: list[Likelihood] = []
        if share_prompts:
            self._share(True)

    def of(self, model: PreTrainedModel) -> Likelihood:
        """The same way of computing, for another model of the same architecture; the work of both is counted together."""
        other = Likelihood(model, share_prompts=self.shared, autocast=self.autocast)
        other.plain_head, other._own_attention, other.work = self.plain_head, self._own_attention, self.work
        self._alike.append(other)
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

    def forget_positions(self) -> None:
        """Let rotary frequencies depend on no batch before the next one, here and in the likelihoods made by :meth:`of`.

        Called before each update, it makes them follow from that update's batch: a run that goes on needs nothing of those before.
        """
        for other in self._alike:
            other.forget_positions()
        if not self.positions_depend_on_batch:
            return
        for module in self.trunk.modules():
            if hasattr(module, "max_seq_len_cached") and hasattr(module, "original_inv_freq"):
                first = module.original_inv_freq.to(self.device)
                module.register_buffer("inv_freq", first.clone(), persistent=False)
                module.max_seq_len_cached = module.original_max_seq_len

    def check(self, groups: Sequence[Group]) -> str | None:
        """Compare with what the model itself computes, and stop sharing prompts where that differs.

        Args:
            groups: prompts with answers as long as any that will come: a sliding window shows only beyond its length.

        Returns:
            a sentence on what is computed the slow way and why, or None where nothing is. Compared is in the precision of the
            weights, without autocast.

        Raises:
            UsageError: the model cannot be computed, or a reward model's score is not a linear layer on the last token's hidden state.
        """
        was_training, kind = self.model.training, self.trunk.config.model_type
        self.model.eval()
        try:
            with torch.no_grad(), sentences(self.trunk.config.name_or_path or kind, "compute a prompt with its answer"):
                reason = self._why_not_shared(groups) if self.shared else None
                if reason is not None:
                    self._share(False)
                self.plain_head = self._head_is_all(groups)
        finally:
            self.model.train(was_training)
        if not self.plain_head:
            self._share(False)
            return f"whole logits are computed for every answer, which is slow: {kind} does more to them than one linear layer"
        if reason is not None:
            return f"prompts are computed once per answer, which is slower: {kind} cannot share them exactly ({reason})"
        return None

    def completions(
        self,
        groups: Sequence[Group],
        *,
        under: AnswerDistribution = PLAIN,
        entropies: bool = False,
        value_head: torch.nn.Linear | None = None,
    ) -> CompletionLogProbabilities:
        """Log π of every completion token, given the prompt and the answer so far.

        Args:
            groups: prompts and their answers.
            under: the distribution that answers are drawn from. A token that it excludes has log-probability −∞, and its logit no gradient.
            entropies: also the entropy of every distribution that a token was drawn from, with its gradient. It takes about as
                long as a softmax.
            value_head: a linear layer to one number, applied in float32 to the hidden state that predicts each token.
        """
        packed = pack(groups, device=self.device, feed_last=False)
        self.count(packed, len(packed.scored_rows))
        with self.precision():
            if self.plain_head:
                hidden = self._hidden(packed)[packed.scored_rows]
                tokens, of_tokens = self._projected(hidden, packed, under, entropies)
            else:
                output = self._separately(self.model, packed, output_hidden_states=value_head is not None)
                slots = packed.slots[packed.scored_rows]
                tokens, of_tokens = _given_logits(output.logits.flatten(0, 1)[slots], packed, under, entropies)
                hidden = None if value_head is None else output.hidden_states[-1].flatten(0, 1)[slots]
        values = None if value_head is None else _linear(hidden, value_head)[packed.row_of]
        return CompletionLogProbabilities(
            tokens, packed.completion_of, packed.step_of, packed.completions.count, of_tokens, values
        )

    def values(self, groups: Sequence[Group]) -> Float[torch.Tensor, " S"]:
        """V(x, y_<t), the score before each completion token, in the order of :meth:`completions`; float32.

        The model is one for sequence classification, as a critic; its head is read at the row that predicts token t, whose state
        is the prompt and the answer so far.
        """
        packed = pack(groups, device=self.device, feed_last=False)
        self.count(packed, len(packed.scored_rows))
        with self.precision():
            hidden = self._hidden(packed)[packed.scored_rows]
        return _linear(hidden, self.head)[packed.row_of]

    def scores(self, groups: Sequence[Group]) -> Float[torch.Tensor, " N"]:
        """r(x, y): the reward head at each answer's last token, float32."""
        packed = pack(groups, device=self.device, feed_last=True)
        self.count(packed, len(packed.last))
        with self.precision():
            hidden = self._hidden(packed)[packed.last]
        return _linear(hidden, self.head)

    def precision(self) -> AbstractContextManager[object]:
        """What the model is computed under: autocast, or nothing."""
        return nullcontext() if self.autocast is None else torch.autocast(self.device.type, self.autocast)

    def _share(self, shared: bool) -> None:
        self.shared = shared
        self.trunk.set_attn_implementation(SHARED_ATTENTION if shared else self._own_attention)

    def count(self, packed: Packed, scored: int) -> None:
        """Add to the work what the batch costs: separately, every answer with its own copy of the prompt."""
        tokens, pairs = packed.input_ids.shape[1], packed.attention_pairs
        if not self.shared:
            lengths = packed.whole_lengths.astype(np.int64)
            tokens, pairs = int(lengths.sum()), int((lengths * (lengths + 1) // 2).sum())
        counts = {"tokens": tokens, "scored": scored, "attention_pairs": pairs}
        self.work.add(forward_flops(self.model, **counts))
        if torch.is_grad_enabled():
            self.work.add(backward_flops(self.model, **counts))

    def release(self) -> None:
        """Give the model its own attention back."""
        self._share(False)

    def _projected(
        self, hidden: torch.Tensor, packed: Packed, under: AnswerDistribution, entropies: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        bias = self.head.bias
        if under.temperature != 1:  # (W h + b) / T, without touching an array of the logits' size
            hidden, bias = hidden / under.temperature, None if bias is None else bias / under.temperature
        inputs = {
            "hidden": hidden,
            "weight": self.head.weight,
            "bias": bias,
            "row_of": packed.row_of,
            "target": packed.target,
            "excluded": _excluded(packed, under),
        }
        if not entropies:
            return token_log_probabilities(**inputs), None
        tokens, of_rows = token_log_probabilities_and_entropies(**inputs)
        return tokens, of_rows[packed.row_of]

    def _hidden(self, packed: Packed) -> Float[torch.Tensor, "T D"]:
        """The last hidden state of every token of the packed row, however it is computed."""
        if not self.shared:
            return self._separately(self.trunk, packed).last_hidden_state.flatten(0, 1)[packed.slots]
        return self.packed_row(packed.input_ids, packed.position_ids, packed)

    def packed_row(
        self, input_ids: Int[torch.Tensor, "1 T"], position_ids: Int[torch.Tensor, "1 T"], packed: Packed | KeysAndValues
    ) -> Float[torch.Tensor, "T D"]:
        """The last hidden state of every token of one row, whose attention knows how the row is laid out."""
        # A mask of four dimensions is taken as it is: none of the model's own is built, and the attention reads the layout.
        no_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.device)
        output = self.trunk(
            input_ids=input_ids, position_ids=position_ids, attention_mask=no_mask, use_cache=False, packed=packed
        )
        return output.last_hidden_state[0]

    def _separately(self, module: torch.nn.Module, packed: Packed, **options: Any) -> Any:
        """The output for a batch [N, L], each answer behind its own copy of the prompt, padded on the right."""
        ids, mask = packed.padded
        return module(input_ids=ids, attention_mask=mask, use_cache=False, **options)

    def _why_not_shared(self, groups: Sequence[Group]) -> str | None:
        packed = pack(groups, device=self.device, feed_last=True)
        try:
            shared = self._hidden(packed)
        except Exception as error:  # whatever it is, the model's own way is left
            if is_lack_of_memory(error):
                raise
            return what_it_says(error)
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
        own = self.head(self._hidden(packed).to(self.head.weight.dtype))  # state-space models keep more bits than their head
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


def _excluded(packed: Packed, under: AnswerDistribution) -> Excluded | None:
    """What is no token; and the end tokens, in the rows that predict an answer's first tokens."""
    if not under.excludes:
        return None
    rows = packed.row_of[packed.step_of < under.shortest - 1].unique()
    ends, never = (torch.tensor(ids, dtype=torch.int64, device=rows.device) for ids in (under.ends, under.never))
    return Excluded(rows, ends, never)


def _given_logits(
    logits: torch.Tensor, packed: Packed, under: AnswerDistribution, entropies: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probabilities and entropies where all logits are there, one row per predicting token."""
    logits = logits.float() / under.temperature
    if (excluded := _excluded(packed, under)) is not None:
        excluded.fill(logits, 0, -torch.inf)
    distribution = logits.log_softmax(dim=-1)
    tokens = distribution[packed.row_of, packed.target]
    if not entropies:
        return tokens, None
    finite = distribution.masked_fill(distribution == -torch.inf, 0)  # 0 · −∞ is 0 here
    return tokens, -(distribution.exp() * finite).sum(dim=-1)[packed.row_of]


def _linear(hidden: torch.Tensor, head: torch.nn.Linear) -> torch.Tensor:
    """A head to one number, in float32: scores near 10 would be rounded to steps of 0.06 in half the bits."""
    bias = None if head.bias is None else head.bias.float()
    return torch.nn.functional.linear(hidden.float(), head.weight.float(), bias)[:, 0]
