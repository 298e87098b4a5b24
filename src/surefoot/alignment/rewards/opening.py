"""From what the user named to what gives rewards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from surefoot.alignment.data.tokenization.ends import AnswerEnds
from surefoot.alignment.data.tokenization.tokenizer import load_tokenizer
from surefoot.alignment.likelihood.likelihood import Likelihood
from surefoot.alignment.models.configuration import ModelConfiguration
from surefoot.alignment.models.folders import local_folder
from surefoot.alignment.models.loading import load_reward_model
from surefoot.alignment.models.precision import autocast_dtype
from surefoot.alignment.models.runs import model_of
from surefoot.alignment.rewards.function import FunctionReward
from surefoot.alignment.rewards.model import ModelReward
from surefoot.alignment.rewards.source import OpenedRewards
from surefoot.errors import UsageError
from surefoot.runs.directory import read_json


def open_reward(
    name: str,
    policy_tokenizer: PreTrainedTokenizerFast,
    *,
    settings: ModelConfiguration,
    share_prompts: bool = True,
    policy_ends: AnswerEnds | None = None,
) -> OpenedRewards:
    """A reward model, or a function.

    Args:
        name: ``module:function`` or ``path/to/file.py:function``; or the folder of a reward model or of a run of ``surefoot align
            reward``, or a reward model's name on the Hugging Face hub.
        policy_tokenizer: of the model whose answers are scored.
        settings: of the policy: a reward model is computed in the same place and precision, and runs code of its own under the same
            condition.
        policy_ends: of that model's answers; by its tokenizer alone where they are not given.
        share_prompts: compute a prompt once for all its answers, where the reward model can do so exactly.

    Raises:
        UsageError: there is nothing of that name, or it cannot give rewards.
    """
    if ":" in name and not Path(name).expanduser().is_dir():
        return FunctionReward(name, policy_tokenizer, policy_ends)
    try:
        return _open_model(name, policy_tokenizer, policy_ends, settings, share_prompts=share_prompts)
    except UsageError as error:
        raise UsageError(str(error).replace("--model ", "--reward ")) from error


def _open_model(
    name: str,
    policy_tokenizer: PreTrainedTokenizerFast,
    policy_ends: AnswerEnds | None,
    settings: ModelConfiguration,
    *,
    share_prompts: bool,
) -> ModelReward:
    model_name = model_of(name)
    folder = local_folder(model_name)
    trusted = settings.trust_remote_code and any("auto_map" in read_json(file) for file in folder.glob("*config.json"))
    configuration = replace(settings, model=model_name, dropout=False, gradient_checkpointing=False, trust_remote_code=trusted)
    tokenizer = load_tokenizer(model_name, trust_remote_code=trusted)
    model, notices = load_reward_model(configuration, tokenizer, new_head=False)
    likelihood = Likelihood(model, share_prompts=share_prompts, autocast=autocast_dtype(configuration))
    # It is never trained, so that its dropout being off is nothing to be told.
    told = [notice for notice in notices if not notice.startswith("dropout")]
    return ModelReward(likelihood, tokenizer, policy_tokenizer, policy_ends, name=model_name, notices=told)
