"""numpy, imported when something of it is first used, for modules that must be cheap to import."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["Array", "NDArray", "np"]


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
