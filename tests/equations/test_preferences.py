"""Losses of preferences: numbers worked out by hand, every order of a ranking enumerated, gradients by differences."""

from __future__ import annotations

import itertools
import math

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surefoot.equations import _library
from surefoot.equations.preferences import (
    bradley_terry_loss,
    closed_form_optimum,
    implicit_rewards,
    ipo_loss,
    plackett_luce_loss,
    score_centering_loss,
    supervised_loss,
)
from tests.equations.libraries import AUTOGRAD, NUMPY, finite_differences

RNG = np.random.default_rng(7)
BETTER, WORSE = RNG.normal(size=(3, 5)) * 2, RNG.normal(size=(3, 5)) * 2
SCORES = RNG.normal(size=(3, 5)) * 2
PADDED = np.array([[1.3, -0.2, 0.7, 0.0, 0.0], [0.4, 0.9, -1.1, 2.0, 0.1], [0.3, -0.5, 0.0, 0.0, 0.0]])
VALID = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], bool)
POISONS = [-1e3, 1e3, math.nan]


def pair(library, better, worse, **others):
    return library.call(bradley_terry_loss, better=np.array(better), worse=np.array(worse), **others)


def ranking(library, scores, **others):
    return library.call(plackett_luce_loss, scores=np.asarray(scores), **others)


def test_implicit_rewards_by_hand(library):
    arguments = {
        "log_probabilities": np.log([[0.5, 0.2]]),
        "reference_log_probabilities": np.log([[0.25, 0.4]]),
    }
    got = library.call(implicit_rewards, **arguments, beta=0.3)
    np.testing.assert_allclose(got, [[0.3 * math.log(2), -0.3 * math.log(2)]], rtol=1e-13)


@pytest.mark.parametrize("library", AUTOGRAD, ids=lambda library: library.name)
def test_the_reference_is_a_constant(library):
    by_policy = library.gradient(
        lambda x: implicit_rewards(log_probabilities=x, reference_log_probabilities=x - 1, beta=0.3), BETTER
    )
    np.testing.assert_allclose(by_policy, np.full_like(BETTER, 0.3))


def test_a_pair_by_hand(library):
    np.testing.assert_allclose(pair(library, [0.7], [0.7]), [math.log(2)], rtol=1e-14)
    np.testing.assert_allclose(pair(library, [2.5], [0.5]), [math.log(1 + math.exp(-2))], rtol=1e-14)
    np.testing.assert_allclose(pair(library, [0.5], [2.5]), [math.log(1 + math.exp(2))], rtol=1e-14)
    # A margin of 2 asks for as much as the scores are apart; one margin per pair.
    np.testing.assert_allclose(pair(library, [2.5], [0.5], margin=2.0), [math.log(2)], rtol=1e-14)
    got = pair(library, [2.5, 2.5], [0.5, 0.5], margin=np.array([3.0, 0.5]))
    np.testing.assert_allclose(got, [math.log(1 + math.exp(1)), math.log(1 + math.exp(-1.5))], rtol=1e-14)
    smoothed = 0.9 * math.log(1 + math.exp(-2)) + 0.1 * math.log(1 + math.exp(2))
    np.testing.assert_allclose(pair(library, [2.5], [0.5], smoothing=0.1), [smoothed], rtol=1e-14)


def test_the_two_orders_of_a_pair_add_up_to_one(library):
    total = np.exp(-pair(library, BETTER, WORSE)) + np.exp(-pair(library, WORSE, BETTER))
    np.testing.assert_allclose(total, np.ones_like(total), rtol=1e-14)


def test_without_smoothing_nothing_changes_to_the_bit(library):
    plain = library.call(lambda better, worse: -_library.log_sigmoid(better - worse), better=BETTER, worse=WORSE)
    np.testing.assert_array_equal(pair(library, BETTER, WORSE, smoothing=0.0), plain)
    gradients = [
        library.gradient(lambda x, f=f: f(x), BETTER)
        for f in (
            lambda x: bradley_terry_loss(better=x, worse=0 * x + 0.3, smoothing=0.0),
            lambda x: -_library.log_sigmoid(x - (0 * x + 0.3)),
        )
    ]
    np.testing.assert_array_equal(*gradients)


