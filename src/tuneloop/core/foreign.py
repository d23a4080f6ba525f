"""What someone else may have written is read here, within limits: YAML, JSON, zip archives, GGUF and safetensors.

Every command, page, agent and server reads such files by these functions; tests/test_readers.py finds what goes round
them. A file is opened once, and what was opened is what is checked: plain files alone, and below a folder no links.
Only safetensors, whose library wants a path, are opened a second time.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import re
import stat
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO


@dataclass(frozen=True)
class ForeignLimits:
    """What a file, or a part of one, may hold at most.

    Args:
        bytes: of a zip archive what is packed in it.
        nodes: values, an alias counted with all that it stands for, a text once more for every `PIECE` characters; of
            a zip archive its files, of a GGUF file its keys and tensors.
        depth: levels of objects and lists; of JSON that of its parsers.
        aliases: of YAML.
        seconds: of counting; nothing is built before it is done.
    """

    bytes: int
    nodes: int
    depth: int = 1000
    aliases: int = 0
    seconds: float = 60.0


LIMITS: dict[str, ForeignLimits] = {
    "yaml": ForeignLimits(4_000_000, 200_000, 64, 1_000, 20.0),
    "json": ForeignLimits(512_000_000, 50_000_000),
    "line": ForeignLimits(256_000_000, 10_000_000),  # of JSON Lines
    "zip": ForeignLimits(16_000_000_000, 200_000),
    "sheet": ForeignLimits(1 << 30, 200_000),  # a spreadsheet, whose parts are read as a whole
    "gguf": ForeignLimits(0, 100_000),  # its weights are not read
    "safetensors": ForeignLimits(25_000_000, 0),  # of the header: a quarter of a million tensors
    # tokenizer.json; the largest known has 33 MB, 260,000 tokens and 580,000 merges
    "tokenizer": ForeignLimits(100_000_000, 2_000_000),
    # Below, of what is sent to a server; seconds are a processor's, in a process that can be ended.
    "at once": ForeignLimits(65_536, 10_000),  # a body that the server's own process reads
    "body": ForeignLimits(0, 50_000, 200, 0, 2.0),  # numbers are not counted: prompts may be token ids
    "schema": ForeignLimits(120_000, 10_000, 32, 0, 1.0),  # of OpenAI's structured outputs; seconds for one answer
    "conversation": ForeignLimits(16_384, 40, 0, 0, 3.0),  # characters and turns that the server's own threads render
    "traces": ForeignLimits(0, 300_000, 0, 0, 10.0),  # a call's span has about twenty attributes of three
    "page built": ForeignLimits(0, 0, 0, 0, 20.0),  # of `tuneloop ui` or `/ui`
    # What a service of someone else may send.
    "page": ForeignLimits(64 << 20, 0),  # one answer; with prompts and answers of 500 calls it may be long
    "list": ForeignLimits(20 << 30, 20_000, 0, 0, 6 * 3600.0),  # its pages, in one call of a command
    "download": ForeignLimits(400 << 30, 0),  # weights of the largest models
}
PIECE = 100  # characters
LONGEST_ARRAY = 4_000_000  # values of an array in a GGUF file: the largest vocabularies have 300,000
MOST_SPANS = 10_000  # of a message of traces; OpenTelemetry's exporters send 512
PACKED = 1_000  # times a file of a zip archive may be larger than what is packed of it; zeros are packed 1,032 times
DIGITS = 300  # of a number: beyond a float's range arithmetic fails, far from here
_NUMBER = re.compile(r"[-+0-9:_.]+")
_OPENED = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_NONBLOCK, _NOFOLLOW = getattr(os, "O_NONBLOCK", 0), getattr(os, "O_NOFOLLOW", 0)


class BeyondLimits(ValueError):
    """Something foreign is beyond its limits."""


# --- opening -----------------------------------------------------------------------------------


def descriptor_of(path: Path | str, flags: int = _OPENED, *, below: Path | None = None, mode: int = 0o666) -> int:
    """Open a plain file, and check what was opened: no folder, pipe or device; nothing waits for one.

    Args:
        below: a folder below which no part of the path may be a link: a file of a folder that came from elsewhere must
            not lead out of it. To be written it may have no second name either.

    Raises:
        OSError: as `open`; ELOOP: a link; EINVAL: no plain file.
    """
    flags |= _NONBLOCK | getattr(os, "O_CLOEXEC", 0)
    descriptor = os.open(path, flags, mode) if below is None else _below(below, Path(path), flags, mode)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no plain file", str(path))
        if below is not None and flags & (os.O_WRONLY | os.O_RDWR) and status.st_nlink > 1:
            raise OSError(errno.ELOOP, "it has a second name, perhaps elsewhere", str(path))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _below(folder: Path, path: Path, flags: int, mode: int) -> int:
    """Open what is below a folder part by part, so that no part can become a link between a check and its use."""
    parts = (path.relative_to(folder) if path.is_absolute() or path.is_relative_to(folder) else path).parts
    if not parts or ".." in parts:
        raise OSError(errno.ELOOP, "it is outside its folder", str(path))
    if os.open not in os.supports_dir_fd:  # Windows
        for number in range(1, len(parts) + 1):
            if folder.joinpath(*parts[:number]).is_symlink():
                raise OSError(errno.ELOOP, "a link is not followed here", str(path))
        return os.open(folder.joinpath(*parts), flags, mode)
    with contextlib.ExitStack() as stack:
        at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        stack.callback(os.close, at)
        for part in parts[:-1]:
            try:
                at = os.open(part, os.O_RDONLY | os.O_DIRECTORY | _NOFOLLOW, dir_fd=at)
            except OSError as error:
                raise _named(error, path) from None
            stack.callback(os.close, at)
        try:
            return os.open(parts[-1], flags | _NOFOLLOW, mode, dir_fd=at)
        except OSError as error:
            raise _named(error, path) from None


def _named(error: OSError, path: Path) -> OSError:
    is_link = error.errno in (errno.ELOOP, errno.ENOTDIR)
    return OSError(error.errno, "a link is not followed here" if is_link else error.strerror, str(path))


def opened(path: Path | str, *, below: Path | None = None) -> BinaryIO:
    """A plain file to read; see `descriptor_of`."""
    return os.fdopen(descriptor_of(path, below=below), "rb")


def is_file(path: Path | str, *, below: Path) -> bool:
    """Whether there is a plain file that `opened` opens."""
    with contextlib.suppress(OSError):
        os.close(descriptor_of(path, below=below))
        return True
    return False


def appended(path: Path | str, *, below: Path) -> BinaryIO:
    """A plain file of a folder, at whose end is written; it is made where there is none. See `descriptor_of`."""
    return os.fdopen(descriptor_of(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, below=below), "ab")


def written(path: Path | str, *, below: Path) -> BinaryIO:
    """A plain file of a folder, written from its beginning; see `descriptor_of`: nothing is cut before the check."""
    descriptor = descriptor_of(path, os.O_WRONLY | os.O_CREAT, below=below)
    os.ftruncate(descriptor, 0)
    return os.fdopen(descriptor, "wb")


def file_bytes(path: Path | str, kind: str, *, below: Path | None = None) -> bytes:
    """The bytes of a plain file of a kind of `LIMITS`. Raises OSError; BeyondLimits."""
    most = LIMITS[kind].bytes
    with opened(path, below=below) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise BeyondLimits(f"it has more than {most:,} bytes")
    return data


# --- YAML --------------------------------------------------------------------------------------


def parse_yaml(text: str | bytes) -> Any:
    """A value of YAML, of plain types alone. Raises yaml.YAMLError; BeyondLimits; ValueError."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    if isinstance(text, str) and len(text) <= PIECE and not set(text) & set("[]{}&*:,\n"):
        return yaml.load(text, loader)  # noqa: S506 - the safe one, in C; one scalar, as on a command line
    _count_yaml(text, loader, LIMITS["yaml"])
    return yaml.load(text, loader)  # noqa: S506


