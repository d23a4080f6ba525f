"""Decoding steps that a GPU is given whole: recorded once as a CUDA graph, then started with one call a token.

A step of an 8B Llama is more than 700 kernels, each of which the host has to start: at few rows that takes longer than the
kernels do. What was recorded holds for the same rows, adapters and buffers; a batch that has changed goes on step by step,
and is recorded anew once it has stayed the same for a while.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tuneloop.core.device import backend, put, recorded
from tuneloop.models.adapters import applied, rows_of_tokens

if TYPE_CHECKING:
    from torch import Tensor

    from tuneloop.models.load import Model

STEADY = 8  # steps that a batch has stayed the same for
PAYS = 24  # steps to come that recording pays for: it takes as long as some four
CHECKED = (
    2  # recorded steps that are computed as usual too: the second has another token and place than what was recorded
)
MOST_FAILURES = 3  # after which nothing more is recorded in a process
# How far the recorded step may be off the plain one, of the largest number: the libraries may choose other kernels for it.
OFF = {"torch.float32": 1e-3, "torch.bfloat16": 3e-2, "torch.float16": 1e-2}

_failed: list[str] = []  # why steps could not be recorded in this process


class StepReplay:
    """A decoding step of a batch, to be done again and again.

    Args:
        model: our own Llama, whole on one GPU.
        cache: with room for further tokens.
        real: which of its places are no padding (B, S).
        positions: of the next token (B).
        token: the last one written (B).
        held: places at the beginning of the cache that no token takes.
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
        held: int,
        adapters: Sequence[str],
    ) -> None:
        import torch

        self.cache, self.adapters = cache, tuple(adapters)
        self._real = real.new_zeros(real.shape[0], cache.capacity - held)
        self._real[:, : real.shape[1]] = real
        self._positions, self._token = positions.clone(), token.clone()
        self._at = put(torch.tensor([cache.length]), model.device)
        self._place = put(torch.tensor([cache.length - held]), model.device)
        self._model, self._unchecked = model, CHECKED
        with self._passes():
            self._start, self._hidden = recorded(self._step, self._states)
        from tuneloop.models.lora import operands  # needs torch, which a server before llama.cpp does without

        self._operands = operands(model.net)  # what was recorded reads them where they are now

    @contextmanager
    def _passes(self) -> Iterator[None]:
        """Passes within read a token of each row, and write where the tensors say that are recorded."""
        import torch

        of_tokens = torch.arange(len(self._token), device=self._model.device)
        self.cache.at = self._at
        try:
            with applied(self.adapters), rows_of_tokens(of_tokens, len(self._token)):
                yield
        finally:
            self.cache.at = None

    def _states(self) -> Tensor:
        """The states (B, C) after the last token, which is read into the cache; done twice it gives the same."""
        self._real.index_fill_(1, self._place, True)
        real, token, positions = self._real[:, None, None], self._token[:, None], self._positions[:, None]
        return self._model.hidden(token, positions, real, self.cache)[:, -1]

    def _step(self) -> Tensor:
        states = self._states()
        for moved in (self._positions, self._at, self._place):
            moved.add_(1)
        return states

    def serves(self, cache: Any, adapters: Sequence[str]) -> bool:
        """Whether it is a step of these rows, and the buffers have room for it."""
        return self.cache is cache and self.adapters == tuple(adapters) and cache.length < cache.capacity

    def next(self, token: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Read the last token of each row: the states (B, C), which places of the cache are no padding, the next positions.

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
        self.cache.lengths = [n + 1 for n in self.cache.lengths]
        width = self.cache.length - (self.cache.capacity - self._real.shape[1])
        return self._hidden.clone(), self._real[:, :width], self._positions


def _compare(found: Tensor, expected: Tensor) -> None:
    off = float((found.float() - expected.float()).abs().max() / expected.float().abs().max())
    if not off <= OFF[str(found.dtype)]:  # so that not-a-number is off, too
        raise RuntimeError(f"a recorded step is {off:.1e} off the plain one")


def may_record(model: Model, cache: Any, steps: int, left: int) -> bool:
    """Whether recording a batch's steps is possible and pays.

    Args:
        steps: that the batch has been the same for.
        left: tokens that its longest answer may still come to.
    """
    possible = model.is_own and not model.is_spread and backend(model.device).records and len(_failed) < MOST_FAILURES
    return possible and steps >= STEADY and min(left, cache.capacity - cache.length) >= PAYS


def note_failure(why: Exception) -> None:
    """Say that a step could not be recorded; after some such failures nothing more is recorded in this process."""
    _failed.append(str(why))
    words = (str(why).splitlines() or ["?"])[0]
    logging.getLogger(__name__).warning(
        "A step could not be recorded as a CUDA graph and is computed as usual: %s", words
    )
