"""Distributions over actions: immutable, built from a network's outputs, sampled from noise that the caller draws.

Taking the noise as an argument makes sampling a pure function: every draw has an explicit key or generator, and the
same noise gives the same action in every library. Nothing is cached on an instance: under JAX, what was computed inside one
traced function must not turn up in another. Each class names the noise it wants in ``noise``; its shape is that
of the parameters.

All four share one interface: ``sample(noise)``, ``mode()``, ``log_probability(actions)``, ``entropy()`` and
``kl_divergence(other)`` = KL(self‖other). The last three are in nats, one number per distribution in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from jaxtyping import Float, Int, Num

from surefoot.equations._library import Array, Flags, align, flag, log_sigmoid, log_sum_exp, namespace, positions

__all__ = ["Bernoulli", "Categorical", "DiagonalGaussian", "Distribution", "MultiCategorical"]

LOG_TWO_PI = 1.8378770664093453
IMPOSSIBLE = -1e9  # a logit, not −inf: 0 · (−1e9) is 0 where 0 · (−inf) is NaN


class Distribution(Protocol):
    """What every distribution over actions offers."""

    noise: ClassVar[str]

    def sample(self, noise: Array) -> Array:
        """An action, given the noise that the class names."""
        ...

    def mode(self) -> Array:
        """The most probable action."""
        ...

    def log_probability(self, actions: Array) -> Array:
        """Log p(actions), in nats."""
        ...

    def entropy(self) -> Array:
        """The entropy, in nats."""
        ...


@dataclass(frozen=True)
class Categorical:
    """p(k) = exp z_k / Σ_j exp z_j over k = 0 … n−1, actions of zero probability masked out.

    Args:
        logits: z, shape (…, n).
        mask: true, or 1, where an action is allowed, shape (…, n); all by default. A masked logit reaches neither a value
            nor a gradient. At least one action must be allowed: where none is, the distribution is uniform over all.

    Source: the Gumbel-max form of sampling: Gumbel, Statistical Theory of Extreme Values (1954).
    """

    logits: Float[Array, "*batch n"]
    mask: Flags[Array, "*batch n"] | None = None
    noise: ClassVar[str] = "gumbel"

    @property
    def log_probabilities(self) -> Float[Array, "*batch n"]:
        """Log p(k) for every k, in nats; about −1e9 where masked."""
        logits = self.logits
        if self.mask is not None:
            xp = namespace(logits)
            logits = xp.where(flag("mask", self.mask), logits, xp.zeros_like(logits) + IMPOSSIBLE)
        return logits - log_sum_exp(logits)

    def sample(self, noise: Float[Array, "*batch n"]) -> Int[Array, "*batch"]:
        """argmax_k (log p(k) + noise_k), distributed as p where ``noise`` is standard Gumbel, −log(−log u)."""
        return namespace(noise).argmax(self.log_probabilities + noise, axis=-1)

    def mode(self) -> Int[Array, "*batch"]:
        """The most probable action, the first of them where several are."""
        return namespace(self.logits).argmax(self.log_probabilities, axis=-1)

    def log_probability(self, actions: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
        """Log p(action), in nats."""
        xp = namespace(self.logits)
        # Selecting by comparison: a gather's gradient is a scatter, which is slow on CPUs.
        chosen = align(positions(self.logits), self.logits) == actions[..., None]
        return xp.sum(xp.where(chosen, self.log_probabilities, xp.zeros_like(self.logits)), axis=-1)

    def entropy(self) -> Float[Array, "*batch"]:
        """H(p) = −Σ p log p, in nats."""
        xp = namespace(self.logits)
        return -xp.sum(xp.exp(self.log_probabilities) * self.log_probabilities, axis=-1)

    def kl_divergence(self, other: Categorical) -> Float[Array, "*batch"]:
        """KL(self‖other) = Σ p (log p − log q), in nats."""
        xp = namespace(self.logits)
        difference = self.log_probabilities - other.log_probabilities
        return xp.sum(xp.exp(self.log_probabilities) * difference, axis=-1)


@dataclass(frozen=True)
class DiagonalGaussian:
    """Independent normal components N(μ_i, σ_i²), i = 1 … d; log-probabilities are summed over components, never
    averaged.

    Args:
        mean: μ, shape (…, d).
        log_std: log σ, shape (d,) where it does not depend on the state (the field's default), or (…, d).
    """

    mean: Float[Array, "*batch d"]
    log_std: Float[Array, "*#batch d"]
    noise: ClassVar[str] = "normal"

    @property
    def _log_std(self) -> Array:
        return align(self.log_std, self.mean)

    def sample(self, noise: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        """μ + σ · noise, for standard normal ``noise``."""
        return self.mean + namespace(noise).exp(self._log_std) * noise

    def mode(self) -> Float[Array, "*batch d"]:
        """μ."""
        return self.mean

    def log_probability(self, actions: Float[Array, "*batch d"]) -> Float[Array, "*batch"]:
        """Σ_i −½((a_i − μ_i)/σ_i)² − log σ_i − ½ log 2π: the log of a density, in nats."""
        xp = namespace(self.mean)
        standardized = (actions - self.mean) * xp.exp(-self._log_std)
        return -xp.sum(0.5 * standardized**2 + self._log_std + 0.5 * LOG_TWO_PI, axis=-1)

    def entropy(self) -> Float[Array, "*batch"]:
        """Σ_i log σ_i + ½ log 2πe: differential entropy, in nats, possibly negative."""
        return namespace(self.mean).sum(0 * self.mean + self._log_std + 0.5 * (LOG_TWO_PI + 1), axis=-1)

    def kl_divergence(self, other: DiagonalGaussian) -> Float[Array, "*batch"]:
        """KL(self‖other) = Σ_i log σ′_i/σ_i + (σ_i² + (μ_i − μ′_i)²)/(2σ′_i²) − ½, in nats."""
        xp = namespace(self.mean)
        precision = xp.exp(-2 * other._log_std)
        spread = xp.exp(2 * self._log_std) + (self.mean - other.mean) ** 2
        return xp.sum(other._log_std - self._log_std + 0.5 * spread * precision - 0.5, axis=-1)


@dataclass(frozen=True)
class MultiCategorical:
    """Independent categorical parts with n_1, n_2, … choices (MultiDiscrete); with one part it is
    :class:`Categorical`.

    Args:
        logits: the parts' logits side by side, shape (…, Σ n_i).
        sizes: n_1, n_2, …
        mask: true, or 1, where a choice is allowed, shape (…, Σ n_i); all by default.

    Raises:
        ValueError: the sizes do not add up to the number of logits.
    """

    logits: Float[Array, "*batch n"]
    sizes: tuple[int, ...]
    mask: Flags[Array, "*batch n"] | None = None
    noise: ClassVar[str] = "gumbel"

    def __post_init__(self) -> None:
        if sum(self.sizes) != self.logits.shape[-1]:
            raise ValueError(f"sizes {self.sizes} add up to {sum(self.sizes)}, but there are {self.logits.shape[-1]} logits")

    def _split(self, x: Array) -> list[Array]:
        starts = [sum(self.sizes[:i]) for i in range(len(self.sizes))]
        return [x[..., start : start + size] for start, size in zip(starts, self.sizes, strict=True)]

    @property
    def parts(self) -> list[Categorical]:
        """One :class:`Categorical` per part."""
        masks = [None] * len(self.sizes) if self.mask is None else self._split(self.mask)
        return [Categorical(logits, mask) for logits, mask in zip(self._split(self.logits), masks, strict=True)]

    def sample(self, noise: Float[Array, "*batch n"]) -> Int[Array, "*batch parts"]:
        """One choice per part, from standard Gumbel ``noise``."""
        draws = [part.sample(piece) for part, piece in zip(self.parts, self._split(noise), strict=True)]
        return namespace(noise).stack(draws, axis=-1)

    def mode(self) -> Int[Array, "*batch parts"]:
        """The most probable choice of each part."""
        return namespace(self.logits).stack([part.mode() for part in self.parts], axis=-1)

    def log_probability(self, actions: Int[Array, "*batch parts"]) -> Float[Array, "*batch"]:
        """Σ over parts of log p_i(action_i), in nats."""
        return sum(part.log_probability(actions[..., i]) for i, part in enumerate(self.parts))

    def entropy(self) -> Float[Array, "*batch"]:
        """Σ over parts of H(p_i), in nats."""
        return sum(part.entropy() for part in self.parts)

    def kl_divergence(self, other: MultiCategorical) -> Float[Array, "*batch"]:
        """KL(self‖other), the sum over parts, in nats."""
        return sum(part.kl_divergence(against) for part, against in zip(self.parts, other.parts, strict=True))


@dataclass(frozen=True)
class Bernoulli:
    """Independent bits with p_i(1) = σ(z_i), i = 1 … d (MultiBinary).

    Args:
        logits: z, shape (…, d).
    """

    logits: Float[Array, "*batch d"]
    noise: ClassVar[str] = "logistic"

    def sample(self, noise: Float[Array, "*batch d"]) -> Int[Array, "*batch d"]:
        """1 where z_i + noise_i > 0, distributed as p where ``noise`` is standard logistic, log u − log(1 − u)."""
        xp = namespace(noise)
        return xp.astype(self.logits + noise > 0, xp.int32)

    def mode(self) -> Int[Array, "*batch d"]:
        """1 where p_i(1) > ½."""
        xp = namespace(self.logits)
        return xp.astype(self.logits > 0, xp.int32)

    def log_probability(self, actions: Num[Array, "*batch d"]) -> Float[Array, "*batch"]:
        """Σ_i log p_i(action_i), in nats."""
        xp = namespace(self.logits)
        return xp.sum(log_sigmoid(xp.where(actions > 0, self.logits, -self.logits)), axis=-1)

    def entropy(self) -> Float[Array, "*batch"]:
        """Σ_i H(p_i), in nats."""
        xp = namespace(self.logits)
        ones, zeros = log_sigmoid(self.logits), log_sigmoid(-self.logits)
        return -xp.sum(xp.exp(ones) * ones + xp.exp(zeros) * zeros, axis=-1)

    def kl_divergence(self, other: Bernoulli) -> Float[Array, "*batch"]:
        """KL(self‖other), the sum over bits, in nats."""
        xp = namespace(self.logits)
        ones, zeros = log_sigmoid(self.logits), log_sigmoid(-self.logits)
        gap_ones, gap_zeros = ones - log_sigmoid(other.logits), zeros - log_sigmoid(-other.logits)
        return xp.sum(xp.exp(ones) * gap_ones + xp.exp(zeros) * gap_zeros, axis=-1)
