"""Evaluations by other tools: read, aligned, compared; and our rows as a task for one of them."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # What an evaluation could show of a second system.
    from tuneloop.evaluation.foreign.align import Power as Power

    # How evaluations by other tools are compared.
    from tuneloop.evaluation.foreign.align import Refereeing as Refereeing

    # Whether a place holds what another tool has written.
    from tuneloop.evaluation.foreign.read import is_foreign as is_foreign

    # Compare evaluations with the first, and write the comparison.
    from tuneloop.evaluation.foreign.referee import compare_tools as compare_tools

    # What one evaluation could show of a second system.
    from tuneloop.evaluation.foreign.referee import power_alone as power_alone

    # The evaluations at several places.
    from tuneloop.evaluation.foreign.referee import read_all as read_all

    # Rows for a task of another tool.
    from tuneloop.evaluation.foreign.tasks import TaskRows as TaskRows

    # Write the task.
    from tuneloop.evaluation.foreign.tasks import write_task as write_task

__getattr__, __dir__ = door(__name__)
