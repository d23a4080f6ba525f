"""A copy of what a service has, in a folder: files as they are, and rows of what it has stored.

Each file is complete or not there, so a copy that was killed continues where it was; `migration.json` comes last.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import (
    drop_torn_line,
    make_folder,
    sha256_file,
    user_errors_of_the_disk,
    write_bytes,
    write_json,
    write_jsonl,
)
from tuneloop.core.ui import progress
from tuneloop.core.units import counted
from tuneloop.inference.openai.service import Item, Service, place_of, refusal, why
from tuneloop.inference.wire import Broken, HttpRefused
from tuneloop.migrate.record import CopiedFile, Migration, Missing, Traffic
from tuneloop.migrate.survey import Survey
from tuneloop.records.record import write_record

AT_ONCE = 8  # requests for the messages of stored completions
ROWS = "completions.jsonl"
OUTPUT = "model"  # `origin` of a row whose answer a model wrote


@dataclass
class _Copy:
    """A copy at work."""

    service: Service
    survey: Survey
    folder: Path
    missing: list[Missing] = field(default_factory=list)
    kinds: dict[str, tuple[str, str]] = field(default_factory=dict)  # path in the folder -> id at the service, kind
    bytes: int = 0


async def copy_all(service: Service, survey: Survey, folder: Path) -> Migration:
    """Copy what was listed; what is there already is not fetched again.

    Raises:
        UserError: the service stops answering, or the folder can't be written. What is complete stays.
    """
    work = _Copy(service, survey, folder, list(survey.missing))
    make_folder(folder)
    for left in (folder / Migration.file, *folder.rglob(".*.tmp")):  # of a copy that was killed
        left.unlink(missing_ok=True)
    try:
        await _jobs(work)
        await _files(work)
        traffic = await _completions(work)
    except (Broken, HttpRefused) as error:
        raise refusal(error, service.url, "further files") from None
    write_jsonl(folder / "batches.jsonl", survey.batches.values())
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    files = {}
    for path in paths:
        name = path.relative_to(folder).as_posix()
        place, kind = work.kinds.get(name, ("", name.partition("/")[0]))
        files[name] = CopiedFile(bytes=path.stat().st_size, sha256=sha256_file(path), id=place, kind=kind)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    migration = Migration(
        service=service.url, copied=now, jobs=survey.jobs, files=files, traffic=traffic, missing=work.missing
    )
    write_record(folder / Migration.file, migration)
    return migration


async def _jobs(work: _Copy) -> None:
    """Each job with its events, oldest first, and its checkpoints."""
    for number, (name, job) in enumerate(work.survey.raw_jobs.items()):
        progress("jobs", number, len(work.survey.raw_jobs))
        place = work.folder / "jobs" / safe(name)
        over = job.get("status") in ("succeeded", "failed", "cancelled")
        if over and (place / "job.json").is_file():
            continue
        try:
            events = await work.service.items(place_of("fine_tuning", "jobs", name, "events"), limit=100)
        except HttpRefused as error:
            _refused(work, f"events of {name}", error)
            events = []
        events.reverse()  # the newest comes first
        write_jsonl(place / "events.jsonl", sorted(events, key=lambda each: _whole(each.get("created_at"))))
        write_jsonl(place / "checkpoints.jsonl", work.survey.checkpoints.get(name, []))
        write_json(place / "job.json", job)


async def _files(work: _Copy) -> None:
    files = work.survey.files
    total = work.survey.bytes

    def read(size: int) -> None:
        work.bytes += size
        progress("bytes of files", work.bytes, max(total, work.bytes))

    for name, item in files.items():
        kind = str(item.get("purpose") or "")
        place = work.folder / "files" / safe(f"{name}-{item['filename']}" if item.get("filename") else name)
        work.kinds[place.relative_to(work.folder).as_posix()] = (name, kind)
        if place.is_file():
            read(place.stat().st_size)
        else:
            try:
                await work.service.download(place_of("files", name, "content"), place, read)
            except HttpRefused as error:
                _refused(work, f"file {name} ({kind})", error)
                continue
        if fault := _fault(place, item):
            work.missing.append(Missing(what=f"file {name} ({kind})", why=fault))
        if kind == "fine-tune-results":
            _decode_metrics(place)


def _refused(work: _Copy, what: str, error: HttpRefused) -> None:
    """Note what was deleted, or is not for this key; whatever else is refused ends the copy."""
    if error.status not in (400, 403, 404, 405, 410):
        raise error
    work.missing.append(Missing(what=what, why=why(error)))


def _fault(file: Path, item: Item) -> str:
    """What is wrong with a file that was copied as it is; empty: nothing."""
    if item.get("purpose") == "fine-tune-results":
        return ""
    size = item.get("bytes")
    if isinstance(size, int) and size != file.stat().st_size:
        return f"copied with {counted(file.stat().st_size, 'byte')}, the service lists {size:,}"
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return f"copied as it is, but line {number:,} is not UTF-8: `tuneloop prepare` rejects such lines"
    return ""


def _decode_metrics(file: Path) -> None:
    """The metrics of a job as a table next to the file: OpenAI gives this file out in base64."""
    try:
        table = base64.b64decode(file.read_bytes(), validate=True)
    except (binascii.Error, ValueError):
        return
    if table.startswith(b"step,"):
        write_bytes(file.parent.parent / "metrics" / f"{file.stem}.csv", table)


def safe(name: str) -> str:
    """A name from the service as a file's."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip(".")[:150] or "unnamed"


