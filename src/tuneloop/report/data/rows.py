"""Rows of a prepared data set that a query asks for, from its files: a look of bounded length, then the next one.

A file is searched as bytes for the rarest thing in the query, and only lines that may fit are parsed.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from tuneloop.core.errors import UserError
from tuneloop.core.foreign import fast_json, opened, parse_line
from tuneloop.core.written import clean_all
from tuneloop.report.data.facts import SPLITS

ON_A_PAGE = 25
MOST_IDS = 20_000  # rows of one check or repair that are looked for
FEW = 30  # ids that are searched for one by one
MOST_BYTES = 3 << 30  # of a split's file that one search reads


@dataclass(frozen=True)
class RowQuery:
    """What rows are searched for. `check`, `repair`, `personal`: words of its files; `start`: split:offset."""

    text: str = ""
    label: str = ""
    split: str = ""
    check: str = ""
    repair: str = ""
    personal: str = ""
    start: str = ""


@dataclass
class RowPage:
    """Rows that fit, and where the next look starts; empty: there are no more."""

    rows: list[tuple[str, dict[str, Any]]] = field(default_factory=list)  # split, row
    then: str = ""
    damaged: int = 0


def find_rows(folder: Path, query: RowQuery, most: int = ON_A_PAGE) -> RowPage:
    """The first rows that fit, in the order of the files. Raises UserError: a split that is none."""
    if query.split and query.split not in SPLITS:
        raise UserError("There is no such split", where=query.split[:80], next_step=", ".join(SPLITS))
    splits = [query.split] if query.split else [*SPLITS]
    at_split, _, offset = query.start.partition(":")
    if at_split in splits:
        splits = splits[splits.index(at_split) :]
    ids = _ids(folder, query)
    page = RowPage()
    for split in splits:
        start = int(offset) if split == at_split and offset.isdigit() else 0
        with _bytes(folder / f"{split}.jsonl") as data:
            for begin, line in _lines(data, start, query, ids):
                if len(page.rows) == most:
                    page.then = f"{split}:{begin}"
                    return page
                row = _row(line)
                page.damaged += row is None
                if row is not None and _fits(row, query, ids):
                    page.rows.append((split, row))
    return page


def row_by_id(folder: Path, split: str, id_: str) -> dict[str, Any] | None:
    """One row; None: it is not there."""
    query = RowQuery(split=split)
    with _bytes(folder / f"{split}.jsonl") as data:
        lines = _lines(data, 0, query, {id_})
        return next((row for _, line in lines if (row := _row(line)) and row["id"] == id_), None)


@contextmanager
def _bytes(path: Path) -> Iterator[mmap.mmap | bytes]:
    """A file's bytes without reading them all; none of a file that is not there or empty."""
    try:
        file = opened(path, below=path.parent)
    except OSError:
        yield b""
        return
    with file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # it is empty
            yield b""
            return
        with data:
            yield data


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = fast_json(line)
    except ValueError:
        with suppress(ValueError):
            row = parse_line(line)
            return clean_all(row) if isinstance(row, dict) else None
        return None
    fits = isinstance(row, dict) and isinstance(row.get("messages"), list) and isinstance(row.get("id"), str)
    return clean_all(row) if fits else None


def _lines(data: mmap.mmap | bytes, start: int, query: RowQuery, ids: set[str] | None) -> Iterator[tuple[int, bytes]]:
    """Offset and bytes of the lines that may fit, from an offset on."""
    end = min(len(data), MOST_BYTES)
    places: Iterable[int]
    if ids is not None and len(ids) <= FEW:
        places = sorted(index for id_ in ids for index in _places(data, [b'"id":"%b"' % id_.encode()], start, end))
    elif query.text:
        places = _places(data, _spellings(max(query.text.split(), key=len, default="")), start, end)
    elif query.label:
        places = _places(data, [b'"label":' + orjson.dumps(query.label)], start, end)
    else:
        while start < end:
            stop = data.find(b"\n", start) + 1 or end
            yield start, data[start:stop]
            start = stop
        return
    done = -1
    for position in places:
        if position >= done:
            begin, done = data.rfind(b"\n", 0, position) + 1, data.find(b"\n", position) + 1 or end
            yield begin, data[begin:done]


def _spellings(word: str) -> list[bytes]:
    """A word as files hold it, in the usual cases of its letters."""
    forms = dict.fromkeys((word, word.lower(), word.capitalize(), word.upper()))
    return [orjson.dumps(form)[1:-1] for form in forms]


def _places(data: mmap.mmap | bytes, needles: list[bytes], start: int, end: int) -> Iterator[int]:
    """Where any of some texts is, in order, one for each line at most."""
    following = {needle: data.find(needle, start, end) for needle in needles}
    while following := {needle: index for needle, index in following.items() if index >= 0}:
        position = min(following.values())
        yield position
        stop = data.find(b"\n", position) + 1 or end
        following = {needle: at if at >= stop else data.find(needle, stop, end) for needle, at in following.items()}


def _fits(row: Mapping[str, Any], query: RowQuery, ids: set[str] | None) -> bool:
    if ids is not None and row["id"] not in ids:
        return False
    if query.label and row.get("label") != query.label:
        return False
    if not query.text:
        return True
    texts = [str(turn.get("content")) for turn in row["messages"] if isinstance(turn, dict)]
    text = "\n".join([*texts, str(row.get("label") or ""), row["id"]]).casefold()
    return all(word in text for word in query.text.casefold().split())


def _ids(folder: Path, query: RowQuery) -> set[str] | None:
    """Ids of the rows that a check found, or that were changed in a way; None: nothing of that is in the query."""
    sets = []
    for name, key, word in (("flagged", "check", query.check), ("repairs", "kind", query.repair)):
        if word:
            sets.append(_named(folder / f"{name}.jsonl", key, word))
    if query.personal:
        sets.append(_named(folder / "repairs.jsonl", "found", query.personal))
    return set.intersection(*sets) if sets else None


def _named(path: Path, key: str, word: str) -> set[str]:
    ids: set[str] = set()
    with _bytes(path) as data:
        for position in _places(data, [orjson.dumps(word)], 0, len(data)):
            begin, stop = data.rfind(b"\n", 0, position) + 1, data.find(b"\n", position) + 1 or len(data)
            with suppress(ValueError):
                line = fast_json(data[begin:stop])
                value = line.get(key)
                if line.get("id") and (value == word or (isinstance(value, dict) and word in value)):
                    ids.add(line["id"])
            if len(ids) >= MOST_IDS:
                break
    return ids
