"""Which token comes next: the likeliest one, or one drawn with a temperature; and log probabilities."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tuneloop.core.device import put
from tuneloop.inference.request import Sampling
from tuneloop.models.nn import product
from tuneloop.records.completion import TokenLogprob

if TYPE_CHECKING:
    from torch import Tensor

    from tuneloop.inference.grammar import Constraint

EXACT = 64  # of a row's highest logits that are computed in fp32
FEW = 128  # tokens among which a nucleus is looked for before the whole vocabulary is sorted


class Sampler:
    """Draws the next tokens of a batch, each row by its own `Sampling` and from its own random numbers.

    A row takes one random number a token, so its answer is the same whatever else is in the batch.

    Args:
        rows: how each row is drawn.
        device: of the hidden states.
        prompts: token ids of each row's prompt, for the repetition penalty; needed only where there is one.
        constraints: what each row's answer may be, where it may not be anything; none at all: of no row.
    """

    def __init__(
        self,
        rows: Sequence[Sampling],
        device: Any,
        prompts: Sequence[Sequence[int]] = (),
        constraints: Sequence[Constraint | None] = (),
    ) -> None:
        import torch

        self.rows = list(rows)
        self.constraints = list(constraints) or [None] * len(self.rows)
        self.numbers = [random.Random(row.seed) for row in rows]
        self.seen: list[set[int] | None] = [
            None if row.repetition_penalty == 1 else set(prompts[i] if prompts else ()) for i, row in enumerate(rows)
        ]
        self.temperature = torch.tensor([row.temperature for row in rows], device=device)
        self.top_p = torch.tensor([row.top_p for row in rows], device=device)

    def keep(self, index: Tensor) -> None:
        """Continue with some rows only (indices)."""
        self.temperature, self.top_p = self.temperature[index], self.top_p[index]
        places = index.tolist()
        self.rows, self.numbers = [self.rows[i] for i in places], [self.numbers[i] for i in places]
        self.seen = [self.seen[i] for i in places]
        self.constraints = [self.constraints[i] for i in places]

    def join(self, other: Sampler) -> None:
        """Continue with the rows of another one as well."""
        import torch

        self.temperature = torch.cat((self.temperature, other.temperature))
        self.top_p = torch.cat((self.top_p, other.top_p))
        self.rows, self.numbers = self.rows + other.rows, self.numbers + other.numbers
        self.seen, self.constraints = self.seen + other.seen, self.constraints + other.constraints

    def next(self, hidden: Tensor, head: Tensor) -> Tensor:
        """The next token of each row, from the last hidden states (B, C) and the output matrix (V, C) -> (B)."""
        import torch

        logits = product(hidden, head)
        active = {
            i: constraint
            for i, constraint in enumerate(self.constraints)
            if constraint is not None and not constraint.over
        }
        special = [i for i, row in enumerate(self.rows) if row.temperature or self.seen[i] is not None or i in active]
        for i, constraint in active.items():
            constraint.apply(logits[i])
        if not special:
            return greedy(hidden, head, logits)
        at = put(torch.tensor(special), hidden.device)
        scores = _exact(logits.index_select(0, at), hidden.index_select(0, at), head)
        for i, row in enumerate(special):
            _penalise(scores[i], self.seen[row], self.rows[row].repetition_penalty)
            if row in active:
                active[row].apply(scores[i])  # again: the highest were recomputed, also those that were ruled out
        tokens = scores.argmax(-1)
        random_rows = [i for i, row in enumerate(special) if self.rows[row].temperature > 0]
        if random_rows:
            places = put(torch.tensor(random_rows), hidden.device)
            draws = self._draw(scores.index_select(0, places), [special[i] for i in random_rows])
            tokens = tokens.index_copy(0, places, draws)
        if len(special) < len(self.rows):
            tokens = greedy(hidden, head, logits).index_copy(0, at, tokens)
        for i in special:
            if (seen := self.seen[i]) is not None:
                seen.add(int(tokens[i]))
            if i in active:
                active[i].accept(int(tokens[i]))
        return tokens

    def _draw(self, scores: Tensor, rows: Sequence[int]) -> Tensor:
        import torch

        device = scores.device
        uniform = torch.tensor([self.numbers[i].random() for i in rows], dtype=torch.float64)
        uniform, at = put(uniform, device), put(torch.tensor(rows), device)
        some = [self.rows[i] for i in rows]
        top_k = [row.top_k for row in some] if any(row.top_k for row in some) else None
        min_p = torch.tensor([row.min_p for row in some], device=device) if any(row.min_p for row in some) else None
        temperature, top_p = self.temperature.index_select(0, at), self.top_p.index_select(0, at)
        nucleus = any(row.top_p < 1 for row in some)
        return draw(scores, temperature, top_p, uniform, top_k=top_k, min_p=min_p, nucleus=nucleus)


def _penalise(logits: Tensor, seen: set[int] | None, penalty: float) -> None:
    """Apply a repetition penalty to a row's logits (V), in place."""
    import torch

    if not seen:
        return
    at = torch.tensor(sorted(seen), device=logits.device)
    scores = logits[at]
    logits[at] = torch.where(scores > 0, scores / penalty, scores * penalty)


