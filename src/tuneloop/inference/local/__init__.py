"""Our own engine: prompts in batches, answers written, labels scored, losses measured."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # Answers of a loaded model to requests with token ids.
    from tuneloop.inference.local.answers import answer_requests as answer_requests

    # Answers of a loaded model to prompts.
    from tuneloop.inference.local.answers import generate as generate

    # A row whose answer is being written.
    from tuneloop.inference.local.engine import ActiveRow as ActiveRow

    # A model in this process, by name or loaded already.
    from tuneloop.inference.local.target import LocalTarget as LocalTarget

    # Rows that several processes answer together.
    from tuneloop.inference.local.target import SharedWork as SharedWork

    # What has all processes answer.
    from tuneloop.inference.local.target import Workers as Workers

    # What a name means to our own engine; nothing is loaded yet.
    from tuneloop.inference.local.target import open_local as open_local

__getattr__, __dir__ = door(__name__)
