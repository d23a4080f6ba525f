"""`/v1/files` and `/v1/batches`: OpenAI's batch API on folders.

Files and batches belong to the key that made them; no one else learns that they exist. What is damaged is left out with
a line in the log, and keeps neither the server nor other batches from working.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from tuneloop.core.errors import UserError
from tuneloop.core.files import make_folder
from tuneloop.core.ids import uuid7
from tuneloop.core.ui import bound_say
from tuneloop.records.record import read_record, write_record
from tuneloop.serving.batch.batch import ERRORS, INPUT, JOURNAL, OUTPUT, BatchJob, answer_by, disk_is_full, make_batch
from tuneloop.serving.batch.file import Line, in_thread
from tuneloop.serving.batch.record import TIMES, BatchState, FileState, read_state
from tuneloop.serving.gateway import Caller, Gateway
from tuneloop.serving.http.api_request import ApiError, parsed
from tuneloop.serving.http.app import Call, routed
from tuneloop.serving.http.contract import BatchBody
from tuneloop.serving.store.erase_files import expire_files

_FILE = re.compile(r"file-[0-9a-f]{32}(-output|-errors)?")
_BATCH = re.compile(r"batch_[0-9a-f]{32}")
MOST_FILES = 10_000  # of a key
MOST_FIELD = 1000  # bytes of a field of a form that is no file
PATIENCE = 6  # times the seconds of a request that a client waits for, to which a row yields
logging.getLogger("python_multipart").setLevel(logging.ERROR)  # else each broken form is a line in the log


@dataclass
class Batches:
    """The files and batches of a server, and those at work."""

    gateway: Gateway
    folder: Path  # of all of them: `files/` and `batches/`
    say: Callable[[str], None] = field(default_factory=bound_say)
    running: dict[str, tuple[BatchJob, asyncio.Task[None]]] = field(default_factory=dict)
    _arriving: Counter[tuple[str, str]] = field(default_factory=Counter)  # bytes of uploads under way

    def routes(self) -> list[Any]:
        """The routes, for `make_app`."""
        return routed(
            self.gateway,
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

    # --- work

    def resume(self) -> int:
        """Continue what an earlier server left; returns how many batches that are."""
        for directory in (self.folder, self.folder / "files", self.folder / "batches"):
            with contextlib.suppress(OSError):
                directory.chmod(0o700)
        for part in (self.folder / "files").glob("*.part"):  # of uploads that a killed server was taking
            with contextlib.suppress(OSError):
                part.unlink()
        for folder in sorted((self.folder / "batches").glob("batch_*")):
            try:
                if folder.name not in self.running and not self._read(folder).over:
                    self._start(folder)
            except UserError as error:
                self.say(f"batch     {folder.name} is left out: {error.what} ({error.where})")
        return len(self.running)

    async def stop(self) -> None:
        """End the work; what is not done is left for the next server."""
        tasks = [task for _, task in self.running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, folder: Path) -> BatchJob:
        gateway, config = self.gateway, self.gateway.config

        async def answer(line: Line) -> dict[str, Any]:
            owner, key_id = _owner(batch.state)
            key = gateway.keyring.named(owner) if owner else None
            if owner and (key is None or key_id != key.id):
                raise ApiError(401, "The key of this batch is not in use any more", code="invalid_api_key")
            return await answer_by(gateway, Caller(key, rights=gateway.rights_of(key)), folder / JOURNAL)(line)

        def queued() -> int:
            return sum(other.left for other in self._open(_owner(batch.state)) if other is not batch)

        room = None if gateway.engine.gives_way else gateway.admission.wait_until_idle
        bounds: dict[str, Any] = {
            "most_rows": config.batch.most_rows, "most_bytes": int(config.limits.body_mb * 1e6),
            "longest": PATIENCE * config.limits.request_seconds, "queued": queued,
        }  # fmt: skip
        batch = BatchJob(folder, answer, config.batch.rows, room, lambda: gateway.admission.closed, **bounds)

        async def run() -> None:
            try:
                await batch.run()
            except Exception as error:  # of this batch: it must not end others
                sentence = error.what if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
                self.say(f"batch     {folder.name} can't be done: {sentence:.300}")
                try:
                    await batch.fail(sentence[:300])
                except (UserError, OSError) as also:
                    self.say(f"batch     {folder.name}: that can't be written down: {also!s:.300}")
            finally:
                self.running.pop(folder.name, None)
            with contextlib.suppress(UserError, OSError):  # the texts that it needs no more
                await asyncio.to_thread(expire_files, self.folder.parent, lambda owner: None, config.log.content)

        self.running[folder.name] = batch, asyncio.ensure_future(run())
        return batch

    def _open(self, owner: tuple[str, str]) -> list[BatchJob]:
        """Batches of a key that are at work."""
        return [other for other, _ in self.running.values() if _owner(other.state) == owner and not other.state.over]

    # --- files

    async def upload(self, call: Call) -> None:
        """`POST /v1/files`: a multipart form with `file` and `purpose`, which goes to the disk as it comes."""
        settings, owner = self.gateway.config.batch, self._owner_of(call)
        most = int(settings.file_mb * 1e6)
        too_large = ApiError(413, f"The file is larger than {settings.file_mb:g} MB", code="request_too_large")
        length = call.header("content-length")
        if length.isdigit() and int(length) > most + 100_000:  # of the form around it
            raise too_large
        files, stored = await in_thread(self._stored, owner)
        if files >= MOST_FILES:
            raise ApiError(413, f"This key has {files:,} files; delete some", code="storage_limit")
        left = int(settings.most_gb * 1e9) - stored
        folder, id_ = self.folder / "files", _new_id("file-")
        path, size = folder / f"{id_}.part", 0
        try:
            make_folder(folder, 0o700)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
                form = _Form(call.header("content-type"), out)
                more = True
                while more:
                    part, more = await call.part()
                    size += len(part)
                    self._arriving[owner] += len(part)
                    if form.size > most or size > most + 100_000:
                        raise too_large
                    if self._arriving[owner] > left:
                        message = f"With this file more than {settings.most_gb:g} GB would be stored for this key"
                        raise ApiError(413, f"{message}; delete files that are not needed", code="storage_limit")
                    await in_thread(form.take, part)
                await in_thread(form.end)
            name = re.sub(r"[^\w. -]", "_", form.filename or "file")[:200]
            state = _file_state(id_, form.size, time.time(), name, owner=owner[0], key_id=owner[1])
            await in_thread(write_record, folder / f"{id_}.json", state)
            path.replace(folder / f"{id_}.jsonl")
        except (OSError, UserError) as error:
            raise _of_the_disk(error) from None
        finally:
            self._arriving[owner] -= size
            if self._arriving[owner] <= 0:
                del self._arriving[owner]
            if path.exists():  # else it is whole, and has another name
                path.unlink()
                (folder / f"{id_}.json").unlink(missing_ok=True)
        await call.reply(_shown(state))

    async def files(self, call: Call) -> None:
        """`GET /v1/files`."""
        states: list[FileState] = await in_thread(list, self._files(self._owner_of(call)))
        await call.reply({"object": "list", "data": [_shown(state) for state in states], "has_more": False})

    async def file(self, call: Call) -> None:
        """`GET /v1/files/ID`."""
        await call.reply(_shown(self._file(call)[0]))

    async def delete(self, call: Call) -> None:
        """`DELETE /v1/files/ID`. With a result its batch's copies of the rows go too."""
        state, path = self._file(call)
        if path.name in (OUTPUT, ERRORS):
            for name in (INPUT, JOURNAL):
                (path.parent / name).unlink(missing_ok=True)
        else:
            path.with_suffix(".json").unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        await call.reply({"id": state.id, "object": "file", "deleted": True})

    async def content(self, call: Call) -> None:
        """`GET /v1/files/ID/content`."""
        path, headers = self._file(call)[1], {"content-disposition": "attachment"}
        await call.start(200, "application/octet-stream", headers, size=path.stat().st_size)
        with path.open("rb") as file:
            while part := await asyncio.to_thread(file.read, 1 << 16):
                await call.send({"type": "http.response.body", "body": part, "more_body": True})
        await call.send({"type": "http.response.body", "body": b""})

    def _file(self, call: Call, id_: str = "") -> tuple[FileState, Path]:
        """State and path of a file of the caller's."""
        owner, id_ = self._owner_of(call), id_ or call.scope["path_params"]["id"]
        missing = ApiError(404, f"No such file: {id_[:60]!r}", param="id", code="not_found")
        if not _FILE.fullmatch(id_):
            raise missing
        name, _, part = id_.removeprefix("file-").partition("-")
        if part:
            folder = self.folder / "batches" / f"batch_{name}"
            path = folder / (OUTPUT if part == "output" else ERRORS)
            if not path.is_file() or _owner(state := self._state(folder)) != owner or not state.over:
                raise missing
            facts = path.stat()
            return _file_state(id_, facts.st_size, facts.st_mtime, path.name, purpose="batch_output"), path
        path = self.folder / "files" / f"{id_}.jsonl"
        if not path.is_file() or not path.with_suffix(".json").is_file():
            raise missing
        file = read_record(FileState, path.with_suffix(".json"))
        if _owner(file) != owner:
            raise missing
        return file, path

    def _files(self, owner: tuple[str, str]) -> Iterator[FileState]:
        for path in sorted((self.folder / "files").glob("file-*.json")):
            with contextlib.suppress(UserError, OSError):  # damaged, or deleted meanwhile
                if _owner(state := read_record(FileState, path)) == owner and path.with_suffix(".jsonl").is_file():
                    yield state

    def _batches(self, owner: tuple[str, str]) -> Iterator[BatchState]:
        """Batches of a key, the newest first."""
        for folder in sorted((self.folder / "batches").glob("batch_*"), reverse=True):
            with contextlib.suppress(UserError):
                if _owner(state := self._read(folder)) == owner:
                    yield state

    def _stored(self, owner: tuple[str, str]) -> tuple[int, int]:
        """Files that a key has uploaded, and bytes that it has stored: these, and what its batches hold."""
        files = list(self._files(owner))
        size = sum(file.bytes for file in files)
        for state in self._batches(owner):
            for name in (INPUT, JOURNAL, OUTPUT, ERRORS):
                with contextlib.suppress(OSError):
                    stat = (self.folder / "batches" / state.id / name).stat()
                    size += stat.st_size if stat.st_nlink == 1 else 0  # an input is the uploaded file itself
        return len(files), size

    def _owner_of(self, call: Call) -> tuple[str, str]:
        """Name and id of the caller's key: a new key of the same name is another one."""
        key = self.gateway.caller(call.header).key
        return (key.name, key.id) if key is not None else ("", "")

    # --- batches

    async def create(self, call: Call) -> None:
        """`POST /v1/batches`."""
        owner = self._owner_of(call)
        asked = parsed(BatchBody, await call.json(int(self.gateway.config.limits.body_mb * 1e6)))
        file, path = self._file(call, asked.input_file_id or "?")
        if file.bytes and not path.stat().st_size:
            message = "Its texts were erased when its batch was over, as log.content says; upload the file again"
            raise ApiError(400, message, param="input_file_id")
        if (count := len(self._open(owner))) >= self.gateway.config.batch.most_open:
            message = f"{count} batches of this key are not over yet, which is the limit"
            raise ApiError(429, f"{message}; wait for one, or cancel it", code="too_many_batches")
        folder = self.folder / "batches" / _new_id("batch_")
        seconds = int(asked.completion_window[:-1]) * (3600 if asked.completion_window[-1] == "h" else 86_400)
        fields = asked.model_dump(include={"input_file_id", "metadata", "completion_window"})
        try:
            make_folder(folder, 0o700)
            (folder / INPUT).hardlink_to(path)  # the file may be deleted meanwhile
            make_batch(folder, asked.endpoint, seconds=seconds, owner=owner[0], key_id=owner[1], **fields)
        except (OSError, UserError) as error:
            for location in (folder / INPUT, folder / BatchState.file):
                location.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                folder.rmdir()
            raise _of_the_disk(error) from None
        await call.reply(self._batch_shown(self._start(folder).state))

    async def batches(self, call: Call) -> None:
        """`GET /v1/batches`, the newest first."""
        states: list[BatchState] = await in_thread(list, self._batches(self._owner_of(call)))
        await call.reply({"object": "list", "data": [self._batch_shown(state) for state in states], "has_more": False})

    async def batch(self, call: Call) -> None:
        """`GET /v1/batches/ID`."""
        await call.reply(self._batch_shown(self._own(call)[1]))

    async def cancel(self, call: Call) -> None:
        """`POST /v1/batches/ID/cancel`: what is at work ends, nothing further is begun."""
        folder, state = self._own(call)
        if not state.over:
            batch = self.running[folder.name][0] if folder.name in self.running else self._start(folder)
            await batch.cancel()
            state = batch.state
        if state.over and state.status != "cancelled":
            raise ApiError(409, f"The batch is {state.status} already", code="batch_over")
        await call.reply(self._batch_shown(state))

    def _state(self, folder: Path) -> BatchState:
        """A batch as it is now; ApiError: its file is missing or damaged."""
        try:
            return self._read(folder)
        except UserError as error:
            raise ApiError(500, error.what, code="damaged") from None

    def _read(self, folder: Path) -> BatchState:
        """A batch as it is now: of one at work what is in memory, which may be newer."""
        at_work = self.running.get(folder.name)
        state = at_work[0].state if at_work is not None else read_state(folder)
        if state.id != folder.name:
            raise UserError(f"The state of a batch is damaged: it is that of {state.id!r:.60}", where=str(folder))
        return state

    def _own(self, call: Call) -> tuple[Path, BatchState]:
        """Folder and state of a batch of the caller's."""
        owner, id_ = self._owner_of(call), call.scope["path_params"]["id"]
        missing = ApiError(404, f"No such batch: {id_[:60]!r}", param="id", code="not_found")
        if not _BATCH.fullmatch(id_):
            raise missing
        folder = self.folder / "batches" / id_
        if not folder.is_dir() or _owner(state := self._state(folder)) != owner:
            raise missing
        return folder, state

    def _batch_shown(self, state: BatchState) -> dict[str, Any]:
        """A batch as OpenAI's API shows it; `paused` says why one at work waits."""
        name, counts = state.id.removeprefix("batch_"), state.request_counts
        ended = state.status in ("completed", "expired", "cancelled")
        at_work = self.running.get(state.id)
        return {
            **dict.fromkeys(TIMES), **_shown(state), "paused": (at_work and at_work[0].paused) or None,
            "output_file_id": f"file-{name}-output" if ended and counts.completed else None,
            "error_file_id": f"file-{name}-errors" if ended and counts.completed < counts.total else None,
        }  # fmt: skip


