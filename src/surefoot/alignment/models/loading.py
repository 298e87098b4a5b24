"""Policies and reward models from folders: every weight from the file or an error, never silently a random one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.dropout import _DropoutNd
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from surefoot.alignment.models.configuration import ModelConfiguration
from surefoot.alignment.models.folders import (
    ADAPTER_WEIGHTS,
    has_classifier,
    is_adapter,
    is_language_model,
    is_reward_model,
    local_folder,
    quiet,
    read_configuration,
    sentences,
    some,
)
from surefoot.alignment.models.merging import base_of, merged_into, settle_tying
from surefoot.alignment.models.padding import give_own_pad_token
from surefoot.alignment.models.precision import device_of, weights_dtype
from surefoot.alignment.models.strangers import check_adapter, holds_vocabulary
from surefoot.errors import Caution, UsageError

LOG = logging.getLogger(__name__)
HEADS = ("score", "classifier")
"""What transformers calls the reward head of a decoder; the second is CTRL's."""


def load_policy(
    configuration: ModelConfiguration,
    tokenizer: PreTrainedTokenizerBase,
    *,
    notify: Callable[[str], None] = LOG.warning,
) -> PreTrainedModel:
    """A causal language model, ready to be trained.

    Args:
        configuration: which model, and how it is computed. A PEFT adapter's folder gives its base model with the adapter
            merged into it.
        tokenizer: the model's; its ids must be rows of the embedding.
        notify: takes a sentence on what was changed or left unread.

    Returns:
        the model in training mode, on its device, with dropout switched off unless the configuration keeps it.

    Raises:
        UsageError: the model is not there, is of another kind, lacks weights or has some of another shape, or does not fit
            its tokenizer or the configuration.
    """
    model = _language_model(configuration, notify)
    _check_vocabulary(model, tokenizer, configuration)
    return _ready(model, configuration)


