"""The equations of policy optimisation: pure functions of arrays, for any library that the Python array API
covers.
"""

from surefoot.equations._library import Array, namespace
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

__all__ = [
    "Array",
    "Bernoulli",
    "Categorical",
    "DiagonalGaussian",
    "Distribution",
    "MultiCategorical",
    "clipped_surrogate",
    "clipped_value_loss",
    "discounted_returns",
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
    "squared_value_loss",
    "temporal_difference_residuals",
]
