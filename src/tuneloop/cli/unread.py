"""Output whose reader has left, as in `tuneloop prepare FILE | head -1`: the work goes on, and what it prints is dropped.

A command that does nothing but print ends then, with the status that the shell gives to a program that SIGPIPE ends.
"""

from __future__ import annotations

import errno
import io
import os
import sys

UNREAD = 128 + 13  # exit status: SIGPIPE
_GONE = (errno.EPIPE, errno.ECONNRESET, errno.EIO)  # a pipe, a socket, a terminal that was closed
_left: set[int] = set()  # descriptors whose reader has left


class _Output(io.FileIO):
    """A descriptor that takes anything once its reader has left."""

    def write(self, data: object) -> int:
        """Write, or drop what nobody reads."""
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError as error:
            if error.errno not in _GONE:
                raise
        _left.add(self.fileno())
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self.fileno())  # also for what is started from now on
        os.close(nothing)
        return memoryview(data).nbytes  # type: ignore[arg-type]


def drop_unread_output() -> None:
    """From now on, nothing that is printed fails because its reader has left, or was never there."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by who has started us
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            raw = _Output(stream.fileno(), "w", closefd=False)
            unbuffered = isinstance(stream.buffer, io.RawIOBase)  # python -u
            made = io.TextIOWrapper(
                raw if unbuffered else io.BufferedWriter(raw), stream.encoding, stream.errors,
                line_buffering=stream.line_buffering, write_through=stream.write_through,
            )  # fmt: skip
            setattr(sys, name, made)


def stop_if_unread() -> None:
    """End a command that does nothing but print, once nobody reads it.

    Raises:
        SystemExit: with `UNREAD`.
    """
    if 1 in _left:
        raise SystemExit(UNREAD)
