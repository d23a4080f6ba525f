"""Pages are built in processes that can be ended: they are the same pages, and hold neither the server nor others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from traffic import request

from tuneloop.core import bounded_work
from tuneloop.core.access import of_owner
from tuneloop.core.foreign import LIMITS, ForeignLimits
from tuneloop.serving.admission import Keyring
from tuneloop.serving.config import ServeConfig
from tuneloop.serving.keys import Limits, add_key
from tuneloop.serving.store.database import insert
from tuneloop.serving.store.store import opened
from tuneloop.web.index import Index
from tuneloop.web.sources import PAGES, Sources
from web.conftest import accuracy, write_run

pytest.importorskip("starlette.testclient")
from starlette.applications import Starlette
from starlette.testclient import TestClient

from tuneloop.web import apart, app, mount

pytestmark = pytest.mark.process
SECRET = "a secret of these tests"


@pytest.fixture
def work() -> Iterator[apart.PageWork]:
    work = apart.page_work(1)
    yield work
    work.work.stop()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_run(tmp_path / "run", metrics=accuracy(0.8))
    with opened(tmp_path / "serve", create=True) as store:
        insert(store, [request(i, 1) for i in range(3)])
    return tmp_path


def browser(folder: Path, build: Any = None) -> TestClient:
    sources = Sources(Index((folder,)), who="ana")
    client = TestClient(app.make_app(sources, of_owner(SECRET), build), base_url="http://localhost")
    client.get("/", params={"token": SECRET})
    return client


def test_a_page_is_the_same_wherever_it_is_built(folder: Path, work: apart.PageWork) -> None:
    here, there = browser(folder), browser(folder, work)
    key = re.findall(r'href="/runs/([0-9a-f]{12})"', here.get("/runs").text)[0]
    titled = [page.path for page in PAGES if page.title]
    for path in (*titled, f"/runs/{key}", "/traffic?q=question", "/traffic/r000001", "/runs/000000000000", "/nothing"):
        item, other = here.get(path), there.get(path)
        texts = [re.sub(r'name="token" value="\w+"|\d+ (second|minute)s?', "", page.text) for page in (item, other)]
        assert item.status_code == other.status_code and texts[0] == texts[1], path


def test_a_page_that_takes_too_long_is_ended_and_the_next_one_is_built(
    folder: Path, work: apart.PageWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = browser(folder, work)
    with monkeypatch.context() as patch:
        patch.setitem(LIMITS, "page built", ForeignLimits(0, 0, seconds=0.0001))
        answer = client.get("/runs")
        assert answer.status_code == 503 and "takes too long" in answer.text
    assert client.get("/runs").status_code == 200


def test_a_server_builds_no_page_itself_and_charges_each_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(app, "page_html", lambda *_: pytest.fail("built in the server's own process"))
    monkeypatch.setattr(bounded_work, "BURST", 0.0)
    made: list[apart.PageWork] = []

    def page_work(workers: int, **options: Any) -> apart.PageWork:
        made.append(apart.page_work(workers, **options))
        made[0].work.share = 1e-6
        return made[0]

    monkeypatch.setattr(mount, "page_work", page_work)
    gateway: Any = SimpleNamespace(keyring=Keyring(folder / "serve"))
    config = ServeConfig.model_validate({"folder": "serve", "ui": True})
    site = Starlette(routes=mount.ui_routes(config, gateway))
    try:
        for name in ("ben", "eva"):  # the second is not held up by what the first has used
            key, _ = add_key(folder / "serve", name, Limits(rights=["ui"]))
            client = TestClient(site, base_url="http://localhost")
            client.post("/ui/login", data={"secret": key}, follow_redirects=False)
            assert client.get("/ui/runs").status_code == 200
            answers = (client.get("/ui/runs") for _ in range(100))  # a clock of the processor may have ticks of 10 ms
            assert "Too many pages" in next(answer.text for answer in answers if answer.status_code == 503)
    finally:
        made[0].work.stop()
