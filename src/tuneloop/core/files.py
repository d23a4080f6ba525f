"""Files between stages: strict YAML/JSON <-> records, overrides, atomic writes, content hashes, locks."""

from __future__ import annotations

import contextlib
import difflib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, TextIO, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from tuneloop.core.confined import leads_into
from tuneloop.core.errors import UserError, did_you_mean
from tuneloop.core.foreign import file_bytes, lines_of, opened, parse_json, parse_line, parse_yaml

# Context of validation of values that may be another person's; None: Python code made them.
FROM_FILE: dict[str, Any] = {}


class Config(BaseModel):
    """Base of every configuration record: frozen, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)


def as_list(value: object) -> object:
    """For a field's validator: one text, as the command line gives it, is a list of one."""
    return [value] if isinstance(value, str) else value


C = TypeVar("C", bound=Config)


def home() -> Path:
    """The user's home folder; of a user without one, as in some containers, a folder among the temporary files."""
    try:
        return Path.home()
    except RuntimeError:
        user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
        return Path(tempfile.gettempdir()) / f"tuneloop-{user}"


def cache_folder() -> Path:
    """Where converted models and what was fetched are kept: `TUNELOOP_CACHE`, else `~/.cache/tuneloop`."""
    root = os.environ.get("TUNELOOP_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or home() / ".cache") / "tuneloop"
    return Path(root)


def write_text(path: Path | str, text: str) -> None:
    """Write a file so that it is complete or not there at all: a temporary file, fsync, rename."""
    write_bytes(path, text.encode("utf-8", errors="surrogatepass"))


def write_bytes(path: Path | str, data: bytes) -> None:
    """`write_text` for bytes; UserError: the folder can't be written, or the disk is full. Then the old file stays."""
    with replacing(path) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` when the block has ended: a temporary file, fsync, rename.

    UserError: the folder can't be written, or the disk is full. Then the old file stays.
    """
    path = Path(path)
    with user_errors_of_the_disk(path):
        make_folder(path.parent)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb", 1 << 20) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, _mode_in(path.parent))
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        sync_folder(path.parent)


def make_folder(folder: Path, mode: int = 0o777) -> None:
    """Make a folder and those above it, where they are missing; in a private folder all are private."""
    if not folder.is_dir():
        make_folder(folder.parent, mode)
        folder.mkdir(mode if not _is_private(folder.parent) else 0o700, exist_ok=True)


def make_private(folder: Path, names: Sequence[str]) -> int:
    """Make a folder that only its owner may enter, and take all rights of others from what is in it.

    Folders that belong to all or to a person as a whole (of temporary files, a home) stay as they are. Returns how many
    files and folders others had rights to.

    Args:
        names: patterns of what is meant in it; with a slash at the end, with all that is below.
    """
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(0o700, exist_ok=True)
    shared = folder.resolve() in (home(), Path(folder.anchor)) or folder.stat().st_mode & stat.S_ISVTX
    places = [] if shared else [folder]
    for name in names:
        for path in folder.glob(name.rstrip("/")):
            places += [path, *(path.rglob("*") if name.endswith("/") else ())]
    changed = 0
    for path in places:
        with contextlib.suppress(OSError):  # another user's, or deleted
            mode = path.lstat().st_mode
            if not stat.S_ISLNK(mode) and mode & 0o077:
                path.chmod(stat.S_IMODE(mode) & ~0o077)
                changed += 1
    return changed


def _is_private(folder: Path) -> bool:
    return not folder.stat().st_mode & 0o077


def _mode_in(folder: Path) -> int:
    if _is_private(folder):
        return 0o600  # of a new file there
    umask = os.umask(0o077)
    os.umask(umask)
    return 0o666 & ~umask


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable. Windows opens no folders; its file system writes renames ahead."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def user_errors_of_the_disk(path: Path | str) -> Iterator[None]:
    """Turn the operating system's refusals about `path` into a `UserError` with a next step."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, path) from error


def disk_error(error: OSError, path: Path | str) -> UserError:
    """What the operating system refuses, for its user; `path` is named where the error names none."""
    path = str(error.filename or path)
    option = "TUNELOOP_CACHE" if Path(path).is_relative_to(cache_folder()) else "output_dir"
    other = f"choose another folder with {option}=FOLDER"
    rights = f"choose a folder you may write with {option}=FOLDER, or change its permissions"
    steps = {
        errno.ENOSPC: "free some space on that disk, then run the same command again: it continues",
        errno.EDQUOT: "free some space on that disk, then run the same command again: it continues",
        errno.EACCES: rights, errno.EPERM: rights,
        errno.EROFS: f"that file system is read-only: {other}",
        errno.ENOENT: "check the path",
        errno.ENAMETOOLONG: "check the path",
        errno.EISDIR: "check the path: a file is needed there",
        errno.EINVAL: "put a plain file there: no pipe, no device",
        errno.ELOOP: "put the file itself there: links are not followed",
        errno.ENOTDIR: f"a part of that path is a file: {other}",
        errno.EEXIST: f"a file is where a folder is needed: {other}",
    }  # fmt: skip
    step = steps.get(error.errno or 0, "check the disk and the permissions")
    return UserError(f"Can't write or read: {error.strerror or error}", where=path[:200], next_step=step)


def write_json(path: Path | str, value: Any) -> None:
    """Write a JSON file atomically, indented, keys in the order given, NaN as null."""
    write_text(path, json.dumps(plain(value), ensure_ascii=False, indent=2) + "\n")


def write_jsonl(path: Path | str, records: Iterable[Any]) -> None:
    """Write JSON Lines atomically, one record a line."""
    lines = (json.dumps(plain(r), ensure_ascii=False, separators=(", ", ": ")) + "\n" for r in records)
    write_text(path, "".join(lines))


def write_yaml(path: Path | str, value: Any) -> None:
    """Write a YAML file atomically, keys in the order given."""
    write_text(path, yaml.safe_dump(plain(value), sort_keys=False, allow_unicode=True, width=100))


def plain_cell(value: Any) -> Any:
    """A value of a CSV file as a spreadsheet may open it: a text that it would compute gets an apostrophe in front.

    Spreadsheets take a cell that begins with `=`, `+`, `-`, `@`, a tab or a carriage return for a formula, spaces
    before it left out. Numbers stay, those in texts too. A text that began with apostrophes and one of these gets one
    more, so that `unquoted_cell` gives every text back.
    """
    is_formula = isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value)
    return f"'{value}" if is_formula else value


def unquoted_cell(text: str) -> str:
    """The text of a cell before `plain_cell`."""
    quoted = text.startswith("'") and _FORMULA.match(text[1:]) and not _NUMBER.fullmatch(text[1:])
    return text[1:] if quoted else text


_FORMULA = re.compile(r"'*\s*[=+\-@\t\r]|\s*[\t\r]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def plain(value: Any) -> Any:
    """Records to dictionaries, NaN and infinities to None: what strict JSON can hold."""
    if hasattr(value, "to_json"):
        return plain(value.to_json())
    if isinstance(value, BaseModel):
        return plain(value.model_dump(mode="json"))
    if hasattr(value, "__dataclass_fields__"):
        fields = value.__dataclass_fields__.items()
        return {name: plain(getattr(value, name)) for name, field in fields if field.metadata.get("written", True)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and value - value != 0.0:  # NaN or infinite
        return None
    return value


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping by keys as on the command line: `train.epochs`."""
    values: dict[str, Any] = {}
    for key, value in tree.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return values


def inside(folder: Path, name: str) -> Path:
    """A file or folder that a manifest, perhaps another person's, names; UserError: outside `folder`, by links too."""
    path = folder / name
    try:
        within = leads_into(path, [folder]) and path.resolve() != folder.resolve()
    except (OSError, ValueError, RuntimeError):  # a name too long, a null byte, links in a circle
        within = False
    if not within:
        message = f"A file outside its folder is named: {name!r:.200}"
        raise UserError(message, where=str(folder), next_step="correct the name")
    return path


def nearest_path(path: Path | str) -> str:
    """What to do about a path that does not exist: the name nearest to it in its folder, where there is one."""
    path = Path(path)
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist: check the path"
    names = sorted(p.name for p in path.parent.iterdir() if path.name.startswith(".") or not p.name.startswith("."))
    return did_you_mean(path.name, names, "check the path", shown=path.parent.joinpath)


def read_json(path: Path | str, *, below: Path | None = None) -> Any:
    """Read a JSON file that tuneloop wrote; UserError: it is missing or damaged. `below`: see `descriptor_of`."""
    try:
        return parse_json(file_bytes(path, "json", below=below).decode("utf-8"))
    except (FileNotFoundError, ValueError) as error:
        raise _unreadable(error, str(path)) from None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EINVAL):
            raise UserError(
                f"It is not read: {error.strerror}", where=str(path), next_step="look at the file"
            ) from None
        raise


def _unreadable(error: Exception, where: str) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError("No such file", where=where, next_step="check the path")
    message = f"Not valid JSON: {_odd_value(error)}"
    if isinstance(error, UnicodeDecodeError):
        message = f"Not UTF-8: {error.reason}"
    return UserError(message, where=where, next_step="delete the file and run its stage again")


def read_json_object(path: Path | str, *, below: Path | None = None) -> dict[str, Any]:
    """`read_json` of a file that holds an object; UserError: it is missing or damaged, or holds something else."""
    value = read_json(path, below=below)
    if not isinstance(value, dict):
        raise UserError("The file holds no JSON object", where=str(path), next_step="restore the file")
    return value


def read_jsonl(path: Path | str) -> list[Any]:
    """Read a JSON Lines file that tuneloop wrote; UserError: it is missing, or a line is damaged, which is named."""
    records, lines = [], 0
    try:
        for line in lines_of(path):
            lines += 1
            if line.strip():
                records.append(parse_line(line.decode("utf-8", "surrogatepass")))
    except FileNotFoundError as error:
        raise _unreadable(error, str(path)) from None
    except ValueError as error:
        raise _unreadable(error, f"{path}:{lines}") from None
    return records


def drop_torn_line(file: Path) -> None:
    """Cut off a last line that a killed process has not finished."""
    with file.open("r+b") as handle:
        start = handle.seek(0, os.SEEK_END)
        while start:
            size = min(start, 1 << 16)
            start = handle.seek(start - size)
            if (end := handle.read(size).rfind(b"\n")) >= 0:
                start += end + 1
                break
        handle.truncate(start)


def read_yaml(path: Path | str, kind: str = "recipe", *, below: Path | None = None) -> dict[str, Any]:
    """Read a YAML mapping; UserError: the file is missing, is no YAML, or holds no mapping.

    Args:
        kind: it is meant to be, for messages; `below`: see `descriptor_of`.
    """
    path, recipe = Path(path), kind == "recipe"
    where = str(path)
    try:
        value = parse_yaml(file_bytes(path, "yaml", below=below).decode("utf-8"))
    except FileNotFoundError:
        names = [other.name for other in path.parent.glob("*.y*ml")]
        step = "`tuneloop init FILE` writes one for your data" if recipe else "check the path"
        step = did_you_mean(path.name, names, step, shown=path.parent.joinpath)
        raise UserError(f"No such {kind}", where=where, next_step=step) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else where
        reason, step = getattr(error, "problem", None) or error, "correct that line (values with a colon need quotes)"
        raise UserError(f"Not valid YAML: {reason}", where=where, next_step=step) from None
    except OSError as error:
        raise UserError(f"Can't read the {kind}: {error.strerror}", where=where, next_step="check the path") from None
    except (ValueError, RecursionError) as error:
        reason = _odd_value(error)
        raise UserError(f"Can't read the {kind}: {reason}", where=where, next_step="correct that value") from None
    if not isinstance(value, dict):
        step = "`tuneloop init FILE` writes one for your examples" if recipe else "write it as `key: value` lines"
        raise UserError(f"A {kind} is a mapping of keys to values", where=where, next_step=step)
    return value


def build_config(
    cls: type[C],
    values: Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    aliases: Mapping[str, str] = MappingProxyType({}),
    where: str = "",
) -> C:
    """Make a config record of a recipe's values and `key=value` overrides.

    UserError: an unknown key (the nearest valid one is offered), a bad value, a bad override.

    Args:
        values: the recipe, nested or with dotted keys.
        overrides: strings such as `train.learning_rate=1e-4`; values are read as YAML.
        aliases: other names for dotted keys (`{"learning_rate": "train.learning_rate"}`).
        where: the file that the values came from, for errors.
    """
    tree: dict[str, Any] = {}
    for key, value in values.items():
        _set(tree, aliases.get(str(key), str(key)), value, cls, where)
    for text in overrides:
        key, sign, raw = text.partition("=")
        key = key.strip().lstrip("-")
        if not sign or not key:
            step = "write it as key=value, as in train.epochs=2"
            raise UserError(f"Not a key=value setting: {text!r}", next_step=step)
        key = aliases.get(key, key)
        try:
            value = _setting(cls, key, raw)
        except yaml.YAMLError:
            value = raw
        except (ValueError, RecursionError) as error:
            message, location = (
                f"Can't read the value of {key}: {_odd_value(error)}",
                f"the command line: {raw[:40]} ...",
            )
            raise UserError(message, where=location, next_step=f"set {key}=... to a valid value") from None
        _set(tree, key, value, cls, "the command line")
    try:
        return cls.model_validate(tree, context=FROM_FILE)
    except ValidationError as error:
        raise _config_error(cls, error, _place_of(error, overrides, aliases, where)) from None


def _place_of(error: ValidationError, overrides: Sequence[str], aliases: Mapping[str, str], where: str) -> str:
    """Where the key that an error is about was set: the command line, or the recipe."""
    key = ".".join(str(part) for part in error.errors(include_url=False)[0]["loc"])
    keys = [text.partition("=")[0].strip().lstrip("-") for text in overrides]
    for name in (aliases.get(name, name) for name in keys):
        if key and (name == key or name.startswith(f"{key}.") or key.startswith(f"{name}.")):
            return "the command line"
    return where


def _odd_value(error: Exception) -> str:
    """Why YAML or JSON can't be read that has no syntax error."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return "a number of thousands of digits" if "integer string conversion" in str(error) else str(error)


def _setting(cls: type[BaseModel], key: str, raw: str) -> Any:
    """A string where the dotted `key` holds one, as templates like `Queue: {queue}` are no YAML; else a YAML value."""
    kind: Any = cls
    for part in key.split("."):
        info = kind.model_fields.get(part) if isinstance(kind, type) and issubclass(kind, BaseModel) else None
        kind = info and info.annotation
    if kind in (str, str | None):
        if raw.strip() in ("", "null", "~"):
            return None
        quoted = len(raw) > 1 and raw[0] == raw[-1] and raw[0] in "\"'"
        return str(parse_yaml(raw)) if quoted else raw
    try:  # unlike in plain YAML 1.1, `5e-4` is a number
        return float(raw) if "e" in raw.lower() and not raw.lower().startswith("0x") else parse_yaml(raw)
    except ValueError:
        return parse_yaml(raw)


def _set(tree: dict[str, Any], key: str, value: Any, cls: type[Config], where: str) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        node = tree.setdefault(parent, {})
        if not isinstance(node, dict):
            raise UserError(f"{parent!r} has no keys", where=where, next_step=_nearest(cls, key))
        tree = node
    if isinstance(value, Mapping) and isinstance(tree.get(last), dict):
        tree[last].update(value)
    else:
        tree[last] = dict(value) if isinstance(value, Mapping) else value


def config_keys(cls: type[BaseModel], prefix: str = "") -> list[str]:
    """All dotted keys of a config record, sections first."""
    keys = []
    for name, info in cls.model_fields.items():
        keys.append(prefix + name)
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            keys += config_keys(info.annotation, f"{prefix}{name}.")
    return keys


def _nearest(cls: type[BaseModel], key: str) -> str:
    keys = config_keys(cls)
    near = [k for k in keys if k.split(".")[-1] == key.split(".")[-1]]  # the last part is right and the section wrong
    if not near:
        near = difflib.get_close_matches(key, keys, 1, 0.5)
    if not near:
        last = {k.split(".")[-1]: k for k in reversed(keys)}
        near = [last[name] for name in difflib.get_close_matches(key.split(".")[-1], list(last), 1, 0.6)]
    hint = "`tuneloop schema` lists all keys"
    return f"did you mean {near[0]}?  ({hint})" if near else hint


def _config_error(cls: type[Config], error: ValidationError, where: str) -> UserError:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return UserError(f"Unknown key {key!r}", where=where, next_step=_nearest(cls, key))
    if first["type"] == "missing":
        return UserError(f"Missing key {key!r}", where=where, next_step=f"set {key}=...")
    message = first["msg"].removeprefix("Value error, ")
    value, text = first.get("input"), ""
    if isinstance(value, Mapping) and first["type"] == "value_error":  # settings that don't go together
        return UserError(message, where=where or key, next_step="change one of the settings that it names")
    if isinstance(value, str | int | float | bool | type(None)):
        try:
            text = repr(value)
        except ValueError:
            text = "a number of thousands of digits"
        text = f", got {text}" if len(text) <= 80 else f", got {text[:80]}... ({len(text):,} characters)"
    problem = f"Bad value for {key!r}: {message}{text}"
    return UserError(problem, where=where, next_step=f"set {key}=... to a valid value")


def sha256_file(path: Path | str) -> str:
    """Hex SHA-256 of a plain file's bytes. Raises OSError; a pipe or a device is refused, which may never end."""
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # it is a buffered reader


def content_hash(value: Any) -> str:
    """Hex SHA-256 of a JSON-like value, independent of key order."""
    text = json.dumps(plain(value), ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()


def folder_holder(folder: Path | str) -> str:
    """The process that holds a folder by `lock_folder`, as `pid 123`; empty: none does."""
    with contextlib.suppress(FileNotFoundError), (Path(folder) / ".lock").open("r+") as file:
        if not try_lock(file.fileno()):
            return file.read().strip() or "unknown"
    return ""


def _locked_file(path: Path, waiting: Callable[[str], None] | None, instead: str) -> TextIO:
    """The open lock file, held by this process. Where its holder removes it while others wait, they take a new one."""
    announced = False
    while True:
        make_folder(path.parent)
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, _mode_in(path.parent)), "a+")
        if not try_lock(file.fileno()):
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            if waiting is None:
                message = f"Another tuneloop process ({holder}) is working in this folder"
                step = f"wait for it, stop it, or choose another folder: {instead}"
                raise UserError(message, where=str(path.parent), next_step=step)
            if not announced:
                waiting(holder)
                announced = True
            time.sleep(0.2)
            continue
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


@contextlib.contextmanager
def lock_folder(
    folder: Path | str,
    *,
    minor: Collection[str] = (),
    waiting: Callable[[str], None] | None = None,
    instead: str = "output_dir=FOLDER, or --out FOLDER",
) -> Iterator[None]:
    """Hold a folder for this process; the operating system lets go when the process dies.

    A folder that was made for this is deleted when the work fails before anything is in it.

    Args:
        minor: names of files that are no reason to keep it.
        waiting: where another process holds it, wait until it lets go, and call this function once with who that is
            ("pid 123"); default: UserError at once.
        instead: what names another folder, for that error.
    """
    path = Path(folder) / ".lock"
    made = [parent for parent in (path.parent, path.parent.parent) if not parent.exists()]
    with user_errors_of_the_disk(path):
        file = _locked_file(path, waiting, instead)
    try:
        file.seek(0)
        file.truncate()
        file.write(f"pid {os.getpid()}")
        file.flush()
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # the work may have removed the folder itself
            left = list(path.parent.iterdir()) if path.parent.exists() else []
            if {location.name for location in left} <= {path.name, *minor}:
                for entry in left if made else ():
                    entry.unlink()
                for entry in made:
                    if entry.exists():
                        entry.rmdir()  # of a parent only if nothing else has come into it
        raise
    finally:
        file.close()


def remove_locked(folder: Path) -> None:
    """Remove a folder that this process holds by `lock_folder`: its lock last, so that no other process begins."""
    for path in [path for path in folder.iterdir() if path.name != ".lock"]:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    (folder / ".lock").unlink()
    with contextlib.suppress(OSError):  # another process has taken it since
        folder.rmdir()


# Windows locks bytes, and no other process can read these: one far behind the end of the file is taken.
FAR = 1 << 30
PAUSE = 0.05  # seconds between two attempts, where the system does not wait itself


def try_lock(descriptor: int) -> bool:
    """Lock an open file for this process; False: another one has it."""
    fcntl, msvcrt = _system()
    if fcntl is None:
        return _try_bytes(msvcrt, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_for_lock(descriptor: int) -> None:
    """Lock an open file for this process, when no other one has it any more."""
    fcntl, _ = _system()
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return
    while not try_lock(descriptor):
        time.sleep(PAUSE)


def _system() -> tuple[Any, Any]:
    """The module that locks on this system: `fcntl`, or `msvcrt` of Windows."""
    try:
        import fcntl
    except ModuleNotFoundError:
        import msvcrt

        return None, msvcrt
    return fcntl, None


def _try_bytes(msvcrt: Any, descriptor: int) -> bool:
    offset = os.lseek(descriptor, 0, os.SEEK_CUR)
    os.lseek(descriptor, FAR, os.SEEK_SET)
    try:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except OSError:
        return False
    finally:
        os.lseek(descriptor, offset, os.SEEK_SET)
    return True
