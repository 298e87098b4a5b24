"""How well a trained model orders preferences that it has not seen, or predicts answers."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch

from surefoot.alignment.configuration import ADDED_LATER, OBJECTIVES, DPOConfiguration, RewardConfiguration
from surefoot.alignment.data.configuration import DataConfiguration, FormatName, Overlong
from surefoot.alignment.data.loading import load_examples
from surefoot.alignment.data.tokenization.tokenizer import load_tokenizer
from surefoot.alignment.durability.start import START_FOLDER
from surefoot.alignment.learning.memory import memory_in_a_sentence
from surefoot.alignment.learning.offline import evaluate_examples
from surefoot.alignment.likelihood.likelihood import Likelihood
from surefoot.alignment.methods.comparisons import choose_comparison
from surefoot.alignment.methods.dpo import DirectPreferenceOptimization
from surefoot.alignment.methods.method import Method, groups_of
from surefoot.alignment.methods.reward import RewardModelling
from surefoot.alignment.methods.sft import SupervisedFineTuning
from surefoot.alignment.models.configuration import ModelConfiguration
from surefoot.alignment.models.fingerprint import weights_fingerprint
from surefoot.alignment.models.loading import load_policy, load_reward_model
from surefoot.alignment.models.precision import autocast_dtype
from surefoot.alignment.preparation import longest
from surefoot.alignment.reference import LiveReference
from surefoot.errors import UsageError, require
from surefoot.runs.directory import CONFIGURATION_FILE, MODEL_FOLDER, read_json
from surefoot.runs.settings import Settings, part_from


@memory_in_a_sentence()
def evaluate_alignment(
    run: Path,
    *,
    data: str,
    format: FormatName = "auto",
    reference: str | None = None,
    max_length: int | None = None,
    batch_size: int = 16,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Score held-out preferences with a run's model: a reward model by its score, a policy of DPO or PPO by its implicit reward
    β (log π − log π_ref), a fine-tuned model by the likelihood of the answers.

    Args:
        run: folder of a run of ``surefoot align``.
        data: preferences, in any format that training takes.
        format: of the data.
        reference: the model that a policy of DPO or PPO started from; by default the run's own copy, which it has where it has checkpoints,
            else where the run found it. Its weights must be those that the run recorded.
        max_length: tokens that a prompt and one answer may have; as in the run by default.
        batch_size: prompts at a time.
        trust_remote_code: run the Python files that come with the run's model. What the run says of it does not count: it may be a
            stranger's.

    Returns:
        what ``surefoot evaluate --json`` prints: run, method, data, prompts, pairs, loss, metrics, for preferences accuracy (mean
        over prompts of the share of pairs in the right order, equal scores half right) and its standard error, that of as many
        single pairs, and seconds;
        ``notices`` are sentences for the user.

    Raises:
        UsageError: the run, the data or the reference cannot be used.
    """
    began = time.perf_counter()
    recorded = _recorded(run)
    method_name, notices = recorded["method"], list[str]()
    folder = run / MODEL_FOLDER
    require(folder.is_dir(), f"{run} holds no model: it was stopped before its first update was saved")
    require(
        reference is None or method_name in ("dpo", "ppo"),
        f"--reference does nothing for a run of {method_name}, which is compared with no other model; leave it out",
    )
    precision = recorded["precision"]
    settings = ModelConfiguration(
        str(folder),
        # An adapter is merged in float32: in half the bits most of what it adds would be rounded away here.
        precision="auto" if recorded["lora_rank"] and precision == "bfloat16" else precision,
        trust_remote_code=trust_remote_code,
    )
    tokenizer = load_tokenizer(str(folder), trust_remote_code=settings.trust_remote_code)
    limit = recorded["max_length"] if max_length is None else max_length
    loaded = load_examples(
        DataConfiguration(data, format=format, max_length=limit, overlong=recorded["overlong"], ties="pairs"),
        tokenizer,
        purpose="sft" if method_name == "sft" else "preference",
    )
    notices += loaded.notices
    examples = loaded.examples

    def likelihood_of(model: Any) -> Likelihood:
        likelihood = Likelihood(model.eval(), autocast=autocast_dtype(settings), share_prompts=recorded["share_prompts"])
        if notice := likelihood.check(groups_of(longest(examples))):
            notices.append(notice)
        return likelihood

    method: Method
    if method_name == "reward":
        model, said = load_reward_model(settings, tokenizer, new_head=False)
        notices += said
        reward = _choices(RewardConfiguration, recorded)
        if reward.use_margins and any(example.margins is None for example in examples):
            notices.append("the run asked for margins; where these data have none, the loss is without them")
        method = RewardModelling(likelihood_of(model), reward, recorded["comparison"])
    elif method_name in ("dpo", "ppo"):
        policy = likelihood_of(load_policy(settings, tokenizer, notify=notices.append))
        start = run / START_FOLDER
        where = reference or (str(start) if start.is_dir() else None)
        live = _reference(recorded, where, tokenizer, settings, policy, notices)
        if method_name == "dpo":
            choices, comparison = _choices(DPOConfiguration, recorded), recorded["comparison"]
        else:  # its optimum is π_ref exp(r/β)/Z too, so β log π/π_ref is the reward that it has come to stand for
            choices = DPOConfiguration(beta=recorded["beta"] or 1.0)
            comparison = choose_comparison(choices, examples)
        method = DirectPreferenceOptimization(policy, live, choices, comparison)
    else:
        method = SupervisedFineTuning(likelihood_of(load_policy(settings, tokenizer, notify=notices.append)))
    with torch.no_grad():
        metrics = evaluate_examples(method, examples, batch_size=batch_size)
    result = {
        "run": str(run),
        "method": method_name,
        "data": data,
        "prompts": len(examples),
        "pairs": sum(len(example.pairs) for example in examples),
        "loss": metrics["loss"],
        "accuracy": metrics.get("accuracy"),
        "metrics": metrics,
        "seconds": time.perf_counter() - began,
        "notices": notices,
    }
    if (accuracy := result["accuracy"]) is not None:
        result["standard_error"] = math.sqrt(accuracy * (1 - accuracy) / len(examples))
    return result


