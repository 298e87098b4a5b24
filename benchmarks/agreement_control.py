"""Pairings of benchmarks/agreement.py with code for control: rlax, distrax, torchrl, tianshou, Stable-Baselines3 and its contributions.

Every pairing has inputs, the call here, the call there, and what was done about definitions that differ.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

from agreement_sides import (
    COLUMNS,
    GAMMA,
    LAMBDA,
    LOGITS,
    RETURNS,
    ROUNDED,
    TIME,
    N,
    Pairing,
    by_column,
    importer,
    joined,
    normal,
    ratio_of,
    rollout,
    scores,
    system,
    without,
)  # fmt: skip
from surefoot import equations as eq

LOGS = normal((TIME, COLUMNS), "log_probabilities", "behavior_log_probabilities", scale=0.7)
PARTS = joined(
    normal((50, 6), "logits", "other"), lambda rng: {"actions": np.stack([rng.integers(0, n, 50) for n in (2, 4)], 1)}
)
BITS = joined(normal((50, 6), "logits", "other"), lambda rng: {"actions": rng.integers(0, 2, (50, 6)).astype(float)})
MASKED = joined(LOGITS, lambda rng: {"mask": np.arange(6) != rng.integers(0, 6, (50, 1))})
GAUSSIAN = normal((50, 3), "mean", "log_std", "other", "other_log_std", "actions", scale=0.5)


def torchrl(call: Callable[..., Any]) -> Callable[[], Callable[..., Any]]:
    return importer("torchrl.objectives.value.functional", call)


def double(x: float) -> Any:
    """torchrl makes a float32 of a Python number."""
    torch = import_module("torch")
    return torch.tensor(x, dtype=torch.float64)


def sb3(call: Callable[..., Any]) -> Callable[[], Callable[..., Any]]:
    return importer("stable_baselines3.common.distributions", call)


# --- calls that take more than a line


def sb3_scores(m: Any, distribution: Any, p: tuple[Any, ...], q: tuple[Any, ...], actions: Any) -> tuple[Any, ...]:
    first, second = distribution().proba_distribution(*p), distribution().proba_distribution(*q)
    divergence = m.kl_divergence(first, second)
    rows = divergence if divergence.ndim == 1 else divergence.sum(dim=1)
    return first.log_prob(actions), first.entropy(), rows


def buffer_of_sb3(m: Any, rewards: Any, values: Any, next_values: Any, terminated: Any, truncated: Any) -> tuple[Any, ...]:
    import torch
    from gymnasium.spaces import Box, Discrete

    one = Box(-1, 1, (1,))
    buffer = m.RolloutBuffer(TIME, one, Discrete(2), gae_lambda=LAMBDA, gamma=GAMMA, n_envs=COLUMNS)
    buffer.rewards, buffer.values = rewards.astype(np.float32), values.astype(np.float32)
    buffer.episode_starts = np.concatenate([np.ones((1, COLUMNS)), terminated[:-1]]).astype(np.float32)
    buffer.compute_returns_and_advantage(torch.from_numpy(next_values[-1].astype(np.float32)), terminated[-1])
    return buffer.advantages, buffer.returns


def n_steps_of_tianshou(m: Any, rewards: Any, next_values: Any, terminated: Any, truncated: Any) -> Any:
    ends = terminated | truncated
    ends[-1] = True
    columns = []
    for e in range(COLUMNS):
        rows = [np.arange(TIME)]
        for _ in range(N - 1):
            rows.append(np.where(ends[rows[-1], e], rows[-1], rows[-1] + 1))
        last = np.where(terminated[:, e], 0.0, next_values[:, e])[rows[-1]]
        columns.append(m._nstep_return(rewards[:, e], ends[:, e], last[:, None], np.stack(rows), GAMMA, N)[:, 0])
    return np.stack(columns, axis=1)


def gae_of_tianshou(m: Any, rewards: Any, values: Any, next_values: Any, terminated: Any, truncated: Any) -> Any:
    following, ends = np.where(terminated, 0.0, next_values), terminated | truncated
    rows = (values, following, rewards, ends)
    return np.stack([m._gae(*(np.ascontiguousarray(x[:, e]) for x in rows), GAMMA, LAMBDA) for e in range(COLUMNS)], axis=1)


def conjugate(matrix: Any, vector: Any, steps: int = 4) -> Any:
    return eq.conjugate_gradient(lambda v: matrix @ v, vector, steps=steps, tolerance=0.0).solution


def discounts(x: dict[str, Any]) -> Any:
    return GAMMA * (1.0 - x["terminated"])


def cut(x: dict[str, Any]) -> Any:
    return 1.0 - x["truncated"]


# fmt: off
PAIRINGS = [
    # --- rlax, distrax: γ is a row, 0 at terminations; a truncation is λ = 0 with a value of its own
    Pairing(
        ("lambda_returns",), "rlax", "lambda_returns", "jax", rollout(), lambda **x: eq.lambda_returns(**x, **RETURNS),
        by_column(lambda m, **x: m.lambda_returns(x["rewards"], discounts(x), x["next_values"], LAMBDA * cut(x))),
    ),
    Pairing(
        ("generalized_advantages",), "rlax", "truncated_generalized_advantage_estimation", "jax",
        rollout(truncations=False), lambda **x: eq.generalized_advantages(**x, **RETURNS),
        by_column(lambda m, **x: m.truncated_generalized_advantage_estimation(
            x["rewards"], discounts(x), LAMBDA, import_module("jax.numpy").append(x["values"], x["next_values"][-1])
        )),
    ),
    Pairing(
        ("n_step_returns",), "rlax", "n_step_bootstrapped_returns, γ per step", "jax",
        joined(without(rollout(), "values"), lambda rng: {"discount": rng.uniform(0.5, 1, (TIME, COLUMNS))}),
        lambda **x: eq.n_step_returns(**x, steps=N),
        by_column(lambda m, **x: m.n_step_bootstrapped_returns(
            x["rewards"], x["discount"] * (1.0 - x["terminated"]), x["next_values"], N, cut(x)
        )),
    ),
    Pairing(
        ("discounted_returns",), "rlax", "discounted_returns, γ per step", "jax",
        joined(without(rollout(truncations=False), "values"), lambda rng: {"discount": rng.uniform(0.5, 1, (TIME, COLUMNS))}),
        eq.discounted_returns,
        by_column(lambda m, **x: m.discounted_returns(x["rewards"], x["discount"] * (1.0 - x["terminated"]), x["next_values"])),
    ),
    Pairing(
        ("temporal_difference_residuals",), "rlax", "td_learning", "jax", without(rollout(), "truncated"),
        lambda **x: eq.temporal_difference_residuals(**x, discount=GAMMA),
        by_column(lambda m, **x: import_module("jax").vmap(m.td_learning)(
            x["values"], x["rewards"], discounts(x), x["next_values"]
        )),
    ),
    Pairing(
        ("vtrace",), "rlax", "vtrace_td_error_and_advantage", "jax", joined(rollout(truncations=False), LOGS),
        lambda **x: tuple(eq.vtrace(**x, **RETURNS)),
        by_column(lambda m, **x: (lambda out: (out.errors + x["values"], out.pg_advantage))(m.vtrace_td_error_and_advantage(
            x["values"], x["next_values"], x["rewards"], discounts(x),
            import_module("jax.numpy").exp(x["log_probabilities"] - x["behavior_log_probabilities"]), LAMBDA,
        ))),
        "rlax clips the policy gradient's ratio at a bound of its own, here at the same one",
    ),
    Pairing(
        ("clipped_surrogate",), "rlax", "clipped_surrogate_pg_loss", "jax", normal((200,), "x", "advantages", scale=0.4),
        lambda x, advantages: -eq.masked_mean(eq.clipped_surrogate(ratio=1 + x, advantages=advantages, clip_range=0.2)),
        importer("rlax", lambda m, x, advantages: m.clipped_surrogate_pg_loss(1 + x, advantages, 0.2)), gradient="x",
    ),
    Pairing(
        ("importance_ratio", "Categorical"), "rlax", "categorical_importance_sampling_ratios", "jax", LOGITS,
        lambda logits, other, actions: ratio_of(*(eq.Categorical(z).log_probability(actions) for z in (logits, other))),
        importer("rlax", lambda m, logits, other, actions: m.categorical_importance_sampling_ratios(logits, other, actions)),
        gradient="logits",
    ),
    Pairing(
        ("closed_form_optimum",), "rlax", "mpo_compute_weights_and_temperature_loss", "jax", normal((7, 6), "rewards"),
        lambda rewards: eq.namespace(rewards).exp(eq.closed_form_optimum(
            reference_log_probabilities=0 * rewards - np.log(6), rewards=rewards, beta=0.4
        ).log_probabilities),
        importer("rlax", lambda m, rewards: m.mpo_compute_weights_and_temperature_loss(
            rewards, m.LagrangePenalty(*(import_module("jax.numpy").asarray(x) for x in (0.4, 0.1)), False), lambda t: t, 1
        )[1]),
    ),
    Pairing(
        ("Categorical",), "distrax", "Categorical", "jax", LOGITS,
        lambda logits, other, actions: scores(eq.Categorical(logits), eq.Categorical(other), actions),
        importer("distrax", lambda m, logits, other, actions: (
            lambda p: (p.log_prob(actions), p.entropy(), p.kl_divergence(m.Categorical(other)))
        )(m.Categorical(logits))),
    ),
    Pairing(
        ("DiagonalGaussian",), "distrax", "MultivariateNormalDiag", "jax", GAUSSIAN,
        lambda mean, log_std, other, other_log_std, actions: scores(
            eq.DiagonalGaussian(mean, log_std), eq.DiagonalGaussian(other, other_log_std), actions
        ),
        importer("distrax", lambda m, mean, log_std, other, other_log_std, actions: (
            lambda p, q: (p.log_prob(actions), p.entropy(), p.kl_divergence(q))
        )(*(m.MultivariateNormalDiag(a, import_module("jax.numpy").exp(b)) for a, b in ((mean, log_std), (other, other_log_std))))),
    ),
    # --- torchrl
    Pairing(
        ("generalized_advantages", "lambda_returns"), "torchrl", "generalized_advantage_estimate", "torch", rollout(),
        lambda **x: (eq.generalized_advantages(**x, **RETURNS), eq.lambda_returns(**x, **RETURNS)),
        torchrl(lambda m, rewards, values, next_values, terminated, truncated: m.generalized_advantage_estimate(
            double(GAMMA), double(LAMBDA), values, next_values, rewards, terminated | truncated, terminated
        )),
    ),
    Pairing(
        ("discounted_returns",), "torchrl", "td1_return_estimate", "torch", without(rollout(), "values"),
        lambda **x: eq.discounted_returns(**x, discount=GAMMA),
        torchrl(lambda m, rewards, next_values, terminated, truncated: m.td1_return_estimate(
            GAMMA, next_values, rewards, terminated | truncated, terminated
        )),
    ),
    Pairing(
        ("lambda_returns",), "torchrl", "td_lambda_return_estimate", "torch", rollout(),
        lambda **x: eq.lambda_returns(**x, **RETURNS),
        torchrl(lambda m, rewards, values, next_values, terminated, truncated: m.td_lambda_return_estimate(
            GAMMA, LAMBDA, next_values, rewards, terminated | truncated, terminated
        )),
    ),
    Pairing(
        ("policy_gradient_weights", "temporal_difference_residuals"), "torchrl",
        "td0_advantage_estimate, reward2go, td1_advantage_estimate", "torch", rollout(),
        lambda **x: tuple(eq.policy_gradient_weights(name, **x, discount=GAMMA) for name in ("td-residual", "reward-to-go", "baseline")),
        torchrl(lambda m, rewards, values, next_values, terminated, truncated: (
            m.td0_advantage_estimate(double(GAMMA), values, next_values, rewards, terminated | truncated, terminated),
            m.reward2go(rewards, terminated | truncated, double(GAMMA)),
            m.td1_advantage_estimate(double(GAMMA), values, next_values, rewards, terminated | truncated, terminated),
        )),
    ),
    Pairing(
        ("vtrace",), "torchrl", "vtrace_advantage_estimate", "torch", joined(rollout(), LOGS),
        lambda **x: tuple(eq.vtrace(**x, discount=GAMMA))[::-1],
        torchrl(lambda m, log_probabilities, behavior_log_probabilities, rewards, values, next_values, terminated, truncated:
            m.vtrace_advantage_estimate(
                double(GAMMA), log_probabilities, behavior_log_probabilities, values, next_values, rewards,
                terminated | truncated, terminated,
            )),
    ),
    # --- tianshou
    Pairing(
        ("generalized_advantages",), "tianshou", "_gae", "numpy", rollout(),
        lambda **x: eq.generalized_advantages(**x, **RETURNS), importer("tianshou.algorithm.algorithm_base", gae_of_tianshou),
    ),
    Pairing(
        ("n_step_returns",), "tianshou", "_nstep_return", "numpy", without(rollout(), "values"),
        lambda **x: eq.n_step_returns(**x, discount=GAMMA, steps=N),
        importer("tianshou.algorithm.algorithm_base", n_steps_of_tianshou),
    ),
    Pairing(
        ("discounted_returns",), "tianshou", "episode_mc_return_to_go", "numpy", normal((TIME,), "rewards"),
        lambda rewards: eq.discounted_returns(
            rewards=rewards, terminated=np.zeros(TIME), truncated=np.zeros(TIME), discount=GAMMA
        ),
        importer("tianshou.algorithm.algorithm_base", lambda m, rewards: m.episode_mc_return_to_go(rewards, GAMMA)),
    ),
    # --- Stable-Baselines3
    Pairing(
        ("generalized_advantages", "lambda_returns"), "stable-baselines3", "RolloutBuffer", "numpy",
        rollout(truncations=False),
        lambda **x: (eq.generalized_advantages(**x, **RETURNS), eq.lambda_returns(**x, **RETURNS)),
        importer("stable_baselines3.common.buffers", buffer_of_sb3), ROUNDED,
    ),
    Pairing(
        ("Categorical",), "stable-baselines3", "CategoricalDistribution", "torch", LOGITS,
        lambda logits, other, actions: scores(eq.Categorical(logits), eq.Categorical(other), actions),
        sb3(lambda m, logits, other, actions: sb3_scores(
            m, lambda: m.CategoricalDistribution(6), (logits,), (other,), actions
        )),
    ),
    Pairing(
        ("MultiCategorical",), "stable-baselines3", "MultiCategoricalDistribution", "torch", PARTS,
        lambda logits, other, actions: scores(eq.MultiCategorical(logits, (2, 4)), eq.MultiCategorical(other, (2, 4)), actions),
        sb3(lambda m, logits, other, actions: sb3_scores(
            m, lambda: m.MultiCategoricalDistribution([2, 4]), (logits,), (other,), actions
        )),
    ),
    Pairing(
        ("Bernoulli",), "stable-baselines3", "BernoulliDistribution", "torch", BITS,
        lambda logits, other, actions: scores(eq.Bernoulli(logits), eq.Bernoulli(other), actions),
        sb3(lambda m, logits, other, actions: sb3_scores(m, lambda: m.BernoulliDistribution(6), (logits,), (other,), actions)),
    ),
    Pairing(
        ("DiagonalGaussian",), "stable-baselines3", "DiagGaussianDistribution", "torch", GAUSSIAN,
        lambda mean, log_std, other, other_log_std, actions: scores(
            eq.DiagonalGaussian(mean, log_std), eq.DiagonalGaussian(other, other_log_std), actions
        ),
        sb3(lambda m, mean, log_std, other, other_log_std, actions: sb3_scores(
            m, lambda: m.DiagGaussianDistribution(3), (mean, log_std), (other, other_log_std), actions
        )),
    ),
    Pairing(
        ("Categorical",), "sb3-contrib", "MaskableCategoricalDistribution", "torch", without(MASKED, "other"),
        lambda logits, actions, mask: (
            lambda p: (p.entropy(), eq.namespace(logits).exp(p.log_probabilities))
        )(eq.Categorical(logits, mask)),
        importer("sb3_contrib.common.maskable.distributions", lambda m, logits, actions, mask: (
            lambda d: (d.apply_masking(mask.numpy()), (d.entropy(), d.distribution.probs))[1]
        )(m.MaskableCategoricalDistribution(6).proba_distribution(logits))),
    ),
    Pairing(
        ("conjugate_gradient",), "sb3-contrib", "conjugate_gradient_solver", "torch", system, conjugate,
        importer("sb3_contrib.common.utils", lambda m, matrix, vector: (
            import_module("torch").manual_seed(0), m.conjugate_gradient_solver(lambda v: matrix @ v, vector, 4, 0.0)
        )[1]),
        "starts from noise of 1e-4, surefoot from 0",
    ),
]
# fmt: on
