"""Losses and gradients of whole batches, against plain forwards of one sequence at a time and formulas written out."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from surefoot.alignment.configuration import DPOConfiguration, RewardConfiguration
from surefoot.alignment.data.examples import Example, implied_pairs
from surefoot.alignment.likelihood.likelihood import CompletionLogProbabilities, Likelihood
from surefoot.alignment.methods.comparisons import choose_comparison
from surefoot.alignment.methods.dpo import DirectPreferenceOptimization
from surefoot.alignment.methods.reward import RewardModelling
from surefoot.alignment.methods.sft import SupervisedFineTuning
from surefoot.alignment.preparation import live_reference
from surefoot.errors import UsageError
from tests.alignment.models.tiny import language_model, reward_model

torch.set_num_threads(1)
LENGTHS = {2: (4, 2), 3: (3, 1, 5), 4: (2, 4, 3, 1)}


def example(number, *, answers=2, ranks=None, pairs=None, margins=None, prompt=3):
    rng = np.random.default_rng(number)

    def words(count):
        return rng.integers(3, 24, count).astype(np.int32)

    if ranks is None and pairs is None:
        ranks = tuple(range(1, answers + 1))
    given = implied_pairs(ranks) if pairs is None else pairs
    return Example(number, words(prompt), tuple(words(n) for n in LENGTHS[answers]), ranks, given, margins)


PAIRS = [example(1), example(2, prompt=5), example(3, ranks=(2, 1), prompt=1)]
RANKED = [example(1, answers=3, ranks=(2, 3, 1)), example(2, answers=4, ranks=(4, 1, 3, 2)), example(3, answers=3)]
TIED = [example(1, answers=4, ranks=(2, 1, 2, 3)), example(2, answers=3)]


def log_probability(model, prompt, answer):
    ids = torch.from_numpy(np.concatenate([prompt, answer]).astype(np.int64))[None]
    tokens = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return tokens.gather(1, ids[0, len(prompt) :, None])[:, 0]


def moved(model):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def chosen(choices, examples):
    return choices, choose_comparison(choices, examples)


def dpo(examples, **choices):
    """A policy that has moved away from its reference, both as plain models too."""
    policy = language_model().eval()
    likelihood = Likelihood(policy)
    reference = live_reference(likelihood)
    plain = language_model().eval()
    moved(policy)
    method = DirectPreferenceOptimization(likelihood, reference, *chosen(DPOConfiguration(**choices), examples))
    return method, policy, plain


def loss_of(method, examples, parts=1):
    denominators = method.denominators(examples)
    edges = np.linspace(0, len(examples), parts + 1).astype(int)
    shares = [method.parts(examples[a:b], denominators) for a, b in pairwise(edges) if a < b]
    return sum(share.loss for share in shares), shares


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(model, mine, theirs):
    torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-5)
    for (name, a), b in zip(gradients(model, mine).items(), gradients(model, theirs).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5, msg=name)


def rewards_of(policy, plain, e, beta, *, length_normalized=False):
    reduced = torch.mean if length_normalized else torch.sum
    with torch.no_grad():
        reference = torch.stack([reduced(log_probability(plain, e.prompt, c)) for c in e.completions])
    return beta * (torch.stack([reduced(log_probability(policy, e.prompt, c)) for c in e.completions]) - reference)


def written_out(e, rewards, objective, *, smoothing=0.0, beta=0.5, top=None, margins=False):
    """One prompt's loss, as the papers print it."""
    if objective == "plackett-luce" and not e.tied:
        order = sorted(range(len(e.completions)), key=lambda i: e.ranks[i])
        probability = torch.ones(())
        for k in range(len(order) if top is None else min(top, len(order))):
            probability = probability * rewards[order[k]].exp() / sum(rewards[j].exp() for j in order[k:])
        return -probability.log()
    terms = []
    for n, (better, worse) in enumerate(e.pairs):
        h = rewards[better] - rewards[worse] - (e.margins[n] if margins else 0.0)
        if objective == "ipo":
            terms.append((h / beta - 1 / (2 * beta)) ** 2)
        else:
            terms.append(-(1 - smoothing) * torch.sigmoid(h).log() - smoothing * torch.sigmoid(-h).log())
    return sum(terms) / len(terms)


