"""Tokens on disk, so that the same data need not be tokenised again.

An entry is found by everything that its tokens depend on, so there is nothing to invalidate: other data, another tokenizer,
template or limit is another entry. It is two files, KEY.safetensors and KEY.json; the second holds the first one's checksum.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import platformdirs
from safetensors import SafetensorError
from safetensors.numpy import load as safetensors_load
from safetensors.numpy import save

from surefoot.alignment.data.configuration import DataConfiguration
from surefoot.alignment.data.examples import Example
from surefoot.alignment.data.tokenization.encoder import content_of
from surefoot.alignment.data.tokenization.templates import template_of
from surefoot.errors import UsageError
from surefoot.runs.directory import read_json, write_json, write_whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VERSION = 2
"""Of the rules by which rows become tokens, and of the files here; a change of either makes every entry another one."""


def default_folder() -> Path:
    """In the user's cache folder, safe to delete."""
    return platformdirs.user_cache_path("surefoot") / "tokens"


def key_of(content: str, configuration: DataConfiguration, tokenizer: PreTrainedTokenizerFast, *, purpose: str) -> str:
    """SHA-256 over all that tokens depend on, in hexadecimal.

    Args:
        content: checksum of the data.
        configuration: format, limits and policies; where the data lie makes no difference.
        tokenizer: its whole content counts, with its special tokens and chat template.
        purpose: what the examples are for.
    """
    parts = {
        "version": VERSION,
        "content": content,
        "purpose": purpose,
        "format": configuration.format,
        "max_length": configuration.max_length,
        "overlong": configuration.overlong,
        "ties": configuration.ties,
        "tokenizer": content_of(tokenizer),
        "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "split_special_tokens": bool(tokenizer.split_special_tokens),
        "template": template_of(tokenizer),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class Damaged(Exception):
    """What lies in the cache is not what was put there."""


def load(folder: Path, key: str) -> tuple[list[Example], dict[str, Any]] | None:
    """Examples and what was said of them; None where there is no such entry.

    Raises:
        Damaged: there is one, and it cannot be trusted.
    """
    tokens, manifest = folder / f"{key}.safetensors", folder / f"{key}.json"
    try:
        if not manifest.is_file():
            return None
        stated = read_json(manifest)
        content = tokens.read_bytes()
        if stated.get("key") != key or stated.get("sha256") != hashlib.sha256(content).hexdigest():
            raise Damaged("its checksum does not fit")
        return unpack(content)
    except (OSError, UsageError, SafetensorError, ValueError, KeyError) as error:
        raise Damaged(str(error)) from error


def store(folder: Path, key: str, examples: Sequence[Example], said: dict[str, Any]) -> None:
    """Write an entry: first its tokens, then the manifest that vouches for them.

    Raises:
        RunError: the folder cannot be written.
    """
    content = pack(examples, said)
    write_whole(folder / f"{key}.safetensors", content)
    write_json(folder / f"{key}.json", {"version": VERSION, "key": key, "sha256": hashlib.sha256(content).hexdigest()})


def pack(examples: Sequence[Example], said: dict[str, Any]) -> bytes:
    """Examples as one safetensors file: ids one after the other with their lengths, each prompt once."""
    prompts: dict[bytes, int] = {}
    which = [prompts.setdefault(example.prompt.tobytes(), len(prompts)) for example in examples]
    answers = [ids for example in examples for ids in example.completions]
    pairs = [pair for example in examples for pair in example.pairs]
    arrays = {
        "said": np.frombuffer(json.dumps(said).encode(), dtype=np.uint8),
        "numbers": _whole(example.number for example in examples),
        "prompt": _whole(which),
        "prompt_lengths": _whole(len(prompt) // 4 for prompt in prompts),
        "prompt_tokens": np.frombuffer(b"".join(prompts), dtype=np.int32),
        "answers": _whole(len(example.completions) for example in examples),
        "answer_lengths": _whole(map(len, answers)),
        "answer_tokens": np.concatenate([np.zeros(0, np.int32), *answers]),
        "ranked": _whole(example.ranks is not None for example in examples),
        "ranks": _whole(rank for example in examples for rank in example.ranks or (0,) * len(example.completions)),
        "pair_counts": _whole(len(example.pairs) for example in examples),
        "pairs": _whole(answer for pair in pairs for answer in pair),
        "measured": _whole(example.margins is not None for example in examples),
        "margins": np.array([m for example in examples for m in example.margins or (0.0,) * len(example.pairs)], np.float64),
    }
    return save(arrays)


def unpack(content: bytes) -> tuple[list[Example], dict[str, Any]]:
    """What :func:`pack` wrote."""
    arrays = safetensors_load(content)
    prompts = _pieces(arrays["prompt_tokens"], arrays["prompt_lengths"])
    answers = iter(_pieces(arrays["answer_tokens"], arrays["answer_lengths"]))
    ranks = iter(arrays["ranks"].tolist())
    pairs = iter(zip(*[iter(arrays["pairs"].tolist())] * 2, strict=True))
    margins = iter(arrays["margins"].tolist())
    examples = []
    columns = ("numbers", "prompt", "answers", "ranked", "pair_counts", "measured")
    for number, prompt, count, ranked, pair_count, measured in zip(*(arrays[c].tolist() for c in columns), strict=True):
        row_ranks, row_margins = tuple(islice(ranks, count)), tuple(islice(margins, pair_count))
        examples.append(
            Example(
                number=number,
                prompt=prompts[prompt],
                completions=tuple(islice(answers, count)),
                ranks=row_ranks if ranked else None,
                pairs=tuple(islice(pairs, pair_count)),
                margins=row_margins if measured else None,
            )
        )
    return examples, json.loads(arrays["said"].tobytes())


def _whole(values: Iterable[int]) -> np.ndarray:
    return np.array(list(values), dtype=np.int64)


def _pieces(tokens: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    ends = np.cumsum(lengths).tolist()
    return [tokens[start:end] for start, end in zip([0, *ends], ends, strict=False)]
