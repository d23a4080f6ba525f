"""Served traffic to better models: collect, feedback, monitor, experiments, retraining."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # A server with its experiments, its monitor and its retraining, until a signal.
    from tuneloop.improve.serve import serve_until_stopped as serve_until_stopped

__getattr__, __dir__ = door(__name__)
