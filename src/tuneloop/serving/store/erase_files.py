"""What leaves the files of a server's folder: a person's lines on demand, batches and uploads after some days.

Lines of a batch's input are overwritten with spaces: so the numbers of the others stay, and an upload that is the same
file forgets them too. From all other files lines are taken out. The store's own rows are `erase`'s.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import time
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json, replacing, write_json
from tuneloop.core.foreign import parse_line
from tuneloop.core.ids import utc
from tuneloop.records.dataset import MANIFEST
from tuneloop.records.server import ServerState
from tuneloop.serving.batch.batch import ERRORS, INPUT, JOURNAL, OUTPUT, STATE
from tuneloop.serving.batch.record import OVER
from tuneloop.serving.keys import FILE as KEYS
from tuneloop.serving.store.database import FILE
from tuneloop.serving.store.writer import DEAD, FILES, SPILL

PENDING = "forget-*.json"  # erasures that have begun
SQLITE = b"SQLite format 3\0"
OLD = 10.0  # seconds without a change after which a half-written file is no one's any more
_PERSONAL = ("metadata", "filename", "errors")  # what a batch's or an upload's state holds of its sender
SHORTEST = 3  # characters of a name that is looked for in lines that are no JSON, and in the names of files
_FIELDS = {
    "user": ("user", "user_id", "end_user", "safety_identifier"),
    "conversation": ("conversation", "conversation_id", "session", "session_id"),
    "key": ("key", "owner"),
}
_IDS = ("id", "request", "request_id", "row", "shadow")
# What the erasure of the store itself takes care of, or what names no user.
_APART = (*FILES, SPILL, KEYS, ServerState.file, ".lock")


@dataclass(frozen=True)
class Whose:
    """Whose lines are meant."""

    column: str = ""  # as `user` in `user=anna`; empty: the lines with one of the texts
    value: str = ""
    texts: tuple[str, ...] = ()  # as `folded` gives them
    requests: frozenset[str] = frozenset()  # ids of stored requests that are theirs
    conversations: frozenset[str] = frozenset()  # conversations that are theirs alone

    def has(self, value: Any) -> bool:
        """Whether a JSON value is theirs, or something within it."""
        texts_here = words_of(value) if self.texts else ""
        return any(text in texts_here for text in self.texts) or self._names(value)

    def _names(self, value: Any) -> bool:
        if isinstance(value, list):
            return any(self._names(item) for item in value if isinstance(item, dict | list))
        return isinstance(value, dict) and any(
            self._names_in_field(name, field_value) for name, field_value in value.items()
        )

    def _names_in_field(self, name: str, value: Any) -> bool:
        person = self.column in ("user", "conversation")
        if isinstance(value, dict | list):
            listed = name == "metadata" and person and isinstance(value, dict) and self.value in value.values()
            return listed or self._names(value)
        if isinstance(value, str | int) and str(value) == self.value and name in _FIELDS.get(self.column, ()):
            return True
        return isinstance(value, str) and (
            (name in _IDS and value in self.requests)
            or (name in _FIELDS["conversation"] and value in self.conversations)
            or (name == "custom_id" and person and self.is_in(value))
        )

    def has_line(self, raw: bytes) -> bool:
        """Whether a line is theirs."""
        if not raw.strip():
            return False
        try:
            value = parse_line(raw)
            return self.has(value) if isinstance(value, dict | list) else self.is_in(str(value))
        except (ValueError, RecursionError):
            return self.is_in(raw.decode("utf-8", "replace"))

    def is_in(self, text: str) -> bool:
        """Whether a text that is no JSON names them: by the whole word, where a column is meant."""
        text = _unescaped(text)
        if self.value and text == self.value:
            return True
        if self.texts:
            return any(len(sentence) >= SHORTEST and sentence in folded(text) for sentence in self.texts)
        names = [self.value, *self.requests, *self.conversations] if len(self.requests) < 1000 else [self.value]
        return any(
            len(name) >= SHORTEST and name in text and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)
            for name in names
        )

    def cleaned(self, value: Any, everywhere: bool = True, name: str = "") -> Any:
        """A JSON value without what is theirs: items of lists go, other texts become `erased`.

        Args:
            everywhere: also where a field of another name holds the value, as one of settings may by chance.
            name: of the field that holds it.
        """
        if isinstance(value, dict):
            parts = {key: self.cleaned(field_value, everywhere, key) for key, field_value in value.items()}
            return {self.cleaned(key, everywhere): item for key, item in parts.items()}
        if isinstance(value, list):
            left = [item for item in value if not (isinstance(item, dict | list) and self.has(item))]
            return [self.cleaned(item, everywhere, name) for item in left]
        if not isinstance(value, str):
            return value
        is_theirs = value in self.requests or value in self.conversations
        if not is_theirs and (everywhere or self.texts or name in _FIELDS.get(self.column, ())):
            is_theirs = self.is_in(value)
        return "erased" if is_theirs else value


def folded(text: str) -> str:
    """A text as it is compared: whatever its case, white space and Unicode form."""
    return " ".join((text if text.isascii() else unicodedata.normalize("NFKC", text)).casefold().split())


def words_of(value: Any) -> str:
    """All texts of a JSON value, folded; of texts that are JSON themselves what they say."""
    parts: list[str] = []
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, dict):
            left += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            left += item
        elif item is not None and not isinstance(item, bool):
            parts.append(str(item))
    text = "\n".join(parts)
    return folded(f"{text}\n{_unescaped(text)}" if "\\" in text else text)


def _unescaped(text: str) -> str:
    """A text with letters in place of JSON's escapes."""
    if "\\" not in text:
        return text
    text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda match: chr(int(match[1], 16)), text)
    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return re.sub(r'\\(["\\/])', r"\1", text)


