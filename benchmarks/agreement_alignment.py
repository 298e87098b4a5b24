"""Pairings of benchmarks/agreement.py with code for language models, TRL, verl and OpenRLHF, and with SciPy and choix.

Every pairing has inputs, the call here, the call there, and what was done about definitions that differ.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from agreement_sides import (
    GAMMA,
    LAMBDA,
    LOGITS,
    RETURNS,
    ROUNDED,
    TIME,
    Pairing,
    answers,
    importer,
    joined,
    normal,
    openrlhf,
    part_of,
    ratio_of,
    system,
    tokens,
    verl,
    without,
)  # fmt: skip
from surefoot import equations as eq

PAIRS = normal((64,), "better", "worse", "reference_better", "reference_worse")
GROUPS = normal((7, 4), "returns")
LABELLED = without(LOGITS, "other")


def core(call: Callable[..., Any]) -> Callable[[], Callable[..., Any]]:
    return part_of(verl, "trainer.ppo.core_algos", call)


def loss_of(call: Callable[..., Any]) -> Callable[[], Callable[..., Any]]:
    return part_of(openrlhf, "models.loss", call)


def clip_higher(new: Any, old: Any, advantages: Any, valid: Any) -> Any:
    xp = eq.namespace(advantages)
    bounds = xp.where(advantages > 0, xp.full_like(advantages, 0.28), xp.full_like(advantages, 0.2))
    terms = eq.clipped_surrogate(ratio=ratio_of(new, old), advantages=advantages, clip_range=bounds)
    return -eq.masked_mean(terms, valid)


def sequence_surrogate(new: Any, old: Any, advantages: Any, valid: Any) -> Any:
    """Three calls: the mean log-ratio of an answer, its ratio, the surrogate; then the mean over tokens, and over answers."""
    xp, rows = eq.namespace(new), range(new.shape[0])
    mean = xp.stack([eq.masked_mean(new[i, :] - old[i, :], valid[i, :]) for i in rows])
    ratio = xp.zeros_like(new) + ratio_of(mean, 0 * mean)[:, None]
    terms = -eq.clipped_surrogate(ratio=ratio, advantages=advantages, clip_range=0.2)
    return eq.masked_mean(xp.stack([eq.masked_mean(terms[i, :], valid[i, :]) for i in rows]))


def implicit(loss: Callable[..., Any], beta: float) -> Callable[..., Any]:
    """The mean of a loss of implicit rewards."""

    def call(better: Any, worse: Any, reference_better: Any, reference_worse: Any) -> Any:
        both = ((better, reference_better), (worse, reference_worse))
        return eq.masked_mean(
            loss(*(eq.implicit_rewards(log_probabilities=a, reference_log_probabilities=b, beta=beta) for a, b in both))
        )

    return call


def dpo(better: Any, worse: Any) -> Any:
    return eq.bradley_terry_loss(better=better, worse=worse, smoothing=0.1)


def ipo(better: Any, worse: Any) -> Any:
    return eq.ipo_loss(better_log_ratios=better, worse_log_ratios=worse, beta=0.3)


def trl_pairs(loss: str, smoothing: float = 0.0) -> Callable[[], Callable[..., Any]]:
    settings = SimpleNamespace(
        alpha=0.0,
        beta=0.3,
        label_smoothing=smoothing,
        loss_type=loss,
        simpo_gamma=0.5,
        accelerator=SimpleNamespace(device="cpu"),
    )
    return importer(
        "trl.experimental.cpo.cpo_trainer", lambda m, better, worse: m.CPOTrainer.cpo_loss(settings, better, worse)[0]
    )


def odds(log: Any) -> Any:
    return log - eq.namespace(log).log1p(-eq.namespace(log).exp(log))


def of_outcomes(m: Any, name: str, returns: Any, **options: Any) -> Any:
    """verl's estimators of groups: returns as rewards of one token, groups by number."""
    prompts, count = returns.shape
    rewards = returns.reshape(-1, 1)
    out, _ = getattr(m, name)(rewards.clone(), rewards * 0 + 1, np.repeat(np.arange(prompts), count), **options)
    return out.reshape(returns.shape)


def bessel(valid: Any) -> float:
    """√((n−1)/n): from the variance with n−1 to the one with n."""
    count = float(valid.sum())
    return ((count - 1) / count) ** 0.5


