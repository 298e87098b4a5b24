"""Which preference data to read, and how they become tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from surefoot.errors import UsageError
from surefoot.runs.settings import Settings

FormatName = Literal["auto", "preference", "implicit", "ranked", "pairs", "scored", "completion", "messages", "prompt"]
Overlong = Literal["truncate", "drop"]
Ties = Literal["refuse", "pairs"]
Purpose = Literal["sft", "preference", "prompts"]
"""What the examples are for: one answer per prompt to imitate, several of which some are preferred to others, or prompts alone,
which a policy is to answer."""


@dataclass(frozen=True)
class DataConfiguration(Settings):
    """Prompts and answers: where they are, what shape they have, how long they may be."""

    data: str
    """A .jsonl, .json, .csv, .parquet or .arrow file, a folder of them, a folder that datasets.save_to_disk wrote, or a name
    on the Hugging Face hub, OWNER/NAME or OWNER/NAME/CONFIGURATION, and :SPLIT behind a folder or a name."""
    format: FormatName = "auto"
    """Columns to read: preference is prompt, chosen, rejected; implicit is chosen and rejected, whose shared beginning is
    the prompt; ranked is prompt, completions, ranks (1 the best); pairs is prompt, completions, pairs of [better, worse];
    scored is prompt, completions, scores; completion is prompt, completion; messages is one conversation; prompt is prompts alone.
    auto takes the one that most rows fit."""
    split: str | None = None
    """Split of a folder or of a data set on the hub; train where there is one."""
    max_length: int = 1024
    """Tokens that a prompt and one answer may have together. Rows whose prompt leaves no room are left out and counted."""
    overlong: Overlong = "truncate"
    """What happens to an answer that exceeds the limit: truncate cuts its end, without EOS, since the answer did not end
    there; drop leaves the row out."""
    ties: Ties = "refuse"
    """What happens to a ranking in which two answers share a rank: refuse stops; pairs reads it as the pairs that it
    implies."""
    cache: bool = True
    """Keep the tokens on disk, so that the same data, tokenizer and limits need not be tokenised again."""

    def _check(self) -> None:
        if not self.data:
            raise UsageError("--data is empty; give a file, a folder, or a name on the Hugging Face hub")
        if self.max_length < 2:
            raise UsageError(f"--max-length must be at least 2, a token of prompt and one of answer, but is {self.max_length}")
