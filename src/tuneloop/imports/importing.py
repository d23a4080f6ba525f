"""From a tool's export to the store: read, cleaned and joined on disk first, so that nothing is half-imported.

All parts of the source go into a database of their own next to the store, without personal data, in batches with the
place that was reached. Only when the source was read to its end are its calls joined with the spans around them and
stored. After a kill the same command continues; ids follow from the ids of the source, so what is there is not added.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson

from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, replacing, user_errors_of_the_disk
from tuneloop.core.foreign import fast_json
from tuneloop.core.ids import clock, utc
from tuneloop.core.text import json_bytes, storable
from tuneloop.core.ui import progress, say
from tuneloop.core.units import counted
from tuneloop.core.urls import masked
from tuneloop.data.formats import Refused
from tuneloop.data.sources import Chunk, SourceFile, SourceRecord, chunks_of, find_files, parse_chunk
from tuneloop.imports.parts import INHERITED, STORED_ALL_THE_SAME, Fault, Record, TraceFormat, TracePart
from tuneloop.records.feedback import Feedback, feedback_of
from tuneloop.records.request import StoredRequest
from tuneloop.records.rows import Reject
from tuneloop.serving.store import (
    Database,
    DataRefusedError,
    insert,
    opened,
    pseudonym_of_user,
    store_folder,
    users_key,
)

BATCH = 1000  # records of a transaction in the store
CHUNK = 1 << 18  # bytes of a source that are read in one transaction: a record may hold hundreds of spans
LATER = 86_400.0  # seconds that a clock may be ahead
LONGEST_ERROR = 2000  # characters: some tools log whole tracebacks
DEEPEST = 100  # spans above a call that are looked at
FACTS = ("model", "prompt", "completion", "prompt_tokens", "completion_tokens", "usd", "total_ms", "ttft_ms", "user",
         "conversation", "release")  # fmt: skip
_TABLES = """
CREATE TABLE IF NOT EXISTS parts (trace TEXT, id TEXT, kind TEXT, parent TEXT, time REAL, digest BLOB, record BLOB,
    source TEXT, line INTEGER, UNIQUE (trace, id));
