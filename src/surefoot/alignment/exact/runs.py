"""One run of one method on one task: from π_ref to what is known exactly of the policy that it ends with."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float

from surefoot.alignment.exact.language import LanguageTask, exact_log_probabilities
from surefoot.alignment.exact.learners import OnlineSteps, Steps, fit_policy, fit_reward_model, fit_to_reward, learn_online
from surefoot.alignment.exact.models import critic_of, make_task, scoring_model
from surefoot.alignment.exact.rankings import Rankings, sample_rankings
from surefoot.alignment.exact.rewards import ScoredRewards, TrueRewards, all_scores
from surefoot.alignment.exact.tasks import PreferenceTask, mean_kl_divergence, measure_policy, optimal_policy
from surefoot.alignment.likelihood.likelihood import Likelihood
from surefoot.alignment.rewards.source import RewardSource
from surefoot.alignment.rlhf.configuration import PPOConfiguration
from surefoot.alignment.training import peak_megabytes

__all__ = [
    "METHODS",
    "RewardModel",
    "Run",
    "carry_out",
    "draw_preferences",
    "online_settings",
    "train_reward_model",
    "unseen_answers",
]

METHODS: dict[str, str] = {
    "ppo": "RLHF-PPO: ψ = gae, with a critic; the KL divergence in the reward",
    "grpo": "GRPO: ψ = group, divided by the deviation; the KL divergence in the loss",
    "rloo": "RLOO: ψ = leave-one-out; the KL divergence in the reward",
    "dpo": "DPO on pairs",
    "ranked-dpo": "DPO on rankings of four answers",
}
ONLINE: dict[str, dict[str, Any]] = {
    "ppo": {"weight": "gae", "trace_decay": 1.0},
    "grpo": {"weight": "group", "divide_by_deviation": True, "kl_placement": "loss"},
    "rloo": {"weight": "leave-one-out"},
}
"""What each method is to the one loop. Whitening is off, and the optimum of E[r] − β KL is where PPO and RLOO stand still."""
RANKED = {"dpo": 2, "ranked-dpo": 4}
"""How many answers a ranking has."""
ANSWERS = 16
"""K of the online methods."""
UNSEEN = 0.25
"""Share of the first tokens that answers may begin with, with which no answer of restricted data does."""


@dataclass(frozen=True)
class Effort:
    """How long each part is trained on one task."""

    online: OnlineSteps
    known: Steps
    """DPO with the true reward."""
    policy: Steps
    """DPO on sampled preferences."""
    reward: Steps
    """A reward model on sampled preferences."""

    def scaled(self, share: float) -> Effort:
        """The same with a share of the updates."""
        return Effort(*(getattr(self, part.name).scaled(share) for part in fields(self)))


EFFORTS: dict[str, Effort] = {
    "table": Effort(
        online=OnlineSteps(400, 1, 3e-2, 3e-2),
        known=Steps(400, 64, 2e-2),
        policy=Steps(400, 64, 1e-2),
        reward=Steps(400, 64, 2e-3),
    ),
    "language": Effort(
        online=OnlineSteps(600, 4, 1e-3, 3e-3),
        known=Steps(500, 128, 2e-3),
        policy=Steps(400, 64, 1e-3),
        reward=Steps(400, 64, 1e-3),
    ),
}


@dataclass(frozen=True)
class Run:
    """What is run."""

    task: str
    method: str
    beta: float
    seed: int
    preferences: int | None = None
    """N, sampled rankings that the reward is learned from; None where the reward is known."""
    restricted: bool = False
    """Whether the preferences leave some answers out (:func:`unseen_answers`)."""
    change: str | None = None
    """What is unlike the method's own settings, in words."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The same as fields of :class:`~surefoot.alignment.rlhf.configuration.PPOConfiguration`."""
    effort: float = 1.0
    """Share of the updates that are otherwise made."""
    measures: int = 0
    """How often, besides at the end, the policy is measured while an online method runs."""


@dataclass(frozen=True, eq=False)
class RewardModel:
    """A trained reward model, as one process hands it to another."""

    weights: dict[str, np.ndarray]
    scores: Float[np.ndarray, "X Y"]
    """Of all answers."""
    seconds: float


