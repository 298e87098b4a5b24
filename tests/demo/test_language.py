from __future__ import annotations

import json

import torch
from transformers import AutoModelForCausalLM

from surefoot.demo import language
from surefoot.demo.figure import draw_road

torch.set_num_threads(1)


def test_the_road_leaves_four_runs_a_table_and_a_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(language, "LABELLED", 64)
    small = {name: {**options, "epochs": 1} for name, options in language.SETTINGS.items()}
    monkeypatch.setattr(language, "SETTINGS", small)
    said = []
    result = language.follow_the_road(tmp_path, seed=0, quiet=True, say=said.append)
    assert [row["method"] for row in result["policies"]] == ["sft", "ppo", "dpo"]
    sft, ppo, dpo = result["policies"]
    assert abs(sft["kl"]) < 1e-3  # fine-tuning is where the distance is measured from
    assert ppo["answers_sampled"] == 64 * 4
    assert sft["answers_sampled"] == dpo["answers_sampled"] == 0
    assert (
        ppo["seconds"] > json.loads((tmp_path / "ppo" / "summary.json").read_text())["seconds"]
    )  # the reward model's are in it
    assert not result["learned"]  # 64 rows teach nothing
    for run in ("sft", "ppo", "dpo"):
        AutoModelForCausalLM.from_pretrained(tmp_path / run / "model")
    assert (tmp_path / "road.png").read_bytes().startswith(b"\x89PNG")
    table = "\n".join(said)
    assert f"{ppo['reward']:.2f} ± {ppo['standard_error']:.2f}" in table


def test_without_matplotlib_there_is_no_figure(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert draw_road([], [], tmp_path / "road.png") is None
    assert not (tmp_path / "road.png").exists()
