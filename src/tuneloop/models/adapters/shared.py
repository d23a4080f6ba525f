"""Several adapters on one base, each under its hash; `adapters.py` holds which one applies. Models and adapters that
several users share are counted."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tuneloop.core.device import default_dtype, in_use
from tuneloop.core.errors import UserError
from tuneloop.models.adapters.assignment import ATTACHED, BASE
from tuneloop.models.files.names import resolve
from tuneloop.models.load import Model, fingerprint, load_model
from tuneloop.models.methods.shipped import method_of_folder
from tuneloop.models.trained import trained_folder


def add_adapter(model: Model, folder: Path) -> str:
    """Load an adapter (a PEFT folder, or a run with one) for where `applied` names its hash, which is returned. Raises
    UserError: it is damaged, another base's, or of a method that can't share a base."""
    folder = trained_folder(folder)
    method = method_of_folder(folder)
    if method is None or method.add is None:
        message = "This is not an adapter that can share a base with others"
        raise UserError(message, where=str(folder), next_step="load it as a separate model")
    name = method.add(model, folder)
    _added_names(model).add(name)
    return name


def merge_adapter(model: Model, folder: Path) -> str:
    """Merge an adapter into the base's weights, and return its hash: its answers are as fast as the base's, which is
    overwritten. Raises UserError: as `add_adapter`, or its method can't be merged."""
    from tuneloop.models.adapters.lora import merge_into_base

    method = method_of_folder(trained_folder(folder))
    if method is None or method.merge is None:
        raise UserError("This is not an adapter that can be merged", where=str(folder), next_step="set merge=false")
    name = add_adapter(model, folder)
    merge_into_base(model.net, name)
    return name


def _added_names(model: Model) -> set[str]:
    """Hashes of the added adapters, on the network: looking through its modules takes a millisecond."""
    return vars(model.net).setdefault("added_adapters", set())  # type: ignore[no-any-return]


def adapters_of(model: Model) -> list[str]:
    """Hashes of the adapters that were added."""
    return sorted(_added_names(model))


def unload_adapter(model: Model, name: str) -> None:
    """Take out an adapter that was added; naming it is an error from now on."""
    from tuneloop.models.adapters.lora import switches
    from tuneloop.models.adapters.prefix import added_prefixes

    _added_names(model).discard(name)
    for switch in switches(model.net).values():
        switch.drop(name)
    added_prefixes(model.net).pop(name, None)


def check_adapter(model: Model, name: str) -> None:
    """Raises UserError: the adapter is not loaded; a row must never be answered by the base in its place."""
    if name not in (BASE, ATTACHED, *_added_names(model)):
        step = f"loaded: {', '.join(n[:16] for n in adapters_of(model)) or 'none'}; or name {BASE!r}"
        raise UserError(f"No adapter {name[:16]!r} is loaded", where=f"model {model.name}", next_step=step)


@dataclass
class _SharedModel:
    """A model, how many have it, and how many have each of its adapters."""

    model: Model
    users: int = 0
    adapters: Counter[str] = field(default_factory=Counter)


_lock = threading.Lock()
_shared: dict[Any, _SharedModel] = {}


def shared_model(name: str) -> Model:
    """A model as in `load_model`: the one that is loaded already, if its files are the same."""
    with _lock:
        folder = resolve(name)
        key = folder.resolve(), fingerprint(folder), in_use(), default_dtype()
        if key not in _shared:
            _shared[key] = _SharedModel(load_model(name))
        _shared[key].users += 1
        return _shared[key].model


def shared_adapter(model: Model, folder: Path) -> str:
    """Load an adapter next to others of a shared model, and return its hash; see `add_adapter`."""
    with _lock:
        name = add_adapter(model, folder)
        _entry(model).adapters[name] += 1
        return name


def give_back(model: Model, adapters: Iterable[str]) -> None:
    """Let go of a shared model and adapters (hashes, as often as shared); those without users leave the memory."""
    with _lock:
        entry = _entry(model)
        for name in adapters:
            entry.adapters[name] -= 1
            if not entry.adapters[name]:
                del entry.adapters[name]
                unload_adapter(model, name)
        entry.users -= 1
        if not entry.users:
            del _shared[next(key for key, shared in _shared.items() if shared is entry)]


def _entry(model: Model) -> _SharedModel:
    return next(shared for shared in _shared.values() if shared.model is model)
