"""Training. The package is also what it does: `from tuneloop import train`, then `train(model, rows, val_rows, config, folder)`."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Train(ModuleType):
    """A package that can be called; that it is heavy to import shows only then."""

    def __call__(self, *args: Any, **settings: Any) -> Any:
        from tuneloop.train.loop import train

        return train(*args, **settings)


sys.modules[__name__].__class__ = _Train
