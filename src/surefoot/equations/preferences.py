"""Learning from preferences: rewards, losses of pairs and of rankings, and the policy that all of them aim at.

A preference is a statement about scores r. For a reward model they are its outputs, for DPO the implicit rewards
β log π/π_ref (:func:`implicit_rewards`): the losses are the same functions. No loss takes a mean: reduce with
:func:`surefoot.equations.masked_sum`. The probability of an answer is that of all its tokens: log-probabilities are sums over
tokens, unless a docstring says otherwise.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float

from surefoot.equations._library import Array, Flags, align, flag, log_sigmoid, log_sum_exp, namespace, positions, stop_gradient
from surefoot.equations._rows import harmless
from surefoot.equations.distributions import IMPOSSIBLE

__all__ = [
    "ClosedFormOptimum",
    "bradley_terry_loss",
    "closed_form_optimum",
    "implicit_rewards",
    "ipo_loss",
    "plackett_luce_loss",
    "score_centering_loss",
    "supervised_loss",
]


def _require_positive(beta: float | Array) -> None:
    if isinstance(beta, int | float) and not beta > 0:
        raise ValueError(f"beta must be positive, but is {beta}")


def implicit_rewards(
    *,
    log_probabilities: Float[Array, "*batch"],
    reference_log_probabilities: Float[Array, "*batch"],
    beta: float | Array,
) -> Float[Array, "*batch"]:
    """r̂(x,y) = β (log π(y|x) − log π_ref(y|x)): the reward for which π is the closed-form optimum.

    It is known up to β log Z(x), which no comparison of two answers to one prompt depends on.

    Args:
        log_probabilities: log π(y|x), in nats, one per answer.
        reference_log_probabilities: log π_ref(y|x), in nats, constants to the gradient.
        beta: β > 0, reward units per nat.

    Returns:
        one reward per answer, in reward units.

    Raises:
        ValueError: β is not positive.

    Source: Rafailov et al., Direct Preference Optimization (2023), equation 5.
    """
    _require_positive(beta)
    return beta * (log_probabilities - stop_gradient(reference_log_probabilities))


def bradley_terry_loss(
    *,
    better: Float[Array, "*batch"],
    worse: Float[Array, "*batch"],
    margin: float | Float[Array, "*batch"] = 0.0,
    smoothing: float = 0.0,
) -> Float[Array, "*batch"]:
    """−(1−ε) log σ(r_w − r_l − m) − ε log σ(r_l − r_w − m): the loss of a pair, whose label is wrong with chance ε.

    With ε = 0 it is −log σ(r_w − r_l − m), to the bit. Of scores it is the loss of a reward model; of implicit rewards it
    is DPO's, and with ε > 0 that of conservative DPO, which is least where σ(r_w − r_l) = 1 − ε and not at infinity.

    Args:
        better: r_w, score of the preferred answer, in reward units.
        worse: r_l, score of the other one.
        margin: m ≥ 0, by how much r_w ought to exceed r_l, in reward units.
        smoothing: ε in [0, 0.5], the probability that a label is the wrong way round.

    Returns:
        one term per pair, in nats, never negative where m ≥ 0.

    Raises:
        ValueError: ε lies outside [0, 0.5].

    Source: Bradley and Terry, Rank Analysis of Incomplete Block Designs (1952); margin: Touvron et al., Llama 2 (2023),
        equation 2; DPO: Rafailov et al. (2023), equation 7; ε: Mitchell, A Note on DPO with Noisy Preferences (2023),
        equation 3. With both, the expectation over the label of the loss with a margin.
    """
    if not 0 <= smoothing <= 0.5:
        raise ValueError(f"smoothing must lie between 0 and 0.5, but is {smoothing}")
    difference = better - worse
    return -(1 - smoothing) * log_sigmoid(difference - margin) - smoothing * log_sigmoid(-difference - margin)


def ipo_loss(
    *,
    better_log_ratios: Float[Array, "*batch"],
    worse_log_ratios: Float[Array, "*batch"],
    beta: float | Array,
) -> Float[Array, "*batch"]:
    """(h − 1/(2β))² with h = log π(y_w)/π_ref(y_w) − log π(y_l)/π_ref(y_l): identity preference optimisation.

    The difference of log-ratios is led to 1/(2β) and no further, where a pair without noise drives DPO's to infinity.

    In the paper h is of whole answers: log-probabilities are **sums** over tokens. Its authors' later practice, and TRL's,
    is to pass the **mean** per token, which leads to 1/(2β) per token instead; the β of one is not the β of the other. This
    function takes what it is given.

    Args:
        better_log_ratios: log π(y_w|x)/π_ref(y_w|x) of the preferred answer, in nats; :func:`implicit_rewards` with β = 1.
        worse_log_ratios: the same of the other one.
        beta: β > 0, the paper's τ: weight of KL(π‖π_ref) against preferences, per nat.

    Returns:
        one term per pair, in nats².

    Raises:
        ValueError: β is not positive.

    Source: Azar et al., A General Theoretical Paradigm to Understand Learning from Human Preferences (2023), equation 17.
    """
    _require_positive(beta)
    return (better_log_ratios - worse_log_ratios - 1 / (2 * beta)) ** 2


def plackett_luce_loss(
    *,
    scores: Float[Array, "*batch K"],
    valid: Flags[Array, "*batch K"] | None = None,
    top: int | None = None,
) -> Float[Array, "*batch"]:
    """−log Π_{k≤n} exp r_k / Σ_{j≥k} exp r_j: the loss of K answers, given in ranked order.

    The model draws the best answer with probability ∝ exp r, then the next best from the rest, and so on. Each factor is the
    chance that one answer beats all the rest, σ(r_k − log Σ_{j>k} exp r_j), and is computed so: a ranking of two is
    :func:`bradley_terry_loss`. Of scores it is the loss of a reward model; of implicit rewards it is DPO's for rankings.

    Args:
        scores: r_1 … r_K, **best answer first**, in reward units.
        valid: which slots hold an answer, the others being padding behind a row's last; all by default. What a padded slot
            holds, NaN included, reaches neither a value nor a gradient.
        top: n ≥ 1, how many leading places count: the order of the answers behind them is not asked. A row of n answers or
            fewer counts whole. All by default.

    Returns:
        one term per ranking, in nats, never negative; log K! where all scores are equal.

    Raises:
        ValueError: n is below 1.

    Source: Luce, Individual Choice Behavior (1959); Plackett, The Analysis of Permutations (1975); as a loss: Xia et al.,
        Listwise Approach to Learning to Rank (2008); of the leading places: Cao et al., Learning to Rank: From Pairwise
        Approach to Listwise Approach (2007); of implicit rewards: Rafailov et al. (2023), equation 20.
    """
    if top is not None and top < 1:
        raise ValueError(f"top must be at least 1, but is {top}")
    xp, valid = namespace(scores), flag("valid", valid)
    order = positions(scores)
    places = scores.shape[-1] if top is None else min(top, scores.shape[-1])
    # Differences first: what all scores have in common costs no digits.
    leads = scores[..., None, :] - scores[..., :places, None]
    behind = align(order[None, :] > order[:places, None], leads)
    if valid is not None:
        behind = behind & valid[..., None, :]  # nothing valid stands behind padding, whose place so costs log 1
    rest = log_sum_exp(xp.where(behind, leads, xp.zeros_like(leads) + IMPOSSIBLE))[..., 0]
    return -xp.sum(log_sigmoid(-rest), axis=-1)


def supervised_loss(*, log_probabilities: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """−log π(y|x): the negative log-likelihood.

    Alone it is supervised fine-tuning. Added to DPO's loss for the preferred answer it stops that answer's probability
    from falling, which the difference that DPO looks at allows.

    Args:
        log_probabilities: log π, in nats: of tokens, of answers, or the mean over an answer's tokens, as its weight in a sum
            demands.

    Returns:
        one term per log-probability, in nats.

    Source: Ouyang et al., Training Language Models to Follow Instructions with Human Feedback (2022), section 3.5; beside
        DPO, with the mean over tokens: Pang et al., Iterative Reasoning Preference Optimization (2024), section 2.
    """
    return -log_probabilities


def score_centering_loss(
    *, scores: Float[Array, "*batch K"], valid: Flags[Array, "*batch K"] | None = None
) -> Float[Array, "*batch"]:
    """(2/K Σ_k r_k)², which is (r_w + r_l)² for a pair: keeps a reward model's scores around zero.

    Preferences determine differences of scores alone. This term settles the rest, without touching a difference: scores
    that are all off by c cost 4c², whatever K is.

    Args:
        scores: r_1 … r_K of the answers to one prompt, in reward units, in any order.
        valid: which slots hold an answer; all by default. What the others hold reaches neither a value nor a gradient.

    Returns:
        one term per prompt, in squared reward units; 0 where no slot is valid.

    Source: Eisenstein et al., Helping or Herding? Reward Model Ensembles Mitigate but do not Eliminate Reward Hacking (2023),
        equation 2, for K = 2.
    """
    xp, valid = namespace(scores), flag("valid", valid)
    number = xp.sum(harmless(xp.ones_like(scores), valid), axis=-1)
    total = xp.sum(harmless(scores, valid), axis=-1)
    return (2 * total / xp.where(number > 0, number, number + 1)) ** 2


class ClosedFormOptimum(NamedTuple):
    """What maximises E_π[r] − β KL(π‖π_ref), over answers that are all known."""

    log_probabilities: Array
    """Log π*(y|x), in nats, one per answer."""
    log_partition: Array
    """Log Z(x), in nats, one per prompt. β log Z(x) is the largest value of the objective."""


def closed_form_optimum(
    *,
    reference_log_probabilities: Float[Array, "*batch answers"],
    rewards: Float[Array, "*batch answers"],
    beta: float | Array,
) -> ClosedFormOptimum:
    """π*(y|x) = π_ref(y|x) exp(r(x,y)/β) / Z(x), with Z(x) = Σ_y π_ref(y|x) exp(r(x,y)/β).

    The sum is over **all answers**, not over the vocabulary: with V tokens and answers of length T it has V^T terms, which is
    why π* is known for enumerable tasks only, and why DPO, in which Z(x) cancels, is worth having.

    Args:
        reference_log_probabilities: log π_ref(y|x) of every answer, in nats; they must add up to 1 as probabilities.
        rewards: r(x,y) of every answer, in reward units.
        beta: β > 0, reward units per nat.

    Returns:
        log π* and log Z.

    Raises:
        ValueError: β is not positive.

    Source: Rafailov et al. (2023), equation 4; before them Peters, Mülling and Altün, Relative Entropy Policy Search (2010).
    """
    _require_positive(beta)
    tilted = reference_log_probabilities + rewards / beta
    log_partition = log_sum_exp(tilted)
    return ClosedFormOptimum(tilted - log_partition, log_partition[..., 0])
