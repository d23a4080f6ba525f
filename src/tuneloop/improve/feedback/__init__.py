"""What people say of answers: added, imported, reviewed, and what it is worth."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # What became of imported feedback.
    from tuneloop.improve.feedback.command import Imported as Imported

    # Add one piece of feedback.
    from tuneloop.improve.feedback.command import add as add

    # Write feedback as JSON Lines.
    from tuneloop.improve.feedback.command import export as export

    # Add feedback from files.
    from tuneloop.improve.feedback.command import import_files as import_files

    # What a store holds of feedback, in numbers.
    from tuneloop.improve.feedback.command import show as show

    # Draw answers of production for a review.
    from tuneloop.improve.feedback.review import draw_queue as draw_queue

    # What was chosen for a review, and why.
    from tuneloop.improve.feedback.review import queue_lines as queue_lines

    # Store what people said in a review as feedback.
    from tuneloop.improve.feedback.review import store_votes as store_votes

    # The feedback that holds: the last of each person, kind and request.
    from tuneloop.improve.feedback.value import current as current

    # The mean of what feedback says.
    from tuneloop.improve.feedback.value import mean_value as mean_value

__getattr__, __dir__ = door(__name__)
