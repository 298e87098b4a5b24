"""Answers to prompts, drawn token by token, with the log-probability that each token was drawn with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float

from surefoot.alignment.learning.memory import is_lack_of_memory
from surefoot.alignment.learning.nonfinite import NotFinite
from surefoot.alignment.likelihood.distribution import AnswerDistribution
from surefoot.alignment.likelihood.likelihood import Likelihood
from surefoot.alignment.likelihood.packing import pack
from surefoot.alignment.sampling.decoding import Decoder, OwnCache, SharedPrompts, WholeSequences
from surefoot.alignment.sampling.drawing import Drawing, truncate
from surefoot.alignment.sampling.keys_and_values import without_holes
from surefoot.alignment.sampling.products import linear_layers_laid_out
from surefoot.errors import require, what_it_says

WAYS: tuple[Any, ...] = (SharedPrompts, OwnCache, WholeSequences)
DROP = 8
"""Finished answers are dropped when they are at least one in so many; moving the others costs little, but not nothing."""
TOLERANCES = {torch.float64: 1e-3, torch.float32: 1e-3}
LOW_PRECISION_TOLERANCE = 0.1
"""Largest difference of a log-probability, in nats, between a cache's and a whole forward pass that rounding explains."""


@dataclass(frozen=True, eq=False)
class Samples:
    """N = B · K answers, those to a prompt side by side, in the prompts' order."""

    answers: list[np.ndarray]
    """Ids, int32; the token that ended an answer included."""
    log_probabilities: list[np.ndarray]
    """Of each token, float32, under exactly the distribution that it was drawn from."""
    finished: Bool[np.ndarray, " N"]
    """Whether an answer was ended by a token rather than by the limit."""


