"""What is pushed arrives at the hub as it was exported, in one commit; nothing is sent unasked."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from local_http import Quiet, listening

from tuneloop.core.files import read_json

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


class Hub(Quiet):
    """What a hub does for an upload: a repository, small files in the commit, large ones by LFS."""

    asked: list[str] = []  # noqa: RUF012
    private: bool | None = None
    arrived: dict[str, bytes] = {}  # noqa: RUF012
    stored: dict[str, bytes] = {}  # noqa: RUF012

    def read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.body()
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def do_GET(self) -> None:
        self.answer(404, {})

    def do_PUT(self) -> None:
        Hub.stored[self.path.rpartition("/")[2]] = self.read()
        self.answer(200, {})

    def do_POST(self) -> None:
        body, path = self.read(), self.path.partition("?")[0]
        Hub.asked.append(path)
        if self.headers.get("Authorization") != "Bearer good":
            self.answer(401, {"error": "Invalid token"})
        elif path == "/api/repos/create":
            Hub.private = json.loads(body).get("private") or json.loads(body).get("visibility") == "private"
            self.answer(200, {"url": f"http://{self.headers['Host']}/org/name", "id": "org/name"})
        elif path.endswith("/preupload/main"):
            files = [
                {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]  # fmt: skip
            self.answer(200, {"files": files})
        elif path.endswith("/info/lfs/objects/batch"):
            at = f"http://{self.headers['Host']}/lfs/"
            objects = [
                {"oid": o["oid"], "size": o["size"], "actions": {"upload": {"href": at + o["oid"]}}}
                for o in json.loads(body)["objects"]
            ]
            self.answer(200, {"transfer": "basic", "objects": objects})
        elif path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    Hub.arrived[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "lfsFile":
                    Hub.arrived[line["value"]["path"]] = Hub.stored[line["value"]["oid"]]
            commit = {"commitUrl": f"http://{self.headers['Host']}/org/name/commit/{'c' * 40}", "commitOid": "c" * 40}
            self.answer(200, {**commit, "success": True})
        else:
            self.answer(200, {})


@pytest.fixture
def hub() -> Iterator[dict[str, str]]:
    """The environment of a process that pushes to this machine."""
    Hub.asked.clear(), Hub.arrived.clear(), Hub.stored.clear()
    with listening(Hub) as address:
        yield {"HF_ENDPOINT": address, "HF_TOKEN": "good", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}


@pytest.fixture
def artifact(make_artifact: Callable[[str], Path]) -> Path:
    return make_artifact("adapter")


def test_a_dry_run_sends_nothing_and_shows_what_would_be_sent(
    artifact: Path, hub: dict[str, str], cli_process: Cli
) -> None:
    done = cli_process("models", "push", str(artifact), "hub:org/name", env=hub)
    assert done.returncode == 0 and "add --send" in done.stdout and "adapter_model.safetensors" in done.stdout
    assert not Hub.asked


def test_what_is_sent_arrives_whole_in_a_private_repository(
    artifact: Path, hub: dict[str, str], cli_process: Cli
) -> None:
    (artifact / ".cache").mkdir()
    (artifact / ".cache" / "mine.txt").write_text("stays here")
    done = cli_process("models", "push", str(artifact), "hub:org/name", "--send", "--json", env=hub)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["url"].endswith("/commit/" + "c" * 40)
    files = read_json(artifact / "artifact.json")["files"]
    assert set(Hub.arrived) == {*files, "artifact.json"} and Hub.private is True
    for name, entry in files.items():
        assert hashlib.sha256(Hub.arrived[name]).hexdigest() == entry["sha256"], name
    assert Hub.asked.count("/api/models/org/name/commit/main") == 1


@pytest.mark.parametrize("case", ["token", "down", "place", "changed", "no artifact"])
def test_what_can_t_be_pushed_is_told_in_three_lines(
    case: str, artifact: Path, hub: dict[str, str], cli_process: Cli
) -> None:
    arguments, said = [str(artifact), "hub:org/name", "--send"], "The hub can't be reached"
    if case == "token":
        hub["HF_TOKEN"], said = "bad", "The hub refuses"
    elif case == "down":
        hub["HF_ENDPOINT"] = "http://127.0.0.1:9"
    elif case == "place":
        arguments[1], said = "org/name", "Not a place on the hub"
    elif case == "changed":
        (artifact / "adapter_config.json").write_text("{}")
        said = "not as it was exported"
    else:
        arguments[0], said = "run", "There is no artifact here"
    done = cli_process("models", "push", *arguments, env=hub)
    message = done.stderr[done.stderr.index("Error:") :]
    assert done.returncode == 2 and said in message and len(message.strip().splitlines()) <= 3
    assert not Hub.arrived
