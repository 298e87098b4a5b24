"""log π_ref of the answers: evaluated once and kept, or live in every update."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

import numpy as np
import platformdirs
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.numpy import load, save

from surefoot.alignment.data.examples import Example
from surefoot.alignment.likelihood.distribution import PLAIN, AnswerDistribution
from surefoot.alignment.likelihood.likelihood import CompletionLogProbabilities, Likelihood
from surefoot.alignment.likelihood.packing import Group
from surefoot.alignment.methods.method import groups_of
from surefoot.alignment.models.adapters import adds_nothing
from surefoot.errors import RunError, UsageError
from surefoot.runs.directory import write_whole

FORMAT = "surefoot reference log-probabilities 1"


class Reference(Protocol):
    """The model that a policy is compared with."""

    def log_probabilities(self, examples: Sequence[Example]) -> Float[torch.Tensor, " N"]:
        """Log π_ref(y|x) of every answer, in nats, a constant to the gradient."""
        ...


class LiveReference:
    """Evaluates the reference when asked.

    Args:
        likelihood: of a frozen copy, or of the policy itself.
        switched_off: where it is the policy itself, switches its adapter off.
    """

    def __init__(
        self, likelihood: Likelihood, switched_off: Callable[[], AbstractContextManager[object]] = nullcontext
    ) -> None:
        self._likelihood, self._switched_off = likelihood, switched_off

    def log_probabilities(self, examples: Sequence[Example]) -> Float[torch.Tensor, " N"]:
        """Log π_ref(y|x) of every answer, computed now."""
        return self.completions(groups_of(examples)).sums()

    def equals(self, policy: Likelihood) -> bool:
        """Whether the policy's weights are the reference's, value by value; where it is the policy itself, whether the adapter adds 0."""
        if self._likelihood is policy:
            return adds_nothing(policy.model)
        pairs = zip(policy.model.parameters(), self._likelihood.model.parameters(), strict=True)
        return all(torch.equal(own, other) for own, other in pairs)

    def completions(self, groups: Sequence[Group], *, under: AnswerDistribution = PLAIN) -> CompletionLogProbabilities:
        """Log π_ref of every token, computed now."""
        model = self._likelihood.model
        was_training = model.training
        model.eval()  # the reference has no dropout, whatever the policy is trained with
        try:
            with torch.no_grad(), self._switched_off():
                return self._likelihood.completions(groups, under=under)
        finally:
            model.train(was_training)


class KeptReference:
    """Looks up what was evaluated before.

    Args:
        values: log π_ref of each example's answers.
        examples: the same examples.
        device: where the policy is.
    """

    def __init__(self, values: Sequence[np.ndarray], examples: Sequence[Example], device: torch.device) -> None:
        self._values, self._device = dict(zip(examples, values, strict=True)), device

    def log_probabilities(self, examples: Sequence[Example]) -> Float[torch.Tensor, " N"]:
        """Log π_ref(y|x) of every answer, as it was kept."""
        return torch.from_numpy(np.concatenate([self._values[example] for example in examples])).to(self._device)


def evaluate_reference(
    live: LiveReference, examples: Sequence[Example], *, batch_size: int, tell: Callable[[int], None]
) -> list[np.ndarray]:
    """Log π_ref of each example's answers, in nats, float32.

    Args:
        live: the reference.
        examples: what it is evaluated on.
        batch_size: prompts at a time.
        tell: told how many examples are done.
    """
    values: list[np.ndarray] = []
    for begin in range(0, len(examples), batch_size):
        batch = examples[begin : begin + batch_size]
        flat = live.log_probabilities(batch).cpu().numpy()
        ends = np.cumsum([len(e.completions) for e in batch])
        values += np.split(flat, ends[:-1])
        tell(len(values))
    return values


class ReferenceCache:
    """Reference log-probabilities on disk, found by everything that they depend on.

    The file's name is a digest of the weights, the data and the settings; the file repeats it, with a checksum of its numbers.
    What does not fit its own name is refused: such a file was renamed or altered.

    Args:
        folder: where; None for the user's cache.
        depends_on: everything that the numbers depend on, as JSON can hold it.
    """

    def __init__(self, folder: Path | None, depends_on: dict[str, object]) -> None:
        self.key = hashlib.sha256(json.dumps([FORMAT, depends_on], sort_keys=True).encode()).hexdigest()
        folder = folder or Path(platformdirs.user_cache_dir("surefoot")) / "reference"
        self.path = folder / f"{self.key[:32]}.safetensors"

    def read(self, examples: Sequence[Example]) -> list[np.ndarray] | None:
        """What was kept, or None.

        Raises:
            UsageError: the file is damaged, or holds another model's or other data's numbers.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UsageError(
                f"{self.path} cannot be read: {error.strerror}; delete it, or choose another --reference-cache"
            ) from error
        remedy = "delete it, and they are computed again"
        try:
            tensors = load(content)
            flat, counts, key, checksum = (tensors[name] for name in ("log_probabilities", "counts", "key", "checksum"))
        except (SafetensorError, KeyError, ValueError) as error:
            raise UsageError(f"{self.path} does not hold reference log-probabilities ({error}); {remedy}") from error
        if bytes(key).decode(errors="replace") != self.key:
            raise UsageError(f"{self.path} holds the log-probabilities of another model or other data; {remedy}")
        wanted = [len(e.completions) for e in examples]
        if bytes(checksum) != hashlib.sha256(flat.tobytes()).digest() or counts.tolist() != wanted:
            raise UsageError(f"{self.path} is damaged: its numbers do not fit its checksum; {remedy}")
        return np.split(flat, np.cumsum(wanted)[:-1])

    def write(self, values: Sequence[np.ndarray]) -> str | None:
        """Keep them; a folder that cannot be written costs only the next run's time, and is said."""
        flat = np.concatenate(values).astype(np.float32)
        tensors: dict[str, np.ndarray] = {
            "log_probabilities": flat,
            "counts": np.array([len(v) for v in values], np.int64),
            "key": np.frombuffer(self.key.encode(), np.uint8),
            "checksum": np.frombuffer(hashlib.sha256(flat.tobytes()).digest(), np.uint8),
        }
        try:
            write_whole(self.path, save(tensors))
        except RunError as error:
            return f"reference log-probabilities are not kept for the next run: {error}"
        return None
