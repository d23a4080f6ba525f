"""A source file to chunks that any process can parse: decompressed, in UTF-8, cut between records.

One process does this, so JSON lines are only cut, and parquet batches passed on; JSON arrays, paragraphs and CSV rows
are taken apart. Memory is bounded by MAX_LINE; the records do not depend on the size of the chunks.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import importlib
import io
import itertools
import lzma
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from tuneloop.core.errors import UserError
from tuneloop.core.files import unquoted_cell
from tuneloop.data.sources import parse
from tuneloop.data.sources.excel import excel_chunks
from tuneloop.records.rows import Reject

CHUNK = 1 << 20  # bytes
SMALL = 256 << 20  # bytes: what unpacks to less is read whatever it was before
HEAD = 1 << 20  # bytes at the start that tell encoding, line ends, layout and delimiter
BATCH_ROWS = 5000  # of parquet: columns with few values take hardly any bytes
MAX_CELL_LINES = 5000  # a CSV row over more lines is an unclosed quote

_MAGIC = re.compile(
    rb"(?P<gzip>\x1f\x8b)|(?P<parquet>PAR1)|(?P<zstd>\x28\xb5\x2f\xfd)|(?P<bzip2>BZh[1-9]1AY&SY)"
    rb"|(?P<xz>\xfd7zXZ\x00)|(?P<zip>PK\x03\x04)"
)
_HIGH = re.compile(rb"[\x80-\xff]+")
_NOT_CP1252 = re.compile(rb"[\x81\x8d\x8f\x90\x9d]")
_RARE_IN_CP1252 = re.compile(rb"[\x83\x88\x98\x9f\xa4\xa6\xac\xaf\xb8\xff]")
_UNDECODABLE = re.compile("[\udc80-\udcff]")  # what surrogateescape makes of bytes that are no UTF-8
_SEPARATOR_LINE = re.compile(r"sep=([,;\t|])\s*")  # how spreadsheets name the delimiter, before the header


@dataclass
class _ReadState:
    encoding: str = ""  # of the text; "" while all of it was ASCII
    damage: str = ""  # why the compressed data ended before its time
    position: int = 0  # bytes of the file that were read
    size: int = 0  # bytes of text that were read
    rest: bytes = b""  # what follows the last line end, when the data is damaged


@dataclass(frozen=True)
class _Head:
    encoding: str  # of the text; "" when the head is ASCII and the rest decides
    bom: int  # bytes of the byte order mark
    head: bytes  # the first text, in UTF-8 and with line feeds as line ends
    whole: bool  # whether the head is all there is
    bare_returns: bool  # whether lines end with a carriage return alone


def chunks_of(file: parse.SourceFile, size: int = CHUNK) -> Iterator[parse.Chunk]:
    """The chunks of a file, in order, of `size` bytes; a longer record makes a longer one. A file that is empty,
    unreadable, damaged as a whole, or changed while it was read is a UserError.
    """
    with _user_errors(file):
        before = _stamp(file)
        if file.kind == "excel":
            yield from excel_chunks(file, file.max_expansion)
        else:
            yield from _parquet_chunks(file, size) if file.kind == "parquet" else _text_chunks(file, size)
        if _stamp(file) != before:
            step = "wait until it is whole, or copy it"
            raise UserError("The file changed while it was read", where=file.name, next_step=step)


def header_of(file: parse.SourceFile) -> tuple[str, ...]:
    """The names of the columns of a CSV file; one that can't be read, or has no header, is a UserError."""
    with _user_errors(file):
        return _header(_read_head(file), file).columns


def guessed_file(path: Path, name: str) -> parse.SourceFile:
    """A file without a telling name as a source, by its content; one that can't be read is a UserError."""
    with open(path, "rb") as stream:
        magic = _MAGIC.match(stream.read(16))
    form = (magic.lastgroup if magic else None) or ""
    if form == "parquet":
        return parse.SourceFile(path, name, "parquet")
    compression = {"gzip": "gz", "zstd": "zst", "bzip2": "bz2", "xz": "xz"}.get(form, "")
    file = parse.SourceFile(path, name, "csv", compression)
    with _user_errors(file):
        first = _read_head(file).head.decode("utf-8", "surrogateescape").lstrip(" \t\r\n\ufeff")[:1]
    return replace(file, kind={"[": "json", "{": "jsonl"}.get(first, "csv"))


