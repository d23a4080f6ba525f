"""A lock on an open file, by the operating system, which lets go when the file is closed or its process dies.

Everywhere it is advisory: what else reads and writes the file is not hindered.
"""

from __future__ import annotations

import os
import time
from typing import Any

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
    place = os.lseek(descriptor, 0, os.SEEK_CUR)
    os.lseek(descriptor, FAR, os.SEEK_SET)
    try:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except OSError:
        return False
    finally:
        os.lseek(descriptor, place, os.SEEK_SET)
    return True
