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

__all__ = ["A2C", "ACTOR_CRITIC", "ALGORITHMS", "PPO", "REINFORCE", "TRPO", "Algorithm", "configuration_for"]

ALGORITHMS: dict[str, Algorithm] = {a.name: a for a in (REINFORCE, ACTOR_CRITIC, A2C, TRPO, PPO)}


def configuration_for(algorithm: str, env: str, **options: Any) -> TrainConfiguration:
    """An algorithm's configuration for an environment: its preset, with ``options`` in place of what it says.

    Raises:
        KeyError: there is no such algorithm.
        TypeError: the algorithm has no such setting.
        UsageError: a value cannot be used.
    """
    return ALGORITHMS[algorithm].configure(env, **options)