def test_smoothing_is_the_expectation_over_a_label_that_may_be_wrong(library):
    right, wrong = pair(library, BETTER, WORSE, margin=0.4), pair(library, WORSE, BETTER, margin=0.4)
    got = pair(library, BETTER, WORSE, margin=0.4, smoothing=0.2)
    np.testing.assert_allclose(got, 0.8 * right + 0.2 * wrong, rtol=1e-13)
    # Half the labels wrong: nothing is learnt, and the order of the arguments does not matter.
    np.testing.assert_allclose(
        pair(library, BETTER, WORSE, smoothing=0.5), pair(library, WORSE, BETTER, smoothing=0.5), rtol=1e-13
    )


def test_a_smoothed_loss_is_least_at_the_log_odds_of_a_right_label(library):
    best = np.array([math.log(0.9 / 0.1)])
    gradient = library.gradient(lambda x: bradley_terry_loss(better=x, worse=0 * x, smoothing=0.1), best)
    np.testing.assert_allclose(gradient, [0.0], atol=1e-9)
    assert pair(library, best, [0.0], smoothing=0.1) < pair(library, best + 0.1, [0.0], smoothing=0.1)
    assert pair(library, best, [0.0], smoothing=0.1) < pair(library, best - 0.1, [0.0], smoothing=0.1)


def test_ipo_by_hand(library):
    # h = 0.8 − (−0.4) = 1.2, 1/(2β) = 2: (−0.8)² = 0.64.
    call = lambda better, worse: library.call(  # noqa: E731
        ipo_loss, better_log_ratios=np.array([better]), worse_log_ratios=np.array([worse]), beta=0.25
    )
    np.testing.assert_allclose(call(0.8, -0.4), [0.64], rtol=1e-13)
    np.testing.assert_allclose(call(-0.4, 0.8), [3.2**2], rtol=1e-13)
    np.testing.assert_allclose(call(2.5, 0.5), [0.0], atol=1e-14)


def test_a_ranking_by_hand(library):
    # exp r = 3, 2, 1 and the worst last: 3/6 · 2/3 · 1.
    scores = np.log([3.0, 2.0, 1.0])
    np.testing.assert_allclose(ranking(library, scores), math.log(3), rtol=1e-14)
    np.testing.assert_allclose(ranking(library, scores, top=1), math.log(2), rtol=1e-14)
    # The other way round: 1/6 · 2/5.
    np.testing.assert_allclose(ranking(library, scores[::-1].copy()), math.log(15), rtol=1e-14)
    np.testing.assert_allclose(ranking(library, scores[::-1].copy(), top=1), math.log(6), rtol=1e-14)


@pytest.mark.parametrize("top", [1, 2, 3, None])
def test_the_probabilities_of_all_rankings_add_up_to_one(library, top):
    """Rankings that differ behind the leading places alone are one event, counted once."""
    scores = np.array([0.3, -1.7, 2.2, 0.9])
    places = 4 if top is None else top
    orders = np.array(list({order[:places]: order for order in itertools.permutations(range(4))}.values()))
    probabilities = np.exp(-ranking(library, scores[orders], top=top))
    assert len(probabilities) == math.perm(4, places)
    np.testing.assert_allclose(probabilities.sum(), 1, rtol=1e-13)


def test_the_best_of_a_ranking_is_drawn_by_softmax(library):
    """The marginal of the first place over all orders, against the definition of the model."""
    scores = np.array([0.3, -1.7, 2.2, 0.9])
    orders = np.array(list(itertools.permutations(range(4))))
    probabilities = np.exp(-ranking(library, scores[orders]))
    first = [probabilities[orders[:, 0] == k].sum() for k in range(4)]
    np.testing.assert_allclose(first, np.exp(scores) / np.exp(scores).sum(), rtol=1e-13)