def unseen_answers(language: LanguageTask) -> Bool[np.ndarray, " Y"]:
    """Answers that restricted preferences never show: those that begin with one of the last quarter of the tokens."""
    first = language.answers[:, 0]
    return first >= round((1 - UNSEEN) * (1 + first.max()))


def draw_preferences(language: LanguageTask, run: Run, *, answers: int) -> Rankings:
    """The run's N rankings of K answers: the same for every method, β and change."""
    assert run.preferences is not None
    generator = np.random.default_rng([run.seed, run.preferences, answers])
    if not run.restricted:
        return sample_rankings(language.task, count=run.preferences, answers=answers, generator=generator)
    unseen, kept = unseen_answers(language), list[Rankings]()
    while sum(len(part.prompts) for part in kept) < run.preferences:
        drawn = sample_rankings(language.task, count=run.preferences, answers=answers, generator=generator)
        seen = ~unseen[drawn.answers].any(axis=-1)
        kept.append(Rankings(drawn.prompts[seen], drawn.answers[seen], drawn.weights[seen]))
    prompts, chosen = (np.concatenate(x)[: run.preferences] for x in zip(*((p.prompts, p.answers) for p in kept), strict=True))
    return Rankings(prompts, chosen, np.full(run.preferences, 1 / run.preferences))


def train_reward_model(run: Run) -> RewardModel:
    """Fit a transformer's scores to the run's pairs; β and method do not matter to it."""
    torch.set_num_threads(1)
    language, _ = make_task(run.task)
    rankings = draw_preferences(language, run, answers=2)
    began = time.perf_counter()
    likelihood = fit_reward_model(language, rankings, steps=EFFORTS[run.task].reward, seed=run.seed)
    seconds = time.perf_counter() - began
    weights = {name: tensor.numpy() for name, tensor in likelihood.model.state_dict().items()}
    return RewardModel(weights, all_scores(likelihood, language), seconds)


def online_settings(run: Run, language: LanguageTask) -> PPOConfiguration:
    """What the run's online method is to the one loop."""
    common = {"answers_per_prompt": ANSWERS, "update_epochs": 1, "longest_answer": language.answers.shape[1]}
    return PPOConfiguration(reward="known to the loop", beta=run.beta, **(common | ONLINE[run.method] | run.settings))


