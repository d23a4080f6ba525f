"""An upgrade of a store that is killed (SIGKILL) before each of its statements; one line a kill: what was left.

    python killed_upgrade.py STORE       # a folder, of which each attempt takes a copy, or a URL: the store itself

It forks, so it is a program of its own: a test's process has threads.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from itertools import count
from pathlib import Path
from typing import Any

from later_stores import LATER, rows

from tuneloop.serving.store import database
from tuneloop.serving.store.store import connect


def killed_at(number: int, path: str) -> bool:
    """Upgrade in a child, which dies before so many statements and renames; whether it did not get to its end."""
    if not (child := os.fork()):
        calls = 0

        def counted(function: Any) -> Any:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **options)

            return call

        for kind in (database.SqliteDatabase, database.PostgresDatabase):
            kind.execute = counted(kind.execute)  # type: ignore[method-assign]
        database.PostgresDatabase.script = counted(database.PostgresDatabase.script)  # type: ignore[method-assign]
        os.replace = counted(os.replace)
        connect(path, steps=LATER).close()
        os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def attempt(directory: str, number: int) -> str:
    """What a kill has left, and whether the next command finds all rows in the latest form."""
    killed = killed_at(number, directory)
    with contextlib.closing(database.open_sqlite(Path(directory) / "store.db", 5.0)) as raw:
        left = raw.version()
    with contextlib.closing(connect(directory, steps=LATER)) as store:
        whole = rows(store) == BEFORE
    backups = [path.name for path in Path(directory).glob("*.backup*")]
    return f"{'killed' if killed else 'ended'} {left} {whole} {backups}"


def attempt_in_postgres(url: str, number: int) -> str:
    """The same; the upgrade is not finished, so that the next attempt finds the first form again."""
    killed = killed_at(number, url)
    with contextlib.closing(database.open_postgres(url, 5.0)) as store:
        return f"{'killed' if killed else 'ended'} {store.version()} {rows(store) == BEFORE} []"


if __name__ == "__main__":
    folder = sys.argv[1]
    known = folder if "://" in folder else str(shutil.copytree(folder, f"{folder}-known"))
    with contextlib.closing(connect(known)) as store:
        BEFORE = rows(store)
    for number in count(1):
        if "://" in folder:
            line = attempt_in_postgres(folder, number)
        else:
            line = attempt(str(shutil.copytree(folder, f"{folder}-{number}")), number)
        print(line, flush=True)
        if line.startswith("ended"):
            break