def test_a_ranking_of_two_is_a_pair(library):
    stacked = np.stack([BETTER, WORSE], axis=-1)
    np.testing.assert_array_equal(ranking(library, stacked), pair(library, BETTER, WORSE))
    np.testing.assert_array_equal(ranking(library, stacked, top=1), pair(library, BETTER, WORSE))


@pytest.mark.parametrize("answers", [1, 2, 3, 7])
def test_equal_scores_leave_every_order_as_likely(library, answers):
    np.testing.assert_allclose(ranking(library, np.full(answers, -3.7)), math.lgamma(answers + 1), atol=1e-13)


def test_the_last_place_is_settled_by_the_others(library):
    np.testing.assert_array_equal(ranking(library, SCORES, top=4), ranking(library, SCORES))
    np.testing.assert_array_equal(ranking(library, SCORES, top=9), ranking(library, SCORES))
    assert np.all(ranking(library, SCORES, top=3) < ranking(library, SCORES))


def test_leading_places_do_not_ask_for_the_order_behind_them(library):
    swapped = SCORES[:, [0, 1, 4, 2, 3]]
    np.testing.assert_allclose(ranking(library, swapped, top=2), ranking(library, SCORES, top=2), rtol=1e-13)
    assert np.abs(ranking(library, swapped) - ranking(library, SCORES)).min() > 1e-3


@pytest.mark.parametrize("top", [None, 2, 4])
def test_padding_behind_a_row_changes_no_bit(library, top):
    clean, gradient = None, None
    for poison in [0.0, *POISONS]:
        scores = np.where(VALID, PADDED, poison)
        value = ranking(library, scores, valid=VALID, top=top)
        if library in AUTOGRAD:
            slope = library.gradient(lambda x: plackett_luce_loss(scores=x, valid=library.convert(VALID), top=top), scores)
            np.testing.assert_array_equal(slope[~VALID], 0.0)
            if gradient is None:
                gradient = slope
                for row, kept in enumerate(VALID):
                    alone = library.gradient(lambda x: plackett_luce_loss(scores=x, top=top), PADDED[row][kept])
                    np.testing.assert_allclose(slope[row][kept], alone, atol=1e-14)
            np.testing.assert_array_equal(slope, gradient)
        clean = value if clean is None else clean
        np.testing.assert_array_equal(value, clean)
    # And it is the loss of the row without its padding.
    for row, value in enumerate(clean):
        np.testing.assert_allclose(value, ranking(library, PADDED[row][VALID[row]], top=top), rtol=1e-13)


def test_a_row_without_answers_costs_nothing(library):
    nothing = np.full((2, 3), math.nan)
    np.testing.assert_array_equal(ranking(library, nothing, valid=np.zeros((2, 3), bool)), [0.0, 0.0])
    centred = library.call(score_centering_loss, scores=nothing, valid=np.zeros((2, 3), bool))
    np.testing.assert_array_equal(centred, [0.0, 0.0])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_far_apart_scores_stay_finite(library, dtype):
    scores = np.array([[1e4, 0.0, -1e4], [-1e4, 0.0, 1e4]], dtype)
    # In order: certain. The other way round: 1e4 behind 0 behind −1e4, so 2e4 and then 1e4.
    np.testing.assert_allclose(ranking(library, scores), [0.0, 3e4], rtol=1e-6)
    np.testing.assert_allclose(pair(library, scores[:, 0], scores[:, 2]), [0.0, 2e4], rtol=1e-6)
    if library in AUTOGRAD:
        gradient = library.gradient(lambda x: plackett_luce_loss(scores=x), scores)
        np.testing.assert_allclose(gradient, [[0, 0, 0], [-1, -1, 2]], atol=1e-6)


def test_what_scores_have_in_common_costs_no_digits(library):
    scores = np.array([1.5, 0.25, -0.5, 0.125])
    far = ranking(library, (scores + 2.0**13).astype(np.float32))
    np.testing.assert_allclose(far, ranking(library, scores), rtol=1e-6)


