"""From a configuration to a model, its method and its examples."""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from surefoot.alignment.configuration import AlignConfiguration, DPOConfiguration, RewardConfiguration
from surefoot.alignment.data.configuration import DataConfiguration, Purpose
from surefoot.alignment.data.examples import Example
from surefoot.alignment.data.loading import LoadedData, load_examples
from surefoot.alignment.data.splitting import split_examples
from surefoot.alignment.data.tokenization.ends import AnswerEnds
from surefoot.alignment.durability.start import StartKeeper
from surefoot.alignment.likelihood.likelihood import Likelihood
from surefoot.alignment.methods.comparisons import Comparison, choose_comparison
from surefoot.alignment.methods.dpo import DirectPreferenceOptimization
from surefoot.alignment.methods.method import Method, groups_of
from surefoot.alignment.methods.reward import RewardModelling
from surefoot.alignment.methods.sft import SupervisedFineTuning
from surefoot.alignment.models.adapters import adapter_switched_off, add_adapter, is_adapted
from surefoot.alignment.models.ending import write_ends
from surefoot.alignment.models.fingerprint import weights_fingerprint
from surefoot.alignment.models.loading import load_policy, load_reward_model
from surefoot.alignment.models.precision import autocast_dtype, device_of
from surefoot.alignment.reference import KeptReference, LiveReference, Reference, ReferenceCache, evaluate_reference
from surefoot.alignment.rlhf.configuration import PPOConfiguration
from surefoot.errors import Caution, RunError, UsageError
from surefoot.runs.progress import Progress

Tell = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Data:
    """What is trained on, and what is held out."""

    train: list[Example]
    held_out: list[Example]
    description: dict[str, Any]
    """Counts, for the model card."""
    fingerprint: str


def prepare_data(configuration: AlignConfiguration, tokenizer: PreTrainedTokenizerFast, tell: Tell) -> Data:
    """Read, tokenise and divide the data."""
    training = configuration.training
    purpose: Purpose = "sft" if configuration.method == "sft" else "preference"

    def read(data: DataConfiguration) -> LoadedData:
        loaded = load_examples(data, tokenizer, purpose=purpose)
        for notice in loaded.notices:
            tell(notice)
        return loaded

    loaded = read(configuration.data)
    if training.eval_data is not None:
        other = read(replace(configuration.data, data=training.eval_data, split=None))
        return Data(
            loaded.examples,
            other.examples,
            loaded.description | {"evaluation": other.description["source"]},
            loaded.fingerprint + other.fingerprint,
        )
    train, held_out = split_examples(loaded.examples, share=training.held_out, seed=training.seed)
    return Data(train, held_out, loaded.description | {"held out": len(held_out)}, loaded.fingerprint)


@dataclass(frozen=True, eq=False)
class Learner:
    """A model and how it is trained."""

    model: Any
    method: Method
    comparison: Comparison | None
    """What the objective is for these data; None for fine-tuning."""
    reference_fingerprint: str | None
    """Of the weights that the policy is compared with, where it is."""
    reference_seconds: float | None = None
    """What evaluating the reference beforehand took, where that was done; next to nothing where it was found in the cache."""


def prepare_model(
    configuration: AlignConfiguration,
    tokenizer: PreTrainedTokenizerFast,
    data: Data,
    ends: AnswerEnds,
    tell: Tell,
    *,
    quiet: bool = False,
    keep: StartKeeper | None = None,
) -> Learner:
    """Load the model, add the adapter, find out whether prompts can be shared, and make the method.

    With DPO the reference is evaluated here, unless it is live. ``keep`` is given what the run begins with: the model as it was loaded,
    and the reference's values.
    """
    training, seed, objective = configuration.training, configuration.training.seed, configuration.objective
    assert not isinstance(objective, PPOConfiguration)
    device_of(configuration.model)
    comparison = None if objective is None else choose_comparison(objective, data.train)
    if objective is not None and objective.objective == "auto":
        ranked = "every" if comparison == "plackett-luce" else "not every"
        tell(f"objective {comparison}, since {ranked} prompt has three or more ranked answers")
    if configuration.method == "reward":
        model, notices = load_reward_model(configuration.model, tokenizer, new_head=True, seed=seed)
        for sentence in notices:
            tell(sentence)
    else:
        model = load_policy(configuration.model, tokenizer, notify=tell)
    write_ends(model, tokenizer, ends)
    if keep is not None:
        keep.keep(model)
    if configuration.adapter.lora_rank:
        model = add_adapter(model, configuration.adapter, seed=seed, notify=tell)
    likelihood = Likelihood(model, share_prompts=training.share_prompts, autocast=autocast_dtype(configuration.model))
    everything = data.train + data.held_out
    check_length(likelihood, max(e.longest for e in everything), tell)
    if notice := likelihood.check(groups_of(longest(everything))):
        tell(notice)
    if isinstance(objective, RewardConfiguration):
        assert comparison is not None
        return Learner(model, RewardModelling(likelihood, objective, comparison), comparison, None)
    if isinstance(objective, DPOConfiguration):
        assert comparison is not None
        fingerprint = reference_fingerprint(model)
        began = time.perf_counter()
        reference = _reference(configuration, objective, likelihood, data, fingerprint, tell, quiet=quiet, keep=keep)
        seconds = None if objective.live_reference else time.perf_counter() - began
        method = DirectPreferenceOptimization(likelihood, reference, objective, comparison)
        return Learner(model, method, comparison, fingerprint, seconds)
    return Learner(model, SupervisedFineTuning(likelihood), None, None)


