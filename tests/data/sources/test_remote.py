"""Sources on web servers and data hubs: whole or not at all, pinned, and never fetched twice for nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from local_http import Quiet, listening

from tuneloop.core.errors import UserError
from tuneloop.data.config import PrepareConfig
from tuneloop.data.prepare import TokenCount, prepare_dataset
from tuneloop.data.sources import remote
from tuneloop.data.sources.read import find_files, read_records

ROWS = b"".join(
    json.dumps({"prompt": f"question {n}", "completion": f"answer {n}"}).encode() + b"\n" for n in range(500)
)


class Web(Quiet):
    """A web server with one file, that does as its troubles say, one a request."""

    troubles: ClassVar[list[str]] = []
    ranges: ClassVar[list[str]] = []
    tag: ClassVar[str] = '"v1"'

    def do_GET(self) -> None:
        trouble = Web.troubles.pop(0) if Web.troubles else ""
        asked = self.headers.get("Range", "")
        Web.ranges.append(asked)
        if trouble.startswith("status"):
            self.answer(int(trouble.split()[1]), b"")
            return
        if trouble == "redirect":
            self.answer(302, b"", {"Location": "/data/rows.jsonl"})
            return
        if trouble == "loop":
            Web.troubles.append("loop")
            self.answer(302, b"", {"Location": self.path})
            return
        body = ROWS if trouble != "changed" else ROWS.replace(b"answer", b"ANSWER")
        tag = Web.tag if trouble != "changed" else '"v2"'
        start = int(asked[6:-1]) if asked and self.headers.get("If-Range") == tag else 0
        headers = {"ETag": tag} | ({"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if start else {})
        rest = body[start:]
        if trouble == "cut":
            headers["Content-Length"] = str(len(rest))
            rest = rest[: len(rest) // 2]
        if trouble == "short":  # says less than the file has: the client can't know, but what it reads is what was said
            headers["Content-Length"] = str(len(rest) - 10)
        self.answer(206 if start else 200, rest, headers)
        self.close_connection = True


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of its file."""
    monkeypatch.setattr(remote, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: None)
    Web.troubles, Web.ranges = [], []
    with listening(Web) as address:
        yield f"{address}/data/rows.jsonl"


def content_of(url: str) -> bytes:
    """The bytes of the copy of a file."""
    (file,) = find_files([url])
    return file.path.read_bytes()


@pytest.mark.parametrize(
    "troubles", [[], ["redirect"], ["cut", "cut"], ["status 503", "status 429"], ["cut", "status 502"]]
)
def test_a_file_is_fetched_whole_through_cuts_redirects_and_outages(web: str, troubles: list[str]) -> None:
    Web.troubles = list(troubles)
    assert content_of(web) == ROWS
    assert len([*read_records([web])]) == 500
    if troubles[:2] == ["cut", "cut"]:
        assert [bool(item) for item in Web.ranges[:3]] == [False, True, True]  # it continues where it broke off


def test_a_file_that_changes_between_two_parts_is_fetched_again_from_its_beginning(web: str) -> None:
    Web.troubles = ["cut", "changed"]
    assert content_of(web) == ROWS.replace(b"answer", b"ANSWER")


def test_what_never_arrives_whole_is_no_source(web: str, tmp_path: Path) -> None:
    Web.tag = ""
    try:
        Web.troubles = ["cut"] * 9
        with pytest.raises(UserError, match="can't be fetched whole: it ended after"):
            content_of(web)
    finally:
        Web.tag = '"v1"'
    Web.troubles = ["loop"]
    with pytest.raises(UserError, match="refuses: 302"):
        content_of(web)
    Web.troubles = ["status 404"]
    with pytest.raises(UserError, match="refuses: 404"):
        content_of(web)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_hash_pins_the_content(web: str) -> None:
    digest = hashlib.sha256(ROWS).hexdigest()
    (file,) = find_files([f"{web}#sha256={digest}"])
    assert file.name == web
    with pytest.raises(UserError, match=f"Not the file that was meant: its SHA-256 is {digest}"):
        find_files([f"{web}#sha256={'0' * 64}"])


