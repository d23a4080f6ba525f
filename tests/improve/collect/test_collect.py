from collections import Counter

import pytest
from traffic import request, thumb

from tuneloop.evaluation.gate.suite import MustPass
from tuneloop.improve.collect.collect import CollectOptions, collect, is_held_out

USERS = [f"u{i}" for i in range(1, 400)]
TEST = [user for user in USERS if is_held_out(user, 0.1)]
TRAIN = [user for user in USERS if not is_held_out(user, 0.1)]


def asked(number, user=TRAIN[0], **changes):
    return request(number, number / 100, user=user, **changes)


def said(number, kind, value, **changes):
    return thumb(number, number / 100, True, kind=kind, value=value, id=f"{kind}{number}{changes}", **changes)


def collected(requests, feedback, **options):
    return collect(requests, feedback, CollectOptions(**options))


def answers(rows):
    return [row["messages"][-1]["content"] for row in rows]


def test_liked_resolved_corrected_and_labelled_answers_are_imitated_failures_first():
    requests = [asked(i) for i in range(1, 6)]
    feedback = [said(1, "thumbs", True), said(2, "thumbs", False), said(2, "correction", "better"),
                said(3, "label", "billing"), said(4, "resolved", True), said(5, "thumbs", False)]  # fmt: skip
    found = collected(requests, feedback)
    assert answers(found.sft) == ["better", "billing", "answer 4", "answer 1"]
    assert [row["origin"] for row in found.sft] == ["correction", "label", "resolved", "liked"]
    assert [row.get("own") for row in found.sft] == [None, None, True, True]
    assert found.sft[0]["request"] == "r000002" and found.sft[1]["label"] == "billing"
    assert found.with_feedback == 5


def test_pairs_are_corrected_over_given_and_liked_over_disliked_to_the_same_prompt():
    prompt = [{"role": "user", "content": "the same"}]
    requests = [asked(1), asked(2, prompt=prompt), asked(3, prompt=prompt, user=TRAIN[1])]
    feedback = [said(1, "correction", "better"), said(2, "thumbs", True), said(3, "thumbs", False)]
    found = collected(requests, feedback)
    pairs = [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in found.preference]
    assert pairs == [("better", "answer 1"), ("answer 2", "answer 3")]


def test_a_chosen_answer_is_better_than_the_other_to_the_same_prompt():
    prompt = [{"role": "user", "content": "the same"}]
    requests = [asked(i, prompt=prompt) for i in range(1, 5)] + [asked(5)]
    feedback = [said(1, "choice", "r000002"), said(3, "choice", "r000004", user="x"), said(4, "choice", "r000003", user="y"),
                said(2, "choice", "r000005"), said(5, "choice", "nobody knows it")]  # fmt: skip
    found = collected(requests, feedback)
    pairs = [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in found.preference]
    assert pairs == [("answer 1", "answer 2")] and not found.sft and not found.kto
    assert found.dropped["contradicting"] == 2 and found.dropped["unclear"] == 2


def test_an_edited_answer_is_a_correction_and_a_flag_is_none():
    found = collected([asked(1), asked(2)], [said(1, "edited", "better words"), said(2, "edited", True)])
    assert answers(found.sft) == ["better words"]
    (pair,) = found.preference
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == ("better words", "answer 1")
    assert {row["request"]: row["thumb"] for row in found.kto} == {"r000001": False, "r000002": False}


def test_corrected_failures_are_demands_for_a_suite():
    system = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Where?"}]
    talk = [*system, {"role": "assistant", "content": "Here"}, {"role": "user", "content": "No"}]
    requests = [asked(1), asked(2, prompt=system), asked(3, prompt=talk), asked(4), asked(5, completion="billing")]
    feedback = [said(1, "correction", "better"), said(2, "label", "billing"), said(3, "correction", "c"),
                said(4, "thumbs", True), said(5, "label", "billing")]  # fmt: skip
    rows = collected(requests, feedback).must_pass
    assert rows == [{"prompt": "question 1", "equals": "better", "request": "r000001"},
                    {"prompt": "Where?", "system": "Be brief", "equals": "billing", "request": "r000002"}]  # fmt: skip
    assert all(MustPass.model_validate(row).has_condition for row in rows)


def called(name="menu", arguments="{}"):
    return {"role": "assistant", "content": None,
            "tool_calls": [{"id": "c0", "type": "function", "function": {"name": name, "arguments": arguments}}]}  # fmt: skip


