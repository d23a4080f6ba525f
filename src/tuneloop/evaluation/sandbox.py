"""Run a program that no one has read, such as an answer of a model and its unit tests, in a process that can do little.

Each lock is set where the kernel allows it, and the result says which took: a killed process group; rlimits, wall-clock
time, output, scratch space; namespaces without network and with a read-only file system (root, or unprivileged user
namespaces); Landlock (Linux 5.13); seccomp: no sockets, processes, programs or signals to others (x86-64, arm64); no
capabilities, and another user when started as root; an audit hook, which alone remains on macOS.

It is a fence and no virtual machine. It does not protect from faults of the kernel or of Python, side channels, reading
what Python's and the system's folders hold, an answer that forges the success of the tests in its own process, or
determined code where only rlimits and the audit hook hold; limits are for each program, and several run at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tuneloop.core.errors import UserError
from tuneloop.core.foreign import parse_line

KEPT_OUTPUT = 4_000  # bytes of what a program prints that are kept
_CHILD = Path(__file__).with_name("sandbox_child.py")
_POLL = 0.1  # seconds between looks at the clock and the scratch folder


@dataclass(frozen=True)
class SandboxLimits:
    """What one program may use."""

    seconds: float = 10.0  # of wall-clock time; CPU time is limited to a second more
    memory: int = 1 << 30  # bytes of address space
    disk: int = 64 << 20  # bytes in the scratch folder
    output: int = 16 << 20  # bytes printed; a program that prints more is stopped
    processes: int = 32  # threads and processes, where a user namespace counts them


@dataclass(frozen=True)
class Outcome:
    """How a program ended."""

    # `passed`, `failed` (an error, or it left early), `timeout`, `memory`, `output`, `disk`, or `killed` (a signal)
    status: str
    reason: str  # the error, or the limit; empty when it passed
    output: str  # the first 4,000 bytes that it printed
    seconds: float
    protections: tuple[str, ...]  # the locks that took

    @property
    def passed(self) -> bool:
        """Whether it ran to its end."""
        return self.status == "passed"


def run_program(
    candidates: str | Sequence[str], limits: SandboxLimits | None = None, *, skip: Collection[str] = ()
) -> Outcome:
    """Run a Python program in the sandbox; see the module for what that keeps out. `candidates`: the program's text, or
    several, of which the first that compiles is run; `skip`: locks to leave off (`namespaces`, `privileges`,
    `landlock`, `seccomp`, `audit`), to test the others. Raises UserError: no such sandbox on this system."""
    if os.name != "posix":
        raise UserError("Programs can be run only on Linux and macOS", next_step="evaluate.code=off, or use WSL")
    limits = limits or SandboxLimits()
    with tempfile.TemporaryDirectory(prefix="tuneloop-sandbox-", ignore_cleanup_errors=True) as scratch:
        reading, writing = os.pipe()
        key = secrets.token_hex(16)
        request = {
            "candidates": [candidates] if isinstance(candidates, str) else list(candidates),
            "scratch": scratch, "reports": writing, "key": key, "skip": list(skip), "seconds": limits.seconds,
            "memory": limits.memory, "disk": limits.disk, "processes": limits.processes,
        }  # fmt: skip
        started = time.monotonic()
        with open(reading, "rb", buffering=0) as reports:
            try:
                process = subprocess.Popen(
                    [sys.executable, "-I", "-X", "utf8", str(_CHILD)],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=scratch,
                    env={"PATH": os.defpath, "HOME": scratch, "TMPDIR": scratch, "OMP_NUM_THREADS": "1",
                         "OPENBLAS_NUM_THREADS": "1", "LANG": "C.UTF-8"},
                    start_new_session=True, pass_fds=(writing,),
                )  # fmt: skip
            finally:
                os.close(writing)
            try:
                return _watch(process, request, reports, limits, started)
            finally:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                assert process.stdout
                process.stdout.close()


def _watch(
    process: subprocess.Popen[bytes], request: dict[str, Any], reports: IO[bytes], limits: SandboxLimits, started: float
) -> Outcome:
    assert process.stdin and process.stdout
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps(request).encode())
        process.stdin.close()
    printed, reported, size = b"", b"", 0
    stopped: tuple[str, str] | None = None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        selector.register(reports, selectors.EVENT_READ)
        while selector.get_map() and stopped is None:
            for ready, _ in selector.select(_POLL):
                chunk = os.read(ready.fd, 65536)
                if not chunk:
                    selector.unregister(ready.fileobj)
                elif ready.fileobj is reports:
                    reported = (reported + chunk)[: 1 << 20]
                else:
                    size += len(chunk)
                    printed += chunk[: KEPT_OUTPUT - len(printed)]
            if time.monotonic() - started > limits.seconds:
                stopped = ("timeout", f"it ran for more than {limits.seconds:g} seconds")
            elif size > limits.output:
                stopped = ("output", f"it printed more than {limits.output:,} bytes")
            elif _used(request["scratch"]) > limits.disk:
                stopped = ("disk", f"it wrote more than {limits.disk:,} bytes")
    seconds, ended = time.monotonic() - started, None
    protections: tuple[str, ...] = ()
    for line in reported.splitlines():
        with contextlib.suppress(ValueError):  # the program can write here too, without the key it says nothing
            facts = parse_line(line)
            if isinstance(facts, dict) and "protections" in facts and not protections:
                protections = tuple(map(str, facts["protections"]))
            elif isinstance(facts, dict) and facts.get("key") == request["key"]:
                ended = (str(facts.get("status")), str(facts.get("reason")))
    status, reason = stopped or ended or _silent_end(process)
    return Outcome(status, reason, printed.decode("utf-8", "replace"), seconds, protections)


def _silent_end(process: subprocess.Popen[bytes]) -> tuple[str, str]:
    try:
        code = process.wait(1.0)
    except subprocess.TimeoutExpired:
        return "failed", "it closed its files before its tests had ended"
    if code == -signal.SIGXCPU:
        return "timeout", "it used more CPU time than allowed"
    if code < 0:
        return "killed", f"ended by {signal.Signals(-code).name}"
    return "failed", f"it exits (status {code}) before its tests have ended"


def _used(folder: str) -> int:
    """Bytes in a folder, as far as can be seen (one in a mount namespace looks empty: it limits itself)."""
    total = 0
    with contextlib.suppress(OSError):
        for folder_path, _, files in os.walk(folder):
            for name in files:
                with contextlib.suppress(OSError):
                    total += os.lstat(os.path.join(folder_path, name)).st_size
    return total
