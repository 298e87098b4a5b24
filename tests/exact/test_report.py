"""What `surefoot gradients` prints and draws, and that what it says is what the parts say."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from surefoot.equations.weights import WEIGHTS
from surefoot.errors import UsageError
from surefoot.exact.bounds import trust_region_path
from surefoot.exact.enumerable import evaluate_policy, initial_logits, objective, policy_gradient
from surefoot.exact.estimators import Estimator, estimator_moments, trajectories_of, wrong_critic
from surefoot.exact.problems import make_problem
from surefoot.exact.report import gradients_report, gradients_text


@pytest.fixture(scope="module")
def report():
    return gradients_report("chain", horizon=6, trace_decay=0.8, steps=3)


def find(report, weight, keep, critic):
    (row,) = [r for r in report["rows"] if (r["weight"], r["keep_discount"], r["critic"]) == (weight, keep, critic)]
    return row


def test_it_is_json_and_has_every_row_once(report):
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    keys = [(row["weight"], row["keep_discount"], row["critic"]) for row in report["rows"]]
    assert len(set(keys)) == len(keys) == 1 + 2 + 6 * 4
    assert {key[0] for key in keys} == set(WEIGHTS)
    assert all(row["method"] == "enumeration" and row["standard_error"] == 0 for row in report["rows"])
    assert len({row["trajectories"] for row in report["rows"]}) == 1


def test_its_numbers_are_relative_to_the_true_gradient(report):
    problem = make_problem("chain", horizon=6)
    logits = initial_logits(problem, seed=0)
    gradient = policy_gradient(problem, evaluate_policy(problem, logits))
    assert report["objective"] == pytest.approx(objective(problem, logits))
    assert report["gradient_norm"] == pytest.approx(np.linalg.norm(gradient))
    for row in report["rows"]:
        assert row["relative_variance"] == pytest.approx(row["variance"] / np.linalg.norm(gradient) ** 2)
        unbiased = row["weight"] in ("total-return", "reward-to-go", "baseline") or row["critic"] == "exact"
        assert (row["bias"] < 1e-9) == (unbiased and row["keep_discount"] is not False)
    assert find(report, "reward-to-go", False, "none")["bias"] == pytest.approx(report["customary_distance"])
    assert find(report, "reward-to-go", False, "none")["cosine"] == pytest.approx(report["customary_cosine"])


def test_its_options_reach_the_estimators(report):
    assert {row["trace_decay"] for row in report["rows"] if row["weight"] == "gae"} == {0.8}
    assert {row["steps"] for row in report["rows"] if row["weight"] == "n-step"} == {3}
    swept = [
        r for r in report["trace_decay_sweep"] if r["trace_decay"] == 0.8 and r["critic"] == "wrong" and r["keep_discount"]
    ]
    assert swept[0]["bias"] == find(report, "gae", True, "wrong")["bias"]
    small = gradients_report("chain", horizon=6, trace_decay=0.8, steps=3, critic_error=0.01)
    assert find(small, "td-residual", True, "wrong")["bias"] < find(report, "td-residual", True, "wrong")["bias"] / 20
    assert gradients_report("chain", horizon=6, seed=1)["objective"] != report["objective"]


def test_the_seed_reaches_policy_critic_and_samples():
    problem = make_problem("windy-cliff")
    evaluation = evaluate_policy(problem, initial_logits(problem, seed=5))
    critic = wrong_critic(problem, evaluation, error=0.3, seed=5)
    moments = estimator_moments(
        problem,
        evaluation,
        Estimator("td-residual"),
        trajectories_of(problem, evaluation, samples=500, seed=5),
        critic=critic,
    )
    row = find(gradients_report("windy-cliff", samples=500, seed=5, critic_error=0.3), "td-residual", True, "wrong")
    assert row["variance"] == moments.variance
    assert row["bias"] == moments.bias(policy_gradient(problem, evaluation))


def test_without_discount_nothing_is_dropped():
    report = gradients_report("two-paths", discount=1.0)
    assert {row["keep_discount"] for row in report["rows"]} == {True, None}
    assert report["customary_distance"] == 0
    assert report["surrogate"][0]["schulman_kl"] is None
    assert report["surrogate"][0]["finite_expected"] > 0
    json.dumps(report, allow_nan=False)
    assert "dropped" not in gradients_text(report)


def test_samples_come_with_their_errors():
    report = gradients_report("windy-cliff", samples=2000)
    assert (report["method"], report["trajectories"]) == ("monte-carlo", 2000)
    for row in report["rows"]:
        assert row["standard_error"] > 0
        if row["critic"] == "exact" and row["keep_discount"]:
            assert row["bias"] < 3 * row["standard_error"]
    text = gradients_text(report)
    assert "2000 sampled trajectories" in text
    assert " ± " in text
    assert report == gradients_report("windy-cliff", samples=2000)


def test_a_zero_gradient_has_no_relative_numbers():
    report = gradients_report("chain", discount=0.0, horizon=1)  # two steps from either end: nothing to earn
    assert report["gradient_norm"] == 0
    assert {row["bias"] for row in report["rows"]} == {None}
    assert {row["relative_variance"] for row in report["rows"]} == {None}
    assert "–" in gradients_text(report)
    json.dumps(report, allow_nan=False)


def test_the_walks_are_the_bounds_modules(report):
    problem = make_problem("chain", horizon=6)
    walk = trust_region_path(problem, initial_logits(problem, seed=0), iterations=20, limit=0.01)
    (entry,) = [w for w in report["trust_region"] if w["limit"] == 0.01]
    assert entry["objectives"] == pytest.approx(
        [*(step.objective for step in walk.steps), objective(problem, walk.logits)], abs=1e-14
    )
    assert [w["limit"] for w in report["trust_region"]] == ["theorem", "certified", 0.01, 1.0]
    for entry in report["trust_region"][:2]:
        assert all(b > a for a, b in zip(entry["objectives"], entry["objectives"][1:], strict=False))
        assert entry["smallest_gain"] > 0
    for entry in report["trust_region"]:
        for after, bound in zip(entry["objectives"][1:], entry["lower_bounds"], strict=True):
            assert after >= bound - 1e-12


def test_the_text_is_aligned_and_complete(report):
    lines = gradients_text(report).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("weight"))
    table = lines[start : start + 16]
    assert len({line.index(word) for line, word in zip(table[1:], ["in ψ", *["kept", "dropped"] * 7], strict=True)}) == 1
    for weight in ("gae, λ = 0.8", "n-step, n = 3", "total-return", "TRPO's bound", "KL ≤ 0.01"):
        assert any(weight in line for line in lines)
    assert max(map(len, lines)) < 120


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"problem": "nowhere"}, "there is no problem 'nowhere'"),
        ({"discount": 1.5}, "discount must lie between 0 and 1, but is 1.5"),
        ({"horizon": 0}, "horizon must be at least 1 step, but is 0"),
        ({"trace_decay": -0.1}, "λ must lie between 0 and 1, but is -0.1"),
        ({"steps": 0}, "must be at least 1, but are 0"),
        ({"critic_error": -1.0}, "critic's error must be at least 0, but is -1"),
        ({"samples": 1}, "samples must be at least 2, but is 1"),
        ({"seed": -1}, "seed must be at least 0, but is -1"),
    ],
)
def test_wrong_input_is_named(arguments, sentence):
    with pytest.raises(UsageError, match=sentence):
        gradients_report(**{"problem": "chain"} | arguments)


@pytest.mark.parametrize("discount", [0.9, 1.0])
def test_the_figure_is_written_whole(tmp_path, discount):
    pytest.importorskip("matplotlib")
    path = tmp_path / "deep" / "gradients.png"
    report = gradients_report("two-paths", discount=discount, figure=path)
    assert report["figure"] == str(path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert 20_000 < path.stat().st_size < 200_000
    assert [p.name for p in path.parent.iterdir()] == ["gradients.png"]


def test_a_figure_without_a_gradient_or_without_matplotlib_is_refused(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    with pytest.raises(UsageError, match="zero gradient"):
        gradients_report("chain", discount=0.0, horizon=1, figure=tmp_path / "x.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r"the figure needs matplotlib; install it with: pip install 'surefoot\[reports\]'"):
        gradients_report("two-paths", figure=tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


def test_no_engine_is_imported():
    code = (
        "import sys, surefoot.exact.report, surefoot.exact.linear_quadratic;"
        "print([m for m in ('jax', 'torch', 'gymnasium', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("horizon", [1, 4])
def test_steps_that_run_a_policy_into_a_corner_are_still_json(horizon):
    """random-3's steps end where an action's probability underflows: the KL is infinite, which JSON has no number for."""
    report = gradients_report("random-3", horizon=horizon)
    json.dumps(report, allow_nan=False)
    assert any(None in walk["mean_kl"] for walk in report["trust_region"])
