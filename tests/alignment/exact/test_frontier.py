"""What `surefoot frontier` runs, prints and draws, and that what it says of a policy is what the policy is."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch

from surefoot.alignment.exact import runs
from surefoot.alignment.exact.figure import draw_failures, draw_frontier
from surefoot.alignment.exact.frontier import CHANGES, COUNTS, frontier_report, plan_frontier
from surefoot.alignment.exact.frontier_text import frontier_text
from surefoot.alignment.exact.models import make_task
from surefoot.alignment.exact.runs import (
    METHODS,
    Run,
    carry_out,
    draw_preferences,
    online_settings,
    train_reward_model,
    unseen_answers,
)
from surefoot.alignment.exact.tasks import mean_kl_divergence, measure_policy, optimal_policy
from surefoot.cli import main
from surefoot.commands import frontier as frontier_command
from surefoot.errors import UsageError

EVERYTHING = {
    "tasks": ["table"],
    "methods": list(METHODS),
    "betas": [0.5, 2.0],
    "seeds": 2,
    "preferences": 200,
    "failures": True,
}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def shortened(plan, effort):
    """The same plan with hardly any updates."""
    return replace(plan, parts={part: [replace(run, effort=effort) for run in some] for part, some in plan.parts.items()})


@pytest.fixture(scope="module")
def report():
    plan = plan_frontier(**(EVERYTHING | {"betas": [1.0], "seeds": 1}))
    chosen = {
        "rows": plan.parts["rows"],
        "changes": [run for run in plan.parts["changes"] if run.change in ("ψ whitened", "not divided")],
        "counts": [run for run in plan.parts["counts"] if run.preferences == COUNTS[0]],
        "restricted": [replace(run, preferences=200) for run in plan.parts["restricted"]],
        "optimised": plan.parts["optimised"],
    }
    small = shortened(replace(plan, parts=chosen, reward_models={}), 0.02)
    learned = [run for some in small.parts.values() for run in some if run.preferences is not None]
    models = {(r.task, r.preferences, r.restricted, r.seed): replace(r, method="rloo") for r in learned}
    told = []
    made = frontier_report(replace(small, reward_models=models), processes=2, tell=lambda done, what: told.append((done, what)))
    assert [done for done, _ in told] == list(range(1, len(models) + sum(map(len, chosen.values())) + 1))
    return made


def test_every_combination_is_run_once():
    plan = plan_frontier(**EVERYTHING)
    rows = [(r.task, r.method, r.beta, r.seed, r.preferences) for r in plan.parts["rows"]]
    assert len(set(rows)) == len(rows) == len(METHODS) * 2 * 2 * 2
    changes = plan.parts["changes"]
    assert len(changes) == 2 * sum(1 for *_, settings in CHANGES if settings) * 2
    assert {run.beta for run in changes} == {0.5, 2.0}
    for part in plan.parts.values():
        for run in part:
            if run.preferences is not None and run.method in runs.ONLINE:
                assert (run.task, run.preferences, run.restricted, run.seed) in plan.reward_models
    assert {key[1] for key in plan.reward_models} >= set(COUNTS)
    assert plan.total == sum(map(len, plan.parts.values())) + len(plan.reward_models)
    many = plan_frontier(**(EVERYTHING | {"tasks": ["table", "language"], "seeds": 5}))
    assert {r.seed for r in many.parts["rows"] if r.preferences is None} == set(range(5))
    assert {r.seed for r in many.parts["rows"] if r.preferences is not None} == set(range(3))
    assert {r.effort for r in many.parts["rows"] if r.preferences is None or "dpo" in r.method} == {1.0}
    assert {r.task for r in many.parts["changes"] + many.parts["counts"]} == {"table"}
    assert {(r.task, r.method) for r in many.parts["restricted"]} == {
        (t, m) for t in ("table", "language") for m in ("ppo", "dpo")
    }
    only = plan_frontier(**(EVERYTHING | {"methods": ["dpo"]}))
    assert {r.method for part in only.parts.values() for r in part} == {"dpo"}
    known = plan_frontier(**(EVERYTHING | {"preferences": None, "failures": False}))
    assert known.total == len(METHODS) * 2 * 2
    assert not known.reward_models


def test_every_change_changes_a_setting_that_the_method_reads():
    language, _ = make_task("table")
    for method, change, settings in CHANGES:
        run = Run("table", method, 1.0, 0, change=change, settings=settings)
        changed, plain = (online_settings(r, language) for r in (run, replace(run, settings={})))
        assert changed != plain, change
        assert not set(settings) & set(changed.idle_options()), change
        if "clip_range" in settings:  # with one step to a batch the ratio is 1, and nothing is clipped
            assert changed.update_epochs > 1


def test_the_report_is_json_with_a_row_of_every_name(report):
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    names = {"task", "method", "beta", "seed", "reward", "kl_reference", "kl_optimum", "samples", "seconds", "peak_mb"}
    assert all(names <= set(row) for row in report["rows"])
    assert [(row["method"], row["rewards"]) for row in report["rows"]] == [
        (method, rewards) for rewards in ("known", "learned") for method in METHODS
    ]
    for row in report["rows"]:
        assert row["seconds"] > 0
        assert 50 < row["peak_mb"] < 5_000
        assert row["reward_seconds"] == 0 or row["rewards"] == "learned"
        assert ("kl_learned_optimum" in row) == (row["rewards"] == "learned" and row["method"] in runs.ONLINE)


def test_no_policy_lies_above_the_frontier_and_distances_fit_together(report):
    task = make_task("table")[0].task
    for part in ("rows", "changes", "counts", "restricted", "optimised"):
        for row in report[part]:
            optimum = optimal_policy(task, beta=row["beta"])
            best = row["beta"] * float(optimum.log_partition.mean())
            assert best - (row["reward"] - row["beta"] * row["kl_reference"]) == pytest.approx(
                row["beta"] * row["kl_optimum"], abs=1e-6
            )
            start = mean_kl_divergence(task.reference_log_probabilities, optimum.log_probabilities)
            assert row["share"] == pytest.approx(row["kl_optimum"] / start)


def test_optima_are_the_tasks(report):
    task = make_task("table")[0].task
    for entry in report["tasks"]["table"]["optima"]:
        optimum = optimal_policy(task, beta=entry["beta"]).log_probabilities
        measured = measure_policy(task, optimum, beta=entry["beta"])
        assert (entry["reward"], entry["kl_reference"]) == (measured.reward, measured.kl_to_reference)
        assert entry["unseen"] == pytest.approx(np.exp(optimum)[:, 12:].sum() / 8)
    assert report["tasks"]["table"]["unseen"] == pytest.approx(np.exp(task.reference_log_probabilities)[:, 12:].sum() / 8)


def test_samples_are_answers_drawn(report):
    drawn = {(row["method"], row["rewards"]): row["samples"] for row in report["rows"]}
    assert drawn["dpo", "learned"] == 200 * 2
    assert drawn["ranked-dpo", "learned"] == 200 * 4
    assert drawn["ppo", "learned"] == drawn["ppo", "known"] + 200 * 2
    effort = runs.EFFORTS["table"].scaled(0.02)
    assert (
        drawn["ppo", "known"] == drawn["rloo", "known"] == effort.online.iterations * 8 * runs.ANSWERS * effort.online.repeats
    )
    assert drawn["dpo", "known"] == effort.known.updates * effort.known.batch_size * 2


def test_policies_on_the_way_are_measured_as_often_as_was_asked(report):
    (row,) = report["optimised"]
    assert len(row["trace"]) == runs.EFFORTS["table"].scaled(0.02).online.iterations  # fewer than were asked for
    assert [point["iteration"] for point in row["trace"]] == list(range(1, len(row["trace"]) + 1))
    assert row["trace"][-1]["kl_reference"] == row["kl_reference"]
    assert {"reward", "learned_reward"} <= set(row["trace"][0])


def test_restricted_preferences_leave_the_last_quarter_out():
    for name, unseen in (("table", range(12, 16)), ("language", range(3 * 1024, 4096))):
        language, _ = make_task(name)
        assert np.flatnonzero(unseen_answers(language)).tolist() == list(unseen)
        run = Run(name, "dpo", 1.0, 0, preferences=300, restricted=True)
        drawn = draw_preferences(language, run, answers=2)
        assert drawn.answers.shape == (300, 2)
        assert not np.isin(drawn.answers, unseen).any()
        free = draw_preferences(language, replace(run, restricted=False), answers=2)
        assert np.isin(free.answers, unseen).any()


def test_a_reward_models_weights_travel_with_its_scores():
    """What an online method is rewarded with, in another process, is what the report says that it learned."""
    run = Run("table", "rloo", 0.1, 0, preferences=500, effort=0.5)
    model = train_reward_model(run)
    row = carry_out(run, model)
    assert row["kl_learned_optimum"] < 0.3 * row["kl_optimum"]
    assert row["seconds"] > row["reward_seconds"] == round(model.seconds, 3) > 0


def test_an_online_method_is_never_given_the_wrong_reward():
    with pytest.raises(ValueError, match="rloo learns from a reward model where there are preferences"):
        carry_out(Run("table", "rloo", 1.0, 0, preferences=100))


def test_more_models_are_more_state():
    language, model = make_task("table")
    size = {m: runs._state_bytes(Run("table", m, 1.0, 0, preferences=n), language, model) for m, n in
            (("dpo", 10), ("rloo", None), ("ppo", None), ("ppo", 10))}  # fmt: skip
    weights = sum(p.numel() for p in model.parameters()) * 4
    assert size["dpo"] == 4 * weights
    assert size["rloo"] == 5 * weights
    assert size["ppo"] > 9 * weights


def test_the_text_has_every_table(report):
    text = frontier_text(report)
    lines = text.splitlines()
    assert lines[0].startswith("table: KL(π*‖π_ref) is 0.454 at β = 1 nats")
    for method in METHODS:
        assert sum(line.split()[:1] == [method] for line in lines) >= 2
    for phrase in ("ψ whitened", "optimum of a reward model", "probability of unseen answers", "best E[r] on the way"):
        assert phrase in text
    assert "nan" not in text


def size_of(path):
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", content[16:24])


def test_figures_are_drawn_from_the_report_alone(report, tmp_path):
    again = json.loads(json.dumps(report))
    draw_frontier(again, tmp_path / "a" / "frontier.png")
    draw_failures(again, tmp_path / "failures.png")
    assert min(size_of(tmp_path / "a" / "frontier.png")) > 300
    assert min(size_of(tmp_path / "failures.png")) > 300
    del again["rows"][5:]
    draw_frontier(again, tmp_path / "known.png")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"tasks": ["chess"]}, "no task 'chess'; there are table, language"),
        ({"methods": ["sarsa"]}, "no method 'sarsa'; there are ppo, grpo, rloo, dpo, ranked-dpo"),
        ({"betas": [0.5, 0.0]}, "--betas must be positive and finite, but one is 0.0"),
        ({"betas": [math.nan]}, "but one is nan"),
        ({"betas": []}, "--betas is empty"),
        ({"methods": ["dpo", "dpo"]}, "--methods names something twice"),
        ({"seeds": 0}, "--seeds must be at least 1"),
        ({"preferences": 5}, "--preferences must be at least 10"),
    ],
)
def test_what_cannot_be_planned_is_refused(change, sentence):
    with pytest.raises(UsageError, match=sentence.replace("(", r"\(")):
        plan_frontier(**(EVERYTHING | change))


def test_the_command_gives_rows_and_writes_what_it_says(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["frontier", "--quick", "--tasks", "table", "--methods", "rloo", "dpo", "--out", str(out), "--json"]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out.splitlines()[-1])
    assert [(row["method"], row["beta"], row["seed"]) for row in report["rows"]] == [("rloo", 1.0, 0), ("dpo", 1.0, 0)]
    assert all(row["kl_optimum"] < 0.01 and row["share"] < 0.02 for row in report["rows"])
    assert json.loads((out / "frontier.json").read_text()) == report
    assert sorted(path.name for path in out.iterdir()) == ["frontier.json", "frontier.png"]
    assert "π*" in captured.err


def test_results_outlive_a_figure_that_cannot_be_drawn(report, tmp_path, monkeypatch):
    def cannot(*_):
        raise MemoryError

    monkeypatch.setattr("surefoot.alignment.exact.frontier.frontier_report", lambda *_, **__: report)
    monkeypatch.setattr("surefoot.alignment.exact.figure.draw_frontier", cannot)
    with pytest.raises(MemoryError):
        frontier_command.run(["--quick", "--quiet", "--out", str(tmp_path)])
    assert json.loads((tmp_path / "frontier.json").read_text())["rows"] == json.loads(json.dumps(report["rows"]))


def test_the_command_refuses_what_would_do_nothing(tmp_path, capsys):
    assert main(["frontier", "--quick", "--seeds", "3"]) == 2
    assert "--quick chooses --seeds itself" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["frontier", "--out", str(tmp_path / "file")]) == 2
    assert "is a file; give a folder" in capsys.readouterr().err
    assert main(["frontier", "--processes", "0", "--quick"]) == 2
    assert "--processes must be at least 1" in capsys.readouterr().err