class Sampler:
    """Draws answers from a model.

    Where the likelihood shares prompts, a prompt is computed once for all of its answers and keys and values are kept; elsewhere
    the model's own cache is used if its log-probabilities are those of whole sequences, and none if they are not. Finished
    answers are dropped from the batch. No global random state is read; gradients are not computed.

    Args:
        likelihood: of the model, checked (:meth:`Likelihood.check`).
        under: the distribution to draw from.
        longest: T, tokens that an answer has at most.
        top_k: draw from the k most likely tokens only, for reading; None for all.
        top_p: draw from the fewest tokens whose probabilities reach p only, for reading; None for all. The tokens left by both
            share the whole probability, and log-probabilities are those of that distribution.

    Raises:
        UsageError: the limit is below the shortest answer, or top-k or top-p leaves no token.
    """

    def __init__(
        self,
        likelihood: Likelihood,
        *,
        under: AnswerDistribution,
        longest: int,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> None:
        require(
            longest >= under.shortest,
            f"answers have at most {longest} tokens and at least {under.shortest}; give a larger limit",
        )
        require(top_k is None or top_k >= 1, f"top-k is {top_k}; give at least 1, or leave it out")
        require(top_p is None or 0 < top_p <= 1, f"top-p is {top_p}; give a number above 0 and up to 1, or leave it out")
        self._likelihood, self._under, self._longest = likelihood, under, longest
        self._top_k, self._top_p = top_k, top_p
        self._vocabulary = likelihood.head.weight.shape[0]
        self._way: Callable[..., Decoder] = SharedPrompts
        # The longest sequence, and whether prompts of different lengths, that the model's own cache has been right for.
        self._verified = (0, False)
        self.notice: str | None = None
        """A sentence on a slower way that had to be taken, and why; None where it is the fast one."""
        if not (likelihood.shared and likelihood.plain_head):
            self._way = OwnCache
            kind = likelihood.trunk.config.model_type
            self.notice = f"answers are sampled with {kind}'s own cache, and a copy of the prompt for each, which is slower"

    def state(self) -> dict[str, Any]:
        """Which way is taken, and how far it is known to be right: all that the next answers depend on beside model and noise."""
        return {"way": self._way.__name__, "verified": list(self._verified), "notice": self.notice}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state` was taken."""
        self._way = {way.__name__: way for way in WAYS}[state["way"]]
        length, uneven = state["verified"]
        self._verified, self.notice = (int(length), bool(uneven)), state["notice"]

    def sample(self, prompts: Sequence[np.ndarray], *, answers: int, noise: Float[np.ndarray, "N T"]) -> Samples:
        """K answers to each of B prompts.

        Token t of answer n is drawn by inverting the distribution function at ``noise[n, t]``, so apart from rounding it does not
        depend on the other answers, nor on their number.

        Args:
            prompts: ids; at least one token each.
            answers: K.
            noise: uniform numbers in [0, 1), float64.

        Raises:
            NotFinite: the model's probabilities are not.
        """
        count = len(prompts) * answers
        if noise.shape != (count, self._longest):
            raise ValueError(f"noise is {noise.shape}, for {count} answers of {self._longest} tokens")
        likelihood = self._likelihood
        # What is computed in inference mode is faster, but must not be kept for training, as those frequencies are.
        mode = torch.no_grad() if likelihood.positions_depend_on_batch else torch.inference_mode()
        with mode, evaluation(likelihood.model), likelihood.precision(), linear_layers_laid_out(likelihood.trunk):
            samples = self._best_way(prompts, answers, noise)
            groups = [(prompt, samples.answers[i * answers : (i + 1) * answers]) for i, prompt in enumerate(prompts)]
            packed = pack(groups, device=likelihood.device, feed_last=False)
            likelihood.count(packed, len(packed.scored_rows))
        if not all(np.isfinite(x).all() for x in samples.log_probabilities):
            raise NotFinite("the model's probabilities are not finite; its weights have diverged, and a smaller step may help")
        return samples

    def _best_way(self, prompts: Sequence[np.ndarray], answers: int, noise: np.ndarray) -> Samples:
        longest = max(len(prompt) for prompt in prompts) + self._longest
        kind = self._likelihood.trunk.config.model_type
        if self._way is not WholeSequences and longest > self._fixed_positions():
            self._whole(f"{kind} chooses rotary frequencies by the longest sequence, and this one could have {longest} tokens")
        if self._way is SharedPrompts:
            try:
                return self._run(prompts, answers, noise)[0]
            except NotImplementedError as error:
                self._whole(f"{kind} has {error}")
        if self._way is OwnCache:
            try:
                samples, plain = self._run(prompts, answers, noise)
                reason = self._difference(prompts, answers, samples, plain)
            except Exception as error:  # whatever a model's cache makes of it
                if is_lack_of_memory(error):
                    raise
                reason = what_it_says(error)
            if reason is None:
                return samples
            self._whole(f"{kind}'s own cache does not fit ({reason})")
        return self._run(prompts, answers, noise)[0]

    def _whole(self, reason: str) -> None:
        self._way = WholeSequences
        self.notice = f"answers are sampled without a cache, every token from whole sequences, which is slow: {reason}"

    def _fixed_positions(self) -> float:
        """Tokens up to which rotary frequencies do not depend on what else is in the batch."""
        if not self._likelihood.positions_depend_on_batch:
            return np.inf
        config: Any = self._likelihood.trunk.config.get_text_config()
        return config.rope_parameters.get("original_max_position_embeddings") or config.max_position_embeddings

    def _difference(self, prompts: Sequence[np.ndarray], answers: int, samples: Samples, plain: list[np.ndarray]) -> str | None:
        """How log-probabilities from the cache differ from those of whole sequences; not computed where it has been for as long ones."""
        lengths = [len(prompt) for prompt in prompts]
        longest = max(
            length + len(samples.answers[i * answers + k]) for i, length in enumerate(lengths) for k in range(answers)
        )
        uneven = len(set(lengths)) > 1
        if longest <= self._verified[0] and uneven <= self._verified[1]:
            return None
        groups = [(prompt, samples.answers[i * answers : (i + 1) * answers]) for i, prompt in enumerate(prompts)]
        whole = self._likelihood.completions(groups, under=self._under)
        expected = np.concatenate([whole.tokens[whole.completion_of == i].cpu().numpy() for i in range(whole.count)])
        difference = float(np.abs(np.concatenate(plain) - expected).max())
        dtype = self._likelihood.autocast or self._likelihood.head.weight.dtype
        if not difference <= TOLERANCES.get(dtype, LOW_PRECISION_TOLERANCE):
            return f"log-probabilities differ by {difference:.1e}"
        self._verified = (max(longest, self._verified[0]), uneven or self._verified[1])
        return None

    def _run(self, prompts: Sequence[np.ndarray], answers: int, noise: np.ndarray) -> tuple[Samples, list[np.ndarray]]:
        """Samples, and their log-probabilities before top-k and top-p."""
        under, count, device = self._under, len(noise), self._likelihood.device
        decoder = self._way(self._likelihood, prompts, answers=answers, longest=self._longest, temperature=under.temperature)
        drawing = Drawing(count, self._vocabulary, device)
        uniform = torch.from_numpy(noise).to(device)
        ends, never = (torch.tensor(ids, dtype=torch.int64, device=device) for ids in (under.ends, under.never))
        tokens = np.zeros(noise.shape, dtype=np.int32)
        drawn_with: list[tuple[np.ndarray, torch.Tensor, torch.Tensor | None]] = []
        lengths, finished = np.full(count, self._longest), np.zeros(count, dtype=bool)
        truncates = self._top_k is not None or self._top_p is not None
        rows = np.arange(count)  # which answer each row of the batch is
        logits = decoder.after_prompts().repeat_interleave(answers, dim=0)
        for step in range(self._longest):
            if under.excludes_ends and step + 1 < under.shortest:
                logits[:, ends] = -torch.inf
            if under.never:
                logits.index_fill_(1, never, -torch.inf)
            left = truncate(logits, top_k=self._top_k, top_p=self._top_p) if truncates else None
            drawn, log_probability = drawing.draw(logits, uniform[:, step])
            drawn_with.append((rows, log_probability, left))
            words = drawn.cpu().numpy()
            tokens[rows, step] = words
            alive = ~finished[rows]
            for end in under.ends:
                alive &= words != end
            ended = rows[~alive & ~finished[rows]]
            finished[ended], lengths[ended] = True, step + 1
            if step + 1 == self._longest or not alive.any():
                break
            if (len(rows) - alive.sum()) * DROP >= len(rows):
                order = without_holes(alive)
                index = torch.from_numpy(order).to(device)
                decoder.keep(order)
                rows, drawn, uniform = rows[order], drawn[index], uniform[index]
            logits = decoder.after_tokens(drawn)
        kept, plain = (np.zeros(noise.shape, dtype=np.float32) for _ in range(2))
        for step, (places, log_probability, left) in enumerate(drawn_with):
            kept[places, step] = log_probability.cpu().numpy()
            plain[places, step] = kept[places, step] + (0 if left is None else left.cpu().numpy())
        samples = Samples(_cut(tokens, lengths), _cut(kept, lengths), finished)
        return samples, _cut(plain, lengths)


def _cut(matrix: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    return [row[:length].copy() for row, length in zip(matrix, lengths, strict=True)]


@contextmanager
def evaluation(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module is in the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