def logprobs(hidden: Tensor, head: Tensor, tokens: Sequence[int], top: Sequence[int]) -> list[TokenLogprob]:
    """Log probabilities of written tokens, and of the likeliest ones in their place, before temperature and filters.

    Args:
        hidden: (n, C), what the tokens follow.
        head: (V, C).
        tokens: one for each row.
        top: how many likeliest ones for each row.
    """
    import torch

    logp = torch.log_softmax(_exact(product(hidden, head), hidden, head), -1)
    own_logs = logp[torch.arange(len(tokens)), torch.tensor(tokens, device=hidden.device)].tolist()
    most = max(top, default=0)
    values, ids = (x.tolist() for x in logp.topk(most, -1)) if most else ([[]] * len(tokens), [[]] * len(tokens))
    return [
        TokenLogprob(token, p, tuple(zip(likely[:k], scores[:k], strict=True)))
        for token, p, likely, scores, k in zip(tokens, own_logs, ids, values, top, strict=True)
    ]


def draw(
    logits: Tensor,
    temperature: Tensor,
    top_p: Tensor,
    uniform: Tensor,
    *,
    top_k: Sequence[int] | None = None,
    min_p: Tensor | None = None,
    nucleus: bool = True,
) -> Tensor:
    """Draw a token for each row by the inverse of its cumulative distribution.

    Args:
        logits: (B, V), fp32.
        temperature: (B), above 0.
        top_p: (B), above 0 and at most 1.
        uniform: (B), fp64, from 0 to below 1.
        top_k: of each row, 0 for all tokens; None: of no row.
        min_p: (B), 0 for all tokens; None: of no row.
        nucleus: whether a row may have a `top_p` below 1; where that is known, no one waits for a GPU.

    Returns:
        Tokens (B), int64.
    """
    import torch

    scaled = logits / temperature[:, None]
    if top_k is not None:
        ranked = scaled.topk(min(max(top_k), scaled.shape[-1]), -1).values
        for i, k in enumerate(top_k):
            if 0 < k < scaled.shape[-1]:
                scaled[i] = torch.where(scaled[i] >= ranked[i, k - 1], scaled[i], float("-inf"))
    p = torch.softmax(scaled, -1)
    if nucleus and bool((top_p < 1).any()):
        p = torch.where(p >= _smallest_in_nucleus(p, top_p), p, 0.0)
    if min_p is not None:
        p = torch.where(p >= min_p[:, None] * p.amax(-1, keepdim=True), p, 0.0)
    cumulative = p.double().cumsum(-1)
    total = cumulative[:, -1]
    # Rounding must not lift the place to the total: behind it there is no token.
    threshold = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    tokens: Tensor = torch.searchsorted(cumulative, threshold[:, None], right=True)[:, 0]
    return tokens


def _smallest_in_nucleus(p: Tensor, top_p: Tensor) -> Tensor:
    """The smallest probability in each row's nucleus (B, 1), which has all equal ones; 0 where all tokens are in it."""
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
    top = highest(product(hidden, head) if logits is None else logits, 4)
    scores = (hidden.float()[:, None] * head[top].float()).sum(-1)
    tokens: Tensor = top.gather(1, scores.argmax(-1, keepdim=True))[:, 0]
    return tokens


def highest(logits: Tensor, k: int) -> Tensor:
    """Where the `k` highest of each row are (B, V) -> (B, k).

    They are in the `k` blocks of the highest maxima: `topk` over a whole vocabulary takes many times as long on a CPU.
    """
    size = 128
    if logits.shape[-1] % size or logits.shape[-1] < size * k:
        return logits.topk(k, -1).indices
    blocks = logits.view(len(logits), -1, size)
    block = blocks.amax(-1).topk(k, -1).indices
    among = blocks.gather(1, block[..., None].expand(-1, -1, size)).flatten(1)
    at = among.topk(k, -1).indices
    places: Tensor = block.gather(1, at // size) * size + at % size
    return places
