"""People judge answers without knowing whose they are; their votes as results and as data."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # The file of a review's items.
    from tuneloop.evaluation.review.items import ITEMS as ITEMS

    # A review from its folder.
    from tuneloop.evaluation.review.items import load_review as load_review

    # Draw the items of a review.
    from tuneloop.evaluation.review.items import make_review as make_review

    # The evaluations whose answers are reviewed.
    from tuneloop.evaluation.review.items import read_systems as read_systems

    # The votes of a file.
    from tuneloop.evaluation.review.items import read_votes as read_votes

    # The last vote of each reviewer on an item.
    from tuneloop.evaluation.review.items import standing as standing

    # Votes as data to train on.
    from tuneloop.evaluation.review.results import export as export

    # How many items are open, and about how many reviewers differ.
    from tuneloop.evaluation.review.results import open_and_disputed as open_and_disputed

    # Agreement, ranking and ratings.
    from tuneloop.evaluation.review.results import results_of as results_of

    # The page on which people vote.
    from tuneloop.evaluation.review.server import serve as serve

__getattr__, __dir__ = door(__name__)
