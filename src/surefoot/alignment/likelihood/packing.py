"""Prompts and their answers as one row of tokens, none of them padding and no prompt twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Int

Group = tuple[np.ndarray, Sequence[np.ndarray]]
"""Token ids of a prompt, and of each of its answers."""


@dataclass(frozen=True, eq=False)
class Spans:
    """Sequences that lie one behind the other in a row of tokens, and the way to lay them side by side and back.

    Side by side they are as long as the longest; the slots behind a shorter one repeat some token of the row, a real one, so that
    whatever is computed in them is finite. Nobody reads it: a causal mask hides what comes behind a sequence's end.
    """

    start: int
    """Where in the row the first of them begins."""
    lengths: np.ndarray
    """Tokens of each."""
    device: torch.device

    @property
    def count(self) -> int:
        """How many sequences."""
        return len(self.lengths)

    @property
    def total(self) -> int:
        """Tokens of all of them."""
        return int(self.lengths.sum())

    @property
    def longest(self) -> int:
        """Tokens of the longest."""
        return int(self.lengths.max())

    @property
    def starts(self) -> Int[np.ndarray, " count"]:
        """Where in the row each begins."""
        return self.start + np.cumsum(self.lengths) - self.lengths

    @property
    def equal(self) -> bool:
        """Whether all are as long as the longest: then laying them side by side moves nothing."""
        return self.total == self.count * self.longest

    @cached_property
    def side_by_side(self) -> Int[torch.Tensor, " count*longest"]:
        """For every slot of [count, longest], the token of these spans that lies there."""
        starts = np.cumsum(self.lengths) - self.lengths
        offset = np.arange(self.longest)[None, :]
        slots = starts[:, None] + np.where(offset < self.lengths[:, None], offset, 0)
        return torch.from_numpy(np.minimum(slots, self.total - 1).reshape(-1)).to(self.device)  # a last one may be empty

    @cached_property
    def back(self) -> Int[torch.Tensor, " total"]:
        """For every token of these spans, its slot."""
        within = np.arange(self.total) - np.repeat(np.cumsum(self.lengths) - self.lengths, self.lengths)
        slots = np.repeat(np.arange(self.count) * self.longest, self.lengths) + within
        return torch.from_numpy(slots).to(self.device)


@dataclass(frozen=True, eq=False)
class Packed:
    """B prompts, then their N answers, as one row of T tokens.

    A completion token is predicted by the token before it: its first by the prompt's last token, which serves all K answers.
    """

    input_ids: Int[torch.Tensor, "1 T"]
    position_ids: Int[torch.Tensor, "1 T"]
    """The answers' positions go on from their own prompt's end."""
    prompts: Spans
    completions: Spans
    """What of the answers is fed; the last token only where its hidden state is wanted."""
    prompt_of: np.ndarray
    """Which prompt each answer belongs to, not decreasing."""
    scored_rows: Int[torch.Tensor, " R"]
    """Tokens of the row that predict at least one completion token, increasing."""
    row_of: Int[torch.Tensor, " S"]
    """For every completion token, which of ``scored_rows`` predicts it; not decreasing."""
    target: Int[torch.Tensor, " S"]
    """The completion tokens themselves."""
    completion_of: Int[torch.Tensor, " S"]
    """Which answer each of them belongs to."""
    step_of: Int[torch.Tensor, " S"]
    """Its index within that answer."""
    last: Int[torch.Tensor, " N"]
    """Where the last token of each answer lies; only where it was fed."""

    @property
    def answers_per_prompt(self) -> int | None:
        """K, where every prompt has as many answers; None where the numbers differ."""
        counts = np.bincount(self.prompt_of, minlength=self.prompts.count)
        return int(counts[0]) if (counts == counts[0]).all() else None

    @cached_property
    def prompt_index(self) -> Int[torch.Tensor, " N"]:
        """``prompt_of`` on the device."""
        return torch.from_numpy(self.prompt_of).to(self.input_ids.device)

    @cached_property
    def mask(self) -> Bool[torch.Tensor, "N 1 C P+C"]:
        """What an answer's tokens attend to, laid side by side behind their prompts: the prompt, and the answer so far."""
        device = self.input_ids.device
        longest_prompt, longest = self.prompts.longest, self.completions.longest
        causal = torch.ones(longest, longest, dtype=torch.bool, device=device).tril()
        if self.prompts.equal:
            whole = torch.ones(longest, longest_prompt, dtype=torch.bool, device=device)
            return torch.cat([whole, causal], dim=1)[None, None]
        lengths = torch.from_numpy(self.prompts.lengths).to(device)[self.prompt_index]
        there = torch.arange(longest_prompt, device=device)[None, :] < lengths[:, None]
        count = self.completions.count
        return torch.cat(
            [there[:, None, None, :].expand(count, 1, longest, longest_prompt), causal.expand(count, 1, longest, longest)],
            dim=3,
        )

    @cached_property
    def whole_lengths(self) -> Int[np.ndarray, " N"]:
        """Tokens of each answer with its prompt."""
        return self.prompts.lengths[self.prompt_of] + self.completions.lengths

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest answer with its prompt."""
        return int(self.whole_lengths.max())

    @cached_property
    def padded(self) -> tuple[Int[torch.Tensor, "N P+C"], Int[torch.Tensor, "N P+C"]]:
        """Each answer behind its own copy of the prompt, padded on the right: ids, and 1 where there is a token."""
        slot = np.arange(self.longest)[None, :]
        of_prompt = self.prompts.lengths[self.prompt_of][:, None]
        in_prompt = self.prompts.starts[self.prompt_of][:, None] + slot
        token = np.where(slot < of_prompt, in_prompt, self.completions.starts[:, None] + slot - of_prompt)
        real = slot < self.whole_lengths[:, None]
        device = self.input_ids.device
        source, mask = (torch.from_numpy(x).to(device) for x in (np.where(real, token, 0), real.astype(np.int64)))
        return self.input_ids[0][source], mask

    @cached_property
    def slots(self) -> Int[torch.Tensor, " T"]:
        """For every token of the row, its slot in the padded batch; a prompt's in its first answer's row."""
        lengths = self.prompts.lengths
        first = np.searchsorted(self.prompt_of, np.arange(self.prompts.count))
        of_prompts = [row * self.longest + np.arange(n) for row, n in zip(first, lengths, strict=True)]
        before = lengths[self.prompt_of]
        of_answers = [
            row * self.longest + p + np.arange(n)
            for row, (p, n) in enumerate(zip(before, self.completions.lengths, strict=True))
        ]
        return torch.from_numpy(np.concatenate(of_prompts + of_answers)).to(self.input_ids.device)

    @property
    def attention_pairs(self) -> int:
        """Query–key pairs that causal attention needs."""
        prompts, answers = self.prompts.lengths.astype(np.int64), self.completions.lengths.astype(np.int64)
        own = (prompts * (prompts + 1) // 2).sum() + (answers * (answers + 1) // 2).sum()
        return int(own + (answers * prompts[self.prompt_of]).sum())


def pack(groups: Sequence[Group], *, device: torch.device, feed_last: bool) -> Packed:
    """Lay prompts and answers out in one row.

    Args:
        groups: B prompts with one or more answers each; every prompt and answer has at least one token.
        device: where the model is.
        feed_last: also feed each answer's last token, which predicts nothing that is scored: for reward models, which read its
            hidden state.
    """
    prompts = [prompt for prompt, _ in groups]
    completions = [completion for _, completions in groups for completion in completions]
    prompt_of = np.repeat(np.arange(len(groups)), [len(completions) for _, completions in groups])
    prompt_lengths = np.array([len(p) for p in prompts])
    lengths = np.array([len(c) for c in completions])
    fed = lengths if feed_last else lengths - 1
    row = np.concatenate([*prompts, *(c[:n] for c, n in zip(completions, fed, strict=True))]).astype(np.int64)
    prompt_ends = np.cumsum(prompt_lengths)
    starts = int(prompt_ends[-1]) + np.cumsum(fed) - fed
    positions = np.concatenate([np.arange(n) for n in prompt_lengths] + [np.arange(n) for n in fed])
    positions[int(prompt_ends[-1]) :] += np.repeat(prompt_lengths[prompt_of], fed)

    completion_of = np.repeat(np.arange(len(completions)), lengths)
    within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    predictor = np.where(within == 0, prompt_ends[prompt_of[completion_of]] - 1, starts[completion_of] + within - 1)
    order = np.argsort(predictor, kind="stable")
    scored_rows, row_of = np.unique(predictor[order], return_inverse=True)

    def tensor(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64)).to(device)

    return Packed(
        input_ids=tensor(row)[None],
        position_ids=tensor(positions)[None],
        prompts=Spans(0, prompt_lengths, device),
        completions=Spans(int(prompt_ends[-1]), fed, device),
        prompt_of=prompt_of,
        scored_rows=tensor(scored_rows),
        row_of=tensor(row_of),
        target=tensor(np.concatenate(completions)[order]),
        completion_of=tensor(completion_of[order]),
        step_of=tensor(within[order]),
        last=tensor(starts + fed - 1),
    )
