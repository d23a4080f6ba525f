"""Work over many chunks: in order, in any number of processes, with errors that arrive."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tuneloop.data.engine import AHEAD, ordered_map, usual_workers
from tuneloop.types import UserError


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
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="Ray"):
        list(ordered_map(times, range(3), 2, workers=1, engine="ray"))


def test_at_least_one_core_is_usual() -> None:
    assert usual_workers() >= 1
    assert Path("/proc").exists() is False or usual_workers() <= (os.cpu_count() or 1)
