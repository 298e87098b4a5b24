from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from surefoot.alignment.tasks import measuring
from surefoot.alignment.tasks.files import TaskConfiguration, write_grammar_task
from surefoot.alignment.tasks.grammar import parse, reward

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("task")
    write_grammar_task(folder, TaskConfiguration(prompts=8, held_out=12, hidden_size=32, layers=1))
    return folder


def test_a_policy_is_no_distance_from_itself_and_its_reward_is_that_of_its_answers(task, monkeypatch):
    seen = []
    monkeypatch.setattr(measuring, "reward", lambda prompt, text: seen.append((prompt, text)) or reward(prompt, text))
    measured = measuring.measure_answers(task / "model", reference=task / "model", data=task / "clean.jsonl", seed=0, at_once=5)
    prompts = [json.loads(line)["prompt"] for line in (task / "clean.jsonl").read_text().splitlines()]
    assert [prompt for prompt, _ in seen] == prompts
    rewards = [reward(*one) for one in seen]
    assert measured.kl == pytest.approx(0, abs=1e-4)
    assert measured.reward == pytest.approx(np.mean(rewards))
    assert measured.sentences == np.mean([parse(*one) is not None for one in seen])
    assert measured.standard_error == pytest.approx(np.std(rewards, ddof=1) / 12**0.5)


def test_the_same_seed_measures_the_same_and_parts_do_not_matter(task):
    measure = lambda **options: measuring.measure_answers(  # noqa: E731
        task / "model", reference=task / "model", data=task / "clean.jsonl", **options
    )
    first = measure(seed=1, at_once=5)
    assert measure(seed=1, at_once=12).reward == pytest.approx(first.reward)
    assert measure(seed=1, at_once=5) == first
