"""The first pass of prepare: a chunk of a source to finished rows, with the facts that later decisions need.

It knows one record at a time, so any number of processes can run it. What depends on other rows (duplicates, splits,
limits) is decided later on the facts.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import starmap
from typing import Any, NamedTuple

import numpy as np
import orjson

from tuneloop.core.foreign import fast_json
from tuneloop.core.text import json_bytes
from tuneloop.data.checks.overview import as_bits, flags
from tuneloop.data.clean import language, repair
from tuneloop.data.config import PrepareConfig
from tuneloop.data.dataset import Array, key64, meta_key, prompt_key
from tuneloop.data.dedup import minhash
from tuneloop.data.dedup.contamination import TestIndex, find_contamination
from tuneloop.data.formats.guess import FormatGuess, Parsed, Rejection, parse_record, with_whole_texts
from tuneloop.data.patch import PatchLine, corrected
from tuneloop.data.pii.redact import SHORTEST_ID, find, names_personal_data, redact, scrub
from tuneloop.data.sources.parse import Chunk, SourceRecord, finite, is_flat, parse_chunk
from tuneloop.records.rows import Message, Reject, Row

EXCERPT = 160  # characters of a text before and after a repair that `repairs.jsonl` shows
TURN_TOKENS = 16  # at most so many tokens frame a turn in any chat template; bounds a row's length from above
UNMEASURED = -1
NO_ROW = -1  # place of a repair whose record became no row
# Of large sources the language of one row in so many is detected: for a short row that is the slowest step.
LANGUAGES_EVERY = 8
CONTAMINATION_KINDS = ("exact", "near", "overlap")
NAMED = ("label", "stratum", "language")  # columns of numbers, one for each name
_ROW_TYPES: dict[str, str] = {
    "line": "i8", "start": "i8", "row_size": "i4", "record_size": "i4", "id": "u8", "meta": "u8", "question": "u8",
    "group": "u8", "flags": "u4", "tokens": "i4", "supervised": "i4", "characters": "i4", "answer_characters": "i4",
    "time": "f8", "rating": "f4",
}  # fmt: skip
# ASCII characters that neither a repair nor a search for personal data begins with.
_QUIET = bytes(code for code in range(32, 127) if chr(code) not in "&<[])0123456789@:=")


@dataclass(frozen=True)
class TokenCount:
    """The length of a rendered row: all its tokens, and those that the loss is computed on."""

    tokens: int = UNMEASURED
    supervised: int = UNMEASURED


_NOT_YET = TokenCount()
Measure = Callable[[Row], TokenCount]


@dataclass(frozen=True)
class RowProcessor:
    config: PrepareConfig
    measure: Measure  # a row's length; `ValueError` when it can't be rendered
    key: bytes | None = None  # of pseudonyms
    index: TestIndex | None = None  # the given test set, which no row may give away
    frame: minhash.PromptFrame = minhash.NO_FRAME  # what nearly all prompts begin and end with
    patch: Mapping[tuple[str, int], PatchLine] = field(default_factory=dict)  # by source and line
    languages_every: int = 1  # detect the language of one row in so many, picked by content


@dataclass
class ChunkFacts:
    """The rows of a chunk."""

    source: str  # the chunk's
    columns: dict[str, Array] = field(default_factory=dict)  # an element a row: see `_ROW_TYPES` and `minhash.sketch`
    names: dict[str, list[str | None]] = field(default_factory=lambda: {column: [] for column in NAMED})  # by row
    data: bytes | bytearray = field(default_factory=bytearray)  # each row as JSON, followed by its source record
    rejects: list[tuple[int, bytes]] = field(default_factory=list)  # records that are no rows: line and JSON
    repairs: list[RepairLine] = field(default_factory=list)  # what was changed
    records: int = 0  # rows and rejects together
    rejected: Counter[str] = field(default_factory=Counter)  # rejects by reason
    rejected_tokens: int = 0  # tokens of those that are too long
    is_chat: bool = False  # whether a row has tools or several answers


class RepairLine(NamedTuple):
    """A line of `repairs.jsonl`."""

    place: int  # of its row in the chunk, or NO_ROW
    kind: str  # of the repair
    line: bytes
    amounts: Mapping[str, int]  # of `pii` values by kind, of `cut` and `split` what the manifest counts of them


@dataclass(frozen=True)
class ChunkWork:
    """A chunk to process: its source, its records, and their format."""

    source: str
    records: Chunk | Sequence[SourceRecord | Reject]
    guess: FormatGuess


def process_chunk(work: ChunkWork, processor: RowProcessor) -> ChunkFacts:
    """The rows and rejects of a chunk."""
    items = parse_chunk(work.records) if isinstance(work.records, Chunk) else work.records
    gathering = _Gathering(processor, ChunkFacts(work.source, records=len(items)))
    for item in items:
        for row in [RefusedRecord(item)] if isinstance(item, Reject) else process_record(item, work.guess, processor):
            gathering.reject(row) if isinstance(row, RefusedRecord) else gathering.add(row)
    return gathering.end()


class FieldChange(NamedTuple):
    """A change to one field: the kind, and what `repairs.jsonl` says of it; `amounts` as in `RepairLine`."""

    kind: str
    field: str
    facts: dict[str, Any]
    amounts: Mapping[str, int] = {}


class ProcessedRow(NamedTuple):
    """A row on its way to a split, and what is to be said about it; `measured`, `language` and `flags` come last."""

    row: Row
    stratum: str
    record: Mapping[str, Any]  # of the source, without personal data, for a reject should the row be dropped later
    changes: list[FieldChange]
    group: str
    time: float
    rating: float
    measured: TokenCount = _NOT_YET
    language: str | None = None
    flags: tuple[str, ...] = ()


class RefusedRecord(NamedTuple):
    """A record that is no row, with what had been changed in it before that was found."""

    reject: Reject
    changes: Sequence[FieldChange] = ()
    id: str | None = None  # of the row that it would have been
    tokens: int = 0  # of one that is too long


def process_record(
    item: SourceRecord, guess: FormatGuess, processor: RowProcessor
) -> Sequence[ProcessedRow | RefusedRecord]:
    """A source record as a finished row, or why it is rejected; several rows where a long one is split."""
    config = processor.config
    whole = with_whole_texts(item.value, guess)
    changes: list[FieldChange] = []
    value = _clean_value(whole, (), "", processor, changes)
    if item.lenient and config.repair.json_syntax:
        changes.append(FieldChange("json_syntax", "", {"detail": item.lenient}))
    # what `rejects.jsonl` would show: as it stood, but for personal data
    record = value if not changes else scrub(whole, config.personal, processor.key)[0]

    def refuse(reason: str, detail: str) -> Sequence[RefusedRecord]:
        return (RefusedRecord(Reject(item.source, item.line, reason, detail, record), changes),)

    if item.lenient and not config.repair.json_syntax:
        # Standard readers (and most other tools of a pipeline) stop at such a line: what wrote it is worth a look.
        return refuse("broken_json", f"{item.lenient}; data.repair.json_syntax=true reads it all the same")
    parsed = parse_record(value, guess, config)
    if isinstance(parsed, Rejection):
        return refuse(parsed.reason, parsed.detail)
    if (fix := processor.patch.get((item.source, item.line))) is not None and parsed.messages[-1]["content"] == fix.was:
        becomes = _clean_text(fix.becomes, ("answer",), "", processor, changes)
        parsed = corrected(parsed, becomes)
        changes.append(FieldChange("patched", "answer", {"before": fix.was[:EXCERPT], "after": becomes[:EXCERPT]}))
    if config.personal.mode == "reject" and (redactions := [c for c in changes if c.kind == "pii"]):
        return refuse("personal_data", "; ".join(f"{c.field}: {c.facts['detail']}" for c in redactions))
    stratify = config.split.stratify
    meta: dict[str, Any] = {"source": item.source, "line": item.line}
    for column, further in value.items():  # scalars, and flat lists of scalars
        if (column not in parsed.used or column == stratify) and is_flat(further):
            while column in meta:
                column += "_"
            meta[column] = finite(further)
    meta.update(parsed.extra)
    row = Row(row_id(parsed), parsed.messages, parsed.label, parsed.tools, meta)
    stratum = parsed.label or "" if stratify is None else _as_name(value.get(stratify))
    for change in parsed.repairs:
        facts = {name: value for name, value in change.items() if name not in ("kind", "field")}
        changes.append(FieldChange(change["kind"], change["field"], facts))
    # from the record as it stood: redaction would make one of many users
    cell = item.value.get(config.split.group) if config.split.group is not None else None
    group = "" if cell is None else _as_name(cell)
    time = _number(value, config.split.time if config.split.by == "time" else config.duplicates.newest)
    draft = ProcessedRow(row, stratum, record, changes, group, time, _number(value, config.duplicates.best))
    measured = measured_if_long(row, processor)
    if isinstance(measured, Rejection) and measured.reason == "too_long" and config.too_long != "reject":
        if config.too_long == "truncate":
            messages, detail = shortened(row.messages, _fits(row, processor))
            short = replace(row, id=row_id(replace(parsed, messages=messages)), messages=messages)
            measured = measured_if_long(short, processor, always=True)
            if not isinstance(measured, Rejection):
                cut_tokens = processor.measure(row).tokens - measured.tokens
                amounts = {"cut": 1, "cut_tokens": cut_tokens}
                cut = FieldChange("cut", "messages", {"detail": detail, "tokens": cut_tokens}, amounts)
                draft = draft._replace(row=short, changes=[*changes, cut])
        elif drafts := _split(draft, parsed, processor):
            return [_finished(d, measured_if_long(d.row, processor, always=True), processor) for d in drafts]
    return (_finished(draft, measured, processor),)


def _finished(
    draft: ProcessedRow, measured: TokenCount | Rejection, processor: RowProcessor
) -> ProcessedRow | RefusedRecord:
    row, meta, target = draft.row, draft.row.meta, processor.config.language

    def refuse(reason: str, detail: str, tokens: int = 0) -> RefusedRecord:
        reject = Reject(meta["source"], meta["line"], reason, detail, draft.record)
        return RefusedRecord(reject, draft.changes, row.id, tokens)

    for rule in processor.config.leave_out:
        column, _, value = rule.partition("=")
        if column in meta and str(meta[column]) == value:
            return refuse("left_out", rule)
    if isinstance(measured, Rejection):
        return refuse(measured.reason, measured.detail, measured.tokens)
    looked_at = int(row.id, 16) % processor.languages_every == 0
    question = question_text(row) if target or looked_at else ""
    if target and language.foreign(question, target):
        return refuse("wrong_language", f"{language.detect_language(question)[0]}, not {target}")
    code = language.detect_language(question)[0] if looked_at else None
    return ProcessedRow(
        *draft[:-3], measured, code, flags(row.messages, row.label)
    )  # as `_replace` does, in half the time


def _fits(row: Row, processor: RowProcessor) -> Fits:
    def fits(messages: list[Message]) -> bool:
        measured = measured_if_long(replace(row, messages=messages), processor, always=True)
        return not (isinstance(measured, Rejection) and measured.reason == "too_long")

    return fits


def _split(draft: ProcessedRow, parsed: Parsed, processor: RowProcessor) -> list[ProcessedRow]:
    """The row in parts of at most `max_length`; none if a label, rating or second answer is about all of it.

    Ids follow from that of the whole row, which is in `meta.whole` and, as group, keeps the parts in one split. A part
    that is rejected later is a separate reject; all changes to the record stand with the first part.
    """
    whole = draft.row
    if whole.label is not None or {"thumb", "rating", "rejected"} & parsed.extra.keys():
        return []
    pieces = parts(whole.messages, _fits(whole, processor))
    drafts = []
    for number, messages in enumerate(pieces, 1):
        about = {"part": number, "of": len(pieces), "whole": whole.id}
        name = hashlib.sha256(f"{whole.id}:{number}".encode()).hexdigest()[:16]
        row = replace(whole, id=name, messages=messages, meta={**whole.meta, **about})
        facts = {"detail": f"part {number} of {len(pieces)}", "part": number, "whole": whole.id}
        change = FieldChange("split", "messages", facts, {"split": 1} if number == 1 else {})
        changes = [*(draft.changes if number == 1 else []), change]
        group, record = draft.group or f"whole {whole.id}", {"messages": messages, **about}
        drafts.append(draft._replace(row=row, record=record, changes=changes, group=group))
    return drafts


def question_text(row: Row) -> str:
    """What the user says; in a row without a user, the answer."""
    return "\n".join(m["content"] for m in row.messages if m["role"] == "user") or row.messages[-1]["content"]


def measured_if_long(row: Row, processor: RowProcessor, *, always: bool = False) -> TokenCount | Rejection:
    """The row's length if it may be over the limit or is of an unusual shape; why it is rejected if it is. A token is
    at least a byte, so rows with fewer bytes than the limit need no tokenizer, which makes preparing fast; they are
    measured later.
    """
    if not (always or row.tools) and _most_tokens(row.messages) <= processor.config.max_length:
        return _NOT_YET
    try:
        measured = processor.measure(row)
    except ValueError as error:
        return Rejection("template_error", str(error))
    if measured.tokens > processor.config.max_length:
        detail = f"{measured.tokens} tokens, at most {processor.config.max_length} (max_length)"
        return Rejection("too_long", detail, measured.tokens)
    if measured.supervised < 1:
        return Rejection("no_supervised_token", f"none of {measured.tokens} tokens is trained on")
    return measured


def _most_tokens(messages: Sequence[Message]) -> float:
    """An upper bound of the tokens of turns; infinite where some are of an unusual shape."""
    bound = TURN_TOKENS
    for position, message in enumerate(messages):
        if len(message) != 2 or (position and message["role"] == "system"):
            return math.inf
        content = message["content"]
        bound += TURN_TOKENS + (len(content) if content.isascii() else len(content.encode("utf-8", "surrogatepass")))
    return bound


def row_id(parsed: Parsed) -> str:
    """The first 16 hex digits of the hash of a row's content."""
    content = [parsed.messages, parsed.tools, parsed.label, *([parsed.extra] if parsed.extra else [])]
    return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def is_quiet(text: str) -> bool:
    """Whether nothing in a text can be repaired or, unless names are looked for, is personal. Half a microsecond."""
    if not text.isascii():
        return False
    if text.encode().translate(None, _QUIET):
        return len(text) < SHORTEST_ID and text.isalnum()
    if "sk-" in text or "assw" in text or "ASSW" in text or " dot " in text:  # as in `pii/redact.py: is_quiet`
        return False
    return text[:1] != " " and text[-1:] != " "


