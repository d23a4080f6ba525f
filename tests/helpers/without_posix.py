"""Python as tuneloop finds it on Windows, as far as that can be had elsewhere: a process that imports its modules, or runs commands.

    python without_posix.py imports
    python without_posix.py '[["init", "mails.jsonl"], ...]'

Modules of `tuneloop` get no `fcntl`, `resource` or `termios`, an `os` of the name `nt` without what only POSIX has, and a `signal`
without SIGKILL. Libraries see the system as it is. `msvcrt` is a stand-in that locks with `fcntl`; paths stay those of this system.
"""

from __future__ import annotations

import builtins
import fcntl
import importlib
import json
import os
import pkgutil
import signal
import sys
import types
from typing import Any

MISSING = {"fcntl", "resource", "termios", "tty", "pty", "pwd", "grp", "syslog", "posix"}
NOT_ON_WINDOWS = {
    "os": {
        "fork", "forkpty", "pread", "pwrite", "sysconf", "getuid", "geteuid", "getgid", "getegid", "nice", "register_at_fork", "uname",
        "sched_getaffinity", "sched_setaffinity", "killpg", "getpgid", "setsid", "getloadavg", "mkfifo", "fchmod", "fchown", "chown",
        "statvfs", "O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK", "WNOHANG", "wait", "posix_spawn", "openpty", "sync",
    },
    "signal": {"SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGPIPE", "SIGALRM", "alarm", "setitimer", "pthread_kill"},
}  # fmt: skip


class Windowed(types.ModuleType):
    """A module without what Windows lacks."""

    def __init__(self, real: types.ModuleType, missing: set[str], **other: Any) -> None:
        super().__init__(real.__name__)
        self.__dict__.update(_real=real, _missing=missing, **other)

    def __getattr__(self, name: str) -> Any:
        if name in self._missing:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(self._real, name)


class Msvcrt:
    """Locks as Windows does: at the file's place, and refuses by an OSError."""

    LK_NBLCK = 2

    @staticmethod
    def locking(descriptor: int, mode: int, size: int) -> None:
        assert (mode, size) == (Msvcrt.LK_NBLCK, 1)
        assert os.lseek(descriptor, 0, os.SEEK_CUR) >= 1 << 20, "the bytes of the file itself stay readable"
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PermissionError(13, "Permission denied") from None


SEEN: dict[str, Any] = {
    "os": Windowed(os, NOT_ON_WINDOWS["os"], name="nt", supports_dir_fd=frozenset()),
    "signal": Windowed(signal, NOT_ON_WINDOWS["signal"]),
    "msvcrt": Msvcrt,
}
_import = builtins.__import__


def import_(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
    """`import`, for modules of tuneloop as on Windows."""
    if str((globals or {}).get("__name__", "")).partition(".")[0] == "tuneloop":
        if name in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        if name in SEEN and not fromlist:
            return SEEN[name]
    return _import(name, globals, locals, fromlist, level)


def import_all() -> None:
    """Import every module of tuneloop, but programs that end when they are imported."""
    import tuneloop

    for module in pkgutil.walk_packages(tuneloop.__path__, "tuneloop."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    print(sum(name.startswith("tuneloop.") for name in sys.modules))


def main() -> int:
    builtins.__import__ = import_
    if sys.argv[1] == "imports":
        import_all()
        return 0
    from tuneloop.cli.main import main as command

    for arguments in json.loads(sys.argv[1]):
        if (status := command(arguments)) not in (0, 1):
            print(f"{arguments}: {status}", file=sys.stderr)
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