@functools.cache
def packaged_yaml(path: Path) -> Any:
    """What a YAML file of the package holds."""
    return parse_yaml(file_bytes(path, "yaml"))


def _count_yaml(text: str | bytes, loader: Any, limits: ForeignLimits) -> None:
    """Refuse a text whose values, once aliases are expanded, are too many or too deep; no value is built here."""
    import yaml

    if len(text) > limits.bytes:
        raise BeyondLimits(f"it has more than {limits.bytes:,} bytes")
    sizes: dict[str, tuple[int, int]] = {}  # of anchors that are complete: nodes, levels
    open_nodes: list[list[Any]] = [["", 0, 0]]  # anchor, nodes, levels below
    aliases, until = 0, time.monotonic() + limits.seconds
    for number, event in enumerate(yaml.parse(text, loader)):
        anchor, size, levels = getattr(event, "anchor", None), 0, 0
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append([anchor, 1, 0])
            sizes.pop(anchor or "", None)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size, levels = open_nodes.pop()
            levels += 1
        elif isinstance(event, yaml.ScalarEvent):
            size = 1 + len(event.value) // PIECE
            if len(event.value) > DIGITS and _NUMBER.fullmatch(event.value):
                raise BeyondLimits(f"a number of {len(event.value)} digits")
        elif isinstance(event, yaml.AliasEvent):
            aliases += 1
            if anchor not in sizes and any(anchor == node[0] for node in open_nodes):
                raise BeyondLimits("a value holds itself")
            size, levels = sizes.get(anchor or "", (1, 0))
        if size:
            if anchor and not isinstance(event, yaml.AliasEvent):
                sizes[anchor] = size, levels
            open_nodes[-1][1] += size
            open_nodes[-1][2] = max(open_nodes[-1][2], levels)
        if open_nodes[-1][1] > limits.nodes:
            raise BeyondLimits(f"it has more than {limits.nodes:,} values, aliases expanded")
        if len(open_nodes) + open_nodes[-1][2] > limits.depth:
            raise BeyondLimits(f"it is nested too deeply: more than {limits.depth} levels")
        if aliases > limits.aliases:
            raise BeyondLimits(f"it has more than {limits.aliases:,} aliases")
        if number % 1000 == 0 and time.monotonic() > until:
            raise BeyondLimits(f"it takes more than {limits.seconds:g} s to read")


