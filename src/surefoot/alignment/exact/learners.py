"""DPO, reward models and the online loop on a task that can be enumerated.

Every method starts from the same model and goes through the likelihood, the losses and the steps that align language models. What is
exact is only the task, and what can be said of the result.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from surefoot.alignment.configuration import DPOConfiguration, RewardConfiguration, TrainingConfiguration
from surefoot.alignment.data.examples import Example
from surefoot.alignment.exact.fit import expected_ranking_loss
from surefoot.alignment.exact.language import LanguageTask, to_examples
from surefoot.alignment.exact.models import critic_of, scoring_model
from surefoot.alignment.exact.rankings import Rankings, sample_rankings
from surefoot.alignment.exact.rewards import prompts_of
from surefoot.alignment.learning.offline import evaluate_examples
from surefoot.alignment.learning.optimization import descend, learning_rate_at, make_optimizer
from surefoot.alignment.likelihood.likelihood import Likelihood
from surefoot.alignment.methods.comparisons import Comparison
from surefoot.alignment.methods.dpo import DirectPreferenceOptimization
from surefoot.alignment.methods.method import Method
from surefoot.alignment.methods.reward import RewardModelling
from surefoot.alignment.models.adapters import trainable_parameters
from surefoot.alignment.reference import KeptReference, LiveReference
from surefoot.alignment.rewards.source import RewardSource
from surefoot.alignment.rlhf.configuration import PPOConfiguration
from surefoot.alignment.rlhf.critic import Critic
from surefoot.alignment.rlhf.learner import PolicyOptimization
from surefoot.equations import implicit_rewards

__all__ = ["OnlineSteps", "Steps", "fit_policy", "fit_reward_model", "fit_to_reward", "learn_online"]

HELD_OUT = 0.1
"""Share of sampled preferences that says when to stop."""
EVALUATIONS = 25


@dataclass(frozen=True)
class Steps:
    """How long a loss is minimised, and in what steps."""

    updates: int
    batch_size: int
    """Rankings per update."""
    learning_rate: float
    """Of AdamW at its highest: it rises over a twentieth of the updates, and falls to zero as half a cosine."""

    def scaled(self, share: float) -> Steps:
        """The same with a share of the updates."""
        return replace(self, updates=max(1, round(share * self.updates)))

    def training(self, seed: int) -> TrainingConfiguration:
        """As the optimiser takes it."""
        return TrainingConfiguration(
            batch_size=self.batch_size, learning_rate=self.learning_rate, warmup=0.05, max_gradient_norm=None, seed=seed
        )


def fit_to_reward(language: LanguageTask, likelihood: Likelihood, *, answers: int, beta: float, steps: Steps, seed: int) -> int:
    """DPO with the true reward: fresh answers of π_ref in every update, and the mean loss over all orders that they may be put in.

    At π* the gradient is 0 for any K answers, so that sampling leaves no noise there.

    Args:
        language: the task.
        likelihood: of the policy, which is changed.
        answers: K; 2 for pairs.
        beta: β > 0, reward units per nat.
        steps: how long.
        seed: of the answers drawn.

    Returns:
        how many answers were drawn and compared.
    """
    task, generator, training = language.task, np.random.default_rng([seed, answers]), steps.training(seed)
    prompts, tokens = language.prompts.astype(np.int32), language.answers.astype(np.int32)
    parameters = trainable_parameters(likelihood.model)
    optimizer = make_optimizer(parameters, training)
    for update in range(steps.updates):
        drawn = sample_rankings(task, count=steps.batch_size, answers=answers, generator=generator)
        order = np.argsort(drawn.prompts, kind="stable")  # each prompt is computed once for all of its answers
        asked, chosen = drawn.prompts[order], drawn.answers[order]
        groups = [(prompts[x], list(tokens[chosen[asked == x].reshape(-1)])) for x in np.unique(asked)]
        likely = likelihood.completions(groups).sums().reshape(chosen.shape)
        rows = asked[:, None], chosen
        reference, rewards = (torch.from_numpy(x[rows]).to(likely) for x in (task.reference_log_probabilities, task.rewards))
        scores = implicit_rewards(log_probabilities=likely, reference_log_probabilities=reference, beta=beta)
        expected_ranking_loss(scores, rewards).mean().backward()
        rate = learning_rate_at(update, steps.updates, training)
        descend(optimizer, parameters, learning_rate=rate, max_gradient_norm=None)
    return steps.updates * steps.batch_size * answers


def fit_policy(
    language: LanguageTask, likelihood: Likelihood, rankings: Rankings, *, beta: float, steps: Steps, seed: int
) -> None:
    """DPO on sampled preferences; the policy is the one that explains a tenth of them, held out, best.

    Args:
        language: the task.
        likelihood: of the policy, which is changed.
        rankings: drawn, not listed: weights are passed over.
        beta: β > 0, reward units per nat.
        steps: how long.
        seed: of the batches, and of what is held out.
    """
    examples = to_examples(language, rankings)
    values = language.task.reference_log_probabilities[rankings.prompts[:, None], rankings.answers].astype(np.float32)
    reference = KeptReference(list(values), examples, likelihood.device)
    method = DirectPreferenceOptimization(likelihood, reference, DPOConfiguration(beta=beta), _comparison(rankings))
    _minimise(method, examples, steps=steps, seed=seed)


def fit_reward_model(language: LanguageTask, rankings: Rankings, *, steps: Steps, seed: int) -> Likelihood:
    """A transformer that scores answers, trained on the same preferences and stopped in the same way."""
    likelihood = Likelihood(scoring_model(language, seed=seed))
    method = RewardModelling(likelihood, RewardConfiguration(), _comparison(rankings))
    _minimise(method, to_examples(language, rankings), steps=steps, seed=seed)
    return likelihood


def _comparison(rankings: Rankings) -> Comparison:
    return "bradley-terry" if rankings.answers.shape[1] == 2 else "plackett-luce"


def _minimise(method: Method, examples: tuple[Example, ...], *, steps: Steps, seed: int) -> None:
    """Batches in a new order every epoch; the weights are those of the evaluation with the lowest loss."""
    generator, training = np.random.default_rng(seed), steps.training(seed)
    order = generator.permutation(len(examples))
    away = max(1, round(HELD_OUT * len(examples)))
    held_out, train = [examples[i] for i in order[:away]], [examples[i] for i in order[away:]]
    model, parameters = method.likelihood.model, trainable_parameters(method.likelihood.model)
    optimizer = make_optimizer(parameters, training)
    due = {round(steps.updates * part / EVALUATIONS) for part in range(EVALUATIONS + 1)}
    best, weights, waiting = float("inf"), copy.deepcopy(model.state_dict()), list[int]()
    for update in range(steps.updates + 1):
        if update in due:
            with torch.no_grad():
                loss = evaluate_examples(method, held_out, batch_size=1024)["loss"]
            if loss < best:
                best, weights = loss, copy.deepcopy(model.state_dict())
        if update == steps.updates:
            break
        while len(waiting) < min(steps.batch_size, len(train)):
            waiting += generator.permutation(len(train)).tolist()
        batch, waiting = [train[i] for i in waiting[: steps.batch_size]], waiting[steps.batch_size :]
        method.parts(batch, method.denominators(batch)).loss.backward()
        rate = learning_rate_at(update, steps.updates, training)
        descend(optimizer, parameters, learning_rate=rate, max_gradient_norm=None)
    model.load_state_dict(weights)


@dataclass(frozen=True)
class OnlineSteps:
    """How long answers are sampled and learnt from, and in what steps."""

    iterations: int
    repeats: int
    """How often every prompt of the task is asked in one iteration; K answers each time."""
    learning_rate: float
    """As that of :class:`Steps`."""
    critic_learning_rate: float

    def scaled(self, share: float) -> OnlineSteps:
        """The same with a share of the iterations."""
        return replace(self, iterations=max(1, round(share * self.iterations)))


def learn_online(
    language: LanguageTask,
    likelihood: Likelihood,
    reward: RewardSource,
    *,
    settings: PPOConfiguration,
    steps: OnlineSteps,
    seed: int,
    tell: Callable[[int, dict[str, float]], None] = lambda iteration, metrics: None,
) -> int:
    """PPO, GRPO or RLOO, as the settings say.

    Args:
        language: the task.
        likelihood: of the policy, which is changed; it is its own reference to begin with.
        reward: where rewards come from.
        settings: ψ, β and the rest.
        steps: how long.
        seed: of the answers drawn.
        tell: called behind every iteration.

    Returns:
        how many answers were drawn and scored.
    """
    model = likelihood.model
    reference = LiveReference(likelihood.of(copy.deepcopy(model)))
    critic = Critic(Likelihood(critic_of(model))) if settings.weight == "gae" else None
    if critic is not None:
        settings = replace(settings, critic_learning_rate=steps.critic_learning_rate)
    loop = PolicyOptimization(
        actor=likelihood,
        reward=reward,
        reference=reference,
        critic=critic,
        settings=settings,
        training=TrainingConfiguration(learning_rate=steps.learning_rate, warmup=0.05, max_gradient_norm=None, seed=seed),
        total=steps.iterations,
    )
    prompts = prompts_of(language) * steps.repeats
    for iteration in range(steps.iterations):
        tell(iteration + 1, loop.iterate(prompts))
    loop.close()
    return steps.iterations * len(prompts) * settings.answers_per_prompt
