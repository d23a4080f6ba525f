"""`tuneloop serve`: a server together with its experiments, its monitor and its retraining.

A controller trains for hours, so it runs in its own process (`tuneloop improve --watch`) with what the server leaves of
the processors, ends with it, and is started again when it dies. Its work is in the store: it may end at any moment."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.ui import say
from tuneloop.improve.controller.command import check_files, load_project
from tuneloop.improve.experiment.live import Experiments
from tuneloop.improve.monitor.command import days_of
from tuneloop.improve.monitor.schedule import monitored, start_tuneloop
from tuneloop.serving import Companions, Gateway, ServeConfig
from tuneloop.serving import serve as serve_with
from tuneloop.serving.store import store_name

AGAIN = 60.0  # seconds before a controller that died is started again
LONGEST_LINE = 1 << 20  # bytes that a controller may say at once


def check_improve(config: ServeConfig, models: Collection[str]) -> None:
    """Refuse a project that this server can't keep good.

    Raises UserError: its file is wrong, it reads another store, or its model is not served.
    """
    if not config.improve.project:
        return
    days_of(config.improve.every, "improve.every")
    project = load_project(config.improve.project)
    check_files(project)
    project_store, store = store_name(project.store), store_name(config.store)
    if project_store != store:
        message = f"The project reads the store {project_store}, and this server writes {store}"
        step = f"store: {config.log.store or config.folder} in the project"
        raise UserError(message, where=config.improve.project, next_step=step)
    if project.model not in models:
        message = (
            f"The project keeps {project.model!r} good, and this server has {', '.join(models) or 'no tuned model'}"
        )
        step = "give both the same name, as in adapters: {NAME: NAME@champion}"
        raise UserError(message, where=config.improve.project, next_step=step)


@contextlib.asynccontextmanager
async def improving(config: ServeConfig) -> AsyncIterator[None]:
    """Retrain for the time of a block, where the settings name a project."""
    if not config.improve.project:
        yield
        return
    say(f"improve   a pass over {config.improve.project} every {config.improve.every}, in its own process")

    async def controlled() -> None:
        while True:
            status = await _controller(config)
            say(f"improve   the controller ended with {status} and is started again in {AGAIN:g} s")
            await asyncio.sleep(AGAIN)

    task = asyncio.create_task(controlled())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _controller(config: ServeConfig) -> int:
    """Run a controller and say what it says; with the task that waits here its process and what it began end too."""
    arguments = ["improve", config.improve.project, "--watch", "--every", config.improve.every]
    nothing, pipe = asyncio.subprocess.DEVNULL, asyncio.subprocess.PIPE
    streams = {"stdin": nothing, "stdout": nothing, "stderr": pipe, "limit": LONGEST_LINE}
    child = await start_tuneloop(arguments, **streams, start_new_session=True)
    assert child.stderr is not None
    try:
        async for line in child.stderr:
            if text := line.decode(errors="replace").strip():
                say(f"improve   {text}")
        return await child.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        await child.wait()


@contextlib.asynccontextmanager
async def _running(config: ServeConfig, gateway: Gateway) -> AsyncIterator[None]:
    async with monitored(config, gateway), improving(config):
        yield


COMPANIONS = Companions(Experiments, check_improve, _running)


def serve_until_stopped(
    config: ServeConfig,
    *,
    ready: Callable[[str, Gateway], None] | None = None,
    pages: Callable[[ServeConfig, Gateway], Sequence[Any]] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, see `serving.serve`."""
    serve_with(config, COMPANIONS, ready=ready, pages=pages)
