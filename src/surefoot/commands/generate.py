"""``surefoot generate``: answers of a model, for people to read."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro

from surefoot.alignment.data.configuration import DataConfiguration, FormatName
from surefoot.commands.options import DONE, Output, given, parse
from surefoot.errors import UsageError, on_one_line, printable, require, shown
from surefoot.runs.directory import write_whole
from surefoot.runs.progress import Progress

OF_DATA = ("--rows", "--format", "--split")


@dataclass(frozen=True)
class Generate:
    """Sample answers of a language model to the prompts of a file, or to one."""

    model: tyro.conf.Positional[str]
    """Folder of a model or of a run, or a model's name on the Hugging Face hub."""
    data: str | None = None
    """Prompts, in any format that training takes: a file, a folder or a name. Of data with answers, the prompts alone are read."""
    prompt: str | None = None
    """The prompt itself, as text."""
    chat: bool = False
    """Take --prompt for a user's message, and write it as the model's chat template does."""
    rows: int | None = None
    """How many prompts of --data, the first ones; none takes all."""
    answers: int = 1
    """How many answers to each prompt."""
    temperature: float = 1.0
    """Divides the logits: 1 is the model's own distribution, 0 takes the most probable token each time."""
    top_k: int | None = None
    """Draw from so many most probable tokens alone."""
    top_p: float | None = None
    """Draw from the fewest tokens whose probabilities reach this sum."""
    shortest: int = 1
    """Tokens that an answer has at least, its end token included."""
    longest: int = 128
    """Tokens that an answer has at most; what has not ended then is cut."""
    max_length: int = 1024
    """Tokens that a prompt and its answer may have together. Prompts that leave no room for the longest answer are left out and
    counted."""
    batch_size: int = 16
    """Prompts at a time."""
    format: FormatName = "auto"
    """Format of --data; auto takes the one that most rows fit."""
    split: str | None = None
    """Split of a folder or of a data set on the hub."""
    seed: int = 0
    """Of the sampling."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model is computed."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of weights and products, as in training."""
    trust_remote_code: bool = False
    """Run the Python files that come with the model. Only for models whose files you have read."""
    out: Path | None = None
    """Write the samples into this file, one JSON object per prompt and line, instead of printing them."""
    output: tyro.conf.OmitArgPrefixes[Output] = field(default_factory=Output)


def run(arguments: list[str]) -> int:
    """Generate, and print."""
    chosen: Generate = parse(Generate, arguments, program="surefoot generate")
    _check(chosen, arguments)

    def tell(sentence: str) -> None:
        if shown(sentence, quiet=chosen.output.quiet):
            print(on_one_line(sentence), file=sys.stderr)

    from surefoot.alignment.data.prompts import load_prompts, prompt_of
    from surefoot.alignment.data.tokenization.tokenizer import load_tokenizer
    from surefoot.alignment.generation import generate
    from surefoot.alignment.models.configuration import ModelConfiguration
    from surefoot.alignment.models.runs import model_of

    model = model_of(chosen.model)
    tokenizer = load_tokenizer(model, trust_remote_code=chosen.trust_remote_code)
    if chosen.data is None:
        text: Any = ({"role": "user", "content": chosen.prompt},) if chosen.chat else chosen.prompt
        prompts = [prompt_of(text, tokenizer, max_length=chosen.max_length, longest_answer=chosen.longest)]
    else:
        data = DataConfiguration(chosen.data, format=chosen.format, split=chosen.split, max_length=chosen.max_length)
        loaded = load_prompts(data, tokenizer, longest_answer=chosen.longest)
        prompts = loaded.prompts[: chosen.rows]
        for notice in loaded.notices:
            tell(notice)
    with Progress(f"generate {Path(chosen.model).name}", len(prompts), unit="prompts", quiet=chosen.output.quiet) as progress:

        def show(done: int, tokens: int, seconds: float) -> None:
            progress.update(done, rate=done / seconds, reached=f"{tokens / seconds:,.0f} tokens/s")

        result = {"model": model} | generate(
            ModelConfiguration(model, chosen.device, chosen.precision, trust_remote_code=chosen.trust_remote_code),
            tokenizer,
            prompts,
            answers=chosen.answers,
            temperature=chosen.temperature,
            top_k=chosen.top_k,
            top_p=chosen.top_p,
            shortest=chosen.shortest,
            longest=chosen.longest,
            seed=chosen.seed,
            batch_size=chosen.batch_size,
            tell=tell,
            progress=show,
        )
    if chosen.out is not None:
        write_whole(chosen.out, "".join(json.dumps(sample) + "\n" for sample in result["samples"]).encode())
    elif not chosen.output.json:
        for sample in result["samples"]:
            print("\n".join(_readable(sample)))
    kept = f"; written to {chosen.out}" if chosen.out is not None else ""
    tell(
        f"answers: {result['answers']:,}, to prompts: {result['prompts']:,}; {result['tokens']:,} tokens at"
        f" {result['tokens_per_second']:,.0f} a second{kept}"
    )
    chosen.output.give(result)
    return DONE