# --- JSON --------------------------------------------------------------------------------------


def fast_json(data: str | bytes) -> Any:
    """A value of one line or body whose bytes are limited already; orjson limits levels and digits. ValueError."""
    import orjson

    return orjson.loads(data)


MOST_DEPTH = LIMITS["body"].depth  # levels of a client's JSON: deeper ones can't be written again


def too_deep(raw: bytes, value: Any) -> bool:
    """Whether objects and lists are nested in more than `MOST_DEPTH` levels, in a JSON value and its text.

    It goes down level by level, so that nothing is too deep for it.
    """
    if raw.count(b"{") + raw.count(b"[") <= MOST_DEPTH:
        return False
    level = [value]
    for _ in range(MOST_DEPTH):
        parts = (part for node in level for part in (node.values() if isinstance(node, dict) else node))
        level = [part for part in parts if isinstance(part, dict | list)]
    return bool(level)


def bounded_int(text: str) -> int:
    """An integer of a JSON file; ValueError: no float is so large."""
    if len(text) > DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


DECODER = json.JSONDecoder(parse_int=bounded_int)


def parse_json(text: str | bytes, kind: str = "json", **options: Any) -> Any:
    """A value of JSON, NaN and infinities too; `options`: of `json.loads`. Raises ValueError, BeyondLimits too."""
    limits = LIMITS[kind]
    if len(text) > limits.bytes:
        raise BeyondLimits(f"it has more than {limits.bytes:,} bytes")
    if len(text) > limits.nodes:  # each value but the first comes after one of these characters
        marks: tuple[Any, ...] = (b",", b"[", b"{", b":") if isinstance(text, bytes) else (",", "[", "{", ":")
        if sum(map(text.count, marks)) > limits.nodes:
            raise BeyondLimits(f"it has more than {limits.nodes:,} values")
    try:
        if options:
            return json.loads(text, **{"parse_int": bounded_int} | options)
        if not isinstance(text, str):
            text = text.decode(json.detect_encoding(text), "surrogatepass")
        return DECODER.decode(text)
    except RecursionError:
        raise BeyondLimits("it is nested too deeply") from None


