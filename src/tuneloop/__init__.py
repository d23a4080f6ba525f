"""tuneloop: from a folder of raw examples to a fine-tuned Llama 3, measured and documented.

From Python: the functions of `tuneloop.api`, see docs/library.md; the same as the commands of these names.
"""

import importlib
from typing import TYPE_CHECKING, Any

from tuneloop.core.errors import UserError as UserError
from tuneloop.core.version import __version__ as __version__

if TYPE_CHECKING:
    from tuneloop.api import Evaluation as Evaluation
    from tuneloop.api import Run as Run
    from tuneloop.api import advise as advise
    from tuneloop.api import compare as compare
    from tuneloop.api import evaluate as evaluate
    from tuneloop.api import export as export
    from tuneloop.api import plan as plan
    from tuneloop.api import predict as predict
    from tuneloop.api import prepare as prepare
    from tuneloop.api import prompt as prompt
    from tuneloop.api import run as run
    from tuneloop.api import serve as serve
    from tuneloop.api import train as train
    from tuneloop.data import PrepareConfig as PrepareConfig
    from tuneloop.evaluation.metrics import metric as metric
    from tuneloop.recipe import Recipe as Recipe
    from tuneloop.training import TrainConfig as TrainConfig

_FUNCTIONS = (
    "prepare",
    "advise",
    "plan",
    "train",
    "evaluate",
    "compare",
    "predict",
    "prompt",
    "run",
    "export",
    "serve",
)
_MODULES = {
    **dict.fromkeys((*_FUNCTIONS, "Run", "Evaluation"), "tuneloop.api"),
    "PrepareConfig": "tuneloop.data.config",
    "metric": "tuneloop.evaluation.metrics",
    "Recipe": "tuneloop.recipe",
    "TrainConfig": "tuneloop.training.config",
}


def __getattr__(name: str) -> Any:
    """What loads more than a few files, when it is first used."""
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'tuneloop' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(["UserError", "__version__", *_MODULES])
