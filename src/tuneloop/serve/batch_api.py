"""`/v1/files` and `/v1/batches`: OpenAI's batch API on folders."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import make_folder, read_json, write_json
from tuneloop.inference.engines import can_give_way
from tuneloop.serve.app import Call, Endpoint
from tuneloop.serve.batch import (
    ENDPOINTS,
    ERRORS,
    INPUT,
    OUTPUT,
    OVER,
    STATE,
    Batch,
    answer_by,
    file_parts,
    make_batch,
    new_id,
)  # fmt: skip
from tuneloop.serve.erase_files import expire_files
from tuneloop.serve.errors import ApiError
from tuneloop.serve.gateway import Caller, Gateway

_FILE = re.compile(r"file-[0-9a-f]{32}(-output|-errors)?")
_BATCH = re.compile(r"batch_[0-9a-f]{32}")
MOST_FILE_MB = 512.0
MOST_FORM = 10_000  # bytes of a form but its file
DAY = 86400
logging.getLogger("python_multipart").setLevel(logging.ERROR)  # else each broken form is a line in the log


@dataclass
class Batches:
    """The files and batches of a server, and those at work.

    Args:
        folder: of all of them: `files/` and `batches/`.
        say: gets a line about each batch that can't be done.
    """

    gateway: Gateway
    folder: Path
    say: Callable[[str], None] = print
    running: dict[str, tuple[Batch, asyncio.Task[None]]] = field(default_factory=dict)

    def routes(self) -> list[Any]:
        """The routes, for `make_app`."""
        from starlette.routing import Route

        seconds, local = self.gateway.config.limits.request_seconds, self.gateway.config.loopback
        return [
            Route(path, Endpoint(handler, seconds, local), methods=[method])
            for method, path, handler in (
                ("POST", "/v1/files", self.upload),
                ("GET", "/v1/files", self.files),
                ("GET", "/v1/files/{id}", self.file),
                ("DELETE", "/v1/files/{id}", self.delete),
                ("GET", "/v1/files/{id}/content", self.content),
                ("POST", "/v1/batches", self.create),
                ("GET", "/v1/batches", self.batches),
                ("GET", "/v1/batches/{id}", self.batch),
                ("POST", "/v1/batches/{id}/cancel", self.cancel),
            )
        ]

    # --- work

    def resume(self) -> int:
        """Go on with what an earlier server left; returns how many batches that are."""
        count = 0
        for folder in sorted((self.folder / "batches").glob("batch_*")):
            with contextlib.suppress(UserError):
                if folder.name not in self.running and read_json(folder / STATE)["status"] not in OVER:
                    self._start(folder)
                    count += 1
        return count

    async def stop(self) -> None:
        """End the work; what is not done is left for the next server."""
        tasks = [task for _, task in self.running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, folder: Path) -> None:
        state = read_json(folder / STATE)
        gateway = self.gateway

        async def answer(line: Any) -> dict[str, Any]:
            return await answer_by(gateway, self._caller(state))(line)

        batch = Batch(
            folder, answer, gateway.config.batch.rows, None if can_give_way(gateway.engine) else gateway.admission.quiet,
            stopping=lambda: gateway.admission.closed,
        )  # fmt: skip

        async def run() -> None:
            try:
                await batch.run()
            except (UserError, OSError) as error:
                self.say(f"batch     {folder.name} can't be done: {error}")
                with contextlib.suppress(UserError, OSError):
                    message = error.what if isinstance(error, UserError) else str(error)
                    batch.change(status="failed", errors={"object": "list", "data": [{"message": message}]})
            finally:
                self.running.pop(folder.name, None)
            with contextlib.suppress(UserError, OSError):  # the texts that it needs no more
                await asyncio.to_thread(
                    expire_files, self.folder.parent, lambda owner: None, gateway.config.log.content
                )

        self.running[folder.name] = batch, asyncio.ensure_future(run())

    def _caller(self, state: dict[str, Any]) -> Caller:
        """Whose batch it is, as long as the key is in use."""
        owner = state.get("owner") or ""
        key = self.gateway.keyring.named(owner) if owner else None
        if owner and key is None:
            raise ApiError(401, "The key of this batch is not in use any more", code="invalid_api_key")
        return Caller(key, rights=self.gateway.rights_of(key))

    # --- files

    async def upload(self, call: Call) -> None:
        """`POST /v1/files`: a multipart form with `file` and `purpose`."""
        from starlette.requests import Request

        owner = self._owner(call)
        if not call.header("content-type").lower().startswith("multipart/form-data"):
            raise ApiError(400, "A file is sent as multipart/form-data", param="file")
        try:
            received = Request(call.scope, call.bounded(int(MOST_FILE_MB * 1e6) + MOST_FORM))
            form = await received.form(max_files=1, max_fields=10, max_part_size=MOST_FORM)
        except (ApiError, OSError):
            raise
        except Exception as error:  # starlette's own exceptions of a broken form
            raise ApiError(
                400, f"The body is not a multipart form: {getattr(error, 'detail', error)}"[:200], param="file"
            ) from None
        given = form.get("file")
        if given is None or isinstance(given, str):
            raise ApiError(400, "The form has no file", param="file")
        if form.get("purpose") not in ("batch", None):
            raise ApiError(400, "purpose must be batch", param="purpose")
        id_ = new_id("file-")
        folder = self.folder / "files"
        make_folder(folder, 0o700)
        path, size = folder / f"{id_}.part", 0
        path.touch(0o600)
        try:
            with path.open("wb") as out:
                while part := await given.read(1 << 20):
                    size += len(part)
                    if size > MOST_FILE_MB * 1e6:
                        raise ApiError(413, f"The file is larger than {MOST_FILE_MB:g} MB", code="request_too_large")
                    await asyncio.to_thread(out.write, part)
            path.replace(folder / f"{id_}.jsonl")
        finally:
            path.unlink(missing_ok=True)
            await form.close()
        name = re.sub(r"[^\w. -]", "_", given.filename or "file")[:200]
        state = {
            "version": 1, "id": id_, "object": "file", "bytes": size, "created_at": int(time.time()), "filename": name,
            "purpose": "batch", "status": "processed", "owner": owner,
        }  # fmt: skip
        write_json(folder / f"{id_}.json", state)
        await call.reply(_shown(state))

    async def files(self, call: Call) -> None:
        """`GET /v1/files`."""
        owner = self._owner(call)
        found = [read_json(path) for path in sorted((self.folder / "files").glob("file-*.json"))]
        await call.reply(
            {"object": "list", "data": [_shown(each) for each in found if each["owner"] == owner], "has_more": False}
        )

    async def file(self, call: Call) -> None:
        """`GET /v1/files/ID`."""
        await call.reply(_shown(self._file(call)[0]))

    async def delete(self, call: Call) -> None:
        """`DELETE /v1/files/ID`."""
        state, path = self._file(call)
        if path.name in (OUTPUT, ERRORS):
            raise ApiError(400, "Results of a batch are kept with it", param="id")
        path.with_suffix(".json").unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        await call.reply({"id": state["id"], "object": "file", "deleted": True})

    async def content(self, call: Call) -> None:
        """`GET /v1/files/ID/content`."""
        _, path = self._file(call)
        headers = {"content-disposition": "attachment"}
        await call.start(200, "application/octet-stream", headers, size=path.stat().st_size)
        async for part in file_parts(path):
            await call.send({"type": "http.response.body", "body": part, "more_body": True})
        await call.send({"type": "http.response.body", "body": b""})

    def _file(self, call: Call, id_: str = "") -> tuple[dict[str, Any], Path]:
        """State and path of a file of the caller's."""
        owner = self._owner(call)
        id_ = id_ or call.scope["path_params"]["id"]
        missing = ApiError(404, f"No such file: {id_[:60]!r}", param="id", code="not_found")
        if not _FILE.fullmatch(id_):
            raise missing
        name, _, part = id_.removeprefix("file-").partition("-")
        if part:
            folder = self.folder / "batches" / f"batch_{name}"
            path = folder / (OUTPUT if part == "output" else ERRORS)
            if not path.is_file() or read_json(folder / STATE).get("owner") != owner:
                raise missing
            state = {
                "id": id_, "object": "file", "bytes": path.stat().st_size, "created_at": int(path.stat().st_mtime),
                "filename": path.name, "purpose": "batch_output", "status": "processed",
            }  # fmt: skip
            return state, path
        path = self.folder / "files" / f"{id_}.jsonl"
        if not path.is_file() or not path.with_suffix(".json").is_file():
            raise missing
        state = read_json(path.with_suffix(".json"))
        if state["owner"] != owner:
            raise missing
        return state, path

    def _owner(self, call: Call) -> str:
        key = self.gateway.caller(call.header).key
        return key.name if key else ""

    # --- batches

    async def create(self, call: Call) -> None:
        """`POST /v1/batches`."""
        owner = self._owner(call)
        body = await call.json(int(self.gateway.config.limits.body_mb * 1e6))
        if body.get("endpoint") not in ENDPOINTS:
            raise ApiError(400, f"endpoint must be one of {', '.join(ENDPOINTS)}", param="endpoint")
        window = re.fullmatch(r"([1-9]\d{0,3})([hd])", str(body.get("completion_window", "24h")))
        if window is None:
            raise ApiError(400, "completion_window must be as 24h", param="completion_window")
        metadata = body.get("metadata")
        if metadata is not None and not isinstance(metadata, dict):
            raise ApiError(400, "metadata must be an object", param="metadata")
        given = body.get("input_file_id")
        file, path = self._file(call, given if isinstance(given, str) and given else "?")
        if file["bytes"] and not path.stat().st_size:
            what = "Its texts are gone since its batch is over, as log.content says; upload the file again"
            raise ApiError(400, what, param="input_file_id")
        id_ = new_id("batch_")
        folder = self.folder / "batches" / id_
        make_folder(folder, 0o700)
        (folder / INPUT).hardlink_to(path)  # the file may be deleted meanwhile
        seconds = int(window[1]) * (3600 if window[2] == "h" else DAY)
        state = make_batch(
            folder, body["endpoint"], seconds=seconds, input_file_id=given, owner=owner, metadata=metadata,
            completion_window=window[0],
        )  # fmt: skip
        self._start(folder)
        await call.reply(self._batch_shown(state))

    async def batches(self, call: Call) -> None:
        """`GET /v1/batches`, the newest first."""
        owner = self._owner(call)
        found = []
        for folder in sorted((self.folder / "batches").glob("batch_*"), reverse=True):
            with contextlib.suppress(UserError):
                found.append(read_json(folder / STATE))
        data = [self._batch_shown(each) for each in found if each.get("owner") == owner]
        await call.reply({"object": "list", "data": data, "has_more": False})

    async def batch(self, call: Call) -> None:
        """`GET /v1/batches/ID`."""
        await call.reply(self._batch_shown(read_json(self._folder(call) / STATE)))

    async def cancel(self, call: Call) -> None:
        """`POST /v1/batches/ID/cancel`: what is at work ends, nothing further is begun."""
        folder = self._folder(call)
        state = read_json(folder / STATE)
        if state["status"] in OVER:
            raise ApiError(409, f"The batch is {state['status']} already", code="batch_over")
        found = self.running.get(folder.name)
        if found is not None and state["status"] != "finalizing":
            found[0].cancelled = True
            state = found[0].change(status="cancelling")
        await call.reply(self._batch_shown(state))

    def _folder(self, call: Call) -> Path:
        owner, id_ = self._owner(call), call.scope["path_params"]["id"]
        folder: Path = self.folder / "batches" / id_
        known = _BATCH.fullmatch(id_) and (folder / STATE).is_file()
        if not known or read_json(folder / STATE).get("owner") != owner:
            raise ApiError(404, f"No such batch: {id_[:60]!r}", param="id", code="not_found")
        return folder

    def _batch_shown(self, state: dict[str, Any]) -> dict[str, Any]:
        """A batch as OpenAI's API shows it."""
        name = state["id"].removeprefix("batch_")
        times = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
        over = state["status"] in ("completed", "expired", "cancelled")
        counts = state["request_counts"]
        return {
            **{f"{each}_at": None for each in times}, **_shown(state),
            "output_file_id": f"file-{name}-output" if over and counts["completed"] else None,
            "error_file_id": f"file-{name}-errors" if over and counts["completed"] < counts["total"] else None,
        }  # fmt: skip


def _shown(state: dict[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(json.dumps(state))
    for name in ("version", "owner"):
        shown.pop(name, None)
    return shown
