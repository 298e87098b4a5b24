"""One-step actor–critic, online: actor and critic learn from every step as it is taken, over environments in a batch.

=========  ==========================================================================================
ψ          TD residual δ = r + γ (1 − terminated) V(s′) − V(s)
objective  E[ψ log π(a|s)]; the critic descends ½ δ², its target r + γ V(s′) held constant (semi-gradient)
step       one step of the optimiser per environment step
=========  ==========================================================================================

Source: Sutton and Barto, Reinforcement Learning (2018), section 13.5.
"""

from surefoot.control.algorithms.algorithm import Algorithm
from surefoot.control.configuration import LikelihoodObjective, OptimizerConfiguration, WeightConfiguration

ACTOR_CRITIC = Algorithm(
    name="actor-critic",
    summary="Train a policy with one-step actor-critic: TD residual, log-likelihood, a step after every step.",
    weight=WeightConfiguration("td-residual"),
    objective=LikelihoodObjective(),
    optimizer=OptimizerConfiguration(learning_rate=3e-4),
    rollout_length=1,
    presets={"CartPole-v1": {"total_steps": 500_000}},
)
