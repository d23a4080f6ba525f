"""Decoding steps that a GPU is given whole: recorded once as a CUDA graph, then started with one call a token.

A step of an 8B Llama is more than 700 kernels, each of which the host has to start: at few rows that takes longer than
the kernels do. What was recorded holds for the same buffers. A row that is over leaves its slot in them, a further one
is put there, and its keys and values have separate places; so rows come and go, and nothing is recorded again. Where
there is no slot for a row, or none that has its adapter, the batch continues step by step with larger buffers, and is
recorded once it has stayed the same for a while.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tuneloop.core.device import backend, put, recorded
from tuneloop.models.adapters import applied, assigned, assignment, rows_of_tokens

if TYPE_CHECKING:
    from torch import Tensor

    from tuneloop.models.load import Model

STEADY = 8  # steps that a batch has stayed the same for
PAYS = 24  # steps to come that recording pays for: it takes as long as some four
CHECKED = (
    2  # recorded steps that are computed as usual too: the second has another token and place than the recorded one
)
MOST_FAILURES = 3  # after which nothing more is recorded in a process
# How far the recorded step may be off the plain one, of the largest number: libraries may choose other kernels for it.
OFF = {"torch.float32": 1e-3, "torch.bfloat16": 3e-2, "torch.float16": 1e-2}
FEWEST_SLOTS = 4  # of a batch that further rows may join
SPARE = 1.25  # length of its buffers, over what its rows need
SPARSE = 0.4  # a batch of so few rows, of its slots, continues without the empty ones

_failed: list[str] = []  # why steps could not be recorded in this process


class StepReplay:
    """A decoding step of a batch, to be repeated.

    Args:
        model: our own Llama, whole on one GPU.
        cache: with room for all tokens that these rows will have.
        real: which of its places are no padding (B, S).
        positions: of the next token (B).
        token: the last one written (B).
        prefix: places at the beginning of the cache that no token takes.
        adapters: of each row.

    Raises:
        RuntimeError: it can't be recorded, or computes something else than the plain step.
    """

    def __init__(
        self,
        model: Model,
        cache: Any,
        real: Tensor,
        positions: Tensor,
        token: Tensor,
        prefix: int,
        adapters: Sequence[str],
    ) -> None:
        import torch

        self.cache, self._prefix = cache, prefix
        self._real = real.new_zeros(real.shape[0], cache.capacity)
        self._real[:, prefix : cache.length] = real
        self._positions, self._token = positions.clone(), token.clone()
        self._ends = [cache.length] * len(adapters)  # the place of each row's next token: here, and on the GPU
        self._places = torch.full_like(positions, cache.length)
        self._model, self._unchecked = model, CHECKED
        of_tokens = torch.arange(len(token), device=model.device)
        with applied(adapters), rows_of_tokens(of_tokens, len(token)):
            now = assignment()
        assert now is not None
        self._assigned = now  # kept, since what was recorded reads from it which row has which adapter
        with self._passes():
            self._start, self._hidden = recorded(self._step, self._states)
        from tuneloop.models.lora import operands  # needs torch, which a server for llama.cpp does without

        self._operands = operands(model.net)  # what was recorded reads them where they are now

    @contextmanager
    def _passes(self) -> Iterator[None]:
        """Passes within read a token of each row, and write where the tensors say that are recorded."""
        self.cache.at = self._places
        try:
            with assigned(self._assigned):
                yield
        finally:
            self.cache.at = None

    def _states(self) -> Tensor:
        """The states (B, C) after the last token, which is read into the cache; done twice it gives the same."""
        self._real.scatter_(1, self._places[:, None], True)
        real, token, positions = (
            self._real[:, None, None, self._prefix :],
            self._token[:, None],
            self._positions[:, None],
        )
        return self._model.hidden(token, positions, real, self.cache)[:, -1]

    def _step(self) -> Tensor:
        states = self._states()
        self._positions.add_(1)
        last = self.cache.capacity - 1
        self._places.add_(1).clamp_(max=last)  # a row that is over continues, and must not leave its slot
        return states

    def has_room(self, tokens: int, adapters: Sequence[str]) -> bool:
        """Whether slots can take rows of so many tokens, answers included, with these adapters."""
        return tokens <= self.cache.capacity and set(adapters) <= set(self._assigned.names)

    def take(self, slots: Sequence[int], cache: Any, real: Tensor, positions: Tensor, adapters: Sequence[str]) -> None:
        """Put rows that have been read elsewhere into slots.

        Args:
            cache, real, positions, adapters: of the rows, as of the batch.
        """
        import torch

        at = put(torch.tensor(slots), self._real.device)
        self.cache.put_rows(at, cache)
        self._real[at] = False
        self._real[at, self._prefix : cache.length] = real
        self._positions[at], self._places[at] = positions, cache.length
        for slot in slots:
            self._ends[slot] = cache.length
        if self._assigned.which is not None:
            names = put(torch.tensor([self._assigned.names.index(name) for name in adapters]), at.device)
            self._assigned.which[at] = names

    def next(self, token: Tensor, live: Sequence[bool]) -> tuple[Tensor, Tensor, Tensor]:
        """Read the last token of each row: the states (B, C), which places of the cache are real, the next positions.

        Args:
            live: whether each row still is in the batch.

        Raises:
            RuntimeError: what was recorded computes something else than the plain step; the cache is as it was.
        """
        self._token.copy_(token)
        if self._unchecked:
            with self._passes():
                expected = self._states()
            self._start()
            try:
                _compare(self._hidden, expected)
            except RuntimeError:
                self._positions.sub_(1)
                raise
            self._unchecked -= 1
        else:
            self._start()
        self._ends = [end + 1 for end in self._ends]
        return self._hidden.clone(), *self.seen(live)

    def seen(self, live: Sequence[bool]) -> tuple[Tensor, Tensor]:
        """Which places of the cache are real (B, S), up to the end of the longest live row; and the next positions.

        The cache gets that length.
        """
        length = min(max(end for end, lives in zip(self._ends, live, strict=True) if lives), self.cache.capacity)
        self.cache.lengths = [length] * len(self.cache.lengths)
        return self._real[:, self._prefix : length], self._positions


def _compare(states: Tensor, expected: Tensor) -> None:
    off = float((states.float() - expected.float()).abs().max() / expected.float().abs().max())
    if not off <= OFF[str(states.dtype)]:  # so that not-a-number is off, too
        raise RuntimeError(f"a recorded step is {off:.1e} off the plain one")


def may_record(model: Model, steps: int, left: int) -> bool:
    """Whether recording a batch's steps is possible and pays.

    Args:
        steps: that the batch has been the same for.
        left: tokens that its longest answer may still come to.
    """
    possible = model.is_own and not model.is_sharded and backend(model.device).records and len(_failed) < MOST_FAILURES
    net: Any = model.net
    possible = possible and not net.config.window  # whose mask moves with each token
    return possible and steps >= STEADY and left >= PAYS


def slots_for(rows: int, cache: Any, left: int, places: int) -> tuple[int, int]:
    """Slots and length of the buffers for recorded steps: with some to spare, where further rows may join.

    Args:
        rows: that there are.
        left: tokens that the longest of them may still come to.
        places: of the buffers (slots * length) at most, but for what these rows need; 0: no further rows will join.
    """
    needed = cache.length + left
    length = max(cache.capacity, cache.room_for(round(SPARE * needed)))
    slots = max(FEWEST_SLOTS, 1 << (rows - 1).bit_length())
    for shape in ((slots, length), (rows, length)):
        if shape[0] * shape[1] <= places:
            return shape
    return rows, cache.capacity_for(left)


def note_failure(why: Exception) -> None:
    """Say that a step could not be recorded; after some such failures nothing more is recorded in this process."""
    _failed.append(str(why))
    reason = (str(why).splitlines() or ["?"])[0]
    message = "A step could not be recorded as a CUDA graph and is computed as usual: %s"
    logging.getLogger(__name__).warning(message, reason)
