"""A command that is killed (SIGKILL) before writes evenly spread over its work, and given again; one JSON line a kill.

    python killed_command.py FOLDER MOMENTS WORD...      # FOLDER: what the command works in; it is copied for each try

A write is a rename, a flush to the disk, a deletion or a statement of SQLite that changes something. What is left in the
end is compared with that of a command that ran in one go: each value of each file, but for those in which two such
commands differ (times, processes). It forks, so imports count once, and it is a program of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import sqlite3
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy  # noqa: F401  # what commands import once is here for all of them
import torch

WRITES = ("fsync", "replace", "rename", "unlink", "ftruncate", "link")
CHANGES = ("INSERT", "UPDATE", "DELETE", "COMMIT", "CREATE")
COUNTERS = ("place", "last")  # which may leave out numbers
APART = (".lock", ".html", ".log", "-shm", "-wal", ".tmp", ".pyc")  # endings of what is not compared


def run(arguments: list[str], folder: Path, die_before: int) -> tuple[int, int]:
    """Run the command in a child; its exit status (-9: it was killed) and how many writes it came to."""
    reader, writer = os.pipe()
    if not (child := os.fork()):
        os.close(reader)
        os.chdir(folder)
        os.environ["TUNELOOP_LOG_HEADS"] = os.devnull
        with open(folder.with_suffix(".log"), "ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        status = 3
        try:
            count_writes(die_before, writer)
            status = main_of(arguments)()
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(status)
    os.close(writer)
    with open(reader, "rb") as pipe:
        count = len(pipe.read())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), count


def main_of(text: list[str]) -> Callable[[], int]:
    """The command that words stand for; `call NAME`: a function of `killed_jobs`."""
    if text[0] == "call":
        import killed_jobs

        function: Callable[[], int] = getattr(killed_jobs, text[1])
        return function
    from tuneloop.cli.main import main

    return lambda: main(text)


def count_writes(die_before: int, pipe: int) -> None:
    """Write a byte into a pipe for each write of this process, which dies before the one of this number."""
    me, left, write = os.getpid(), die_before, os.write

    def note() -> None:
        nonlocal left
        if os.getpid() == me:  # a child of the command is not counted
            left -= 1
            if left == 0:
                os.kill(me, signal.SIGKILL)
            write(pipe, b".")

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            note()
            return function(*arguments, **options)

        return call

    for name in WRITES:
        setattr(os, name, counted(getattr(os, name)))

    class Counted(sqlite3.Connection):
        def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
            if sql.lstrip().upper().startswith(CHANGES):
                note()
            return super().execute(sql, *arguments)

    connect = sqlite3.connect
    sqlite3.connect = lambda *arguments, **options: connect(*arguments, **{"factory": Counted, **options})  # type: ignore[assignment]


def values(folder: Path) -> dict[str, Any]:
    """Each value in the files of a folder, by its place."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or name.endswith(APART):
            continue
        data = path.read_bytes()
        if data.startswith(b"SQLite format 3\0"):
            found |= {f"{name}:{path}": value for path, value in rows_of(path)}
            continue
        try:
            whole = [json.loads(line) for line in ([data] if path.suffix == ".json" else data.splitlines())]
        except ValueError:
            whole = [hashlib.sha256(data).hexdigest()]
        found |= {f"{name}:{path}": value for path, value in parts(whole, "")}
    return found


def parts(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The plain values in a JSON value."""
    if isinstance(value, dict | list) and value:
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from parts(item, f"{path}/{key}")
    else:
        yield path, value


def is_time(path: str) -> bool:
    """Whether a value says how long something took, how fast or with how much memory, or a sentence may: two runs may
    agree on it by chance."""
    if "words" in path or path.endswith("_gib"):
        return True
    name = path.rpartition("/")[2]
    return any(measure in name for measure in ("second", "minutes", "speed")) or name.endswith(("_ms", "usd", "_usd"))


def rows_of(path: Path) -> Iterator[tuple[str, Any]]:
    with contextlib.closing(sqlite3.connect(path)) as base:
        tables = [name for (name,) in base.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY 1")]
        for table in tables:
            names = [row[1] for row in base.execute(f'PRAGMA table_info("{table}")') if row[1] not in COUNTERS]
            columns = ", ".join(f'"{name}"' for name in names)
            for row in base.execute(f'SELECT {columns} FROM "{table}" ORDER BY 1'):
                yield f"{table}/{row[0]}", row


def main(folder: Path, moments: int, arguments: list[str]) -> None:
    def fresh(name: str) -> Path:
        path = folder.with_name(f"{folder.name}-{name}")
        shutil.rmtree(path, ignore_errors=True)
        path = Path(shutil.copytree(folder, path))
        path.with_suffix(".log").unlink(missing_ok=True)
        return path

    wholes = []
    for name in ("first", "second"):
        key = fresh(name)
        status, total = run(arguments, key, 0)
        time.sleep(1)  # times in whole seconds are not the same in both by chance
        assert status in (0, 1), key.with_suffix(".log").read_text()
        wholes.append(values(key))
    first, second = wholes
    steady = {
        location
        for location in first.keys() & second.keys()
        if first[location] == second[location] and not is_time(location)
    }
    loose = {location.partition(":")[0] for location in first.keys() | second.keys()} - {
        p.partition(":")[0] for p in steady
    }
    print(json.dumps({"writes": total, "compared": len(steady), "not_compared": sorted(loose)}), flush=True)
    for number in range(moments):
        moment = 1 + number * (total - 1) // max(moments - 1, 1)
        key = fresh("killed")
        killed, _ = run(arguments, key, moment)
        again, _ = run(arguments, key, 0)
        left = values(key)
        wrong = sorted(item for item in steady if left.get(item, "missing") != first[item])
        more = sorted(
            {item.partition(":")[0] for item in left} - {p.partition(":")[0] for p in first.keys() | second.keys()}
        )
        halves = len([path for path in key.rglob("*.tmp")])
        print(
            json.dumps(
                {
                    "moment": moment,
                    "killed": killed == -9,
                    "status": again == status,
                    "wrong": wrong[:5],
                    "more": more,
                    "tmp": halves,
                }
            ),
            flush=True,
        )
        if not (killed == -9 and again == status) or wrong or more:
            print(key.with_suffix(".log").read_text()[-600:], file=sys.stderr)


if __name__ == "__main__":
    torch.set_num_threads(1)
    import tuneloop.cli.main
    import tuneloop.imports.importing
    import tuneloop.pipeline.run
    import tuneloop.release.export  # noqa: F401

    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]), sys.argv[3:])
