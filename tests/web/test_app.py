"""What is let in, what a page may load, and that each page is there, escaped and whole without scripts."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest

from places import ROOT
from tuneloop.web import app
from tuneloop.web.sources import PAGES
from web.conftest import Site, accuracy, keys, write_run

STATIC = ROOT / "src" / "tuneloop" / "web" / "static"
MARKUP = "<img src=x onerror=alert(1)>"


def test_vendored_files_are_what_the_list_says() -> None:
    lines = re.findall(r"^\| (\S+\.(?:js|css)) \|.*\| ([0-9a-f]{64}) \|$", (STATIC / "VENDORED.md").read_text(), re.M)
    assert {name for name, _ in lines} == {path.name for path in STATIC.glob("*.min.*")}
    assert [hashlib.sha256((STATIC / name).read_bytes()).hexdigest() for name, _ in lines] == [h for _, h in lines]


def test_other_sites_and_other_names_of_this_machine_are_refused(site: Site) -> None:
    client = site()
    assert client.get("/").status_code == 200
    assert client.get("/", headers={"host": "evil.example"}).status_code == 403
    assert client.post("/", data={"token": client.token}, headers={"origin": "http://evil.example"}).status_code == 403
    assert client.get("/live", headers={"sec-fetch-site": "cross-site"}).status_code == 403


def test_a_form_needs_the_token_of_this_process_and_nothing_is_done_where_only_reading_is_allowed(
    site: Site, tmp_path: Path
) -> None:
    write_run(tmp_path / "run", done=False)
    client = site()
    (key,) = keys(client.get("/runs").text)
    for form in ({}, {"token": "other"}, {"token": f"{client.token} ü"}):
        assert client.post(f"/runs/{key}", data={"action": "stop", **form}).status_code == 403
    answer = client.post(f"/runs/{key}", data={"action": "stop", "token": client.token})
    assert answer.status_code == 400 and "No process on this machine" in answer.text
    reading = site(read_only=True)
    assert reading.token not in reading.get(f"/runs/{key}").text
    answer = reading.post(f"/runs/{key}", data={"action": "stop", "token": reading.token})
    assert answer.status_code == 403 and "only reads" in answer.text


def test_a_body_that_is_too_large_is_refused(site: Site) -> None:
    assert site().post("/", data={"token": "x" * (app.MOST_FORM + 1)}).status_code >= 400


def test_no_page_runs_a_script_of_its_own_and_texts_never_become_markup(site: Site, tmp_path: Path) -> None:
    name = "a<b>run&x"
    write_run(tmp_path / name, metrics=accuracy(0.8), words=[f"{MARKUP}: x"], name=MARKUP)
    client = site()
    (key,) = keys(client.get("/runs").text)
    for address in (
        "/",
        "/runs",
        f"/runs/{key}",
        f"/runs/{key}/report",
        f"/runs?text={MARKUP}",
        "/data",
        "/playground",
    ):
        answer = client.get(address)
        assert answer.status_code == 200, address
        assert "<img" not in answer.text and "a<b>" not in answer.text, address
        policy = answer.headers["content-security-policy"]
        script = next(part for part in policy.split(";") if "script-src" in part)
        assert "unsafe" not in script and "default-src 'none'" in policy
        if not address.endswith("report"):  # its one script is allowed by its hash
            assert not re.search(r"<script(?![^>]*src=)(?![^>]*application/json)", answer.text)
        assert not re.search(r"<[^>]*\son\w+=", re.sub(r'"[^"]*"', "", answer.text))


def test_pages_of_the_lists_allow_no_style_in_attributes(site: Site, tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    for address in ("/", "/runs", "/playground"):
        answer = site().get(address)
        assert "style=" not in answer.text and "unsafe-inline" not in answer.headers["content-security-policy"]


def test_every_page_of_the_table_has_a_module_and_a_template() -> None:
    folder = ROOT / "src" / "tuneloop" / "web"
    for page in PAGES:
        module = (folder / "pages" / f"{page.module or page.name}.py").read_text(encoding="utf-8")
        assert "def html(" in module or (folder / "templates" / f"{page.name}.html.j2").exists()
    assert {path.stem for path in (folder / "pages").glob("[!_]*.py")} == {page.module or page.name for page in PAGES}


@pytest.mark.parametrize("name", ["../app.py", "..%2fapp.py", "VENDORED.md", "nothing.js", "web.css%00"])
def test_only_files_that_pages_load_are_served(site: Site, name: str) -> None:
    assert site().get(f"/static/{name}").status_code == 404


def test_a_page_that_is_not_there_or_fails_says_so_and_nothing_of_the_inside(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = site()
    for address in ("/nothing", "/runs/000000000000", "/data/../../etc"):
        answer = client.get(address)
        assert answer.status_code == 404 and "<h1" in answer.text

    def broken(*_: Any) -> Any:
        raise ValueError("secret inside")

    monkeypatch.setattr("tuneloop.web.pages.runs.show", broken)
    settings = {"base_url": "http://localhost", "raise_server_exceptions": False, "cookies": client.cookies}
    failing = type(client)(client.app, **settings)
    answer = failing.get("/runs")
    assert answer.status_code == 500 and "This page failed" in answer.text and "secret" not in answer.text


def test_an_event_keeps_every_line_of_what_it_carries() -> None:
    assert app.event("live", "a\nb") == b"event: live\ndata: a\ndata: b\n\n"
