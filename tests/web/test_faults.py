"""What breaks while it is shown, and two people at once: each is a sentence, and the page works again afterwards."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from traffic import request, thumb
from tuned_runs import tickets
from web_pages import pages_of

from tuneloop.agents import jobs
from tuneloop.core.files import read_jsonl, write_jsonl
from tuneloop.data.config import PrepareConfig
from tuneloop.data.prepare import TokenCount, prepare_dataset
from tuneloop.serving.store.database import insert, open_sqlite
from tuneloop.serving.store.store import connect, opened
from tuneloop.web import index
from tuneloop.web.index import Index
from web.conftest import Site, accuracy, keys, write_run

STORED = ("/traffic", "/traffic/r000001", "/quality", "/experiments", "/costs")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "AGAIN", 0.0)


@contextmanager
def newer(file: Path) -> Iterator[None]:
    with closing(open_sqlite(file, 1.0)) as store:
        store.execute("PRAGMA user_version = 9")
    yield


@contextmanager
def half(file: Path) -> Iterator[None]:
    with file.open("r+b") as opened_file:
        opened_file.truncate(file.stat().st_size // 2)
    yield


@contextmanager
def foreign(file: Path) -> Iterator[None]:
    file.unlink()
    with closing(sqlite3.connect(file)) as other:
        other.execute("CREATE TABLE songs (title TEXT)")
        other.commit()
    yield


@contextmanager
def damaged(file: Path) -> Iterator[None]:
    file.write_bytes(b"no database at all" * 1000)
    yield


@contextmanager
def locked(file: Path) -> Iterator[None]:
    with closing(sqlite3.connect(file)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        yield


@pytest.mark.parametrize("fault", [newer, half, foreign, damaged, locked])
def test_a_store_that_fails_while_it_is_shown_is_a_sentence_and_comes_back(
    tmp_path: Path, fault: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connect.__kwdefaults__, "patience", 0.1)  # as long as a page waits for a lock
    with opened(tmp_path / "serve", create=True) as store:
        insert(store, [request(i, i / 100) for i in range(300)])
        insert(store, [thumb(1, 1, True)])
    pages, file = pages_of(tmp_path), tmp_path / "serve" / "store.db"
    before = {path: pages.get(path) for path in STORED}
    for item in file.parent.glob("store.db*"):
        shutil.copy(item, tmp_path / f"whole{item.name}")
    with fault(file):
        for path in STORED:
            answer = pages.client.get(path)
            assert answer.status_code in (200, 404) and "This page failed" not in answer.text, path
            assert answer.status_code == 404 or answer.text == before[path], path
        home = pages.get("/")
        assert "In production" in home
        assert "problem" in home or fault is locked
    for item in file.parent.glob("store.db*"):
        item.unlink()
    for item in tmp_path.glob("wholestore.db*"):
        shutil.copy(item, file.parent / item.name.removeprefix("whole"))
    assert "r000001" in pages.get("/traffic/r000001")


def test_of_two_people_who_correct_one_row_the_second_one_is_warned(site: Site, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", tickets())
    config = PrepareConfig(sources=[str(tmp_path / "in.jsonl")])
    prepare_dataset(config, name="in", seed=0, out=tmp_path / "in", measure=lambda row: TokenCount(40, 4))
    ana, bob = site(), site(who="bob")
    (key,) = keys(ana.get("/data").text, "data")
    hidden = r'name="id" value="([^"]+)"><input type="hidden" name="split" value="(\w+)"'
    ((row, split), *_) = re.findall(hidden, ana.get(f"/data/{key}").text)
    form = {"split": split, "id": row}
    assert ana.post(f"/data/{key}", data={**form, "token": ana.token, "becomes": "billing"}).status_code == 303
    answer = bob.post(f"/data/{key}", data={**form, "token": bob.token, "becomes": "delivery"})
    assert answer.status_code == 400 and "ana has corrected this row meanwhile: billing" in answer.text


def test_of_two_people_who_start_the_same_the_second_one_is_told(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "suite.yaml").write_text("version: 1\nmetrics: [{metric: accuracy, margin: 0.1}]\n", encoding="utf-8")
    for name in "ab":
        write_run(tmp_path / name, metrics=accuracy(0.8))
    client = site()
    first, second = keys(client.get("/runs?sort=name").text)
    address = f"/compare?run={first}&run={second}"
    assert "tuneloop gate b --against a --suite suite.yaml" in client.get(address).text
    popen, started = jobs.subprocess.Popen, []

    def asleep(command: list[str], **options: Any) -> Any:
        started.append(popen(["sleep", "60"], **options))
        return started[-1]

    monkeypatch.setattr(jobs.subprocess, "Popen", asleep)
    try:
        form = {"token": client.token, "suite": "suite.yaml"}
        answer = client.post(address, data=form)
        assert answer.status_code == 303 and answer.headers["location"].startswith(f"/runs/{second}")
        assert "Works on it" in client.get(f"/runs/{second}").text
        answer = client.post(address, data=form)
        assert answer.status_code == 400 and "running already" in answer.text
    finally:
        for process in started:
            process.kill()
            process.wait()
    (tmp_path / "b" / "job.out").write_text('{"error": {"what": "No suite for this task", "next": "write one"}}')
    assert (
        "What was started last has failed: No suite for this task. Next: write one"
        in client.get(f"/runs/{second}").text
    )
    assert client.post(address, data={**form, "suite": "../x.yaml"}).status_code == 400


def test_over_many_runs_a_page_shows_what_was_read_and_fills(tmp_path: Path, site: Site) -> None:
    for i in range(300):
        write_run(tmp_path / f"run{i:03}", metrics=accuracy(0.5))
    client = site()
    folders: Index = client.app.state.sources.index
    folders.patience = 0.0
    page = client.get("/runs").text
    assert "this is not all there is yet" in page and 'hx-get="/runs"' in page
    assert "hx-get" not in client.get("/nothing").text, "what is wrong stays on the page"
    folders.unread = 1
    for address in ("/costs", "/data/000000000000"):  # what may only not have been read yet does not
        answer = client.get(address)
        assert answer.status_code == 202 and "There is no " in answer.text and f'hx-get="{address}"' in answer.text
    folders.patience = None
    page = client.get("/runs").text
    assert client.get("/costs").status_code == 404
    assert "300 runs" in page and "not all there is" not in page


def test_a_clock_that_is_ahead_or_behind_shifts_times_alone(site: Site, tmp_path: Path) -> None:
    for name, seconds in (("ahead", 4e9), ("behind", 1.0)):
        run = write_run(tmp_path / name, metrics=accuracy(0.8))
        os.utime(run, (seconds, seconds))
    client = site()
    assert "2096-10-02" in client.get("/runs").text
    assert all(client.get(f"/runs/{key}").status_code == 200 for key in keys(client.get("/runs").text))


def test_answers_of_a_run_develop_on_its_page_and_half_a_line_waits(site: Site, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", done=False)
    lines = [
        f'{{"step": {10 * i}, "rows": [{{"prompt": "<b>where</b>", "reference": "late", "answer": "try {i}"}}]}}'
        for i in range(6)
    ]
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "answers.jsonl").write_text(
        "\n".join([*lines, "[3]", '{"step": 60, "rows": [{"pro']), encoding="utf-8"
    )
    client = site()
    (key,) = keys(client.get("/runs").text)
    page = client.get(f"/runs/{key}").text
    assert "How its answers develop" in page and "&lt;b&gt;where" in page and "try 5" in page and "try 1" not in page
    assert "try 5" not in site(texts=False).get(f"/runs/{key}").text


def test_a_form_that_a_full_disk_refuses_says_so_and_can_be_sent_again(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="limits of a process are POSIX's")
    suite, rows = tmp_path / "suite.yaml", tmp_path / "must_pass.jsonl"
    suite.write_text("version: 1\nmetrics: [{metric: accuracy, margin: 0.1}]\nmust_pass_file: must_pass.jsonl\n")
    write_jsonl(rows, [{"prompt": "one", "equals": "1"}])
    whole = rows.read_bytes()
    pages = pages_of(tmp_path)
    form = {"suite": "suite.yaml", "how": "equals", "value": "2", "prompt": "two"}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 9, hard))  # a part of a line fits
    try:
        html = pages.send("/playground", form, 400)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in html and "must_pass.jsonl" in html
    assert rows.read_bytes() == whole
    assert "Saved to suite.yaml" in pages.send("/playground", form)
    assert [line["prompt"] for line in read_jsonl(rows)] == ["one", "two"]


def test_a_folder_that_is_gone_is_named_on_every_page_and_comes_back(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    pages = pages_of(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "away")
    for path, status in (("/", 200), ("/runs", 200), ("/traffic", 404)):
        assert pages.get(path, status).count("here is not there any more") == 1
    (tmp_path / "away").rename(tmp_path / "here")
    assert "not there any more" not in pages.get("/")