@pytest.mark.parametrize("length_normalized", [False, True])
@pytest.mark.parametrize(
    ("examples", "objective", "choices"),
    [
        (PAIRS, "bradley-terry", {}),
        (PAIRS, "bradley-terry", {"label_smoothing": 0.2}),
        (PAIRS, "ipo", {}),
        (RANKED, "ipo", {}),
        (PAIRS, "plackett-luce", {}),
        (RANKED, "plackett-luce", {}),
        (RANKED, "plackett-luce", {"ranking_top": 1}),
        (RANKED, "bradley-terry", {}),
        (TIED, "plackett-luce", {}),
    ],
)
def test_dpo_is_the_formula(examples, objective, choices, length_normalized):
    method, policy, plain = dpo(
        examples, beta=0.5, objective=objective, **({"length_normalized": True} if length_normalized else {}), **choices
    )
    mine, (share,) = loss_of(method, examples)
    method.likelihood.release()
    theirs = sum(
        written_out(
            e,
            rewards_of(policy, plain, e, 0.5, length_normalized=length_normalized),
            objective,
            smoothing=choices.get("label_smoothing", 0.0),
            top=choices.get("ranking_top"),
        )
        for e in examples
    )
    assert_same(policy, mine, theirs / len(examples))
    better = [
        rewards_of(policy, plain, e, 0.5, length_normalized=length_normalized)[[i for i, _ in e.pairs]].mean().item()
        for e in examples
    ]
    total, count = share.sums["rewards/chosen"]
    assert float(total) / count == pytest.approx(np.mean(better), abs=2e-5)


def test_by_hand_identity_preference_optimisation_of_means_is_that_of_trl():
    """Log-ratios 0.6 over three tokens and −0.4 over two: (0.2 + 0.2 − 1/(2 β))² as TRL and the method's authors have it."""

    class Said:
        device = torch.device("cpu")

        def completions(self, groups):
            lengths = [len(answer) for _, answers in groups for answer in answers]
            of = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
            given = torch.tensor([0.1, 0.2, 0.3, -0.5, 0.1]) - 1.0
            return CompletionLogProbabilities(given, of, torch.zeros_like(of), len(lengths))

    class Before:
        def log_probabilities(self, examples):
            return torch.tensor([-3.0, -2.0])

    words = (np.array([3, 4, 1], np.int32), np.array([5, 1], np.int32))
    one = Example(1, np.array([6], np.int32), words, (1, 2), ((0, 1),))
    settings = DPOConfiguration(beta=0.25, objective="ipo", length_normalized=True)
    method = DirectPreferenceOptimization(Said(), Before(), settings, "ipo")
    parts = method.parts([one], method.denominators([one]))
    assert float(parts.loss) == pytest.approx((0.2 + 0.2 - 2.0) ** 2, abs=1e-6)
    assert float(parts.sums["margin"][0]) == pytest.approx(0.25 * 0.4, abs=1e-6)
    assert float(parts.sums["log_ratio/chosen"][0]) == pytest.approx(0.6, abs=1e-6)


def test_the_supervised_term_is_the_mean_over_tokens_of_the_best_answers():
    plain, _, _ = dpo(RANKED, beta=0.5)
    with_term, other, _ = dpo(RANKED, beta=0.5, supervised_weight=0.7)
    without, _ = loss_of(plain, RANKED)
    loss, _ = loss_of(with_term, RANKED)
    with_term.likelihood.release()
    best = [(RANKED[0], 2), (RANKED[1], 1), (RANKED[2], 0)]
    tokens = torch.cat([log_probability(other, e.prompt, e.completions[i]) for e, i in best])
    torch.testing.assert_close(loss - without, -0.7 * tokens.mean(), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("examples", "objective", "choices"),
    [
        (PAIRS, "bradley-terry", {}),
        (RANKED, "plackett-luce", {}),
        (RANKED, "plackett-luce", {"ranking_top": 2}),
        (RANKED, "bradley-terry", {}),
        (TIED, "plackett-luce", {}),
    ],
)
def test_a_reward_models_loss_is_the_formula(examples, objective, choices):
    model = reward_model().eval()
    method = RewardModelling(Likelihood(model), *chosen(RewardConfiguration(objective=objective, **choices), examples))
    mine, _ = loss_of(method, examples)
    method.likelihood.release()
    theirs = sum(written_out(e, scores_of(model, e), objective, top=choices.get("ranking_top")) for e in examples)
    assert_same(model, mine, theirs / len(examples))


def scores_of(model, e):
    rows = [torch.from_numpy(np.concatenate([e.prompt, c]).astype(np.int64))[None] for c in e.completions]
    return torch.stack([model(ids).logits[0, 0] for ids in rows])


def test_margins_are_asked_for():
    examples = [example(1, ranks=None, pairs=((0, 1),), margins=(1.5,)), example(2, pairs=((1, 0),), margins=(0.25,))]
    model = reward_model().eval()
    method = RewardModelling(Likelihood(model), *chosen(RewardConfiguration(use_margins=True), examples))
    mine, _ = loss_of(method, examples)
    method.likelihood.release()
    theirs = sum(written_out(e, scores_of(model, e), "bradley-terry", margins=True) for e in examples) / 2
    assert_same(model, mine, theirs)


