"""Processes that end after the one that started them, however it ended. A process looks who its parent is: Linux's
signal (`PR_SET_PDEATHSIG`) comes when the thread that has started the process ends; other systems have none."""

from __future__ import annotations

import os
import signal
import threading
import time

PARENT = "TUNELOOP_PARENT"  # variable of the environment: id of the process that a tuneloop command ends with
LOOK = 0.5  # seconds
GRACE = 5.0  # seconds that a process has to end in order


def environment_of_child() -> dict[str, str]:
    """The environment of a tuneloop command that is to end with this process."""
    return {**os.environ, PARENT: str(os.getpid())}


def end_with_parent() -> None:
    """End this process with the one that its environment names; see `end_with`. Its own children do not inherit it."""
    parent = os.environ.pop(PARENT, "")
    if parent.isdecimal():
        end_with(int(parent))


def end_with(parent: int) -> None:
    """End this process when another one is not its parent any more: by SIGTERM, and after `GRACE` by SIGKILL."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))

    threading.Thread(target=watch, name="parent", daemon=True).start()
