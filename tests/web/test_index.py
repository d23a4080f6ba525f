from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from patience import HANG
from tuneloop.web import index
from tuneloop.web.index import Index
from web.conftest import write_run


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "AGAIN", 0.0)


@pytest.mark.usefixtures("at_once")
def test_what_comes_and_goes_is_seen_and_what_stays_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        write_run(tmp_path / "runs" / name)
    old = time.time() - 60
    for folder in (*(tmp_path / "runs").iterdir(), tmp_path / "runs", tmp_path):
        os.utime(folder, (old, old))
    look = Index((tmp_path,))
    assert {found.path.name for found in look.all("run")} == {"a", "b", "c"}
    read: list[str] = []
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: read.append(Path(str(path)).name) or scan(path))
    assert len(look.all("run")) == 3 and not read
    shutil.rmtree(tmp_path / "runs" / "b")
    write_run(tmp_path / "runs" / "d", done=False)
    assert {found.path.name for found in look.all("run")} == {"a", "c", "d"}
    assert sorted(name for name in read if not name.isdigit()) == ["d", "runs"]  # numbers: of what deletes


def test_each_kind_is_known_by_its_files_and_inner_folders_are_left_out(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    for name in ("run/checkpoints", "run/adapter", "data", "serve", "artifacts/x"):
        (tmp_path / name).mkdir(parents=True)
    for file in ("run/checkpoints/run.json", "data/dataset.json", "serve/store.db", "artifacts/x/artifact.json"):
        (tmp_path / file).write_text("{}", encoding="utf-8")
    (tmp_path / "mlflow.db").touch()
    look = Index((tmp_path,))
    names = {kind: [found.path.name for found in look.all(kind)] for kind in ("run", "dataset", "server", "artifact")}
    assert names == {"run": ["run"], "dataset": ["data"], "server": ["serve"], "artifact": ["x"]}
    assert [found.path for found in look.all("registry")] == [tmp_path / "mlflow.db"]


def test_a_link_that_leads_round_or_out_is_not_followed(tmp_path: Path) -> None:
    write_run(tmp_path / "outside" / "run")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "out").symlink_to(tmp_path / "outside")
    assert Index((tmp_path / "in",)).all("run") == []


def test_a_server_is_known_before_the_folders_after_it_were_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(30):
        (tmp_path / "runs" / f"run{i:02}").mkdir(parents=True)
    (tmp_path / "serve").mkdir()
    (tmp_path / "serve" / "store.db").touch()
    folders, read, gate = Index((tmp_path,), patience=0.0), Index._read, threading.Event()

    def slow(self: Index, path: str) -> object:
        assert "run0" not in path or gate.wait(HANG)
        return read(self, path)

    monkeypatch.setattr(Index, "_read", slow)
    try:
        until = time.monotonic() + HANG
        while not (found := folders.all("server")) and time.monotonic() < until:
            time.sleep(0.01)
        assert [match.path.name for match in found] == ["serve"] and folders.reading
    finally:
        gate.set()
