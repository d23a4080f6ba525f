"""Prompts in batches: what all share read once, rows of similar length together, padded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tuneloop.core.device import in_parts, put
from tuneloop.core.errors import UserError
from tuneloop.core.ui import busy
from tuneloop.models import Model
from tuneloop.models.nn import is_batch_invariant

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Prompts:
    """Prompts split into what all share and the rest."""

    shared: list[int]
    rests: list[list[int]]


def shared_length(prompts: Sequence[Sequence[int]]) -> int:
    """Length of the ids that all prompts start with, leaving each at least one."""
    if len(prompts) < 2:
        return 0
    first, last = min(map(list, prompts)), max(map(list, prompts))
    length = min(len(p) for p in prompts) - 1
    for i in range(length):
        if first[i] != last[i]:
            return i
    return max(length, 0)


def split_prompts(prompts: Sequence[Sequence[int]]) -> Prompts:
    length = shared_length(prompts)
    if length < 8:  # not worth a separate pass
        length = 0
    return Prompts(list(prompts[0][:length]) if prompts else [], [list(p[length:]) for p in prompts])


def batched_by_length(lengths: Sequence[int], tokens: int, rows: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first, each at most `tokens` padded tokens and `rows` rows."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batch: list[int] = []
    for i in order:
        longest = lengths[batch[0]] if batch else lengths[i]
        if batch and ((len(batch) + 1) * longest > tokens or len(batch) >= rows):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def places_taken(lengths: Mapping[int, int] | Sequence[int], batch: Sequence[int]) -> int:
    """Tokens of a batch with its padding."""
    return len(batch) * max(lengths[i] for i in batch)


def read_shared(model: Model, shared: list[int], task: str) -> Any:
    """Cache of the shared ids (one row), or None."""
    import torch

    if not shared:
        return None
    caches: list[Any] = []

    def read(group: Sequence[list[int]]) -> None:
        cache = model.new_cache()
        model.hidden(torch.tensor([shared], device=model.device), cache=cache)
        caches.append(cache)

    with busy(f"{task}: reading what the prompts share"):
        in_parts([[shared]], read, len, lambda ids: prompt_too_large(len(ids)))
    return caches[0]


def prompt_too_large(tokens: int) -> UserError:
    """The error where a single prompt does not fit into memory."""
    return UserError(
        f"Out of memory: a single prompt of {tokens:,} tokens does not fit",
        next_step="set a smaller data.max_length, or use a machine with more memory; see docs/gpu.md",
    )


@dataclass
class Padded:
    """A padded batch behind a shared prefix: ids and positions (B, L), a mask of the real tokens (B, P + L)."""

    ids: Tensor
    positions: Tensor
    real: Tensor
    lengths: Tensor
    mask: Tensor

    @property
    def real_ids(self) -> Tensor:
        """Which of `ids` are no padding (B, L)."""
        return self.real[:, -self.ids.shape[1] :]

    @property
    def ends(self) -> Tensor:
        """The column of `ids` behind each row's last token (B)."""
        shared = self.real.shape[1] - self.ids.shape[1]
        return self.lengths - shared if is_batch_invariant() else self.lengths * 0 + self.ids.shape[1]

    def last(self, states: Tensor) -> Tensor:
        """The states (B, L, C) of each row's last token (B, C)."""
        if not is_batch_invariant():
            return states[:, -1]
        rows: Any = range(len(states))
        return states[rows, self.ends - 1]


def pad(rests: Sequence[Sequence[int]], shared: int, pad_id: int, device: Any) -> Padded:
    """Rows of token ids with padding on their left; on their right where a row must not be shifted by longer ones."""
    import torch

    longest = max(len(r) for r in rests)
    ids = torch.full((len(rests), longest), pad_id, dtype=torch.long)
    lengths = torch.tensor([len(r) for r in rests])
    firsts = [0 if is_batch_invariant() else longest - len(rest) for rest in rests]
    for row, (first, rest) in enumerate(zip(firsts, rests, strict=True)):
        ids[row, first : first + len(rest)] = torch.tensor(rest)
    steps, starts = torch.arange(longest), torch.tensor(firsts)[:, None]
    positions = (steps - starts).clamp(min=0) + shared
    of_rests = (steps >= starts) & (steps < starts + lengths[:, None])
    real = torch.cat((torch.ones(len(rests), shared, dtype=torch.bool), of_rests), 1)
    causal = torch.ones(longest, shared + longest, dtype=torch.bool).tril(shared)
    itself = torch.zeros(longest, shared + longest, dtype=torch.bool)
    itself[steps, shared + steps] = True  # padding looks at itself: no row of the softmax may be empty
    mask = (causal & real[:, None]) | itself
    real, lengths = put(real, device), put(lengths, device)
    return Padded(put(ids, device), put(positions, device), real, lengths + shared, put(mask[:, None], device))
