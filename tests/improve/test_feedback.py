import pytest
from traffic import thumb

from tuneloop.improve.feedback import by_request, current
from tuneloop.records.feedback import value_of


@pytest.mark.parametrize(
    ("kind", "value", "good"),
    [
        ("thumbs", True, 1), ("thumbs", False, 0), ("thumbs", "up", 1), ("thumbs", -1, 0), ("thumbs", 1, 1),
        ("rating", 5, 1), ("rating", 1, 0), ("rating", 3, 0.5), ("rating", 0.25, 0.25), ("rating", 7, None),
        ("correction", "so it is", 0), ("comment", "thanks", None), ("resolved", True, 1), ("edited", True, 0),
        ("retried", 0.25, 0.75), ("thumbs", "perhaps", None), ("quality", 0.3, 0.3), ("quality", 30, None),
        ("rating", float("nan"), None), ("thumbs", {"a": 1}, None),
    ],
)  # fmt: skip
def test_feedback_has_a_value_between_bad_and_good_or_none(kind, value, good):
    assert value_of(kind, value) == good


def test_who_votes_again_is_counted_once_with_the_last_vote():
    votes = [thumb(1, 2, True, id="f3"), thumb(1, 1, False, id="f1"), thumb(1, 1, False, id="f2", user="another")]
    assert [one.id for one in current(votes)] == ["f2", "f3"]


def test_feedback_on_a_conversation_counts_for_its_last_request():
    of_talk = thumb(1, 1, True, request=None, conversation="c")
    unknown = thumb(2, 1, True, request=None, conversation="other")
    found = by_request([of_talk, unknown], {"c": ["r1", "r2"]})
    assert {key: [one.id for one in value] for key, value in found.items()} == {"r2": [of_talk.id]}
