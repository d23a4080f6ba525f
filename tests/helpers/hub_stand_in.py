"""What a hub does for an upload."""

from __future__ import annotations

import base64
import json

from local_http import Quiet


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