@contextmanager
def _user_errors(file: parse.SourceFile) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        message, step = "The file no longer exists: it was there a moment ago", "put it back, or copy it, and try again"
        raise UserError(message, where=file.name, next_step=step) from None
    except OSError as error:
        message = f"Can't read the file: {error.strerror or error}"
        raise UserError(message, where=file.name, next_step="check the file's permissions") from None


def _stamp(file: parse.SourceFile) -> tuple[int, int, int]:
    info = os.stat(file.path)
    return info.st_ino, info.st_size, info.st_mtime_ns


def _empty(file: parse.SourceFile) -> UserError:
    return UserError("The file is empty", where=file.name, next_step="name a file with at least one record")


def _text_chunks(file: parse.SourceFile, size: int) -> Iterator[parse.Chunk]:
    """Chunks of all that is text. An encoding that was not settled until the end is UTF-8."""
    look, state = _read_head(file), _ReadState()
    blocks = _utf8(_raw_blocks(file, size, state, skip=look.bom), file, look, state)
    lines = _whole_lines(_not_empty(blocks, file), state)
    if file.kind in ("csv", "tsv"):
        yield from _csv_chunks(lines, file, look, state)
    elif file.kind == "text":
        yield from _batches(_paragraphs(lines, file.name, state), file.name, size, state)
    elif _has_one_a_line(look, file.kind):
        yield from _line_chunks(lines, file.name, state)
    else:
        small = _utf8(_raw_blocks(file, min(size, 1 << 16), state, skip=look.bom), file, look, state)
        text = codecs.iterdecode(_not_empty(small, file), "utf-8", "surrogateescape")
        yield from _batches(parse.scan_json(text, file.name, lambda: state.damage), file.name, size, state)


def _refuse_expansion(file: parse.SourceFile, packed: int, unpacked: int) -> None:
    """Refuse what grows out of all proportion when it is unpacked: it would fill memory or disk, or take hours."""
    if unpacked > SMALL and unpacked > file.max_expansion * packed:
        raise UserError(
            f"The file grows more than {file.max_expansion:g} times when it is unpacked: "
            f"{unpacked >> 20:,} MiB came of the first {packed / 2**20:,.1f} MiB",
            where=file.name,
            next_step="unpack it and look at what is in it; if it is meant, set data.max_expansion to a larger number",
        )


class _Damaged(Exception):
    """Compressed data that ends before its time, or is wrong."""


def _raw_blocks(file: parse.SourceFile, size: int, state: _ReadState, skip: int = 0) -> Iterator[bytes]:
    with open(file.path, "rb") as stream:
        stream.seek(0 if file.compression else skip)
        if not file.compression:
            while block := stream.read(size):
                state.position += len(block)
                yield block
            return
        try:
            for block in _decompressed(stream, file, state):
                block, skip = block[skip:], max(0, skip - len(block))
                yield from (block[at : at + size] for at in range(0, len(block), size))
        except _Damaged as damage:
            state.damage = str(damage)


def _decompressed(stream: BinaryIO, file: parse.SourceFile, state: _ReadState) -> Iterator[bytes]:
    """Decompressed bytes, of one stream or several, in blocks up to 1 MiB (gzip: 64 MiB); may end with `_Damaged`."""
    start, error_types = _decompressor(file)
    limit = () if file.compression == "gz" else (1 << 20,)  # gzip expands 1,032 times at most, the others more
    machine, data, in_stream, unpacked = start(), b"", False, 0
    while True:
        if not data and getattr(machine, "needs_input", True):
            data = stream.read(1 << 16)
            state.position += len(data)
            if not data:
                if in_stream:
                    raise _Damaged(f"the {file.compression} data is cut off")
                return
        if not in_stream and file.compression in ("gz", "xz"):
            data = data.lstrip(b"\0")  # both may be padded with zeros between streams
            if not data:
                continue
        in_stream = True
        try:
            block = machine.decompress(data, *limit)
        except error_types as error:
            raise _Damaged(f"the {file.compression} data is damaged: {error}") from None
        data = b""
        if block:
            unpacked += len(block)
            _refuse_expansion(file, state.position, unpacked)
            yield block
        if machine.eof:
            machine, data, in_stream = start(), machine.unused_data, False


