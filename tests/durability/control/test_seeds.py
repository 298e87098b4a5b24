"""Several seeds of a run, stopped and gone on with."""

from __future__ import annotations

import json

import pytest

from surefoot.control.training import resume, train
from surefoot.errors import UsageError
from tests.control.toys import ConstantReward
from tests.durability.control.runs import configured, contents, differences, stop_after


def test_seeds_in_turn_keep_those_that_are_finished(tmp_path, monkeypatch):
    case = "ppo on Gymnasium"
    train(configured(case, tmp_path / "whole", seeds=3), quiet=True)
    with monkeypatch.context() as patch:
        stop_after(patch, 8 + 5)  # in the second seed
        stopped = train(configured(case, tmp_path / "run", seeds=3), quiet=True)
    assert stopped["interrupted"]
    assert [r["interrupted"] for r in stopped["seeds"]] == [False, True]
    assert not (tmp_path / "run" / "seed-2").exists()
    first = (tmp_path / "run" / "seed-0" / "metrics.jsonl").read_bytes()
    result = resume(tmp_path / "run", exact=True, quiet=True)
    assert [r["resumed"] for r in result["seeds"]] == [[], [{"step": 256, "exact": True}], []]
    assert (tmp_path / "run" / "seed-0" / "metrics.jsonl").read_bytes() == first, "not trained again"
    assert differences(contents(tmp_path / "whole"), contents(tmp_path / "run")) == []
    with pytest.raises(UsageError, match="is finished"):
        resume(tmp_path / "run", quiet=True)
    with pytest.raises(UsageError, match=r"seed-1 is one of several seeds; give the folder of all, .*run$"):
        resume(tmp_path / "run" / "seed-1", quiet=True)


def test_all_environments_are_closed_in_the_end(tmp_path):
    Counted.open = 0
    settings = {"env": "Counted", "backend": "auto", "seeds": 2}
    train(configured("ppo on Gymnasium", tmp_path / "run", **settings), environment=Counted, quiet=True)
    assert Counted.open == 0
    resume(tmp_path / "run", environment=Counted, total_steps=1024, quiet=True)
    assert Counted.open == 0


class Counted(ConstantReward):
    """Counts how many are open."""

    open = 0

    def __init__(self):
        super().__init__()
        Counted.open += 1

    def close(self):
        Counted.open -= 1


def test_seeds_are_not_taken_away_by_hand(tmp_path):
    train(configured("ppo on Gymnasium", tmp_path / "run", seeds=2), quiet=True)
    path = tmp_path / "run" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seeds": 1}))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match=r"config.json says seeds 1, but .*run holds the runs of several; set it back"):
        resume(tmp_path / "run", total_steps=2048, quiet=True)
    assert sorted(tmp_path.rglob("*")) == before
