"""Rewards of tokens and ψ, against numbers computed by hand and loops written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from surefoot.alignment.rlhf.weighing import RewardScale, token_rewards, weigh
from tests.alignment.rlhf.experiences import columns, experience, settings

# One prompt, two answers: of three tokens, and of one.
LOG_PROBABILITIES = [[-1.0, -2.0, -3.0], [-1.0]]
REFERENCE = [[-2.0, -2.0, -1.0], [-3.0]]
VALUES = [[1.0, 2.0, 3.0], [4.0]]
REWARDS = [4.0, -1.0]
TOKEN_REWARDS = [[-0.5, 0.0, 4.0 + 1.0], [-1.0 - 1.0]]
"""With β = ½: −½ (1, 0, −2) and 4 at the end; −½ · 2 and −1 at the end."""
RETURNS = [4.5, -2.0]


def hand(behind=0.0, values=VALUES, **choices):
    """ψ, targets and returns of the two answers."""
    chosen = settings(answers_per_prompt=2, **choices)
    answered = experience(LOG_PROBABILITIES, reference=REFERENCE, values=values, rewards=REWARDS, behind=behind)
    earned = torch.tensor(REWARDS, dtype=torch.float64)
    return weigh(answered, token_rewards(answered, earned, beta=0.5, settings=chosen), chosen)


def same(tensor, expected):
    torch.testing.assert_close(tensor, torch.as_tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


def test_a_token_costs_its_divergence_and_the_last_one_earns_the_reward():
    answered = experience(LOG_PROBABILITIES, reference=REFERENCE)
    rewards = token_rewards(answered, torch.tensor(REWARDS, dtype=torch.float64), beta=0.5, settings=settings())
    same(rewards, columns(TOKEN_REWARDS))


def test_with_the_divergence_in_the_loss_only_the_last_token_earns():
    answered = experience(LOG_PROBABILITIES, reference=REFERENCE)
    earned = torch.tensor(REWARDS, dtype=torch.float64)
    rewards = token_rewards(answered, earned, beta=0.5, settings=settings(kl_placement="loss"))
    same(rewards, columns([[0, 0, 4], [-1]]))


@pytest.mark.parametrize(
    ("discount", "trace_decay", "expected"),
    [
        # residuals 0.5, 1, 2 and −6: A₃ = 2, A₂ = 1 + ½·2, A₁ = ½ + ½·2
        (1.0, 0.5, [[1.5, 2, 2], [-6]]),
        # residuals −0.5 + ½·2 − 1 = −0.5, 0 + ½·3 − 2 = −0.5, 2 and −6; a quarter of what follows
        (0.5, 0.5, [[-0.5, 0, 2], [-6]]),
        # the return that follows, less the value
        (1.0, 1.0, [[3.5, 3, 2], [-6]]),
        (1.0, 0.0, [[0.5, 1, 2], [-6]]),
    ],
)
def test_generalised_advantages_end_with_the_answer(discount, trace_decay, expected):
    weighed = hand(weight="gae", discount=discount, trace_decay=trace_decay)
    same(weighed.weights, columns(expected))
    same(weighed.targets, columns([[a + v for a, v in zip(*rows, strict=True)] for rows in zip(expected, VALUES, strict=True)]))
    same(weighed.returns, RETURNS)


@pytest.mark.parametrize(("discount", "expected"), [(1.0, [[4.5, 5, 5], [-2]]), (0.5, [[0.75, 2.5, 5], [-2]])])
def test_rewards_to_go_need_no_critic(discount, expected):
    weighed = hand(weight="reward-to-go", discount=discount, values=None)
    same(weighed.weights, columns(expected))
    assert weighed.targets is None


def test_answers_to_one_prompt_are_compared_with_their_mean_or_with_the_others():
    same(hand(weight="group", values=None).weights, columns([[3.25] * 3, [-3.25]]))
    same(hand(weight="leave-one-out", values=None).weights, columns([[6.5] * 3, [-6.5]]))
    divided = hand(weight="group", values=None, divide_by_deviation=True).weights
    share = 3.25 / (3.25 * math.sqrt(2) + 1e-4)
    same(divided, columns([[share] * 3, [-share]]))


def test_answers_to_other_prompts_are_compared_with_nothing():
    lengths = [1, 2, 3, 2, 1, 3]
    answered = experience([[0.0] * n for n in lengths], answers_per_prompt=3)
    earned = torch.tensor([1.0, 2.0, 6.0, 100.0, 100.0, 103.0], dtype=torch.float64)
    chosen = settings(weight="leave-one-out", answers_per_prompt=3)
    weighed = weigh(answered, token_rewards(answered, earned, beta=0.5, settings=chosen), chosen)
    expected = [1 - 4, 2 - 3.5, 6 - 1.5, -1.5, -1.5, 3]
    same(weighed.weights, columns([[a] * n for a, n in zip(expected, lengths, strict=True)]))


@pytest.mark.parametrize(
    ("choices", "expected"),
    [({}, [4, -1]), ({"unfinished_reward": -7.0}, [-7, -1]), ({"unfinished_penalty": 1.5}, [2.5, -1])],
)
def test_an_answer_that_was_cut_earns_what_the_options_say(choices, expected):
    given = torch.tensor(REWARDS, dtype=torch.float64)
    finished = torch.tensor([False, True])
    same(RewardScale().answer_rewards(given, finished, settings(**choices)), expected)
    # and neither is standardised with the rewards
    scaled = RewardScale(center=2.0, scale=0.5).answer_rewards(given, finished, settings(**choices))
    first = {"unfinished_reward": -7.0, "unfinished_penalty": 4.0 - 1.5}
    same(scaled, [first.get(next(iter(choices), ""), 4.0), -6])


def test_a_cut_answer_ends_where_it_was_cut():
    # its last state's value would count, were a cut a truncation: here it does not, and r₃ = −7 + 1
    answered = experience(LOG_PROBABILITIES, reference=REFERENCE, values=VALUES, rewards=REWARDS, finished=[False, True])
    chosen = settings(unfinished_reward=-7.0, trace_decay=0.5, answers_per_prompt=2)
    earned = RewardScale().answer_rewards(torch.tensor(REWARDS).double(), torch.from_numpy(answered.finished), chosen)
    weighed = weigh(answered, token_rewards(answered, earned, beta=0.5, settings=chosen), chosen)
    # residuals 0.5, 1, −6 − 3
    same(weighed.weights, columns([[0.5 + 0.5 * (1 - 4.5), 1 - 4.5, -9], [-6]]))


def test_rewards_are_scaled_over_tokens_and_keep_their_mean():
    answered = experience(LOG_PROBABILITIES, reference=REFERENCE)
    earned = torch.tensor(REWARDS, dtype=torch.float64)
    rewards = token_rewards(answered, earned, beta=0.5, settings=settings(whiten_rewards=True))
    plain = np.array([-0.5, 0.0, 5.0, -2.0])
    expected = plain.mean() + (plain - plain.mean()) / plain.std()
    torch.testing.assert_close(rewards, columns([expected[:3].tolist(), expected[3:].tolist()]), rtol=0, atol=1e-7)


@pytest.mark.parametrize("weight", ["gae", "reward-to-go", "group", "leave-one-out"])
def test_advantages_are_whitened_over_tokens_and_targets_are_not(weight):
    values = VALUES if weight == "gae" else None
    plain = hand(weight=weight, values=values)
    whitened = hand(weight=weight, values=values, whiten_advantages=True)
    valid = columns([[1, 1, 1], [1]]) > 0
    numbers = plain.weights[valid]
    expected = (numbers - numbers.mean()) / numbers.std(correction=0)
    torch.testing.assert_close(whitened.weights[valid], expected, rtol=0, atol=1e-7)
    assert not bool(whitened.weights[~valid].any())
    if weight == "gae":
        same(whitened.targets, plain.targets)
    same(whitened.returns, RETURNS)


@pytest.mark.parametrize("behind", [1e3, -1e3, math.nan, math.inf])
@pytest.mark.parametrize("weight", ["gae", "reward-to-go", "group", "leave-one-out"])
@pytest.mark.parametrize("white", [False, True])
def test_what_stands_behind_an_answer_reaches_nothing(behind, weight, white):
    values = VALUES if weight == "gae" else None
    choices = {"whiten_rewards": white, "whiten_advantages": white, "divide_by_deviation": weight == "group" and white}
    clean, dirty = (hand(fill, weight=weight, values=values, **choices) for fill in (0.0, behind))
    for one, other in zip(clean, dirty, strict=True):
        assert one is other is None or torch.equal(one, other)


def test_the_divergence_of_an_answer_is_the_sum_over_its_tokens():
    for behind in (0.0, math.nan):
        answered = experience(LOG_PROBABILITIES, reference=REFERENCE, behind=behind)
        same(answered.kl_to_reference, [1 + 0 - 2, 2])


def test_rewards_are_standardised_by_numbers_that_stay():
    first = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
    later, all_finished = torch.tensor([10.0, -4.0], dtype=torch.float64), torch.tensor([True, True])
    for name, expected in (("none", [10, -4]), ("center", [7, -7]), ("scale", [7 / math.sqrt(7), -7 / math.sqrt(7)])):
        chosen = settings(standardize_rewards=name)
        same(RewardScale.of(first, chosen).answer_rewards(later, all_finished, chosen), expected)


@pytest.mark.parametrize("rewards", [[3.0, 3.0, 3.0], [3.0]])
def test_rewards_that_are_all_equal_are_centred_and_keep_their_scale(rewards):
    given = torch.tensor(rewards, dtype=torch.float64)
    assert RewardScale.of(given, settings(standardize_rewards="scale")) == (3.0, 1.0)


@st.composite
def batches(draw):
    prompts, each = draw(st.integers(1, 3)), draw(st.integers(2, 4))
    numbers = st.floats(-3, 3, allow_nan=False, width=32)
    rows = [draw(st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=5)) for _ in range(prompts * each)]
    return each, rows, [draw(numbers) for _ in rows]


@hypothesis_settings(max_examples=50, deadline=None)
@given(batches(), st.sampled_from(["gae", "reward-to-go", "group", "leave-one-out"]), st.floats(0, 1), st.floats(0, 1))
def test_every_answer_is_weighed_as_its_own_episode(batch, weight, discount, trace_decay):
    each, rows, earned = batch
    parts = [[[token[i] for token in row] for row in rows] for i in range(3)]
    chosen = settings(weight=weight, discount=discount, trace_decay=trace_decay, answers_per_prompt=each)
    answered = experience(
        parts[0], reference=parts[1], values=parts[2] if weight == "gae" else None, answers_per_prompt=each, behind=math.nan
    )
    rewards = token_rewards(answered, torch.tensor(earned, dtype=torch.float64), beta=0.3, settings=chosen)
    weighed = weigh(answered, rewards, chosen)

    def of_tokens(n):
        penalised = [-0.3 * (new - old) for new, old, _ in rows[n]]
        return [*penalised[:-1], penalised[-1] + earned[n]]

    for n, row in enumerate(rows):
        own = of_tokens(n)
        if weight in ("group", "leave-one-out"):
            first = n // each * each
            others = [sum(of_tokens(m)) for m in range(first, first + each) if weight == "group" or m != n]
            expected = [sum(own) - sum(others) / len(others)] * len(own)
        else:
            expected, following, next_value = [], 0.0, 0.0
            for r, (_, _, value) in zip(reversed(own), reversed(row), strict=True):
                if weight == "gae":
                    following = r + discount * next_value - value + discount * trace_decay * following
                else:
                    following = r + discount * following
                next_value = value
                expected.append(following)
            expected.reverse()
        actual = weighed.weights[: len(row), n]
        torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9)
        assert not bool(weighed.weights[len(row) :, n].any())
        if weighed.targets is not None:
            torch.testing.assert_close(
                weighed.targets[: len(row), n], actual + columns(parts[2])[: len(row), n], rtol=0, atol=1e-12
            )


def test_the_divergence_in_the_reward_leaves_the_answers_reward_at_its_real_end():
    # the longest answer comes second: an end that were read off the row's length would be wrong for the first
    answered = experience([[0.0], [0.0] * 4])
    rewards = token_rewards(answered, torch.tensor([5.0, 7.0], dtype=torch.float64), beta=0.5, settings=settings())
    same(rewards, columns([[5], [0, 0, 0, 7]]))