def test_a_file_that_does_not_fit_on_the_disk_is_refused_before_it_comes(
    web: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("usage", (), {"free": remote.LEFT + 100})
    monkeypatch.setattr(remote.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(UserError, match="do not fit"):
        content_of(web)


class Hub(Quiet):
    """A hub with one data set, in the way in which the hub's client asks."""

    sha: ClassVar[str] = "a" * 40
    private: ClassVar[bool] = False

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        commit = {"X-Repo-Commit": Hub.sha}
        if Hub.private:
            self.answer(401, {"error": "none"}, {"X-Error-Code": "RepoNotFound"})
        elif path.endswith(("/revision/gone", "/revision/gone/")):
            self.answer(404, {"error": "none"}, {"X-Error-Code": "RevisionNotFound"})
        elif path.startswith("/api/datasets/org/data/tree/"):
            tree = [
                {"type": "file", "path": name, "size": len(ROWS), "oid": "b" * 40}
                for name in ("README.md", "rows.jsonl")
            ]
            self.answer(200, tree, commit)
        elif path.startswith("/api/datasets/org/data"):
            self.answer(200, {"id": "org/data", "sha": Hub.sha, "siblings": [], "private": False, "tags": []}, commit)
        elif "/resolve/" in path:
            self.answer(200, ROWS, {**commit, "ETag": '"x"'})
        else:
            self.answer(404, {"error": path}, {"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        paths = json.loads(self.body() or b"{}").get("paths", [])
        files = [{"type": "file", "path": path, "size": len(ROWS), "oid": "b" * 40} for path in paths if "." in path]
        self.answer(200, files, {"X-Repo-Commit": Hub.sha})


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub on this machine."""
    import huggingface_hub.hf_file_system as file_system
    from huggingface_hub import constants, hf_api

    monkeypatch.setattr(remote, "cache_folder", lambda: tmp_path / "cache")
    Hub.private = False
    with listening(Hub) as address:
        for module in (constants, hf_api, file_system):
            if hasattr(module, "ENDPOINT"):
                monkeypatch.setattr(module, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        file_system.HfFileSystem.clear_instance_cache()
        yield
        file_system.HfFileSystem.clear_instance_cache()


def test_a_revision_of_the_hub_is_pinned_by_its_commit(hub: None) -> None:
    whole = f"hf://datasets/org/data@{Hub.sha}"
    assert remote.pinned("hf://datasets/org/data/rows.jsonl") == f"{whole}/rows.jsonl"
    assert remote.pinned("hf://datasets/org/data@main") == whole == remote.pinned(whole)
    (file,) = find_files(["hf://datasets/org/data@main"])  # its card is no data
    assert file.name == f"{whole}/rows.jsonl" and file.path.read_bytes() == ROWS


def test_what_the_hub_refuses_is_said(hub: None) -> None:
    with pytest.raises(UserError, match="No revision 'gone'"):
        remote.pinned("hf://datasets/org/data@gone")
    with pytest.raises(UserError, match="Not a data set of the hub"):
        remote.pinned("hf://models/org/x")
    Hub.private = True
    with pytest.raises(UserError, match="No such data set on the hub"):
        remote.pinned("hf://datasets/org/data@main")


def test_the_address_and_the_hash_are_in_the_manifest(web: str, tmp_path: Path) -> None:
    config = PrepareConfig(sources=[web], workers=1)
    dataset = prepare_dataset(config, name="web", seed=0, out=tmp_path / "data", measure=lambda row: TokenCount(8, 4))
    (source,) = dataset.manifest.sources
    assert source.path == web and source.sha256 == hashlib.sha256(ROWS).hexdigest() and source.rows == 500


@pytest.mark.parametrize(
    "path",
    [
        "..%2f..%2f..%2foutside.jsonl",
        "%2e%2e",
        ".hidden.jsonl",
        "a%00b.jsonl",
        "a%1b]0;b%0a.jsonl",
        f"{'%c3%a9' * 200}.jsonl",
    ],
)
def test_the_name_of_a_file_does_not_decide_where_its_copy_is(web: str, tmp_path: Path, path: str) -> None:
    address = web.removesuffix("rows.jsonl") + path
    (file,) = find_files([address])
    assert file.path.parents[2] == tmp_path / "cache" and file.path.read_bytes() == ROWS
    assert not file.path.name.startswith(".") and file.path.name.isprintable()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files == [file.path]


def test_names_of_a_hub_do_not_leave_the_cache(hub: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Store:
        url = "hf://datasets/org/data"
        sizes = staticmethod(lambda: {"../../../outside.jsonl": 5, "a/..\\..\\x.jsonl": 5, "b/\x1b.jsonl": 5})
        version = staticmethod(str)
        get = staticmethod(lambda name, path: path.parent.mkdir(parents=True) or path.write_bytes(b"{}"))

    monkeypatch.setattr(remote, "open_store", lambda url: Store)
    files = find_files(["hf://datasets/org/data@main"])
    assert len(files) == 3 and {file.path.parents[2] for file in files} == {tmp_path / "cache"}


@pytest.mark.parametrize("pin", ["#sha256=", "#sha256=zz", f"#SHA256={'0' * 64}", f"#md5={'0' * 32}", "#sha256"])
def test_a_pin_that_is_none_is_refused_and_not_passed_over(web: str, pin: str) -> None:
    with pytest.raises(UserError, match="is no SHA-256"):
        find_files([web + pin])
    assert not Web.ranges  # nothing was fetched


def test_a_hash_pins_no_folder(hub: None) -> None:
    with pytest.raises(UserError, match="of one file, not of 0"):
        remote.fetched(f"hf://datasets/org/data@main#sha256={'0' * 64}", frozenset([".csv"]))


class Guarded(Quiet):
    """A web server that answers a login only, and sends its caller on where the address says so."""

    logins: ClassVar[list[str]] = []
    other: ClassVar[str] = ""

    def do_GET(self) -> None:
        Guarded.logins.append(self.headers.get("Authorization", ""))
        if self.path == "/elsewhere.jsonl":
            self.answer(302, b"", {"Location": Guarded.other})
        else:
            self.answer(200 if Guarded.logins[-1] else 401, ROWS)


def test_a_login_in_an_address_opens_it_and_is_in_no_file(web: str, tmp_path: Path) -> None:
    with listening(Guarded) as address:
        url = address.replace("//", "//anna:s3cret@") + "/rows.jsonl?signature=s3cret"
        config = PrepareConfig(sources=[url], workers=1)
        dataset = prepare_dataset(
            config, name="web", seed=0, out=tmp_path / "data", measure=lambda row: TokenCount(8, 4)
        )
    assert dataset.manifest.sources[0].rows == 500
    assert Guarded.logins == ["Basic YW5uYTpzM2NyZXQ="] * len(Guarded.logins)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written and not [path for path in written if b"s3cret" in path.read_bytes() or "s3cret" in str(path)]


def test_a_redirect_takes_no_login_along(web: str) -> None:
    Guarded.logins.clear()
    with listening(Guarded) as address, listening(Guarded) as other:
        Guarded.other = f"{other}/rows.jsonl"
        with pytest.raises(UserError, match="refuses: 401"):
            find_files([address.replace("//", "//anna:s3cret@") + "/elsewhere.jsonl"])
    assert Guarded.logins == ["Basic YW5uYTpzM2NyZXQ=", ""]


@pytest.mark.parametrize("address", ["http://[::1", "http://host/a b\n", "http://host:port/rows.jsonl"])
def test_what_is_no_address_is_refused_at_once(web: str, address: str) -> None:
    with pytest.raises(UserError, match="Not an address"):
        find_files([address])


def test_a_hub_that_answers_something_else_is_refused(hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hub, "sha", "../../elsewhere")
    with pytest.raises(UserError, match="names no commit"):
        remote.pinned("hf://datasets/org/data@main")
    with pytest.raises(UserError, match="The hub refuses"):
        remote.pinned("hf://datasets/a/../../etc")
