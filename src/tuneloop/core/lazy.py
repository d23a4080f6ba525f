"""What is loaded when it is first used: numpy, and the names at the doors of rooms."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

__all__ = ["Array", "NDArray", "door", "np"]


class Late:
    """In place of a module that takes long to import, or that may be missing where it is not needed."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(import_module(self._name), attribute)
        setattr(self, attribute, value)
        return value


if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
else:  # for annotations, which are not evaluated
    np, NDArray, Array = Late("numpy"), "NDArray", "NDArray[np.float64]"


def door(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a room's `__init__.py` (PEP 562): each of its names is imported when first used.

    The names are those that the file imports for type checkers, in the form `from MODULE import NAME as NAME`. It is
    read at the first use of one, so that importing the room costs nothing. Values are not kept: a test that replaces a
    function in its module replaces it at the door too.
    """
    modules: dict[str, str] = {}

    def table() -> dict[str, str]:
        spec = None if modules else find_spec(package)
        source = spec.loader.get_source(package) if spec and spec.loader else None  # type: ignore[attr-defined]
        modules.update(doors_of(source or ""))
        return modules

    def attribute(name: str) -> Any:
        if name.startswith("__") or name not in table():
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(modules[name]), name)

    return attribute, lambda: sorted(table())


def doors_of(source: str) -> dict[str, str]:
    """The names at a door, with the modules that they come from, in the text of its file."""
    return {name: module for module, name in re.findall(r"^    from (\S+) import (\w+) as \2$", source, re.MULTILINE)}
