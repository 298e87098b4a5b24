"""One small call of every public function of surefoot.equations, for tests of what all of them have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from surefoot import equations
from surefoot.equations import Bernoulli, Categorical, DiagonalGaussian, MultiCategorical
from tests.equations.test_weights import rollout

NOT_CALLED = {
    "Array", "namespace", "WEIGHTS", "WEIGHT_NEEDS", "Weight", "Distribution",
    "ClosedFormOptimum", "ConjugateGradient", "ImportanceEstimate", "VTrace", "WeightDiagnostics",
}  # fmt: skip
"""Types, constants, and results that functions return."""


class Example(NamedTuple):
    call: Callable[..., Any]
    arrays: dict[str, np.ndarray]
    """By the name of the argument; the boolean ones are its flags."""


DATA = rollout(1)
RNG = np.random.default_rng(0)
NOISE = RNG.normal(size=DATA["rewards"].shape)
LOGS = {"log_probabilities": 0.3 * NOISE, "behavior_log_probabilities": 0.3 * NOISE[::-1].copy()}
PADDED = {"valid": np.arange(len(NOISE))[:, None] < np.array([5, 9, 14, 20, 23])}
ROW, ANSWERS = NOISE[0], NOISE[:, :4].copy()
THERE = np.arange(4) < RNG.integers(1, 5, (len(NOISE), 1))


def of(*names: str) -> dict[str, np.ndarray]:
    return {name: DATA[name] for name in names}


ENDS = of("terminated", "truncated", "valid")
STEPS = of("rewards", "values", "next_values")


def with_options(name: str, arrays: dict[str, np.ndarray], **options: Any) -> Example:
    function = getattr(equations, name)
    return Example(lambda **given: function(**given, **options), arrays)


def scored(distribution: Callable[..., Any], other: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
    def call(actions: Any, noise: Any, **parameters: Any) -> tuple[Any, ...]:
        p = distribution(**parameters)
        return (p.log_probability(actions), p.entropy(), p.kl_divergence(other(p)), p.sample(noise), p.mode())

    return call


def product(v: Any) -> Any:
    return 3 * v


COEFFICIENT = {"kl": np.array(0.02)}
GAUSSIAN = {"mean": NOISE[:, :3].copy(), "log_std": np.array([0.1, -0.2, 0.3]), "actions": NOISE[:, 2:].copy()}
MASK = np.abs(ANSWERS) < 2

EXAMPLES: dict[str, Example] = {
    "temporal_difference_residuals": with_options(
        "temporal_difference_residuals", STEPS | of("terminated", "valid"), discount=0.9
    ),
    "generalized_advantages": with_options("generalized_advantages", STEPS | ENDS, discount=0.9, trace_decay=0.7),
    "lambda_returns": with_options("lambda_returns", STEPS | ENDS, discount=0.9, trace_decay=0.7),
    "discounted_returns": with_options("discounted_returns", of("rewards", "next_values") | ENDS, discount=0.9),
    "n_step_returns": with_options("n_step_returns", of("rewards", "next_values") | ENDS, discount=0.9, steps=3),
    "policy_gradient_weights": Example(
        lambda action_values, **given: tuple(
            equations.policy_gradient_weights(
                name, **given, action_values=action_values, discount=0.9, steps=3, trace_decay=0.7
            )
            for name in equations.WEIGHTS
        ),
        STEPS | of("action_values") | ENDS,
    ),
    "elapsed_steps": Example(
        lambda rewards, **given: equations.elapsed_steps(**given, like=rewards), of("rewards") | ENDS | {"start": np.abs(ROW)}
    ),
    "returns_so_far": with_options("returns_so_far", of("rewards") | ENDS | {"elapsed": np.abs(ROW)}, discount=0.9),
    "vtrace": with_options("vtrace", STEPS | ENDS | LOGS, discount=0.9, trace_decay=0.7),
    "per_decision_weights": with_options("per_decision_weights", LOGS | ENDS, limit=2.0),
    "trajectory_log_weights": with_options("trajectory_log_weights", LOGS | PADDED),
    "cumulative_log_weights": with_options("cumulative_log_weights", LOGS | PADDED),
    "importance_ratio": with_options("importance_ratio", LOGS),
    "truncated_weights": with_options("truncated_weights", {"log_weights": NOISE}, limit=2.0),
    "weight_diagnostics": with_options("weight_diagnostics", {"log_weights": NOISE} | PADDED),
    "ordinary_importance_estimate": with_options("ordinary_importance_estimate", {"log_weights": ROW, "returns": ROW + 1}),
    "weighted_importance_estimate": with_options("weighted_importance_estimate", {"log_weights": ROW, "returns": ROW + 1}),
    "per_decision_importance_estimate": with_options(
        "per_decision_importance_estimate", {"log_weights": NOISE} | of("rewards") | PADDED, discount=0.9
    ),
    "weighted_per_decision_importance_estimate": with_options(
        "weighted_per_decision_importance_estimate", {"log_weights": NOISE} | of("rewards") | PADDED, discount=0.9
    ),
    "clipped_surrogate": with_options("clipped_surrogate", {"ratio": np.exp(NOISE), "advantages": DATA["values"]}, clip_range=0.2),
    "squared_value_loss": with_options("squared_value_loss", {"values": DATA["values"], "targets": NOISE}),
    "clipped_value_loss": with_options(
        "clipped_value_loss", {"values": DATA["values"], "old_values": DATA["next_values"], "targets": NOISE}, clip_range=0.2
    ),
    "masked_sum": with_options("masked_sum", {"terms": NOISE, "valid": DATA["valid"]}),
    "masked_mean": with_options("masked_mean", {"terms": NOISE, "valid": DATA["valid"]}),
    "whiten": with_options("whiten", {"x": NOISE, "valid": DATA["valid"]}, shift_mean=False),
    "group_advantages": with_options("group_advantages", {"returns": ANSWERS}, divide_by_deviation=True),
    "leave_one_out_advantages": with_options("leave_one_out_advantages", {"returns": ANSWERS}),
    "kl_k1": with_options("kl_k1", {"log_ratio": NOISE}),
    "kl_k2": with_options("kl_k2", {"log_ratio": NOISE}),
    "kl_k3": with_options("kl_k3", {"log_ratio": NOISE}),
    "adapt_kl_coefficient": with_options("adapt_kl_coefficient", {"coefficient": np.array(0.2)} | COEFFICIENT, target=0.01),
    "adapt_kl_coefficient_proportionally": with_options(
        "adapt_kl_coefficient_proportionally", {"coefficient": np.array(0.2)} | COEFFICIENT, target=0.01, answers=8, horizon=100
    ),
    "ascend_kl_multiplier": with_options(
        "ascend_kl_multiplier", {"multiplier": np.array(0.2)} | COEFFICIENT, target=0.01, learning_rate=0.5
    ),
    "implicit_rewards": with_options(
        "implicit_rewards", {"log_probabilities": NOISE, "reference_log_probabilities": DATA["values"]}, beta=0.1
    ),
    "bradley_terry_loss": with_options("bradley_terry_loss", {"better": NOISE, "worse": DATA["values"]}, smoothing=0.1),
    "ipo_loss": with_options("ipo_loss", {"better_log_ratios": NOISE, "worse_log_ratios": DATA["values"]}, beta=0.1),
    "plackett_luce_loss": with_options("plackett_luce_loss", {"scores": ANSWERS, "valid": THERE}, top=2),
    "score_centering_loss": with_options("score_centering_loss", {"scores": ANSWERS, "valid": THERE}),
    "supervised_loss": with_options("supervised_loss", {"log_probabilities": NOISE}),
    "closed_form_optimum": with_options(
        "closed_form_optimum", {"reference_log_probabilities": np.log(np.full((3, 4), 0.25)), "rewards": ANSWERS[:3]}, beta=0.5
    ),
    "conjugate_gradient": Example(lambda vector: equations.conjugate_gradient(product, vector, steps=3), {"vector": ROW}),
    "trust_region_scale": with_options("trust_region_scale", {"direction": ROW, "product": 3 * ROW}, radius=0.01),
    "Categorical": Example(
        scored(Categorical, lambda p: Categorical(2 * p.logits, p.mask)),
        {"logits": ANSWERS, "mask": MASK, "actions": np.argmax(MASK, axis=1), "noise": ANSWERS[::-1].copy()},
    ),
    "MultiCategorical": Example(
        scored(lambda **p: MultiCategorical(sizes=(2, 2), **p), lambda p: MultiCategorical(2 * p.logits, p.sizes, p.mask)),
        {"logits": ANSWERS, "mask": MASK, "actions": np.zeros((len(NOISE), 2), int), "noise": ANSWERS[::-1].copy()},
    ),
    "Bernoulli": Example(
        scored(Bernoulli, lambda p: Bernoulli(2 * p.logits)),
        {"logits": ANSWERS, "actions": (ANSWERS > 0).astype(int), "noise": ANSWERS[::-1].copy()},
    ),
    "DiagonalGaussian": Example(
        scored(DiagonalGaussian, lambda p: DiagonalGaussian(2 * p.mean, p.log_std)), GAUSSIAN | {"noise": NOISE[:, 1:4].copy()}
    ),
}  # fmt: skip


def flags_of(name: str) -> list[str]:
    """The arguments of a public function that are flags, by their annotations."""
    annotations = getattr(equations, name).__annotations__
    return [argument for argument, annotation in annotations.items() if str(annotation).startswith(("Flags[", "Bool["))]
