"""Loading a model's tokenizer."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surefoot.alignment.data.reading.hub import hub_or_cache
from surefoot.alignment.models.strangers import ADAPTER_FILE, check_settings, holds_vocabulary
from surefoot.errors import UsageError, what_it_says
from surefoot.runs.directory import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def load_tokenizer(model: str, *, trust_remote_code: bool = False, of_adapter: bool = False) -> PreTrainedTokenizerFast:
    """The tokenizer of a model's folder, or of a name on the Hugging Face hub; where an adapter's folder holds none, its base model's.

    Args:
        model: the folder or the name.
        trust_remote_code: run tokenizer code that comes with the model.
        of_adapter: the model is the base of an adapter, and no adapter itself: two that name each other would lead in a circle.

    Raises:
        UsageError: there is no tokenizer, it is empty, it has no fast version, it wants to run code of its own, or the name can be
            reached neither over the network nor in the cache.
    """
    try:
        from transformers import AutoTokenizer
    except ModuleNotFoundError:
        raise UsageError("this needs transformers; install it with: pip install 'surefoot[alignment]'") from None
    from surefoot.alignment.models.folders import quiet  # which needs transformers, too

    folder = Path(model).is_dir()
    if folder and not of_adapter and (base := _base_of_adapter(Path(model))) is not None:
        return load_tokenizer(base, trust_remote_code=trust_remote_code, of_adapter=True)
    if not folder and model.startswith(("/", ".")):
        raise UsageError(f"{model} does not exist; give a model's folder, or a name on the Hugging Face hub")
    if folder and not trust_remote_code and not holds_vocabulary(Path(model)):
        raise UsageError(f"{model} holds no tokenizer; a model's folder has one in tokenizer.json")
    if folder:
        check_settings(Path(model), model)
    with nullcontext(True) if folder else hub_or_cache() as reachable:
        try:
            with quiet():
                tokenizer: Any = AutoTokenizer.from_pretrained(
                    model, trust_remote_code=trust_remote_code, local_files_only=folder
                )
        except Exception as error:  # damaged files raise whatever their readers make of them
            if "trust_remote_code" in str(error):
                raise UsageError(
                    f"the tokenizer of {model} is code that comes with the model; read that code, and allow it with"
                    " --trust-remote-code"
                ) from error
            if folder:
                raise UsageError(f"{model} holds no tokenizer that can be read: {what_it_says(error)}") from error
            if not reachable:
                raise UsageError(
                    f"{model} is no folder here, and as a name on the Hugging Face hub it can be reached neither over the"
                    " network nor in the cache; give a folder, or connect"
                ) from error
            if not of_adapter and (base := _base_of_adapter(_adapter_on_hub(model))) is not None:
                return load_tokenizer(base, trust_remote_code=trust_remote_code, of_adapter=True)
            raise UsageError(f"no tokenizer can be loaded from {model}: {what_it_says(error)}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise UsageError(f"the tokenizer of {model} has no fast version (tokenizer.json), which is needed here")
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise UsageError(f"the tokenizer of {model} has no tokens but special ones; its vocabulary is missing")
    return tokenizer


def _base_of_adapter(folder: Path | None) -> str | None:
    """The model that a folder's adapter belongs to, where its tokenizer is to be taken: PEFT writes none beside an adapter."""
    if folder is None or not (folder / ADAPTER_FILE).is_file() or holds_vocabulary(folder):
        return None
    base = read_json(folder / ADAPTER_FILE).get("base_model_name_or_path")
    return base if isinstance(base, str) and base else None


def _adapter_on_hub(model: str) -> Path | None:
    """A folder with the settings of an adapter, where they are what the hub has of that name."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    with suppress(HfHubHTTPError, OSError, ValueError):  # the tokenizer's own error says more
        return Path(hf_hub_download(model, ADAPTER_FILE)).parent
    return None
