"""Packages that are also what they do: `from tuneloop import train`, then `train(...)`, next to `tuneloop.training.loop`."""

from __future__ import annotations

import importlib
import inspect
import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    """A package that calls the function of its own name in another module, which is imported only then."""

    def _function(self) -> Any:
        return getattr(importlib.import_module(self.__dict__["_functions"]), self.__name__.rpartition(".")[2])

    def __call__(self, *args: Any, **settings: Any) -> Any:
        return self._function()(*args, **settings)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._function())

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        function = self._function()
        return f"{function.__name__}{inspect.signature(function)}\n\n{inspect.getdoc(function)}"


def make_callable(name: str, functions: str) -> None:
    """Make a package callable: what its `__init__.py` does.

    Args:
        name: of the package.
        functions: the module with the function of the package's name.
    """
    package = sys.modules[name]
    package.__dict__.pop("__doc__", None)  # the function's takes its place
    package.__dict__["_functions"] = functions
    package.__class__ = _CallablePackage
