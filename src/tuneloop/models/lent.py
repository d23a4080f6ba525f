"""Base models that engines of one process share: one that takes another's place loads its own adapters, and no second base.

model = lend_model("llama-3.1-8b-instruct")
name = lend_adapter(model, Path("runs/tickets"))
...
give_back(model, [name])        # its tensors go once nobody else has them; the base's too
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tuneloop.core.device import default_dtype, in_use
from tuneloop.models.alongside import load_adapter_alongside, unload_adapter
from tuneloop.models.load import Model, fingerprint, load_model
from tuneloop.models.names import resolve


@dataclass
class _Lent:
    """A model, how many have it, and how many have each of its adapters."""

    model: Model
    users: int = 0
    adapters: Counter[str] = field(default_factory=Counter)


_lock = threading.Lock()
_lent: dict[Any, _Lent] = {}


def lend_model(name: str) -> Model:
    """A model by folder, short name or hub name: the one that is loaded already, if its files are the same.

    Raises:
        UserError: see `load_model`.
    """
    with _lock:
        folder = resolve(name)
        key = folder.resolve(), fingerprint(folder), in_use(), default_dtype()
        if key not in _lent:
            _lent[key] = _Lent(load_model(name))
        _lent[key].users += 1
        return _lent[key].model


def lend_adapter(model: Model, folder: Path) -> str:
    """Load an adapter alongside others of a lent model, and return its hash.

    Raises:
        UserError: see `load_adapter_alongside`.
    """
    with _lock:
        name = load_adapter_alongside(model, folder)
        _entry(model).adapters[name] += 1
        return name


def give_back(model: Model, adapters: Iterable[str]) -> None:
    """Let go of a lent model and some of its adapters: what nobody else has is taken out of memory.

    Args:
        adapters: hashes, as often as they were lent.
    """
    with _lock:
        entry = _entry(model)
        for name in adapters:
            entry.adapters[name] -= 1
            if not entry.adapters[name]:
                del entry.adapters[name]
                unload_adapter(model, name)
        entry.users -= 1
        if not entry.users:
            del _lent[next(key for key, each in _lent.items() if each is entry)]


def _entry(model: Model) -> _Lent:
    return next(each for each in _lent.values() if each.model is model)
