"""A Postgres server of the tests' own: in a folder of its own, on a free port of this machine, gone with the tests.

It is Debian's package (`apt-get install postgresql`); where that is missing, tests that need it are skipped. As root it runs
as the user `postgres`, since it refuses root.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from patience import HANG

PASSWORD = "unspeakable"
_NUMBERS = count()


def programs() -> Path | None:
    """Where Postgres is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    elsewhere = shutil.which("initdb")
    return found[-1].parent if found else Path(elsewhere).resolve().parent if elsewhere else None


@dataclass
class Postgres:
    """A server that can be stopped, frozen and killed.

    Args:
        bin: folder of its programs.
        folder: of its data.
        port: on 127.0.0.1.
    """

    bin: Path
    folder: Path
    port: int
    _process: subprocess.Popen[bytes] | None = None

    def begin(self, *text: str) -> subprocess.Popen[bytes]:
        """Begin one of its programs, as its user."""
        user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
        with (self.folder / "log").open("ab") as log:
            text = (str(self.bin / text[0]), *text[1:])
            return subprocess.Popen(text, cwd=self.folder, env=environment, stdout=log, stderr=log, **user)  # type: ignore[call-overload,no-any-return]

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.folder),
            "max_connections": "50",
            "fsync": "off",  # tests kill it, and none cuts the power
        }
        text = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        self._process = self.begin("postgres", "-D", str(self.folder / "data"), "-p", str(self.port), *text)
        until = time.monotonic() + HANG
        while self.begin("pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)).wait():
            assert self._process.poll() is None and time.monotonic() < until, (self.folder / "log").read_text()
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop it, with all of its connections."""
        if self._process is not None:
            self.kill()

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the server and all of its processes; after SIGKILL it can be started again."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        for process in [self._process.pid, *map(int, children)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)
        if number == signal.SIGKILL:
            self._process.wait(HANG)

    def url(self, name: str = "", *, password: str = PASSWORD) -> str:
        """The URL of a store of its own in the server: a schema, which is made here."""
        import psycopg

        name = name or f"s{os.getpid()}_{next(_NUMBERS)}"
        plain = f"postgresql://tuneloop:{password}@127.0.0.1:{self.port}/postgres"
        if password == PASSWORD:
            with psycopg.connect(plain, autocommit=True) as connection:
                connection.execute(f"CREATE SCHEMA IF NOT EXISTS {name}")
        return f"{plain}?options=-csearch_path%3D{name}"

    def execute(self, sql: str, *, url: str = "") -> list[Any]:
        """Run a statement beside tuneloop."""
        import psycopg

        with psycopg.connect(url or self.url("public"), autocommit=True) as connection:
            cursor = connection.execute(sql)
            return cursor.fetchall() if cursor.description else []


@contextlib.contextmanager
def postgres_server() -> Iterator[Postgres]:
    """A server for the time of a block; the test is skipped where Postgres or its driver is not installed."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'tuneloop[postgres]'")
    bin_ = programs()
    if bin_ is None:
        pytest.skip("Postgres is not installed: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="tuneloop-postgres-"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = Postgres(bin_, folder, port)
    try:
        secret = folder / "password"
        secret.write_text(PASSWORD)
        if os.getuid() == 0:
            shutil.chown(folder, "postgres")
            shutil.chown(secret, "postgres")
        # The locale of most servers' databases, whose order of texts is not that of their bytes.
        made = server.begin("initdb", "-D", str(folder / "data"), "-U", "tuneloop", "-A", "scram-sha-256", "--pwfile", str(secret),
                            "-N", "--encoding=UTF8", "--locale-provider=icu", "--icu-locale=en").wait(HANG)  # fmt: skip
        assert made == 0, (folder / "log").read_text()
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