LOSSES = {
    "pair": lambda x: bradley_terry_loss(better=x[..., 0], worse=x[..., 1], margin=0.3, smoothing=0.15),
    "ipo": lambda x: ipo_loss(better_log_ratios=x[..., 0], worse_log_ratios=x[..., 1], beta=0.2),
    "ranking": lambda x: plackett_luce_loss(scores=x),
    "leading places": lambda x: plackett_luce_loss(scores=x, top=2),
    "supervised": lambda x: supervised_loss(log_probabilities=x),
    "centering": lambda x: score_centering_loss(scores=x),
    "log-partition": lambda x: closed_form_optimum(reference_log_probabilities=x, rewards=x, beta=0.7).log_partition,
    "optimum": lambda x: closed_form_optimum(reference_log_probabilities=x, rewards=x, beta=0.7).log_probabilities[..., 0],
}


@pytest.mark.parametrize("library", AUTOGRAD, ids=lambda library: library.name)
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_those_of_finite_differences(library, loss):
    expected = finite_differences(lambda x: NUMPY.to_numpy(LOSSES[loss](x)).sum(), SCORES)
    np.testing.assert_allclose(library.gradient(LOSSES[loss], SCORES), expected, rtol=1e-6, atol=1e-8)


def test_second_derivatives_of_a_ranking():
    scores = torch.from_numpy(SCORES).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: plackett_luce_loss(scores=x, top=3), (scores,))


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.floats(-50, 50), min_size=2, max_size=7).flatmap(
        lambda s: st.tuples(st.just(s), st.permutations(range(len(s))))
    )
)
def test_no_order_is_better_than_the_order_of_the_scores(drawn):
    scores, order = np.array(drawn[0]), np.array(drawn[1])
    sorted_loss, other = ranking(NUMPY, np.sort(scores)[::-1].copy()), ranking(NUMPY, scores[order])
    assert 0 <= sorted_loss <= other + 1e-9


def test_supervised_by_hand(library):
    got = library.call(supervised_loss, log_probabilities=np.log([0.5, 0.1]))
    np.testing.assert_allclose(got, [math.log(2), math.log(10)], rtol=1e-14)


def test_centering_by_hand(library):
    call = lambda scores, **others: library.call(score_centering_loss, scores=np.array(scores), **others)  # noqa: E731
    np.testing.assert_allclose(call([[3.0, -1.0]]), [(3.0 - 1.0) ** 2])  # the published form
    np.testing.assert_allclose(call([[3.0, -1.0, 4.0]]), [(2 / 3 * 6.0) ** 2])
    # A common shift c costs 4c² for every K, and centred scores cost nothing however far they are apart.
    np.testing.assert_allclose([call([0.7] * k) for k in (1, 2, 5)], [4 * 0.49] * 3, rtol=1e-13)
    np.testing.assert_allclose(call([9.0, -5.0, -4.0]), 0.0, atol=1e-14)


def test_padding_does_not_move_the_centre(library):
    expected = [(2 / len(row[kept]) * row[kept].sum()) ** 2 for row, kept in zip(PADDED, VALID, strict=True)]
    for poison in POISONS:
        scores = np.where(VALID, PADDED, poison)
        np.testing.assert_allclose(library.call(score_centering_loss, scores=scores, valid=VALID), expected, rtol=1e-13)
        if library in AUTOGRAD:
            slope = library.gradient(lambda x: score_centering_loss(scores=x, valid=library.convert(VALID)), scores)
            np.testing.assert_array_equal(slope[~VALID], 0.0)
            assert np.isfinite(slope).all()


def test_the_optimum_by_hand(library):
    # β = ½, r = 0 and ½ log 3: weights ¼ · 1 and ¾ · 3, so Z = 2.5.
    arguments = {"reference_log_probabilities": np.log([0.25, 0.75]), "rewards": np.array([0.0, 0.5 * math.log(3)])}
    log_optimum, log_partition = library.call(closed_form_optimum, **arguments, beta=0.5)
    np.testing.assert_allclose(np.exp(log_optimum), [0.1, 0.9], rtol=1e-13)
    np.testing.assert_allclose(np.exp(log_partition), 2.5, rtol=1e-13)