def cleaned(
    value: dict[str, Any], guess: FormatGuess, config: PrepareConfig, key: bytes | None = None
) -> dict[str, Any]:
    """A record as `process_record` gives it to the format: texts whole, repaired and redacted (`key`: of pseudonyms)"""
    processor = RowProcessor(config, lambda row: _NOT_YET, key)
    clean: dict[str, Any] = _clean_value(with_whole_texts(value, guess), (), "", processor, [])
    return clean


def _clean_value(
    value: Any, path: tuple[str | int, ...], column: str, processor: RowProcessor, changes: list[FieldChange]
) -> Any:
    """An object or array with its texts repaired and redacted, itself if nothing changed; `column`: the key above."""
    is_object, look_at_all = type(value) is dict, processor.config.personal.names
    new: Any = None
    pairs: Iterable[tuple[Any, Any]] = value.items() if is_object else enumerate(value)
    for key, item in pairs:
        column = key if is_object else column
        clean: Any = item
        if type(item) is str:
            if look_at_all or not is_quiet(item) or names_personal_data(column):
                clean = _clean_text(item, (*path, key), column, processor, changes)
        elif type(item) is dict or type(item) is list:
            clean = _clean_value(item, (*path, key), column, processor, changes)
        if clean is not item:
            new = value.copy() if new is None else new
            new[key] = clean
    return value if new is None else new


