"""Prompts and preference data: from files to token ids."""

from surefoot.alignment.data.configuration import DataConfiguration
from surefoot.alignment.data.examples import Example, Row, implied_pairs
from surefoot.alignment.data.loading import LoadedData, load_examples
from surefoot.alignment.data.prompts import LoadedPrompts, Prompt, load_prompts
from surefoot.alignment.data.splitting import split_examples
from surefoot.alignment.data.tokenization.tokenizer import load_tokenizer

__all__ = [
    "DataConfiguration",
    "Example",
    "LoadedData",
    "LoadedPrompts",
    "Prompt",
    "Row",
    "implied_pairs",
    "load_examples",
    "load_prompts",
    "load_tokenizer",
    "split_examples",
]
