"""A step of every method on tiny models of more than fifty architectures: each is trained and opens in plain transformers, or is refused
in a sentence that is expected of it.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace

import peft
import pytest
import torch
import transformers as t
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from surefoot.alignment.configuration import configure
from surefoot.alignment.training import align
from surefoot.errors import UsageError
from tests.alignment.likelihood.architectures import ARCHITECTURES, build
from tests.alignment.tokenizers import word_level

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

RUNS = {
    "sft": ("sft", {}),
    "sft in bfloat16": ("sft", {"model": {"precision": "bfloat16"}}),
    "dpo with lora": ("dpo", {"adapter": {"lora_rank": 2}}),
    "reward": ("reward", {}),
    "ppo": ("ppo", {}),
    "ppo, shared critic": ("ppo", {"objective": {"critic": "shared"}}),
    "grpo": ("ppo", {"objective": {"weight": "group", "divide_by_deviation": True}}),
}
REFUSED: dict[tuple[str, str], str] = {}
"""Runs that are refused for another reason than a sequence-classification model that transformers does not have."""


@pytest.fixture(scope="module", params=ARCHITECTURES)
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model = build(request.param)
    model.save_pretrained(folder / "model")
    word_level().save_pretrained(folder / "model")
    rows = [
        {"prompt": "what is a", "chosen": "a b good", "rejected": "bad"},
        {"prompt": "what is b ?", "chosen": "b", "rejected": "a a bad"},
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "score.py").write_text(
        "def score(completions, **_):\n    return [float('good' in it) - len(it) for it in completions]\n"
    )
    return folder, model.config.model_type


@pytest.mark.parametrize("name", RUNS)
def test_a_step_is_taken_and_saved_or_refused_in_a_sentence(folder, name, monkeypatch, tmp_path):
    (folder, kind), (method, changes) = folder, RUNS[name]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    reward = {"reward": f"{folder / 'score.py'}:score"} if method == "ppo" else {}
    settings = configure(method, model=str(folder / "model"), data=str(folder / "data.jsonl"), **reward)
    changes = {
        "training": {"epochs": 1, "batch_size": 2, "learning_rate": 0.01, "out": str(tmp_path / "run"), "tensorboard": False},
        **changes,
    }
    if method == "ppo":
        changes["objective"] = {"longest_answer": 4, "answers_per_prompt": 2, **changes.get("objective", {})}
    settings = replace(settings, **{part: replace(getattr(settings, part), **values) for part, values in changes.items()})
    expected = REFUSED.get((kind, name))
    if name in ("reward", "ppo") and kind not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        expected = (
            f"transformers has no sequence-classification model for {kind}, so no reward model and no critic of its own; take"
        )
    if expected is not None:
        with pytest.raises(UsageError, match=re.escape(expected)):
            align(settings, quiet=True)
        return
    result = align(settings, quiet=True)
    opened = t.AutoModelForSequenceClassification if method == "reward" else t.AutoModelForCausalLM
    plain, report = opened.from_pretrained(result["model"], output_loading_info=True)
    assert not any(report.values())
    if name == "dpo with lora":
        base = opened.from_pretrained(folder / "model")
        adapted = peft.PeftModel.from_pretrained(base, tmp_path / "run" / "adapter").eval()
        ids = torch.tensor([[3, 5, 4, 9, 3, 8]])
        torch.testing.assert_close(plain.eval()(ids).logits, adapted(ids).logits, rtol=1e-3, atol=1e-3)
    before = opened.from_pretrained(folder / "model", num_labels=1, dtype=plain.dtype)
    moved = [not torch.equal(weight, before.state_dict()[key]) for key, weight in plain.state_dict().items()]
    assert any(moved)
