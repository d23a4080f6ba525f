"""Modules that are imported when something of them is first used."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class Late:
    """Stands for a module that takes long to import, or that may be missing where it is not needed."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(import_module(self._name), attribute)
        setattr(self, attribute, value)
        return value


def late(name: str) -> Any:
    """The module `name`, imported when an attribute of it is first read.

    For a heavy library in a module that must be cheap to import. So that types are checked, use it as
    `if TYPE_CHECKING: import numpy as np`, `else: np = late("numpy")`.
    """
    return Late(name)
