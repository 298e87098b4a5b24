"""Tiny models of every architecture that prompts are shared in, and of some in which they cannot be."""

from __future__ import annotations

from typing import Any

import torch
import transformers as t

from tests.alignment.models.tiny import COMMON, FAMILIES, GATED

VOCABULARY = COMMON["vocab_size"]
SEPARATE: dict[str, Any] = {
    "mistral with a window": lambda: t.MistralConfig(**GATED, sliding_window=6),
    "gemma3": lambda: t.Gemma3TextConfig(**GATED, head_dim=8, sliding_window=8),
    "bloom": lambda: t.BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=2, n_head=4),
    "mamba": lambda: t.MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, state_size=8),
}
MORE_THAN_A_HEAD: dict[str, Any] = {
    "gemma2": lambda: t.Gemma2Config(**GATED, head_dim=8, final_logit_softcapping=3.0),
    "granite": lambda: t.GraniteConfig(**GATED, logits_scaling=8.0),
    "cohere": lambda: t.CohereConfig(**GATED),
}
CONFIGURATIONS = {**FAMILIES, **SEPARATE, **MORE_THAN_A_HEAD}


def build(name: str, *, dtype: torch.dtype = torch.float32, reward: bool = False) -> Any:
    """A model with weights large enough that every token matters, without dropout."""
    torch.manual_seed(0)
    config = CONFIGURATIONS[name]()
    if reward:
        config.num_labels = 1
    kind = t.AutoModelForSequenceClassification if reward else t.AutoModelForCausalLM
    model = kind.from_config(config).to(dtype).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model
