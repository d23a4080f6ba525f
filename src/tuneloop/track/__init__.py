"""Logging runs to MLflow, TensorBoard and Weights & Biases, from processes that can't slow the run."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # The trackers by name, with what installs each.
    from tuneloop.track.tracking import KINDS as KINDS

    # Variables by which a tracker neither waits long nor prints.
    from tuneloop.track.tracking import QUICK_AND_QUIET as QUICK_AND_QUIET

    # Begin, or continue, to log a run folder.
    from tuneloop.track.tracking import start_tracking as start_tracking

__getattr__, __dir__ = door(__name__)
