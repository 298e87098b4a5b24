"""Tokens by the inverse distribution function, from one uniform number each."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int

BLOCK = 256
"""Words of a block: within one, and over all of them, the distribution function is added up in float64."""
BELOW_ONE = 1 - 2**-53


class Drawing:
    """Draws tokens from logits of up to N rows.

    Token v is drawn where F(v−1) ≤ u < F(v), F the distribution function. Adding all words up in float64 would take as long as a
    matrix product; so blocks of them are added up, one is chosen, and only its words are. What it needs is kept from one step to
    the next, or its pages would be fetched anew each time.

    Args:
        rows: N.
        vocabulary: V.
        device: where.
    """

    def __init__(self, rows: int, vocabulary: int, device: torch.device) -> None:
        blocks = -(-vocabulary // BLOCK)
        # What fills up the last block has probability 0, and nothing is ever written there.
        self._masses = torch.zeros(rows, blocks * BLOCK, device=device)
        self._row = torch.arange(rows, device=device)[:, None]
        self._vocabulary = vocabulary

    def draw(
        self, logits: Float[torch.Tensor, "n V"], noise: Float[torch.Tensor, " n"]
    ) -> tuple[Int[torch.Tensor, " n"], Float[torch.Tensor, " n"]]:
        """A token of each row, and its log-probability; one whose logit is −∞ is never drawn.

        Args:
            logits: z; n is at most N.
            noise: u, uniform on [0, 1), float64.
        """
        rows = len(noise)
        powers = self._masses[:rows, : self._vocabulary]
        torch.sub(logits, logits.amax(dim=1, keepdim=True), out=powers).exp_()
        masses = self._masses[:rows].view(rows, -1, BLOCK)
        of_blocks = masses.sum(dim=2).double().cumsum(dim=1)
        total = of_blocks[:, -1:]
        block, below = _chosen(of_blocks, noise[:, None] * total)
        in_block = masses[self._row[:rows], block][:, 0].double().cumsum(dim=1)
        before = torch.where(block > 0, of_blocks.gather(1, (block - 1).clamp_(min=0)), 0)
        # The float32 sum of a block is not quite the float64 sum of its words.
        within = (below - before) / (of_blocks.gather(1, block) - before) * in_block[:, -1:]
        word, _ = _chosen(in_block, within)
        token = (block * BLOCK + word).clamp_(max=self._vocabulary - 1)  # beyond it only where logits are not numbers
        probability = powers.gather(1, token).double() / total
        return token[:, 0], probability.log()[:, 0].float()


def truncate(logits: Float[torch.Tensor, "n V"], *, top_k: int | None, top_p: float | None) -> Float[torch.Tensor, " n"]:
    """Set to −∞ all logits but the k largest, and of those all but the fewest whose probabilities reach p; ties stay together.

    Args:
        logits: z, overwritten.
        top_k: k, or None for all.
        top_p: p, or None for all.

    Returns:
        the logarithm of the probability that was left to the others.
    """
    before = logits.logsumexp(dim=1)
    if top_k is not None and top_k < logits.shape[1]:
        least = logits.topk(top_k, dim=1).values[:, -1:]
        logits.masked_fill_(logits < least, -torch.inf)
    if top_p is not None:
        ordered = logits.sort(dim=1, descending=True).values
        larger = ordered.double().softmax(dim=1).cumsum(dim=1).roll(1, dims=1)  # the mass of all that are larger
        larger[:, 0] = 0
        needed = (larger < top_p).sum(dim=1, keepdim=True)
        logits.masked_fill_(logits < ordered.gather(1, needed - 1), -torch.inf)
    return logits.logsumexp(dim=1) - before


def _chosen(
    function: Float[torch.Tensor, "n m"], height: Float[torch.Tensor, "n 1"]
) -> tuple[Int[torch.Tensor, "n 1"], Float[torch.Tensor, "n 1"]]:
    """The first entry above the height, whose own mass is therefore not 0; and the height, which rounding may have put at the top."""
    height = torch.minimum(height, function[:, -1:] * BELOW_ONE)
    chosen = torch.searchsorted(function, height, right=True)
    return chosen.clamp_(max=function.shape[1] - 1), height  # beyond the end only where logits are not numbers
