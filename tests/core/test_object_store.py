"""Folders in an object store: what is copied, and what a refusal is to the user."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gcs_stand_in
import pytest
import s3_stand_in

from tuneloop.core.errors import UserError
from tuneloop.core.object_store import Store, open_store
from tuneloop.core.urls import is_url

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def url() -> Iterator[str]:
    """An object store in memory."""
    yield "memory://bucket/run"
    system = fsspec.filesystem("memory")
    if system.exists("/bucket"):
        system.rm("/bucket", recursive=True)


def test_an_address_is_no_path() -> None:
    assert is_url("s3://bucket/x") and is_url("gs://b")
    assert not is_url("runs/x") and not is_url("C://x") and not is_url("model@champion")


def test_a_folder_goes_there_and_comes_back_and_only_what_is_new_is_sent(url: str, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "checkpoints").mkdir(parents=True)
    (here / "checkpoints" / "step-1.pt").write_bytes(b"a" * 100)
    (here / "run.json").write_text("{}")
    (here / ".lock").write_text("pid 1")
    store = open_store(url)
    assert store.sizes() == {} and store.push(here) == 2
    assert store.sizes() == {"checkpoints/step-1.pt": 100, "run.json": 2}
    assert store.push(here, only="checkpoints") == 0
    assert store.pull(there) == 2 and (there / "checkpoints" / "step-1.pt").read_bytes() == b"a" * 100
    (there / "run.json").write_text("mine, and longer")
    assert store.pull(there, newer=False) == 0 and store.pull(there) == 1
    store.remove(["run.json"])
    assert list(open_store(url).sizes()) == ["checkpoints/step-1.pt"]
    assert list(store.inner("checkpoints").sizes()) == ["step-1.pt"]


class NoCredentialsError(Exception):
    """As botocore names it."""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError("Access Denied"), "No right to use this bucket"),
        (OSError(22, "An error occurred (ExpiredToken) when calling PutObject"), "The token has expired"),
        (FileNotFoundError("The specified bucket does not exist"), "There is no such bucket"),
        (NoCredentialsError("Unable to locate credentials"), "No credentials"),
        (PermissionError("The AWS Access Key Id you provided does not exist (InvalidAccessKeyId)"), "not known there"),
        (ConnectionError("Could not connect to the endpoint URL"), "does not answer"),
        (
            ValueError("('invalid_grant: Token has been expired or revoked.', {'error': 'invalid_grant'})"),
            "has expired",
        ),
        (FileNotFoundError("b/acme/o/runs%2Frun.json"), "no such file"),
        (RuntimeError("something new"), "refuses: RuntimeError something new"),
    ],
)
def test_a_refusal_is_said_with_the_place_and_what_to_do(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(fsspec.filesystem("memory"), "put_file", refuse, raising=False)
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(UserError, match=said) as caught:
        open_store(url).put(tmp_path / "a.txt", "a.txt")
    assert caught.value.where == f"{url}/a.txt" and caught.value.next_step


def test_what_is_missing_for_a_store_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="Not an object store"):
        open_store("nothing://bucket")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match="not installed") as caught:
        open_store("gs://bucket/x")
    assert "tuneloop[gcs]" in caught.value.next_step


def test_rows_are_read_from_a_store_and_fetched_once(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tuneloop.data.sources.read import find_files, read_records
    from tuneloop.records.rows import Reject

    monkeypatch.setattr("tuneloop.data.sources.remote.cache_folder", lambda: tmp_path / "cache")
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    (tmp_path / "picture.png").write_text("x")
    store = open_store(url)
    store.put(tmp_path / "rows.jsonl", "rows.jsonl")
    store.put(tmp_path / "picture.png", "picture.png")
    (file,) = find_files([f"{url}/rows.jsonl"])
    assert file.name == f"{url}/rows.jsonl"
    found = [item.value["text"] for item in read_records([url]) if not isinstance(item, Reject)]
    assert found == ["a", "b"]
    monkeypatch.setattr(Store, "get", lambda *_: pytest.fail("fetched again"))
    assert len(find_files([url])) == 1
    for path, said in ((f"{url}/none.jsonl", "No such file"), (f"{url}/picture.png", "can be read")):
        with pytest.raises(UserError, match=said):
            find_files([path])


def a_run(folder: Path) -> Path:
    """A run's folder with a checkpoint that goes up in several parts."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "step-1.pt").write_bytes(os.urandom(11 << 20))
    (folder / "run.json").write_text("{}")
    return folder


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with s3_stand_in.s3_store(monkeypatch) as client:
        yield client


def test_s3_keeps_a_folder_and_shows_what_others_write_there(s3: Any, tmp_path: Path) -> None:
    here, there = a_run(tmp_path / "here"), tmp_path / "there"
    store = open_store(f"s3://{s3_stand_in.BUCKET}/runs/x")
    assert store.sizes() == {} and store.push(here) == 2
    before = store.version("run.json")
    s3.put_object(Bucket=s3_stand_in.BUCKET, Key="runs/x/run.json", Body=b"{ }")  # another machine
    assert store.sizes() == {"checkpoints/step-1.pt": 11 << 20, "run.json": 3} and store.version("run.json") != before
    assert store.push(here, only="checkpoints") == 0 and store.pull(there) == 2
    assert (there / "checkpoints" / "step-1.pt").read_bytes() == (here / "checkpoints" / "step-1.pt").read_bytes()
    store.remove(["run.json"])
    kept = [item["Key"] for item in s3.list_objects_v2(Bucket=s3_stand_in.BUCKET)["Contents"]]
    assert kept == ["runs/x/checkpoints/step-1.pt"]