def load_reward_model(
    configuration: ModelConfiguration, tokenizer: PreTrainedTokenizerFast, *, new_head: bool, seed: int = 0
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """A sequence-classification model whose one label is the reward r(x, y), read at the last token that is no padding.

    A language model gets a new linear head with weights from N(0, 1/(d+1)), d the hidden size, so that first rewards are of the
    order of 1 (Stiennon et al. 2020; Huang et al. 2024, detail of the reward head). Where no token can be told from padding,
    the tokenizer and the model get one that can (:func:`give_own_pad_token`).

    Args:
        configuration: which model, and how it is computed.
        tokenizer: the model's; it may get a padding token.
        new_head: whether a language model, which has no reward head, is accepted. A head that is there is kept in any case.
        seed: of the new head.

    Returns:
        the model as :func:`load_policy` returns it, and sentences on what was changed.

    Raises:
        UsageError: as for :func:`load_policy`; or there is no head, or it is not one linear layer without bias to one label.
    """
    notices: list[str] = []
    name = configuration.model
    folder = local_folder(name)
    if is_adapter(folder):
        raise UsageError(f"--model {name} is an adapter; for a reward model, give the folder of the merged model")
    config = read_configuration(folder, configuration)
    if is_language_model(config):
        if not new_head:
            raise UsageError(
                f"--model {name} is a language model, {_saved_by(config)}, without a reward head;"
                " give a reward model, as `surefoot align reward` makes it"
            )
        if not has_classifier(config):
            raise UsageError(
                f"--model {name}: transformers has no sequence-classification model for {config.model_type}, so no reward model and no"
                " critic of its own; take --critic shared or --weight group"
            )
        config.num_labels = 1
    elif is_reward_model(config):
        new_head = False
        if config.num_labels != 1:
            raise UsageError(f"--model {name} has {config.num_labels} labels; a reward model has one")
    else:
        raise UsageError(f"--model {name} is neither a language model nor a reward model: {_saved_by(config)}")
    model, report = _load(AutoModelForSequenceClassification, folder, config, configuration, notices.append)
    head_name = _head_name(model)
    head: Any = getattr(model, head_name, None)
    if not isinstance(head, torch.nn.Linear) or head.bias is not None:
        raise UsageError(f"--model {name}: the head of {type(model).__name__} is not one linear layer without bias")
    _check_weights(report, name, {f"{head_name}.weight"} if new_head else set())
    unread = sorted(report["unexpected_keys"])
    if new_head:
        unread = [key for key in unread if key.startswith(f"{model.base_model_prefix}.")]  # not the language model's own head
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(head.weight.shape, generator=generator) / (head.in_features + 1) ** 0.5
        head.weight.data.copy_(drawn)
        notices.append(f"{name} is a language model: its reward head is new, drawn from N(0, 1/{head.in_features + 1})")
    _tell_unread(unread, name, notices.append)
    _check_vocabulary(model, tokenizer, configuration)
    notices += give_own_pad_token(model, tokenizer, folder)
    return _ready(model, configuration), tuple(notices)


def hidden_states_and_head(model: Any) -> tuple[PreTrainedModel, torch.nn.Linear]:
    """The two halves of a model: what computes hidden states, and the linear layer on top.

    Args:
        model: causal, or for sequence classification; as it is, or inside a PEFT model, whose layers stay active.

    Returns:
        (trunk, head): ``head(trunk(ids).last_hidden_state)`` are the logits or, at each token, the reward. A few families do
        more to the logits (Gemma 2 bounds them, Cohere scales them); they must be told apart by comparing.
    """
    inner = model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model
    head = inner.get_output_embeddings()
    if head is None:
        head = getattr(inner, _head_name(inner))
        if hasattr(head, "modules_to_save"):  # PEFT's wrapper; the head that is trained is inside
            head = head.modules_to_save[head.active_adapters[0]]
    # Llama 4 names as its base what it is itself a part of, and has none of that name.
    return getattr(inner, "model", inner) if inner.base_model is inner else inner.base_model, head


def _language_model(configuration: ModelConfiguration, notify: Callable[[str], None]) -> PreTrainedModel:
    folder = local_folder(configuration.model)
    if is_adapter(folder):
        return _with_adapter(folder, configuration, notify)
    config = read_configuration(folder, configuration)
    if not is_language_model(config):
        kind = "a reward model" if is_reward_model(config) else "no causal language model"
        raise UsageError(
            f"--model {configuration.model} is {kind}: it was saved by {_saved_by(config)};"
            " give a model of a class whose name ends in ForCausalLM"
        )
    model, report = _load(AutoModelForCausalLM, folder, config, configuration, notify)
    _check_weights(report, configuration.model, set())
    _tell_unread(sorted(report["unexpected_keys"]), configuration.model, notify)
    _check_causal(model, configuration.model)
    settle_tying(model)
    return model


def _with_adapter(folder: Path, configuration: ModelConfiguration, notify: Callable[[str], None]) -> PreTrainedModel:
    """The adapter's base model with the adapter merged into it."""
    name = configuration.model
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise UsageError(f"--model {name} is an adapter without {ADAPTER_WEIGHTS}; save it with a current version of PEFT")
    check_adapter(folder, name, ADAPTER_WEIGHTS)
    settings, base_name = base_of(folder, name)
    if is_adapter(Path(base_name).expanduser()):
        raise UsageError(f"--model {name} is an adapter to another adapter, {base_name}; merge that one first")
    try:
        base = _language_model(replace(configuration, model=base_name), notify)
    except UsageError as error:
        raise UsageError(f"--model {name} is an adapter to a base model, and {error}") from error
    merged = merged_into(base, folder, settings, name, notify)
    tokenizer = "" if holds_vocabulary(folder) else "; it holds no tokenizer, so that the base model's is taken"
    notify(f"{name} is an adapter: it is merged into its base model, {base_name}{tokenizer}")
    return merged


def _load(
    kind: Any,
    folder: Path,
    config: PretrainedConfig,
    configuration: ModelConfiguration,
    notify: Callable[[str], None],
) -> tuple[PreTrainedModel, Mapping[str, Any]]:
    """The model in evaluation mode on the CPU, and which weights did not fit it."""
    name = configuration.model
    _settle_dropout(config, configuration, notify)
    with sentences(name):
        model, report = kind.from_pretrained(
            folder,
            config=config,
            dtype=weights_dtype(configuration),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=configuration.trust_remote_code,
            ignore_mismatched_sizes=True,  # so that they are reported, and refused below in a sentence
            output_loading_info=True,
        )
    model.config.name_or_path = model.name_or_path = name
    return model, report


def _head_name(model: PreTrainedModel) -> str:
    return next((name for name in HEADS if hasattr(model, name)), HEADS[0])


def _check_weights(report: Mapping[str, Any], name: str, may_be_missing: set[str]) -> None:
    if wrong := sorted(report["mismatched_keys"]):
        key, given, wanted = wrong[0]
        raise UsageError(
            f"--model {name}: {key} has shape {tuple(given)} in the file, and {tuple(wanted)} by config.json;"
            " the two belong to different models"
        )
    if missing := set(report["missing_keys"]) - may_be_missing:
        raise UsageError(f"--model {name} lacks weights: {some(missing)}; give a folder with all of them")


def _settle_dropout(config: PretrainedConfig, configuration: ModelConfiguration, notify: Callable[[str], None]) -> None:
    """Set every probability of dropout in the configuration to 0, before modules are built from it."""
    parts = {id(part): part for part in (config, config.get_text_config())}.values()
    active = [(part, name, value) for part in parts for name, value in vars(part).items() if _is_dropout(name, value)]
    if configuration.dropout:
        if not active:
            raise UsageError(f"--dropout would do nothing: {configuration.model} is configured without any; leave it out")
        return
    for part, name, _ in active:
        setattr(part, name, 0.0)
    if active:
        names = ", ".join(f"{name} {value}" for _, name, value in active)
        notify(f"dropout is off: {len(active)} of the model's settings became 0 ({names}); --dropout keeps them")


def _is_dropout(name: str, value: object) -> bool:
    if name.startswith(("classifier_", "summary_")):  # of heads that are not used here
        return False
    return "drop" in name and isinstance(value, float | int) and not isinstance(value, bool) and 0 < value <= 1


def _check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, configuration: ModelConfiguration) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    largest = max(tokenizer.get_vocab().values())
    if largest >= rows:
        raise UsageError(
            f"--model {configuration.model}: its embedding has {rows} rows, and its tokenizer ids up to {largest};"
            " give the tokenizer that the model was trained with"
        )
    for settings in (model.config, getattr(model, "generation_config", None)):
        named = getattr(settings, "eos_token_id", None)
        for end in named if isinstance(named, list) else [] if named is None else [named]:
            if type(end) is not int or not 0 <= end < rows:
                raise UsageError(
                    f"--model {configuration.model}: its settings name {end!r} as a token that ends, which is no id of it"
                )


