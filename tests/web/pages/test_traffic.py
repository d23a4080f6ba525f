"""Traffic and one request: what is shown, said, and refused, whatever texts and stores hold."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from traffic import at, request, thumb
from web_pages import pages_of

from tuneloop.evaluation.gate.suite import load_suite
from tuneloop.records.feedback import Feedback
from tuneloop.serving.store.database import insert, open_sqlite
from tuneloop.serving.store.store import opened, read_feedback

MARKUP = "<script>alert(1)</script><img src=x onerror=alert(2)>"
RIGHT_TO_LEFT = "\u202eمرحبا بالعالم\u202c"
EMOJI = "\U0001f469\u200d\U0001f680\U0001f4e6"
LONG = "lorem ipsum " * 9000  # 108 KB


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A server's store with requests that hold all sorts of texts."""
    rows = [
        request(1, 1, completion=MARKUP, model=MARKUP, key=MARKUP),
        request(2, 2, prompt=[{"role": "user", "content": RIGHT_TO_LEFT}], completion=EMOJI, conversation="c"),
        request(3, 3, completion=LONG, conversation="c", arm="candidate", propensity=0.5),
        request(4, 4, error="the engine broke", finish=None, completion=None, prompt=[]),
        request(
            5, 5, completion={"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "find"}}]}
        ),
    ]
    with opened(tmp_path / "serve", create=True) as store:
        insert(store, rows)
        insert(
            store, [thumb(2, 2, False), Feedback(id="f9", conversation="c", kind="comment", value=MARKUP, time=at(3))]
        )
    return tmp_path


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_texts_are_shown_and_never_become_markup(folder: Path, number: int) -> None:
    pages = pages_of(folder)
    for html in (pages.get("/traffic"), pages.get(f"/traffic/r{number:06d}")):
        assert "<script>alert" not in html and "<img src=x" not in html and 'style="' not in html
    assert MARKUP.replace("<", "&lt;").replace(">", "&gt;") in pages.get("/traffic/r000001")
    assert RIGHT_TO_LEFT in pages.get("/traffic/r000002") and EMOJI in pages.get("/traffic/r000002")
    assert LONG.strip() in pages.get("/traffic/r000003") and len(pages.get("/traffic")) < 30_000


def test_a_request_has_its_conversation_feedback_and_facts(folder: Path) -> None:
    html = pages_of(folder).get("/traffic/r000003")
    assert "/traffic/r000002" in html and "of the conversation" in html and "50% meet the candidate" in html
    assert "the engine broke" in pages_of(folder).get("/traffic/r000004") and "find" in pages_of(folder).get(
        "/traffic/r000005"
    )


def test_a_person_thumbs_corrects_and_labels_as_the_api_does(folder: Path) -> None:
    pages = pages_of(folder)
    assert "is stored" in pages.send("/traffic/r000001", {"kind": "down"})
    with opened(folder / "serve") as store:
        (first,) = read_feedback(store, where="request = 'r000001'")
    assert (first.kind, first.value, first.user, first.source) == ("thumbs", False, "reviewer:ann", "page")
    assert first.believed, "what is said here may teach, as a review does"
    html = pages.send(
        "/traffic/r000001", {"kind": "correction", "value": "mail me at bob@example.org", "seen": first.id}
    )
    assert "bob@example.org" not in html, "personal data of a correction is replaced, as by the command"
    pages.send("/traffic/r000001", {"kind": "label", "value": " ", "seen": "~"}, 400)
    pages.send("/traffic/r000001", {"kind": "odd", "value": "x", "seen": "~"}, 400)


def test_a_form_that_is_sent_twice_counts_once(folder: Path) -> None:
    pages = pages_of(folder)
    for name in ("is stored", "stored before"):
        assert name in pages.send("/traffic/r000001", {"kind": "up", "once": "n1"})
    with opened(folder / "serve") as store:
        assert len([*read_feedback(store, where="request = 'r000001'")]) == 1


def test_of_two_people_the_second_one_is_warned(folder: Path) -> None:
    ann, bob = pages_of(folder), pages_of(folder, who="bob")
    ann.send("/traffic/r000001", {"kind": "correction", "value": "delivery", "seen": ""})
    html = bob.send("/traffic/r000001", {"kind": "correction", "value": "billing", "seen": ""}, 400)
    assert "ann has said something of this answer meanwhile" in html
    with opened(folder / "serve") as store:
        seen = [item.id for item in read_feedback(store, where="request = 'r000001'")][-1]
    bob.send("/traffic/r000001", {"kind": "correction", "value": "billing", "seen": seen})


def test_a_request_becomes_a_row_of_a_suite(folder: Path) -> None:
    (folder / "suite.yaml").write_text("version: 1\nmetrics:\n  - metric: accuracy\n    margin: 0.1\n")
    pages = pages_of(folder)
    form = {"kind": "suite", "suite": "suite.yaml", "how": "contains", "value": "answer", "seen": "~"}
    assert "Added to suite.yaml" in pages.send("/traffic/r000003", form)
    (row,) = load_suite(folder / "suite.yaml").must_pass
    assert (row.prompt, row.request, row.contains) == ("question 3", "r000003", "answer")
    pages.send("/traffic/r000004", form, 400)
    pages.send("/traffic/r000003", {**form, "suite": "../../etc/passwd"}, 400)


def test_who_only_reads_changes_nothing(folder: Path) -> None:
    pages = pages_of(folder, read_only=True)
    assert "Good answer" not in pages.get("/traffic/r000001")
    pages.send("/traffic/r000001", {"kind": "up"}, 403)
    pages_of(folder).send("/traffic/r000001", {"kind": "up", "token": "of another site"}, 403)
    with opened(folder / "serve") as store:
        assert not [*read_feedback(store, where="request = 'r000001'")]


def test_the_query_reaches_the_search_and_the_page_says_how_far_it_looked(folder: Path) -> None:
    pages = pages_of(folder)
    html = pages.get("/traffic?text=lorem&feedback=comment")
    assert "r000003" in html and "r000001" not in html
    assert "No request matches" in pages.get("/traffic?text=nothing+of+this")
    assert "Not a time" in pages.get("/traffic?since=soon", 404)


def test_stores_that_are_damaged_newer_deleted_or_not_there(folder: Path) -> None:
    pages = pages_of(folder)
    shutil.copytree(folder / "serve", folder / "other")
    newer = open_sqlite(folder / "serve" / "store.db", 1.0)
    newer.execute("PRAGMA user_version = 9")
    newer.close()
    assert "A newer tuneloop wrote this store" in pages.get("/traffic", 404)
    for file in (folder / "serve").iterdir():
        file.write_bytes(b"no database at all" * 100)
    assert "The store can&#39;t be opened" in pages.get("/traffic", 404)
    shutil.rmtree(folder / "serve")
    pages.client.app.state.sources.index._at = -10.0  # type: ignore[attr-defined]  # a second later
    assert "r000001" in pages.get("/traffic"), "the other store is shown"
    shutil.rmtree(folder / "other")
    pages.client.app.state.sources.index._at = -10.0  # type: ignore[attr-defined]
    assert "There is no server" in pages.get("/traffic", 404)


def test_an_erased_request_is_a_sentence(folder: Path) -> None:
    assert "There is no such request any more" in pages_of(folder).get("/traffic/r999999", 404)


def test_texts_of_parts_and_odd_turns(folder: Path) -> None:
    parts = [{"type": "text", "text": "what is this"}, {"type": "image_url"}, 7]
    with opened(folder / "serve") as store:
        insert(store, [request(6, 6, prompt=[{"role": "user", "content": parts}, {"role": "tool", "content": None}])])
    assert "what is this\n[image_url]\n[part]" in pages_of(folder).get("/traffic/r000006")
