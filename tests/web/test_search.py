"""Requests are found by all that they have, newest first, in looks that say how far they came."""

from __future__ import annotations

from pathlib import Path

import pytest
from traffic import at, request, thumb

from tuneloop.core.errors import UserError
from tuneloop.records.feedback import Feedback
from tuneloop.serving.store.database import insert
from tuneloop.serving.store.erase import erase, find
from tuneloop.serving.store.store import opened
from tuneloop.web import search as s

pytestmark = pytest.mark.usefixtures("each_database")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """300 requests, of which every tenth was rated."""
    given = [
        request(i, i / 100, key=f"k{i % 3}", model=f"m{i % 2}", user=f"u{i % 7}", tier="default", total_ms=float(i),
                arm="candidate" if i % 5 == 0 else None, error="it broke" if i == 40 else None,
                finish="length" if i == 41 else "stop", conversation=f"c{i // 10}" if i < 20 else None)
        for i in range(300)
    ]  # fmt: skip
    given[77].prompt[0]["content"] = 'Wo ist "mein" 100% Paket_7 \U0001f4e6?\nUnd wann?'
    said = [thumb(i, i / 100, i % 20 == 0) for i in range(0, 300, 10)]
    said.append(Feedback(id="g1", conversation="c1", kind="comment", value="all of it", time=at(2)))
    with opened(tmp_path, create=True) as connection:
        insert(connection, given)
        insert(connection, said)
    return tmp_path


def ids(store: Path, **wanted: str) -> list[int]:
    """Numbers of all requests that are found, look after look."""
    numbers: list[int] = []
    cursor = ""
    with opened(store) as connection:
        while True:
            page = s.search(connection, s.filter_of(wanted), cursor)
            numbers += [int(row.request.id[1:]) for row in page.rows]
            if not (cursor := page.cursor):
                return numbers


def test_all_come_once_newest_first_over_several_pages(store: Path) -> None:
    assert ids(store) == list(range(299, -1, -1))


@pytest.mark.parametrize("wanted", ['"mein" 100% paket_7', "\U0001f4e6?\nUnd", "WO IST"])
def test_texts_are_found_as_people_write_them(store: Path, wanted: str) -> None:
    assert ids(store, text=wanted) == [77]


def test_signs_of_sql_are_letters(store: Path) -> None:
    assert ids(store, text="1_0% ") == [] and ids(store, text="'; DROP TABLE requests") == []


def test_each_filter_and_several_together(store: Path) -> None:
    every = range(299, -1, -1)
    assert ids(store, key="k1") == [i for i in every if i % 3 == 1]
    assert ids(store, model="m0", arm="candidate") == [i for i in every if i % 10 == 0]
    assert ids(store, user="u3", slower="150") == [i for i in every if i % 7 == 3 and i >= 150]
    assert ids(store, state="failed") == [40] and ids(store, state="cut off") == [41]
    assert ids(store, since=at(1), until=at(1.5)) == list(range(149, 99, -1))
    assert ids(store, conversation="c0") == list(range(9, -1, -1))


def test_feedback_on_a_request_or_its_conversation(store: Path) -> None:
    assert ids(store, feedback="good") == list(range(280, -1, -20))
    assert ids(store, feedback="bad") == list(range(290, -1, -20))
    assert ids(store, feedback="comment") == list(range(19, 9, -1))
    assert len(ids(store, feedback="any")) == 30 + 9 and len(ids(store, feedback="none")) == 300 - 39


def test_a_look_without_time_says_how_far_it_came_and_the_next_continues(store: Path) -> None:
    with opened(store) as connection:
        page = s.search(connection, s.filter_of({"text": "question 3"}), seconds=0.0)
        assert page.cursor == "" or page.back_to


def test_many_requests_of_one_moment_are_all_found(tmp_path: Path) -> None:
    with opened(tmp_path, create=True) as connection:
        insert(connection, [request(i, 1.0) for i in range(130)])
    assert ids(tmp_path) == list(range(129, -1, -1))


def test_parts_of_time_leave_nothing_out(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s, "PART", 7)
    assert ids(store, text="question") == [i for i in range(299, -1, -1) if i != 77]
    assert ids(store, feedback="bad") == list(range(290, -1, -20))


def test_what_was_erased_is_found_no_more(store: Path) -> None:
    assert len(ids(store, user="u3")) == 43
    with opened(store) as connection:
        erase(connection, "user=u3", find(connection, "user=u3"))
    assert ids(store, user="u3") == [] and not {i for i in ids(store, text="question") if i % 7 == 3}


@pytest.mark.parametrize("wrong", [{"since": "soon"}, {"slower": "very"}, {"state": "odd"}, {"feedback": "odd"}])
def test_a_filter_that_is_none_is_refused_with_a_next_step(wrong: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"Not a|No such"):
        s.filter_of(wrong)


def test_the_choices_are_what_the_store_has(store: Path) -> None:
    with opened(store) as connection:
        assert s.choices(connection) == {"model": ["m0", "m1"], "key": ["k0", "k1", "k2"], "tier": ["default"]}
