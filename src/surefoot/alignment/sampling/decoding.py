"""Logits of the next token, for answers that grow by one token at a time: three ways to compute them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int

from surefoot.alignment.likelihood.likelihood import Likelihood
from surefoot.alignment.likelihood.packing import pack
from surefoot.alignment.sampling.keys_and_values import SharedKeysAndValues
from surefoot.alignment.sampling.products import product_with


class Decoder(Protocol):
    """Computes what comes next, first after B prompts, then after K answers to each of them. Logits are divided by T."""

    def after_prompts(self) -> Float[torch.Tensor, "B V"]:
        """Logits of the first token, which all answers to a prompt share; float32."""
        ...

    def after_tokens(self, tokens: Int[torch.Tensor, " n"]) -> Float[torch.Tensor, "n V"]:
        """Append a token to every answer, and give the logits of the next."""
        ...

    def keep(self, order: Int[np.ndarray, " m"]) -> None:
        """Drop answers: answer i is from now on the one that was ``order[i]``."""
        ...


class Head:
    """The vocabulary projection, as :meth:`Likelihood.completions` computes it; its weight is cast and laid out once."""

    def __init__(self, likelihood: Likelihood, temperature: float) -> None:
        weight, bias = likelihood.head.weight, likelihood.head.bias
        self._temperature, self._device = temperature, weight.device.type
        self._dtype = likelihood.autocast or weight.dtype
        self._product = product_with(weight.detach().to(self._dtype))
        self._bias = None if bias is None else (bias / temperature).float()

    def logits(self, hidden: Float[torch.Tensor, "n D"]) -> Float[torch.Tensor, "n V"]:
        """(W h + b) / T, float32."""
        if self._temperature != 1:
            hidden = hidden / self._temperature
        with torch.autocast(self._device, enabled=False):
            logits = self._product(hidden.to(self._dtype)).float()
        return logits if self._bias is None else logits.add_(self._bias)


class SharedPrompts:
    """Each prompt computed once, for all of its answers; then a row of one token from each answer.

    Raises:
        NotImplementedError: the model's attention cannot be computed this way.
    """

    def __init__(
        self, likelihood: Likelihood, prompts: Sequence[np.ndarray], *, answers: int, longest: int, temperature: float
    ) -> None:
        device = likelihood.device
        self._likelihood, self._head = likelihood, Head(likelihood, temperature)
        self._packed = pack([(prompt, [prompt[:1]]) for prompt in prompts], device=device, feed_last=False)
        self._kept = SharedKeysAndValues(self._packed, answers=answers, tokens=longest - 1, dtype=likelihood.autocast)
        self._positions = torch.from_numpy(np.repeat(self._packed.prompts.lengths, answers)).to(device)

    def after_prompts(self) -> Float[torch.Tensor, "B V"]:
        """See :class:`Decoder`."""
        hidden = self._likelihood.packed_row(self._packed.input_ids, self._packed.position_ids, self._kept)
        return self._head.logits(hidden[self._packed.scored_rows])

    def after_tokens(self, tokens: Int[torch.Tensor, " n"]) -> Float[torch.Tensor, "n V"]:
        """See :class:`Decoder`."""
        self._kept.begin()
        hidden = self._likelihood.packed_row(tokens[None], self._positions[None], self._kept)
        self._positions = self._positions + 1
        return self._head.logits(hidden)

    def keep(self, order: Int[np.ndarray, " m"]) -> None:
        """See :class:`Decoder`."""
        self._kept.keep(order)
        self._positions = self._positions[torch.from_numpy(order).to(self._positions.device)]


class OwnCache:
    """The model's own cache, as transformers keeps it: prompts padded on the left, and copied for every answer."""

    def __init__(
        self, likelihood: Likelihood, prompts: Sequence[np.ndarray], *, answers: int, longest: int, temperature: float
    ) -> None:
        model: Any = likelihood.model
        self._model = model.get_base_model() if hasattr(model, "peft_config") else model
        self._answers, self._temperature, self._device = answers, temperature, likelihood.device
        accepted = inspect.signature(self._model.forward).parameters
        self._takes_positions = "position_ids" in accepted
        self._options: dict[str, Any] = {"use_cache": True} | ({"logits_to_keep": 1} if "logits_to_keep" in accepted else {})
        lengths = np.array([len(prompt) for prompt in prompts])
        ids, mask = (np.zeros((len(prompts), lengths.max()), dtype=np.int64) for _ in range(2))
        for row, prompt in enumerate(prompts):
            ids[row, -len(prompt) :] = prompt
            mask[row, -len(prompt) :] = 1
        self._ids, self._mask = (torch.from_numpy(x).to(self._device) for x in (ids, mask))
        self._positions = (self._mask.cumsum(dim=1) - 1).clamp_(min=0)

    def after_prompts(self) -> Float[torch.Tensor, "B V"]:
        """See :class:`Decoder`."""
        logits = self._compute(self._ids)
        if self._answers > 1:
            self._cache.batch_repeat_interleave(self._answers)
        self._mask = self._mask.repeat_interleave(self._answers, dim=0)
        self._positions = self._positions[:, -1:].repeat_interleave(self._answers, dim=0)
        return logits

    def after_tokens(self, tokens: Int[torch.Tensor, " n"]) -> Float[torch.Tensor, "n V"]:
        """See :class:`Decoder`."""
        self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], dim=1)
        self._positions = self._positions + 1
        return self._compute(tokens[:, None])

    def keep(self, order: Int[np.ndarray, " m"]) -> None:
        """See :class:`Decoder`."""
        index = torch.from_numpy(order).to(self._device)
        self._cache.batch_select_indices(index)
        self._mask, self._positions = self._mask[index], self._positions[index]

    def _compute(self, ids: torch.Tensor) -> torch.Tensor:
        options = self._options | ({"position_ids": self._positions} if self._takes_positions else {})
        output = self._model(input_ids=ids, attention_mask=self._mask, **options)
        cache = getattr(output, "past_key_values", None)
        if cache is None:
            raise NotImplementedError("it has none of keys and values")
        self._cache = self._options["past_key_values"] = cache
        return output.logits[:, -1].float() / self._temperature