def kl_terms(new: Any, old: Any) -> tuple[Any, ...]:
    return tuple(f(old - new) for f in (eq.kl_k1, eq.kl_k2, eq.kl_k3))


def value_loss(values: Any, old_values: Any, targets: Any, valid: Any) -> Any:
    return eq.masked_mean(eq.clipped_value_loss(values=values, old_values=old_values, targets=targets, clip_range=0.2), valid)


def controlled(coefficient: Any, kl: Any) -> Any:
    return eq.adapt_kl_coefficient_proportionally(coefficient, kl=kl, target=6.0, answers=64, horizon=1000)


def controller(m: Any, coefficient: Any, kl: Any) -> Any:
    own = m.AdaptiveKLController(float(coefficient), 6.0, 1000)
    own.update(float(kl), 64)
    return np.asarray(own.value)


def measured(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"coefficient": np.array(0.15), "kl": rng.uniform(1, 12, ())}


HOLES = answers(holes=True)

# fmt: off
PAIRINGS = [
    # --- TRL
    Pairing(
        ("Categorical",), "trl", "selective_log_softmax, entropy_from_logits", "torch", LABELLED,
        lambda logits, actions: (lambda p: (p.log_probability(actions), p.entropy()))(eq.Categorical(logits)),
        importer("trl.trainer.utils", lambda m, logits, actions: (
            m.selective_log_softmax(logits, actions), m.entropy_from_logits(logits)
        )),
    ),
    Pairing(
        ("bradley_terry_loss",), "trl", "CPOTrainer.cpo_loss, sigmoid with smoothing", "torch", normal((64,), "better", "worse"),
        lambda better, worse: eq.bradley_terry_loss(better=0.3 * better, worse=0.3 * worse, smoothing=0.1),
        trl_pairs("sigmoid", 0.1), gradient="better",
    ),
    Pairing(
        ("bradley_terry_loss",), "trl", "CPOTrainer.cpo_loss, simpo", "torch", normal((64,), "better", "worse"),
        lambda better, worse: eq.bradley_terry_loss(better=0.3 * better, worse=0.3 * worse, margin=0.5),
        trl_pairs("simpo"), "SimPO is the loss of β · mean log π with a margin", "better",
    ),
    Pairing(
        ("ipo_loss",), "trl", "CPOTrainer.cpo_loss, ipo", "torch", normal((64,), "better", "worse"),
        lambda better, worse: eq.ipo_loss(better_log_ratios=better, worse_log_ratios=worse, beta=0.3),
        trl_pairs("ipo"), "TRL passes means over tokens, surefoot what it is given", "better",
    ),
    Pairing(
        ("bradley_terry_loss",), "trl", "ORPOTrainer.odds_ratio_loss", "torch",
        lambda rng: {name: -rng.uniform(0.1, 3, 64) for name in ("better", "worse")},
        lambda better, worse: -0.1 * eq.bradley_terry_loss(better=odds(better), worse=odds(worse)),
        importer("trl.experimental.orpo.orpo_trainer", lambda m, better, worse: m.ORPOTrainer.odds_ratio_loss(
            SimpleNamespace(beta=0.1, accelerator=SimpleNamespace(device="cpu")), better, worse
        )[0]),
        ROUNDED,
    ),
    # --- verl
    Pairing(
        ("lambda_returns", "generalized_advantages", "whiten"), "verl", "compute_gae_advantage_return", "torch", HOLES,
        lambda valid, **x: (
            eq.whiten(eq.generalized_advantages(**x, **RETURNS, valid=valid, gaps="skip"), valid=valid) * bessel(valid),
            eq.lambda_returns(**x, **RETURNS, valid=valid, gaps="skip"),
        ),
        core(lambda m, rewards, values, next_values, terminated, truncated, valid: tuple(
            x.T * valid for x in m.compute_gae_advantage_return(rewards.T, values.T, valid.T, GAMMA, LAMBDA)
        )),
        "masked tokens are skipped, gaps=\"skip\"; verl's variance has n − 1, surefoot's × √((n−1)/n); of an integer mask n/(n−1) is"
        " float32 there",
    ),
    Pairing(
        ("discounted_returns",), "verl", "compute_reinforce_plus_plus_outcome_advantage", "torch", without(HOLES, "values", "next_values"),
        lambda valid, **x: eq.discounted_returns(**x, discount=GAMMA, valid=valid, gaps="skip"),
        core(lambda m, rewards, terminated, truncated, valid: m.compute_reinforce_plus_plus_outcome_advantage(
            rewards.T, valid.T, SimpleNamespace(gamma=GAMMA)
        )[1].T),
        "masked tokens are skipped, gaps=\"skip\"",
    ),
    Pairing(
        ("group_advantages",), "verl", "compute_grpo_outcome_advantage", "torch", GROUPS,
        lambda returns: eq.group_advantages(returns=returns, divide_by_deviation=True, epsilon=1e-6),
        core(lambda m, returns: of_outcomes(m, "compute_grpo_outcome_advantage", returns)),
        "ε = 1e-6 on both sides; surefoot's default is TRL's, 1e-4",
    ),
    Pairing(
        ("group_advantages",), "verl", "compute_grpo_outcome_advantage, without division", "torch", GROUPS,
        lambda returns: eq.group_advantages(returns=returns, divide_by_deviation=False),
        core(lambda m, returns: of_outcomes(m, "compute_grpo_outcome_advantage", returns, norm_adv_by_std_in_grpo=False)),
    ),
    Pairing(
        ("leave_one_out_advantages",), "verl", "compute_rloo_outcome_advantage", "torch", GROUPS,
        eq.leave_one_out_advantages, core(lambda m, returns: of_outcomes(m, "compute_rloo_outcome_advantage", returns)),
    ),
    Pairing(
        ("kl_k1", "kl_k2", "kl_k3"), "verl", "kl_penalty", "torch", normal((200,), "new", "old", scale=0.3), kl_terms,
        core(lambda m, new, old: tuple(m.kl_penalty(new, old, name) for name in ("k1", "k2", "k3"))),
        "verl cuts a term of k3 at 10; here none is as large",
    ),
    Pairing(
        ("clipped_surrogate", "importance_ratio", "masked_mean"), "verl", "compute_policy_loss, clip-higher", "torch",
        tokens("new", "old", "advantages"), clip_higher,
        core(lambda m, new, old, advantages, valid: m.compute_policy_loss(
            old, new, advantages, valid, cliprange_low=0.2, cliprange_high=0.28, clip_ratio_c=1e9
        )[0]),
        "an array of clip ranges; verl's dual clip is taken out, c = 1e9", "new",
    ),
    Pairing(
        ("clipped_value_loss", "masked_mean"), "verl", "compute_value_loss", "torch",
        tokens("values", "old_values", "targets", scale=1.0), value_loss,
        core(lambda m, values, old_values, targets, valid: m.compute_value_loss(values, targets, old_values, valid, 0.2)[0]),
        gradient="values",
    ),
    Pairing(
        ("whiten", "masked_mean", "masked_sum"), "verl", "masked_whiten, masked_mean, masked_sum", "torch", tokens("x", scale=2.0),
        lambda x, valid: (
            eq.whiten(x, valid=valid) * bessel(valid), eq.whiten(x, valid=valid, shift_mean=False) * valid * 1.0,
            eq.masked_mean(x, valid), eq.masked_sum(x, valid)[0],
        ),
        part_of(verl, "utils.torch_functional", lambda m, x, valid: (
            m.masked_whiten(x, valid) * valid,
            ((m.masked_whiten(x, valid) / bessel(valid)) + m.masked_mean(x, valid)) * valid,
            m.masked_mean(x, valid), m.masked_sum(x, valid),
        )),
        "verl's variance has n − 1, surefoot's × √((n−1)/n); of an integer mask n/(n−1) is float32 there",
    ),
    Pairing(
        ("trajectory_log_weights", "truncated_weights"), "verl", "compute_rollout_correction_weights, sequence", "torch",
        tokens("new", "old", scale=0.1),
        lambda new, old, valid: eq.truncated_weights(log_weights=eq.trajectory_log_weights(
            log_probabilities=new.T, behavior_log_probabilities=old.T, valid=valid.T
        ), limit=1.2),
        part_of(verl, "trainer.ppo.rollout_corr_helper", lambda m, new, old, valid: m.compute_rollout_correction_weights(
            new - old, valid, "sequence", 1.2
        )[0][:, 0]),
    ),
    Pairing(
        ("weight_diagnostics",), "verl", "compute_rollout_correction_weights, effective sample size", "torch", tokens("new", "old"),
        lambda new, old, valid: eq.weight_diagnostics(
            log_weights=(new - old).clip(max=np.log(2)), valid=valid
        ).effective_sample_size / valid.sum(),
        part_of(verl, "trainer.ppo.rollout_corr_helper", lambda m, new, old, valid: np.asarray(m.compute_rollout_correction_weights(
            new - old, valid, "token", 2.0
        )[1]["rollout_is_eff_sample_size"])),
        "verl: of cut weights, as a share of the number of tokens; 1e-8 is added to their mean",
    ),
    Pairing(
        ("adapt_kl_coefficient_proportionally",), "verl", "AdaptiveKLController", "numpy", measured, controlled,
        core(lambda m, coefficient, kl: controller(m, coefficient, kl)),
    ),
    # --- OpenRLHF
    Pairing(
        ("kl_k1", "kl_k2", "kl_k3"), "openrlhf", "compute_approx_kl", "torch", normal((200,), "new", "old", scale=0.3), kl_terms,
        part_of(openrlhf, "models.utils", lambda m, new, old: tuple(
            m.compute_approx_kl(new, old, kl_estimator=name) for name in ("k1", "k2", "k3")
        )),
        f"{ROUNDED}; terms are cut at ±10, here none is as large",
    ),
    Pairing(
        ("clipped_surrogate", "importance_ratio", "masked_mean"), "openrlhf", "PolicyLoss, clip-higher", "torch",
        tokens("new", "old", "advantages"), clip_higher,
        loss_of(lambda m, new, old, advantages, valid: m.PolicyLoss(0.2, 0.28)(new, old, advantages, valid)[0]),
        "an array of clip ranges", "new",
    ),
    Pairing(
        ("clipped_surrogate", "importance_ratio", "masked_mean"), "openrlhf", "PolicyLoss, gspo", "torch",
        tokens("new", "old", "advantages", scale=0.2), sequence_surrogate,
        loss_of(lambda m, new, old, advantages, valid: m.PolicyLoss(policy_loss_type="gspo")(new, old, advantages, valid)[0]),
        "three calls give GSPO's ratio of an answer", "new",
    ),
    Pairing(
        ("clipped_value_loss", "masked_mean"), "openrlhf", "ValueLoss, clipped", "torch",
        tokens("values", "old_values", "targets", scale=1.0), value_loss,
        loss_of(lambda m, values, old_values, targets, valid: m.ValueLoss(0.2)(values, old_values, targets, valid)),
        gradient="values",
    ),
    Pairing(
        ("squared_value_loss", "masked_mean"), "openrlhf", "ValueLoss", "torch", tokens("values", "targets", scale=1.0),
        lambda values, targets, valid: eq.masked_mean(eq.squared_value_loss(values=values, targets=targets), valid),
        loss_of(lambda m, values, targets, valid: m.ValueLoss()(values, values, targets, valid)), gradient="values",
    ),
    Pairing(
        ("bradley_terry_loss",), "openrlhf", "PairWiseLoss, with margin", "torch",
        joined(normal((64,), "better", "worse", scale=2.0), lambda rng: {"margin": rng.uniform(0, 2, 64)}),
        lambda better, worse, margin: eq.masked_mean(eq.bradley_terry_loss(better=better, worse=worse, margin=margin)),
        loss_of(lambda m, better, worse, margin: m.PairWiseLoss()(better, worse, margin)), gradient="better",
    ),
    Pairing(
        ("implicit_rewards", "bradley_terry_loss"), "openrlhf", "DPOLoss, with smoothing", "torch", PAIRS, implicit(dpo, 0.3),
        loss_of(lambda m, better, worse, reference_better, reference_worse: m.DPOLoss(0.3, 0.1)(
            better, worse, reference_better, reference_worse
        )[0]),
        gradient="better",
    ),
    Pairing(
        ("implicit_rewards", "ipo_loss"), "openrlhf", "DPOLoss, ipo", "torch", PAIRS, implicit(ipo, 1.0),
        loss_of(lambda m, better, worse, reference_better, reference_worse: m.DPOLoss(0.3, ipo=True)(
            better, worse, reference_better, reference_worse
        )[0]),
        gradient="better",
    ),
    Pairing(
        ("supervised_loss", "masked_mean"), "openrlhf", "SFTLoss", "torch", tokens("log_probabilities"),
        lambda log_probabilities, valid: eq.masked_mean(eq.supervised_loss(log_probabilities=log_probabilities), valid),
        loss_of(lambda m, log_probabilities, valid: m.SFTLoss()(log_probabilities, valid)),
    ),
    Pairing(
        ("Categorical",), "openrlhf", "log_probs_from_logits", "torch", LABELLED,
        lambda logits, actions: eq.Categorical(logits).log_probability(actions),
        part_of(openrlhf, "models.utils", lambda m, logits, actions: m.log_probs_from_logits(logits, actions)), gradient="logits",
    ),
    Pairing(
        ("adapt_kl_coefficient_proportionally",), "openrlhf", "AdaptiveKLController", "numpy", measured, controlled,
        part_of(openrlhf, "trainer.ppo_utils.kl_controller", controller),
    ),
    # --- SciPy, choix
    Pairing(
        ("discounted_returns",), "scipy", "signal.lfilter", "numpy", normal((TIME,), "rewards"),
        lambda rewards: eq.discounted_returns(rewards=rewards, terminated=0 * rewards, truncated=0 * rewards, discount=GAMMA),
        importer("scipy.signal", lambda m, rewards: m.lfilter([1.0], [1.0, -GAMMA], rewards[::-1])[::-1]),
    ),
    Pairing(
        ("closed_form_optimum",), "scipy", "special.logsumexp", "numpy", normal((7, 6), "rewards", scale=3.0),
        lambda rewards: tuple(eq.closed_form_optimum(
            reference_log_probabilities=0 * rewards - np.log(6), rewards=rewards, beta=0.2
        )),
        importer("scipy.special", lambda m, rewards: (
            lambda tilted, total: (tilted - total[:, None], total)
        )(rewards / 0.2 - np.log(6), m.logsumexp(rewards / 0.2 - np.log(6), axis=1))),
    ),
    Pairing(
        ("conjugate_gradient",), "scipy", "sparse.linalg.cg", "numpy", system,
        lambda matrix, vector: eq.conjugate_gradient(lambda v: matrix @ v, vector, steps=4, tolerance=0.0).solution,
        importer("scipy.sparse.linalg", lambda m, matrix, vector: m.cg(matrix, vector, maxiter=4, rtol=0.0)[0]),
    ),
    Pairing(
        ("DiagonalGaussian",), "scipy", "stats.norm", "numpy", normal((50, 3), "mean", "log_std", "actions"),
        lambda mean, log_std, actions: (lambda p: (p.log_probability(actions), p.entropy()))(eq.DiagonalGaussian(mean, log_std)),
        importer("scipy.stats", lambda m, mean, log_std, actions: (
            lambda p: (p.logpdf(actions).sum(axis=1), p.entropy().sum(axis=1))
        )(m.norm(mean, np.exp(log_std)))),
    ),
    Pairing(
        ("Categorical",), "scipy", "special.softmax, entr, rel_entr", "numpy", without(LOGITS, "actions"),
        lambda logits, other: (lambda p: (p.entropy(), p.kl_divergence(eq.Categorical(other))))(eq.Categorical(logits)),
        importer("scipy.special", lambda m, logits, other: (lambda p, q: (m.entr(p).sum(axis=1), m.rel_entr(p, q).sum(axis=1)))(
            m.softmax(logits, axis=1), m.softmax(other, axis=1)
        )),
    ),
    Pairing(
        ("whiten",), "scipy", "stats.zscore", "numpy", normal((90,), "x", scale=3.0), lambda x: eq.whiten(x, epsilon=1e-300),
        importer("scipy.stats", lambda m, x: m.zscore(x)),
    ),
    Pairing(
        ("plackett_luce_loss",), "choix", "log_likelihood_rankings", "numpy", normal((9, 5), "scores"),
        lambda scores: eq.plackett_luce_loss(scores=scores),
        importer("choix", lambda m, scores: np.array([-m.log_likelihood_rankings([[0, 1, 2, 3, 4]], row) for row in scores])),
    ),
    Pairing(
        ("plackett_luce_loss",), "choix", "log_likelihood_top1", "numpy", normal((9, 5), "scores"),
        lambda scores: eq.plackett_luce_loss(scores=scores, top=1),
        importer("choix", lambda m, scores: np.array([-m.log_likelihood_top1([[0, [1, 2, 3, 4]]], row) for row in scores])),
    ),
]
# fmt: on
