"""Which store a page shows, and how it is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.requests import Request
from traffic import request
from web_pages import pages_of

from tuneloop.core.errors import UserError
from tuneloop.serving.store.store import insert, opened
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
    place = str(tmp_path / "b")
    chosen = shown_store(asked(f"store={store_key(place)}"), sources)
    assert chosen.place == place and len(chosen.others) == 2 and chosen.state.base == ""
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


@pytest.mark.slow
@pytest.mark.world
def test_a_store_in_postgres_is_named_without_its_password(postgres, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    url = postgres.url()
    with opened(url, create=True) as store:
        insert(store, [request(i, i / 10) for i in range(60)])
    pages = pages_of(tmp_path, stores=(url,))
    for page in ("/traffic", "/traffic?text=question+7", "/traffic/r000007", "/quality", "/experiments", "/costs"):
        html = pages.get(page)
        assert "unspeakable" not in html and "postgresql://tuneloop@" in html
