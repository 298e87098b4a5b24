"""PEFT adapters of any origin: read from a folder, compared with their base model, and merged into it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from surefoot.alignment.models.folders import ADAPTER_WEIGHTS, sentences, some
from surefoot.errors import Caution, UsageError

if TYPE_CHECKING:
    from peft import PeftConfig

PREFIX = "base_model.model."
"""What PEFT puts before a weight's name in the base model."""
MERGED_TOLERANCE = 1e-2
"""Largest difference of logits that merging may make, relative to the largest; in float32 rounding makes a hundredth of it. In half the
bits it can make all of them others, so that nothing is compared there.
"""
PROBED_TOKENS = 8

Weights = dict[str, torch.Tensor]


def base_of(folder: Path, name: str) -> tuple[PeftConfig, str]:
    """An adapter's settings, and the base model that they name.

    Raises:
        UsageError: they cannot be read, or name none.
    """
    from peft import PeftConfig

    with sentences(name):
        settings = PeftConfig.from_pretrained(str(folder))
    if not settings.base_model_name_or_path:
        raise UsageError(f"--model {name} is an adapter that does not name its base model; merge it first")
    return settings, settings.base_model_name_or_path


def merged_into(
    base: PreTrainedModel, folder: Path, settings: PeftConfig, name: str, notify: Callable[[str], None]
) -> PreTrainedModel:
    """The base model with the adapter's weights in its own.

    PEFT also saves layers of the base itself beside an adapter of the embedding or the head, and where there are new tokens. Those take the
    place of the base's, whose embedding gets as many rows; where they are the base's but for rounding, the base's stay.

    Args:
        base: the model that the adapter was trained on; it becomes part of the result.
        folder: with the adapter.
        settings: of the adapter.
        name: what sentences call the adapter.
        notify: takes a sentence on what replaces weights of the base.

    Raises:
        UsageError: the adapter's weights are not those of an adapter to this base, or cannot be merged into it exactly.
    """
    from peft import PeftModel
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import load_file

    base_name = settings.base_model_name_or_path
    with sentences(name):
        weights = {plain_name(key.removeprefix(PREFIX)): tensor for key, tensor in load_file(folder / ADAPTER_WEIGHTS).items()}
        _settle_rows(base, weights, notify, name)
        there = {key: tensor for key, tensor in base.state_dict().items() if key in weights}
        kept = {key: tensor.clone() for key, tensor in there.items() if _same_but_for_rounding(tensor, weights[key])}
        _untie(base, weights, kept, settings)
        adapted: Any = PeftModel.from_pretrained(base, str(folder), config=settings)
        wanted = {
            plain_name(key.removeprefix(PREFIX)) for key in get_peft_model_state_dict(adapted, save_embedding_layers=False)
        }
        whole = base.state_dict()
        own = {
            plain_name(key.removeprefix(PREFIX)): tensor for key, tensor in whole.items()
        }  # the same memory, with or without layers around them
        replaced = (weights.keys() & own.keys()) - wanted
        if stray := wanted.symmetric_difference(weights.keys()) - replaced:
            raise ValueError(f"it does not fit its base model {base_name}, as {PREFIX}{some(stray)} shows")
        for key in replaced & kept.keys():
            own[key].copy_(kept[key])
        expected = _logits(adapted)
        merged: PreTrainedModel = adapted.merge_and_unload()
        if not torch.isfinite(expected).all():
            raise ValueError("with it, the model computes numbers that are not finite; its weights are damaged")
        difference = float((_logits(merged) - expected).abs().max() / expected.abs().max())
        if merged.dtype == torch.float32 and difference > MERGED_TOLERANCE:
            raise ValueError(f"merged into its base model it computes logits that differ by {difference:.1e} of the largest")
    if changed := replaced - kept.keys():
        sentence = f"{name} brings weights of the whole model along, which replace those of {base_name}: {some(changed)}"
        notify(Caution(sentence))
    return merged.requires_grad_(True)


def plain_name(key: str) -> str:
    """A weight's name in the base model, without PEFT's layers around its own, of which there may be several."""
    return re.sub(r"(\.base_layer)+\.", ".", key)


def _settle_rows(base: PreTrainedModel, weights: Weights, notify: Callable[[str], None], name: str) -> None:
    """Give the base's embedding as many rows as the adapter was trained with, where the adapter has them all."""
    tables = _tables(base)
    rows = base.get_input_embeddings().weight.shape[0]
    found = {key: weights[key].shape[0] for key in tables if key in weights}
    low_rank = {f"{key.removesuffix('weight')}lora_embedding_A": 1 for key in tables}
    low_rank |= {f"{key.removesuffix('weight')}lora_B.weight": 0 for key in tables}
    sizes = {weights[key].shape[side] for key, side in low_rank.items() if key in weights} | set(found.values())
    if sizes <= {rows}:
        return
    other = max(sizes - {rows})
    tied = len({id(tensor) for tensor in tables.values()}) == 1
    if sizes != {other} or not found or not (tied or found.keys() == tables.keys()):
        raise ValueError(
            f"its embedding has {other} rows and the base's {rows}: it was trained with new tokens, whose rows it does not hold;"
            " save it again with save_embedding_layers=True, or give the merged model"
        )
    base.resize_token_embeddings(other, mean_resizing=False)
    notify(f"{name} was trained with an embedding of {other} rows, which it brings along; its base model's has {rows}")


def _untie(base: PreTrainedModel, weights: Weights, kept: Weights, settings: PeftConfig) -> None:
    """Give the head weights of its own, where only it or only the embedding is adapted: merged, the two differ."""
    tables = _tables(base)
    if len(tables) < 2 or len({id(tensor) for tensor in tables.values()}) > 1:
        return
    adapted = any(key.startswith(f"{table.removesuffix('weight')}lora_") for table in tables for key in weights)
    brought = [weights[table] for table in tables if table in weights]
    differ = any(not torch.equal(brought[0], other) for other in brought[1:])
    if differ or (adapted and not getattr(settings, "ensure_weight_tying", False)):
        if brought and not tables.keys() & kept.keys():  # of the one matrix that they were
            base.get_input_embeddings().weight.data.copy_(brought[0])
        head: Any = base.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
        settle_tying(base)


def settle_tying(model: PreTrainedModel) -> None:
    """Let the configuration say that embedding and head are two matrices, where they are: readers of the saved model go by that."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or head.weight is embedding.weight:
        return
    for part in (model.config, model.config.get_text_config()):
        if getattr(part, "tie_word_embeddings", False):
            part.tie_word_embeddings = False


def _tables(base: PreTrainedModel) -> Weights:
    """The embedding's weight and the head's, by name; one of them under two names where they are tied."""
    layers = (base.get_input_embeddings(), base.get_output_embeddings())
    ours = {id(layer.weight) for layer in layers if layer is not None}
    return {key: tensor for key, tensor in base.named_parameters(remove_duplicate=False) if id(tensor) in ours}


def _same_but_for_rounding(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether they are the same numbers in the format that holds fewer of them."""
    if one.shape != other.shape or not (one.is_floating_point() and other.is_floating_point()):
        return torch.equal(one, other)
    smaller = min((one.dtype, other.dtype), key=lambda dtype: torch.finfo(dtype).bits)
    return torch.equal(one.to(other.device, smaller), other.to(smaller))


def _logits(model: Any) -> torch.Tensor:
    rows = model.get_input_embeddings().weight.shape[0]
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(torch.arange(min(rows, PROBED_TOKENS))[None]).logits
    return logits.float()
