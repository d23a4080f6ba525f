"""Contents of sources to records: JSON and parquet rows, in any process.

Nothing here raises for what a record holds: it becomes a `SourceRecord`, or a `Reject` that says why not. `scan_json`
reads arrays and objects over many lines, in the order of the stream.
"""

from __future__ import annotations

import importlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from tuneloop.records.rows import Reject

MAX_DEPTH = 64  # deeper records would overflow the stack of what reads them later, and are never training data
# Bytes of a line, a CSV row, a JSON element, a paragraph or a parquet row; longer ones are rejected.
MAX_LINE = 16 << 20
# Times its size that a file may grow when it is unpacked; text grows 3 to 20 times, logs up to 100.
MAX_EXPANSION = 200.0
_TOO_DEEP = 500  # Python's decoder gives up somewhere above this, depending on the stack; here it is one limit

_SPACE = re.compile(r"[ \t\r\n\ufeff]*")  # a BOM stands inside files that were joined
_UNDECODABLE = re.compile("[\udc80-\udcff]")  # what surrogateescape makes of bytes that are no UTF-8
_FIRST_KEY = re.compile(r'\{\s{0,50}"[^"\n]{0,200}"\s{0,50}:')
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_STRICT, _LENIENT = json.JSONDecoder(), json.JSONDecoder(strict=False)
_DIGITS = bytes(ord("0") if chr(code).isdigit() and code < 128 else code for code in range(256))
_LONG_NUMBER = b"0" * 19  # after _DIGITS; orjson turns integers of more than 64 bits into floats
_LOOKAHEAD = 512  # characters that settle what an element of a JSON array is, see `scan_json`
Piece = tuple[int, bytes]  # the line and the text of a record that is still to be parsed


@dataclass(frozen=True)
class SourceFile:
    """A file to read."""

    path: Path
    name: str  # in every record's `source`
    kind: str
    compression: str = ""  # "" for none
    max_expansion: float = MAX_EXPANSION  # how many times its size it may grow when it is unpacked
    sheet: str = ""  # of a spreadsheet; "": its only one


class SourceRecord(NamedTuple):
    """One record of a source."""

    source: str
    line: int  # the physical line (parquet: the row), from 1
    value: dict[str, Any]
    lenient: str = ""  # what of it was no JSON and could be read all the same; "" for nothing


Item = SourceRecord | Reject


@dataclass(frozen=True)
class Chunk:
    """A piece of a source that can be parsed on its own, in any process."""

    source: str  # name of the source
    kind: str  # "jsonl": whole lines in UTF-8 in `data`; "arrow": a stream of one batch in `data`; or "items"
    line: int  # physical line that it begins on (parquet: the row), from 1
    data: bytes = b""  # the bytes to parse
    encoding: str = "utf-8"  # encoding of the file as far as it is known; that of a file's last chunk is final
    position: int = 0  # bytes of the file (compressed ones, if it is) read so far, for progress
    items: tuple[Piece | Item, ...] = ()  # elements of JSON that are still to be parsed; records and rejects


def parse_chunk(chunk: Chunk) -> list[Item]:
    """The records of a chunk and its rejects, in the order of their lines."""
    if chunk.kind == "jsonl":
        lines = chunk.data.split(b"\n")
        if not lines[-1]:
            lines.pop()  # the data ends with a line end
        return _parse_json(list(enumerate(lines, chunk.line)), chunk.data, chunk.source)
    if chunk.kind == "arrow":
        table = importlib.import_module("pyarrow.ipc").open_stream(chunk.data).read_all()
        if len(set(table.column_names)) < len(table.column_names):
            table = table.rename_columns(list(column_names(table.column_names)))
        return _arrow_items(table, chunk.source, chunk.line)
    pieces = [item for item in chunk.items if not isinstance(item, Reject | SourceRecord)]
    parsed = iter(_parse_json(pieces, b" ".join(text for _, text in pieces), chunk.source))
    return [item if isinstance(item, Reject | SourceRecord) else next(parsed) for item in chunk.items]


