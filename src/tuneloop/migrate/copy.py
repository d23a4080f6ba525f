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
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import (
    content_hash,
    drop_torn_line,
    make_folder,
    replacing,
    sha256_file,
    user_errors_of_the_disk,
    write_bytes,
    write_json,
    write_jsonl,
)
from tuneloop.core.foreign import parse_line
from tuneloop.core.http.allowance import MOST_OF_A_PAGE
from tuneloop.core.http.service import Item, Service, place_of, refusal, why
from tuneloop.core.http.wire import Broken, HttpRefused
from tuneloop.core.ui import progress
from tuneloop.core.units import counted
from tuneloop.data.formats import objects
from tuneloop.migrate.record import CopiedFile, Migration, Missing, Traffic
from tuneloop.migrate.survey import Survey
from tuneloop.records.record import write_record

AT_ONCE = 8  # requests for the messages of stored completions
ROWS = "completions.jsonl"
RAW = "completions.raw.jsonl"  # each stored completion and its messages as the service gave them
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
        kind_place, kind = work.kinds.get(name, ("", name.partition("/")[0]))
        files[name] = CopiedFile(bytes=path.stat().st_size, sha256=sha256_file(path), id=kind_place, kind=kind)
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
        job_folder = work.folder / "jobs" / file_name(name)
        over = job.get("status") in ("succeeded", "failed", "cancelled")
        if over and (job_folder / "job.json").is_file():
            continue
        try:
            events = await work.service.items(place_of("fine_tuning", "jobs", name, "events"), limit=100)
        except HttpRefused as error:
            _refused(work, f"events of {name}", error)
            events = []
        events.reverse()  # the newest comes first
        write_jsonl(job_folder / "events.jsonl", sorted(events, key=lambda event: _whole(event.get("created_at"))))
        write_jsonl(job_folder / "checkpoints.jsonl", work.survey.checkpoints.get(name, []))
        write_json(job_folder / "job.json", job)


async def _files(work: _Copy) -> None:
    files = work.survey.files
    total = work.survey.bytes

    def read(size: int) -> None:
        work.bytes += size
        progress("bytes of files", work.bytes, max(total, work.bytes))

    for name, item in files.items():
        kind = str(item.get("purpose") or "")
        file_path = work.folder / "files" / file_name(name, str(item.get("filename") or ""))
        work.kinds[file_path.relative_to(work.folder).as_posix()] = (name, kind)
        if file_path.is_file():
            read(file_path.stat().st_size)
        else:
            try:
                await work.service.download(place_of("files", name, "content"), file_path, read)
            except HttpRefused as error:
                _refused(work, f"file {name} ({kind})", error)
                continue
        if fault := _fault(file_path, item):
            work.missing.append(Missing(what=f"file {name} ({kind})", why=fault))
        if kind == "fine-tune-results":
            _decode_metrics(file_path)


def _refused(work: _Copy, noun: str, error: HttpRefused) -> None:
    """Note what was deleted, or is not for this key; whatever else is refused ends the copy."""
    if error.status not in (400, 403, 404, 405, 410):
        raise error
    work.missing.append(Missing(what=noun, why=why(error)))


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
    if file.stat().st_size > MOST_OF_A_PAGE:
        return
    try:
        table = base64.b64decode(file.read_bytes(), validate=True)
    except (binascii.Error, ValueError):
        return
    if table.startswith(b"step,"):
        write_bytes(file.parent.parent / "metrics" / f"{file.stem}.csv", table)


