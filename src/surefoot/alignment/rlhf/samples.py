"""``samples.jsonl``: some answers of some iterations, as a reader sees them."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from surefoot.alignment.data.tokenization.ends import AnswerEnds
from surefoot.alignment.rlhf.experience import Experience
from surefoot.errors import RunError

SAMPLES_FILE = "samples.jsonl"
SHOWN = 4
"""Prompts whose answers an entry holds."""


class SampleFile:
    """Adds whole entries to a run's sample answers.

    Args:
        run: the run's folder.
        tokenizer: the policy's.
        ends: of its answers; by the tokenizer alone where they are not given.
    """

    def __init__(self, run: Path, tokenizer: PreTrainedTokenizerFast, ends: AnswerEnds | None = None) -> None:
        self._path, self._tokenizer = run / SAMPLES_FILE, tokenizer
        self._ends = ends or AnswerEnds.of(tokenizer)

    def write(self, experience: Experience, *, iteration: int) -> None:
        """Add the answers to the first prompts of an iteration.

        Raises:
            RunError: the disk is full; the entries before are whole.
        """
        content = "".join(self._lines(experience, iteration)).encode()
        try:
            with open(self._path, "ab", buffering=0) as file:
                before = file.tell()
                if file.write(content) < len(content):
                    with contextlib.suppress(OSError):
                        file.truncate(before)  # no torn line
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise RunError(f"cannot write {self._path}: {error.strerror}; the entries before are kept") from error

    def _lines(self, experience: Experience, iteration: int) -> list[str]:
        kl, lines = experience.kl_to_reference, []
        for one in experience.batch[:SHOWN]:
            conversation = not isinstance(one.prompt.text, str)
            for number, answer in enumerate(one.answers, start=one.first):
                ended = bool(experience.finished[number])
                read = self._ends.without(answer, conversation=conversation) if ended else answer
                entry = {
                    "iteration": iteration,
                    "row": one.prompt.number,
                    "prompt": one.prompt.text,
                    "answer": self._tokenizer.decode(read, skip_special_tokens=True),
                    "finished": ended,
                    "reward": float(experience.rewards[number]),
                } | ({} if kl is None else {"kl": float(kl[number])})
                lines.append(json.dumps(entry, ensure_ascii=False) + "\n")
        return lines

    def length(self) -> int:
        """Bytes, which are brought to the disk.

        Raises:
            RunError: the disk is full.
        """
        try:
            with open(self._path, "r+b") as file:
                os.fsync(file.fileno())
                return os.fstat(file.fileno()).st_size
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise RunError(f"cannot write {self._path}: {error.strerror}; the entries before are kept") from error

    def cut_back(self, length: int) -> str | None:
        """Forget what was written after a :meth:`length`; returns a sentence where some of what was before is missing.

        Raises:
            ValueError: it is no length.
        """
        if length < 0:
            raise ValueError(f"samples {length}")
        there = self.length()
        if there > length:
            os.truncate(self._path, length)
        return f"{self._path} is shorter than it was: entries are missing from it" if there < length else None
