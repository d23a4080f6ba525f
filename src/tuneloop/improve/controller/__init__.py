"""Retraining when there is a reason; gate and experiment decide."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # Refuse a project whose files are missing.
    from tuneloop.improve.controller.command import check_files as check_files

    # One pass: the next step of a retraining, or nothing to do.
    from tuneloop.improve.controller.command import improve as improve

    # The project of a file.
    from tuneloop.improve.controller.command import load_project as load_project

    # The decisions of the log, decided again.
    from tuneloop.improve.controller.command import replay as replay

    # Pass after pass, until stopped.
    from tuneloop.improve.controller.command import watch as watch

__getattr__, __dir__ = door(__name__)
