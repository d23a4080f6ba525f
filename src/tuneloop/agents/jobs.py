"""Runs that an agent starts: each a process of its own, which neither the server nor its client can take along.

`RUN/job.json` names the process, `job.log` has its lines, `job.out` what it answered: whoever knows the folder finds
the job again, also from another server.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from tuneloop.core.errors import UserError
from tuneloop.core.files import user_errors_of_the_disk
from tuneloop.core.foreign import file_bytes, is_file, parse_json, written
from tuneloop.core.parent import PARENT
from tuneloop.records.record import Record, read_record, write_record

LOG, ANSWER = "job.log", "job.out"
WORKS_ON = "TUNELOOP_JOB"  # of the environment: the folder of the run that a process was started for
PROCESSES = Path("/proc")  # where there is none, `ps` answers
STARTS = 5.0  # seconds in which a process has begun
GRACE = 60.0  # seconds in which a run may end its step and save a checkpoint
_PART = re.compile(r"([\d,]+)/([\d,]+)")


class Job(Record, noun="a job", file="job.json", again="start the run again"):
    """`RUN/job.json`: the process that works on a run.

    Args:
        command: its words; `folder`: where it was started.
        pid, born: the process, and when it began as the system counts, so that no other process is taken for it.
        started: in ISO 8601; `cancelled`: whether `run_cancel` ended it.
    """

    command: list[str]
    folder: str = ""
    pid: int
    born: str = ""
    started: str = ""
    cancelled: bool = False


class JobStatus(BaseModel):
    """How far a run is.

    Args:
        folder: of the run; `minutes`: since it was started.
        state: `running`; `finished`; `failed`, with the `error`; `cancelled`; `stopped`: it was killed, or the machine
            was. The same call of `run` continues a run of the last three.
        doing: its latest line; `done`, `total`: the numbers in it, as in `training: 12/75`.
        verdict: what came of it, in sentences; `report`: the page.
    """

    folder: str
    state: Literal["running", "finished", "failed", "cancelled", "stopped"]
    minutes: float = 0.0
    doing: str = ""
    done: float = 0.0
    total: float = 0.0
    log: list[str] = []
    error: dict[str, str] | None = None
    verdict: list[str] = []
    metrics: dict[str, Any] = {}
    report: str = ""


def start_job(folder: Path, arguments: Sequence[str], cwd: Path, environment: dict[str, str]) -> Job:
    """Start `tuneloop WORDS --json` for the run in a folder, or give the job that works in it already.

    Args:
        cwd: the folder in which it is started.
    """
    if is_file(folder / Job.file, below=folder) and lives(job := read_record(Job, folder, below=folder), folder):
        return job
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tuneloop", *arguments, "--json"]
    variables = {key: value for key, value in environment.items() if key != PARENT} | {WORKS_ON: str(folder.resolve())}
    with (
        user_errors_of_the_disk(folder),
        written(folder / ANSWER, below=folder) as answer,
        written(folder / LOG, below=folder) as log,
    ):
        process = subprocess.Popen(
            command, cwd=cwd, env=variables, stdin=subprocess.DEVNULL, stdout=answer, stderr=log, start_new_session=True
        )
    started = datetime.now(UTC).isoformat(timespec="seconds")
    job = Job(command=[*arguments], folder=str(cwd), pid=process.pid, born=_born(process.pid), started=started)
    write_record(folder / Job.file, job)
    until = time.monotonic() + STARTS
    while process.poll() is None and not lives(job, folder) and time.monotonic() < until:
        time.sleep(0.001)  # the system shows a new program's environment a moment after it began
    return job


def job_status(folder: Path, name: str = "", lines: int = 10) -> JobStatus:
    """How far the run in a folder is, whoever has started it.

    Args:
        name: of the folder, as the caller wrote it; `lines`: of the log, the latest ones.

    Raises:
        UserError: there is no run.
    """
    name = name or str(folder)
    if not is_file(folder / Job.file, below=folder):
        if not is_file(folder / "run.json", below=folder):
            raise UserError("No run is in this folder", where=name, next_step="the tool run starts one")
        return JobStatus(folder=name, state="finished", **_outcome(folder))
    job = read_record(Job, folder, below=folder)
    log = _text(folder / LOG).splitlines()[-lines:]
    doing = log[-1] if log else ""
    parts = [float(part.replace(",", "")) for part in match.groups()] if (match := _PART.search(doing)) else [0, 0]
    minutes = (datetime.now(UTC) - datetime.fromisoformat(job.started)).total_seconds() / 60
    now = JobStatus(folder=name, state="running", minutes=round(minutes, 1), doing=doing, log=log)
    if lives(job, folder):
        return now.model_copy(update={"done": parts[0], "total": parts[1]})
    answer = _answer(folder)
    if "error" in answer:
        return now.model_copy(update={"state": "failed", "error": answer["error"], "doing": ""})
    if not answer:
        return now.model_copy(update={"state": "cancelled" if job.cancelled else "stopped", "doing": ""})
    ended = datetime.fromtimestamp((folder / ANSWER).stat().st_mtime, UTC)
    minutes = round((ended - datetime.fromisoformat(job.started)).total_seconds() / 60, 1)
    return now.model_copy(update={"state": "finished", "doing": "", "minutes": minutes, **_outcome(folder)})


def cancel_job(folder: Path, name: str = "") -> JobStatus:
    """End the run in a folder: it saves a checkpoint first where it trains, and is killed after `GRACE` seconds."""
    status = job_status(folder, name)
    if status.state != "running":
        return status
    job = read_record(Job, folder, below=folder)
    write_record(folder / Job.file, job.model_copy(update={"cancelled": True}))
    with suppress(ProcessLookupError):
        os.kill(job.pid, signal.SIGTERM)
    until = time.monotonic() + GRACE
    while lives(job, folder) and time.monotonic() < until:
        time.sleep(0.1)
    if lives(job, folder):
        with suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
    return job_status(folder, name)


def lives(job: Job, folder: Path) -> bool:
    """Whether the very process still works, and was started for the run in this folder by this account.

    `job.json` may be another person's and name any process. The proof is the environment that `start_job` gave it,
    which no one else can write, and of another account's processes no one can read.
    """
    born = _born(job.pid)
    return bool(born) and born == job.born and f"{WORKS_ON}={folder.resolve()}" in _environment(job.pid)


def _environment(pid: int) -> list[str]:
    """The variables that a process of this account was started with; without `/proc` what `ps` shows of them."""
    if (PROCESSES / "self" / "stat").exists():
        with suppress(OSError):
            environment = (PROCESSES / str(pid) / "environ").read_bytes()
            return environment.decode("utf-8", "surrogateescape").rstrip("\0").split("\0")
        return []
    listed = subprocess.run(["ps", "eww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True)
    return listed.stdout.split()


def _born(pid: int) -> str:
    """When a process began, as the system counts; "": there is none, or it has ended and waits for its parent."""
    with suppress(ChildProcessError, AttributeError):
        os.waitpid(pid, os.WNOHANG)  # of our own children
    if (PROCESSES / "self" / "stat").exists():
        fields = _stat(pid).rpartition(")")[2].split()
        return "" if not fields or fields[0] in "ZX" else fields[19]
    listed = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True)
    state, _, began = listed.stdout.strip().partition(" ")
    return "" if state.startswith("Z") else began.strip()


def _stat(pid: int) -> str:
    with suppress(OSError):
        return (PROCESSES / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    return ""


def _answer(folder: Path) -> dict[str, Any]:
    """The object that the command printed; empty: none, or part of one."""
    with suppress(ValueError):
        answer = parse_json(_text(folder / ANSWER) or "{}")
        return answer if isinstance(answer, dict) else {}
    return {}


def _outcome(folder: Path) -> dict[str, Any]:
    """Verdict, metrics and page of a run that is done."""
    evaluation: dict[str, Any] = {}
    with suppress(ValueError):
        evaluation = parse_json(_text(folder / "eval.json") or "{}")
    page = folder / "report.html"
    outcome = {"verdict": evaluation.get("words", []), "metrics": evaluation.get("metrics", {})}
    return {**outcome, "report": str(page) if page.is_file() else ""}


def _text(path: Path) -> str:
    """A file's text; "": it can't be read, or is a link."""
    with suppress(OSError, ValueError):
        return file_bytes(path, "json", below=path.parent).decode("utf-8", "replace")
    return ""
