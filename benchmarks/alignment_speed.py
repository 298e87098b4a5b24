"""Alignment against TRL, and against our own forwards without shared prompts: the same model, the same rows, in turn.

    make peers                                          # the peers' own environments, once
    python benchmarks/alignment_speed.py                # all groups: about twenty minutes on two quiet cores
    python benchmarks/alignment_speed.py dpo-live       # one group

The model is a Llama of random weights with 32,000 words, hidden size 256 and 6 layers; float32, batches of 4 prompts. Data are
random words. Rates are of the training steps alone: imports, loading, tokenising, and reference log-probabilities that are
computed beforehand (reported apart, `reference_seconds`) are outside on every side. Raw results: benchmarks/results/alignment_speed/."""

from __future__ import annotations

import json
import os
import random
import tempfile
from pathlib import Path

import paired
from paired import HERE, ROOT, Comparison, Group, Side

WORDS = 2000
WORK = Path(tempfile.gettempdir()) / "surefoot-alignment-speed"
MODEL, PAIRS, SHORT, RANKED = (WORK / name for name in ("model", "pairs.jsonl", "short.jsonl", "ranked.jsonl"))
OPTIONS = "--batch-size 4 --learning-rate-schedule constant --warmup 0 --no-cache --no-tensorboard --json --quiet"


def ours(name: str, method: str, data: Path, options: str = "") -> Side:
    return Side(name, f"align {method} --model {MODEL} --data {data} {OPTIONS} {options}", True)


def trl(method: str, data: Path, options: str = "") -> Side:
    return Side("trl", f"{ROOT}/peers-trl/bin/python {HERE}/peers/trl_align.py {method} {MODEL} {data} {options}")


EMPTY_CACHE = f"--reference-cache {WORK}/none"
GROUPS = {
    "dpo-live": Group(
        (ours("surefoot", "dpo", PAIRS, "--live-reference"), trl("dpo", PAIRS)),
        (Comparison("surefoot", "trl", 6.5, 8), Comparison("surefoot", "trl", 2, 2, "peak_mb")),
        "pairs_per_second",
    ),
    "dpo-cached": Group(
        (ours("surefoot", "dpo", PAIRS, EMPTY_CACHE), trl("dpo", PAIRS, "--cached-reference")),
        (Comparison("surefoot", "trl", 5.5, 7), Comparison("surefoot", "trl", 2, 2, "peak_mb")),
        "pairs_per_second",
    ),
    "reward": Group(
        (ours("surefoot", "reward", PAIRS), trl("reward", PAIRS)),
        (Comparison("surefoot", "trl", 1.3, 1.5), Comparison("surefoot", "trl", 1, 1, "peak_mb")),
        "pairs_per_second",
    ),
    "dpo-ranked": Group(
        (ours("shared", "dpo", RANKED, EMPTY_CACHE), ours("separate", "dpo", RANKED, f"{EMPTY_CACHE} --no-share-prompts")),
        (Comparison("shared", "separate", 1.5, 1.7),),
        "prompts_per_second",
    ),
    "reward-ranked": Group(
        (ours("shared", "reward", RANKED), ours("separate", "reward", RANKED, "--no-share-prompts")),
        (Comparison("shared", "separate", 2.2, 2.6),),
        "prompts_per_second",
    ),
    "dpo-short-prompts": Group(
        (ours("surefoot", "dpo", SHORT, "--live-reference"), trl("dpo", SHORT)),
        (Comparison("surefoot", "trl", 1, 1),),
        "pairs_per_second",
    ),
}


def words(count: int, rng: random.Random) -> str:
    return " ".join(f"w{rng.randrange(WORDS)}" for _ in range(count))


def write_data(path: Path, *, rows: int, prompt: int, completion: int, answers: int) -> None:
    rng = random.Random(0)
    lines = []
    for _ in range(rows):
        row: dict = {"prompt": words(prompt, rng) + " "}
        if answers == 2:
            row |= {"chosen": words(completion, rng), "rejected": words(completion, rng)}
        else:
            row |= {"completions": [words(completion, rng) for _ in range(answers)], "ranks": list(range(1, answers + 1))}
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines) + "\n")


def write_prompts(path: Path, *, rows: int, prompt: int) -> None:
    rng = random.Random(0)
    path.write_text("".join(json.dumps({"prompt": words(prompt, rng)}) + "\n" for _ in range(rows)))


def write_model(folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>"] + [f"w{i}" for i in range(WORDS)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    wrapped.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        pad_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def forget_the_reference(side: Side, out: Path, result: dict) -> None:
    """Every round computes its own."""
    for file in (WORK / "none").glob("*"):
        os.unlink(file)


if __name__ == "__main__":
    WORK.mkdir(exist_ok=True)
    write_model(MODEL)
    write_data(PAIRS, rows=64, prompt=192, completion=64, answers=2)
    write_data(SHORT, rows=64, prompt=32, completion=128, answers=2)
    write_data(RANKED, rows=16, prompt=192, completion=64, answers=8)
    paired.main(
        GROUPS,
        description=__doc__,
        results=HERE / "results" / "alignment_speed",
        libraries=("surefoot", "torch", "transformers"),
        finish=forget_the_reference,
    )
