"""What ends an answer by a model's settings, and in what is saved of it."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import PreTrainedTokenizerFast
from transformers.utils import cached_file

from surefoot.alignment.data.reading.hub import hub_or_cache
from surefoot.alignment.data.tokenization.ends import AnswerEnds
from surefoot.alignment.models.folders import ADAPTER_FILE, quiet
from surefoot.runs.directory import read_json


def ends_of(model: str, tokenizer: PreTrainedTokenizerFast) -> AnswerEnds:
    """What ends an answer of a model, by its tokenizer with the chat template, and by its settings."""
    return AnswerEnds.of(tokenizer, named_ends(model))


def named_ends(model: str) -> tuple[int, ...]:
    """Ids that a model's settings name as ends: those of generation_config.json, or of config.json where there is none.

    Args:
        model: a folder, or a name on the Hugging Face hub; of an adapter, its base model's settings count. What is no id there is
            passed over, since loading the model refuses it.
    """
    with nullcontext() if Path(model).expanduser().is_dir() else hub_or_cache():
        adapter = _settings(model, ADAPTER_FILE)
        base = adapter.get("base_model_name_or_path") if adapter is not None else None
        model = base if isinstance(base, str) else model
        settings = _settings(model, "generation_config.json")
        if settings is None:
            settings = _settings(model, "config.json") or {}
            inner = settings.get("text_config")
            if settings.get("eos_token_id") is None and isinstance(inner, dict):
                settings = inner
    return tuple(token for token in listed(settings.get("eos_token_id")) if type(token) is int and token >= 0)


def write_ends(model: Any, tokenizer: PreTrainedTokenizerFast, ends: AnswerEnds) -> None:
    """Make a loaded model's settings say what the tokenizer says and training goes by, so that plain ``generate`` on what is saved
    of it ends where sampling did: the ends, the token that pads, and BOS.

    Args:
        model: as it was loaded, without an adapter; for sequence classification, or a language model.
        tokenizer: its own.
        ends: of its answers.
    """
    generation = getattr(model, "generation_config", None)
    for part in (generation, model.config, model.config.get_text_config()):
        if part is None:
            continue
        # Those that config.json names stay there.
        ids = list(
            dict.fromkeys((*ends.sampling, *([] if part is generation else listed(getattr(part, "eos_token_id", None)))))
        )
        values = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id}
        values["eos_token_id"] = ids[0] if len(ids) == 1 else ids or None
        for name, value in values.items():
            if value is None or not hasattr(part, name):  # the outer settings of some models are their parts' alone
                continue
            try:
                setattr(part, name, value)
            except StrictDataclassFieldValidationError:  # a few families' settings hold one id
                setattr(part, name, ids[0])


def _settings(model: str, name: str) -> dict[str, Any] | None:
    """One of the files beside a model; None where there is none."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        file: Any = folder / name if (folder / name).is_file() else None
    else:
        try:
            with quiet():
                file = cached_file(model, name, _raise_exceptions_for_missing_entries=False)
        except OSError:  # loading the tokenizer or the model has said so, or will
            file = None
    return None if file is None else read_json(Path(file))


def listed(value: Any) -> list[Any]:
    """What settings name as one id, several or none."""
    return value if isinstance(value, list) else [] if value is None else [value]
