"""Rankings against their definition, by explicit loops; samples against the probabilities."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import chisquare

from surefoot.alignment.exact.rankings import Rankings, all_rankings, pool, sample_rankings
from surefoot.alignment.exact.tasks import PreferenceTask, table_task
from surefoot.errors import UsageError

TASK = table_task(prompts=2, answers=4, seed=11)


def by_definition(task: PreferenceTask, answers: int, temperature: float) -> dict[tuple[int, ...], float]:
    """P(x, ranking): draw ordered tuples, keep those without repetition, then rank them by the definition of the model."""
    out: dict[tuple[int, ...], float] = {}
    for x in range(task.prompts):
        p, r = np.exp(task.reference_log_probabilities[x]), task.rewards[x] / temperature
        tuples = [t for t in itertools.product(range(task.answers), repeat=answers) if len(set(t)) == answers]
        kept = sum(math.prod(p[list(t)]) for t in tuples)
        for drawn in tuples:
            for ranked in itertools.permutations(drawn):
                chance, left = math.prod(p[list(drawn)]) / kept / task.prompts, list(drawn)
                for y in ranked:
                    chance *= math.exp(r[y]) / sum(math.exp(r[z]) for z in left)
                    left.remove(y)
                out[(x, *ranked)] = out.get((x, *ranked), 0.0) + chance
    return out


@pytest.mark.parametrize(("answers", "temperature"), [(2, 1.0), (3, 1.0), (3, 0.4), (4, 2.0)])
def test_every_ranking_has_its_probability(answers, temperature):
    rankings = all_rankings(TASK, answers=answers, temperature=temperature)
    expected = by_definition(TASK, answers, temperature)
    assert len(rankings.weights) == TASK.prompts * math.perm(TASK.answers, answers) == len(expected)
    assert rankings.weights.sum() == pytest.approx(1)
    for prompt, chosen, weight in zip(rankings.prompts, rankings.answers, rankings.weights, strict=True):
        assert weight == pytest.approx(expected[(prompt, *chosen)], rel=1e-12)


def test_a_pair_is_labelled_by_the_sigmoid_of_the_difference():
    rankings = all_rankings(TASK, answers=2)
    weight = {(x, *y): w for x, y, w in zip(rankings.prompts, rankings.answers.tolist(), rankings.weights, strict=True)}
    odds = weight[(1, 0, 3)] / weight[(1, 3, 0)]
    assert math.log(odds) == pytest.approx(TASK.rewards[1, 0] - TASK.rewards[1, 3])


@pytest.mark.parametrize(("answers", "temperature"), [(2, 1.0), (3, 0.7)])
def test_samples_come_as_often_as_they_are_probable(answers, temperature):
    count = 200_000
    drawn = sample_rankings(TASK, count=count, answers=answers, generator=np.random.default_rng(0), temperature=temperature)
    expected = by_definition(TASK, answers, temperature)
    seen = dict.fromkeys(expected, 0)
    for prompt, chosen in zip(drawn.prompts.tolist(), drawn.answers.tolist(), strict=True):
        seen[(prompt, *chosen)] += 1
    result = chisquare([seen[key] for key in expected], [count * expected[key] for key in expected])
    assert result.pvalue > 1e-3


def test_samples_are_reproducible_and_different_answers():
    draw = lambda seed: sample_rankings(  # noqa: E731
        TASK, count=500, answers=3, generator=np.random.default_rng(seed)
    )
    first, again, other = draw(5), draw(5), draw(6)
    np.testing.assert_array_equal(first.answers, again.answers)
    np.testing.assert_array_equal(first.prompts, again.prompts)
    assert (first.answers != other.answers).any()
    assert all(len(set(row)) == 3 for row in first.answers.tolist())
    np.testing.assert_allclose(first.weights, 1 / 500)
    assert set(first.prompts.tolist()) == {0, 1}


def test_all_answers_can_be_asked_for():
    drawn = sample_rankings(TASK, count=200, answers=4, generator=np.random.default_rng(0))
    assert (np.sort(drawn.answers, axis=1) == np.arange(4)).all()


def test_pooling_adds_the_weights_of_equal_rankings():
    rankings = Rankings(np.array([1, 0, 1, 1]), np.array([[2, 0], [2, 0], [0, 2], [2, 0]]), np.array([0.1, 0.2, 0.3, 0.4]))
    pooled = pool(rankings)
    got = {(x, *y): w for x, y, w in zip(pooled.prompts, pooled.answers.tolist(), pooled.weights, strict=True)}
    assert got == pytest.approx({(1, 2, 0): 0.5, (0, 2, 0): 0.2, (1, 0, 2): 0.3})


def test_what_cannot_be_drawn_is_refused():
    generator = np.random.default_rng(0)
    for answers in (1, 5):
        with pytest.raises(UsageError, match=f"between 2 and 4 answers, but {answers}"):
            sample_rankings(TASK, count=1, answers=answers, generator=generator)
        with pytest.raises(UsageError, match="between 2 and 4"):
            all_rankings(TASK, answers=answers)
    for temperature in (0.0, math.nan):
        with pytest.raises(UsageError, match="temperature of the labels must be positive"):
            sample_rankings(TASK, count=1, answers=2, generator=generator, temperature=temperature)
    with pytest.raises(UsageError, match="at least 1 ranking"):
        sample_rankings(TASK, count=0, answers=2, generator=generator)
    sure = PreferenceTask(np.log([[1 - 1e-12, 1e-12]]), np.array([[0.0, 1.0]]))
    with pytest.raises(UsageError, match="hardly ever gives 2 different answers"):
        sample_rankings(sure, count=1, answers=2, generator=generator)
    with pytest.raises(UsageError, match="too many to list"):
        all_rankings(table_task(prompts=1, answers=40), answers=5)
