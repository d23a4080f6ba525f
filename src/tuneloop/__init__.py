"""tuneloop: from a folder of raw examples to a fine-tuned Llama 3, measured and documented."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # at run time the package of that name, which can be called
    from tuneloop.train.loop import train as train

__version__ = "0.1.0"
