"""Work on what strangers wrote, in processes that can be ended, so that nothing of theirs holds the one that serves.

A schema, a template or a message of a few bytes may keep a library busy for hours in one call, which no thread can
interrupt. Here it runs in a child with limits on its processor time and memory, which the system enforces; a child that
reached one is replaced. Children are kept warm: a call costs a millisecond. They end with this process, whose pipe they
read. Jobs take bytes and return bytes: nothing that comes back is executed.

A caller is charged by name. One of them never takes all children while there are others, and what it may use in a
minute is limited where `share` says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib import import_module
from typing import TypeVar

MEMORY = 2 << 30  # bytes of address space that a child may have, its libraries included
STACK = 4 << 20  # bytes; half of what a thread of a server has: what passes here does not overflow there
LARGE = 400 << 20  # bytes resident after which a child is replaced
BURST = 10.0  # seconds of work that a caller may have saved up
WALL = 10.0  # seconds of the clock for each second of the processor, on a busy machine

A = TypeVar("A")
B = TypeVar("B")
Job = Callable[[bytes], bytes]  # a function of a module, which the child imports
# Who is charged for what is done now; None: this program's own work, which is not limited.
charged_to: ContextVar[str | None] = ContextVar("charged_to", default=None)


class TooMuchWork(Exception):
    """It took more time or memory than it may, and was ended."""


class TooBusy(Exception):
    """Too much waits, or its caller has used up its share; `retry_after`: seconds after which there is room again."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True)
class _BoundedTask:
    job: Job
    payload: bytes
    seconds: float
    caller: str | None
    future: Future[bytes] = field(default_factory=Future)


class BoundedWork:
    """Children that do jobs, and what waits for them.

    Args:
        workers: children. They start with the first job, or by `warm`.
        waiting: jobs that may wait; a fourth of them of one caller.
        share: seconds of a processor that a caller may use in a second, beyond `BURST`; None: as much as there is.
        modules: that a child imports when it starts.
        memory: bytes of address space that a child may have; large: bytes resident after which it is replaced.
        nice: how far a child stands back for others on a busy machine.
    """

    def __init__(
        self,
        workers: int = 2,
        *,
        waiting: int = 64,
        share: float | None = None,
        modules: Sequence[str] = (),
        memory: int = MEMORY,
        large: int = LARGE,
        nice: int = 5,
    ) -> None:
        self.workers, self.waiting, self.share, self.modules = workers, waiting, share, modules
        self.memory, self.large, self.nice = memory, large, nice
        self._reset()

    def _reset(self) -> None:
        self._process, self._changed, self._over = os.getpid(), threading.Condition(), False
        self._tasks: dict[str | None, deque[_BoundedTask]] = {}  # of each caller, the one that waits for longest first
        self._at_work: Counter[str | None] = Counter()
        self._left: dict[str | None, tuple[float, float]] = {}  # seconds that a caller may use, and when that was so
        self._threads: list[threading.Thread] = []
        self._children: set[subprocess.Popen[bytes]] = set()

    def warm(self) -> None:
        """Start the children, so that the first job waits for none."""
        if self._process != os.getpid():  # a fork has no threads
            self._reset()
        with self._changed:
            while len(self._threads) < self.workers and not self._over:
                thread = threading.Thread(target=self._work, name="bounded work", daemon=True)
                self._threads.append(thread)
                thread.start()

    def submit(self, job: Job, payload: bytes, *, seconds: float) -> Future[bytes]:
        """What a job makes of its bytes, later. It is charged to `charged_to`.

        Args:
            seconds: of a processor that it may take.

        Raises, from the future:
            TooBusy: it can't wait; TooMuchWork; RuntimeError with what the job raised.
        """
        self.warm()
        task = _BoundedTask(job, payload, seconds, charged_to.get())
        with self._changed:
            if task.caller is not None:
                own = len(self._tasks.get(task.caller, ()))
                busy = None
                if own >= max(self.waiting // 4, 1) or sum(map(len, self._tasks.values())) >= self.waiting:
                    busy = TooBusy("too much of this kind of work waits", 1.0)
                elif self.share is not None and (debt := -self._balance(task.caller)) > 0:
                    busy = TooBusy("too much work of this kind in a short time", debt / self.share)
                if busy is not None:
                    task.future.set_exception(busy)
                    return task.future
            self._tasks.setdefault(task.caller, deque()).append(task)
            self._changed.notify()
        return task.future

    def run(self, job: Job, payload: bytes, *, seconds: float) -> bytes:
        """What a job makes of its bytes; see `submit`."""
        return self.submit(job, payload, seconds=seconds).result()

    async def result(self, job: Job, payload: bytes, *, seconds: float) -> bytes:
        """What a job makes of its bytes, awaited; see `submit`."""
        return await asyncio.wrap_future(self.submit(job, payload, seconds=seconds))

    def stop(self) -> None:
        """End the children and what they do; what waits raises TooBusy."""
        with self._changed:
            self._over = True
            tasks = [task for waiting in self._tasks.values() for task in waiting]
            self._tasks.clear()
            self._changed.notify_all()
        for child in list(self._children):
            child.kill()
        for task in tasks:
            if task.future.set_running_or_notify_cancel():
                task.future.set_exception(TooBusy("The server is stopping", 5.0))

    def _balance(self, caller: str | None) -> float:
        left, then = self._left.get(caller, (BURST, 0.0))
        return min(left + (time.monotonic() - then) * (self.share or 0.0), BURST)

    def _next(self) -> _BoundedTask | None:
        """The next task, of each caller in turn; None: it is over."""
        with self._changed:
            while not self._over:
                most = max(self.workers - 1, 1)
                callers = [name for name in self._tasks if name is None or self._at_work[name] < most]
                if callers:
                    waiting = self._tasks.pop(caller := callers[0])
                    task = waiting.popleft()
                    if waiting:
                        self._tasks[caller] = waiting  # behind all others
                    self._at_work[caller] += 1
                    return task
                self._changed.wait()
        return None

    def _done(self, task: _BoundedTask, used: float) -> None:
        with self._changed:
            self._at_work[task.caller] -= 1
            if not self._at_work[task.caller]:
                del self._at_work[task.caller]
            if self.share is not None and task.caller is not None:
                self._left[task.caller] = self._balance(task.caller) - used, time.monotonic()
                if len(self._left) > 10_000:
                    del self._left[next(iter(self._left))]
            self._changed.notify()

    def _work(self) -> None:
        child: subprocess.Popen[bytes] | None = None
        with contextlib.suppress(OSError):
            child = self._start()
        while (task := self._next()) is not None:
            reply, used, last = b"", 0.0, False
            fault: Exception | None = None
            begun = task.future.set_running_or_notify_cancel()
            if begun:
                try:
                    child = child or self._start()
                    reply, used, last = _exchanged(child, task)
                except (OSError, ValueError):  # it was ended
                    used, last, fault = task.seconds, True, TooMuchWork("it takes too much time or memory")
                except Exception as error:
                    fault = error
            self._done(task, used)
            if fault is not None:
                task.future.set_exception(fault)
            elif begun:
                task.future.set_result(reply)
            if last:
                self._end(child)
                child = None
                with contextlib.suppress(OSError):  # of a system without a free process: tried again with the next task
                    child = self._start()
        self._end(child)

    def _start(self) -> subprocess.Popen[bytes]:
        limits = map(str, (self.memory, self.large, self.nice))
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "tuneloop.core.bounded_work", *limits, *self.modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
        )
        self._children.add(child)
        if self._over:
            child.kill()
        return child

    def _end(self, child: subprocess.Popen[bytes] | None) -> None:
        if child is not None:
            child.kill()
            with contextlib.suppress(OSError, ValueError):
                child.communicate()
            self._children.discard(child)