def cleaned(name: str) -> str:
    """A name from the service without what a file's name can't have; several may become one."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip(".")[:150] or "unnamed"


def file_name(id_: str, name: str = "") -> str:
    """What an object of the service is called in the folder: by its id, and by its own name after it. No two ids have
    one file: those that are not as the service usually writes them get a hash, by a sign that no name has."""
    usual = re.fullmatch(r"[A-Za-z]+[-_][A-Za-z0-9]{1,64}", id_)
    return cleaned(f"{id_}-{name}" if name else id_) + ("" if usual else f"+{content_hash(id_)[:16]}")


# --- what the service has stored of the traffic --------------------------------------------------


async def _completions(work: _Copy) -> list[Traffic]:
    """Copy the stored completions, page by page, and write them as rows; returns what they say of the traffic."""
    if work.survey.completions == "0":
        return []
    done, unfinished = work.folder / RAW, work.folder / f".{RAW}.partial"
    if done.is_file():  # further ones may have come since
        os.replace(done, unfinished)
    if unfinished.is_file():
        drop_torn_line(unfinished)
    seen = {stored["completion"]["id"] for stored in _lines(unfinished)}
    listed, limit = 0, asyncio.Semaphore(AT_ONCE)
    async with aclosing(work.service.pages("/chat/completions", limit=100, order="asc")) as pages:
        async for page in pages:
            fresh = [item for item in page if item["id"] not in seen]
            copied = [
                stored for stored in await asyncio.gather(*(_stored(work, item, limit) for item in fresh)) if stored
            ]
            with user_errors_of_the_disk(unfinished), unfinished.open("ab") as handle:
                handle.writelines(map(_line, copied))
                handle.flush()
                os.fsync(handle.fileno())
            seen |= {stored["completion"]["id"] for stored in copied}
            listed += len(page)
            progress("stored completions", listed, max(listed, len(seen)))
    traffic: dict[str, Traffic] = {}
    lacking = Counter[str]()
    with replacing(work.folder / ROWS) as file:
        for stored in _lines(unfinished):
            rows = rows_of(stored, lacking)
            file.writelines(map(_line, rows))
            _count(traffic, rows)
    if unfinished.is_file():
        os.replace(unfinished, done)
    work.missing += [
        Missing(what=counted(number, "stored completion"), why=reason) for reason, number in lacking.items()
    ]
    return sorted(traffic.values(), key=lambda use: -use.requests)


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    """The records of a file of this copy, one after the other; none where it is not there."""
    if file.is_file():
        with file.open(encoding="utf-8", errors="surrogatepass", newline="\n") as lines:
            yield from map(parse_line, lines)


def _count(traffic: dict[str, Traffic], rows: Iterable[Mapping[str, Any]]) -> None:
    for row in rows:
        if row["choice"]:  # another answer to a request that is counted
            continue
        old = traffic.get(row["model"], Traffic(model=row["model"], first=row["created"]))
        sums = {name: getattr(old, name) + row[name] for name in ("prompt_tokens", "completion_tokens")}
        times = {"first": min(old.first, row["created"]), "last": max(old.last, row["created"])}
        traffic[row["model"]] = old.model_copy(update={"requests": old.requests + 1, **sums, **times})


async def _stored(work: _Copy, item: Item, limit: asyncio.Semaphore) -> dict[str, Any] | None:
    """A stored completion and its messages, as the service gives them; None: they are refused."""
    path = place_of("chat", "completions", item["id"], "messages")
    try:
        async with limit:
            return {"completion": item, "messages": await work.service.items(path, limit=100)}
    except HttpRefused as error:
        _refused(work, f"completion {item['id']}", error)
        return None


# Settings of a request that change what was answered; where one is not the usual, the row says so.
_SETTINGS = (
    "temperature", "top_p", "seed", "presence_penalty", "frequency_penalty", "tool_choice", "response_format",
    "metadata", "service_tier",
)  # fmt: skip
# What a row has, or what says nothing of the answer; a further field is named as missing from it.
_KEYS = {
    "completion": {"id", "object", "created", "model", "choices", "usage", "tools", "request_id", "system_fingerprint"},
    "choice": {"index", "message", "finish_reason", "logprobs"},
    "message": {
        "role", "content", "tool_calls", "tool_call_id", "name", "refusal", "content_parts", "id", "function_call",
    },
}  # fmt: skip
_WHOLE, _CUT = ("", "stop", "tool_calls", "function_call"), ("length", "content_filter")  # finish reasons


def rows_of(stored: Mapping[str, Any], lacking: Counter[str]) -> list[dict[str, Any]]:
    """A stored completion as rows, one for each of its choices: its conversation with the answer, that a model wrote
    it, and why it ended.

    Args:
        stored: `completion` and `messages` as the service gives them.
        lacking: what rows can't express is counted here, once a completion; `completions.raw.jsonl` has it.
    """
    item, turns, gaps = stored["completion"], stored["messages"], set[str]()
    _note_unknown("completion", item, _KEYS["completion"].union(_SETTINGS), gaps)
    choices = [choice for choice in objects(item.get("choices")) if isinstance(choice.get("message"), dict)]
    if not choices:
        gaps.add("it holds no answer")
    usage = item.get("usage") if isinstance(item.get("usage"), dict) else {}
    about = {
        "origin": OUTPUT, "model": str(item.get("model") or ""), "created": _whole(item.get("created")),
        "prompt_tokens": _whole((usage or {}).get("prompt_tokens")),
        "completion_tokens": _whole((usage or {}).get("completion_tokens")),
        **{name: item[name] for name in _SETTINGS if item.get(name) is not None},
    }  # fmt: skip
    rows = []
    for number, choice in enumerate(choices):
        answer, finish = choice["message"], str(choice.get("finish_reason") or "")
        row = {
            "id": item["id"] if not number else f"{item['id']}-{number}", "completion": item["id"], "choice": number,
            "messages": [_turn(turn, gaps) for turn in (*turns, {"role": "assistant", **answer})],
            **({"tools": item["tools"]} if item.get("tools") else {}), "finish_reason": finish, **about,
        }  # fmt: skip
        _note_unknown("choice", choice, _KEYS["choice"], gaps)
        if answer.get("refusal"):
            row["refusal"] = True
            gaps.add("it is a refusal: its row has the text of it as the answer, and refusal: true")
        if finish in _CUT:
            gaps.add(f"its answer was cut off (finish_reason {finish})")
        elif finish not in _WHOLE:
            gaps.add(f"whether its answer is whole is not known (finish_reason {finish})")
        if choice.get("logprobs"):
            gaps.add(f"its log probabilities are in {RAW} alone")
        rows.append(row)
    lacking.update(gaps)
    return rows


def _note_unknown(kind: str, value: Mapping[str, Any], known: Set[str], gaps: set[str]) -> None:
    for name in value.keys() - known:
        if value[name] not in (None, [], {}, ""):
            gaps.add(f"{name} of a {kind} is in {RAW} alone")


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _turn(turn: Mapping[str, Any], gaps: set[str]) -> dict[str, Any]:
    """A message as a turn: parts of contents joined to a text where all are texts, a refusal as what was said."""
    content = turn.get("content")
    parts = content if isinstance(content, list) else objects(turn.get("content_parts"))
    if parts:
        texts = [part.get("text") if part.get("type") == "text" else part.get("refusal") for part in objects(parts)]
        others = {str(part.get("type")) for part, text in zip(objects(parts), texts, strict=True) if text is None}
        joined = content if isinstance(content, str) else "".join(map(str, texts))
        content = parts if others else joined
        gaps |= {f"a part of the type {kind} is no text: `tuneloop prepare` rejects its row" for kind in others}
    if content is None:
        content = turn.get("refusal")
    kinds = {str(call.get("type") or "function") for call in objects(turn.get("tool_calls"))} - {"function"}
    gaps |= {f"a call of the type {kind} is of no function: `tuneloop prepare` rejects its row" for kind in kinds}
    _note_unknown("message", turn, _KEYS["message"], gaps)
    names = ("tool_calls", "function_call", "tool_call_id", "name")
    said = {"content": content} if content is not None else {}
    return {"role": turn.get("role"), **said, **{name: turn[name] for name in names if turn.get(name) is not None}}


def refuse_other_folder(folder: Path) -> None:
    """Refuse a folder that holds something else.

    Raises:
        UserError: it is not empty, and no copy.
    """
    names = {path.name for path in folder.iterdir() if path.name[0] != "."} if folder.is_dir() else set()
    if names and not names & {Migration.file, ROWS, "jobs", "files"}:
        step = "name an empty folder with --out"
        raise UserError("The folder holds something else", where=str(folder), next_step=step)