def test_what_s3_itself_refuses_is_said(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, url = tmp_path / "a.txt", f"s3://{s3_stand_in.BUCKET}/x"
    file.write_text("a")

    def refused(path: str) -> set[str]:
        """What listing, writing and reading come to."""
        found = set()
        asks: list[Callable[[Store], Any]] = [
            lambda store: store.sizes(), lambda store: store.put(file, "a.txt"), lambda store: store.get("a.txt", file)
        ]  # fmt: skip
        for ask in asks:
            with pytest.raises(UserError) as caught:
                ask(open_store(path))
            assert caught.value.where.startswith(path) and caught.value.next_step
            found.add(caught.value.what)
        return found

    open_store(url).put(file, "a.txt")
    assert refused("s3://no-such-bucket/x") == {"There is no such bucket"}
    s3_stand_in.without_rights(monkeypatch)
    s3_stand_in.check_rights()
    assert refused(url) == {"No right to use this bucket"}
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    s3_stand_in.forget_connections()
    # What is asked by HEAD alone, as before reading, is refused without a word about why.
    assert refused(url) == {"The access key is not known there", "No right to use this bucket"}
    assert file.read_text() == "a", "what is here stays"


@pytest.fixture
def gcs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with gcs_stand_in.gcs_store(monkeypatch) as client:
        yield client


def test_google_keeps_a_folder_and_shows_what_others_write_there(gcs: Any, tmp_path: Path) -> None:
    here, there = a_run(tmp_path / "here"), tmp_path / "there"
    store = open_store(f"gs://{gcs_stand_in.BUCKET}/runs/x")
    assert store.sizes() == {} and store.push(here) == 2
    bucket = gcs.bucket(gcs_stand_in.BUCKET)
    versions = {store.version("run.json")}
    for text in ("{ }", "{  }"):
        bucket.blob("runs/x/run.json").upload_from_string(text)  # another machine
        versions.add(store.version("run.json"))
        store.get("run.json", tmp_path / "run.json")
        assert (tmp_path / "run.json").read_text() == text, "whole, although it was shorter when it was listed"
        assert store.sizes() == {"checkpoints/step-1.pt": 11 << 20, "run.json": len(text)}
    assert len(versions) == 3
    assert store.push(here, only="checkpoints") == 0 and store.pull(there) == 2
    assert (there / "checkpoints" / "step-1.pt").read_bytes() == (here / "checkpoints" / "step-1.pt").read_bytes()
    store.remove(["run.json"])
    assert [blob.name for blob in bucket.list_blobs()] == ["runs/x/checkpoints/step-1.pt"]
    with pytest.raises(UserError, match="no such file"):
        store.get("run.json", tmp_path / "run.json")


def test_a_bucket_of_google_that_is_not_there_is_named(gcs: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    store = open_store("gs://no-such-bucket/x")
    for ask in (lambda: store.put(tmp_path / "a.txt", "a.txt"), lambda: store.get("a.txt", tmp_path / "a.txt")):
        with pytest.raises(UserError, match="There is no such bucket") as caught:
            ask()
        assert caught.value.where == "gs://no-such-bucket/x/a.txt"
    assert (tmp_path / "a.txt").read_text() == "a", "what is here stays"


@pytest.mark.parametrize(
    ("status", "message", "said"),
    [
        (401, "Anonymous caller does not have storage.objects.list access to the bucket.", "No credentials"),
        (403, "intern@acme.iam.gserviceaccount.com does not have storage.objects.list access.", "No right to use"),
    ],
)
def test_what_google_refuses_is_said_without_a_traceback(
    gcs: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, status: int, message: str, said: str
) -> None:
    gcs_stand_in.refuse_all(monkeypatch, status, message)
    with pytest.raises(UserError, match=said):
        open_store(f"gs://{gcs_stand_in.BUCKET}/x").sizes()
    assert not [record for record in caplog.records if record.name.startswith("gcsfs")]


@pytest.mark.parametrize(
    "address", ["reference://x", "dir://x", "ftp://anna:s3cret@127.0.0.1:9/x", "zip://x::file:///y"]
)
def test_an_address_that_opens_nothing_is_a_user_error_without_its_password(address: str) -> None:
    with pytest.raises(UserError) as refused:
        open_store(address)
    assert "s3cret" not in refused.value.what


def test_what_a_store_says_of_a_password_is_not_repeated() -> None:
    class System:
        def invalidate_cache(self) -> None:
            raise ValueError('Invalid bucket name "anna:s3cret@b"')

    with pytest.raises(UserError, match=r'Invalid bucket name "\*\*\*@b"'):
        Store("s3://anna:s3cret@b", System(), "b").sizes()
