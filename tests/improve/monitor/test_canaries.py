"""The same prompts every day: what changed is found and named, what chance does raises no alarm for long."""

import random
from dataclasses import replace

import pytest
from traffic import at, request

from tuneloop.improve.monitor.canaries import (
    FIRST_ROUNDS,
    MARK,
    SHARE,
    canary_level,
    canary_rows,
    follow,
    round_in_words,
    rounds_of,
    without_texts,
)
from tuneloop.records.rows import Row

LEVEL = canary_level(2.0, 1.0)
N = 20


def row(i, label=None):
    turns = [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": label or f"answer {i}"}]
    return Row(f"row{i}", turns, label)


ROWS = {f"row{i}": row(i, "right") for i in range(N)}


def asked(days, answer=lambda i: "right", **changes):
    """A round of stored requests; its name follows from its time."""
    return [
        request(int(days * 1000) * 100 + i, days, shadow=f"{MARK}row{i}", conversation=f"round {days}", completion=answer(i), **changes)
        for i in range(N)
    ]  # fmt: skip


def followed(*rounds, level=LEVEL):
    return follow(rounds_of(entry for item in rounds for entry in item), ROWS, level)


FIRST = [asked(k / 1000) for k in range(FIRST_ROUNDS)]


def test_answers_that_stay_raise_nothing():
    found = followed(*FIRST, asked(1), asked(2))
    assert not any(match.alarm or match.changed for match in found)
    assert "for the first time" in found[0].sentence and "answered as before" in found[-1].sentence
    assert found[-1].compared == N and found[-1].chances == N * FIRST_ROUNDS


def test_an_alarm_names_the_prompts_the_change_and_what_it_costs():
    found = followed(*FIRST, asked(1, lambda i: "wrong" if i in (3, 7) else "right"))[-1]
    assert found.alarm and found.p <= found.level and [item.row for item in found.changed] == ["row3", "row7"]
    assert (found.right_before, found.right_now, found.known) == (2, 0, 2)
    text = round_in_words(found)
    assert "'question 3': 'right' -> 'wrong'" in text and "Next: nothing was released" in text
    assert "question" not in without_texts(found).model_dump_json() and "row row3" in round_in_words(
        without_texts(found)
    )


def test_a_new_release_may_answer_otherwise_and_is_what_is_compared_with_from_then_on():
    new = {"release": "7", "adapter": "b"}
    other = asked(1, lambda i: "wrong", **new)
    found = followed(*FIRST, other, asked(2, lambda i: "wrong", **new), asked(3, lambda i: "third", **new))
    assert found[-3].new_release and len(found[-3].changed) == N and not found[-3].alarm
    assert "a new release answers" in round_in_words(found[-3])
    assert not found[-2].changed and found[-1].alarm


def test_one_new_answer_is_said_at_once_and_an_alarm_when_there_is_enough_to_compare_with():
    item = {"answer": lambda i: "wrong" if i == 0 else "right"}
    at_once = followed(*FIRST, asked(1, **item))[-1]
    assert len(at_once.changed) == 1 and not at_once.alarm and "1 of 20" in at_once.sentence
    assert followed(*FIRST, *(asked(day) for day in range(1, 10)), asked(10, **item))[-1].alarm


def test_an_answer_that_comes_back_is_known():
    flips = [asked(day, lambda i, day=day: "b" if i == 0 and day % 2 else "a") for day in range(1, 9)]
    found = followed(*flips)
    assert [len(match.changed) for match in found] == [0, 1, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("rate", [3e-4, 3e-3, 0.03, 0.3])
def test_engines_that_change_answers_by_chance_keep_the_false_alarms_of_a_year(rate):
    from tuneloop.improve.monitor.canaries import chance_of

    rng, alarms, years = random.Random(0), 0, 20
    chances = {}
    for _ in range(years):
        changed, compared = sum(rng.random() < rate for _ in range(N * FIRST_ROUNDS)), N * FIRST_ROUNDS
        for _ in range(365):
            new = sum(rng.random() < rate for _ in range(N))
            key = new, changed, compared
            if new and key not in chances:
                chances[key] = chance_of(new, N, changed, compared)
            alarms += bool(new) and chances[key] <= LEVEL
            changed, compared = changed + new, compared + N
    assert alarms / years <= 2 * SHARE * 1.5  # 1 a year is meant; 20 years are few


def test_failed_and_erased_answers_are_counted_and_change_nothing():
    gone = asked(1, lambda i: None)
    broken = [replace(item, **{"error": "engine: it died", "completion": None}) for item in asked(2)]
    found = followed(*FIRST, gone, broken, asked(3))
    assert found[-3].failed == found[-2].failed == N and not any(match.changed for match in found)
    assert "20 got no answer" in found[-2].sentence


def test_digests_of_answers_can_be_compared_too():
    hashed = [asked(k / 1000, lambda i: {"role": "assistant", "content": "sha256:aa"}) for k in range(FIRST_ROUNDS)]
    found = followed(*hashed, asked(1, lambda i: {"role": "assistant", "content": f"sha256:{'bb' if i < 2 else 'aa'}"}))
    assert len(found[-1].changed) == 2 and found[-1].alarm


def test_the_same_rows_are_asked_whatever_joins_them():
    rows = [row(i) for i in range(200)]
    few = canary_rows(rows, N)
    assert len(few) == N and few == canary_rows(list(reversed(rows)), N)
    assert len(set(map(id, canary_rows([*rows, *(row(i) for i in range(200, 210))], N))) & set(map(id, few))) >= N - 4


def test_other_requests_are_no_rounds():
    assert rounds_of([request(1, 0), request(2, 0, shadow="r000001"), request(3, 0, conversation="talk")]) == []
    assert at(0)
