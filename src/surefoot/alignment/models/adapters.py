"""Low-rank adapters, by PEFT: added, switched off, merged."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from surefoot.alignment.models.configuration import AdapterConfiguration
from surefoot.alignment.models.folders import quiet
from surefoot.alignment.models.loading import hidden_states_and_head
from surefoot.errors import UsageError

if TYPE_CHECKING:
    from peft import PeftModel


def add_adapter(model: PreTrainedModel, configuration: AdapterConfiguration, *, seed: int = 0) -> PeftModel:
    """Freeze a model, and give its linear layers low-rank adapters: h = W x + (α/r) B A x, with B = 0 at the start.

    A reward model's head is trained as a whole. The adapted model computes what the model did until it is trained.

    Args:
        model: causal, or for sequence classification; it becomes part of the result.
        configuration: with a rank of at least 1.
        seed: of A, without a trace in PyTorch's own random state.

    Raises:
        UsageError: a target is not the name of a linear layer.

    Source: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models (2021), section 4.1.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    trunk, head = hidden_states_and_head(model)
    settings = LoraConfig(
        r=configuration.lora_rank,
        lora_alpha=configuration.alpha,
        lora_dropout=configuration.lora_dropout,
        target_modules=_targets(trunk, configuration.lora_targets),
        # PEFT takes a classification head along, and leaves a language model's alone.
        task_type=TaskType.CAUSAL_LM if head is model.get_output_embeddings() else TaskType.SEQ_CLS,
    )
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(seed)
        return get_peft_model(model, settings)


def is_adapted(model: Any) -> bool:
    """Whether the model is a PEFT model."""
    return hasattr(model, "peft_config") and hasattr(model, "disable_adapter")


def adds_nothing(model: Any) -> bool:
    """Whether an adapter adds exactly 0 everywhere, as it does until it is trained: of every layer's A and B, one is 0."""
    adapted = (module for module in model.modules() if getattr(module, "lora_A", None))
    layers = [(module.lora_A[name].weight, module.lora_B[name].weight) for module in adapted for name in module.active_adapters]
    return bool(layers) and all(not bool(b.any()) or not bool(a.any()) for a, b in layers)


@contextmanager
def adapter_switched_off(model: Any) -> Iterator[None]:
    """Within it the model computes what it did before :func:`add_adapter`: a reference model that costs no memory.

    Raises:
        ValueError: the model has no adapter, so that it would be its own reference.
    """
    if not is_adapted(model):
        raise ValueError("the model has no adapter that could be switched off; keep a copy of it as the reference instead")
    with model.disable_adapter():
        yield


def trainable_parameters(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    """(name, parameter) of all that training changes: everything, or an adapter and a reward head. Tied ones come once."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def merge_adapter(model: PeftModel) -> PreTrainedModel:
    """A plain model with W + (α/r) B A in place of W, on the CPU; the adapted model stays as it is.

    Costs a copy of the weights in main memory. Merging in place and back again would leave rounding errors in the weights
    that are trained on. The sum is float32 whatever the weights are: in bfloat16 most of what an adapter adds is rounded away.
    """
    tensors = (*model.parameters(), *model.buffers())
    copies: dict[int, Any] = {
        id(tensor): tensor.detach().to("cpu", torch.float32 if tensor.is_floating_point() else None, copy=True)
        for tensor in tensors
    }
    for parameter in model.parameters():
        copies[id(parameter)] = torch.nn.Parameter(copies[id(parameter)], requires_grad=parameter.requires_grad)
    merged: Any = copy.deepcopy(model, copies)
    plain: PreTrainedModel = merged.merge_and_unload()
    plain.config.dtype = torch.float32
    return plain


def _targets(trunk: torch.nn.Module, wanted: str) -> str | list[str]:
    if wanted == "all-linear":
        return wanted
    there = {name.rpartition(".")[2] for name, module in trunk.named_modules() if isinstance(module, torch.nn.Linear | Conv1D)}
    names = [name.strip() for name in wanted.split(",")]
    if unknown := [name for name in names if name not in there]:
        raise UsageError(f"--lora-targets: the model has no linear layer {unknown[0]!r}; it has {', '.join(sorted(there))}")
    return names