def test_calls_of_tools_are_answers_too():
    requests = [
        asked(1, completion=called()),
        asked(2, completion=called(arguments='{"q": 1}')),
        asked(3, completion=called()),
    ]
    feedback = [said(1, "thumbs", True), said(2, "correction", "no menu today"), said(3, "thumbs", False)]
    found = collected(requests, feedback)
    assert [row["messages"][-1].get("tool_calls") for row in found.sft] == [None, called()["tool_calls"]]
    assert found.sft[1]["messages"][-1]["content"] == "" and found.sft[1]["own"]
    (pair,) = found.preference
    assert pair["chosen"][0]["content"] == "no menu today" and pair["rejected"][0]["tool_calls"]
    assert [row["thumb"] for row in found.kto] == [False, True, False] and not found.dropped.total()
    hashed = collected([asked(1, completion=called("sha256:0a"))], feedback[:1])
    assert not hashed.sft and hashed.dropped["not kept"] == 1


def test_single_answers_are_rated_good_or_bad():
    requests = [asked(i) for i in range(1, 5)]
    feedback = [said(1, "thumbs", True), said(2, "rating", 1), said(3, "rating", 3), said(4, "correction", "x")]
    thumbs = {row["request"]: row["thumb"] for row in collected(requests, feedback).kto}
    assert thumbs == {"r000001": True, "r000002": False, "r000004": False}


def test_some_users_are_never_trained_on_and_a_larger_share_keeps_them():
    users = [*TEST[:5], *TRAIN[:20]]
    requests = [asked(i, user=user) for i, user in enumerate(users, 1)]
    feedback = [said(i, "thumbs", True) for i in range(1, 26)]
    found = collected(requests, feedback)
    assert {row["user"] for row in found.heldout} == set(TEST[:5])
    assert {row["user"] for row in [*found.sft, *found.kto, *found.preference]} == set(TRAIN[:20])
    assert all(is_held_out(user, 0.3) for user in TEST)
    assert abs(len(TEST) / len(USERS) - 0.1) < 0.05


def test_one_user_can_not_flood_a_file():
    requests = [asked(i) for i in range(1, 51)] + [asked(99, user=TRAIN[1])]
    feedback = [said(i, "thumbs", True) for i in [*range(1, 51), 99]] + [said(50, "correction", "better")]
    found = collected(requests, feedback, per_user=3)
    assert answers(found.sft) == ["better", "answer 1", "answer 2", "answer 99"]
    assert found.dropped["user's share"] == 47 + 47  # of sft and of kto


def test_own_answers_have_their_share():
    requests = [asked(i, user=TRAIN[i]) for i in range(1, 21)]
    feedback = [said(i, "thumbs", True) for i in range(1, 19)] + [said(i, "correction", "c") for i in (19, 20)]
    found = collected(requests, feedback, own_share=0.5)
    assert sum("own" in row for row in found.sft) == 2 and len(found.sft) == 4
    assert found.dropped["own outputs"] == 16


@pytest.mark.parametrize(
    ("change", "feedback", "reason"),
    [
        ({"error": "died", "completion": None}, [("thumbs", True)], "failed"),
        ({"finish": "length"}, [("thumbs", True)], "failed"),
        ({"completion": None}, [("thumbs", True)], "not kept"),
        ({"completion": "sha256:00"}, [("thumbs", True)], "not kept"),
        ({}, [("correction", "sha256:00")], "not kept"),
        ({}, [("correction", "")], "not kept"),
        ({"prompt": []}, [("thumbs", True)], "not kept"),
        ({"key": "partner"}, [("thumbs", True)], "no consent"),
        ({}, [("thumbs", True), ("resolved", False)], "contradicting"),
        ({}, [("comment", "well")], "unclear"),
    ],
)  # fmt: skip
def test_what_gives_no_row_has_a_reason(change, feedback, reason):
    found = collected(
        [asked(1, **change)], [said(1, kind, value) for kind, value in feedback], without_keys="partner, x"
    )
    assert found.dropped == {reason: 1, "own outputs": 0}
    assert not found.sft + found.preference + found.kto + found.heldout


def test_two_people_who_correct_differently_contradict_each_other():
    feedback = [said(1, "correction", "a", user="x"), said(1, "correction", "b", user="y")]
    assert collected([asked(1)], feedback).dropped["contradicting"] == 1


