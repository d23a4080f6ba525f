"""What a batch or `predict` has done: an append-only file of lines, which survives the death of its process.

A line that was cut is dropped when the file is opened again. What does not fit on the disk is taken back as a whole.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tuneloop.core.errors import UserError
from tuneloop.core.files import try_lock, user_errors_of_the_disk


@dataclass
class JournalFile:
    """The file, held by this process from `open` to `close`."""

    path: Path
    refusal: UserError  # where another process holds it
    end: int = 0  # bytes of the lines that were read and written
    _descriptor: int = -1
    _torn: bool = False

    def open(self) -> Iterator[bytes]:
        """Take the file, and read its whole lines, of each of which `end` is the place. Read to the end, or `cut`.

        UserError: it can't be read or written, or another process has it.
        """
        with user_errors_of_the_disk(self.path):
            self.close()
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            if not try_lock(self._descriptor):
                raise self.refusal
            self.end, self._torn = 0, False
            with open(self._descriptor, "rb", closefd=False) as file:
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    yield line
                    self.end += len(line)
            self.cut()

    def cut(self) -> None:
        """Drop what follows the lines that were read."""
        os.ftruncate(self._descriptor, self.end)
        self._torn = False

    def append(self, data: bytes) -> int:
        """Write lines at the end, as a whole or not at all (OSError); returns their place when they are on the disk."""
        try:
            if os.write(self._descriptor, data) < len(data):
                raise OSError(errno.ENOSPC, "No space left on device")
            os.fsync(self._descriptor)
        except OSError:
            self._torn = True
            with suppress(OSError):
                self.cut()
            raise
        self.end += len(data)
        return self.end - len(data)

    @property
    def was_changed(self) -> bool:
        """Whether another program has written to the file, or a new one in its place."""
        if self._torn:
            with suppress(OSError):
                self.cut()
        here, there = os.fstat(self._descriptor), os.stat(self.path)
        return not os.path.samestat(here, there) or here.st_size != self.end

    def close(self) -> None:
        """Close the file. Closing it again does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