def _recorded(run: Path) -> dict[str, Any]:
    """What the run's config.json says, whole."""
    recorded = read_json(run / CONFIGURATION_FILE)
    require(
        "method" in recorded,
        f"{run} is not a run of `surefoot align`; leave --data out, and its policy is evaluated in its environment",
    )
    kind = OBJECTIVES.get(recorded["method"]) if isinstance(recorded["method"], str) else None
    wanted = {
        "precision",
        "lora_rank",
        "max_length",
        "overlong",
        "share_prompts",
        "model",
        "model_folder",
        "comparison",
    }
    wanted |= {"reference_fingerprint"} | ({field.name for field in fields(kind)} if kind is not None else set())
    missing = sorted(wanted - recorded.keys() - ADDED_LATER.keys())
    require(not missing, f"{run / CONFIGURATION_FILE} lacks {', '.join(missing)}; it was altered, or is of another version")
    try:
        part_from(_Recorded, recorded)
        if kind is not None:
            part_from(kind, recorded)
    except UsageError as error:
        raise UsageError(
            f"{run / CONFIGURATION_FILE} cannot be used: {error}; it was altered, or is of another version"
        ) from error
    return recorded


@dataclass(frozen=True)
class _Recorded(Settings):
    """What is read of a configuration beside the method's own choices, and what it may be."""

    method: Literal["sft", "reward", "dpo", "ppo"]
    model: str
    model_folder: str | None
    precision: Literal["auto", "float32", "bfloat16"]
    lora_rank: int
    max_length: int
    overlong: Overlong
    share_prompts: bool
    comparison: Literal["bradley-terry", "plackett-luce", "ipo"] | None
    reference_fingerprint: str | None

    def _check(self) -> None:
        compared = self.method in ("reward", "dpo")
        require(not compared or self.comparison is not None, f"comparison is None, where {self.method} needs one")


def _choices(kind: Any, recorded: dict[str, Any]) -> Any:
    """A method's choices as the run recorded them."""
    return part_from(kind, recorded)


def _reference(
    recorded: dict[str, Any],
    given: str | None,
    tokenizer: Any,
    settings: ModelConfiguration,
    policy: Likelihood,
    notices: list[str],
) -> LiveReference:
    """The model that the policy started from, found by name and known by its weights."""
    name = given or recorded["model_folder"] or recorded["model"]
    try:
        model = load_policy(replace(settings, model=name, precision=recorded["precision"]), tokenizer, notify=notices.append)
    except UsageError as error:
        if given is not None:
            raise
        raise UsageError(
            f"the policy's implicit reward needs the model that it started from: {error}; --reference says where it is"
        ) from error
    if weights_fingerprint(model) != recorded["reference_fingerprint"]:
        raise UsageError(f"{name} does not have the weights that the policy started from; --reference says where they are")
    return LiveReference(policy.of(model.eval()))
