"""Low-rank adapters, by PEFT: added, switched off, merged."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from surefoot.alignment.models.configuration import AdapterConfiguration
from surefoot.alignment.models.folders import sentences
from surefoot.alignment.models.loading import hidden_states_and_head
from surefoot.alignment.models.merging import plain_name
from surefoot.errors import Caution, UsageError

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

LOG = logging.getLogger(__name__)


def add_adapter(
    model: PreTrainedModel,
    configuration: AdapterConfiguration,
    *,
    seed: int = 0,
    notify: Callable[[str], None] = LOG.warning,
) -> PeftModel:
    """Freeze a model, and give its linear layers low-rank adapters: h = W x + (α/r) B A x, with B = 0 at the start.

    A reward model's head is trained as a whole. The adapted model computes what the model did until it is trained.

    Args:
        model: causal, or for sequence classification; it becomes part of the result.
        configuration: with a rank of at least 1.
        seed: of A, without a trace in PyTorch's own random state.
        notify: takes a sentence on layers that are left out, since the model does not use them as linear layers.

    Raises:
        UsageError: a target is not the name of a linear layer that PEFT can adapt, or there is none.

    Source: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models (2021), section 4.1.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    trunk, head = hidden_states_and_head(model)
    kind = model.config.model_type
    settings = LoraConfig(
        r=configuration.lora_rank,
        lora_alpha=configuration.alpha,
        lora_dropout=configuration.lora_dropout,
        target_modules=_targets(trunk, configuration.lora_targets),
        # PEFT takes a classification head along, and leaves a language model's alone.
        task_type=TaskType.CAUSAL_LM if head is model.get_output_embeddings() else TaskType.SEQ_CLS,
    )
    name = model.name_or_path or kind
    with torch.random.fork_rng(), sentences(name, "be given an adapter"):
        torch.manual_seed(seed)
        left_out = _not_plainly_linear(trunk)
        left_out |= {layer for layer in _linear_layers(trunk) if _is_refused(settings, model, layer)}
    if isinstance(settings.target_modules, str):
        settings.exclude_modules = sorted(left_out) or None
        if left_out:
            said = f"no adapter for {', '.join(sorted(left_out))}: {kind} does not use such layers as plain linear ones"
            notify(Caution(said))
    elif named := sorted(left_out.intersection(settings.target_modules or ())):
        raise UsageError(f"--lora-targets: {named[0]!r} cannot have an adapter: {kind} does not use it as a plain linear layer")
    with torch.random.fork_rng(), sentences(name, "be given an adapter"):
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


def merged_weights(model: PeftModel) -> dict[str, torch.Tensor]:
    """The plain model's weights by name, with W + (α/r) B A in place of W; on the CPU, for :meth:`PreTrainedModel.save_pretrained`.

    The adapted model stays as it is: merging in place and back again would leave rounding errors in the weights that are trained on. The
    sum is float32 whatever the weights are: in bfloat16 most of what an adapter adds is rounded away. A weight that is float32 on the CPU
    and has no adapter costs no memory, and tied ones are one tensor here, too.
    """
    adapter = model.active_adapter
    inner: Any = model.get_base_model()
    there: dict[str, torch.Tensor] = inner.state_dict()
    whole: dict[tuple[int, torch.Size, tuple[int, ...]], torch.Tensor] = {}
    weights: dict[str, torch.Tensor] = {}
    for key, tensor in there.items():
        if ".lora_" in key or ".original_module." in key:
            continue
        name = plain_name(key).replace(f".modules_to_save.{adapter}.", ".")
        place = tensor.data_ptr(), tensor.shape, tensor.stride()
        if place not in whole:
            whole[place] = tensor.detach().to("cpu", torch.float32 if tensor.is_floating_point() else None)
        weights[name] = whole[place]
    for name, layer in inner.named_modules():
        if adapter in getattr(layer, "lora_A", {}):
            name = plain_name(f"{name}.{getattr(layer, 'parameter_name', 'weight')}")  # experts are parameters of one layer
            # The sum is a new tensor: what is trained, or tied to it, stays as it is.
            weights[name] = weights[name] + layer.get_delta_weight(adapter).detach().to("cpu", torch.float32)
    return weights


def _targets(trunk: torch.nn.Module, wanted: str) -> str | list[str]:
    there = _linear_layers(trunk)
    if not there:
        raise UsageError("--lora-rank: the model has no linear layers, so nothing for an adapter; leave it out")
    if wanted == "all-linear":
        return wanted
    names = [name.strip() for name in wanted.split(",")]
    if unknown := [name for name in names if name not in there]:
        raise UsageError(f"--lora-targets: the model has no linear layer {unknown[0]!r}; it has {', '.join(sorted(there))}")
    return names


def _linear_layers(trunk: torch.nn.Module) -> set[str]:
    """Last parts of their names."""
    linear = torch.nn.Linear | Conv1D
    return {name.rpartition(".")[2] for name, module in trunk.named_modules() if isinstance(module, linear)}


def _not_plainly_linear(trunk: PreTrainedModel) -> set[str]:
    """Last parts of the names of linear layers that do more than W x, or whose weight is read without the layer being called.

    An adapter would fail at the former. At the latter, which state-space models have, it would have no effect in training, and one when it
    is merged. Layers that are not called for these two tokens, and have no gradient either, are those of other experts.
    """
    linear = torch.nn.Linear | Conv1D
    layers: dict[str, Any] = {name: module for name, module in trunk.named_modules() if isinstance(module, linear)}
    tokens, called = torch.tensor([[0, 1]], device=trunk.device), dict[Any, Any]()
    hooks = [layer.register_forward_hook(lambda layer, _, output: called.update({layer: output})) for layer in layers.values()]
    try:
        with torch.no_grad():
            trunk(tokens, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    more = {name for name, layer in layers.items() if layer in called and not isinstance(called[layer], torch.Tensor)}
    silent = {name: layer.weight for name, layer in layers.items() if layer not in called}
    if not silent:
        return {name.rpartition(".")[2] for name in more}
    learnt = [parameter for parameter in trunk.parameters() if parameter.requires_grad]
    trunk.requires_grad_(False)
    for weight in silent.values():
        weight.requires_grad_(True)
    try:
        total = trunk(tokens, use_cache=False).last_hidden_state.float().sum()
        gradients = torch.autograd.grad(total, list(silent.values()), allow_unused=True) if total.requires_grad else ()
    finally:
        trunk.requires_grad_(False)
        for parameter in learnt:
            parameter.requires_grad_(True)
    past = {name for name, gradient in zip(silent, gradients, strict=False) if gradient is not None}
    return {name.rpartition(".")[2] for name in more | past}


def _is_refused(settings: LoraConfig, model: PreTrainedModel, name: str) -> bool:
    """Whether PEFT refuses layers of that name in such a model; asked before, since its refusal leaves a model half adapted."""
    from peft import LoraModel

    try:
        LoraModel._check_target_module_compatiblity(None, settings, model, name)
    except AttributeError:  # another version of PEFT, which then refuses in a sentence
        return False
    except ValueError:
        return True
    return False
