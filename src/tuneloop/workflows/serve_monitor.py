"""A server's monitor: each window of production is compared when it is over, by `tuneloop monitor` in a process of its own.

In the server's own process embedding thousands of texts would keep its answers waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable, Sequence

from tuneloop.core.errors import UserError
from tuneloop.core.ids import clock
from tuneloop.serve.config import ServeConfig
from tuneloop.workflows.monitor import days_of, due_window

LOOKS = 50  # at the store, in the time of a window
SELDOM = 3600.0  # seconds between two looks at most
NICE = 15


@contextlib.asynccontextmanager
async def monitored(config: ServeConfig, models: Sequence[str], say: Callable[[str], None]) -> AsyncIterator[None]:
    """Monitor the models of a server for the time of a block, where its settings name a data set.

    Raises:
        UserError: the length of a window is none.
    """
    if not config.monitor.reference:
        yield
        return
    pause = min(SELDOM, days_of(config.monitor.window) * 86_400 / LOOKS)
    task = asyncio.create_task(_follow(config, models, say, pause))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _follow(config: ServeConfig, models: Sequence[str], say: Callable[[str], None], pause: float) -> None:
    while True:
        begun = clock()
        for model in models:
            with contextlib.suppress(sqlite3.Error, UserError):  # a file that is locked can be read a little later
                until = await asyncio.to_thread(due_window, config.folder, config.monitor.window, model)
                if until:
                    say(f"monitor   {model}: {await compare(config, model, until)}")
        while clock() - begun < pause:  # of the clock of the store, which may run faster in a simulation
            await asyncio.sleep(1.0)


async def compare(config: ServeConfig, model: str, until: str) -> str:
    """Compare one window; gives what was found in a sentence."""
    words = ["monitor", config.folder, "--reference", config.monitor.reference, "--window", config.monitor.window, "--until", until,
             "--model", model, "--false-alarms", f"{config.monitor.false_alarms:g}", "--json", "-q"]  # fmt: skip
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tuneloop", *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        preexec_fn=lambda: os.nice(NICE),
    )  # fmt: skip
    try:
        out, _ = await child.communicate()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()
        raise
    try:
        found = json.loads(out)
        return str(found["summary"][0] if "summary" in found else found["error"]["what"])
    except (ValueError, KeyError, IndexError, TypeError):
        return f"tuneloop monitor ended with {child.returncode}"