# --- what the service has stored of the traffic --------------------------------------------------


async def _completions(work: _Copy) -> list[Traffic]:
    """Write the stored completions as rows, page by page; returns what they say of the traffic, by model."""
    if work.survey.completions == "0":
        return []
    done, unfinished = work.folder / ROWS, work.folder / f".{ROWS}.partial"
    traffic: dict[str, Traffic] = {}
    if done.is_file():  # further ones may have come since
        os.replace(done, unfinished)
    seen, listed, limit = _known(unfinished, traffic), 0, asyncio.Semaphore(AT_ONCE)
    async with aclosing(work.service.pages("/chat/completions", limit=100, order="asc")) as pages:
        async for page in pages:
            fresh = [item for item in page if item["id"] not in seen]
            rows = [row for row in await asyncio.gather(*(_row(work, item, limit) for item in fresh)) if row]
            with user_errors_of_the_disk(unfinished), unfinished.open("ab") as handle:
                handle.writelines(map(_line, rows))
                handle.flush()
                os.fsync(handle.fileno())
            seen |= {row["id"] for row in rows}
            _count(traffic, rows)
            listed += len(page)
            progress("stored completions", listed, max(listed, len(seen)))
    if unfinished.is_file():
        os.replace(unfinished, done)
    return sorted(traffic.values(), key=lambda each: -each.requests)


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def _known(file: Path, traffic: dict[str, Traffic]) -> set[str]:
    """The ids of rows that are there, counted; a line that a killed process has not finished is cut off."""
    if not file.is_file():
        return set()
    drop_torn_line(file)
    ids = set()
    with file.open("rb") as lines:
        for row in map(json.loads, lines):
            ids.add(row["id"])
            _count(traffic, [row])
    return ids


def _count(traffic: dict[str, Traffic], rows: Iterable[Mapping[str, Any]]) -> None:
    for row in rows:
        old = traffic.get(row["model"], Traffic(model=row["model"], first=row["created"]))
        sums = {name: getattr(old, name) + row[name] for name in ("prompt_tokens", "completion_tokens")}
        times = {"first": min(old.first, row["created"]), "last": max(old.last, row["created"])}
        traffic[row["model"]] = old.model_copy(update={"requests": old.requests + 1, **sums, **times})


async def _row(work: _Copy, item: Item, limit: asyncio.Semaphore) -> dict[str, Any] | None:
    """A stored completion as a row: its conversation with the answer, and that a model wrote it."""
    path = place_of("chat", "completions", item["id"], "messages")
    try:
        async with limit:
            turns = await work.service.items(path, limit=100)
        answer = dict(item["choices"][0]["message"])
    except HttpRefused as error:
        _refused(work, f"completion {item['id']}", error)
        return None
    except (KeyError, IndexError, TypeError, ValueError):
        work.missing.append(Missing(what=f"completion {item['id']}", why="it holds no answer"))
        return None
    usage = item.get("usage") if isinstance(item.get("usage"), dict) else {}
    row = {
        "id": item["id"],
        "messages": [_turn(turn) for turn in (*turns, answer)],
        **({"tools": item["tools"]} if item.get("tools") else {}),
        "origin": OUTPUT,
        "model": str(item.get("model") or ""),
        "created": _whole(item.get("created")),
        "prompt_tokens": _whole((usage or {}).get("prompt_tokens")),
        "completion_tokens": _whole((usage or {}).get("completion_tokens")),
    }
    return row | ({"metadata": item["metadata"]} if item.get("metadata") else {})


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _turn(turn: Mapping[str, Any]) -> dict[str, Any]:
    names = ("role", "content", "tool_calls", "tool_call_id", "name")
    return {name: turn[name] for name in names if turn.get(name) is not None}


def refuse_other_folder(folder: Path) -> None:
    """Refuse a folder that holds something else.

    Raises:
        UserError: it is not empty, and no copy.
    """
    names = {path.name for path in folder.iterdir() if path.name[0] != "."} if folder.is_dir() else set()
    if names and not names & {Migration.file, ROWS, "jobs", "files"}:
        step = "name an empty folder with --out"
        raise UserError("The folder holds something else", where=str(folder), next_step=step)