def _exchanged(child: subprocess.Popen[bytes], task: _BoundedTask) -> tuple[bytes, float, bool]:
    """The reply to a task, seconds that it took, and whether the child is to be replaced. OSError: it has ended."""
    assert child.stdin is not None and child.stdout is not None
    name = f"{task.job.__module__}:{task.job.__qualname__}"
    order = {"job": name, "seconds": task.seconds, "size": len(task.payload)}
    timer = threading.Timer(task.seconds * WALL, child.kill)
    timer.daemon = True
    timer.start()
    try:
        child.stdin.write(json.dumps(order).encode() + b"\n" + task.payload)
        child.stdin.flush()
        head = json.loads(child.stdout.readline() or b"x")
        reply = child.stdout.read(head["size"])
    finally:
        timer.cancel()
    if len(reply) < head["size"]:
        raise BrokenPipeError
    if head["error"]:
        raise RuntimeError(head["error"])
    return reply, head["used"], head["last"]


# What checks schemas, fills in templates and reads bodies: jobs of milliseconds, where they are not hostile.
WORK = BoundedWork(2, share=0.25)


def then(source: Future[A], made: Callable[[Future[A]], B]) -> Future[B]:
    """What a function makes of a future that is done, later; what it raises is raised from there. Who has cancelled it
    hears no more of it."""
    result: Future[B] = Future()

    def done(source: Future[A]) -> None:
        if not result.set_running_or_notify_cancel():
            return
        try:
            result.set_result(made(source))
        except Exception as error:
            result.set_exception(error)

    source.add_done_callback(done)
    return result


def known(value: A) -> Future[A]:
    """A future of what is known already."""
    future: Future[A] = Future()
    future.set_result(value)
    return future


# --- in the child ----------------------------------------------------------------------------------


def _limit(memory: int) -> None:
    import resource

    for name, most in (("RLIMIT_AS", memory), ("RLIMIT_STACK", STACK), ("RLIMIT_CORE", 0)):
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        with contextlib.suppress(ValueError, OSError):  # macOS refuses some
            resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _resident() -> int:
    """Bytes that this program has had in memory at most; 0: not known.

    Linux counts in `ru_maxrss` what the process had before it became this program: all that a server with a model has.
    """
    with contextlib.suppress(OSError, StopIteration), open("/proc/self/status", encoding="ascii") as status:
        return 1024 * int(next(line for line in status if line.startswith("VmHWM:")).split()[1])
    try:
        import resource
    except ModuleNotFoundError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: in bytes


def main(memory: int, large: int, nice: int, modules: Sequence[str]) -> None:
    """Do jobs from stdin until it ends. A job that takes too long ends the process: the timer's signal does."""
    orders, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a library prints is no reply
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the process that has started this one decides
    with contextlib.suppress(ModuleNotFoundError):  # Windows, where only the clock limits it
        _limit(memory)
        os.nice(nice)
    for name in modules:
        import_module(name)
    while line := orders.readline():
        order = json.loads(line)
        payload = orders.read(order["size"])
        module, _, name = order["job"].partition(":")
        function = getattr(import_module(module), name)
        reply, error, began = b"", "", time.process_time()
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_PROF, order["seconds"])
        try:
            reply = function(payload)
        except MemoryError:
            raise SystemExit(1) from None
        except Exception as caught:
            error = f"{type(caught).__name__}: {caught}"[:2000]
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_PROF, 0)
        head = {"size": len(reply), "error": error, "used": time.process_time() - began, "last": _resident() > large}
        replies.write(json.dumps(head).encode() + b"\n" + reply)
        replies.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
