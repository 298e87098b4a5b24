"""The page that says what a saved model is: the README.md of its folder, as the hub reads it."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

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
{prompt}
answer = tokenizer("An answer", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
with torch.no_grad():
    print(model(torch.tensor([prompt + answer])).logits.item())  # the reward; only differences mean something
"""
PLAIN_PROMPT = 'prompt = tokenizer("A question")["input_ids"]'
CHAT_PROMPT = """messages = [{"role": "user", "content": "A question"}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]"""


def model_card(
    *,
    method: str,
    base_model: str,
    command: str,
    data: Mapping[str, Any],
    settings: Mapping[str, Any],
    metrics: Mapping[str, Any],
    chat: bool = False,
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
    use = SCORE.format(prompt=CHAT_PROMPT if chat else PLAIN_PROMPT) if method == REWARD else GENERATE
    versions = {name: version(name) for name in ("surefoot", "torch", "transformers")}
    parts = [
        f"---\n{head.to_yaml().strip()}\n---",
        f"# {METHODS[method]} of {_shown(base_model)}",
        "Trained with surefoot:",
        f"```shell\n{without_paths_in_command(command)}\n```",
        "## Use",
        f"```python\n{use if method == REWARD else use.format(inputs=CHAT if chat else PLAIN)}```",
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