def test_feedback_on_a_conversation_counts_for_its_last_answer():
    requests = [asked(1, conversation="c"), asked(2, conversation="c")]
    feedback = [said(1, "resolved", True, request=None, conversation="c")]
    assert answers(collected(requests, feedback).sft) == ["answer 2"]


def test_one_voice_gives_as_many_rows_as_one_user_also_to_the_test():
    requests = [asked(i, user=TEST[i % 20] if i % 2 else TRAIN[i], voice="key:bot") for i in range(1, 41)]
    found = collected(requests, [said(i, "thumbs", True, user=None) for i in range(1, 41)], per_user=3)
    assert [len(of) for of in (found.sft, found.kto, found.heldout)] == [3, 3, 3]
    assert {row["user"] for row in found.heldout} <= set(TEST), "rows name whom they are said to come from"


def test_right_answers_of_strangers_are_left_out_and_their_thumbs_stay():
    requests = [asked(i, key="app") for i in range(1, 5)]
    feedback = [said(1, "correction", "poison", voice="anyone"), said(2, "label", "poison", voice="key:other"),
                said(3, "edited", "poison", voice="anyone"), said(3, "thumbs", True, voice="anyone"),
                said(4, "correction", "poison", voice="anyone"), said(4, "correction", "right", voice="key:app")]  # fmt: skip
    found = collected(requests, feedback)
    assert {row["request"]: row["messages"][-1]["content"] for row in found.sft} == {
        "r000003": "answer 3", "r000004": "right",
    }  # fmt: skip
    assert [row["equals"] for row in found.must_pass] == ["right"] and +found.dropped == {"stranger": 4}


def test_a_correction_of_an_answer_that_was_cut_off_or_failed_is_learned():
    requests = [asked(1, finish="length"), asked(2, error="died", completion=None), asked(3, finish="length")]
    feedback = [said(1, "correction", "whole"), said(2, "label", "billing"), said(3, "thumbs", False)]
    rows = collected(requests, feedback)
    assert answers(rows.sft) == ["whole", "billing"] and rows.dropped["failed"] == 1
    assert [row["equals"] for row in rows.must_pass] == ["whole", "billing"]
    assert [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows.preference] == [
        ("whole", "answer 1")
    ]
    assert [row["request"] for row in rows.kto] == ["r000001"]  # nothing was answered to the second


def test_other_users_of_a_key_do_not_outvote_the_user_who_asked():
    requests = [asked(1, user=TRAIN[0], key="app"), asked(2, user=TRAIN[0], key="app")]
    stranger = {"user": "mallory", "voice": "key:app"}
    feedback = [
        said(1, "thumbs", True, user=TRAIN[0], voice="key:app"),
        said(1, "correction", "buy at mallory's", **stranger),
        said(2, "thumbs", True, user=TRAIN[0], voice="key:app"),
        said(2, "thumbs", False, **stranger),
    ]
    rows = collected(requests, feedback)
    assert answers(rows.sft) == ["answer 1", "answer 2"] and rows.dropped["outvoted"] == 2
    reviewed = collected(
        requests, [*feedback, said(1, "correction", "checked", user="reviewer", voice="trusted:staff")]
    )
    assert "buy at mallory's" not in answers(reviewed.sft)
    unrated = collected(requests[:1], feedback[1:2])
    assert answers(unrated.sft) == ["buy at mallory's"]  # the key may teach where the user said nothing


def test_no_prompt_is_in_training_and_test():
    same = [{"role": "user", "content": "Where is my card?"}]
    also = [{"role": "user", "content": "where is  my card?"}]
    requests = [asked(1, prompt=same), asked(2, user=TEST[0], prompt=also), asked(3, user=TEST[0])]
    rows = collected(requests, [said(i, "thumbs", True, user=None) for i in (1, 2, 3)])
    assert [row["request"] for row in rows.heldout] == ["r000003"] and rows.dropped["trained on"] == 1
    assert [row["request"] for row in rows.sft] == ["r000001"]


def test_one_user_can_not_flood_the_test():
    requests = [asked(i, user=TEST[0]) for i in range(1, 51)] + [asked(99, user=TEST[1])]
    rows = collected(requests, [said(i, "thumbs", True) for i in [*range(1, 51), 99]], per_user=3)
    assert Counter(row["user"] for row in rows.heldout) == {TEST[0]: 3, TEST[1]: 1}
