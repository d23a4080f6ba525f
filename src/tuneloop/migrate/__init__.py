"""Leave a hosted fine-tune, with proof: survey, copy, freeze its answers."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # What was copied, as lines for the terminal.
    from tuneloop.migrate.command import copy_lines as copy_lines

    # All that a service holds, copied to a folder; a copy that was interrupted continues.
    from tuneloop.migrate.command import copy_service as copy_service

    # Fine-tuning jobs and when their models stop, as lines for the terminal.
    from tuneloop.migrate.command import job_lines as job_lines

    # The survey of a service; nothing is copied.
    from tuneloop.migrate.command import look as look

    # The file of the gate's first suite, in the folder of frozen answers.
    from tuneloop.migrate.freeze import SUITE as SUITE

    # A hosted model's answers to the test rows, kept with all replies.
    from tuneloop.migrate.freeze import freeze_answers as freeze_answers

    # What freezing would send, and its price.
    from tuneloop.migrate.freeze import plan_freezing as plan_freezing

    # The record of a copy.
    from tuneloop.migrate.record import Migration as Migration

    # How much a service holds, in words.
    from tuneloop.migrate.survey import volumes as volumes

__getattr__, __dir__ = door(__name__)