def _check(chosen: Generate, arguments: list[str]) -> None:
    """Refuse what cannot be, and what would do nothing.

    Raises:
        UsageError: with the first of it.
    """
    require((chosen.data is None) != (chosen.prompt is None), "give either --data with prompts, or one --prompt")
    if chosen.data is None and (useless := given(OF_DATA, arguments)):
        raise UsageError(f"{useless} does nothing without --data; leave it out")
    require(chosen.data is None or not chosen.chat, "--chat does nothing with --data, whose rows are texts or conversations")
    require(bool(chosen.prompt is None or chosen.prompt.strip()), "--prompt is empty; give a text")
    for name in ("answers", "shortest", "longest", "batch_size", "rows", "top_k"):
        value = getattr(chosen, name)
        require(value is None or value >= 1, f"--{name.replace('_', '-')} must be at least 1, but is {value}")
    require(
        chosen.shortest <= chosen.longest,
        f"--shortest {chosen.shortest} exceeds --longest {chosen.longest}; no answer can be both",
    )
    temperature, top_p = chosen.temperature, chosen.top_p
    require(0 <= temperature < math.inf, f"--temperature must be a finite number and not negative, but is {temperature}")
    require(top_p is None or 0 < top_p < 1, f"--top-p must lie between 0 and 1, or be none for all tokens, but is {top_p}")
    require(0 <= chosen.seed < 2**31, f"--seed must lie between 0 and 2147483647, but is {chosen.seed}")
    if temperature == 0:
        if useless := given(("--top-k", "--top-p"), arguments):
            raise UsageError(f"{useless} does nothing with --temperature 0, which takes the most probable token; leave it out")
        require(
            chosen.answers == 1,
            f"--answers {chosen.answers} with --temperature 0 would be the same answer {chosen.answers} times",
        )
    if chosen.out is not None and chosen.out.exists():
        raise UsageError(f"{chosen.out} exists; choose another --out, or delete it")


def _readable(sample: dict[str, Any]) -> list[str]:
    """A prompt and its answers, whatever they hold unable to steer the terminal."""
    prompt = sample["prompt"]
    messages = [f"{message['role']}: {message['content']}" for message in prompt] if isinstance(prompt, list) else [prompt]
    lines = [f"row {sample['row']}", *_indented("  ", "\n".join(messages))]
    for number, (text, tokens, finished) in enumerate(
        zip(sample["completions"], sample["tokens"], sample["finished"], strict=True), start=1
    ):
        lines.append(f"answer {number} ({tokens} token{'s' * (tokens > 1)}{'' if finished else ', cut'})")
        lines += _indented("  ", text)
    return [*lines, ""]


def _indented(space: str, text: str) -> list[str]:
    return [space + printable(line) for line in text.split("\n")]
