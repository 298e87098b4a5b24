"""The equations of policy optimisation: pure functions of arrays, for any library that the Python array API
covers.

Every flag and mask (``terminated``, ``truncated``, ``valid``, ``mask``) may be booleans, or 0 and 1 of any integer or real dtype. Another
dtype raises TypeError, another value ValueError; values are looked at unless a program is being traced or the flags are booleans.
"""

from surefoot.equations._library import Array, namespace
from surefoot.equations.controllers import (
    adapt_kl_coefficient,
    adapt_kl_coefficient_proportionally,
    ascend_kl_multiplier,
)
from surefoot.equations.distributions import Bernoulli, Categorical, DiagonalGaussian, Distribution, MultiCategorical
from surefoot.equations.divergences import kl_k1, kl_k2, kl_k3
from surefoot.equations.groups import group_advantages, leave_one_out_advantages
from surefoot.equations.importance import (
    WeightDiagnostics,
    cumulative_log_weights,
    importance_ratio,
    per_decision_weights,
    trajectory_log_weights,
    truncated_weights,
    weight_diagnostics,
)
from surefoot.equations.objectives import (
    clipped_surrogate,
    clipped_value_loss,
    masked_mean,
    masked_sum,
    squared_value_loss,
)
from surefoot.equations.off_policy import (
    ImportanceEstimate,
    VTrace,
    ordinary_importance_estimate,
    per_decision_importance_estimate,
    vtrace,
    weighted_importance_estimate,
    weighted_per_decision_importance_estimate,
)
from surefoot.equations.preferences import (
    ClosedFormOptimum,
    bradley_terry_loss,
    closed_form_optimum,
    implicit_rewards,
    ipo_loss,
    plackett_luce_loss,
    score_centering_loss,
    supervised_loss,
)
from surefoot.equations.returns import (
    discounted_returns,
    generalized_advantages,
    lambda_returns,
    n_step_returns,
    temporal_difference_residuals,
)
from surefoot.equations.trust_region import ConjugateGradient, conjugate_gradient, trust_region_scale
from surefoot.equations.weights import (
    WEIGHT_NEEDS,
    WEIGHTS,
    Weight,
    elapsed_steps,
    policy_gradient_weights,
    returns_so_far,
)
from surefoot.equations.whitening import whiten

__all__ = [
    "WEIGHTS",
    "WEIGHT_NEEDS",
    "Array",
    "Bernoulli",
    "Categorical",
    "ClosedFormOptimum",
    "ConjugateGradient",
    "DiagonalGaussian",
    "Distribution",
    "ImportanceEstimate",
    "MultiCategorical",
    "VTrace",
    "Weight",
    "WeightDiagnostics",
    "adapt_kl_coefficient",
    "adapt_kl_coefficient_proportionally",
    "ascend_kl_multiplier",
    "bradley_terry_loss",
    "clipped_surrogate",
    "clipped_value_loss",
    "closed_form_optimum",
    "conjugate_gradient",
    "cumulative_log_weights",
    "discounted_returns",
    "elapsed_steps",
    "generalized_advantages",
    "group_advantages",
    "implicit_rewards",
    "importance_ratio",
    "ipo_loss",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "lambda_returns",
    "leave_one_out_advantages",
    "masked_mean",
    "masked_sum",
    "n_step_returns",
    "namespace",
    "ordinary_importance_estimate",
    "per_decision_importance_estimate",
    "per_decision_weights",
    "plackett_luce_loss",
    "policy_gradient_weights",
    "returns_so_far",
    "score_centering_loss",
    "squared_value_loss",
    "supervised_loss",
    "temporal_difference_residuals",
    "trajectory_log_weights",
    "truncated_weights",
    "trust_region_scale",
    "vtrace",
    "weight_diagnostics",
    "weighted_importance_estimate",
    "weighted_per_decision_importance_estimate",
    "whiten",
]