def carry_out(run: Run, reward_model: RewardModel | None = None) -> dict[str, Any]:
    """Run it, in one thread.

    Args:
        run: what.
        reward_model: of the same preferences, for an online method that learns from them.

    Returns:
        a row of the report: what was run, and ``reward`` E_π[r], ``kl_reference`` KL(π‖π_ref), ``kl_optimum`` KL(π‖π*) and its
        ``share`` of KL(π_ref‖π*), all exact; ``samples``, answers that were drawn and scored or compared, and ``seconds`` of training,
        both with those of the reward model, ``reward_seconds`` of the reward model alone; ``peak_mb``, the most that the process held,
        and ``state_mb``, what of it are weights, gradients and moments. Where the reward was learned, ``kl_learned_optimum`` is the
        distance from the optimum of the learned one, which is what an online method aims at. ``unseen`` is the probability of
        answers that the preferences left out, ``trace`` the measures on the way.

    Raises:
        ValueError: an online method's reward model is missing, or is not one of preferences.
    """
    if run.method in ONLINE and (run.preferences is None) != (reward_model is None):
        raise ValueError(f"{run.method} learns from a reward model where there are preferences, and only there")
    torch.set_num_threads(1)
    language, model = make_task(run.task)
    effort = EFFORTS[run.task].scaled(run.effort)
    likelihood = Likelihood(model)
    rankings = RANKED.get(run.method)
    drawn = None if run.preferences is None else draw_preferences(language, run, answers=rankings or 2)
    trace = list[dict[str, float]]()
    looking = 0.0
    began = time.perf_counter()
    if rankings is not None and drawn is not None:
        fit_policy(language, likelihood, drawn, beta=run.beta, steps=effort.policy, seed=run.seed)
        samples = drawn.answers.size
    elif rankings is not None:
        samples = fit_to_reward(language, likelihood, answers=rankings, beta=run.beta, steps=effort.known, seed=run.seed)
    else:
        reward: RewardSource = TrueRewards(language)
        if reward_model is not None:
            scorer = scoring_model(language)
            scorer.load_state_dict({name: torch.from_numpy(array) for name, array in reward_model.weights.items()})
            reward = ScoredRewards(Likelihood(scorer))
        settings = online_settings(run, language)

        def look(iteration: int, metrics: dict[str, float]) -> None:
            nonlocal looking
            if run.measures and iteration % max(1, effort.online.iterations // run.measures) == 0:
                before = time.perf_counter()
                trace.append({"iteration": iteration, **_measures(run, language, model, reward_model)})
                looking += time.perf_counter() - before

        samples = learn_online(language, likelihood, reward, settings=settings, steps=effort.online, seed=run.seed, tell=look)
        samples += 0 if drawn is None else drawn.answers.size
    seconds = time.perf_counter() - began - looking
    peak = peak_megabytes()
    reward_seconds = 0.0 if reward_model is None else reward_model.seconds
    return {
        "task": run.task,
        "method": run.method,
        "beta": run.beta,
        "seed": run.seed,
        "rewards": "known" if run.preferences is None else "learned",
        "preferences": run.preferences,
        "restricted": run.restricted,
        "change": run.change,
        **_measures(run, language, model, reward_model),
        "samples": int(samples),
        "seconds": round(seconds + reward_seconds, 3),
        "reward_seconds": round(reward_seconds, 3),
        "peak_mb": round(peak, 1),
        "state_mb": round(_state_bytes(run, language, model) / 2**20, 3),
        "trace": trace,
    }


def _measures(run: Run, language: LanguageTask, model: Any, reward_model: RewardModel | None) -> dict[str, float]:
    """What is known exactly of the policy as it is."""
    task = language.task
    policy = exact_log_probabilities(model, language.prompts, length=language.answers.shape[1])
    measured = measure_policy(task, policy, beta=run.beta)
    start = mean_kl_divergence(task.reference_log_probabilities, optimal_policy(task, beta=run.beta).log_probabilities)
    probabilities = np.exp(policy)
    numbers = {
        "reward": measured.reward,
        "kl_reference": measured.kl_to_reference,
        "kl_optimum": measured.kl_to_optimum,
        "share": measured.kl_to_optimum / start,
    }
    if run.restricted:
        numbers["unseen"] = float(probabilities[:, unseen_answers(language)].sum(axis=-1).mean())
    if reward_model is not None:
        learned = PreferenceTask(task.reference_log_probabilities, reward_model.scores)
        numbers["kl_learned_optimum"] = measure_policy(learned, policy, beta=run.beta).kl_to_optimum
        numbers["learned_reward"] = float((probabilities * _standardized(reward_model.scores, task)).sum(axis=-1).mean())
    return numbers


def _standardized(scores: Float[np.ndarray, "X Y"], task: PreferenceTask) -> Float[np.ndarray, "X Y"]:
    """With mean 0 and standard deviation 1 under π_ref, as true rewards have; 0 where a model says the same of all answers."""
    weights = np.exp(task.reference_log_probabilities)
    centred = scores - (weights * scores).sum(axis=-1, keepdims=True)
    deviation = np.sqrt((weights * centred**2).sum(axis=-1, keepdims=True))
    return centred / np.where(deviation > 0, deviation, 1)


def _state_bytes(run: Run, language: LanguageTask, model: Any) -> int:
    """Weights of all models that training holds and, of those that are trained, gradients and Adam's two moments."""

    def size(of: Any) -> int:
        return sum(parameter.numel() * parameter.element_size() for parameter in of.parameters())

    policy, scorer = size(model), size(scoring_model(language))
    if run.method in RANKED:
        return 4 * policy  # the reference's log-probabilities are kept, and it is not
    reward = 0 if run.preferences is None else scorer
    critic = 4 * size(critic_of(model)) if run.method == "ppo" else 0
    return 5 * policy + critic + reward
