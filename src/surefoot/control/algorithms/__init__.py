"""The algorithms: each file states one, as a weight ψ, an objective and a step. How they are computed stands in
:mod:`surefoot.control.update`. No engine is imported here.

A new combination is a few lines::

    configuration = TrainConfiguration(
        RunConfiguration("Hopper-v5"),
        weight=WeightConfiguration("td-residual", advantage_normalization="batch"),
        objective=None,
        trust_region=TrustRegionConfiguration(max_kl=0.02),
    )
"""

from typing import Any

from surefoot.control.algorithms.a2c import A2C
from surefoot.control.algorithms.actor_critic import ACTOR_CRITIC
from surefoot.control.algorithms.algorithm import Algorithm
from surefoot.control.algorithms.ppo import PPO
from surefoot.control.algorithms.reinforce import REINFORCE
from surefoot.control.algorithms.trpo import TRPO
from surefoot.control.configuration import TrainConfiguration
from surefoot.errors import UsageError

__all__ = ["A2C", "ACTOR_CRITIC", "ALGORITHMS", "PPO", "REINFORCE", "TRPO", "Algorithm", "algorithm_named", "configuration_for"]

ALGORITHMS: dict[str, Algorithm] = {a.name: a for a in (REINFORCE, ACTOR_CRITIC, A2C, TRPO, PPO)}


def algorithm_named(name: str) -> Algorithm:
    """The algorithm of a name.

    Raises:
        UsageError: there is no such algorithm.
    """
    if not isinstance(name, str) or name not in ALGORITHMS:
        *most, last = ALGORITHMS
        raise UsageError(f"there is no algorithm {name!r}; there are {', '.join(most)} and {last}")
    return ALGORITHMS[name]


def configuration_for(algorithm: str, env: str, **options: Any) -> TrainConfiguration:
    """An algorithm's configuration for an environment: its preset, with ``options`` in place of what it says.

    Raises:
        TypeError: the algorithm has no such setting.
        UsageError: there is no such algorithm, or a value cannot be used.
    """
    return algorithm_named(algorithm).configure(env, **options)
