"""tuneloop: from a folder of raw examples to a fine-tuned Llama 3, measured and documented."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # at run time `train` is the package of that name, which can be called
    from tuneloop.asking.predict import predict as predict
    from tuneloop.train.loop import train as train

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """What loads more than a few files, when it is first used."""
    if name == "predict":
        from tuneloop.asking.predict import predict

        return predict
    raise AttributeError(f"module 'tuneloop' has no attribute {name!r}")
