"""Source files to records, each with the physical line it starts on; what can't be read becomes a reject.

A kind of file is one generator here. It never raises for what a record holds: a record is yielded, or a
`Reject` that says why not. Only what concerns a whole file (missing, empty, unsupported) is a `UserError`.
"""

from __future__ import annotations

import csv
import difflib
import glob
import gzip
import importlib
import io
import json
import re
import sys
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from tuneloop.types import Reject, UserError

KINDS = {".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
SUPPORTED = "json, jsonl, csv, tsv, parquet, and json, jsonl, csv, tsv compressed with gzip (.gz)"
MAX_DEPTH = 64  # deeper records would overflow the stack of what reads them later, and are never training data
MAX_CELL_LINES = 5000  # a CSV cell over more lines is an unclosed quote

_SPACE = re.compile(r"[ \t\r\n]*")
_UNDECODABLE = re.compile("[\udc80-\udcff]")  # what surrogateescape makes of bytes that are no UTF-8
_FIRST_KEY = re.compile(r'\{\s*"[^"\n]*"\s*:')
_STRICT, _LENIENT = json.JSONDecoder(), json.JSONDecoder(strict=False)


@dataclass(frozen=True)
class SourceFile:
    """A file to read: its path, its name in every record's `source`, its kind, and whether it is gzipped."""

    path: Path
    name: str
    kind: str
    gz: bool


@dataclass(frozen=True)
class SourceRecord:
    """One record as it stands in a source; `line` is the physical line (parquet: the row), from 1."""

    source: str
    line: int
    value: dict[str, Any]


def read_records(sources: Sequence[str]) -> Iterator[SourceRecord | Reject]:
    """Every record of files, globs and folders, in the order given (globs and folders: sorted by name).

    Raises:
        UserError: a source is missing, empty, of an unsupported kind, or damaged as a whole.
    """
    for file in find_files(sources):
        yield from read_file(file)


# --- which files ---------------------------------------------------------------------------------


def find_files(sources: Sequence[str]) -> list[SourceFile]:
    """The files behind paths, globs and folders; a file named twice is read once.

    A folder gives all its files of a supported kind, with its subfolders. Hidden ones are left out, and so are
    prepared data sets, lest a second run read what the first one wrote.

    Raises:
        UserError: nothing given, nothing found, or a kind that can't be read.
    """
    if not sources:
        raise UserError("No data given", next_step="name files, globs or folders: data.sources=FILE")
    files: dict[Path, SourceFile] = {}
    for source in sources:
        for path in _expand(source):
            file = _source_file(path)
            if file is None:
                raise UserError(
                    f"Can't read files of the kind {path.suffix or '(no suffix)'}",
                    where=str(path),
                    next_step=f"convert it to one of: {SUPPORTED}",
                )
            files.setdefault(path.resolve(), file)
    return list(files.values())


def _source_file(path: Path) -> SourceFile | None:
    suffix, gz = path.suffix.lower(), False
    if suffix == ".gz":
        suffix, gz = Path(path.stem).suffix.lower(), True
    kind = KINDS.get(suffix)
    if kind is None or (gz and kind == "parquet"):
        return None
    return SourceFile(path, printable(str(path)), kind, gz)


def _expand(source: str) -> list[Path]:
    try:
        path = Path(source).expanduser()
        if path.is_dir():
            return _files_of_folder(path)
        if path.is_file():
            return [path]
        if path.exists():
            raise UserError("Not a regular file", where=source, next_step="name a file, a glob or a folder")
        if glob.has_magic(source):
            found = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
            if found:
                return found
            raise UserError("No file matches the glob", where=source, next_step="check the pattern and the folder")
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, a NUL byte, no home folder
        raise UserError(f"Not a usable path: {error}", where=repr(source), next_step="check the path") from None
    raise UserError("No such file", where=source, next_step=_nearest_path(path))


def _files_of_folder(folder: Path) -> list[Path]:
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and _source_file(path) is not None
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not any((path.parent / name).is_file() for name in ("dataset.json", "rejects.jsonl"))
    )
    if not found:
        raise UserError(
            "No readable file in the folder", where=str(folder), next_step=f"kinds that are read: {SUPPORTED}"
        )
    return found


