"""Prompts and answers to be scored."""

from __future__ import annotations

from typing import Any

import numpy as np

from surefoot.alignment.data.prompts import Prompt, prompt_of


def prompts_of(texts, tokenizer, columns=()) -> list[Prompt]:
    prompts = [prompt_of(text, tokenizer, max_length=1000, longest_answer=1) for text in texts]
    given: list[dict[str, Any]] = [*columns, *[{}] * (len(prompts) - len(columns))]
    return [Prompt(10 + i, prompt.ids, prompt.text, given[i]) for i, prompt in enumerate(prompts)]


def answers_of(texts, tokenizer, *, ended=True):
    """Answers as a policy samples them behind a plain prompt; texts begin with the space that stands before them."""
    end = [tokenizer.eos_token_id] if ended else []
    return [np.array([*tokenizer(text, add_special_tokens=False).input_ids, *end], np.int32) for text in texts]
