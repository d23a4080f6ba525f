"""One function over many chunks: in this process, in several, or on a Ray cluster, results always in order."""

from __future__ import annotations

import functools
import gc
import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Literal, TypeVar

from tuneloop.core.errors import UserError
from tuneloop.core.parent import end_with
from tuneloop.core.ray.cluster import answer_of, cpus, on_ray

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 2  # chunks a worker that wait for their turn; bounds memory whatever the length of the input

_setting: Any = None  # what a worker process was started with
_cluster_settings: dict[str, Any] = {}  # the setting of the work that a process of a cluster does, by its name


def ordered_map(
    function: Callable[[T, Any], R],
    chunks: Iterable[T],
    setting: Any,
    *,
    workers: int,
    engine: Literal["processes", "ray"] = "processes",
) -> Iterator[R]:
    """`function(chunk, setting)` for every chunk, in order; a worker that is killed twice at it is a UserError.

    Args:
        function: of a module's top level.
        setting: each worker gets it once.
        workers: processes; 1: this one.
        engine: `ray` runs the chunks as tasks of the Ray cluster that is there, or of a local one.
    """
    if engine == "ray":
        return _on_ray(function, chunks, setting)
    if workers == 1:
        return (function(chunk, setting) for chunk in chunks)
    return _in_processes(function, iter(chunks), setting, workers)


def run_in_background(
    function: Callable[[T, Any], R], chunks: Sequence[T], setting: Any, *, workers: int
) -> dict[T, Callable[[], R]]:
    """By chunk a function that waits for `function(chunk, setting)` in another process; with one worker, here.

    `function` is of a module's top level, and its result can be pickled; the chunk that takes longest comes first; the
    rest is as in `ordered_map`.
    """
    # Outside Linux the setting would be sent as bytes, which costs more than it brings.
    if workers == 1 or sys.platform != "linux":
        return {chunk: functools.partial(function, chunk, setting) for chunk in chunks}
    context = multiprocessing.get_context("fork")
    executor = ProcessPoolExecutor(
        min(workers, len(chunks)), mp_context=context, initializer=_start, initargs=(setting,)
    )
    futures = {chunk: executor.submit(_call, function, chunk) for chunk in chunks}
    executor.shutdown(wait=False)  # its processes end when the work is done

    def result(chunk: T) -> R:
        try:
            return futures[chunk].result()
        except BrokenProcessPool:  # killed, probably for its memory: once more, alone
            return function(chunk, setting)

    return {chunk: functools.partial(result, chunk) for chunk in chunks}


def _start(setting: Any) -> None:
    global _setting
    _setting = setting
    gc.freeze()  # what the parent holds stays: looking through it for garbage took a twentieth of the time
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    end_with(os.getppid())


def _call(function: Callable[[T, Any], R], chunk: T) -> R:
    return function(chunk, _setting)


def _in_processes(function: Callable[[T, Any], R], chunks: Iterator[T], setting: Any, workers: int) -> Iterator[R]:
    """Forked where that is possible: a script that calls prepare needs no `if __name__ == "__main__"` then."""
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)

    def pool() -> ProcessPoolExecutor:
        return ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(setting,))

    executor = pool()
    waiting: deque[tuple[T, Future[R]]] = deque()
    restarts = 0

    def submit(chunk: T) -> Future[R]:
        try:
            return executor.submit(_call, function, chunk)
        except BrokenProcessPool:  # seen at the oldest chunk, where the pool is started again
            broken: Future[R] = Future()
            broken.set_exception(BrokenProcessPool())
            return broken

    try:
        while True:
            while len(waiting) < AHEAD * workers and (chunk := next(chunks, None)) is not None:
                waiting.append((chunk, submit(chunk)))
            if not waiting:
                return
            try:
                result = waiting[0][1].result()
            except BrokenProcessPool:
                restarts += 1
                if restarts > 2:
                    raise UserError(
                        "A worker process was killed, and again when its work was repeated: there is probably too "
                        "little memory",
                        next_step="use fewer of them: data.workers=1",
                    ) from None
                executor.shutdown(wait=False, cancel_futures=True)
                executor = pool()
                waiting = deque((chunk, submit(chunk)) for chunk, _ in waiting)
                continue
            restarts = 0
            waiting.popleft()
            yield result
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def _on_ray(function: Callable[[T, Any], R], chunks: Iterable[T], setting: Any) -> Iterator[R]:
    """Tasks of the cluster, a bounded number at a time; Ray repeats what was lost with a process or a machine."""
    with on_ray() as ray:
        references = [ray.put(setting)]  # within a list: the process fetches it, once
        name = references[0].hex()
        task = ray.remote(_call_on_cluster)
        ahead = AHEAD * cpus(ray)
        waiting: deque[Any] = deque()
        for chunk in chunks:
            waiting.append(task.remote(function, chunk, name, references))
            if len(waiting) >= ahead:
                yield answer_of(ray, waiting.popleft())
        while waiting:
            yield answer_of(ray, waiting.popleft())


def _call_on_cluster(function: Callable[[T, Any], R], chunk: T, name: str, references: list[Any]) -> R:
    """`function(chunk, setting)` in a process of a cluster, which keeps the setting: tokenizers are slow to read."""
    if name not in _cluster_settings:
        import ray

        _cluster_settings.clear()
        _cluster_settings[name] = ray.get(references[0])
    return function(chunk, _cluster_settings[name])
