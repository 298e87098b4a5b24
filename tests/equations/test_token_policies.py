"""Weights and divergences of a policy over tokens, by enumeration: three tokens, answers of three, a logit for every choice.

Gradients of exact expectations come from autograd through the sum over all 27 answers; what an estimator gives on average is the sum
over all answers, or over all groups of K answers, with the probabilities held fixed.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from surefoot.equations import (
    Categorical,
    group_advantages,
    kl_k1,
    kl_k2,
    kl_k3,
    leave_one_out_advantages,
    policy_gradient_weights,
)

V, T = 3, 3
ANSWERS = torch.tensor(list(itertools.product(range(V), repeat=T)))
STATES = torch.stack(
    [sum((V**k for k in range(t)), torch.zeros(len(ANSWERS), dtype=torch.long))
     + sum(ANSWERS[:, k] * V ** (t - 1 - k) for k in range(t)) for t in range(T)], dim=1
)  # fmt: skip
RNG = np.random.default_rng(5)
LOGITS, REFERENCE = (torch.from_numpy(RNG.normal(size=(1 + V + V**2, V)) * 0.8) for _ in range(2))
RETURNS = torch.from_numpy(RNG.normal(size=len(ANSWERS)) + 2)


def token_log_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """log π(y_t | y_<t) of all answers, [27, 3]."""
    return logits.log_softmax(dim=-1)[STATES, ANSWERS]


def gradient(function) -> torch.Tensor:
    """∇ of a function of the policy's logits."""
    logits = LOGITS.clone().requires_grad_()
    (result,) = torch.autograd.grad(function(logits), logits)
    return result.flatten()


def on_average(loss) -> torch.Tensor:
    """E_π[∇ loss(y)], the answers being samples."""
    probabilities = token_log_probabilities(LOGITS).sum(dim=1).exp()
    return gradient(lambda logits: probabilities @ loss(logits))


def divergence(logits: torch.Tensor) -> torch.Tensor:
    """KL(π‖π_ref) over whole answers."""
    ours, theirs = token_log_probabilities(logits).sum(dim=1), token_log_probabilities(REFERENCE).sum(dim=1)
    return ours.exp() @ (ours - theirs)


def other_divergence(logits: torch.Tensor) -> torch.Tensor:
    """KL(π_ref‖π)."""
    ours, theirs = token_log_probabilities(logits).sum(dim=1), token_log_probabilities(REFERENCE).sum(dim=1)
    return theirs.exp() @ (theirs - ours)


def of_answers(estimator, logits: torch.Tensor) -> torch.Tensor:
    """The estimator of the log-ratio of whole answers."""
    return estimator((token_log_probabilities(REFERENCE) - token_log_probabilities(logits)).sum(dim=1))


def of_tokens(estimator, logits: torch.Tensor) -> torch.Tensor:
    """The sum over tokens of the estimator of each token's log-ratio."""
    return estimator(token_log_probabilities(REFERENCE) - token_log_probabilities(logits)).sum(dim=1)


def visits() -> torch.Tensor:
    """How probably each state is met in an answer of π."""
    probabilities = token_log_probabilities(LOGITS).sum(dim=1).exp()
    return torch.zeros(len(LOGITS), dtype=torch.float64).index_add(0, STATES.flatten(), probabilities.repeat_interleave(T))


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(one @ other / one.norm() / other.norm())


def test_the_enumeration_is_a_distribution():
    assert len(ANSWERS) == 27
    assert float(token_log_probabilities(LOGITS).sum(dim=1).exp().sum()) == pytest.approx(1)
    assert STATES[:, 0].unique().tolist() == [0]
    assert STATES[:, 1].unique().tolist() == [1, 2, 3]
    assert STATES[:, 2].unique().tolist() == list(range(4, 13))
    np.testing.assert_allclose([float(visits()[s].sum()) for s in (slice(0, 1), slice(1, 4), slice(4, 13))], 1)


@pytest.mark.parametrize("estimator", [kl_k1, kl_k3])
def test_k1_and_k3_have_the_mean_of_the_divergence_in_every_state_and_over_answers(estimator):
    ours, theirs = LOGITS.log_softmax(dim=-1), REFERENCE.log_softmax(dim=-1)
    in_state = (ours.exp() * estimator(theirs - ours)).sum(dim=-1)
    torch.testing.assert_close(in_state, Categorical(LOGITS).kl_divergence(Categorical(REFERENCE)), rtol=1e-12, atol=1e-14)
    probabilities = token_log_probabilities(LOGITS).sum(dim=1).exp()
    whole = divergence(LOGITS)
    torch.testing.assert_close(probabilities @ of_answers(estimator, LOGITS), whole, rtol=1e-12, atol=0)
    torch.testing.assert_close(probabilities @ of_tokens(estimator, LOGITS), whole, rtol=1e-12, atol=0)
    torch.testing.assert_close(visits() @ in_state, whole, rtol=1e-12, atol=0)


