"""Work that needs a loaded model, by actors of a Ray cluster: each loads it once; work of a lost one is repeated."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.ray import cluster as ray_cluster
from tuneloop.core.ray.cluster import answer_of, task_errors
from tuneloop.core.units import counted

RESTARTS = 4  # of an actor that is lost, and of the work it had
AHEAD = 2  # pieces of work that an actor has at a time

Maker = Callable[[Any], Callable[[Any], Any]]
AsyncMaker = Callable[[Any], Awaitable[Callable[[Any], Awaitable[Any]]]]


class _Worker:
    def __init__(self, maker: Maker, setting: Any) -> None:
        self.work = maker(setting)

    def do(self, piece: Any) -> Any:
        return self.work(piece)


class _AsyncWorker:
    """An actor that does several pieces at a time; what is made when the first one comes."""

    def __init__(self, maker: AsyncMaker, setting: Any) -> None:
        self.maker, self.setting = maker, setting
        self.work: asyncio.Future[Callable[[Any], Awaitable[Any]]] | None = None

    async def do(self, piece: Any) -> Any:
        if self.work is None:
            self.work = asyncio.ensure_future(self.maker(self.setting))
        return await (await self.work)(piece)


def usual_actors(ray: Any, requested: int = 0) -> int:
    """Actors of a cluster: as requested (UserError: no room for them), else one for each GPU, else for each machine."""
    room = ray_cluster.gpus(ray) or ray_cluster.cpus(ray)
    if requested > room:
        message = f"The cluster has room for {counted(room, 'copy')} of the model, not for {requested}"
        step = "ask for fewer, or add machines (ray start --address HEAD:6379)"
        raise UserError(message, where="--actors", next_step=step)
    return requested or ray_cluster.gpus(ray) or ray_cluster.machines(ray)


def ordered_by_actors(ray: Any, maker: Maker, setting: Any, pieces: Sequence[Any], actors: int) -> Iterator[Any]:
    """`maker(setting)(piece)` for each piece, in their order; UserError: by the work, or it was lost again and again.

    Args:
        maker: of a module's top level; called once in each actor.
        actors: how many; each holds a GPU, or a processor where the cluster has no GPUs.
    """
    workers = _started(ray, _Worker, maker, setting, min(actors, len(pieces)), 1)
    try:
        waiting: dict[int, Any] = {}
        busy = {number: 0 for number in range(len(workers))}
        at: dict[Any, tuple[int, int]] = {}  # work -> place of its piece, actor
        following = iter(enumerate(pieces))
        position = 0  # of the next result
        while position < len(pieces):
            while (free := min(busy, key=lambda number: busy[number])) is not None and busy[free] < AHEAD:
                if (entry := next(following, None)) is None:
                    break
                waiting[entry[0]] = reference = workers[free].do.remote(entry[1])
                at[reference] = entry[0], free
                busy[free] += 1
            for reference in ray.wait(list(at), num_returns=1)[0]:
                busy[at.pop(reference)[1]] -= 1
            while position in waiting and waiting[position] not in at:
                yield answer_of(ray, waiting.pop(position))
                position += 1
    finally:
        _end(ray, workers)


@asynccontextmanager
async def asked_actors(
    ray: Any, maker: AsyncMaker, setting: Any, actors: int, at_once: int
) -> AsyncIterator[Callable[[Any], Awaitable[Any]]]:
    """A function that has the least busy actor do a piece of work; it raises UserError: lost again and again.

    Args:
        maker: of a module's top level; makes the function that does the work, once in each actor.
        at_once: pieces that an actor does at a time.
    """
    workers = _started(ray, _AsyncWorker, maker, setting, actors, at_once)
    busy = [0] * actors

    async def ask(piece: Any) -> Any:
        number = min(range(actors), key=busy.__getitem__)
        busy[number] += 1
        try:
            return await workers[number].do.remote(piece)
        except ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, BaseException) else error) from None
        except task_errors(ray) as error:
            message = f"An actor was lost {RESTARTS + 1} times ({type(error).__name__})"
            step = "there is probably too little memory: fewer --actors, or fewer --rows; the same command continues"
            raise UserError(message, where="ray", next_step=step) from None
        finally:
            busy[number] -= 1

    try:
        yield ask
    finally:
        _end(ray, workers)


def _started(ray: Any, kind: type, maker: Any, setting: Any, actors: int, at_once: int) -> list[Any]:
    gpu = ray_cluster.gpus(ray) > 0
    options: dict[str, Any] = {"num_gpus": 1, "num_cpus": 0} if gpu else {"num_cpus": 1}
    # Ray starts an actor that is lost again and repeats the work it had: each piece still has one result.
    options |= {"max_restarts": RESTARTS, "max_task_retries": RESTARTS, "max_concurrency": at_once}
    options["scheduling_strategy"] = "SPREAD"
    return [ray.remote(kind).options(**options).remote(maker, setting) for _ in range(actors)]


def _end(ray: Any, workers: Sequence[Any]) -> None:
    for worker in workers:
        ray.kill(worker)