def random_prompts(seed: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "reference_log_probabilities": np.log(rng.dirichlet(np.ones(6), size=4)),
        "rewards": rng.normal(size=(4, 6)),
    }


def regularised_reward(log_probabilities, reference_log_probabilities, rewards, beta):
    """E_π[r] − β KL(π‖π_ref), from the definition."""
    probabilities = np.exp(log_probabilities)
    return (probabilities * (rewards - beta * (log_probabilities - reference_log_probabilities))).sum(axis=-1)


@pytest.mark.parametrize("beta", [0.05, 1.0, 20.0])
def test_nothing_is_better_than_the_optimum(library, beta):
    prompts, rng = random_prompts(), np.random.default_rng(5)
    log_optimum, log_partition = library.call(closed_form_optimum, **prompts, beta=beta)
    np.testing.assert_allclose(np.exp(log_optimum).sum(axis=-1), 1, rtol=1e-12)
    best = regularised_reward(log_optimum, **prompts, beta=beta)
    np.testing.assert_allclose(best, beta * log_partition, rtol=1e-11, atol=1e-13)
    for size in (1e-3, 0.1, 3.0):
        other = log_optimum + size * rng.normal(size=log_optimum.shape)
        other -= np.log(np.exp(other).sum(axis=-1, keepdims=True))
        lost = best - regularised_reward(other, **prompts, beta=beta)
        # What is lost is β KL(π‖π*), exactly.
        np.testing.assert_allclose(lost, beta * (np.exp(other) * (other - log_optimum)).sum(axis=-1), atol=1e-11)
        assert np.all(lost > -1e-12)


def test_the_optimum_implies_the_reward_that_it_is_the_optimum_of(library):
    prompts = random_prompts()
    log_optimum, log_partition = library.call(closed_form_optimum, **prompts, beta=0.3)
    implied = library.call(
        implicit_rewards,
        log_probabilities=log_optimum,
        reference_log_probabilities=prompts["reference_log_probabilities"],
        beta=0.3,
    )
    np.testing.assert_allclose(implied + 0.3 * log_partition[:, None], prompts["rewards"], atol=1e-12)
    # β log Z is common to all answers: a ranking by implicit rewards is a ranking by rewards.
    np.testing.assert_allclose(ranking(library, implied), ranking(library, prompts["rewards"]), rtol=1e-11)


def test_the_optimum_of_a_far_reward_stays_finite(library):
    log_optimum, log_partition = library.call(
        closed_form_optimum,
        reference_log_probabilities=np.log([0.5, 0.5]),
        rewards=np.array([0.0, 1e4]),
        beta=1e-2,
    )
    np.testing.assert_allclose(log_optimum, [-1e6, 0.0], rtol=1e-12)
    np.testing.assert_allclose(log_partition, 1e6 - math.log(2), rtol=1e-12)


def test_numbers_that_mean_nothing_are_refused():
    one = np.zeros(2)
    for beta in (0.0, -0.1, math.nan):
        with pytest.raises(ValueError, match="beta must be positive"):
            implicit_rewards(log_probabilities=one, reference_log_probabilities=one, beta=beta)
        with pytest.raises(ValueError, match="beta must be positive"):
            ipo_loss(better_log_ratios=one, worse_log_ratios=one, beta=beta)
        with pytest.raises(ValueError, match="beta must be positive"):
            closed_form_optimum(reference_log_probabilities=one, rewards=one, beta=beta)
    for smoothing in (-0.01, 0.51, math.nan):
        with pytest.raises(ValueError, match=r"between 0 and 0\.5"):
            bradley_terry_loss(better=one, worse=one, smoothing=smoothing)
    with pytest.raises(ValueError, match="top must be at least 1"):
        plackett_luce_loss(scores=one, top=0)


def test_shapes_that_would_broadcast_in_silence_are_refused():
    with pytest.raises(jaxtyping.TypeCheckError):
        bradley_terry_loss(better=np.zeros(3), worse=np.zeros((3, 1)))
    with pytest.raises(jaxtyping.TypeCheckError):
        plackett_luce_loss(scores=np.zeros((2, 3)), valid=np.ones(3, bool))
