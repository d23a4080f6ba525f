"""Rows for training, preference pairs and a clean test set, from a store."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # Why requests become no rows, in words.
    from tuneloop.improve.collect.collect import DROPPED as DROPPED

    # Which requests become rows, and how.
    from tuneloop.improve.collect.collect import CollectOptions as CollectOptions

    # Make a data set of a store.
    from tuneloop.improve.collect.command import collect_store as collect_store

    # Settings with which a recipe trains on collected rows.
    from tuneloop.improve.collect.command import settings_of_retraining as settings_of_retraining

    # Write answered requests as JSON Lines.
    from tuneloop.improve.collect.command import write_requests as write_requests

__getattr__, __dir__ = door(__name__)
