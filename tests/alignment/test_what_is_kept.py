"""What stands between the last update and the disk: nothing there may cost what was learnt."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from surefoot.alignment.configuration import configure
from surefoot.alignment.learning import offline
from surefoot.alignment.learning.memory import memory_in_a_sentence
from surefoot.alignment.training import align
from surefoot.errors import RunError, UsageError
from tests.alignment.models.tiny import save_language_model


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save_language_model(tmp_path / "base")
    rows = '{"prompt": "a b", "completion": " c d"}\n{"prompt": "c", "completion": " good"}\n'
    (tmp_path / "data.jsonl").write_text(rows)
    defaults = configure("sft", model=str(tmp_path / "base"), data=str(tmp_path / "data.jsonl"))

    def run(**training):
        chosen = {"batch_size": 1, "learning_rate": 0.01, "out": str(tmp_path / "run"), **training}
        return align(replace(defaults, training=replace(defaults.training, **chosen)), quiet=True)

    return run


def kept(tmp_path):
    return AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")


@pytest.mark.parametrize(
    "failure",
    [torch.OutOfMemoryError("CUDA out of memory. Tried …"), RuntimeError("[…] DefaultCPUAllocator: can't allocate memory")],
)
def test_too_little_memory_is_a_sentence_and_keeps_the_model_before_it(run, tmp_path, monkeypatch, failure):
    descend, updates = offline.descend, []

    def third(*arguments, **options):
        if len(updates) == 2:
            raise failure
        updates.append(descend(*arguments, **options))
        return updates[-1]

    monkeypatch.setattr(offline, "descend", third)
    with pytest.raises(RunError, match=r"the memory does not suffice: .*; less is needed with --gradient-checkpointing"):
        run(epochs=2)
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert not torch.equal(kept(tmp_path).lm_head.weight, before.lm_head.weight)


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shapes differ"), memory_in_a_sentence():
        raise RuntimeError("shapes differ")
    with pytest.raises(RunError, match="MemoryError"), memory_in_a_sentence():
        raise MemoryError


def test_the_best_model_is_kept_without_being_measured_again(run, tmp_path, monkeypatch):
    measured = []
    evaluate = offline.OfflineRun.evaluate
    monkeypatch.setattr(
        offline.OfflineRun, "evaluate", lambda self, examples: measured.append(evaluate(self, examples)) or measured[-1]
    )
    result = run(epochs=30, eval_data=str(tmp_path / "data.jsonl"), patience=2, learning_rate=3.0)
    assert result["best_update"] < result["updates"]
    assert len(measured) == result["updates"] // 2
    assert result["metrics"] == min(measured, key=lambda metrics: metrics["loss"])


def test_a_tokenizer_that_cannot_be_written_again_is_refused_before_training(run, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise TypeError("Object of type function is not JSON serializable")

    monkeypatch.setattr(PreTrainedTokenizerBase, "save_pretrained", fail)
    monkeypatch.setattr(offline, "descend", lambda *_, **__: pytest.fail("nothing is trained"))
    with pytest.raises(UsageError, match=r"base cannot be saved again once it is trained: Object of type function"):
        run()
    assert not (tmp_path / "run").exists()
