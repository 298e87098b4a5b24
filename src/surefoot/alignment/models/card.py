"""The page that says what a saved model is: the README.md of its folder, as the hub reads it."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from surefoot.alignment.data.tokenization.ends import AnswerEnds

REWARD = "reward"
METHODS = {
    "sft": "Supervised fine-tuning",
    REWARD: "Reward model",
    "dpo": "Direct preference optimisation",
    "ppo": "Proximal policy optimisation",
}

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
ABSOLUTE_PATH = re.compile(r"""(?<![\w.:/\\~-])(?:file://)?(?:~?/|[A-Za-z]:[\\/])[^\s'",;()\[\]{}]*""")

GENERATE = """from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder, or its name on the hub
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
{inputs}
output = model.generate(**inputs, max_new_tokens=64)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
"""
PLAIN = 'inputs = tokenizer("The beginning of a text", return_tensors="pt")'
CHAT = """messages = [{"role": "user", "content": "A question"}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)"""

SCORE = """import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder = "."  # this folder, or its name on the hub
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder)
{ids}
with torch.no_grad():
    print(model(ids).logits.item())  # the reward; only differences mean something
"""
PLAIN_IDS = """answer = " An answer" + tokenizer.eos_token
ids = tokenizer("A question" + answer, return_tensors="pt")["input_ids"]"""
CHAT_IDS = """messages = [{{"role": "user", "content": "A question"}}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
answer = {before}"An answer" + {behind}  # with what stood around an answer in training
ids = tokenizer(prompt + answer, add_special_tokens=False, return_tensors="pt")["input_ids"]"""


def model_card(
    *,
    method: str,
    base_model: str,
    command: str,
    data: Mapping[str, Any],
    settings: Mapping[str, Any],
    metrics: Mapping[str, Any],
    chat: bool = False,
    ends: AnswerEnds | None = None,
) -> str:
    """Markdown with a YAML head, as the hub has it, without paths of the machine that trained.

    Args:
        method: sft, reward, dpo or ppo; a reward model is loaded in another way than the rest.
        base_model: what was trained: a hub name goes into the head, a folder does not.
        command: the command line that trained it, as a shell takes it.
        data: what it was trained on: counts and names.
        settings: the run's configuration.
        metrics: what it reached.
        chat: whether its tokenizer has a chat template, which the example of its use then applies.
        ends: of its answers, which the example for a reward model reads as training did; EOS alone where they are not given.

    Raises:
        ValueError: there is no such method.
    """
    from huggingface_hub import ModelCardData

    if method not in METHODS:
        raise ValueError(f"there is no method {method!r}; there are {', '.join(METHODS)}")
    on_hub = HUB_NAME.fullmatch(base_model) is not None and not Path(base_model).exists()
    head = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-classification" if method == REWARD else "text-generation",
        tags=["surefoot", method if method != REWARD else "reward-model"],
        base_model=base_model if on_hub else None,
    )
    if method == REWARD:
        before, behind = ("", "tokenizer.eos_token") if ends is None else (ends.around[0], repr(ends.around[1]))
        begun = f"{before!r} + " if before else ""
        use = SCORE.format(ids=CHAT_IDS.format(before=begun, behind=behind) if chat else PLAIN_IDS)
    else:
        use = GENERATE.format(inputs=CHAT if chat else PLAIN)
    versions = {name: version(name) for name in ("surefoot", "torch", "transformers")}
    parts = [
        f"---\n{head.to_yaml().strip()}\n---",
        f"# {METHODS[method]} of {_shown(base_model)}",
        "Trained with surefoot:",
        f"```shell\n{without_paths_in_command(command)}\n```",
        "## Use",
        f"```python\n{use}```",
        "" if ends is None or method == REWARD else f"Answers end at {_code(ends.shown)}, as generation_config.json says.",
        _table("Results", "metric", metrics),
        _table("Data", "what", data),
        _table("Settings", "setting", settings),
        _table("Versions", "package", versions),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def without_paths(text: str) -> str:
    """Absolute paths in a text, shortened to their last part."""
    if text.startswith(("/", "~/", "file:///")) or PureWindowsPath(text).is_absolute():
        return _last_part(text)  # a whole path may have spaces in it
    return ABSOLUTE_PATH.sub(lambda found: _last_part(found[0]), text)


def without_paths_in_command(command: str) -> str:
    """A command line whose arguments' absolute paths are shortened to their last part."""
    shortened = []
    for argument in shlex.split(command):
        option, equals, value = argument.partition("=")
        if argument.startswith("-") and equals:
            shortened.append(f"{option}={without_paths(value)}")
        else:
            shortened.append(without_paths(argument))
    return shlex.join(shortened)


def _last_part(path: str) -> str:
    return (PureWindowsPath(path) if "\\" in path else PurePosixPath(path.removeprefix("file://"))).name or "…"


def _table(title: str, column: str, rows: Mapping[str, Any]) -> str:
    if not rows:
        return ""
    lines = [f"| {_shown(name)} | {_shown(value)} |" for name, value in rows.items()]
    return "\n".join([f"## {title}", "", f"| {column} | |", "|---|---|", *lines])


def _code(texts: Sequence[str]) -> str:
    return " or ".join(f"`{text.strip('`')}`" for text in texts) or "their longest length"


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, float):
        text = f"{value:.4g}" if math.isfinite(value) else str(value)
    elif isinstance(value, bool):
        text = "yes" if value else "no"
    else:
        text = without_paths(str(value))
    return " ".join(text.split()).replace("|", "\\|")