def test_as_a_loss_over_whole_answers_only_k2_has_the_gradient_of_the_divergence():
    wanted = gradient(divergence)
    assert wanted.norm() > 0.1
    torch.testing.assert_close(on_average(lambda x: of_answers(kl_k2, x)), wanted, rtol=1e-10, atol=1e-13)
    assert on_average(lambda x: of_answers(kl_k1, x)).norm() < 1e-13
    third = on_average(lambda x: of_answers(kl_k3, x))
    torch.testing.assert_close(third, gradient(other_divergence), rtol=1e-10, atol=1e-13)
    assert (third - wanted).norm() > 0.2 * wanted.norm()


def test_sums_over_tokens_leave_out_what_a_token_does_to_later_ones():
    wanted, held = gradient(divergence), visits()

    def in_states(logits: torch.Tensor, other: bool) -> torch.Tensor:
        """Each state's divergence, met as often as now."""
        ours, theirs = Categorical(logits), Categorical(REFERENCE)
        return held @ (theirs.kl_divergence(ours) if other else ours.kl_divergence(theirs))

    for estimator, other in ((kl_k2, False), (kl_k3, True)):
        got = on_average(lambda x, f=estimator: of_tokens(f, x))
        torch.testing.assert_close(got, gradient(lambda x, other=other: in_states(x, other)), rtol=1e-10, atol=1e-13)
        assert (got - wanted).norm() > 0.2 * wanted.norm()
    # The last token has none behind it: there, and only there, k2 of tokens is right.
    second = on_average(lambda x: of_tokens(kl_k2, x)).reshape(LOGITS.shape)
    torch.testing.assert_close(second[4:], wanted.reshape(LOGITS.shape)[4:], rtol=1e-10, atol=1e-13)
    assert (second[:4] - wanted.reshape(LOGITS.shape)[:4]).norm() > 0.1 * wanted.norm()


def test_where_the_other_policy_is_trained_k1_and_k3_have_the_gradient_and_k2_its_first_order():
    """The samples are the reference's here, as those of π_old are in a trust region."""
    fixed = token_log_probabilities(REFERENCE).sum(dim=1)

    def loss(estimator, logits: torch.Tensor) -> torch.Tensor:
        return fixed.exp() @ estimator(token_log_probabilities(logits).sum(dim=1) - fixed)

    wanted = gradient(other_divergence)
    for estimator in (kl_k1, kl_k3):
        torch.testing.assert_close(gradient(lambda x, f=estimator: loss(f, x)), wanted, rtol=1e-10, atol=1e-13)
    errors = []
    for step in (1e-2, 1e-3):
        near = (REFERENCE + step * (LOGITS - REFERENCE)).requires_grad_()
        (second,) = torch.autograd.grad(loss(kl_k2, near), near)
        (exact,) = torch.autograd.grad(other_divergence(near), near)
        errors.append(float((second - exact).norm() / exact.norm()))
    assert errors[1] < errors[0] / 8 < 0.01


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_reward_to_go_is_unbiased_with_the_divergence_in_every_tokens_reward(beta):
    """ψ_t from token rewards −β log π/π_ref and the answer's reward at its end: the gradient of E[R] − β KL."""
    ratios = token_log_probabilities(LOGITS) - token_log_probabilities(REFERENCE)
    rewards = -beta * ratios
    rewards[:, -1] += RETURNS
    ends = torch.zeros_like(rewards, dtype=torch.bool)
    ends[:, -1] = True
    weights = policy_gradient_weights(
        "reward-to-go", rewards=rewards.T, terminated=ends.T, truncated=torch.zeros_like(ends.T), discount=1.0
    ).T
    got = on_average(lambda x: (weights * token_log_probabilities(x)).sum(dim=1))
    wanted = gradient(lambda x: token_log_probabilities(x).sum(dim=1).exp() @ RETURNS - beta * divergence(x))
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-13)


def of_groups(advantages, answers: int, *, returns: torch.Tensor = RETURNS) -> torch.Tensor:
    """E of (1/K) Σ_i A_i ∇log π(y_i), over all groups of K answers with their probabilities."""
    probabilities = token_log_probabilities(LOGITS).sum(dim=1).exp()
    groups = torch.tensor(list(itertools.product(range(len(ANSWERS)), repeat=answers)))
    terms = probabilities[groups].prod(dim=1)[:, None] * advantages(returns[groups]) / answers
    weights = torch.zeros(len(ANSWERS), dtype=torch.float64).index_add(0, groups.flatten(), terms.flatten())
    return gradient(lambda logits: weights @ token_log_probabilities(logits).sum(dim=1))


