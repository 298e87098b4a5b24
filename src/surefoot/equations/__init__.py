"""The equations of policy optimisation: pure functions of arrays, for any library that the Python array API
covers.
"""

from surefoot.equations._library import Array, namespace
from surefoot.equations.controllers import adapt_kl_coefficient, ascend_kl_multiplier
from surefoot.equations.distributions import Bernoulli, Categorical, DiagonalGaussian, Distribution, MultiCategorical
from surefoot.equations.divergences import kl_k1, kl_k2, kl_k3
from surefoot.equations.importance import importance_ratio
from surefoot.equations.objectives import (
    clipped_surrogate,
    clipped_value_loss,
    masked_mean,
    masked_sum,
    squared_value_loss,
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

__all__ = [
    "WEIGHTS",
    "WEIGHT_NEEDS",
    "Array",
    "Bernoulli",
    "Categorical",
    "ConjugateGradient",
    "DiagonalGaussian",
    "Distribution",
    "MultiCategorical",
    "Weight",
    "adapt_kl_coefficient",
    "ascend_kl_multiplier",
    "clipped_surrogate",
    "clipped_value_loss",
    "conjugate_gradient",
    "discounted_returns",
    "elapsed_steps",
    "generalized_advantages",
    "importance_ratio",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "lambda_returns",
    "masked_mean",
    "masked_sum",
    "n_step_returns",
    "namespace",
    "policy_gradient_weights",
    "returns_so_far",
    "squared_value_loss",
    "temporal_difference_residuals",
    "trust_region_scale",
]