def _nearest_path(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f"the folder {parent} does not exist: check the path"
    names = sorted(p.name for p in parent.iterdir())
    near = difflib.get_close_matches(path.name, names, 1, 0.4)
    return f"did you mean {parent / near[0]}?" if near else "check the path"


# --- one file ------------------------------------------------------------------------------------


def read_file(file: SourceFile) -> Iterator[SourceRecord | Reject]:
    """The records of one file.

    Raises:
        UserError: it is empty, unreadable, damaged as a whole, or in an encoding other than UTF-8.
    """
    with _refusals(file):
        if file.kind == "parquet":
            yield from _read_parquet(file)
            return
        with _open(file) as stream:
            if file.kind in ("csv", "tsv"):
                yield from _read_csv(_numbered(stream, file), file)
            else:
                yield from _read_json(stream, file)


@contextmanager
def _refusals(file: SourceFile) -> Iterator[None]:
    try:
        yield
    except (gzip.BadGzipFile, zlib.error, EOFError):
        raise UserError("The gzip file is damaged or cut off", where=file.name, next_step="copy it again") from None
    except OSError as error:
        raise UserError(
            f"Can't read the file: {error.strerror or error}", where=file.name, next_step="check the file's permissions"
        ) from None


def _open(file: SourceFile) -> BinaryIO:
    """The uncompressed bytes, looked at far enough to refuse what is no UTF-8 text at all."""
    raw: BinaryIO = cast(BinaryIO, gzip.open(file.path, "rb")) if file.gz else file.path.open("rb")  # noqa: SIM115
    stream = io.BufferedReader(cast(io.RawIOBase, raw), 1 << 16)
    head = stream.peek(4)[:4]
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        stream.close()
        raise UserError("The file is UTF-16", where=file.name, next_step="convert it: iconv -f UTF-16 -t UTF-8 FILE")
    if head[:2] == b"\x1f\x8b" or head == b"PAR1":
        stream.close()
        kind = "parquet" if head == b"PAR1" else "gzip"
        raise UserError(
            f"The file holds {kind}, not {file.kind}", where=file.name, next_step="give it its right suffix"
        )
    return stream


def _empty(file: SourceFile) -> UserError:
    return UserError("The file is empty", where=file.name, next_step="name a file with at least one record")


def _numbered(stream: BinaryIO, file: SourceFile) -> Iterator[tuple[int, str]]:
    """Physical lines, from 1, with bytes that are no UTF-8 kept as lone surrogates; the BOM is left out."""
    some = False
    for number, raw in enumerate(stream, 1):
        line = raw.decode("utf-8", "surrogateescape")
        if number == 1:
            line = line.removeprefix("\ufeff")
        some = some or line.strip() != ""
        yield number, line
    if not some:
        raise _empty(file)


def printable(text: str) -> str:
    """Text that UTF-8 can hold: undecodable bytes as `\\xNN`, lone surrogates as `\\uNNNN`."""
    text = _UNDECODABLE.sub(lambda match: f"\\x{ord(match[0]) - 0xDC00:02x}", text)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


# --- JSON ----------------------------------------------------------------------------------------


def _read_json(stream: BinaryIO, file: SourceFile) -> Iterator[SourceRecord | Reject]:
    """JSON Lines as a stream; arrays, single and concatenated objects from memory. The content decides which.

    Both suffixes are in use for both, so the first lines are looked at: a file is one record a line when its
    first line, or another early one, is an object by itself and the file does not open an array.
    """
    lines = _numbered(stream, file)
    first: list[tuple[int, str]] = []
    for number, line in lines:
        first.append((number, line))
        if len(first) >= 20 and any(text.strip() for _, text in first):
            break
    if _one_a_line([text for _, text in first], file.kind):
        for number, line in _chain(first, lines):
            yield _json_line(line, file.name, number)
    else:
        yield from scan_json("".join(text for _, text in _chain(first, lines)), file.name)


def _chain(first: list[tuple[int, str]], rest: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    yield from first
    yield from rest


def _one_a_line(lines: Sequence[str], kind: str) -> bool:
    filled = [line for line in lines if line.strip()]
    if not filled:
        return True
    first = filled[0].strip()
    decoded = _decode(first, 0)
    whole = not isinstance(decoded, str) and decoded[1] == len(first)
    if first.startswith("["):
        return whole and kind == "jsonl" and len(filled) > 1
    if whole:
        return True
    for line in filled[1:]:
        later = _decode(line, 0) if line.startswith("{") else ""
        if not isinstance(later, str) and not line[later[1] :].strip():
            return True
    if not first.startswith("{"):
        return kind == "jsonl"
    return first.endswith("}") and isinstance(decoded, str)


def _decode(text: str, start: int) -> tuple[Any, int] | str:
    """The JSON value at `start` and where it ends, or what is wrong with it.

    A raw control character inside a string (a tab, mostly) is let through, though JSON forbids it.
    """
    detail = ""
    for decoder in (_STRICT, _LENIENT):
        try:
            return decoder.raw_decode(text, start)
        except json.JSONDecodeError as error:
            detail = detail or f"{error.msg} (line {error.lineno}, column {error.colno})"
            if not error.msg.startswith("Invalid control character"):
                return detail
        except RecursionError:
            return "nested too deeply"
        except ValueError:  # Python's limit on the digits of an integer
            return "a number with too many digits"
    return detail


def _json_line(line: str, source: str, number: int) -> SourceRecord | Reject:
    text = line.strip(" \t\r\n")
    if not text:
        return Reject(source, number, "blank_line", "")
    decoded = _decode(text, 0)
    if isinstance(decoded, str):
        return _unreadable(text, source, number, re.sub(r"line 1, ", "", decoded))
    value, end = decoded
    if text[end:].strip():
        return _unreadable(text, source, number, f"text after the end of the value (column {end + 1})")
    return _record(value, text, source, number)


def scan_json(text: str, source: str) -> Iterator[SourceRecord | Reject]:
    """The records of JSON text: elements of arrays, or objects one after the other, with their lines.

    A broken element is rejected alone: reading goes on where the next one begins (see `_next_start`).
    """
    position, line, counted, line_start = 0, 1, 0, 0
    in_array, swallowed = False, False
    while (position := cast(re.Match[str], _SPACE.match(text, position)).end()) < len(text):
        newlines = text.count("\n", counted, position)
        if newlines:
            line, line_start = line + newlines, text.rfind("\n", counted, position) + 1
        counted = position
        char = text[position]
        if char == "," or (char == "[" and not in_array) or (char == "]" and in_array):
            in_array = in_array if char == "," else char == "["
            position += 1
            continue
        decoded = _decode(text, position)
        if isinstance(decoded, str):
            end = _next_start(text, position, line_start, in_array)
            swallowed = end == len(text)
            yield _unreadable(text[position:end].rstrip(" \t\r\n,"), source, line, decoded)
        else:
            value, end = decoded
            yield _record(value, text[position:end], source, line)
        position = end
    if in_array and not swallowed:
        line += text.count("\n", counted, len(text.rstrip()))
        yield Reject(source, line, "broken_json", "the file ends inside the array: it may be cut off")


def _next_start(text: str, start: int, line_start: int, in_array: bool) -> int:
    """Where the element after the broken one at `start` begins, as far as the layout tells.

    An element that opens a line is followed by one that opens a line with the same indentation; one
    in the middle of a line by one with the same first key.
    """
    indent = text[line_start:start] if start - line_start < 200 else "x"
    if not indent.strip(" \t"):
        end = text.find(f"\n{indent}{{", start + 1)
        if end < 0 and in_array:
            end = text.find("\n]", start + 1)
        return len(text) if end < 0 else end + 1
    first_key = _FIRST_KEY.match(text, start)
    end = text.find(first_key[0], start + 1) if first_key else -1
    return len(text) if end < 0 else end


def _unreadable(raw: str, source: str, line: int, detail: str) -> Reject:
    if _UNDECODABLE.search(raw):
        return Reject(source, line, "bad_encoding", "bytes that are no UTF-8", printable(raw))
    return Reject(source, line, "broken_json", detail, printable(raw))


def _record(value: Any, raw: str, source: str, line: int) -> SourceRecord | Reject:
    """A parsed value as a record, unless it is no object or holds what no file can hold."""
    if _UNDECODABLE.search(raw):
        return Reject(source, line, "bad_encoding", "bytes that are no UTF-8", printable(raw))
    if raw.count("[") + raw.count("{") > MAX_DEPTH and _deeper_than(value, MAX_DEPTH):
        return Reject(source, line, "wrong_type", f"nested deeper than {MAX_DEPTH} levels", printable(raw))
    if ("\\ud" in raw or "\\uD" in raw) and not _encodable(value):
        return Reject(source, line, "bad_encoding", "half of a surrogate pair", printable(raw))
    if not isinstance(value, dict):
        return Reject(source, line, "wrong_type", f"a record must be an object, not {json_type(value)}", value)
    return SourceRecord(source, line, value)


def _deeper_than(value: Any, limit: int) -> bool:
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


def _encodable(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def json_type(value: Any) -> str:
    """The JSON word for a value's type, as shown to users."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    words = {dict: "an object", list: "an array", str: "a string", int: "a number", float: "a number"}
    return words.get(type(value), type(value).__name__)


# --- CSV -----------------------------------------------------------------------------------------


def _read_csv(lines: Iterator[tuple[int, str]], file: SourceFile) -> Iterator[SourceRecord | Reject]:
    """CSV with a header line; quoted cells may hold line breaks. The delimiter of .csv is read off the header."""
    csv.field_size_limit(sys.maxsize)  # the default, 128 KiB, is less than a long document
    pending: deque[tuple[int, str]] = deque()
    source, header = file.name, list[str]()
    for number, text in lines:
        if text.strip():
            pending.append((number, text))
            break
        yield Reject(source, number, "blank_line", "")
    delimiter = "\t" if file.kind == "tsv" or not pending else _delimiter(pending[0][1])
    while True:
        number, text, cells = _csv_row(lines, pending, delimiter)
        if number == 0:
            return
        if not text.strip():
            yield Reject(source, number, "blank_line", "")
        elif not header:
            if isinstance(cells, str) or _UNDECODABLE.search(text):
                raise UserError("The header line can't be read", where=f"{source}:{number}", next_step="mend that line")
            header = _column_names(cells)
        elif _UNDECODABLE.search(text):
            yield Reject(source, number, "bad_encoding", "bytes that are no UTF-8", printable(text.rstrip("\r\n")))
        elif isinstance(cells, str):
            yield Reject(source, number, "broken_csv", cells, text.rstrip("\r\n"))
        elif len(cells) > len(header):
            detail = f"{len(cells)} cells under a header of {len(header)}"
            yield Reject(source, number, "broken_csv", detail, text.rstrip("\r\n"))
        else:
            yield SourceRecord(source, number, dict(zip(header, cells, strict=False)))


def _csv_row(
    lines: Iterator[tuple[int, str]], pending: deque[tuple[int, str]], delimiter: str
) -> tuple[int, str, list[str] | str]:
    """The next row: its first line's number (0: no more), its text, and its cells or what is wrong with it.

    A quote that is never closed would swallow the rest of the file: then the first line alone is
    broken, and the others go back to `pending` to be read as rows of their own.
    """
    taken: list[tuple[int, str]] = []

    def feed() -> Iterator[str]:
        while True:
            item = pending.popleft() if pending else next(lines, None)
            if item is None:
                return
            taken.append(item)
            if len(taken) > MAX_CELL_LINES:
                raise csv.Error(f"a cell over more than {MAX_CELL_LINES} lines: a quote is not closed")
            yield item[1]

    try:
        cells = next(csv.reader(feed(), delimiter=delimiter, strict=True), None)
    except csv.Error as error:
        pending.extendleft(reversed(taken[1:]))
        return taken[0][0], taken[0][1], str(error)
    if cells is None:
        return 0, "", []
    return taken[0][0], "".join(text for _, text in taken), cells


def _delimiter(header: str) -> str:
    bare = re.sub(r'"[^"]*"', "", header)
    return max(",;\t|", key=bare.count)


def _column_names(cells: Iterable[str]) -> list[str]:
    """Header cells as distinct names: an empty one is named by its place, a repeated one numbered."""
    names: list[str] = []
    for place, cell in enumerate(cells, 1):
        base = name = cell.strip() or f"column_{place}"
        copy = 2
        while name in names:
            name, copy = f"{base}_{copy}", copy + 1
        names.append(name)
    return names


# --- Parquet -------------------------------------------------------------------------------------


def _read_parquet(file: SourceFile) -> Iterator[SourceRecord | Reject]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise UserError(
            "Reading parquet needs pyarrow, which is not installed", where=file.name, next_step="pip install pyarrow"
        ) from None
    number = 0
    if file.path.stat().st_size == 0:
        raise _empty(file)
    try:
        table = parquet.ParquetFile(file.path)
        for batch in table.iter_batches(batch_size=1000):
            for value in batch.to_pylist():
                number += 1
                yield SourceRecord(file.name, number, {str(key): _plain(item) for key, item in value.items()})
    except OSError:
        raise
    except Exception as error:  # pyarrow's own errors derive from ValueError, and others from nothing in common
        raise UserError(
            f"Not a readable parquet file: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            where=file.name,
            next_step="write it again, or convert it to jsonl",
        ) from None
    if number == 0:
        raise _empty(file)


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