CREATE TABLE IF NOT EXISTS faults (source TEXT, line INTEGER, reason TEXT, detail TEXT, request TEXT);
CREATE TABLE IF NOT EXISTS state (name TEXT PRIMARY KEY, value TEXT);
"""


@dataclass(frozen=True)
class TraceSource:
    """Where traces come from; `users`: whether their names stay as they are."""

    format: TraceFormat
    places: Sequence[str]
    redact: Callable[[Any], Any]
    keep_users: bool = False


@dataclass
class ImportSummary:
    """What became of a source.

    Args:
        records: that were read; `requests`, `feedback`: new in the store; `known`: in it already.
        repeated: parts that the source has more than once, the same each time.
        left_out: reason -> parts that are not in the store; `incomplete`: reason -> requests that lack something.
        without: values that no request of this source has.
        since, until: times of the first and the last request.
        rejects: file with each part that was left out or lacks something; empty: there is none.
    """

    source: str
    format: str
    records: int = 0
    requests: int = 0
    feedback: int = 0
    known: int = 0
    repeated: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    incomplete: dict[str, int] = field(default_factory=dict)
    without: list[str] = field(default_factory=list)
    since: str = ""
    until: str = ""
    rejects: str = ""


Item = tuple[str, int, Any]  # source, line, and a record or why there is none


def import_traces(source: TraceSource, location: Path | str) -> ImportSummary:
    """Bring the calls of a source with their feedback into a store, which is made where there is none.

    Raises:
        UserError: the source can't be read, is of another format as a whole, or the store can't be written. The same
            command continues where it stopped.
    """
    files = [] if _live(source) else find_files(source.places)  # a source that is not there leaves no store behind
    with opened(location, create=True) as store:
        key = b"" if source.keep_users else users_key(store)
        with _work(source, files, store_folder(location)) as work:
            work.key = key
            _read(work)
            summary = _store(work, store)
    return summary


@dataclass
class _ImportJob:
    """An import on its way, and its database."""

    source: TraceSource
    base: sqlite3.Connection
    files: Sequence[SourceFile] = ()  # none where the source is a service
    rejects: Path = Path()
    key: bytes = b""
    is_over: bool = False  # nothing of it is needed any more

    def state(self, name: str, default: str = "") -> str:
        row = self.base.execute("SELECT value FROM state WHERE name = ?", [name]).fetchone()
        return str(row[0]) if row else default

    def note(self, name: str, value: object) -> None:
        self.base.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", [name, str(value)])

    def fault(self, item: Item, reason: str, detail: str, request: str = "") -> None:
        detail = str(self.source.redact(storable(detail)))[:300]
        self.base.execute("INSERT INTO faults VALUES (?, ?, ?, ?, ?)", [*item[:2], reason, detail, request])


@contextlib.contextmanager
def _work(source: TraceSource, files: Sequence[SourceFile], folder: Path) -> Iterator[_ImportJob]:
    """The database of an import, which goes when it is done or nothing was read; that of an earlier state of the same
    files goes now."""
    stamps = [(file.name, file.path.stat().st_size, file.path.stat().st_mtime_ns) for file in files]
    name = content_hash([source.format.name, list(source.places)])[:12]
    path = folder / f"import-{name}-{content_hash([stamps, source.keep_users, CHUNK])[:12]}.db"
    for other in folder.glob(f"import-{name}-*"):
        if not other.name.startswith(path.name):
            other.unlink(missing_ok=True)
    with user_errors_of_the_disk(folder):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    base, work = sqlite3.connect(path, isolation_level=None, timeout=0.0), None
    try:
        base.executescript(
            "PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;"
            f"PRAGMA cache_size=-65536; {_TABLES}"
        )
        work = _ImportJob(source, base, files, folder / f"import-{name}.rejects.jsonl")
        work.is_over = not work.state("records")
        yield work
    except sqlite3.OperationalError as error:
        step = "free space; the same command then continues"
        if "locked" in str(error):
            step = "wait until that one has ended"
            raise UserError("Another command imports this", where=str(path), next_step=step) from None
        raise UserError(f"The import can't be written: {error}", where=str(path), next_step=step) from None
    finally:
        base.close()
        for file in folder.glob(f"{path.name}*") if work is not None and work.is_over else ():
            file.unlink(missing_ok=True)


def _names(source: TraceSource) -> str:
    """The places of a source, of many the first ones; a shell has made them of a pattern."""
    first, left = list(map(masked, source.places[:3])), len(source.places) - 3
    return ", ".join(first) + (f" and {left:,} more" if left > 0 else "")


def _batched(items: Iterable[Any]) -> Iterator[list[Any]]:
    left = iter(items)
    while batch := list(islice(left, BATCH)):
        yield batch


def _live(source: TraceSource) -> str:
    """The address of the tool's own service, where that is the source; else empty."""
    places = [address for address in source.places if source.format.live and source.format.is_address(address)]
    if places and len(source.places) > 1:
        raise UserError("Name one service at a time", where=", ".join(map(masked, source.places)))
    return places[0] if places else ""


# --- into the database -------------------------------------------------------------------------


def _batches(work: _ImportJob) -> Iterator[tuple[str, list[Item]]]:
    """The items that were not read yet, in batches, each with the place that is reached with its end."""
    location = work.state("place")
    if address := _live(work.source):
        live = work.source.format.live
        assert live is not None
        for reached, records in live(address, location):
            yield reached, [(masked(address), 0, record) for record in records]
        return
    done = int(location or 0)
    for number, chunk in enumerate(_chunks(work.files)):
        if number >= done:
            yield str(number + 1), [(piece.source, piece.line, piece) for piece in parse_chunk(chunk)]