def test_centring_adds_the_square_of_the_scores_sum():
    model = reward_model().eval()
    plain = RewardModelling(Likelihood(model), *chosen(RewardConfiguration(), PAIRS))
    centred = RewardModelling(Likelihood(model), *chosen(RewardConfiguration(centering=0.3), PAIRS))
    difference = loss_of(centred, PAIRS)[0] - loss_of(plain, PAIRS)[0]
    centred.likelihood.release()
    squares = torch.stack([scores_of(model, e).sum() ** 2 for e in PAIRS])
    torch.testing.assert_close(difference, 0.3 * squares.mean(), rtol=1e-4, atol=1e-5)


def test_fine_tuning_is_the_mean_over_completion_tokens():
    examples = [Example(e.number, e.prompt, e.completions[:1]) for e in RANKED]
    model = language_model().eval()
    method = SupervisedFineTuning(Likelihood(model))
    mine, _ = loss_of(method, examples)
    method.likelihood.release()
    tokens = torch.cat([log_probability(model, e.prompt, e.completions[0]) for e in examples])
    assert_same(model, mine, -tokens.mean())


@pytest.mark.parametrize(("examples", "expected"), [(PAIRS, math.log(2)), ([example(1, answers=4)] * 2, math.log(24))])
def test_the_first_loss_is_log_2_for_pairs_and_log_k_factorial_for_rankings(examples, expected):
    policy = language_model().train()
    likelihood = Likelihood(policy)
    method = DirectPreferenceOptimization(likelihood, live_reference(likelihood), *chosen(DPOConfiguration(), examples))
    loss, shares = loss_of(method, examples)
    assert abs(float(loss.detach()) - expected) < 1e-6
    assert float(shares[0].sums["accuracy"][0]) == pytest.approx(
        len(examples) / 2
    )  # every reward is equal, and counts as half right


def all_methods():
    fine = [Example(e.number, e.prompt, e.completions[:1]) for e in RANKED]
    policy = language_model().eval()
    yield policy, SupervisedFineTuning(Likelihood(policy)), fine
    for examples, choices in ((PAIRS, {}), (RANKED, {"supervised_weight": 0.5}), (TIED, {"objective": "plackett-luce"})):
        method, policy, _ = dpo(examples, **choices)
        yield policy, method, examples
    for examples in (PAIRS, RANKED):
        model = reward_model().eval()
        yield model, RewardModelling(Likelihood(model), *chosen(RewardConfiguration(centering=0.1), examples)), examples


@pytest.mark.parametrize("parts", [2, 3])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(parts):
    for model, method, examples in all_methods():
        whole, _ = loss_of(method, examples)
        of_whole = gradients(model, whole)
        cut, _ = loss_of(method, examples, parts)
        torch.testing.assert_close(whole, cut, rtol=0, atol=2e-6)
        for name, gradient in gradients(model, cut).items():
            torch.testing.assert_close(gradient, of_whole[name], rtol=1e-3, atol=2e-6)


def test_metrics_are_means_over_prompts():
    method, policy, plain = dpo(RANKED, beta=0.5)
    _, (share,) = loss_of(method, RANKED)
    method.likelihood.release()
    rewards = [rewards_of(policy, plain, e, 0.5).detach() for e in RANKED]
    right = [np.mean([float(r[i] > r[j]) for i, j in e.pairs]) for e, r in zip(RANKED, rewards, strict=True)]
    margins = [np.mean([float(r[i] - r[j]) for i, j in e.pairs]) for e, r in zip(RANKED, rewards, strict=True)]
    means = {name: float(total) / count for name, (total, count) in share.sums.items()}
    assert means["accuracy"] == pytest.approx(np.mean(right))
    assert means["margin"] == pytest.approx(np.mean(margins), abs=1e-5)
    assert means["margin"] == pytest.approx(means["rewards/chosen"] - means["rewards/rejected"], abs=1e-5)
    every = torch.cat(rewards) / 0.5
    assert means["kl/reference"] == pytest.approx(-float(every.mean()), abs=1e-4)


def test_auto_takes_rankings_for_what_they_are():
    assert choose_comparison(DPOConfiguration(ranking_top=2), RANKED) == "plackett-luce"
    assert choose_comparison(DPOConfiguration(), PAIRS) == "bradley-terry"
    assert choose_comparison(RewardConfiguration(), RANKED + PAIRS) == "bradley-terry"
    assert choose_comparison(DPOConfiguration(objective="ipo"), RANKED) == "ipo"


@pytest.mark.parametrize(
    ("choices", "examples", "said"),
    [
        (RewardConfiguration(objective="plackett-luce"), [example(1, pairs=((0, 1),))], "row 1 compares pairs"),
        (DPOConfiguration(ranking_top=1), PAIRS, "ranking-top"),
        (DPOConfiguration(label_smoothing=0.1), RANKED, "label-smoothing"),
        (RewardConfiguration(use_margins=True), RANKED, "use-margins"),
        (RewardConfiguration(use_margins=True), PAIRS, "margin column"),
    ],
)
def test_what_the_data_cannot_give_or_leave_without_effect_is_refused(choices, examples, said):
    with pytest.raises(UsageError, match=said):
        choose_comparison(choices, examples)
