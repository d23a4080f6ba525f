"""Has production changed, and does it matter? Windows of requests, quality, canary prompts."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # The kind of an event with what a window shows.
    from tuneloop.improve.monitor.command import EVENT as EVENT

    # A length of time in days, as in 7d or 12h.
    from tuneloop.improve.monitor.command import days_of as days_of

    # Log that a person knows a change.
    from tuneloop.improve.monitor.command import ignore as ignore

    # Detectors that a person has said to ignore.
    from tuneloop.improve.monitor.command import ignored as ignored

    # Monitor one window, and log what was found.
    from tuneloop.improve.monitor.command import monitor_store as monitor_store

    # Refuse to send canary prompts to the server that is monitored.
    from tuneloop.improve.monitor.command import refuse_itself as refuse_itself

    # The text of an answer.
    from tuneloop.improve.monitor.detectors import answer_of as answer_of

    # What is compared.
    from tuneloop.improve.monitor.record import MonitorOptions as MonitorOptions

    # What one window shows.
    from tuneloop.improve.monitor.record import MonitorReport as MonitorReport

__getattr__, __dir__ = door(__name__)
