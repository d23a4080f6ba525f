"""Source files to records, each with the physical line it starts on; what can't be read becomes a reject.

Only what concerns a whole file (missing, empty, unsupported, damaged from its start) is a `UserError`.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import glob
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from tuneloop.core.confined import refuse_outside
from tuneloop.core.errors import UserError
from tuneloop.core.files import nearest_path, user_errors_of_the_disk
from tuneloop.core.foreign import file_bytes, parse_json
from tuneloop.core.urls import is_url
from tuneloop.data.sources import excel
from tuneloop.data.sources.chunks import chunks_of, guessed_file
from tuneloop.data.sources.parse import MAX_EXPANSION, Item, SourceFile, SourceRecord, parse_chunk, printable
from tuneloop.data.sources.remote import fetched
from tuneloop.records.rows import Reject

KINDS = {
    ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet",
    ".txt": "text", ".md": "text", **dict.fromkeys(excel.KINDS, "excel"),
}  # fmt: skip
COMPRESSIONS = {".gz": "gz", ".zst": "zst", ".bz2": "bz2", ".xz": "xz"}
SUPPORTED = "json, jsonl, csv, tsv, txt, md, each also compressed (.gz, .zst, .bz2, .xz), parquet, xlsx, xls and ods"
INFO = "dataset_info.json"  # LLaMA-Factory's list of data sets; never data itself

# texts about data
_ABOUT = re.compile(r"(readme|licen[cs]e|notice|changelog|contributing|citation|authors)\b.*\.(md|txt)", re.IGNORECASE)


def read_records(sources: Sequence[str]) -> Iterator[SourceRecord | Reject]:
    """Every record of files, globs, folders and "-" (the standard input), in the order given; globs and folders give
    their files sorted by name. Raises UserError: a source is missing, empty, of an unsupported kind, or damaged as a
    whole.
    """
    for file in find_files(sources):
        yield from read_file(file)


def read_file(file: SourceFile) -> Iterator[Item]:
    """The records of one file; one that is empty, unreadable, damaged as a whole, or changed meanwhile is an error."""
    for chunk in chunks_of(file):
        yield from parse_chunk(chunk)


def find_files(sources: Sequence[str], max_expansion: float = MAX_EXPANSION) -> list[SourceFile]:
    """The files behind paths, globs, folders, addresses (`s3://BUCKET/rows.jsonl`) and "-", each once.

    A folder gives all its files of a supported kind, with its subfolders, but no hidden ones and no prepared data sets,
    so that a second run does not read what the first one wrote. Text files count only where nothing else is: next to
    other data they are notes about it. A `dataset_info.json` in the folder adds the files it names.

    `max_expansion`: how many times its size a compressed file may expand to. Raises UserError: nothing given, nothing
    found, or a kind that can't be read.
    """
    if not sources:
        raise UserError("No data given", next_step="name files, globs or folders: data.sources=FILE")
    files: dict[tuple[Path, str], SourceFile] = {}
    for source in sources:
        if source == "-":
            of_source = [_standard_input(sys.stdin)]
        elif is_url(source):
            of_source = fetched_files(source)
        else:
            source, sheet = named_sheet(source)
            of_source = [replace(_readable(path), sheet=sheet) for path in _expand(source)]
        for file in of_source:
            refuse_outside(file.path)
            files.setdefault((file.path.resolve(), file.sheet), replace(file, max_expansion=max_expansion))
    return list(files.values())


def named_sheet(source: str) -> tuple[str, str]:
    """A source and the sheet that it names, as in `tickets.xlsx#March`; "": it names none."""
    path, sign, sheet = source.rpartition("#")
    is_sheet = sign and path.lower().endswith(excel.KINDS) and not os.path.exists(source)
    return (path, sheet) if is_sheet else (source, "")


def _readable(path: Path) -> SourceFile:
    if (file := _source_file(path)) is None:
        message = f"Can't read files of the kind {path.suffix or '(no suffix)'}"
        raise UserError(message, where=str(path), next_step=f"convert it to one of: {SUPPORTED}")
    return file


def fetched_files(url: str) -> list[SourceFile]:
    """A file of a data hub, object store or web server, or the files of a folder there, as copies in the cache.

    Raises UserError: as `remote.fetched`, or there is no file that can be read.
    """
    endings = frozenset(f"{kind}{packed}" for kind in KINDS for packed in ("", *COMPRESSIONS))
    names = {path: printable(name) for path, name in fetched(url, endings)}
    if not names:
        raise UserError("Nothing there that can be read", where=url, next_step=f"convert it to one of: {SUPPORTED}")
    files = ((_source_file(path) or guessed_file(path, ""), path) for path in _of_data(list(names)))
    return [replace(file, name=names[path]) for file, path in files]


def _source_file(path: Path) -> SourceFile | None:
    compression = COMPRESSIONS.get(path.suffix.lower(), "")
    kind = KINDS.get((Path(path.stem) if compression else path).suffix.lower())
    if kind is None or (compression and kind in ("parquet", "excel")):
        return None
    return SourceFile(path, printable(str(path)), kind, compression)


def _expand(source: str) -> list[Path]:
    try:
        path = Path(source).expanduser()
        if path.is_dir():
            return _files_of_folder(path)
        if path.is_file() and path.name != INFO:
            return [path]
        if path.is_file():
            if files := _named_by(path.parent):
                return files
            step = "put the files next to it, or name them themselves"
            raise UserError(f"{INFO} names no file that is there and can be read", where=str(path), next_step=step)
        _refuse_dead_links([path])
        if path.exists():
            raise UserError("Not a regular file", where=source, next_step="name a file, a glob or a folder")
        if glob.has_magic(source):
            return _files_of_glob(path, source)
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, a NUL byte, no home folder
        raise UserError(f"Not a usable path: {error}", where=repr(source), next_step="check the path") from None
    raise UserError("No such file", where=source, next_step=nearest_path(path))


def _refuse_dead_links(paths: Sequence[Path]) -> None:
    """Refuse links to no file, or in a circle: to pass over them would lose records without a word."""
    for path in paths:
        if path.is_symlink() and not path.exists():
            step = "remove the link, or name the file itself"
            raise UserError("A link that leads to no file", where=str(path), next_step=step)


def _files_of_glob(path: Path, source: str) -> list[Path]:
    if "**" in path.parts:
        # The glob module follows links to folders without end; pathlib's does not follow them.
        plain = next(index for index, part in enumerate(path.parts) if glob.has_magic(part))
        root = Path(*path.parts[:plain])
        paths = root.glob(str(Path(*path.parts[plain:])))
        matches = [p for p in paths if not any(part.startswith(".") for part in p.relative_to(root).parts)]
    else:
        matches = [Path(p) for p in glob.glob(str(path))]
    _refuse_dead_links(matches)
    files = _of_data(sorted(p for p in matches if p.is_file()))
    if not files:
        raise UserError("No file matches the glob", where=source, next_step="check the pattern and the folder")
    return files


def _files_of_folder(folder: Path) -> list[Path]:
    paths = sorted(path for path in _walk(folder) if _source_file(path) is not None)
    _refuse_dead_links(paths)
    files = _of_data([path for path in paths if path.is_file()])
    if (folder / INFO).is_file():
        files = sorted({*files, *_named_by(folder)})
    if not files:
        message, step = "No readable file in the folder", f"kinds that are read: {SUPPORTED}"
        if (folder / "rejects.jsonl").is_file():
            message = "The data set in this folder was not finished: `tuneloop prepare` failed or was stopped"
            step = "look at the rejects.jsonl in it, then prepare the sources again"
        raise UserError(message, where=str(folder), next_step=step)
    return files


def _walk(folder: Path) -> Iterator[Path]:
    """The files of a folder and its subfolders that are not hidden and in no prepared data set. Links to folders are
    followed, but each folder is entered once: a link may lead back up.
    """
    seen: set[tuple[int, int]] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        info = os.stat(root)
        if (info.st_dev, info.st_ino) in seen:
            folders.clear()
            continue
        seen.add((info.st_dev, info.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if "dataset.json" not in names and "rejects.jsonl" not in names:
            yield from (Path(root, name) for name in names if not name.startswith("."))


def _of_data(paths: Sequence[Path]) -> list[Path]:
    """Paths found by a folder or a glob, without what is no data but about it."""
    some = [path for path in paths if path.name != INFO and not _ABOUT.fullmatch(path.name)]
    files = [(path, _source_file(path)) for path in some]
    return [path for path, file in files if file is None or file.kind != "text"] or some


def dataset_info(folder: Path | str) -> dict[str, dict[str, Any]]:
    """The data sets that a folder's `dataset_info.json` describes, by name (LLaMA-Factory's format); `folder` may be
    the file.

    Each has `file_name` and may have `formatting`, `columns` and `tags`. Entries without a file (data sets on a hub)
    are left out; a file that isn't there, can't be read, or is another program's gives none.
    """
    path = Path(folder)
    try:
        described = parse_json(file_bytes(path if path.name == INFO else path / INFO, "json"))
    except (OSError, ValueError):
        return {}
    entries = described.items() if isinstance(described, dict) else ()
    return {n: about for n, about in entries if isinstance(about, dict) and isinstance(about.get("file_name"), str)}


def entry_of(file: SourceFile) -> dict[str, Any] | None:
    """What a `dataset_info.json` in the folder of a file, or in the folder above, says of it."""
    path = file.path.resolve()
    for folder in path.parents[:2]:
        for about in dataset_info(folder).values():
            if (folder / about["file_name"]).resolve() in (path, path.parent):
                return about
    return None


def _named_by(folder: Path) -> list[Path]:
    files: list[Path] = []
    for about in dataset_info(folder).values():
        path = folder / about["file_name"]
        with contextlib.suppress(OSError, ValueError):
            some = _of_data(sorted(p for p in _walk(path) if p.is_file())) if path.is_dir() else [path]
            files += [p for p in some if p.is_file() and p.name != INFO and _source_file(p) is not None]
    return list(dict.fromkeys(files))


@functools.cache
def _standard_input(stream: TextIO | None) -> SourceFile:
    """The standard input as a file: it is read once, to a temporary file that goes when the program ends."""
    if stream is None or stream.isatty():
        step = "pipe data into it, or name a file"
        raise UserError("Nothing is piped into the standard input", where="-", next_step=step)
    with (
        user_errors_of_the_disk(tempfile.gettempdir()),
        tempfile.NamedTemporaryFile(prefix="tuneloop-", suffix=".input", delete=False) as spool,
    ):
        path = Path(spool.name)
        atexit.register(path.unlink, missing_ok=True)
        shutil.copyfileobj(stream.buffer, spool, 1 << 20)
    return guessed_file(path, "-")