def expected_return_gradient(returns: torch.Tensor = RETURNS) -> torch.Tensor:
    return gradient(lambda logits: token_log_probabilities(logits).sum(dim=1).exp() @ returns)


def divided(returns: torch.Tensor) -> torch.Tensor:
    return group_advantages(returns=returns, divide_by_deviation=True, epsilon=1e-12)


@pytest.mark.parametrize("answers", [2, 3, 4])
def test_leave_one_out_is_unbiased_and_the_group_mean_has_its_known_share(answers):
    wanted = expected_return_gradient()
    got = of_groups(lambda returns: leave_one_out_advantages(returns=returns), answers)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-13)
    got = of_groups(lambda returns: group_advantages(returns=returns, divide_by_deviation=False), answers)
    torch.testing.assert_close(got, (answers - 1) / answers * wanted, rtol=1e-10, atol=1e-13)


def test_divided_by_the_deviation_two_answers_climb_the_probability_to_win():
    """½ Σ_i sign(R_i − R_j)/√2 ∇log π(y_i): the gradient of P(win) − P(loss) against an answer of the policy as it was, over √2."""
    probabilities = token_log_probabilities(LOGITS).sum(dim=1).exp()
    wins = torch.sign(RETURNS[:, None] - RETURNS[None, :]) @ probabilities
    wanted = gradient(lambda logits: token_log_probabilities(logits).sum(dim=1).exp() @ wins) / math.sqrt(2)
    torch.testing.assert_close(of_groups(divided, 2), wanted, rtol=1e-6, atol=1e-9)


def test_with_more_answers_the_divided_gradient_turns_towards_the_true_one_over_the_deviation():
    probabilities, wanted = token_log_probabilities(LOGITS).sum(dim=1).exp(), expected_return_gradient()
    spread = math.sqrt(float(probabilities @ (RETURNS - probabilities @ RETURNS) ** 2))
    got = [of_groups(divided, answers) for answers in (2, 3, 4)]
    errors = [float((g - wanted / spread).norm() / (wanted / spread).norm()) for g in got]
    angles = [1 - cosine(g, wanted) for g in got]
    assert errors[0] > errors[1] > errors[2] > 0.05
    assert angles[0] > angles[1] > angles[2] > 1e-4


@pytest.mark.parametrize("answers", [2, 3, 4])
def test_with_right_and_wrong_alone_division_changes_only_the_size(answers):
    """c = E[A | right] − E[A | wrong], by the binomial distribution of the others."""
    right = (RETURNS.quantile(0.7) < RETURNS).double()
    chance = float(token_log_probabilities(LOGITS).sum(dim=1).exp() @ right)
    size = 0.0
    for others in range(answers):
        weight = math.comb(answers - 1, others) * chance**others * (1 - chance) ** (answers - 1 - others)
        for own, sign in ((1, 1), (0, -1)):
            total = others + own
            if 0 < total < answers:
                mean = total / answers
                deviation = math.sqrt((total * (1 - mean) ** 2 + (answers - total) * mean**2) / (answers - 1))
                size += sign * weight * (own - mean) / deviation
    got, wanted = of_groups(divided, answers, returns=right), expected_return_gradient(right)
    torch.testing.assert_close(got, size * wanted, rtol=1e-8, atol=1e-10)


def test_a_rare_high_return_counts_for_less_than_it_brings():
    """Three answers, 0, 1 and a rare 10: 1 is worse than the mean, and the policy should turn from it; divided, it turns to it."""
    probabilities, returns = (
        torch.tensor([0.45, 0.45, 0.1], dtype=torch.float64),
        torch.tensor([0.0, 1, 10], dtype=torch.float64),
    )

    def by_logit(advantages, answers: int = 2) -> torch.Tensor:
        groups = torch.tensor(list(itertools.product(range(3), repeat=answers)))
        terms = probabilities[groups].prod(dim=1)[:, None] * advantages(returns[groups]) / answers
        weights = torch.zeros(3, dtype=torch.float64).index_add(0, groups.flatten(), terms.flatten())
        return weights - probabilities * weights.sum()

    plain = by_logit(lambda r: leave_one_out_advantages(returns=r))
    torch.testing.assert_close(plain, probabilities * (returns - probabilities @ returns))
    assert plain[1] < -0.1
    assert by_logit(divided)[1] > 0.1