def _decompressor(file: parse.SourceFile) -> tuple[Callable[[], Any], tuple[type[Exception], ...]]:
    if file.compression == "gz":
        return lambda: zlib.decompressobj(wbits=31), (zlib.error,)
    if file.compression == "bz2":
        return bz2.BZ2Decompressor, (OSError, ValueError, EOFError)
    if file.compression == "xz":
        return lzma.LZMADecompressor, (lzma.LZMAError, EOFError)
    for name in ("compression.zstd", "backports.zstd"):  # the standard library has it from Python 3.14 on
        try:
            zstd = importlib.import_module(name)
        except ImportError:
            continue
        return zstd.ZstdDecompressor, (zstd.ZstdError, EOFError)
    message = "Reading .zst needs backports.zstd, which is not installed"
    raise UserError(message, where=file.name, next_step="pip install backports.zstd")


def _read_head(file: parse.SourceFile) -> _Head:
    """Look at the start of a file; one that is empty, damaged or of another kind than its name says is a UserError."""
    state = _ReadState()
    raw = b""
    for block in _raw_blocks(file, 1 << 16, state):
        raw += block
        if len(raw) >= HEAD:
            break
    if state.damage and not raw:
        raise UserError(f"Can't decompress the file: {state.damage}", where=file.name, next_step="copy it again")
    if not raw:
        raise _empty(file)
    if magic := _MAGIC.match(raw):
        step = "unpack it" if magic.lastgroup == "zip" else "give it its right suffix"
        raise UserError(f"The file holds {magic.lastgroup}, not {file.kind}", where=file.name, next_step=step)
    whole = len(raw) < HEAD and not state.damage
    encoding, bom = _marked_encoding(raw)
    if not encoding and not raw.isascii():
        encoding = _eight_bit_encoding(file)
    look = _Head(encoding, bom, b"", whole, False)
    head = b"".join(_utf8([raw[bom:]], file, look, _ReadState()))
    bare_returns = b"\r" in head and b"\n" not in head
    return _Head(encoding, bom, head.replace(b"\r", b"\n") if bare_returns else head, whole, bare_returns)


