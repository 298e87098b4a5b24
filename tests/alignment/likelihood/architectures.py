"""Tiny models of every architecture that prompts are shared in, of some in which they cannot be, and of many more."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
import transformers as t
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.alignment.models.tiny import COMMON, FAMILIES, GATED, SHAPE

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

SIZES = {
    **COMMON, **SHAPE, "n_positions": 64, "n_ctx": 64, "context_length": 64, "max_seq_len": 64, "n_embd": 16, "d_model": 16,
    "n_layer": 2, "n_layers": 2, "num_layers": 2, "n_head": 4, "n_heads": 4, "num_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "intermediate_size": 24, "n_inner": 24, "ffn_dim": 24, "dff": 24, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "state_size": 8,
}  # fmt: skip
"""What configurations call their sizes; each takes those that it knows."""
LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "head_dim": 4}
LATENT |= {"num_key_value_heads": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
PLAIN_POSITIONS = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
OTHERS: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8, "attn_layer_indices": [1]},
    "biogpt": {},
    "codegen": {"rotary_dim": 4},
    "cohere2": {"sliding_window": 8},
    "ctrl": {},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "ernie4_5": {},
    "exaone4": {},
    "falcon": {},
    "falcon_mamba": {},
    "gemma": {},
    "glm": {},
    "glm4": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "gpt_oss": PLAIN_POSITIONS,
    "gptj": {"rotary_dim": 4},
    "granitemoe": {},
    "helium": {"head_dim": 4},
    "hunyuan_v1_dense": {},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "llama4_text": {"intermediate_size_mlp": 24},
    "mamba2": {"n_groups": 1, "chunk_size": 8},
    "minimax": {},
    "mixtral": {},
    "mpt": {},
    "nemotron": {},
    "olmo": {},
    "olmoe": {},
    "persimmon": {},
    "phi": {},
    "qwen2_moe": {},
    "recurrent_gemma": {"attention_window_size": 8, "num_hidden_layers": 3},
    "rwkv": {},
    "seed_oss": {},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {},
    "xglm": {},
}  # fmt: skip
"""What else each needs to be that small, by what transformers calls the architecture."""
ARCHITECTURES = (*OTHERS, *(name for name in CONFIGURATIONS if " " not in name))


def build(name: str, *, dtype: torch.dtype = torch.float32, reward: bool = False) -> Any:
    """A model with weights large enough that every token matters, without dropout."""
    torch.manual_seed(0)
    config = CONFIGURATIONS[name]() if name in CONFIGURATIONS else _small(name)
    if reward:
        config.num_labels = 1
    kind = t.AutoModelForSequenceClassification if reward else t.AutoModelForCausalLM
    model = kind.from_config(config).to(dtype).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def _small(name: str) -> Any:
    kind = CONFIG_MAPPING[name]
    known = {field.name for field in fields(kind)}
    return kind(**{key: value for key, value in SIZES.items() if key in known} | OTHERS[name])
