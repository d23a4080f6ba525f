"""Several adapters next to each other on one base, each under its hash; which one applies is said in `adapters.py`."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.core.device import default_dtype, in_use
from tuneloop.core.errors import UserError
from tuneloop.models.adapters import ATTACHED, BASE
from tuneloop.models.load import Model, fingerprint, load_model
from tuneloop.models.methods import method_of_folder
from tuneloop.models.names import resolve
from tuneloop.models.trained import trained_folder

if TYPE_CHECKING:
    from tuneloop.models.load import Model


def load_adapter_alongside(model: Model, folder: Path) -> str:
    """Load an adapter (a folder in PEFT's layout, or a run with one) next to what the model has, and return its hash.

    It applies where `applied` names that. Loading it again changes nothing.

    Raises:
        UserError: it is damaged, another base model's, or of a method that can't stand next to others.
    """
    folder = trained_folder(folder)
    method = method_of_folder(folder)
    if method is None or method.load_alongside is None:
        raise UserError(
            "This is not an adapter that can stand alongside others on one base", where=str(folder),
            next_step="load it as a model of its own",
        )  # fmt: skip
    name = method.load_alongside(model, folder)
    _names_alongside(model).add(name)
    return name


def merge_adapter(model: Model, folder: Path) -> str:
    """Load an adapter into the base's weights, and return its hash: its answers are as fast as the base's, which is
    gone.

    Raises:
        UserError: as `load_adapter_alongside`, or its method can't be merged.
    """
    from tuneloop.models.lora import merge_alongside

    method = method_of_folder(trained_folder(folder))
    if method is None or method.merge is None:
        raise UserError("This is not an adapter that can be merged", where=str(folder), next_step="set merge=false")
    name = load_adapter_alongside(model, folder)
    merge_alongside(model.net, name)
    return name


def _names_alongside(model: Model) -> set[str]:
    """Hashes of the adapters next to each other; kept on the network, since looking through its modules takes a
    millisecond."""
    names: set[str] = vars(model.net).setdefault("adapters_alongside", set())
    return names


def adapters_of(model: Model) -> list[str]:
    """Hashes of the adapters that were loaded next to each other."""
    return sorted(_names_alongside(model))


def unload_adapter(model: Model, name: str) -> None:
    """Take out an adapter that was loaded next to others; naming it is an error from now on."""
    from tuneloop.models.lora import switches
    from tuneloop.models.prefix import prefixes_alongside

    _names_alongside(model).discard(name)
    for switch in switches(model.net).values():
        switch.drop(name)
    prefixes_alongside(model.net).pop(name, None)


def check_adapter(model: Model, name: str) -> None:
    """Refuse an adapter that is not there: a row must never be answered by the base in its place.

    Raises:
        UserError: it is not loaded.
    """
    if name in (BASE, ATTACHED):
        return
    if name not in _names_alongside(model):
        loaded = adapters_of(model)
        step = f"loaded: {', '.join(n[:16] for n in loaded) or 'none'}; or name {BASE!r}"
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
    """A model by folder, short name or hub name: the one that is loaded already, if its files are the same.

    Raises:
        UserError: see `load_model`.
    """
    with _lock:
        folder = resolve(name)
        key = folder.resolve(), fingerprint(folder), in_use(), default_dtype()
        if key not in _shared:
            _shared[key] = _SharedModel(load_model(name))
        _shared[key].users += 1
        return _shared[key].model


def shared_adapter(model: Model, folder: Path) -> str:
    """Load an adapter next to others of a shared model, and return its hash.

    Raises:
        UserError: see `load_adapter_alongside`.
    """
    with _lock:
        name = load_adapter_alongside(model, folder)
        _entry(model).adapters[name] += 1
        return name


def give_back(model: Model, adapters: Iterable[str]) -> None:
    """Let go of a shared model and some of its adapters: what no one else has is taken out of memory.

    Args:
        adapters: hashes, as often as they were shared.
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
            del _shared[next(key for key, each in _shared.items() if each is entry)]


def _entry(model: Model) -> _SharedModel:
    return next(each for each in _shared.values() if each.model is model)
