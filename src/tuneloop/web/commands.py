"""Commands that a page runs as a terminal would: in processes of their own, so that MLflow or numpy never stay here."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tuneloop.core.confined import PAGE, confining, leads_into
from tuneloop.core.errors import UserError
from tuneloop.core.foreign import parse_json
from tuneloop.core.parent import environment_of_child
from tuneloop.web.sources import Sources

NOTHING = subprocess.DEVNULL
WITHIN = 60.0  # seconds that an action may take while someone waits
REGISTRY_FILE = "mlflow.db"
_lock = threading.Lock()


def command_line(arguments: Sequence[str]) -> str:
    """As it is typed."""
    return shlex.join(("tuneloop", *arguments))


def workplace(sources: Sources, near: Path) -> Path:
    """The folder in which commands about something are run: the nearest one above it with a registry."""
    for folder in [near.resolve(), *near.resolve().parents]:
        if (folder / REGISTRY_FILE).is_file() and leads_into(folder, sources.index.folders):
            return folder
    return sources.index.folders[0].resolve()


def run_words(arguments: Sequence[str], folder: Path, *, within: float = WITHIN) -> tuple[int, dict[str, Any]]:
    """Run a tuneloop command in a folder; returns its exit status and the object that it printed.

    Raises UserError: it was refused, in its own words, or has not ended within so many seconds: it continues then.
    """
    command = [sys.executable, "-m", "tuneloop", *arguments, "--json", "-q"]
    own = environment_of_child() | confining(PAGE)
    process = subprocess.Popen(
        command, cwd=folder, env=own, stdin=NOTHING, stdout=subprocess.PIPE, stderr=NOTHING, start_new_session=True
    )
    try:
        out, _ = process.communicate(timeout=within)
    except subprocess.TimeoutExpired:
        threading.Thread(target=process.communicate, daemon=True).start()
        message = f"`{command_line(arguments)}` still works after {within:g} s"
        raise UserError(message, next_step="load the page again in a while: it shows what came of it") from None
    record: Any = {}
    with suppress(ValueError, IndexError):
        record = parse_json(out.decode("utf-8", "replace").strip().splitlines()[-1])
    record = record if isinstance(record, dict) else {}
    if isinstance(error := record.get("error"), dict):
        raise UserError(str(error.get("what")), where=str(error.get("where") or ""), next_step=error.get("next") or "")
    if not record or process.returncode not in (0, 1, 3):
        raise UserError(
            f"`{command_line(arguments)}` ended with {process.returncode}", next_step="run it in a terminal"
        )
    return process.returncode, record


@dataclass(frozen=True)
class CommandReading:
    """What a command that only reads printed last.

    Args:
        record: empty before its first end; `status`: its exit status.
        fault: why there is none.
        busy: it runs again, since what it reads has changed.
    """

    record: dict[str, Any]
    status: int = 0
    fault: UserError | None = None
    busy: bool = False
    stamp: object = None


_readings: dict[tuple[str, ...], CommandReading] = {}
KEPT = 64  # readings


def reading(arguments: Sequence[str], folder: Path, stamp: object, *, wait: float = 0.05) -> CommandReading:
    """What a command prints, from the last time that it ran; it runs again in the background where the stamp differs.

    Args:
        stamp: of what it reads, as times and sizes of files.
        wait: seconds in which it may end before the page is sent.
    """
    key = (str(folder), *arguments)
    with _lock:
        last = _readings.get(key, CommandReading({}))
        due = not last.busy and (last.stamp != stamp or last == CommandReading({}))
        if due:
            while len(_readings) >= KEPT:
                _readings.pop(next(iter(_readings)))
            _readings[key] = replace(last, busy=True)
    if due:
        threading.Thread(target=_read, args=(key, arguments, folder, stamp), daemon=True).start()
    until = time.monotonic() + wait
    while _readings.get(key, last).busy and time.monotonic() < until:
        time.sleep(0.01)
    return _readings.get(key, last)


def _read(key: tuple[str, ...], arguments: Sequence[str], folder: Path, stamp: object) -> None:
    try:
        status, record = run_words(arguments, folder, within=300)
        result = CommandReading(record, status, stamp=stamp)
    except UserError as error:
        result = CommandReading({}, fault=error, stamp=stamp)
    except OSError as error:
        result = CommandReading({}, fault=UserError(f"The command can't be run: {error}"), stamp=stamp)
    with _lock:
        _readings[key] = result


def stamp_of(*paths: Path) -> tuple[object, ...]:
    """Times and sizes of files, of a SQLite file also of its log; they change as the files do."""
    stamps: list[object] = []
    for path in (file for store in paths for file in (store, Path(f"{store}-wal"))):
        with suppress(OSError):
            status = os.stat(path)
            stamps += [status.st_mtime_ns, status.st_size]
    return tuple(stamps)
