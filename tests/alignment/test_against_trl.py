"""DPO's and the reward model's loss and gradient are TRL's, on the same model and rows; runs where TRL is installed."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from surefoot.alignment.configuration import DPOConfiguration, RewardConfiguration
from surefoot.alignment.data.configuration import DataConfiguration
from surefoot.alignment.data.loading import load_examples
from surefoot.alignment.data.tokenization.tokenizer import load_tokenizer
from surefoot.alignment.likelihood.likelihood import Likelihood
from surefoot.alignment.methods.dpo import DirectPreferenceOptimization
from surefoot.alignment.methods.reward import RewardModelling
from surefoot.alignment.reference import LiveReference
from tests.alignment.models.tiny import reward_model, save_language_model

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

ROWS = [
    {"prompt": "a b c ", "chosen": "good yes d", "rejected": "bad no"},
    {"prompt": "what is the answer ? ", "chosen": "yes", "rejected": "no . a b c d"},
    {"prompt": "e f ", "chosen": "g h g h", "rejected": "h g h g"},
]


def shifted(model, seed):
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


@pytest.fixture
def rows(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path / "rows.jsonl"


def examples_of(rows, tokenizer):
    return load_examples(DataConfiguration(str(rows), cache=False), tokenizer, purpose="preference").examples


def settings(tmp_path):
    return {
        "output_dir": str(tmp_path / "trl"),
        "per_device_train_batch_size": len(ROWS),
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "max_length": 64,
    }


def trl_loss_and_gradients(trainer):
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.eval()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}


def assert_equal(mine, model, theirs, gradients, record_property):
    mine.backward()
    record_property("difference_of_losses", float((mine.detach() - theirs).abs()))
    torch.testing.assert_close(mine.detach(), theirs, rtol=0, atol=2e-6)
    largest = max(float(g.abs().max()) for g in gradients.values())
    worst = max(float((p.grad - gradients[name]).abs().max()) for name, p in model.named_parameters() if name in gradients)
    record_property("relative_difference_of_gradients", worst / largest)
    assert worst <= 1e-5 * largest
    assert len(gradients) == sum(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("loss_type", "choices"),
    [
        ("sigmoid", {}),
        ("sigmoid_norm", {"length_normalized": True}),
        ("ipo", {"objective": "ipo", "length_normalized": True}),
    ],
)
def test_dpo(loss_type, choices, rows, tmp_path, record_property):
    save_language_model(tmp_path / "model")
    tokenizer = load_tokenizer(str(tmp_path / "model"))
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    policy, copy = (shifted(AutoModelForCausalLM.from_pretrained(tmp_path / "model"), 1).eval() for _ in range(2))
    config = trl.DPOConfig(beta=0.3, loss_type=[loss_type], **settings(tmp_path))
    trainer = trl.DPOTrainer(
        model=copy, ref_model=reference, args=config, train_dataset=datasets.Dataset.from_list(ROWS), processing_class=tokenizer
    )
    theirs, gradients = trl_loss_and_gradients(trainer)
    examples = examples_of(rows, tokenizer)
    likelihood = Likelihood(policy)
    method = DirectPreferenceOptimization(
        likelihood,
        LiveReference(likelihood.of(AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval())),
        DPOConfiguration(beta=0.3, **choices),
        choices.get("objective", "bradley-terry"),
    )
    mine = method.parts(examples, method.denominators(examples)).loss
    assert_equal(mine, policy, theirs, gradients, record_property)


def test_reward(rows, tmp_path, record_property):
    save_language_model(tmp_path / "model")
    model = reward_model()
    model.save_pretrained(tmp_path / "reward")
    tokenizer = load_tokenizer(str(tmp_path / "model"))
    ours, copy = (AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").eval() for _ in range(2))
    trainer = trl.RewardTrainer(
        model=copy,
        args=trl.RewardConfig(**settings(tmp_path)),
        train_dataset=datasets.Dataset.from_list(ROWS),
        processing_class=tokenizer,
    )
    theirs, gradients = trl_loss_and_gradients(trainer)
    examples = examples_of(rows, tokenizer)
    method = RewardModelling(Likelihood(ours), RewardConfiguration(), "bradley-terry")
    assert_equal(method.parts(examples, method.denominators(examples)).loss, ours, theirs, gradients, record_property)