def _clean_text(
    text: str, path: tuple[str | int, ...], column: str, processor: RowProcessor, changes: list[FieldChange]
) -> str:
    config = processor.config
    repaired, kinds = repair.repair_text(text, config.repair)
    findings = find(repaired, config.personal, column) if config.personal.mode != "off" else []
    if not kinds and not findings:
        return text
    if repaired != text and text[:1] in "{[" and _is_json(text) and not _is_json(repaired):
        repaired, kinds = text, ()  # JSON inside a column: better unrepaired than broken
        findings = find(repaired, config.personal, column) if config.personal.mode != "off" else []
    # `messages[2].content` for ("messages", 2, "content")
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
    replaced = config.personal.mode in ("placeholder", "pseudonym")
    if kinds:
        before, after = _excerpts(_without_personal_data(text, processor), _without_personal_data(repaired, processor))
        changes.extend(FieldChange(kind, where, {"before": before, "after": after}) for kind in kinds)
    if findings:
        changes.append(_redacted(where, (finding.kind for finding in findings)))
    return redact(repaired, findings, config.personal, processor.key) if findings and replaced else repaired


def _redacted(where: str, kinds: Iterable[str]) -> FieldChange:
    """That a field held personal data: `found` has how many values of each kind, `detail` the same in words."""
    counts = Counter(kinds)
    detail = ", ".join(kind if n == 1 else f"{kind} x{n}" for kind, n in sorted(counts.items()))
    return FieldChange("pii", where, {"detail": detail, "found": dict(sorted(counts.items()))}, counts)