def erase_lines(folder: Path, whose: Whose, *, act: bool, alone: bool = True) -> int:
    """Take a person's lines from all files of a server's folder, but for its store and what waits for it.

    Data sets are passed over: they are rewritten as a whole. An erasure that was cut is repeated.

    Args:
        act: False: count only.
        alone: no server works there, so that what is half-written is no one's.

    Returns:
        How many lines, entries and files were theirs.
    """
    count = 0
    batches = folder / "batch" / "batches"
    for batch in sorted(batches.glob("*")) if batches.is_dir() else ():
        if batch.is_dir():
            count += _erase_batch(batch, folder / "batch" / "files", whose, act)
    for path in _files(folder):
        with contextlib.suppress(FileNotFoundError):
            count += _erase_file(path, path.relative_to(folder).parts[0], whose, act, alone)
    if act:  # of a line that was cut no one can say whose it is
        _remove_lines(folder / DEAD, lambda _, raw: b'"line":' in raw)
    for path in sorted(folder.rglob("*"), reverse=True):  # what is in a folder comes before it
        ours = path.relative_to(folder).parts[0] in ("batch", "improve", "experiments")
        if not ours and path.name not in (FILE, *_APART) and not path.match(PENDING) and whose.is_in(path.stem):
            count += 1
            if act:
                path.rename(path.with_name(f"erased-{os.urandom(4).hex()}{path.suffix}"))
    return count


def _files(folder: Path) -> Iterator[Path]:
    """The files that are looked through one by one."""
    for directory, folders, names in os.walk(folder):
        path = Path(directory)
        if MANIFEST in names:
            folders[:] = []
            continue
        in_batch = path.parent.name == "batches" and path.parent.parent.name == "batch"
        for name in sorted(names):
            apart = name in _APART or name.startswith(FILE) or (in_batch and not name.endswith((".tmp", STATE)))
            if not (path == folder and apart) and not (in_batch and apart) and not (path / name).match(PENDING):
                yield path / name


def _erase_batch(batch: Path, uploads: Path, whose: Whose, act: bool) -> int:
    """A batch's rows: those of the input, and what became of them."""
    mine: set[int] = set()
    state = _state(batch / STATE)
    whole = whose.column == "key" and state.get("owner") == whose.value
    for name in (INPUT, JOURNAL, OUTPUT, ERRORS):
        for number, raw in _lines(batch / name):
            if (whole and raw.strip()) or whose.has_line(raw):
                mine.add(number if name == INPUT else _number(raw) or 0)
    if not act or not mine:
        return len(mine)
    for name in (JOURNAL, OUTPUT, ERRORS):
        _remove_lines(batch / name, lambda _, raw: _number(raw) in mine or whose.has_line(raw))
    upload = state.get("input_file_id")
    for path in [batch / INPUT, *([uploads / f"{upload}.jsonl"] if isinstance(upload, str) else [])]:
        _overwrite(path, lambda number, _: number in mine)
    return len(mine)


def _state(path: Path) -> dict[str, Any]:
    """What a batch or an upload says of itself; nothing where its file is damaged."""
    with contextlib.suppress(UserError):
        if isinstance(value := read_json(path), dict):
            return value
    return {}


def _number(raw: bytes) -> int | None:
    """The number of the row that a line of a journal or a result is about."""
    try:
        value = parse_line(raw)
        return int(value["number"] if "number" in value else str(value["id"]).removeprefix("batch_req_"))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _erase_file(path: Path, part: str, whose: Whose, act: bool, alone: bool) -> int:
    """A file in a part of the server's folder."""
    if part == "experiments":  # registrations, which name no one
        return 0
    if part == "improve" and not whose.texts and path.suffix not in (".jsonl", ".json", ".gz", ".tmp"):
        return 0  # recipes and pages, in which a user's name is a word like any other
    if path.name.endswith((".tmp", ".part")):
        if not any(whose.has_line(raw) for _, raw in _lines(path)):
            return 0
        if act and not alone:  # it may be an upload under way
            while (left := OLD - (time.time() - path.stat().st_mtime)) > 0:
                time.sleep(min(left, OLD))
        if act:
            path.unlink()
        return 1
    if path.suffix == ".json":
        try:
            value = read_json(path)
        except UserError:
            return _remove_lines(path, lambda _, raw: whose.has_line(raw), act)
        if part == "batch" and isinstance(value, dict):
            new = {**value, **{name: whose.cleaned(value[name]) for name in _PERSONAL if name in value}}
        else:
            new = whose.cleaned(value, part != "improve")
        if new == value:
            return 0
        if act:
            write_json(path, new)
        return 1
    with path.open("rb") as file:
        head = file.read(8192)
    if path.suffix != ".gz" and b"\0" in head:  # weights, a database
        return 0
    if path.parent.name == "files" and path.parent.parent.name == "batch":
        whole = whose.column == "key" and _state(path.with_suffix(".json")).get("owner") == whose.value
        return _overwrite(path, lambda _, raw: whole or whose.has_line(raw), act)
    return _remove_lines(path, lambda _, raw: whose.has_line(raw), act)


