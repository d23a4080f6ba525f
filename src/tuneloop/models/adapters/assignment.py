"""Which adapter applies to which row, set for a forward pass and not kept on the model.

    with applied(BASE):                    # the base model: no adapter at all
        model.hidden(ids)
    with applied([first, BASE, second]):   # a row each: adapters by hash, see `shared.py`
        model.hidden(ids)

Without `applied`, the adapter that training has attached applies to all rows (`ATTACHED`). The setting holds in its
thread alone, so that two threads can use different adapters of one model at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from tuneloop.core.device import backend, put
from tuneloop.core.units import counted
from tuneloop.models.nn.batch_invariance import is_batch_invariant, repeated

if TYPE_CHECKING:
    import torch
    from torch import Tensor


BASE = "base"  # no adapter
ATTACHED = ""  # the one that training has put into the model, if there is one


@dataclass(frozen=True)
class Assignment:
    """Which adapter applies to each row of a pass."""

    names: tuple[str, ...]  # the different ones
    rows: tuple[int, ...] = ()  # for each row its place among them; empty where there is one for all
    # For each token of the pass (rows * length) the place of its name, once the network knows its layout.
    which: Tensor | None = None
    # For each name its tokens among them (indices); on a GPU, which would have to be waited for, only when needed.
    tokens: tuple[Tensor, ...] = ()

    @property
    def mixed(self) -> bool:
        """Whether rows differ."""
        return len(self.names) > 1


_ASSIGNED: ContextVar[Assignment | None] = ContextVar("adapters", default=None)


def assignment() -> Assignment | None:
    """What holds in this thread now; None, also while compiling: the attached adapter for all rows."""
    import torch

    return None if torch.compiler.is_compiling() else _ASSIGNED.get()


def is_mixed() -> bool:
    """Whether rows of a pass in this thread have different adapters."""
    now = _ASSIGNED.get()
    return now is not None and now.mixed


def applied_now() -> str:
    """The adapter that applies to all rows in this thread now. Raises ValueError: rows have different ones."""
    if is_mixed():
        raise ValueError("rows have different adapters")
    now = _ASSIGNED.get()
    return ATTACHED if now is None else now.names[0]


@contextmanager
def applied(names: str | Sequence[str]) -> Iterator[None]:
    """Passes within use these adapters: one for all rows, or one for each row."""
    distinct = (names,) if isinstance(names, str) else tuple(dict.fromkeys(names))
    with assigned(Assignment(distinct, tuple(map(distinct.index, names)) if len(distinct) > 1 else ())):
        yield


@contextmanager
def assigned(assignment: Assignment) -> Iterator[None]:
    """`applied`, of an assignment."""
    token = _ASSIGNED.set(assignment)
    try:
        yield
    finally:
        _ASSIGNED.reset(token)


@contextmanager
def some_rows(rows: slice) -> Iterator[None]:
    """A pass over some of the rows only."""
    now = _ASSIGNED.get()
    if now is None or not now.mixed:
        yield
        return
    with assigned(replace(now, rows=now.rows[rows], which=None, tokens=())):
        yield


@contextmanager
def rows_of_tokens(of_tokens: Tensor, rows: int) -> Iterator[None]:
    """Within the network: `of_tokens` has the row of each token of the pass, in the layout that layers see. What holds
    for as many tokens already stays: a recorded pass can't work it out again. Raises ValueError: adapters were named
    for another number of rows."""
    now = _ASSIGNED.get()
    if now is None or not now.mixed or (now.which is not None and len(now.which) == len(of_tokens)):
        yield
        return
    import torch

    if rows != len(now.rows):
        raise ValueError(f"adapters are named for {counted(len(now.rows), 'row')}, and the pass has {rows}")
    now = replace(now, which=put(torch.tensor(now.rows), of_tokens.device).index_select(0, of_tokens))
    if backend(of_tokens.device).is_cpu:
        now = replace(now, tokens=_tokens_of(now))
    with assigned(now):
        yield


@contextmanager
def tokens_on(device: torch.device) -> Iterator[None]:
    """Within the network: the assignment of tokens, on the card of some layers."""
    now = _ASSIGNED.get()
    if now is None or now.which is None:
        yield
        return
    with assigned(replace(now, which=now.which.to(device), tokens=tuple(at.to(device) for at in now.tokens))):
        yield


def _tokens_of(now: Assignment) -> tuple[Tensor, ...]:
    if now.which is None:
        raise ValueError("rows with different adapters go through the model's own pass only")
    if now.tokens:
        return now.tokens
    tokens = tuple((now.which == i).nonzero()[:, 0] for i in range(len(now.names)))
    return tuple(repeated(at) if len(at) else at for at in tokens) if is_batch_invariant() else tokens


class LayerAdapter(Protocol):
    """A layer's adapter."""

    def forward_alone(self, x: Tensor) -> Tensor:
        """The layer's output (..., C) with this adapter on all tokens."""

    def added(self, x: Tensor, y: Tensor) -> Tensor:
        """The base layer's output `y` (tokens, C) of `x` with the adapter's part added."""


# Adds to the base layer's output `y` of `x` at each token the part of its adapter.
AddAll = Callable[["Tensor", "Tensor", Assignment], "Tensor | None"]


def forward_assigned(
    base: Any, find: Callable[[str], LayerAdapter | None], x: Tensor, now: Assignment, add_all: AddAll | None = None
) -> Tensor:
    """A layer's output where each token takes the adapter that is assigned to its row, or none.

    The base's product is computed once for all tokens; each adapter then adds its part to its own.

    Args:
        base: the layer without adapters.
        find: the adapter of a name in this layer, if it has one there.
        add_all: adds the parts of all at once, where it can; on a GPU, where work is not cut into small pieces.
    """
    if not now.mixed:
        update = find(now.names[0])
        return base(x) if update is None else update.forward_alone(x)
    flat = x.flatten(0, -2)
    y: Tensor = base(flat)
    if add_all is not None and not now.tokens and (all_added := add_all(flat, y, now)) is not None:
        return all_added.view(*x.shape[:-1], y.shape[-1])
    for name, at in zip(now.names, _tokens_of(now), strict=True):
        if (update := find(name)) is not None and len(at):
            y = y.index_copy(0, at, update.added(flat[at], y[at]).to(y.dtype))
    return y.view(*x.shape[:-1], y.shape[-1])