def _new_id(prefix: str) -> str:
    """An id as OpenAI's: `file-...`, `batch_...`."""
    return prefix + uuid7().replace("-", "")


def _file_state(id_: str, size: int, created: float, name: str, **more: str) -> FileState:
    values = {
        "id": id_, "object": "file", "bytes": size, "created_at": int(created), "filename": name, "purpose": "batch",
        "status": "processed",
    }  # fmt: skip
    return FileState.model_validate(values | more)


def _owner(state: BatchState | FileState) -> tuple[str, str]:
    return state.owner, state.key_id


def _shown(state: BatchState | FileState) -> dict[str, Any]:
    return {name: value for name, value in state.to_json().items() if name not in ("version", "owner", "key_id", "key")}


def _of_the_disk(error: Exception) -> ApiError:
    if disk_is_full(error):
        return ApiError(507, "The disk of the server is full; try it again later", code="disk_full")
    return ApiError(500, "The server can't write its files", code="server")


class _Form:
    """A multipart form, of content type `kind`, whose file goes to `out` as it comes; ApiError: it is no such form."""

    def __init__(self, kind: str, out: BinaryIO) -> None:
        from python_multipart.exceptions import FormParserError
        from python_multipart.multipart import MultipartParser, parse_options_header

        self._wrong: type[Exception] = FormParserError
        self.out, self.size, self.filename = out, 0, ""
        self._fields: dict[str, bytearray] = {}
        self._header, self._value, self._disposition = bytearray(), bytearray(), b""
        self._name, self._in_file, self._files, self._over = "", False, 0, False
        self._read_options = parse_options_header
        form, options = parse_options_header(kind.encode("latin-1"))
        if form != b"multipart/form-data" or not options.get(b"boundary"):
            raise ApiError(400, "The body is not a multipart form", param="file")
        callbacks: Any = {
            "on_part_data": self._data,
            "on_headers_finished": self._begin,
            "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._header_end,
            "on_end": self._end,
        }
        self._parser = MultipartParser(options[b"boundary"], callbacks)

    def take(self, part: bytes) -> None:
        """Take the next part of the body; ApiError: it is no form, or has several files; OSError: the disk is full."""
        try:
            self._parser.write(part)
        except self._wrong as error:
            raise ApiError(400, f"The body is not a multipart form: {error}"[:200], param="file") from None

    def end(self) -> None:
        """Look at the whole form; ApiError: something is missing, or wrong."""
        self.out.flush()
        os.fsync(self.out.fileno())
        if not self._over:
            raise ApiError(400, "The body ends in the middle of its form", param="file")
        if not self._files:
            raise ApiError(400, "The form has no file", param="file")
        if self._fields.get("purpose", b"batch") != b"batch":
            raise ApiError(400, "purpose must be batch", param="purpose")

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header, self._value = bytearray(), bytearray()

    def _begin(self) -> None:
        """The headers of a part are there."""
        _, options = self._read_options(self._disposition)
        self._disposition = b""
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        self._in_file = b"filename" in options or self._name == "file"
        if self._in_file:
            self._files += 1
            self.filename = options.get(b"filename", b"").decode("utf-8", "replace")
        elif len(self._fields) >= 10:
            raise ApiError(400, "The form has more than 10 fields", param="file")
        else:
            self._fields[self._name] = bytearray()
        if self._files > 1:
            raise ApiError(400, "The form has more than one file", param="file")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self.size += end - start
            self.out.write(data[start:end])
            return
        value = self._fields[self._name]
        value += data[start:end]
        if len(value) > MOST_FIELD:
            raise ApiError(400, f"{self._name[:40]!r} is longer than {MOST_FIELD} bytes", param=self._name[:40])

    def _end(self) -> None:
        self._over = True