def _marked_encoding(raw: bytes) -> tuple[str, int]:
    """The encoding that the first bytes show, "" if they don't, and the bytes of the byte order mark."""
    marks = {"utf-8-sig": codecs.BOM_UTF8, "utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}
    for encoding, mark in marks.items():
        if raw.startswith(mark):
            return encoding, len(mark)
    # Without a mark: JSON and CSV begin with ASCII, so every other byte is NUL there, and few of the others are.
    even, odd = raw[0:4096:2], raw[1:4096:2]
    for encoding, low, high in (("utf-16-le", even, odd), ("utf-16-be", odd, even)):
        if high and not any(high[:4]) and all(low[:4]) and low.count(0) * 20 <= len(low):
            return encoding, 0
    return "", 0


def _eight_bit_encoding(file: parse.SourceFile) -> str:
    """UTF-8 or cp1252 (which covers Latin-1), by what the bytes above 127 of the whole file are. It is cp1252 when they
    make hardly any UTF-8 and look like Western European text: one or two in a row between ASCII letters, and characters
    that such text has. Else it is UTF-8, with bad lines to reject.
    """
    valid = invalid = unlikely = 0
    rest = b""
    for block in _raw_blocks(file, CHUNK, _ReadState()):
        if not rest and block.isascii():
            continue
        data = rest + block
        rest = data[len(data.rstrip(bytes(range(128, 256)))) :][-64:]  # a character may be cut between two blocks
        for run in _HIGH.findall(data[: len(data) - len(rest)] if len(rest) < 64 else data):
            if _is_utf8(run):
                valid += 1
            elif _NOT_CP1252.search(run):
                return "utf-8"
            else:
                invalid += 1
                unlikely += len(run) > 2 or _RARE_IN_CP1252.search(run) is not None
        if valid >= 16 and valid > invalid:
            return "utf-8"
    if rest:
        valid, invalid = valid + _is_utf8(rest), invalid + (not _is_utf8(rest))
    western = invalid > 0 and 20 * valid <= invalid and 4 * unlikely <= invalid
    return "cp1252" if western else "utf-8"


def _is_utf8(run: bytes) -> bool:
    try:
        run.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _utf8(blocks: Iterable[bytes], file: parse.SourceFile, look: _Head, state: _ReadState) -> Iterator[bytes]:
    """The blocks in UTF-8, with `\\n` as line end; what can't be decoded becomes bytes that are no UTF-8."""
    state.encoding = look.encoding
    if look.encoding.startswith("utf-16"):
        blocks = _from_utf16(blocks, look.encoding)
    for block in blocks:
        state.size += len(block)
        if not state.encoding and not block.isascii():
            state.encoding = _eight_bit_encoding(file)
        if state.encoding == "cp1252":
            block = block.decode("cp1252", "replace").encode("utf-8")
        yield block.replace(b"\r", b"\n") if look.bare_returns else block


def _from_utf16(blocks: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
    for block in blocks:
        yield decoder.decode(block).encode("utf-8", "surrogatepass")
    if decoder.getstate()[0]:
        yield b"\xff"  # half a character at the end


def _not_empty(blocks: Iterable[bytes], file: parse.SourceFile) -> Iterator[bytes]:
    """The blocks; if they hold only white space, the file is empty."""
    some = False
    for block in blocks:
        some = some or (block != b"" and not block.isspace())
        yield block
    if not some:
        raise _empty(file)


def _whole_lines(blocks: Iterable[bytes], state: _ReadState) -> Iterator[bytes | int]:
    """Pieces of whole lines; in place of a line over MAX_LINE its size in bytes. The last line may lack its line end.
    If the data is damaged, it is left in `state.rest`.
    """
    rest, skipped = b"", 0
    for block in blocks:
        if skipped:
            end = block.find(b"\n")
            if end < 0:
                skipped += len(block)
                continue
            yield skipped + end
            block, skipped = block[end + 1 :], 0
        cut = block.rfind(b"\n") + 1
        if cut:
            yield from _without_long_lines(rest + block[:cut])
            rest = block[cut:]
        else:
            rest += block
        if len(rest) > parse.MAX_LINE:
            rest, skipped = b"", len(rest)
    if state.damage:
        state.rest = rest
    elif rest:
        yield rest
    if skipped:
        yield skipped


def _without_long_lines(piece: bytes) -> Iterator[bytes | int]:
    begin = at = 0
    while len(piece) - begin > parse.MAX_LINE and at < len(piece):
        end = piece.find(b"\n", at)
        if end - at > parse.MAX_LINE:
            if begin < at:
                yield piece[begin:at]
            yield end - at
            begin = end + 1
        at = end + 1
    if begin < len(piece):
        yield piece[begin:]


def _line_chunks(pieces: Iterable[bytes | int], source: str, state: _ReadState) -> Iterator[parse.Chunk]:
    line = 1
    for piece in pieces:
        if isinstance(piece, int):
            yield _item_chunk([parse.too_long(source, line, piece)], source, state)
            line += 1
        else:
            yield parse.Chunk(source, "jsonl", line, piece, state.encoding or "utf-8", state.position)
            line += piece.count(b"\n")
    if state.damage:
        yield _item_chunk([_cut_reject(source, line, state, state.rest)], source, state)


def _cut_reject(source: str, line: int, state: _ReadState, rest: bytes) -> Reject:
    """The reject of damaged data: of the record that was cut and all after it."""
    record = parse.printable(rest.decode("utf-8", "surrogateescape").rstrip("\r\n"))
    return Reject(source, line, "cut_file", state.damage, record or None)


def _item_chunk(items: Sequence[parse.Piece | parse.Item], source: str, state: _ReadState) -> parse.Chunk:
    first = items[0]
    line = first.line if isinstance(first, Reject | parse.SourceRecord) else first[0]
    return parse.Chunk(source, "items", line, b"", state.encoding or "utf-8", state.position, tuple(items))


def _batches(
    items: Iterable[parse.Piece | parse.Item], source: str, size: int, state: _ReadState
) -> Iterator[parse.Chunk]:
    batch: list[parse.Piece | parse.Item] = []
    begin = state.size
    for item in items:
        batch.append(item)
        if state.size - begin >= size:
            yield _item_chunk(batch, source, state)
            batch, begin = [], state.size
    if batch:
        yield _item_chunk(batch, source, state)


def _has_one_a_line(look: _Head, kind: str) -> bool:
    """Whether a JSON file holds one record a line: an early line is a whole object, and no array is opened."""
    lines = look.head.decode("utf-8", "surrogateescape").split("\n")
    cut = not look.whole and lines.pop()  # the end of the head is the middle of a line
    filled = [line for line in lines if line.strip()][:20]
    if not filled:
        return kind == "jsonl" and not str(cut).lstrip().startswith("[")
    first = filled[0].strip(" \t\r\n\ufeff")
    decoded = parse.decode_json(first, 0)
    whole = not isinstance(decoded, parse.Fault) and decoded[1] == len(first)
    if first.startswith("["):
        return whole and kind == "jsonl" and len(filled) > 1
    if whole:
        return True
    for line in filled[1:]:
        later = parse.decode_json(line, 0) if line.startswith("{") else None
        if isinstance(later, tuple) and not line[later[1] :].strip():
            return True
    if not first.startswith("{"):
        return kind == "jsonl"
    return first.endswith("}") and isinstance(decoded, parse.Fault)


def _paragraphs(pieces: Iterable[bytes | int], source: str, state: _ReadState) -> Iterator[parse.Item]:
    def paragraph() -> parse.Item:
        if size > parse.MAX_LINE:
            return parse.too_long(source, begin, size, "paragraph")
        text = b"\n".join(block).replace(b"\r\n", b"\n").rstrip(b"\r")
        try:
            return parse.SourceRecord(source, begin, {"text": text.decode("utf-8")})
        except UnicodeDecodeError:
            record = parse.printable(text.decode("utf-8", "surrogateescape"))
            return Reject(source, begin, "bad_encoding", "bytes that are no UTF-8", record)

    line = begin = 1
    size = 0
    block: list[bytes] = []
    for piece in pieces:
        lines = [b""] if isinstance(piece, int) else piece.split(b"\n")
        if not lines[-1] and isinstance(piece, bytes):
            lines.pop()  # the piece ends with a line end
        for text in lines:
            if text.strip():
                begin = begin if size else line
                size += len(text) + 1
                if size <= parse.MAX_LINE:
                    block.append(text)
            elif size:
                yield paragraph()
                block, size = [], 0
            line += 1
        if isinstance(piece, int):
            yield parse.too_long(source, line - 1, piece)
    if state.damage:
        yield _cut_reject(source, begin if size else line, state, b"\n".join([*block, state.rest]))
    elif size:
        yield paragraph()


@dataclass(frozen=True)
class _Header:
    columns: tuple[str, ...]
    delimiter: str
    blanks: tuple[int, ...]  # the lines before it
    lines: int  # to its end


def _header(look: _Head, file: parse.SourceFile) -> _Header:
    """The first row that is not blank; a missing or broken one, or one longer than the head, is a UserError."""
    if look.whole and look.head.isspace():
        raise _empty(file)
    lines = csv_lines(look.head.decode("utf-8", "surrogateescape"))
    first = next((index for index, line in enumerate(lines) if line.strip()), len(lines))
    blanks = tuple(range(1, first + 1))
    separator = _SEPARATOR_LINE.fullmatch(lines[first]) if first < len(lines) else None
    first += separator is not None
    default = "\t" if file.kind == "tsv" else _delimiter(lines[first : first + 50])
    delimiter = separator[1] if separator else default
    reader = csv.reader(lines[first:], delimiter=delimiter, strict=True)
    try:
        cells = next(reader, None)
        "".join(lines[first : first + reader.line_num]).encode("utf-8")
    except (csv.Error, UnicodeEncodeError):
        cells = None
    if not cells:
        where = f"{file.name}:{min(first, len(lines) - 1) + 1}"
        raise UserError("The header line can't be read", where=where, next_step="fix that line")
    return _Header(parse.column_names(cells), delimiter, blanks, first + reader.line_num)


def csv_lines(text: str) -> list[str]:
    """Physical lines with their line ends; only `\\n` ends a line."""
    return list(io.StringIO(text, newline="\n"))


def _delimiter(lines: Sequence[str]) -> str:
    """The delimiter of the header that is `lines[0]`: the most frequent one outside quotes that rows agree with."""
    bare = re.sub(r'"[^"]*"', "", lines[0]) if lines else ""
    present = [sign for sign in ",;\t|" if sign in bare]
    if len(present) < 2:
        return present[0] if present else ","

    def agreeing(sign: str) -> int:
        try:
            widths = [len(cells) for cells in csv.reader(lines, delimiter=sign)]
        except csv.Error:
            return 0
        return sum(width == widths[0] for width in widths)

    return max(present, key=lambda sign: (agreeing(sign), bare.count(sign)))


def _csv_chunks(
    pieces: Iterable[bytes | int], file: parse.SourceFile, look: _Head, state: _ReadState
) -> Iterator[parse.Chunk]:
    csv.field_size_limit(sys.maxsize)  # the default, 128 KiB, is less than a long document
    source, header = file.name, _header(look, file)
    if header.blanks:
        yield _item_chunk([Reject(source, line, "blank_line", "") for line in header.blanks], source, state)
    line, rest = header.lines + 1, list[str]()
    skip = header.lines
    for piece in itertools.chain(pieces, [b""]):
        while skip and isinstance(piece, bytes) and piece:
            piece = piece[piece.find(b"\n") + 1 or len(piece) :]
            skip -= 1
        if isinstance(piece, bytes):
            rest += csv_lines(piece.decode("utf-8", "surrogateescape"))
        ended = isinstance(piece, int) or (piece == b"" and not state.damage)
        items, count = _csv_rows(rest, line, header, source, ended=ended)
        line, rest = line + count, rest[count:]
        if isinstance(piece, int):
            items.append(parse.too_long(source, line, piece))
            line += 1
        if items:
            yield _item_chunk(items, source, state)
    if state.damage:
        cut = "".join(rest).encode("utf-8", "surrogateescape") + state.rest
        yield _item_chunk([_cut_reject(source, line, state, cut)], source, state)


def _csv_rows(
    lines: Sequence[str], first: int, header: _Header, source: str, *, ended: bool
) -> tuple[list[parse.Item], int]:
    """The rows in lines, of which the first has the number `first`, and how many lines they take.

    A quote that is never closed would swallow the rest of the file: then the first line alone is broken, and the others
    are read as rows. Unless `ended`, a row that is not whole at the end is left for the next call.
    """
    items: list[parse.Item] = []
    start = position = size = 0
    exhausted = False

    def feed() -> Iterator[str]:
        nonlocal position, size, exhausted
        while position < len(lines):
            size += len(lines[position])
            if position - start >= MAX_CELL_LINES or size > parse.MAX_LINE:
                limit = f"{MAX_CELL_LINES} lines" if size <= parse.MAX_LINE else f"{parse.MAX_LINE} bytes"
                raise csv.Error(f"a row of more than {limit}: a quote is not closed")
            position += 1
            yield lines[position - 1]
        exhausted = True

    while start < len(lines):
        try:
            for cells in csv.reader(feed(), delimiter=header.delimiter, strict=True):
                items.append(_csv_row(cells, lines[start:position], first + start, header.columns, source))
                start, size = position, 0
        except csv.Error as error:
            if exhausted and not ended:
                break
            items.append(_bad_row(str(error), lines[start], source, first + start))
            start += 1
            position, size, exhausted = start, 0, False
    return items, start


def _csv_row(cells: list[str], lines: Sequence[str], number: int, columns: Sequence[str], source: str) -> parse.Item:
    text = lines[0] if len(lines) == 1 else "".join(lines)
    if len(cells) > len(columns) or (not text.isascii() and _UNDECODABLE.search(text)):
        return _bad_row(f"{len(cells)} cells under a header of {len(columns)}", text, source, number)
    if not cells or (not cells[0].strip() and not text.strip()):
        return Reject(source, number, "blank_line", "")
    if "prediction" in columns and "error" in columns:  # answers that `predict` wrote
        cells = list(map(unquoted_cell, cells))
    return parse.SourceRecord(source, number, dict(zip(columns, cells, strict=False)))


def _bad_row(detail: str, text: str, source: str, number: int) -> Reject:
    reason = "broken_csv"
    if _UNDECODABLE.search(text):
        reason, detail = "bad_encoding", "bytes that are no UTF-8"
    return Reject(source, number, reason, detail, parse.printable(text.rstrip("\r\n")))


def _text_bytes(column: Any) -> int:
    """Bytes of a column's values, those that repeat counted each time."""
    arrow = importlib.import_module("pyarrow")
    if not arrow.types.is_dictionary(column.type) or not (
        arrow.types.is_string(column.type.value_type) or arrow.types.is_large_string(column.type.value_type)
    ):
        return int(column.nbytes)
    compute = importlib.import_module("pyarrow.compute")
    return compute.sum(compute.binary_length(column.dictionary).take(column.indices)).as_py() or 0


def _parquet_chunks(file: parse.SourceFile, size: int) -> Iterator[parse.Chunk]:
    """Batches of rows as Arrow streams: decoding is quick, making Python values is left to the workers. So a large row
    group is read once, and bit by bit, whichever process parses the rows.
    """
    try:
        arrow = importlib.import_module("pyarrow")
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        message = "Reading parquet needs pyarrow, which is not installed"
        raise UserError(message, where=file.name, next_step="pip install pyarrow") from None
    total = os.stat(file.path).st_size
    if total == 0:
        raise _empty(file)
    row = 1
    try:
        with parquet.ParquetFile(file.path) as table:
            meta = table.metadata
            size_in_memory = sum(meta.row_group(group).total_byte_size for group in range(meta.num_row_groups))
            # There a value that repeats counts once; so also by the first rows of up to 50 row groups.
            groups = range(0, meta.num_row_groups, max(1, meta.num_row_groups // 50))
            firsts = (next(table.iter_batches(batch_size=1, row_groups=[group]), None) for group in groups)
            largest = max((int(first.nbytes) for first in firsts if first is not None), default=0)
            size_in_memory = max(size_in_memory, largest * meta.num_rows)
            batch_rows = max(1, min(BATCH_ROWS, size * meta.num_rows // max(1, size_in_memory)))
            unpacked = 0
            for batch in table.iter_batches(batch_size=batch_rows):
                unpacked += sum(map(_text_bytes, batch.columns))
                _refuse_expansion(file, total, unpacked)
                sink = arrow.BufferOutputStream()
                with arrow.ipc.new_stream(sink, batch.schema) as writer:
                    writer.write_batch(batch)
                position = total * (row - 1 + batch.num_rows) // max(1, meta.num_rows)
                yield parse.Chunk(file.name, "arrow", row, sink.getvalue().to_pybytes(), position=position)
                row += int(batch.num_rows)
    except UserError:
        raise
    except Exception as error:  # pyarrow's own errors derive from ValueError or OSError, or from nothing in common
        if isinstance(error, OSError) and error.errno is not None:  # the system's, not of what the file holds
            raise
        message = f"Not a readable parquet file: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        raise UserError(message, where=file.name, next_step="write it again, or convert it to jsonl") from None
    if row == 1:
        raise _empty(file)