Mine = Callable[[int, bytes], bool]


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    if path.is_file():
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield from enumerate(file, 1)


def _remove_lines(path: Path, mine: Mine, act: bool = True) -> int:
    """Write a file again without some lines; returns how many these are."""
    count = sum(mine(number, raw) for number, raw in _lines(path))
    if act and count:
        with replacing(path) as file, contextlib.ExitStack() as stack:
            out: Any = stack.enter_context(gzip.GzipFile(fileobj=file, mode="wb")) if path.suffix == ".gz" else file
            for number, raw in _lines(path):
                if not mine(number, raw):
                    out.write(raw)
    return count


def _overwrite(path: Path, mine: Mine, act: bool = True) -> int:
    """Put spaces in place of some lines, so that the others keep their numbers; returns how many these are."""
    places: list[tuple[int, int]] = []
    at = 0
    for number, raw in _lines(path):
        if raw.strip() and mine(number, raw):
            places.append((at, len(raw.rstrip(b"\r\n"))))
        at += len(raw)
    if act and places:
        with path.open("r+b") as file:
            for start, length in places:
                file.seek(start)
                file.write(b" " * length)
            file.flush()
            os.fsync(file.fileno())
    return len(places)


def copies_of_the_store(folder: Path, store: Path | None) -> list[Path]:
    """SQLite files in a server's folder, but `store`, its own, which must not be opened here (None: it is no file)."""
    copies = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not (store and store.exists() and path.samefile(store)):
            with contextlib.suppress(OSError), path.open("rb") as file:
                copies += [path] if file.read(len(SQLITE)) == SQLITE else []
    return copies


def expire_files(folder: Path, before: Callable[[str], float | None], content: str) -> int:
    """Take the texts from batches, uploads and dead letters that are older than they may be; numbers stay.

    Where texts are not kept as they are, a batch that is over loses its input and its journal at once, and so does an
    upload that no other batch needs. Its results stay for its sender.

    Args:
        before: seconds since 1970, by the name of a key: what is older goes; None: nothing does. That of no key holds
            for backups of the store, which an upgrade has left.
        content: what is kept of texts, as `log.content` says it.

    Returns:
        How many batches, uploads and letters that were.
    """
    count, inputs, full = 0, set(), content == "full"

    def is_old(state: dict[str, Any]) -> bool:
        limit = before(state.get("owner") or "")
        return limit is not None and state["created_at"] < limit

    for state_file in sorted((folder / "batch" / "batches").glob(f"*/{STATE}")):
        with contextlib.suppress(UserError, OSError, KeyError, TypeError):
            state, batch = read_json(state_file), state_file.parent
            if state["status"] not in OVER:
                continue
            inputs.add(state.get("input_file_id"))
            old = is_old(state)
            names = (INPUT, JOURNAL, OUTPUT, ERRORS) if old else () if full else (INPUT, JOURNAL)
            paths = [batch / name for name in names if (batch / name).exists()]
            for path in paths:
                path.unlink()
            if old and state.get("metadata"):
                write_json(state_file, {**state, "metadata": None})
            count += bool(paths)
    for state_file in sorted((folder / "batch" / "files").glob("file-*.json")):
        with contextlib.suppress(UserError, OSError, KeyError, TypeError):
            state, path = read_json(state_file), state_file.with_suffix(".jsonl")
            if is_old(state):
                path.unlink(missing_ok=True)
                state_file.unlink()
                count += 1
            elif not full and state["id"] in inputs and path.stat().st_nlink == 1 and path.stat().st_size:
                os.truncate(path, 0)
                count += 1

    def is_old_letter(_: int, raw: bytes) -> bool:
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            letter = parse_line(raw)
            limit = before(str((letter.get("record") or {}).get("key") or ""))
            return limit is not None and letter["time"] < utc(limit)
        return False

    for backup in folder.glob("*.backup"):
        if (limit := before("")) is not None and backup.stat().st_mtime < limit:
            backup.unlink()
            count += 1
    return count + _remove_lines(folder / DEAD, is_old_letter)