def _without_personal_data(text: str, processor: RowProcessor) -> str:
    settings = processor.config.personal
    if settings.mode == "off":
        return text
    plain = settings.model_copy(update={"mode": "placeholder"})
    return redact(text, find(text, plain), plain, None)


def _excerpts(before: str, after: str) -> tuple[str, str]:
    pairs = enumerate(zip(before, after, strict=False))
    same = next((position for position, (a, b) in pairs if a != b), min(len(before), len(after)))
    start = max(same - EXCERPT // 4, 0)

    def cut(text: str) -> str:
        excerpt = ("…" if start else "") + text[start : start + EXCERPT] + ("…" if start + EXCERPT < len(text) else "")
        return excerpt.encode("utf-8", "backslashreplace").decode("utf-8")

    return cut(before), cut(after)


def _is_json(text: str) -> bool:
    try:
        fast_json(text)
    except (orjson.JSONDecodeError, UnicodeEncodeError):
        return False
    return True


def _as_name(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


def _number(value: Mapping[str, Any], column: str) -> float:
    """A number, or a time as seconds since 1970; NaN where the value is neither."""
    cell = value.get(column)
    if not isinstance(cell, int | float | str):
        return math.nan
    with suppress(ValueError):
        return float(cell)
    with suppress(ValueError):
        moment = datetime.fromisoformat(str(cell).strip())
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return math.nan


class _Gathering:
    def __init__(self, processor: RowProcessor, facts: ChunkFacts) -> None:
        self.processor, self.facts = processor, facts
        self.rows: list[tuple[Any, ...]] = []  # the facts of each, as in _ROW_TYPES
        self.texts: list[minhash.RowTexts] = []

    def reject(self, refused: RefusedRecord) -> None:
        reject, settings = refused.reject, self.processor.config.personal
        kinds: list[str] = []
        if reject.record is not None and settings.mode not in ("off", "report"):
            record, kinds = scrub(reject.record, settings, self.processor.key)
            reject = replace(reject, record=record)
        self.facts.rejected[reject.reason] += 1
        self.facts.rejected_tokens += refused.tokens
        self.facts.rejects.append((reject.line, reject_line(reject)))
        further = [_redacted("", kinds)] if kinds else []
        self._repairs(reject.source, reject.line, refused.id, [*refused.changes, *further])

    def add(self, processed: ProcessedRow) -> None:
        row, position, facts = processed.row, len(self.rows), self.facts
        line, record = json_bytes(row.to_json()), json_bytes(processed.record)
        self.texts.append(minhash.texts_of(row, self.processor.frame))
        characters, answers = 0, 0
        for message in row.messages:
            characters += len(message["content"])
            answers += message["role"] == "assistant"
        self.rows.append((
            row.meta["line"], len(facts.data), len(line), len(record), int(row.id, 16), meta_key(row),
            key64(prompt_key(row)), key64(processed.group) if processed.group else 0,
            as_bits(processed.flags), processed.measured.tokens, processed.measured.supervised,
            characters, len(row.answer), processed.time, processed.rating,
        ))  # fmt: skip
        for column, name in zip(NAMED, (row.label, processed.stratum, processed.language), strict=True):
            facts.names[column].append(name)
        facts.data += line + record
        self._repairs(row.meta["source"], row.meta["line"], row.id, processed.changes, position)
        facts.is_chat = facts.is_chat or bool(row.tools) or answers > 1

    def _repairs(
        self, source: str, line: int, name: str | None, changes: Iterable[FieldChange], position: int = NO_ROW
    ) -> None:
        for change in changes:
            record = {"source": source, "line": line, "id": name, "kind": change.kind, "field": change.field}
            self.facts.repairs.append(
                RepairLine(position, change.kind, orjson.dumps(record | change.facts), change.amounts)
            )

    def end(self) -> ChunkFacts:
        values = zip(*self.rows, strict=True) if self.rows else ((),) * len(_ROW_TYPES)
        columns = self.facts.columns
        for (name, kind), of in zip(_ROW_TYPES.items(), values, strict=True):
            columns[name] = np.array(of, dtype=kind)
        columns |= minhash.sketch(self.texts, self.processor.config.duplicates)
        index, n = self.processor.index, len(self.texts)
        leaks = find_contamination(self.texts, index, columns) if index is not None and n else [None] * n
        columns["leak"] = np.array([-1 if leak is None else leak.test_row for leak in leaks], dtype="i4")
        kinds = [-1 if leak is None else CONTAMINATION_KINDS.index(leak.how) for leak in leaks]
        columns["leak_how"] = np.array(kinds, dtype="i1")
        columns["leak_similarity"] = np.array([0 if leak is None else leak.similarity for leak in leaks], dtype="f4")
        return self.facts


def reject_line(reject: Reject) -> bytes:
    return json_bytes(vars(reject))


Fits = Callable[[list[Message]], bool]

# Where a text may be cut, the best places first: behind paragraphs, sentences, words.
_BORDERS = (re.compile(r"\n\s*\n\s*"), re.compile(r"[.!?…。！？]['\")\]»”’]*\s+|[。！？]|\n+"), re.compile(r"\s+"))


def shortened(messages: Sequence[Message], fits: Fits) -> tuple[list[Message], str]:
    """A conversation without its beginning, and what was left out: first the oldest turns, then the start of the first
    user turn. System turns, the last question's end and the whole answer stay; so the result may still be too long.
    """
    head, body = _head(messages)
    before = len(body)
    while not fits([*head, *body]):
        later = [i for i in range(1, len(body)) if body[i]["role"] == "user"]
        if not later:
            break
        body = body[later[0] :]
    dropped, characters = before - len(body), 0
    if body[0]["role"] == "user" and not fits([*head, *body]):
        text, first = body[0]["content"], body[0]
        low, high = 1, len(text) - 1  # the least number of characters to cut lies between
        while low < high:
            middle = (low + high) // 2
            rest: Message = {**first, "content": text[middle:]}
            low, high = (low, middle) if fits([*head, rest, *body[1:]]) else (middle + 1, high)
        end = text[low:]
        end = end.split(" ", 1)[-1] if " " in end else end
        characters = len(text) - len(end)
        body = [{**first, "content": end}, *body[1:]]
    return [*head, *body], f"{dropped} turns and {characters} characters of the beginning left out"


def parts(messages: Sequence[Message], fits: Fits) -> list[list[Message]]:
    """A conversation in parts that fit, in order, which joined are the conversation; none where it can't be split.

    A chat is cut before user turns, so that a question stays with its answer and a call with its result; every part
    begins with the system turns. A text alone is cut at the ends of paragraphs, or else of sentences, or else words.
    """
    head, body = _head(messages)
    if len(body) == 1:
        text = body[0]["content"]

        def piece(start: int, end: int) -> list[Message]:
            return [*head, {**body[0], "content": text[start:end]}]

        cuts = _cuts(len(text), lambda a, b: fits(piece(a, b)), lambda a, b: _border(text, a, b))
        return list(starmap(piece, cuts))
    begins = [0, *(i for i, turn in enumerate(body) if turn["role"] == "user" and i), len(body)]

    def turns(start: int, end: int) -> list[Message]:
        return [*head, *body[begins[start] : begins[end]]]

    return list(starmap(turns, _cuts(len(begins) - 1, lambda a, b: fits(turns(a, b)))))


def _head(messages: Sequence[Message]) -> tuple[list[Message], list[Message]]:
    return [m for m in messages if m["role"] == "system"], [m for m in messages if m["role"] != "system"]


def _cuts(
    count: int, fits: Callable[[int, int], bool], better: Callable[[int, int], int] = lambda start, end: end
) -> list[tuple[int, int]]:
    """0 to `count` in ranges that fit, as long as can be or as `better` cuts; none if a single one is too long."""
    ranges: list[tuple[int, int]] = []
    start = 0
    while start < count:
        end, step = start, 1  # steps double first, so that what is tried is seldom far longer
        while end + step <= count and fits(start, end + step):
            end, step = end + step, 2 * step
        high = min(end + step, count + 1)  # does not fit
        while high - end > 1:
            middle = (end + high) // 2
            end, high = (middle, high) if fits(start, middle) else (end, middle)
        if end == start:
            return []
        if end < count:
            end = better(start, end)
        ranges.append((start, end))
        start = end
    return ranges


def _border(text: str, start: int, end: int) -> int:
    """The last good place to cut in the second half of a range; no piece is white space alone."""
    for border in _BORDERS:
        ends = [match.end() for match in border.finditer(text, (start + end) // 2, end)]
        if ends and text[start : ends[-1]].strip() and text[ends[-1] :].strip():
            return ends[-1]
    return end