class WholeSequences:
    """Every step computes prompts and answers from their beginning: slow, and right for every causal model."""

    def __init__(
        self, likelihood: Likelihood, prompts: Sequence[np.ndarray], *, answers: int, longest: int, temperature: float
    ) -> None:
        self._likelihood, self._answers, self._temperature = likelihood, answers, temperature
        self._head = Head(likelihood, temperature) if likelihood.plain_head else None
        self._sequences = list(prompts)

    def after_prompts(self) -> Float[torch.Tensor, "B V"]:
        """See :class:`Decoder`."""
        logits = self._compute()
        self._sequences = [prompt for prompt in self._sequences for _ in range(self._answers)]
        return logits

    def after_tokens(self, tokens: Int[torch.Tensor, " n"]) -> Float[torch.Tensor, "n V"]:
        """See :class:`Decoder`."""
        self._sequences = [np.append(sequence, token) for sequence, token in zip(self._sequences, tokens.tolist(), strict=True)]
        return self._compute()

    def keep(self, order: Int[np.ndarray, " m"]) -> None:
        """See :class:`Decoder`."""
        self._sequences = [self._sequences[i] for i in order]

    def _compute(self) -> torch.Tensor:
        lengths = torch.tensor([len(sequence) for sequence in self._sequences])
        ids = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(s.astype(np.int64)) for s in self._sequences], batch_first=True)
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        device = self._likelihood.device
        inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device), "use_cache": False}
        place = (torch.arange(len(lengths), device=device), (lengths - 1).to(device))
        if self._head is not None:
            return self._head.logits(self._likelihood.trunk(**inputs).last_hidden_state[place])
        return self._likelihood.model(**inputs).logits[place].float() / self._temperature
