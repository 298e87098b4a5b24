"""Small data in files."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from surefoot.alignment.data.configuration import DataConfiguration
from surefoot.alignment.data.loading import load_examples

PAIR = {"prompt": "what is the answer ?", "chosen": "yes", "rejected": "no"}


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(rows, tokenizer, purpose="preference", **options):
    """What a JSONL file with these rows holds, without the cache."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_lines(Path(folder) / "rows.jsonl", rows)
        return load_examples(DataConfiguration(str(path), cache=False, **options), tokenizer, purpose=purpose)


def reasons(data):
    return data.description["unusable"]


def texts(example, tokenizer):
    """Prompt and answers as text, special tokens included."""
    return tokenizer.decode(example.prompt), *(tokenizer.decode(ids) for ids in example.completions)
