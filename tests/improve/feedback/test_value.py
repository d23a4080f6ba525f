import pytest
from traffic import request, thumb

from tuneloop.improve.feedback.value import by_request, conversations_of, current
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
    assert [item.id for item in current(votes)] == ["f2", "f3"]


def test_feedback_on_a_conversation_counts_for_its_last_request():
    of_talk = thumb(1, 1, True, request=None, conversation="c")
    unknown = thumb(2, 1, True, request=None, conversation="other")
    found = by_request([of_talk, unknown], {"c": ["r1", "r2"]})
    assert {key: [item.id for item in value] for key, value in found.items()} == {"r2": [of_talk.id]}


def test_one_vote_of_each_sender_holds_and_names_of_the_same_user_meet_among_believed_ones():
    votes = [thumb(1, day, True, id=f"f{day}", user="u", voice=voice)
             for day, voice in enumerate((None, "trusted:app", "key:anna", "anyone", "anyone"))]  # fmt: skip
    assert [item.id for item in current(votes)] == ["f1", "f2", "f4"]


def test_conversations_of_two_keys_are_two_whatever_their_names():
    requests = [request(1, 0, key="anna", conversation="c"), request(2, 1, key="ben", conversation="c"),
                request(3, 2, key="", conversation="c")]  # fmt: skip
    talk = {"request": None, "conversation": "c"}
    said = [thumb(1, 3, True, id=f"f{i}", user=f"u{i}", voice=voice, **talk)
            for i, voice in enumerate((None, "key:anna", "key:ben", "key:carl", "anyone", "trusted:ben", "trusted:desk"))]  # fmt: skip
    found = by_request(said, conversations_of(requests))
    # Who began it had it, where nothing else is said; a stranger speaks of none.
    assert {id_: [item.id for item in of] for id_, of in found.items()} == {
        "r000001": ["f0", "f1", "f6"], "r000002": ["f2", "f5"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("voice", "key", "teaches"),
    [
        (None, "anna", True), ("trusted:desk", "anna", True), ("trusted:", "", True), ("key:anna", "anna", True),
        ("key:anna", None, True), ("key:ben", "anna", False), ("anyone", "anna", False), ("anyone", "", False),
        ("anyone", None, False), ("key:", "", False),
    ],
)  # fmt: skip
def test_a_right_answer_is_learned_from_whoever_asked_or_is_believed(voice, key, teaches):
    assert thumb(1, 1, True, voice=voice).may_teach(key) is teaches
