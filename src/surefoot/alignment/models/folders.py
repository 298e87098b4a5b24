"""From what the user named to a folder with a configuration and safetensors weights, or a sentence that says what is missing."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from surefoot.alignment.learning.memory import is_lack_of_memory
from surefoot.alignment.models.configuration import ModelConfiguration
from surefoot.alignment.models.strangers import ADAPTER_FILE, check_model_files, check_settings, check_size
from surefoot.errors import UsageError, what_it_says
from surefoot.runs.directory import read_json

ADAPTER_WEIGHTS = "adapter_model.safetensors"
CLASSIFIER = "AutoModelForSequenceClassification"
FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.py"]
"""What is fetched from the hub, from a repository's top level only."""


def local_folder(model: str) -> Path:
    """The folder that a model is in: the one named, or the hub's copy, fetched if it is not in the cache.

    Raises:
        UsageError: there is no such folder and no such model on the hub, or the hub cannot be reached.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UsageError(f"--model {model} is a file; give the folder that it is in")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=FILES, ignore_patterns=["*/*", "consolidated*"]))
    except HFValidationError:
        raise UsageError(f"--model {model} does not exist; give a folder with a model, or its name on the hub") from None
    except LocalEntryNotFoundError as error:
        raise UsageError(
            f"--model {model} is no folder here, and the hub cannot be reached to look for it"
            f" ({what_it_says(error.__cause__ or error)}); give a folder, or try again with a network"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise UsageError(
            f"--model {model} is no folder here, and the hub does not give it: {what_it_says(error)}; give a folder with a model"
        ) from error


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds a PEFT adapter instead of a model."""
    return (folder / ADAPTER_FILE).is_file()


def read_configuration(folder: Path, configuration: ModelConfiguration) -> PretrainedConfig:
    """A model's config.json, once the folder is known to hold safetensors weights beside it.

    Raises:
        UsageError: no configuration, no safetensors weights, a kind of model that transformers does not know, or code of its
            own that was not asked to be run.
    """
    model = configuration.model
    if not (folder / "config.json").is_file():
        raise UsageError(f"--model {model} holds no config.json; give the folder that a model was saved in")
    check_settings(folder, model)
    if not any(folder.glob("*.safetensors")):
        if any(folder.glob("pytorch_model*.bin")):
            raise UsageError(
                f"--model {model} holds its weights as pickle, which can run code when it is read; convert them with: python -c"
                f' "import transformers as t; m = t.AutoModelForCausalLM.from_pretrained({model!r});'
                " m.save_pretrained('converted')\", copy the tokenizer's files, and give that folder"
            )
        raise UsageError(f"--model {model} holds no *.safetensors, so no weights; give the folder that a model was saved in")
    files = [folder / name for name in ("config.json", "tokenizer_config.json") if (folder / name).is_file()]
    has_code = any("auto_map" in read_json(file) for file in files)
    if configuration.trust_remote_code and not has_code:
        raise UsageError(f"--trust-remote-code would do nothing: {model} brings no code of its own; leave it out")
    check_model_files(folder, model)
    with sentences(model):
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=configuration.trust_remote_code)
    if getattr(config, "quantization_config", None) is not None:
        raise UsageError(f"--model {model} has quantised weights, which cannot be trained; give the model it was made from")
    if not has_code:
        with sentences(model):
            check_size(folder, config)
    return config


def is_language_model(config: PretrainedConfig) -> bool:
    """Whether the weights are those of a causal language model, by the class that saved them; so too where it is not named."""
    named = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    saved_by = config.architectures or ["ForCausalLM"]
    return any(name == named or name.endswith(("ForCausalLM", "LMHeadModel")) for name in saved_by)


def has_classifier(config: PretrainedConfig) -> bool:
    """Whether there is a sequence-classification model of the kind, in transformers or in code that comes with the model."""
    return type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING or CLASSIFIER in (getattr(config, "auto_map", None) or {})


def is_reward_model(config: PretrainedConfig) -> bool:
    """Whether the weights are those of a sequence-classification model."""
    return any(name.endswith("ForSequenceClassification") for name in config.architectures or [])


@contextmanager
def sentences(model: str, what: str = "be loaded") -> Iterator[None]:
    """What transformers, PEFT and safetensors complain about, as one sentence about a model.

    Args:
        model: what the user calls it.
        what: it cannot do, or have done with it.

    Raises:
        UsageError: whatever is raised within; a :class:`UsageError` as it is, and so is what says that the memory does not suffice.
    """
    try:
        with quiet():
            yield
    except UsageError:
        raise
    except Exception as error:  # whatever a damaged file makes its reader raise
        if is_lack_of_memory(error):
            raise
        if "trust_remote_code" in str(error):
            raise UsageError(
                f"--model {model} is computed by code that comes with it; read that code, and allow it with --trust-remote-code"
            ) from error
        raise UsageError(f"--model {model} cannot {what}: {what_it_says(error)}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, reports or warnings from transformers and PEFT: what matters is checked, and said in sentences."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def some(names: Iterable[str]) -> str:
    """The first names of many."""
    names = sorted(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
