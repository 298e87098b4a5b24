"""DPO where nothing but the loss is in question: a table of logits, all rankings at once, minimised to the end.

With a logit of its own for every answer a policy can be anything, and the expected loss over all rankings has one minimum,
π*. What a fit to sampled rankings lacks of it is what the sample does not say.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from surefoot.alignment.exact.rankings import Rankings, pool
from surefoot.alignment.exact.tasks import PreferenceTask, optimal_policy
from surefoot.equations.preferences import bradley_terry_loss, implicit_rewards, plackett_luce_loss

__all__ = ["TableFit", "expected_ranking_loss", "fit_table", "limiting_distance", "preference_loss"]


def preference_loss(
    log_probabilities: Float[torch.Tensor, "X Y"], task: PreferenceTask, rankings: Rankings, *, beta: float
) -> Float[torch.Tensor, ""]:
    """Σ_n w_n L(r̂ of the answers of ranking n), r̂ = β log π/π_ref: DPO's loss for pairs, and for rankings of three or more.

    Args:
        log_probabilities: log π(y|x) of every answer, in nats.
        task: π_ref.
        rankings: with weights.
        beta: β > 0, reward units per nat.

    Returns:
        the weighted mean, in nats.
    """
    reference = torch.from_numpy(task.reference_log_probabilities).to(log_probabilities)
    rewards = implicit_rewards(log_probabilities=log_probabilities, reference_log_probabilities=reference, beta=beta)
    scores = rewards[torch.from_numpy(rankings.prompts)[:, None], torch.from_numpy(rankings.answers)]
    pairs = scores.shape[-1] == 2
    losses = bradley_terry_loss(better=scores[:, 0], worse=scores[:, 1]) if pairs else plackett_luce_loss(scores=scores)
    return torch.from_numpy(rankings.weights).to(losses) @ losses


def expected_ranking_loss(scores: Float[torch.Tensor, "N K"], rewards: Float[torch.Tensor, "N K"]) -> Float[torch.Tensor, " N"]:
    """−Σ_o P(o | r) log P(o | scores) over the K! orders o of K answers: the mean loss of a ranking of them, drawn by the rewards.

    Args:
        scores: of the answers, in any order, in reward units.
        rewards: the true ones, in reward units.

    Returns:
        in nats; least, and then the entropy of the ranking, where scores and rewards differ by a constant.
    """
    orders = torch.tensor(list(itertools.permutations(range(scores.shape[-1]))), device=scores.device)
    chances = torch.exp(-plackett_luce_loss(scores=rewards[:, orders]))
    return (chances * plackett_luce_loss(scores=scores[:, orders])).sum(dim=-1)


class TableFit(NamedTuple):
    """What minimising the loss came to."""

    log_probabilities: Float[np.ndarray, "X Y"]
    """Log π(y|x), in nats."""
    loss: float
    """In nats."""
    largest_gradient: float
    """Largest absolute derivative of the loss by a logit, in nats per unit of logit."""
    evaluations: int
    """How often the loss was computed."""


def fit_table(task: PreferenceTask, rankings: Rankings, *, beta: float, evaluations: int = 2_000) -> TableFit:
    """Minimise :func:`preference_loss` over one logit per answer, from π_ref, by L-BFGS in float64.

    The loss is convex in the logits. Rankings that leave out answers, or in which some answers lose to others without exception, have
    no minimum: the former stay where π_ref has them, relative to the mean of the others' log-ratios; the latter drift apart until the
    loss hardly changes any more.

    Args:
        task: the task.
        rankings: from :func:`surefoot.alignment.exact.rankings.all_rankings` or ``sample_rankings``.
        beta: β > 0, reward units per nat.
        evaluations: at most about as many computations of the loss.

    Returns:
        the policy, and how well it is minimised.
    """
    pooled = pool(rankings)
    logits = torch.from_numpy(task.reference_log_probabilities.copy()).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [logits],
        max_iter=evaluations,
        max_eval=evaluations,
        history_size=50,
        tolerance_grad=1e-12,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )
    count = 0

    def closure() -> torch.Tensor:
        nonlocal count
        count += 1
        optimizer.zero_grad()
        loss = preference_loss(logits.log_softmax(dim=-1), task, pooled, beta=beta)
        loss.backward()
        return loss

    optimizer.step(closure)
    loss = closure().item()
    assert logits.grad is not None
    return TableFit(
        log_probabilities=logits.detach().log_softmax(dim=-1).numpy(),
        loss=loss,
        largest_gradient=logits.grad.abs().max().item(),
        evaluations=count,
    )


def limiting_distance(task: PreferenceTask, rankings: Rankings, *, beta: float) -> float:
    """½ Σ_x tr(C_x H_x⁺)/X, the limit of N · E[KL(π_N‖π*)] for the policy π_N fitted to N sampled rankings.

    H is the Hessian of the expected loss at π*, by the logits, which is the Fisher information of one ranking; an error ε of a
    prompt's logits costs ½ εᵀ C ε with C = diag π* − π* π*ᵀ.

    Args:
        task: the task.
        rankings: from :func:`surefoot.alignment.exact.rankings.all_rankings`, at the temperature 1, at which π* is the minimum.
        beta: β > 0, reward units per nat.

    Returns:
        in nats: divided by N, what KL(π‖π*) averages to over samples of N, once N is large.

    Source: van der Vaart, Asymptotic Statistics (1998), theorem 5.23, for maximum likelihood.
    """
    optimum = optimal_policy(task, beta=beta).log_probabilities
    logits = torch.from_numpy(optimum.copy()).requires_grad_()
    loss = preference_loss(logits.log_softmax(dim=-1), task, rankings, beta=beta)
    (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
    # No ranking speaks of two prompts: one pass for an answer's row in every prompt's block.
    rows = [torch.autograd.grad(gradient[:, y].sum(), logits, retain_graph=True)[0] for y in range(task.answers)]
    information = torch.stack(rows, dim=1).numpy()
    probabilities = np.exp(optimum)
    cost = probabilities[:, :, None] * np.eye(task.answers) - probabilities[:, :, None] * probabilities[:, None, :]
    # A shift of all logits is in neither matrix: the pseudo-inverse leaves it out.
    covariance = np.linalg.pinv(information, rcond=1e-10, hermitian=True)
    return float(np.einsum("xij,xji->x", cost, covariance).mean() / 2)
