"""The command: it opens quickly, loads nothing heavy, writes pages for the disk."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit

import pytest
from traffic import request

from patience import HANG
from tuneloop.cli.main import main
from tuneloop.core.errors import UserError
from tuneloop.serving.store.database import insert
from tuneloop.serving.store.store import opened
from tuneloop.web import export
from tuneloop.web.index import Index
from tuneloop.web.serve import WebConfig, make_sources
from tuneloop.web.sources import Sources
from web.conftest import accuracy, write_run


def test_only_this_machines_own_addresses_are_loopback() -> None:
    assert [WebConfig(host=host).loopback for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "box")] == [
        True, True, True, False, False
    ]  # fmt: skip


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="No such folder"):
        make_sources([str(tmp_path / "none")], [], read_only=False)
    assert main(["ui", str(tmp_path / "none")]) == 2 and main(["ui", "colour=red"]) == 2


@pytest.mark.process
def test_it_serves_until_it_is_ended_and_loads_no_torch(tmp_path: Path, cli_environment: dict[str, str]) -> None:
    write_run(tmp_path / "run")
    code = """import sys
sys.modules["torch"] = None
from tuneloop.cli.main import main
sys.exit(main(sys.argv[1:]))"""
    text = [sys.executable, "-c", code, "ui", str(tmp_path), "port=0", "--json"]
    process = subprocess.Popen(text, stdout=subprocess.PIPE, env=cli_environment)
    try:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        assert said["read_only"] is False
        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        for address in ("", "runs", "data", "playground"):
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(urljoin(said["address"], address), timeout=HANG)
        browser.open(said["address"], timeout=HANG).close()
        for address in ("", "runs", "data", "playground"):
            with browser.open(urljoin(said["address"], address), timeout=HANG) as answer:
                assert b"<h1" in answer.read()
        secret = parse_qs(urlsplit(said["address"]).query)["token"][0]
        own = Path(f"/proc/{process.pid}")
        assert not own.is_dir() or secret.encode() not in (own / "cmdline").read_bytes()
        assert not any(secret.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    finally:
        process.send_signal(signal.SIGINT)
    assert process.wait(timeout=HANG) == 0


@pytest.mark.process
def test_once_it_is_ready_no_page_of_the_navigation_waits_for_an_import(
    tmp_path: Path, cli_environment: dict[str, str]
) -> None:
    with opened(tmp_path / "serve", create=True) as store:
        insert(store, [request(i, 1) for i in range(3)])
    code = """import sys
from types import SimpleNamespace
from starlette.testclient import TestClient
from tuneloop.core import access
from tuneloop.web import app, serve
idle = SimpleNamespace(start=lambda: None)
app.threading = SimpleNamespace(Thread=lambda **_: idle)  # what it loads by and by is not there yet
sources = serve.make_sources(sys.argv[1:], [])
app.warm(sources)
pages = TestClient(app.make_app(sources, access.of_owner("secret")), base_url="http://localhost")
pages.post("/login", data={"secret": "secret"}, follow_redirects=False)
for page in app.PAGES:
    if page.title:
        before = set(sys.modules)
        assert pages.get(page.path).status_code == 200, page.path
        late = {name for name in set(sys.modules) - before if name.startswith(("tuneloop", "numpy"))}
        assert not late, (page.path, late)
assert "numpy" not in sys.modules"""
    text = [sys.executable, "-c", code, str(tmp_path)]
    subprocess.run(text, env=cli_environment, check=True, timeout=HANG)


def test_pages_for_the_disk_link_only_each_other_and_hold_no_text_where_none_are_wanted(
    tmp_path: Path, make_tuned: Any
) -> None:
    make_tuned()
    write_run(tmp_path / "two", metrics=accuracy(0.8))
    sources = Sources(Index((tmp_path,)))
    text = json.loads((tmp_path / "run" / "dataset" / "train.jsonl").read_text("utf-8").splitlines()[0])
    word = text["messages"][-2]["content"].split()[1]
    for texts in (True, False):
        out = tmp_path.parent / f"out-{texts}"
        files = export.export_pages(sources, out, texts=texts)
        names = {file.name for file in files}
        assert {"index.html", "runs.html", "data.html"} <= names and len([n for n in names if n[:4] == "run-"]) == 2
        pages = {file.name: file.read_text(encoding="utf-8") for file in files}
        for name, page in pages.items():
            links = [link for link in re.findall(r'(?:href|src)="([^"]*)"', page) if link[:5] != "data:"]
            broken = [link for link in links if link[:1] != "#" and not (out / link.partition("#")[0]).is_file()]
            assert not broken, name
            assert "<form" not in page or name.startswith(("report", "datareport")), name
            assert sources.token not in page
        assert any(word in page for page in pages.values()) == texts
    with pytest.raises(UserError, match="No such page"):
        export.export_pages(sources, tmp_path / "out", ["colour"])


def test_the_command_writes_chosen_pages(tmp_path: Path, cli: Any) -> None:
    write_run(tmp_path / "run")
    done = cli("ui", ".", "--export", "out", "--pages", "runs,run", "--json")
    assert done.returncode == 0 and json.loads(done.stdout) == {"path": "out", "pages": 2}
    assert sorted(path.name[:4] for path in (tmp_path / "out").glob("*.html")) == ["run-", "runs"]
