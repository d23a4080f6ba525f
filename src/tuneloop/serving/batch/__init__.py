"""Batches without a server, as other rooms use them."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # What is answered, where the result goes, and when.
    from tuneloop.serving.batch.command import BatchInput as BatchInput

    # Answer a batch to its end, or continue it.
    from tuneloop.serving.batch.command import answer_batch as answer_batch

__getattr__, __dir__ = door(__name__)
