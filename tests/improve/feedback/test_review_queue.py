"""Which answers people are asked to look at."""

from collections import Counter

from traffic import request, thumb

from tuneloop.improve.feedback.review import groups_of, queue
from tuneloop.improve.feedback.value import by_request

LABELS = {"role": "assistant", "content": "answer"}


def grouped(requests, said=(), copies=None, named=()):
    return groups_of(requests, by_request(said, {}), copies or {}, set(named))


def test_a_request_falls_into_the_first_group_that_fits():
    requests = [request(i, i) for i in range(6)] + [
        request(6, 6, completion={**LABELS, "probability": 0.3}), request(7, 7, completion={**LABELS, "probability": 0.9}),
        request(8, 8, finish="length"),
    ]  # fmt: skip
    found = grouped(
        requests,
        [thumb(0, 0, False), thumb(1, 1, True)],
        {"r000001": "answer 1", "r000002": "another answer"},
        ["r000003"],
    )
    assert [found[r.id] for r in requests] == [
        "disliked", "rest", "disagreement", "drifting", "rest", "rest", "uncertain", "rest", "uncertain",
    ]  # fmt: skip


def test_what_has_no_answer_or_a_known_one_is_not_looked_at():
    requests = [
        request(0, 0, error="it failed"), request(1, 1, completion=None), request(2, 2), request(3, 3),
        request(4, 4, prompt=[{"role": "user", "content": "sha256:00"}]),
    ]  # fmt: skip
    assert list(grouped(requests, [thumb(2, 2, True, kind="label", value="billing")])) == ["r000003"]


def test_a_stranger_hides_no_answer_and_what_he_calls_wrong_is_looked_at():
    said = [thumb(1, 2, True, kind="label", value="x", voice="anyone"),
            thumb(2, 2, True, kind="correction", value="x", voice="anyone")]  # fmt: skip
    assert grouped([request(1, 1), request(2, 2)], said) == {"r000001": "rest", "r000002": "disliked"}


def test_four_in_ten_are_random_and_the_rest_comes_in_equal_parts_from_what_teaches_most():
    requests = [request(i, i) for i in range(400)]
    groups = {r.id: ("disliked", "uncertain", "rest", "rest")[i % 4] for i, r in enumerate(requests)}
    chosen = queue(requests, groups, 50)
    strata = Counter(item.stratum for item in chosen)
    assert strata == {"random": 20, "disliked": 15, "uncertain": 15}
    assert len({item.request.id for item in chosen}) == 50
    assert chosen == queue(requests, groups, 50) != queue(requests, groups, 50, seed=1)


def test_nobody_fills_the_queue_alone_and_what_a_group_lacks_others_give():
    requests = [request(i, i, user="flood") for i in range(40)] + [request(i, i) for i in range(40, 60)]
    groups = {r.id: "disliked" if i < 40 else "rest" for i, r in enumerate(requests)}
    chosen = queue(requests, groups, 20)
    assert sum(item.request.user == "flood" for item in chosen if item.stratum == "disliked") == 3
    assert len(chosen) == 20
    assert len(queue(requests[:2], groups, 20)) == 2