def printable(text: str) -> str:
    """Text that UTF-8 can hold: undecodable bytes as `\\xNN`, lone surrogates as `\\uNNNN`."""
    text = _UNDECODABLE.sub(lambda match: f"\\x{ord(match[0]) - 0xDC00:02x}", text)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def too_long(source: str, line: int, size: int, kind: str = "line") -> Reject:
    """The reject of what is over MAX_LINE and was skipped; `size` in bytes (of JSON elements: characters)."""
    return Reject(source, line, "line_too_long", f"a {kind} of {size} bytes, at most {MAX_LINE}")


def json_type(value: Any) -> str:
    """The JSON word for a value's type, as shown to users."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    names = {dict: "an object", list: "an array", str: "a string", int: "a number", float: "a number"}
    return names.get(type(value), type(value).__name__)


def is_flat(cell: Any) -> bool:
    """Whether a value is a scalar, or a list of scalars."""
    return not isinstance(cell, dict | list) or (
        isinstance(cell, list) and not any(isinstance(item, dict | list) for item in cell)
    )


def finite(cell: Any) -> Any:
    """A value as JSON can hold it: None for NaN and infinities."""
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell


def _parse_json(pieces: Sequence[Piece], data: bytes, source: str) -> list[Item]:
    """One value a piece. orjson reads nearly all; what it refuses or would change goes to the standard decoder. `data`
    holds all pieces, to look for long numbers quickly.
    """
    loads = orjson.loads
    long_numbers = _LONG_NUMBER in data.translate(_DIGITS)
    items: list[Item] = []
    for number, line in pieces:
        try:
            value = loads(line)
        except orjson.JSONDecodeError:
            value = None
        if type(value) is dict:
            # A key may come twice if more seem to be written than are left; `":` inside a string is taken for one, too.
            key_count = line.count(b'":') - line.count(b'\\":')
            if not (
                (len(line) > 2 * MAX_DEPTH and line.count(b"{") + line.count(b"[") > MAX_DEPTH)
                or (long_numbers and _LONG_NUMBER in line.translate(_DIGITS))
                or (key_count > len(value) and key_count > _keys(value))
            ):
                items.append(SourceRecord(source, number, value))
                continue
        items.append(_json_value(line, source, number))
    return items


def _keys(value: Any) -> int:
    is_object = type(value) is dict
    items = value.values() if is_object else value
    return is_object * len(value) + sum(_keys(item) for item in items if type(item) is dict or type(item) is list)


def _repeated_key(text: str) -> str | None:
    """A key that stands twice in one object with different values: whichever is taken, the other would be lost."""
    repeated: list[str] = []

    def look(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value: dict[str, Any] = {}
        for key, item in pairs:
            if key in value and repr(value[key]) != repr(item):
                repeated.append(key)
            value[key] = item
        return value

    json.JSONDecoder(strict=False, object_pairs_hook=look).raw_decode(text)
    return repeated[0] if repeated else None


def _json_value(line: bytes, source: str, number: int) -> Item:
    text = line.decode("utf-8", "surrogateescape").strip(" \t\r\n\ufeff")
    if not text:
        return Reject(source, number, "blank_line", "")
    decoded = decode_json(text, 0)
    if isinstance(decoded, Fault):
        detail = f"{decoded.what}{f' (column {decoded.at + 1})' if decoded.at else ''}"
        depth = 0  # of brackets outside strings, whether or not they are closed
        for bracket in re.findall(r"[\[\]{}]", _STRING.sub("", text)):
            depth += 1 if bracket in "[{" else -1
            if depth > _TOO_DEEP:
                detail = "nested too deeply"
                break
        return _unreadable(text, source, number, detail)
    value, end = decoded
    if text[end:].strip():
        return _unreadable(text, source, number, f"text after the end of the value (column {end + 1})")
    item = _record(value, text, source, number)
    if not isinstance(item, SourceRecord):
        return item
    if (key := _repeated_key(text)) is not None:
        detail = f"the key {key[:40]!r} stands more than once in one object, with different values"
        return _unreadable(text, source, number, detail)
    return item._replace(lenient=_lenient(text))


def _lenient(text: str) -> str:
    """What in a text that was read is no JSON; "" for nothing."""
    oddities: dict[str, None] = {}
    lenient = json.JSONDecoder(
        strict=False, parse_constant=lambda name: oddities.setdefault(f"{name} is no JSON number")
    )
    lenient.raw_decode(text)
    try:
        _STRICT.raw_decode(text)
    except json.JSONDecodeError as error:
        oddities[f"a raw control character inside a string (column {error.pos + 1})"] = None
    return "; ".join(oddities)


@dataclass(frozen=True)
class Fault:
    """What is wrong with JSON, where (a place in the text), and up to which place the text was looked at."""

    what: str
    at: int
    reach: int


def decode_json(text: str, start: int) -> tuple[Any, int] | Fault:
    """The JSON value at `start` and where it ends, or what is wrong with it. Raw control characters inside strings
    (mostly tabs), NaN and Infinity are let through, though JSON forbids them; `_lenient` tells of them.
    """
    first: json.JSONDecodeError | None = None
    for decoder in (_STRICT, _LENIENT):
        try:
            return decoder.raw_decode(text, start)
        except json.JSONDecodeError as error:
            first = first or error
            if not error.msg.startswith("Invalid control character"):
                unclosed = error.msg.startswith("Unterminated string")
                # The longest words that may be cut are -Infinity and \uXXXX.
                return Fault(first.msg, first.pos, len(text) + 1 if unclosed else error.pos + 16)
        except RecursionError:
            return Fault("nested too deeply", start, start)
        except ValueError:  # Python's limit on the digits of an integer, which may yet be those of a float
            return Fault("a number with too many digits", start, len(text) + (text[-1] in "0123456789.eE+-"))
    raise AssertionError("the lenient decoder lets control characters through")


def _unreadable(raw: str, source: str, line: int, detail: str) -> Reject:
    """JSON is UTF-8 (RFC 8259, section 8.1): other bytes break it, too."""
    if wrong := _UNDECODABLE.search(raw):
        detail = f"bytes that are no UTF-8 (column {wrong.start() + 1})"
    return Reject(source, line, "broken_json", detail, printable(raw))


def _record(value: Any, raw: str, source: str, line: int) -> Item:
    """A parsed value as a record, unless it is no object or holds what no file can hold."""
    if not raw.isascii() and _UNDECODABLE.search(raw):
        return _unreadable(raw, source, line, "")
    if raw.count("[") + raw.count("{") > MAX_DEPTH:
        if deeper_than(value, _TOO_DEEP):
            return Reject(source, line, "broken_json", "nested too deeply", printable(raw))
        if deeper_than(value, MAX_DEPTH):
            return Reject(source, line, "wrong_type", f"nested deeper than {MAX_DEPTH} levels", printable(raw))
    if "\\ud" in raw or "\\uD" in raw:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            return Reject(source, line, "bad_encoding", "half of a surrogate pair", printable(raw))
    if not isinstance(value, dict):
        return Reject(source, line, "wrong_type", f"a record must be an object, not {json_type(value)}", value)
    return SourceRecord(source, line, value)


def deeper_than(value: Any, limit: int) -> bool:
    """Whether lists and objects stand inside each other over more than `limit` levels."""
    level = [value]
    for _ in range(limit):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return False
    return any(isinstance(item, dict | list) for item in level)


@dataclass
class _Window:
    """A stretch of a text that moves over a stream: `text[at]` is the next character."""

    blocks: Iterator[str]
    text: str = ""
    at: int = 0
    line: int = 1
    line_start: int = 0  # negative when that part is forgotten
    ended: bool = False

    def move(self, to: int) -> None:
        newlines = self.text.count("\n", self.at, to)
        if newlines:
            self.line, self.line_start = self.line + newlines, self.text.rfind("\n", self.at, to) + 1
        self.at = to

    def grow(self) -> None:
        """Forget what lies behind, add at least as much as is ahead. Places in the text change."""
        keep = max(self.line_start, 0) if self.at - self.line_start < 200 else self.at
        parts, size, ahead = [self.text[keep:]], 0, len(self.text) - self.at
        while not self.ended and size <= ahead:
            block = next(self.blocks, None)
            self.ended = block is None
            parts.append(block or "")
            size += len(block or "")
        self.text, self.at, self.line_start = "".join(parts), self.at - keep, self.line_start - keep


def scan_json(blocks: Iterable[str], source: str, damage: Callable[[], str] = str) -> Iterator[Piece | Reject]:
    """The elements of JSON text: of arrays, or objects one after the other, with their lines.

    A broken element is rejected alone: reading continues where the next one begins (see `_skip`). Only what is needed
    of the text is held, at most about twice MAX_LINE. How the text is cut into blocks changes nothing: a verdict that
    more text could change waits for more text.

    Args:
        blocks: the text, in pieces; bytes that are no UTF-8 as surrogateescape leaves them.
        damage: called at the end of the text: why it ended before its time, or "".
    """
    window = _Window(iter(blocks))
    in_array = swallowed = False
    last_line = 1  # of what is no white space
    while True:
        space = _SPACE.match(window.text, window.at)
        window.move(space.end() if space else window.at)
        if window.at == len(window.text):
            if window.ended:
                break
            window.grow()
            continue
        last_line = window.line
        char = window.text[window.at]
        if char == "," or (char == "[" and not in_array) or (char == "]" and in_array):
            in_array = in_array if char == "," else char == "["
            window.move(window.at + 1)
            continue
        decoded = decode_json(window.text, window.at)
        if not _settled(decoded, window):
            if not window.ended and len(window.text) - window.at <= MAX_LINE:
                window.grow()
                continue
            if window.ended and damage():
                raw = printable(window.text[window.at :].rstrip(" \t\r\n,"))
                yield Reject(source, window.line, "cut_file", damage(), raw)
                return
        if not isinstance(decoded, Fault) and decoded[1] - window.at <= MAX_LINE:
            text = window.text[window.at : decoded[1]]
            yield window.line, text.encode("utf-8", "surrogateescape")
            window.move(decoded[1])
            last_line = window.line
        else:
            yield _skip(decoded, window, in_array, source)
            swallowed = window.ended and window.at == len(window.text)
    if damage():
        yield Reject(source, window.line, "cut_file", damage())
    elif in_array and not swallowed:
        yield Reject(source, last_line, "broken_json", "the file ends inside the array: it may be cut off")


def _settled(decoded: tuple[Any, int] | Fault, window: _Window) -> bool:
    """Whether more text, if there is any, could not change what was decoded."""
    if isinstance(decoded, Fault):
        return decoded.reach <= len(window.text) and len(window.text) - window.at >= _LOOKAHEAD
    value, end = decoded
    return isinstance(value, dict | list | str) or len(window.text) - end >= 16


def _skip(decoded: tuple[Any, int] | Fault, window: _Window, in_array: bool, source: str) -> Reject:
    """Move to the element after the broken or too long one that is next, as far as the layout tells."""
    line, start, lines_before = window.line, window.at, window.text.count("\n", 0, window.at)
    detail = ""
    long = not isinstance(decoded, Fault) or decoded.reach - start > MAX_LINE
    long = long or not (window.ended or _settled(decoded, window))
    if isinstance(decoded, Fault):
        within = window.text.count("\n", 0, decoded.at) - lines_before
        where = f"line {line + within}" if within else f"character {decoded.at - start + 1} of the record"
        detail = f"{decoded.what} ({where})"
    # An element that opens a line is followed by one that opens a line with the same indentation, or by the array's
    # end; one in the middle of a line by one with the same first key.
    indent = window.text[window.line_start : start] if start - window.line_start < 200 else "x"
    if not indent.strip(" \t"):
        # Without indentation a bracket at the start of a line may be that of an inner array.
        pattern = re.compile(rf"\n{indent}\{{" + (r"|\n\]" if in_array and indent else ""))
    else:
        first_key = _FIRST_KEY.match(window.text, start)
        pattern = re.compile(re.escape(first_key[0]) if first_key else r"(?!)")
    raw, size = "", 0
    match = pattern.search(window.text, window.at + 1)
    while not match:
        # What is passed is forgotten, but for a tail in which the pattern may have begun.
        tail = max(window.at + 1, len(window.text) - 400) if not window.ended else len(window.text)
        size += tail - window.at
        if size <= MAX_LINE:
            raw += window.text[window.at : tail]
        window.move(tail)
        if window.ended:
            break
        window.grow()
        match = pattern.search(window.text, window.at)
    if match:
        end = match.start() + (match[0][0] == "\n")
        size += end - window.at
        raw += window.text[window.at : end] if size <= MAX_LINE else ""
        window.move(end)
    if long or size > MAX_LINE:
        return too_long(source, line, size, "record")
    return _unreadable(raw.rstrip(" \t\r\n,"), source, line, detail)


def column_names(cells: Iterable[str]) -> tuple[str, ...]:
    """Header cells as distinct names: an empty one is named by its place, a repeated one numbered."""
    names: dict[str, int] = {}  # with the number that its next copy may get
    for position, cell in enumerate(cells, 1):
        base = name = cell.strip() or f"column_{position}"
        while name in names:
            name, names[base] = f"{base}_{names[base]}", names[base] + 1
        names[name] = 2
    return tuple(names)


def _arrow_items(table: Any, source: str, line: int) -> list[Item]:
    def is_plain(kind: Any) -> bool:  # whether values are JSON scalars as they are
        text = str(getattr(kind, "value_type", kind) if str(kind).startswith("dictionary") else kind)
        scalars = ("string", "large_string", "bool", "null", "float", "double")
        return text in scalars or text.lstrip("u").startswith("int")

    odd = [name for name in table.column_names if not is_plain(table.schema.field(name).type)]
    try:
        rows = _rows(table)
    except Exception as error:  # pyarrow's errors have nothing in common; one value may spoil a batch
        if table.num_rows == 1:
            reason = "bad_encoding" if isinstance(error, UnicodeDecodeError) else "wrong_type"
            return [Reject(source, line, reason, f"a value that can't be read: {error}")]
        places = range(table.num_rows)
        return [item for index in places for item in _arrow_items(table.slice(index, 1), source, line + index)]
    items: list[Item] = []
    for number, row in enumerate(rows, line):
        if (size := sum(len(value) for value in row.values() if isinstance(value, str | bytes))) > MAX_LINE:
            items.append(too_long(source, number, size, "row"))
            continue
        row.update({name: _plain(row[name]) for name in odd})
        items.append(SourceRecord(source, number, row))
    return items


def _rows(table: Any) -> list[Any]:
    """Rows as dictionaries; times to the microsecond, which is what Python holds without pandas."""
    if "[ns" in str(table.schema.types):
        arrow = importlib.import_module("pyarrow")
        fields = [field.with_type(_microseconds(field.type, arrow)) for field in table.schema]
        table = table.cast(arrow.schema(fields), safe=False)
    rows: list[Any] = table.to_pylist(maps_as_pydicts="lossy")
    return rows


def _microseconds(kind: Any, arrow: Any) -> Any:
    types = arrow.types
    if types.is_timestamp(kind):
        return arrow.timestamp("us", kind.tz)
    if types.is_struct(kind):
        return arrow.struct([field.with_type(_microseconds(field.type, arrow)) for field in kind])
    if types.is_map(kind):
        return arrow.map_(_microseconds(kind.key_type, arrow), _microseconds(kind.item_type, arrow))
    for is_kind, plain in ((types.is_duration, arrow.duration), (types.is_time64, arrow.time64)):
        if is_kind(kind):
            return plain("us")
    for is_kind, listed in ((types.is_large_list, arrow.large_list), (types.is_list, arrow.list_)):
        if is_kind(kind):
            return listed(_microseconds(kind.value_type, arrow))
    return kind


def _plain(value: Any) -> Any:
    """A parquet value as JSON can hold it: times in ISO form, bytes as text or hex, decimals as text."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value.hex()
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
