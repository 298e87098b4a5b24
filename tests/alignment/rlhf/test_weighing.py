"""Rewards of tokens and ψ, against numbers computed by hand and loops written out."""

from __future__ import annotations

import math

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


def hand(behind=0.0, values=VALUES, rewards=REWARDS, beta=0.5, **choices):
    """ψ, targets and returns of the two answers."""
    chosen = settings(answers_per_prompt=2, **choices)
    finished = [False, True]
    answered = experience(
        LOG_PROBABILITIES, reference=REFERENCE, values=values, rewards=rewards, behind=behind, finished=finished
    )
    earned = torch.tensor(rewards, dtype=torch.float64)
    return weigh(answered, token_rewards(answered, earned, beta=beta, settings=chosen), chosen)


def same(tensor, expected):
    torch.testing.assert_close(tensor, torch.as_tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


def test_a_token_costs_its_divergence_and_the_last_one_earns_the_reward():
    answered = experience(LOG_PROBABILITIES, reference=REFERENCE)
    rewards = token_rewards(answered, torch.tensor(REWARDS, dtype=torch.float64), beta=0.5, settings=settings())
    same(rewards.total, columns(TOKEN_REWARDS))
    same(rewards.earned, columns([[0, 0, 4], [-1]]))


def test_with_the_divergence_in_the_loss_only_the_last_token_earns():
    answered = experience(LOG_PROBABILITIES, reference=REFERENCE)
    earned = torch.tensor(REWARDS, dtype=torch.float64)
    rewards = token_rewards(answered, earned, beta=0.5, settings=settings(kl_placement="loss"))
    same(rewards.total, columns([[0, 0, 4], [-1]]))


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
    # the rewards 4 and −1 are divided by their deviation; the divergences −1 and 2, times ½, are only compared
    share = 2.5 / (2.5 * math.sqrt(2) + 1e-4) + 0.5 * 1.5
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
    answered = experience([[0.0] * 3, [0.0]], finished=finished.tolist())

    def earned(scale):
        chosen = settings(**choices)
        rewards = token_rewards(answered, scale.answer_rewards(given, finished, chosen), beta=0.5, settings=chosen)
        return rewards.total.sum(dim=0)

    same(earned(RewardScale()), expected)
    # and neither is standardised with the rewards
    first = {"unfinished_reward": -7.0, "unfinished_penalty": 4.0 - 1.5}
    same(earned(RewardScale(center=2.0, scale=0.5)), [first.get(next(iter(choices), ""), 4.0), -6])


def test_a_cut_answer_ends_where_it_was_cut():
    # its last state's value would count, were a cut a truncation: here it does not, and r₃ = −7 + 1
    answered = experience(LOG_PROBABILITIES, reference=REFERENCE, values=VALUES, rewards=REWARDS, finished=[False, True])
    chosen = settings(unfinished_reward=-7.0, trace_decay=0.5, answers_per_prompt=2)
    earned = RewardScale().answer_rewards(torch.tensor(REWARDS).double(), torch.from_numpy(answered.finished), chosen)
    weighed = weigh(answered, token_rewards(answered, earned, beta=0.5, settings=chosen), chosen)
    # residuals 0.5, 1, −6 − 3
    same(weighed.weights, columns([[0.5 + 0.5 * (1 - 4.5), 1 - 4.5, -9], [-6]]))


def test_the_answers_rewards_are_scaled_and_keep_their_mean():
    answered = experience(LOG_PROBABILITIES, reference=REFERENCE)
    earned = torch.tensor(REWARDS, dtype=torch.float64)
    rewards = token_rewards(answered, earned, beta=0.5, settings=settings(whiten_rewards=True))
    # 4 and −1 have the mean 1.5 and deviate from it by 2.5
    torch.testing.assert_close(rewards.earned, columns([[0, 0, 1.5 + 1], [1.5 - 1]]), rtol=0, atol=1e-7)
    torch.testing.assert_close(rewards.total, columns([[-0.5, 0, 2.5 + 1], [0.5 - 1]]), rtol=0, atol=1e-7)


# Of KL −1, 0 … in the tokens, times β = ½: what follows from each token on, −½, −1, −1 and 1, less the tokens' mean −⅜;
# or of the answers, −½ and 1, less their mean, or less the other one.
PENALTIES = {
    "gae": [[-0.125, -0.625, -0.625], [1.375]],
    "reward-to-go": [[-0.125, -0.625, -0.625], [1.375]],
    "group": [[-0.75] * 3, [0.75]],
    "leave-one-out": [[-1.5] * 3, [1.5]],
}


@pytest.mark.parametrize("weight", list(PENALTIES))
def test_advantages_are_whitened_over_tokens_and_neither_targets_nor_penalties_are(weight):
    values = VALUES if weight == "gae" else None
    plain = hand(weight=weight, values=values, beta=0.0)
    whitened = hand(weight=weight, values=values, whiten_advantages=True)
    valid = columns([[1, 1, 1], [1]]) > 0
    numbers = plain.weights[valid]
    expected = (numbers - numbers.mean()) / numbers.std(correction=0) - columns(PENALTIES[weight])[valid]
    torch.testing.assert_close(whitened.weights[valid], expected, rtol=0, atol=1e-7)
    assert not bool(whitened.weights[~valid].any())
    if weight == "gae":
        same(whitened.targets, plain.targets)
    same(whitened.returns, RETURNS)


NORMALISED = [
    *({"weight": weight, "whiten_advantages": True} for weight in PENALTIES),
    *({"weight": weight, "whiten_rewards": True} for weight in ("group", "leave-one-out")),
    {"weight": "group", "divide_by_deviation": True},
]


@pytest.mark.parametrize("choices", NORMALISED)
@pytest.mark.parametrize("taken_off", ["beta", "unfinished_penalty"])
def test_where_rewards_are_equal_what_is_taken_off_keeps_the_scale_that_it_was_given(choices, taken_off):
    """However small: were it normalised with the rewards, ψ would be as large as ever."""
    values = [[0.0] * 3, [0.0]] if choices["weight"] == "gae" else None

    def weights(scale):
        rest = {"beta": 0.0, taken_off: scale}
        return hand(values=values, rewards=[0.0, 0.0], **rest, **choices).weights

    large = weights(1.0)
    assert float(large.abs().max()) > 0.1
    for scale in (1e-3, 1e-6, 1e-9):
        torch.testing.assert_close(weights(scale), scale * large, rtol=1e-7, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reward", [0.0, 0.1, -7.3])
@pytest.mark.parametrize("choices", [*NORMALISED, {"weight": "group"}, {"weight": "leave-one-out"}])
def test_equal_rewards_weigh_nothing_to_the_bit(choices, reward, dtype):
    if choices["weight"] == "gae" and reward:
        choices = choices | {
            "trace_decay": 1.0
        }  # with λ < 1 the critic's error, which is the reward, counts less before the end
    count = 3 * 7
    answered = experience([[0.0] * (1 + n % 5) for n in range(count)], values=[[0.0] * (1 + n % 5) for n in range(count)])
    chosen = settings(answers_per_prompt=7, **choices)
    answered.log_probabilities = answered.reference = answered.log_probabilities.to(dtype)
    answered.values = answered.values.to(dtype) if choices["weight"] == "gae" else None
    earned = torch.full((count,), reward, dtype=dtype)
    weighed = weigh(answered, token_rewards(answered, earned, beta=0.05, settings=chosen), chosen)
    assert not bool(weighed.weights.any())


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


@pytest.mark.parametrize("rewards", [[3.0, 3.0, 3.0], [3.0], [0.1] * 7, [1 / 3] * 100])
def test_rewards_that_are_all_equal_are_centred_and_keep_their_scale(rewards):
    given = torch.tensor(rewards, dtype=torch.float64)
    assert RewardScale.of(given, settings(standardize_rewards="scale")) == (rewards[0], 1.0)


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
    same(rewards.total, columns([[5], [0, 0, 0, 7]]))
