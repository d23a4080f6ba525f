"""Work over many chunks: in order, in any number of processes, with errors that arrive."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from patience import slowness
from tuneloop.core.errors import UserError
from tuneloop.data.dataset import keyed_hash
from tuneloop.data.workers import AHEAD, ordered_map, run_in_background


def times(chunk: int, factor: int) -> int:
    return chunk * factor


def refuses_seven(chunk: int, setting: None) -> int:
    if chunk == 7:
        raise UserError("seven", where="line 7")
    return chunk


def always_dies(chunk: int, setting: None) -> int:
    os._exit(9)


def process_of(chunk: int, setting: None) -> int:
    return os.getpid()


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_results_come_in_the_order_of_the_chunks(workers: int) -> None:
    assert list(ordered_map(times, range(40), 3, workers=workers)) == [3 * n for n in range(40)]


def test_the_input_is_read_only_a_little_ahead() -> None:
    read: list[int] = []

    def source() -> Iterator[int]:
        for n in range(100):
            read.append(n)
            yield n

    results = ordered_map(times, source(), 1, workers=2)
    next(results)
    assert len(read) <= 2 * AHEAD + 1
    results.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("workers", [1, 2])
def test_work_beside_gives_its_result_or_its_error_when_asked(workers: int) -> None:
    results, fails = (
        run_in_background(times, [7, 8], 3, workers=workers),
        run_in_background(refuses_seven, [7], None, workers=workers),
    )
    assert [results[8](), results[7]()] == [24, 21]
    with pytest.raises(UserError, match="seven"):
        fails[7]()


def dies_elsewhere(home: int, setting: None) -> str:
    if os.getpid() != home:
        os._exit(9)
    return "done"


def test_work_beside_is_done_here_when_its_process_was_killed() -> None:
    assert run_in_background(dies_elsewhere, [os.getpid()], None, workers=2)[os.getpid()]() == "done"


def test_several_processes_do_the_work() -> None:
    found = set(ordered_map(process_of, range(20), None, workers=2))
    assert os.getpid() not in found and 1 <= len(found) <= 2
    assert set(ordered_map(process_of, range(3), None, workers=1)) == {os.getpid()}


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_the_user_arrives_as_it_was(workers: int) -> None:
    with pytest.raises(UserError, match="seven") as caught:
        list(ordered_map(refuses_seven, range(20), None, workers=workers))
    assert caught.value.where == "line 7"


def test_a_worker_that_is_killed_every_time_ends_in_advice() -> None:
    with pytest.raises(UserError, match="killed") as caught:
        list(ordered_map(always_dies, range(5), None, workers=2))
    assert "data.workers=1" in caught.value.next_step


def test_ray_without_ray_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="Ray"):
        list(ordered_map(times, range(3), 2, workers=1, engine="ray"))


def test_workers_end_when_the_process_that_started_them_is_killed(tmp_path: Path) -> None:
    code = (
        "import os, sys, time\n"
        "from tuneloop.data import workers\n"
        "def work(chunk, folder):\n"
        "    open(os.path.join(folder, str(os.getpid())), 'w').close()\n"
        "    time.sleep(600)\n"
        "list(workers.ordered_map(work, range(2), sys.argv[1], workers=2))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    deadline = time.monotonic() + 20 * slowness()
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = [int(path.name) for path in tmp_path.iterdir()]
    parent.kill()
    parent.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(workers) == 2 and not any(Path(f"/proc/{pid}").exists() for pid in workers)


@pytest.mark.slow
def test_a_local_ray_cluster_gives_the_same_results() -> None:
    pytest.importorskip("ray")
    text = [f"word {n}" for n in range(30)]  # the function must be one that Ray's workers can import
    assert list(ordered_map(keyed_hash, text, 7, workers=1, engine="ray")) == [keyed_hash(word, 7) for word in text]
