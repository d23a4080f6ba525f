"""Places by name: each is a file of a package, with a record of its own in one constant."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from typing import Protocol, TypeVar

from tuneloop.core.errors import UserError, did_you_mean


class Named(Protocol):
    """A record with a name."""

    @property
    def name(self) -> str:
        """As people write it."""
        ...


T = TypeVar("T", bound=Named)


def records_of(package: str, path: Iterable[str], constant: str, kind: type[T]) -> dict[str, T]:
    """The record `constant` of every module of a package, by its name.

    Args:
        package, path: `__name__` and `__path__` of the package.
        kind: of the records.
    """
    modules = (importlib.import_module(f"{package}.{module.name}") for module in pkgutil.iter_modules(path))
    found = (getattr(module, constant, None) for module in modules)
    return {one.name: one for one in found if isinstance(one, kind)}


def find_named(known: Mapping[str, T], name: str, what: str, option: str) -> T:
    """One by its name.

    Args:
        what: the sentence that refuses an unknown name.
        option: of the command line, for the message.

    Raises:
        UserError: none of that name; the nearest is named.
    """
    if name in known:
        return known[name]
    raise UserError(what, where=option, next_step=did_you_mean(name, known, f"known: {', '.join(known)}"))
