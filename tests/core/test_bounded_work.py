"""What strangers wrote is worked on in processes that end: by time, by memory, with their parent; one caller at most
holds a part of them."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
from bounded_jobs import echo, endless, faulty, huge, loud, process

from patience import HANG
from tuneloop.core import bounded_work
from tuneloop.core.bounded_work import BoundedWork, TooBusy, TooMuchWork, charged_to, then


@pytest.fixture(scope="module")
def work() -> Iterator[BoundedWork]:
    work = BoundedWork(2)
    yield work
    work.stop()


def test_a_job_gets_bytes_and_gives_bytes_back_from_the_same_warm_child(work: BoundedWork) -> None:
    large = os.urandom(1 << 20)
    assert work.run(echo, large, seconds=5) == large and work.run(echo, b"", seconds=5) == b""
    assert int(work.run(process, b"", seconds=5)) != os.getpid()
    assert len({work.run(process, b"", seconds=5) for _ in range(6)}) <= 2
    assert work.run(loud, b"", seconds=5) == b"quiet" and work.run(loud, b"", seconds=5) == b"quiet"


def test_a_child_of_a_large_process_stays(tmp_path: Path) -> None:
    program = tmp_path / "large.py"
    program.write_text(
        "from tuneloop.core.bounded_work import BoundedWork\n"
        "from bounded_jobs import process\n"
        "model = bytearray(b'x') * (600 << 20)\n"
        "work = BoundedWork(1)\n"
        "print(len({work.run(process, b'', seconds=5) for _ in range(4)}))\n"
        "work.stop()\n"
    )
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.stdout.strip() == "1", done.stderr


@pytest.mark.parametrize("job", [endless, huge])
def test_what_takes_too_much_is_ended_and_the_next_job_is_done(work: BoundedWork, job: object) -> None:
    with pytest.raises(TooMuchWork):
        work.run(job, b"", seconds=0.2)  # type: ignore[arg-type]
    assert work.run(echo, b"here", seconds=5) == b"here"


def test_a_job_that_raises_says_so_and_its_child_stays(work: BoundedWork) -> None:
    with pytest.raises(RuntimeError, match="ValueError: the reason"):
        work.run(faulty, b"the reason", seconds=5)
    assert work.run(echo, b"here", seconds=5) == b"here"


def test_what_is_made_of_a_job_is_given_up_without_a_word_by_who_has_left(caplog: pytest.LogCaptureFixture) -> None:
    job: Future[bytes] = Future()
    kept, left, wrong = (then(job, made) for made in (Future.result, Future.result, lambda _: 1 / 0))
    assert left.cancel()
    job.set_result(b"reply")
    assert kept.result() == b"reply" and isinstance(wrong.exception(), ZeroDivisionError) and not caplog.records


def test_a_caller_never_has_all_children_nor_the_whole_queue() -> None:
    work = BoundedWork(2, waiting=8)
    charged_to.set("hostile")
    try:
        first = [work.submit(endless, b"", seconds=1) for _ in range(2)]  # one is at work, the other one waits
        while not (last := work.submit(endless, b"", seconds=1)).done():
            first.append(last)
        with pytest.raises(TooBusy) as refused:
            last.result()
        assert refused.value.retry_after > 0 and len(first) <= 3
        charged_to.set("other")
        assert work.run(echo, b"at once", seconds=5) == b"at once"
        assert not first[-1].done(), "it did not wait for what the other caller had put in before"
    finally:
        charged_to.set("")
        work.stop()
    with pytest.raises((TooMuchWork, TooBusy)):
        first[-1].result(HANG)


def test_a_caller_that_has_used_its_share_is_told_when_there_is_room_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_work, "BURST", 0.1)
    work = BoundedWork(1, share=0.001)
    try:
        token = charged_to.set("hostile")
        with pytest.raises(TooMuchWork):
            work.run(endless, b"", seconds=0.9)
        with pytest.raises(TooBusy) as refused:
            work.run(echo, b"", seconds=1)
        assert 700 < refused.value.retry_after < 900
        charged_to.reset(token)
        assert work.run(echo, b"other", seconds=5) == b"other"
    finally:
        work.stop()


PARENT = """
import sys, bounded_jobs
from tuneloop.core.bounded_work import BoundedWork
work = BoundedWork(2)
print(int(work.run(bounded_jobs.process, b"", seconds=5)), flush=True)
future = work.submit(bounded_jobs.{job}, b"", seconds=1)
sys.stdin.read()
"""


@pytest.mark.parametrize("job", ["echo", "endless"])
def test_children_end_with_a_killed_parent(job: str) -> None:
    helpers = str(Path(__file__).parents[1] / "helpers")
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT.format(job=job)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": helpers},
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    assert parent.stdout.read() == b""  # no one else holds the pipe
    parent.wait(HANG)
    handle = os.pidfd_open(child) if Path(f"/proc/{child}").exists() else None
    if handle is not None:
        assert select.select([handle], [], [], HANG)[0], "the child has not ended"
        os.close(handle)


def test_a_fork_starts_children_of_its_own(work: BoundedWork) -> None:
    work.run(echo, b"", seconds=5)
    if not (fork := os.fork()):
        os._exit(0 if work.run(echo, b"forked", seconds=5) == b"forked" else 1)
    assert os.waitpid(fork, 0)[1] == 0