def _chunks(files: Sequence[SourceFile]) -> Iterator[Chunk]:
    sizes = [file.path.stat().st_size for file in files]
    for number, file in enumerate(files):
        encoding = "utf-8"
        for chunk in chunks_of(file, CHUNK):
            progress("reading", sum(sizes[:number]) + chunk.position, sum(sizes))
            if chunk.encoding not in ("", "utf-8", "utf-8-sig", encoding):
                encoding = chunk.encoding
                say(f"warn: {file.name} is no UTF-8: read as {encoding}")
            yield chunk


def _read(work: _ImportJob) -> None:
    if work.state("read"):
        return
    records, parts = int(work.state("records", "0")), int(work.state("parts", "0"))
    for location, items in _batches(work):
        work.base.execute("BEGIN IMMEDIATE")
        for item in items:
            parts += _read_item(work, item)
        records += len(items)
        for name, value in (("place", location), ("records", records), ("parts", parts)):
            work.note(name, value)
        work.base.execute("COMMIT")
        work.is_over = False
    if not parts:
        fault = work.base.execute("SELECT reason || ': ' || detail FROM faults LIMIT 1").fetchone()
        reason = f" ({fault[0]})" if fault else ""
        message = f"Nothing of {work.source.format.title} in {counted(records, 'record')}{reason}"
        work.is_over = True
        step = "tuneloop import --help names the formats" if records else "check the address, and that it has traces"
        raise UserError(message, where=_names(work.source), next_step=step)
    work.base.execute("CREATE INDEX IF NOT EXISTS parts_by_time ON parts (kind, time)")
    work.note("read", "yes")


def _read_item(work: _ImportJob, item: Item) -> int:
    """Put the parts of a record into the database; returns how many there are."""
    record, number = item[2], 0
    if isinstance(record, Reject):
        work.fault(item, record.reason, record.detail)
        return 0
    try:
        for part in work.source.format.parts(record.value if isinstance(record, SourceRecord) else record):
            number += 1
            _keep(work, item, part)
    except Refused as fault:
        work.fault(item, fault.reason, fault.detail)
    except (AttributeError, TypeError, ValueError, KeyError, IndexError, RecursionError) as error:
        work.fault(item, "wrong_type", f"not as this format has it: {error!r:.150}")
    return number