def longest(examples: Sequence[Example], count: int = 2) -> list[Example]:
    """The examples with the longest sequences."""
    return sorted(examples, key=lambda e: e.longest, reverse=True)[:count]


def check_length(likelihood: Likelihood, tokens: int, tell: Tell) -> None:
    """Refuse sequences that the model has no positions for, and say what else depends on their length.

    Raises:
        UsageError: a table of learned positions is shorter than the longest sequence.
    """
    trunk = likelihood.trunk
    config = trunk.config.get_text_config()
    most = getattr(config, "max_position_embeddings", None)
    if most is None or tokens <= most:
        return
    if any(isinstance(m, torch.nn.Embedding) and re.search("wpe|position", name) for name, m in trunk.named_modules()):
        raise UsageError(
            f"the longest sequence has {tokens} tokens, and the model has {most} positions; give --max-length {most}"
        )
    if likelihood.positions_depend_on_batch:
        said = f"beyond {most} tokens this model's rotary positions depend on the longest sequence of a batch"
        tell(Caution(f"{said}; --max-length {most} avoids it"))
    else:
        tell(Caution(f"sequences have up to {tokens} tokens, more than the {most} that the model was made for"))


def reference_fingerprint(model: Any) -> str:
    """Of the weights without an adapter."""
    with adapter_switched_off(model) if is_adapted(model) else nullcontext():
        return weights_fingerprint(model)


def _reference(
    configuration: AlignConfiguration,
    dpo: DPOConfiguration,
    likelihood: Likelihood,
    data: Data,
    fingerprint: str,
    tell: Tell,
    *,
    quiet: bool,
    keep: StartKeeper | None,
) -> Reference:
    """Before the first update the policy is the reference, and an adapter adds nothing.

    What was found in a cache may have been rounded otherwise than it would be here, so that a run's own values stay with it.
    """
    if dpo.live_reference:
        return live_reference(likelihood)
    live = LiveReference(likelihood)
    examples = data.train + data.held_out
    settings = {"shared": likelihood.shared, "precision": configuration.model.precision, "device": likelihood.device.type}
    depends_on = {"weights": fingerprint, "data": data.fingerprint, "order": [e.number for e in examples], **settings}
    cache = ReferenceCache(None if dpo.reference_cache is None else Path(dpo.reference_cache), depends_on)
    values = cache.read(examples)
    if values is None:
        with Progress("reference", len(examples), unit="prompts", quiet=quiet) as progress:
            began = time.perf_counter()

            def show(done: int) -> None:
                progress.update(done, rate=done / (time.perf_counter() - began), reached="")

            values = evaluate_reference(live, examples, batch_size=configuration.training.batch_size, tell=show)
        if notice := cache.write(values):
            tell(notice)
    if keep is not None and (notice := ReferenceCache(keep.reference, depends_on).write(values)):
        raise RunError(notice)
    return KeptReference(values, examples, likelihood.device)


def live_reference(likelihood: Likelihood) -> LiveReference:
    """A frozen copy of the policy as it is now, or the policy itself with its adapter off."""
    model = likelihood.model
    if is_adapted(model):
        return LiveReference(likelihood, lambda: adapter_switched_off(model))
    with torch.no_grad():
        copied = copy.deepcopy(model).eval().requires_grad_(False)
    return LiveReference(likelihood.of(copied))
