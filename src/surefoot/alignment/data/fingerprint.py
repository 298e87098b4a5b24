"""A checksum of what a run learns from, so that one that goes on is known to go on with the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from surefoot.alignment.data.examples import Example

if TYPE_CHECKING:
    from surefoot.alignment.data.prompts import Prompt


def examples_fingerprint(examples: Sequence[Example]) -> str:
    """SHA-256 over all that examples are made of, in their order, in hexadecimal; where they were read from does not count."""
    digest = hashlib.sha256()
    for example in examples:
        about = [example.number, len(example.completions), example.ranks, example.pairs, example.margins]
        for part in (example.prompt, *example.completions):
            _add(digest, part)
        digest.update(json.dumps(about).encode())
    return digest.hexdigest()


def prompts_fingerprint(prompts: Sequence[Prompt]) -> str:
    """SHA-256 over prompts as ids and as text, and over the columns that reward functions may read, in hexadecimal."""
    digest = hashlib.sha256()
    for prompt in prompts:
        _add(digest, prompt.ids)
        digest.update(json.dumps([prompt.number, prompt.text, dict(prompt.columns)], sort_keys=True, default=repr).encode())
    return digest.hexdigest()


def _add(digest: hashlib._Hash, ids: np.ndarray) -> None:
    """The length first: it decides where one array ends and the next begins."""
    digest.update(len(ids).to_bytes(8, "little"))
    digest.update(np.ascontiguousarray(ids).tobytes())