def _keep(work: _ImportJob, item: Item, part: TracePart) -> None:
    reason = "no_id" if not part.id or not part.trace else ""
    if part.kind == "call":
        reason = reason or ("no_time" if part.time is None else "future_time" * (part.time > clock() + LATER))
    if part.kind == "score" and (part.trace or part.values.get("conversation")):
        part.id = part.id or content_hash(part.values)
        reason = ""
    if reason:
        work.fault(item, reason, part.id or part.kind)
        return
    values = cleaned(part, work.source.redact, work.key)
    record = json_bytes([values, part.faults])
    digest = hashlib.blake2b(record, digest_size=16).digest()
    part.trace, part.id, part.parent = (storable(text) for text in (part.trace, part.id, part.parent))
    row = [part.trace, part.id, part.kind, part.parent, part.time, digest, record, *item[:2]]
    new = work.base.execute("INSERT OR IGNORE INTO parts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    if not new.rowcount:
        query = "SELECT digest FROM parts WHERE trace = ? AND id = ?"
        if work.base.execute(query, row[:2]).fetchone()[0] == digest:
            work.note("repeated", int(work.state("repeated", "0")) + 1)
        else:
            work.fault(item, "duplicate_id", f"the first one stays: {part.id}")


def cleaned(part: TracePart, redact: Callable[[Any], Any], key: bytes) -> dict[str, Any]:
    """The values of a part as they may be stored: no personal data in texts, users as pseudonyms.

    `key`: of the pseudonyms; empty: users stay as they are.
    """
    values = {name: value for name, value in part.values.items() if value not in (None, [], "")}
    if "error" in values:
        values["error"] = str(values["error"])[:LONGEST_ERROR]
    texts = {name: values[name] for name in ("prompt", "completion", "tools", "error", "value") if name in values}
    values |= redact(texts) if texts else {}
    if key and "user" in values:
        values["user"] = pseudonym_of_user(values["user"], key)
    for name in ("user", "conversation", "model", "release", "finish"):
        if name in values:
            text = storable(str(values[name]))
            values[name] = text if len(text) <= 256 else content_hash(text)
    return values


# --- from there into the store -----------------------------------------------------------------


def request_id(trace: str, id_: str, seconds: float) -> str:
    """The id of an imported request: the source's own where that is a UUIDv7, else made of its time and ids alone."""
    if len(id_) == 36 and id_[14] == "7":
        with contextlib.suppress(ValueError):
            return str(UUID(id_))
    digest = hashlib.sha256(f"{trace}\x1f{id_}".encode("utf-8", "surrogatepass")).digest()
    random = int.from_bytes(digest[:10]) >> 6
    return str(UUID(int=int(seconds * 1000) << 80 | 7 << 76 | (random >> 62) << 64 | 2 << 62 | random & (1 << 62) - 1))


def end_of_request_id(trace: str, id_: str) -> str:
    """What of an imported request's id does not depend on its time."""
    return request_id(trace, id_, 0.0)[14:]


def requests_of(format: TraceFormat, message: Record, key: bytes) -> tuple[list[StoredRequest], list[Fault]]:
    """The calls in one message, joined with the spans around them in it, and why parts of it can't be stored.

    Personal data stays in: the server's writer redacts.
    """
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as base:
        base.executescript(_TABLES)
        work = _ImportJob(TraceSource(format, [], lambda texts: texts), base, key=key)
        _read_item(work, ("", 0, message))
        faults = base.execute("SELECT reason, detail FROM faults WHERE reason != 'duplicate_id'").fetchall()
        _leave_out_wrappers(work)
        return [request for _, request in _requests(work, Counter())], faults


def _store(work: _ImportJob, store: Database) -> ImportSummary:
    summary = ImportSummary(_names(work.source), work.source.format.name, records=int(work.state("records", "0")))
    summary.repeated = int(work.state("repeated", "0"))
    if not work.state("joined"):
        _leave_out_wrappers(work)
    calls = work.base.execute("SELECT COUNT(*) FROM parts WHERE kind = 'call'").fetchone()[0]
    seen: Counter[str] = Counter()
    work.base.execute("BEGIN IMMEDIATE")
    work.base.execute("DELETE FROM faults WHERE request != '' OR reason IN ('refused', 'no_target', 'bad_feedback')")
    for number, batch in enumerate(_batched(_requests(work, seen))):
        items, requests = zip(*batch, strict=True)
        _insert(work, store, items, requests, summary, "requests")
        summary.since, summary.until = summary.since or requests[0].time, requests[-1].time
        progress("storing", min((number + 1) * BATCH, calls), calls)
    for some in _batched(_feedback(work, store)):
        items, feedback = zip(*some, strict=True)
        _insert(work, store, items, feedback, summary, "feedback")
    work.base.execute("COMMIT")
    summary.without = [name for name in FACTS if not seen[name]] if calls else []
    _account(work, summary)
    work.is_over = True
    return summary


def _leave_out_wrappers(work: _ImportJob) -> None:
    """Spans of frameworks around the call itself, or of a client within it, say the same again: of two the one that has
    texts stays. Traces without any call are named, and what is added to none."""
    work.base.execute("BEGIN IMMEDIATE")
    work.base.execute("""CREATE TEMP TABLE calls AS SELECT rowid AS row, trace, id, parent,
        json_extract(CAST(record AS TEXT), '$[0].response') AS response,
        json_extract(CAST(record AS TEXT), '$[0].prompt', '$[0].completion') != '[null,null]' AS texts
        FROM parts WHERE kind = 'call'""")
    work.base.execute("CREATE INDEX temp.calls_by_id ON calls (trace, id)")
    work.base.execute("""CREATE TEMP TABLE again AS
        SELECT CASE WHEN around.texts > within.texts THEN within.row ELSE around.row END AS row,
        CASE WHEN around.texts > within.texts THEN 'same_call' ELSE 'wraps_call' END AS reason FROM calls AS within
        JOIN calls AS around ON around.trace = within.trace AND around.id = within.parent AND around.id != within.id
        WHERE within.parent != ''""")
    work.base.execute("""INSERT INTO again SELECT row, 'same_call' FROM (SELECT row, ROW_NUMBER() OVER
        (PARTITION BY trace, response ORDER BY texts DESC, row) AS number FROM calls WHERE response IS NOT NULL)
        WHERE number > 1""")
    work.base.execute("""INSERT INTO faults SELECT source, line, MAX(reason), id, '' FROM parts
        JOIN again ON parts.rowid = again.row GROUP BY parts.rowid""")
    work.base.execute("UPDATE parts SET kind = 'node' WHERE rowid IN (SELECT row FROM again)")
    work.base.execute("""INSERT INTO faults SELECT source, line, 'no_target', parent, '' FROM parts AS extra
        WHERE kind = 'extra' AND NOT EXISTS (SELECT 1 FROM parts AS one WHERE one.trace = extra.trace
        AND one.id = extra.parent AND one.kind = 'call')""")
    work.base.execute("""INSERT INTO faults SELECT source, MIN(line), 'no_call', trace, '' FROM parts
        WHERE kind = 'node' AND trace NOT IN (SELECT trace FROM parts WHERE kind = 'call') GROUP BY source, trace""")
    work.note("joined", "yes")
    work.base.execute("COMMIT")


def _requests(work: _ImportJob, seen: Counter[str]) -> Iterator[tuple[Item, StoredRequest]]:
    """The calls in the order of their times, each with what it inherits; `seen` counts the values that are there."""
    query = "SELECT trace, id, parent, time, record, source, line FROM parts WHERE kind = 'call' ORDER BY time, rowid"
    extras = work.base.execute("SELECT 1 FROM parts WHERE kind = 'extra' LIMIT 1").fetchone() is not None
    for trace, id_, parent, time, record, source, line in work.base.execute(query):
        values, faults = fast_json(record)
        inherited = _inherited(work, trace, parent) if parent else {}
        if extras:
            added, further = _extra(work, trace, id_)
            inherited |= added
            values |= {name: inherited[name] for name in ("model",) if name in inherited}
            known = {"without_prompt": added.get("prompt"), "without_answer": added.get("completion"), **dict(further)}
            faults = further + [fault for fault in faults if not known.get(fault[0])]
        values = {**inherited, **{name: value for name, value in values.items() if value or name not in inherited}}
        own = {name: value for name, value in values.items() if name in StoredRequest.__dataclass_fields__}
        own = {"model": "unknown", "prompt": [], **own}
        request = StoredRequest(id=request_id(trace, id_, time), time=utc(time), tier="import", **own)
        item = (source, line, None)
        for reason, detail in faults:
            work.fault(item, reason, detail, request.id)
        seen.update(name for name in FACTS if values.get(name))
        yield item, request


def _inherited(work: _ImportJob, trace: str, parent: str) -> dict[str, Any]:
    """What the spans around a call, and its trace, say of user, conversation and version; the nearest one holds."""
    values: dict[str, Any] = {}
    for _ in range(DEEPEST):
        query = "SELECT parent, record FROM parts WHERE trace = ? AND id = ? AND kind = 'node'"
        row = work.base.execute(query, [trace, parent]).fetchone()
        if row is None:
            if parent == trace:
                break
            parent = trace  # the span between is missing
            continue
        own = fast_json(row[1])[0]
        values = {name: own[name] for name in INHERITED if name in own} | values
        if len(values) == len(INHERITED) or parent == trace:
            break
        parent = row[0] or trace
    return values


def _extra(work: _ImportJob, trace: str, id_: str) -> tuple[dict[str, Any], list[Fault]]:
    """What rows next to a call add, and what of them can't be read: tokens of several are summed, turns joined."""
    values: dict[str, Any] = {}
    faults: list[Fault] = []
    query = "SELECT record FROM parts WHERE trace = ? AND kind = 'extra' AND parent = ? ORDER BY rowid"
    for (record,) in work.base.execute(query, [trace, id_]):
        added, unreadable = fast_json(record)
        faults += unreadable
        for name, value in added.items():
            joined = isinstance(value, int | float) or name == "prompt"
            values[name] = values[name] + value if joined and name in values else value
    return values, faults


def _feedback(work: _ImportJob, store: Database) -> Iterator[tuple[Item, Feedback]]:
    query = "SELECT trace, id, parent, time, record, source, line FROM parts WHERE kind = 'score' ORDER BY time, rowid"
    for trace, id_, about, time, record, source, line in work.base.execute(query):
        item, (values, _) = (source, line, None), fast_json(record)
        conversation = values.pop("conversation", None)
        request, called = _target(work, store, trace, about)
        if not request:
            query = "SELECT 1 FROM requests WHERE conversation = ? LIMIT 1"
            if not (conversation and store.execute(query, [conversation]).fetchone()):
                step = "import it together with its trace"
                work.fault(item, "no_target", f"{about or trace or conversation}: {step}")
                continue
        at = time or called or clock()
        key = f"import:{content_hash([trace, id_, about])[:32]}"
        target = {"request": request} if request else {"conversation": conversation}
        try:
            new_id = request_id(f"score:{trace}:{about}", id_, at)
            yield item, feedback_of({**values, **target, "time": utc(at), "key": key}, new_id=new_id, now=utc(clock()))
        except UserError as error:
            work.fault(item, "bad_feedback", f"{values.get('kind')}: {error.what}")


def _target(work: _ImportJob, store: Database, trace: str, about: str) -> tuple[str, float | None]:
    """The request that a score is about, and its time: the call itself, else the last one of the trace."""
    last = "SELECT id, time FROM parts WHERE trace = ? AND kind = 'call'"
    for query, values in ((f"{last} AND id = ?", [trace, about]), (f"{last} ORDER BY time DESC LIMIT 1", [trace])):
        if row := work.base.execute(query, values).fetchone():
            return request_id(trace, *row), row[1]
    row = store.execute("SELECT id FROM requests WHERE id = ?", [about or trace]).fetchone()
    return (str(row[0]), None) if row else ("", None)


def _insert(
    work: _ImportJob, store: Database, items: Sequence[Item], records: Sequence[Any], summary: ImportSummary, name: str
) -> None:
    """Add records; one that the database can't hold costs none of the others."""
    try:
        new = insert(store, records)
    except DataRefusedError as error:
        if len(records) == 1:
            work.fault(items[0], "refused", f"{records[0].id}: {error}")
            return
        for item, record in zip(items, records, strict=True):
            _insert(work, store, [item], [record], summary, name)
        return
    setattr(summary, name, getattr(summary, name) + new)
    summary.known += len(records) - new


def _account(work: _ImportJob, summary: ImportSummary) -> None:
    """Count what was left out or lacks something, and write each into the file of rejects."""
    counts = work.base.execute("SELECT reason, COUNT(*) FROM faults GROUP BY reason ORDER BY 2 DESC").fetchall()
    for reason, number in counts:
        (summary.incomplete if reason in STORED_ALL_THE_SAME else summary.left_out)[reason] = number
    work.rejects.unlink(missing_ok=True)
    if counts:
        with replacing(work.rejects) as file:
            os.fchmod(file.fileno(), 0o600)
            for row in work.base.execute("SELECT * FROM faults ORDER BY source, line, rowid"):
                facts = zip(("source", "line", "reason", "detail", "request"), row, strict=True)
                file.write(orjson.dumps({name: value for name, value in facts if value or name != "request"}) + b"\n")
        summary.rejects = str(work.rejects)