def _check_causal(model: PreTrainedModel, name: str) -> None:
    """Predictions after a token must not depend on the next one: an encoder can be saved under a language model's name."""
    with torch.no_grad(), sentences(name, "compute two tokens"):
        first, second = model(torch.tensor([[0, 1], [0, 2]])).logits[:, 0].float()
    if not torch.isfinite(first).all():
        raise UsageError(f"--model {name} computes numbers that are not finite; its weights are damaged")
    if not torch.allclose(first, second, rtol=1e-3, atol=1e-3 * float(first.abs().max())):
        raise UsageError(f"--model {name} is no causal language model: what it predicts depends on the tokens that follow")


def _ready(model: PreTrainedModel, configuration: ModelConfiguration) -> PreTrainedModel:
    if not configuration.dropout:
        for module in model.modules():  # probabilities that are written in a model's code
            if isinstance(module, _DropoutNd):
                module.p = 0.0
    # An embedding's padding row gets no gradient, and where a model pads with its EOS that row is a real token's.
    model.get_input_embeddings().padding_idx = None
    model.config.use_cache = False
    if configuration.gradient_checkpointing:
        if not model.supports_gradient_checkpointing:
            raise UsageError(f"--gradient-checkpointing: {type(model).__name__} cannot; leave it out")
        with quiet():
            model.gradient_checkpointing_enable()
    return model.to(device_of(configuration)).train()


def _tell_unread(keys: list[str], name: str, notify: Callable[[str], None]) -> None:
    if keys:
        notify(Caution(f"{name} holds weights that the model has no place for, and that are left out: {some(keys)}"))


def _saved_by(config: PretrainedConfig) -> str:
    return ", ".join(config.architectures or [type(config).__name__])
