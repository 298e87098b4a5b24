"""From texts to ids: what begins a text, what continues one, and what a tokenizer puts before it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from surefoot.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

AT_ONCE = 2048
"""Texts per call of the tokenizer: enough for its threads, few enough that their bookkeeping stays small."""


def content_of(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """All that makes a fast tokenizer what it is, as in its tokenizer.json, whatever truncation or padding was last in use.

    Raises:
        UsageError: a part of it is code in Python, which cannot be written out.
    """
    try:
        content: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    except Exception as error:  # the library raises nothing more precise
        raise UsageError(f"a part of this tokenizer is code, and cannot be written out: {error}") from error
    content["truncation"] = content["padding"] = None
    return content


class Encoder:
    """Texts to ids, beginnings and continuations apart.

    A prompt begins a text, an answer continues one. SentencePiece's tokenizers put a space before the first word of any text
    they are given; before an answer it would be a space that the data do not have. Continuations are therefore encoded by
    a copy of the tokenizer from which that is taken out: Metaspace's prepend_scheme, a Prepend normaliser, ByteLevel's
    add_prefix_space.

    Both are copies, without the truncation and padding that may be set in the original, which is never changed.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Copy it; raises UsageError where it holds code that cannot be copied."""
        from tokenizers import Tokenizer

        content = content_of(tokenizer)
        self._begin = Tokenizer.from_str(json.dumps(content))
        changed = _without_space_before(content)
        self._continue = Tokenizer.from_str(json.dumps(content)) if changed else self._begin
        for backend in (self._begin, self._continue):
            backend.encode_special_tokens = bool(tokenizer.split_special_tokens)
        self.bos: int | None = tokenizer.bos_token_id
        self.eos: int | None = tokenizer.eos_token_id
        self.bos_text: str = tokenizer.bos_token or ""
        self.eos_text: str = tokenizer.eos_token or ""
        self.beginning = self._put_before()
        """Ids that the tokenizer puts before a text: BOS, or nothing."""

    def _put_before(self) -> tuple[int, ...]:
        encoding = self._begin.encode("a", add_special_tokens=True)
        put = []
        for token, added in zip(encoding.ids, encoding.special_tokens_mask, strict=True):
            if not added or (token == self.eos and token != self.bos):
                break
            put.append(token)
        return tuple(put)

    @property
    def start(self) -> tuple[int, ...]:
        """What an empty prompt consists of: what the tokenizer puts before a text, else BOS, else EOS, else nothing."""
        if self.beginning:
            return self.beginning
        return tuple(token for token in (self.bos, self.eos) if token is not None)[:1]

    def encode(self, texts: Sequence[str], *, continuing: bool) -> list[np.ndarray]:
        """Ids of each text, int32, without anything put before or behind.

        Args:
            texts: what to encode.
            continuing: whether text stands before each of them.

        Raises:
            UsageError: the tokenizer has no token for something in a text, and none for what is unknown.
        """
        backend = self._continue if continuing else self._begin
        ids: list[np.ndarray] = []
        for i in range(0, len(texts), AT_ONCE):
            try:
                encodings = backend.encode_batch_fast(list(texts[i : i + AT_ONCE]), add_special_tokens=False)
            except Exception as error:  # the library raises nothing more precise
                raise UsageError(f"the tokenizer cannot encode a text of these data: {error}") from error
            ids.extend(np.array(encoding.ids, dtype=np.int32) for encoding in encodings)
        return ids


def _without_space_before(content: dict[str, Any]) -> bool:
    """Take out of a serialised tokenizer what puts a space before a text; whether there was something."""
    changed = False
    normalizer = content["normalizer"]
    if _is(normalizer, "Prepend"):
        content["normalizer"], changed = None, True
    elif _is(normalizer, "Sequence"):
        kept = [part for part in normalizer["normalizers"] if not _is(part, "Prepend")]
        changed = len(kept) < len(normalizer["normalizers"])
        normalizer["normalizers"] = kept
    first = content["pre_tokenizer"]
    for part in first["pretokenizers"] if _is(first, "Sequence") else [first]:
        if _is(part, "Metaspace") and part["prepend_scheme"] != "never":
            part["prepend_scheme"], changed = "never", True
        if _is(part, "ByteLevel") and part["add_prefix_space"]:
            part["add_prefix_space"], changed = False, True
    return changed


def _is(part: Any, kind: str) -> bool:
    return part is not None and part["type"] == kind