def parse_line(text: str | bytes) -> Any:
    """A value of a line of JSON Lines; see `parse_json`."""
    return parse_json(text, "line")


def lines_of(path: Path | str, *, below: Path | None = None) -> Iterator[bytes]:
    """The lines of a plain file, none longer than a line of JSON may be. Raises OSError; BeyondLimits."""
    most = LIMITS["line"].bytes
    with opened(path, below=below) as file:
        while line := file.readline(most + 1):
            if len(line) > most:
                raise BeyondLimits(f"a line has more than {most:,} bytes")
            yield line


# --- archives and weights ----------------------------------------------------------------------


@contextlib.contextmanager
def opened_zip(path: Path | str, reader: Any = zipfile.ZipFile) -> Iterator[zipfile.ZipFile]:
    """A zip archive whose files are few, and no larger than what is packed may become.

    `reader`: zipfile's, or that of a library that knows more compressions.

    Raises:
        OSError; zipfile.BadZipFile: it is none; BeyondLimits.
    """
    limits = LIMITS["zip"]
    with opened(path) as file, reader(file) as archive:
        infos = archive.infolist()
        if len(infos) > limits.nodes:
            raise BeyondLimits(f"the archive has more than {limits.nodes:,} files")
        if sum(info.file_size for info in infos) > limits.bytes:
            raise BeyondLimits(f"the archive holds more than {limits.bytes:,} bytes")
        starts = sorted(info.header_offset for info in infos)
        if len({*starts}) < len(starts):
            raise BeyondLimits("files of the archive are packed in one place")
        for info in infos:
            if info.file_size > PACKED * max(info.compress_size, 1) or info.file_size > LIMITS["json"].bytes:
                raise BeyondLimits(f"{info.filename[:80]!r} is packed too densely, or too large")
        yield archive


def opened_safetensors(path: Path | str, framework: str = "pt") -> Any:
    """safetensors' reader of a plain file whose header is not too long. Raises OSError; ValueError;
    safetensors.SafetensorError: it is damaged."""
    from safetensors import safe_open

    with opened(path) as file:
        header, most = int.from_bytes(file.read(8), "little"), LIMITS["safetensors"].bytes
    if header > most:  # of a million tensors it is read for minutes
        raise BeyondLimits(f"its list of tensors has {header:,} bytes, and at most {most:,} are read")
    return safe_open(path, framework)


def load_safetensors(path: Path | str, framework: str = "pt") -> dict[str, Any]:
    """All tensors of a file by name; see `opened_safetensors`."""
    with opened_safetensors(path, framework) as source:
        return {name: source.get_tensor(name) for name in source.keys()}  # noqa: SIM118 - it is no dictionary


def load_pickled(path: Path | str) -> Any:
    """What `torch.save` wrote, tensors and plain values alone: nothing in it is run. Raises OSError; RuntimeError;
    EOFError; pickle.UnpicklingError."""
    import torch

    with opened(path) as file:
        return torch.load(file, map_location="cpu", weights_only=True)
