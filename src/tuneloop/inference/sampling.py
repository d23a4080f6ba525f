"""Which token comes next: the likeliest one, or one drawn with a temperature from the likeliest few."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tuneloop.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

EXACT = 64  # of a row's highest logits that are computed in fp32
FEW = 128  # tokens among which a nucleus is looked for before the whole vocabulary is sorted


@dataclass(frozen=True)
class Sampling:
    """How the tokens of one answer are drawn.

    Args:
        temperature: logits are divided by it; 0 takes the likeliest token always.
        top_p: tokens are drawn from the fewest likeliest ones whose probabilities add up to this (nucleus sampling, Holtzman et al.
            2020, arXiv 1904.09751); 1: from all.
        seed: of this answer's draws.

    Raises:
        UserError: a value that makes no sense.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UserError(
                f"A temperature of {self.temperature:g} is not possible",
                where="temperature",
                next_step="give 0 (always the likeliest token) or more; 0.7 to 1 is usual",
            )
        if not 0 < self.top_p <= 1:
            raise UserError(
                f"top_p={self.top_p:g} is not possible", where="top_p", next_step="give more than 0, at most 1 (all tokens)"
            )  # fmt: skip


GREEDY = Sampling()


class Sampler:
    """Draws the next tokens of a batch, each row by its own `Sampling` and from its own random numbers.

    A row takes one random number a token, so its answer is the same whatever else is in the batch.
    """

    def __init__(self, rows: Sequence[Sampling], device: Any) -> None:
        import torch

        self.rows = list(rows)
        self.numbers = [random.Random(row.seed) for row in rows]
        self.temperature = torch.tensor([row.temperature for row in rows], device=device)
        self.top_p = torch.tensor([row.top_p for row in rows], device=device)

    def keep(self, index: Tensor) -> None:
        """Go on with some rows only (indices)."""
        self.temperature, self.top_p = self.temperature[index], self.top_p[index]
        kept = index.tolist()
        self.rows, self.numbers = [self.rows[i] for i in kept], [self.numbers[i] for i in kept]

    def next(self, hidden: Tensor, head: Tensor) -> Tensor:
        """The next token of each row, from the last hidden states (B, C) and the output matrix (V, C) -> (B)."""
        import torch

        logits = hidden @ head.t()
        drawn = [i for i, row in enumerate(self.rows) if row.temperature > 0]
        if not drawn:
            return greedy(hidden, head, logits)
        at = torch.tensor(drawn, device=hidden.device)
        uniform = torch.tensor([self.numbers[i].random() for i in drawn], dtype=torch.float64, device=hidden.device)
        scores = _exact(logits[at], hidden[at], head)
        tokens = draw(scores, self.temperature[at], self.top_p[at], uniform)
        if len(drawn) == len(self.rows):
            return tokens
        return greedy(hidden, head, logits).index_copy(0, at, tokens)


def draw(logits: Tensor, temperature: Tensor, top_p: Tensor, uniform: Tensor) -> Tensor:
    """Draw a token for each row by the inverse of its cumulative distribution.

    Args:
        logits: (B, V), fp32.
        temperature: (B), above 0.
        top_p: (B), above 0 and at most 1.
        uniform: (B), fp64, from 0 to below 1.

    Returns:
        Tokens (B), int64.
    """
    import torch

    p = torch.softmax(logits / temperature[:, None], -1)
    if bool((top_p < 1).any()):
        p = torch.where(p >= _smallest_in_nucleus(p, top_p), p, 0.0)
    cumulative = p.double().cumsum(-1)
    total = cumulative[:, -1]
    # Rounding must not lift the place to the total: behind it no token stands.
    place = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    tokens: Tensor = torch.searchsorted(cumulative, place[:, None], right=True)[:, 0]
    return tokens


def _smallest_in_nucleus(p: Tensor, top_p: Tensor) -> Tensor:
    """The smallest probability that belongs to each row's nucleus (B, 1); 0 where all tokens do. Equal ones belong to it all."""
    import torch

    few = p.gather(1, highest(p, min(FEW, p.shape[-1]))).sort(-1, descending=True).values
    smallest = _where_reached(few, top_p)
    wide = ((few.double().sum(-1) < top_p) & (top_p < 1)).nonzero()[:, 0]
    if len(wide):  # sorting a whole vocabulary takes many times as long
        smallest[wide] = _where_reached(p[wide].sort(-1, descending=True).values, top_p[wide])
    return torch.where(top_p[:, None] < 1, smallest, 0.0)


def _where_reached(p: Tensor, top_p: Tensor) -> Tensor:
    """The last of descending probabilities (B, n) that it takes to reach a sum (B) -> (B, 1)."""
    import torch

    before = p.double().cumsum(-1) - p
    return torch.where(before < top_p[:, None], p, 2.0).amin(-1, keepdim=True)


def _exact(logits: Tensor, hidden: Tensor, head: Tensor) -> Tensor:
    """Logits in fp32, (B, V); of bf16 ones, which are a multiple of 1/8 apart, the highest are computed again."""
    import torch

    if logits.dtype == torch.float32:
        return logits
    top = highest(logits, EXACT)
    scores = torch.einsum("bc,bkc->bk", hidden.float(), head[top].float())
    return logits.float().scatter(1, top, scores)


def greedy(hidden: Tensor, head: Tensor, logits: Tensor | None = None) -> Tensor:
    """The likeliest token of each row (B, C) -> (B).

    bf16 logits are a multiple of 1/8 apart and tie often: the few highest are scored again in fp32.
    """
    top = highest(hidden @ head.t() if logits is None else logits, 4)
    scores = (hidden.float()[:, None] * head[top].float()).sum(-1)
    chosen: Tensor = top.gather(1, scores.argmax(-1, keepdim=True))[:, 0]
    return chosen


def highest(logits: Tensor, k: int) -> Tensor:
    """Where the `k` highest of each row are (B, V) -> (B, k).

    They lie in the `k` blocks of the highest maxima: `topk` over the whole vocabulary takes many times as long on a CPU.
    """
    size = 128
    if logits.shape[-1] % size or logits.shape[-1] < size * k:
        return logits.topk(k, -1).indices
    blocks = logits.view(len(logits), -1, size)
    block = blocks.amax(-1).topk(k, -1).indices
    among = blocks.gather(1, block[..., None].expand(-1, -1, size)).flatten(1)
    at = among.topk(k, -1).indices
    where: Tensor = block.gather(1, at // size) * size + at % size
    return where
