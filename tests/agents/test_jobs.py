from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from patience import HANG
from tuneloop.agents import jobs
from tuneloop.agents.jobs import ANSWER, LOG, WORKS_ON, Job, cancel_job, job_status, start_job
from tuneloop.core.errors import UserError
from tuneloop.records.record import read_record, write_record

pytestmark = pytest.mark.process


def job_of(folder: Path, code: str) -> subprocess.Popen[bytes]:
    """A process that works on a folder as a job, but does what a test needs."""
    folder.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        start_new_session=True,
        env={**os.environ, WORKS_ON: str(folder.resolve())},
        stdout=(folder / ANSWER).open("wb"),
        stderr=(folder / LOG).open("wb"),
    )
    born = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19]
    write_record(folder / Job.file, Job(command=[], pid=process.pid, born=born, started="2026-01-01T00:00:00+00:00"))
    return process


def wait_for(folder: Path, *states: str) -> str:
    """The state of a job, once it is one of these."""
    until = time.monotonic() + HANG
    while (state := job_status(folder).state) not in states and time.monotonic() < until:
        time.sleep(0.05)
    return state


def test_a_job_that_fails_says_why(tmp_path: Path) -> None:
    run = tmp_path / "run"
    start_job(run, ["run", "missing.csv"], tmp_path, {**os.environ})
    assert wait_for(run, "failed") == "failed"
    status = job_status(run)
    assert status.error and "missing.csv" in json.dumps(status.error)
    assert status.log and status.log[0].startswith("Error: ")


def test_a_running_job_shows_its_latest_line_and_is_not_started_twice(tmp_path: Path) -> None:
    process = job_of(
        tmp_path / "run",
        "import sys, time; print('training: 12/1,075  2/s', file=sys.stderr, flush=True); time.sleep(600)",
    )
    until = time.monotonic() + HANG
    while not (status := job_status(tmp_path / "run")).doing and time.monotonic() < until:
        time.sleep(0.05)
    assert (status.state, status.done, status.total) == ("running", 12, 1075)
    assert start_job(tmp_path / "run", ["run", "other.csv"], tmp_path, {**os.environ}).pid == process.pid
    assert cancel_job(tmp_path / "run").state == "cancelled"
    assert not Path(f"/proc/{process.pid}").exists()


def test_a_job_that_was_killed_is_stopped_and_half_an_answer_is_none(tmp_path: Path) -> None:
    process = job_of(tmp_path / "run", "import os; os.write(1, b'{\"path\": '); os.kill(os.getpid(), 9)")
    process.wait()
    assert job_status(tmp_path / "run").state == "stopped"


def test_another_process_with_the_number_of_the_job_is_not_the_job(tmp_path: Path) -> None:
    process = job_of(tmp_path / "run", "import time; time.sleep(600)")
    job = read_record(Job, tmp_path / "run")
    write_record(tmp_path / "run" / Job.file, job.model_copy(update={"born": "1"}))
    assert job_status(tmp_path / "run").state == "stopped"
    assert cancel_job(tmp_path / "run").state == "stopped"
    assert process.poll() is None
    process.kill()


def test_a_finished_job_has_verdict_and_metrics(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = job_of(run, 'print(\'{"path": "run"}\')')
    process.wait()
    (run / "eval.json").write_text(json.dumps({"words": ["Better."], "metrics": {"accuracy": {"value": 0.9}}}))
    (run / "report.html").write_text("<p>")
    status = job_status(run, "run")
    assert (status.state, status.folder, status.verdict) == ("finished", "run", ["Better."])
    assert status.metrics["accuracy"]["value"] == 0.9 and status.report.endswith("run/report.html")


@pytest.mark.skipif(shutil.which("ps") is None, reason="ps is not installed")
def test_without_proc_ps_tells_the_processes_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "PROCESSES", tmp_path / "none")
    start_job(tmp_path / "run", ["run", "missing.csv"], tmp_path, {**os.environ})
    assert jobs._born(os.getpid()) == jobs._born(os.getpid()) != ""
    assert wait_for(tmp_path / "run", "failed") == "failed"


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No run is in this folder"):
        job_status(tmp_path, "somewhere")
