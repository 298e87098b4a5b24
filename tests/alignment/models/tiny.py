"""Models of nine families, small enough to build in every test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as t

from tests.alignment.tokenizers import word_level

COMMON = {"vocab_size": 24, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None, "max_position_embeddings": 64}
SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
GATED = {**COMMON, **SHAPE, "intermediate_size": 24, "num_key_value_heads": 2, "initializer_range": 0.3}
FAMILIES: dict[str, Any] = {
    "llama": lambda: t.LlamaConfig(**GATED),
    "qwen2": lambda: t.Qwen2Config(**GATED, tie_word_embeddings=True),
    "qwen3": lambda: t.Qwen3Config(**GATED, head_dim=8),
    "mistral": lambda: t.MistralConfig(**GATED),
    "phi3": lambda: t.Phi3Config(**GATED),
    "olmo2": lambda: t.Olmo2Config(**GATED),
    "gpt_neox": lambda: t.GPTNeoXConfig(**COMMON, **SHAPE, intermediate_size=24),
    "opt": lambda: t.OPTConfig(**COMMON, **SHAPE, ffn_dim=24, word_embed_proj_dim=8),
    "gpt2": lambda: t.GPT2Config(
        vocab_size=24, n_embd=16, n_layer=2, n_head=4, n_positions=64, pad_token_id=0, eos_token_id=1, bos_token_id=1
    ),
}


def language_model(family: str = "llama", **changes: Any) -> Any:
    torch.manual_seed(0)
    config = FAMILIES[family]()
    for name, value in changes.items():
        setattr(config, name, value)
    return t.AutoModelForCausalLM.from_config(config)


def save_language_model(folder: Path, family: str = "llama", **changes: Any) -> Any:
    model = language_model(family, **changes)
    model.save_pretrained(folder)
    word_level().save_pretrained(folder)
    return model


def reward_model(family: str = "llama", **changes: Any) -> Any:
    torch.manual_seed(0)
    config = FAMILIES[family]()
    for name, value in {"num_labels": 1, **changes}.items():
        setattr(config, name, value)
    return t.AutoModelForSequenceClassification.from_config(config)
