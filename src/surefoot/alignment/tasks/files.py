"""A generated task as files: data, and a tiny model that has learnt nothing yet."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from surefoot.alignment.tasks import grammar
from surefoot.errors import UsageError, require
from surefoot.runs.directory import write_whole
from surefoot.runs.settings import Settings

SPECIAL = ("<pad>", "<eos>", "<unk>")
SUPERVISED, PAIRS, RANKED, CLEAN, NOISY, MODEL = (
    "sft.jsonl",
    "pairs.jsonl",
    "ranked.jsonl",
    "clean.jsonl",
    "noisy.jsonl",
    "model",
)


@dataclass(frozen=True)
class TaskConfiguration(Settings):
    """How much is generated, and how noisy its labels are."""

    prompts: int = 8000
    """Labelled prompts in each of the three training files."""
    answers: int = 4
    """K, how many answers a ranking has."""
    temperature: float = 0.2
    """T of the labeller, who prefers a to b with probability σ((r_a − r_b)/T); 0 makes no mistake."""
    held_out: int = 1000
    """Pairs in each of the two files for evaluation."""
    hidden_size: int = 96
    """Width of the tiny model."""
    layers: int = 2
    """Depth of the tiny model."""
    seed: int = 0
    """Of data and weights."""

    def _check(self) -> None:
        for name in ("prompts", "held_out", "layers"):
            value = getattr(self, name)
            require(value >= 1, f"--{name.replace('_', '-')} must be at least 1, but is {value}")
        require(2 <= self.answers <= 100, f"--answers must lie between 2 and 100, but is {self.answers}")
        require(
            0 <= self.temperature < float("inf"),
            f"--temperature must be a finite number and not negative, but is {self.temperature}",
        )
        require(
            self.hidden_size >= 8 and self.hidden_size % 8 == 0,
            f"--hidden-size must be a multiple of 8, for four heads of even width, but is {self.hidden_size}",
        )
        require(0 <= self.seed < 2**31, f"--seed must lie between 0 and 2147483647, but is {self.seed}")


def write_grammar_task(folder: Path, configuration: TaskConfiguration) -> dict[str, Any]:
    """Write the language task of :mod:`surefoot.alignment.tasks.grammar`.

    Args:
        folder: gets ``sft.jsonl``, ``pairs.jsonl`` and ``ranked.jsonl`` to train on, ``clean.jsonl`` (pairs in their true order) and
            ``noisy.jsonl`` (as the labeller has them) to evaluate on, and ``model``, an untrained Llama with its tokenizer.
        configuration: how much, and how noisy.

    Returns:
        the rows of each file, and ``ceiling``, the accuracy of the true reward on the labels of ``noisy.jsonl``.

    Raises:
        UsageError: something of it is there already.
    """
    names = (SUPERVISED, PAIRS, RANKED, CLEAN, NOISY, MODEL)
    if there := [name for name in names if (folder / name).exists()]:
        raise UsageError(f"{folder} already holds {there[0]}; choose another --out, or delete it")
    seeds = np.random.SeedSequence(configuration.seed).spawn(len(names))
    streams = dict(zip(names, map(np.random.default_rng, seeds), strict=True))
    count, held_out, temperature = configuration.prompts, configuration.held_out, configuration.temperature
    rows: dict[str, list[dict[str, Any]]] = {
        SUPERVISED: list(grammar.supervised_rows(count, streams[SUPERVISED])),
        PAIRS: list(grammar.pair_rows(count, streams[PAIRS], temperature=temperature)),
        RANKED: list(grammar.ranked_rows(count, streams[RANKED], answers=configuration.answers, temperature=temperature)),
        CLEAN: list(grammar.pair_rows(held_out, streams[CLEAN], temperature=0)),
        NOISY: list(grammar.pair_rows(held_out, streams[NOISY], temperature=temperature)),
    }
    for name, content in rows.items():
        _write_lines(folder / name, content)
    _write_model(folder / MODEL, configuration)
    return {name: len(content) for name, content in rows.items()} | {"ceiling": ceiling(rows[NOISY])}


def ceiling(rows: Iterable[dict[str, Any]]) -> float:
    """Accuracy of the true reward on labelled pairs; equal rewards count as half right."""
    return float(np.mean([0.5 + np.sign(row["true_rewards"][0] - row["true_rewards"][1]) / 2 for row in rows]))


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def _write_model(folder: Path, configuration: TaskConfiguration) -> None:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from surefoot.alignment.models.folders import quiet
    from surefoot.alignment.models.saving import replace_folders

    ids = {word: i for i, word in enumerate((*SPECIAL, *grammar.WORDS))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    config = LlamaConfig(
        vocab_size=len(ids),
        hidden_size=configuration.hidden_size,
        intermediate_size=2 * configuration.hidden_size,
        num_hidden_layers=configuration.layers,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.1,  # the usual 0.02 is for wide models; narrow ones start too slowly with it
        pad_token_id=ids["<pad>"],
        eos_token_id=ids["<eos>"],
        bos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(configuration.seed)
        model = LlamaForCausalLM(config)

    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")

    def fill(place: Path) -> None:
        with quiet():
            model.save_pretrained(place)
            wrapped.save_pretrained(place)

    replace_folders({folder: fill})
