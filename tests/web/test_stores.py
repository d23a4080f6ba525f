"""Which store a page shows, and how it is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from markupsafe import escape
from starlette.requests import Request
from traffic import at, request, traffic
from web_pages import pages_of

from tuneloop.core.errors import UserError
from tuneloop.improve.experiment import command as ab
from tuneloop.improve.experiment.state import add_event
from tuneloop.improve.monitor.command import EVENT
from tuneloop.serving.store.database import insert
from tuneloop.serving.store.store import opened, read_decisions, read_feedback, read_requests, store_name
from tuneloop.web.serve import make_sources
from tuneloop.web.stores import shown_store, store_key


def asked(query: str = "") -> Request:
    return Request({"type": "http", "query_string": query.encode(), "headers": []})


def test_the_first_one_or_that_of_the_address_by_a_key_that_is_no_path(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with opened(tmp_path / name, create=True) as store:
            insert(store, [request(1, 1)])
        (tmp_path / name / "state.json").write_text("{half")
    sources = make_sources([str(tmp_path)], [], read_only=False)
    path = str(tmp_path / "b")
    chosen = shown_store(asked(f"store={store_key(path)}"), sources)
    assert chosen.place == path and len(chosen.others) == 2 and chosen.state.base == ""
    for wrong in ("store=/etc", "store=zzz"):
        with pytest.raises(UserError, match="not there any more"):
            shown_store(asked(wrong), sources)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no server's store"):
        shown_store(asked(), make_sources([str(tmp_path / "empty")], [], read_only=False))


def test_a_store_that_is_named_and_below_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path / "serve", create=True):
        pass
    monkeypatch.chdir(tmp_path)
    assert make_sources([str(tmp_path)], ["serve"], read_only=False).stores == ["serve"]
    assert make_sources(["."], ["serve/store.db", str(tmp_path / "serve")], read_only=False).stores == [
        "serve/store.db"
    ]


PAGES = ("/", "/traffic", "/traffic?text=question+7", "/traffic?feedback=bad&slower=50", "/traffic?arm=candidate&user=u9",
         "/traffic/r000007", "/quality", "/experiments", "/experiments/new", "/costs")  # fmt: skip


@pytest.mark.slow
@pytest.mark.world
def test_a_store_in_postgres_has_the_pages_of_a_file_and_shows_no_password(  # type: ignore[no-untyped-def]
    postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {name: str(tmp_path / name / "serve") for name in ("file", "postgres")}
    url = places["postgres"] = postgres.url()
    (tmp_path / "postgres").mkdir()
    monkeypatch.setattr(ab.secrets, "token_hex", lambda size: "5a" * size)  # who meets which arm is not left to chance
    with opened(places["file"], create=True):
        pass
    settings = {"model": "m", "shadow": False, "maturation_hours": 24.0, "ramp": "50,100"}
    state = ab.start(places["file"], "new", settings, at=at(0))
    with opened(places["file"]) as store, opened(url, create=True) as other:
        for records in traffic(state.design, state.share, 200, 5):
            insert(store, records)
        add_event(store, EVENT, "m", {"model": "m", "alarms": ["inputs"], "until": at(7)}, at=at(7))
        ab.check(places["file"], at=at(2))
        for records in (read_requests(store), read_feedback(store), read_decisions(store)):
            insert(other, [*records])
    shown: dict[str, list[str]] = {}
    for name, folder in places.items():
        pages = pages_of(tmp_path / name, stores=(folder,))
        own = {"serve/store.db": "STORE", store_name(folder): "STORE", store_key(folder): "KEY", pages.token: "TOKEN"}
        for path in PAGES:
            html = pages.get(path).replace("<wbr>", "").replace("&#39;", "")
            assert "unspeakable" not in html
            for word in sorted(own, key=len, reverse=True):
                html = html.replace(str(escape(word)), own[word])
            shown.setdefault(name, []).append(re.sub(r'name="once" value="[^"]*"', "", html))
    for path, item, other_one in zip(PAGES, shown["file"], shown["postgres"], strict=True):
        assert item == other_one, path
    assert "The label is stored" in pages.send("/traffic/r000009", {"kind": "label", "value": "billing", "seen": "~"})
    assert "Continues at" in pages.send("/experiments/new", {"step": "decide", "seen": "1"})
    assert "unspeakable" not in pages.get("/experiments/new")
