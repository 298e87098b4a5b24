"""What a model's folder may hold, looked at before any library reads it: it may come from anybody.

transformers and PEFT follow what a folder's JSON files say: which files hold weights, which modules to import, how large everything is.
What would lead out of the folder, run code, or take memory that no weights in the files account for is refused here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surefoot.errors import UsageError
from surefoot.runs.directory import LARGEST_JSON, read_json

if TYPE_CHECKING:
    from transformers import PretrainedConfig

ADAPTER_FILE = "adapter_config.json"
LARGEST_VOCABULARY = 1 << 29
"""Bytes of a tokenizer's file; the largest that are known have a tenth of that."""
VOCABULARIES = ("tokenizer.json", "tekken.json", "vocab.json")
SPARE = 1 << 26
"""Numbers that a model may have beside those in its files: a head that is new, masks, frequencies."""
LARGEST_COUNT = 1 << 20
"""Of labels: transformers gives each a name."""
MERGED = ("LORA", "ADALORA", "LOHA", "LOKR", "IA3", "OFT", "BOFT", "VERA", "HRA", "FOURIERFT")
"""Kinds of adapters that are nothing but weights, and that PEFT merges."""


def check_settings(folder: Path, name: str) -> None:
    """Refuse JSON files that would fill the memory, weights that config.json finds elsewhere, and kernels that would be fetched and run.

    Both a model and its tokenizer are read by what config.json says.

    Raises:
        UsageError: a file is too large, or says such a thing.
    """
    for file in (*folder.glob("*.json"), *folder.glob("*.jinja"), *folder.glob("vocab*"), *folder.glob("merges*")):
        largest = LARGEST_VOCABULARY if file.name in VOCABULARIES or file.suffix == ".txt" else LARGEST_JSON
        if file.is_file() and file.stat().st_size > largest:
            raise UsageError(f"--model {name}: {file.name} has {file.stat().st_size:,} bytes, and may have {largest:,}")
    if (folder / "config.json").is_file():
        _check_configuration(read_json(folder / "config.json"), name)


def holds_vocabulary(folder: Path) -> bool:
    """Whether a folder may hold a tokenizer; where there is none, transformers makes an empty one after the model's type."""
    return any(
        path.name in ("tokenizer.json", "tekken.json") or "vocab" in path.name or path.suffix in (".model", ".tiktoken")
        for path in folder.iterdir()
    )


def check_model_files(folder: Path, name: str) -> None:
    """Refuse weights in other places than the folder's own safetensors files.

    Raises:
        UsageError: a list of weights names them.
    """
    for index in folder.glob("*.index.json"):
        places = read_json(index).get("weight_map")
        if not isinstance(places, dict) or not isinstance(read_json(index).get("metadata", {}), dict):
            raise UsageError(f"--model {name}: {index.name} does not say which file holds which weight")
        for place in {str(place) for place in places.values()}:
            if Path(place).name != place or not place.endswith(".safetensors") or not (folder / place).is_file():
                raise UsageError(f"--model {name}: {index.name} names {place!r}, which is no safetensors file of that folder")


def check_size(folder: Path, config: PretrainedConfig) -> None:
    """Refuse a configuration of a larger model than the weights in the files are of, before memory is taken for it.

    Args:
        folder: with safetensors files.
        config: of the model.

    Raises:
        ValueError: it is larger, with what was counted.
    """
    import torch
    from safetensors import safe_open
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    numbers = tensors = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:  # which refuses a header that does not fit the file
            for key in opened.keys():  # noqa: SIM118 (not a dict)
                shape = opened.get_slice(key).get_shape()
                numbers, tensors = numbers + torch.Size(shape).numel(), tensors + 1
    layers: Any = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if not isinstance(layers, int) or not 0 <= layers <= tensors:
        raise ValueError(f"config.json describes {layers!r:.60} layers, and the files hold {tensors:,} weights in all")
    for key, value in _settings(config.to_dict()):
        if isinstance(value, int) and value > numbers and ("layer" in key or "expert" in key):
            raise ValueError(f"config.json says {key} {value:,}, and the files hold {numbers:,} numbers in all")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return  # it is refused for that
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    described = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    if described > 1.1 * numbers + SPARE:
        raise ValueError(f"config.json describes a model of {described:,} numbers, and the files hold {numbers:,}")


def check_adapter(folder: Path, name: str, weights: str) -> None:
    """Refuse adapters that are more than weights to be merged, or larger than what their file holds.

    Args:
        folder: with ``adapter_config.json``.
        name: what sentences call it.
        weights: the file's name.

    Raises:
        UsageError: it is one.
    """
    from safetensors import SafetensorError, safe_open

    check_settings(folder, name)
    settings = read_json(folder / ADAPTER_FILE)
    kind = settings.get("peft_type")
    if kind not in MERGED:
        raise UsageError(
            f"--model {name} is an adapter of the kind {kind!r}, which cannot be merged; there are {', '.join(MERGED)}"
        )
    if settings.get("megatron_config") is not None:
        raise UsageError(
            f"--model {name} is an adapter for Megatron, whose settings name modules to be imported; take them out"
        )
    try:
        with safe_open(folder / weights, framework="pt") as file:
            largest = max((size for key in file.keys() for size in file.get_slice(key).get_shape()), default=0)  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UsageError(f"--model {name}: {weights} cannot be read: {error}") from error
    patterns = settings.get("rank_pattern") or {}
    ranks = [settings.get("r"), *(patterns.values() if isinstance(patterns, dict) else ())]
    if any(isinstance(rank, int) and rank > largest for rank in ranks):
        raise UsageError(f"--model {name}: its adapter_config.json has a rank that no weight in {weights} has")
    if not isinstance(settings.get("base_model_name_or_path", ""), str | None):
        raise UsageError(
            f"--model {name}: its adapter_config.json names no base model, but {settings['base_model_name_or_path']!r}"
        )
    if settings.get("layer_replication"):
        raise UsageError(f"--model {name} is an adapter that copies layers of its base model, which cannot be merged")


def _check_configuration(config: dict[str, Any], name: str) -> None:
    saved_by = config.get("architectures") or []
    if not isinstance(saved_by, list) or not all(isinstance(kind, str) for kind in saved_by):
        raise UsageError(f"--model {name}: config.json names no classes as its architectures, but {saved_by!r}")
    if not isinstance(labels := config.get("num_labels", 1), int) or labels > LARGEST_COUNT:
        raise UsageError(f"--model {name}: config.json says num_labels {labels!r}; a reward model has one")
    for key, value in _settings(config):
        if key == "transformers_weights":
            raise UsageError(
                f"--model {name}: config.json names a file of weights of its own, {value!r}; call it model.safetensors"
            )
        if key.endswith("_implementation") and "/" in str(value):
            raise UsageError(f"--model {name}: config.json asks for {value!r}, code from the hub; take {key} out of it")


def _settings(value: Any) -> Iterator[tuple[str, Any]]:
    """Names and values, of the parts too."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield from part.items()
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
