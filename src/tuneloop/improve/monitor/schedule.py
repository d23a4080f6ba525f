"""A server's monitor: each window of production is compared when it is over, and canary prompts are sent every day.

Windows are compared by `tuneloop monitor` in its own process: embedding thousands of texts would keep the server's
answers waiting. Canary prompts go to the engine at work, while no one else uses it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.foreign import parse_json
from tuneloop.core.ids import clock
from tuneloop.core.parent import environment_of_child
from tuneloop.core.ui import say
from tuneloop.data import load_dataset
from tuneloop.improve.monitor.canaries import (
    ask_gateway,
    canary_level,
    check_last,
    identity_of,
    round_in_words,
    rounds_due,
    rows_of,
)
from tuneloop.improve.monitor.command import days_of, due_window
from tuneloop.serving import Gateway, ServeConfig
from tuneloop.serving.store import DatabaseError

LOOKS = 50  # at the store, in the time of a window
SELDOM = 3600.0  # seconds between two looks at most
NICE = 15


@contextlib.asynccontextmanager
async def monitored(config: ServeConfig, gateway: Gateway) -> AsyncIterator[None]:
    """Monitor the models of a server for the time of a block, where its settings name a data set.

    Raises UserError: the length of a window, or the time between two rounds of canary prompts, is none.
    """
    if not config.monitor.reference:
        yield
        return
    every = days_of(config.monitor.canaries_every, "monitor.canaries_every")
    pause = min(SELDOM, days_of(config.monitor.window, "monitor.window") * 86_400 / LOOKS)
    tasks = [asyncio.create_task(_windows(config, list(gateway.models), pause))]
    if config.monitor.canaries:
        pause = min(SELDOM, every * 86_400 / LOOKS)
        tasks.append(asyncio.create_task(_canaries(config, gateway, every, pause)))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _canaries(config: ServeConfig, gateway: Gateway, every: float, pause: float) -> None:
    try:
        rows = rows_of(await asyncio.to_thread(load_dataset, config.monitor.reference), config.monitor.canaries)
    except UserError as error:
        say(f"canaries  no prompt can be sent: {error.what}")
        return
    level = canary_level(config.monitor.false_alarms, every)
    while True:
        for name in gateway.own_models:
            with contextlib.suppress(DatabaseError, UserError):  # the next look tries again
                due = await asyncio.to_thread(rounds_due, config.store, name, identity_of(gateway.models[name]), every)
                for _ in range(due):
                    await ask_gateway(gateway, name, rows)
                last = await asyncio.to_thread(check_last, config.store, name, rows, level) if due else None
                if last is not None:
                    say(f"canaries  {name}: {round_in_words(last)}")
        await _wait(pause)


async def _windows(config: ServeConfig, models: Sequence[str], pause: float) -> None:
    while True:
        began = clock()
        for model in models:
            with contextlib.suppress(DatabaseError, UserError):  # a file that is locked can be read a little later
                until = await asyncio.to_thread(due_window, config.store, config.monitor.window, model)
                if until:
                    say(f"monitor   {model}: {await compare(config, model, until)}")
        await _wait(pause - (clock() - began))


async def _wait(pause: float) -> None:
    """Wait by the clock of the store, which may run faster in a simulation."""
    began = clock()
    while clock() - began < pause:
        await asyncio.sleep(1.0)


async def start_tuneloop(arguments: Sequence[str], **settings: Any) -> asyncio.subprocess.Process:
    """Start a tuneloop command in a process of low priority, which ends with this one."""
    command = [sys.executable, "-m", "tuneloop", *arguments]
    settings |= {"preexec_fn": lambda: os.nice(NICE), "env": environment_of_child()}
    return await asyncio.create_subprocess_exec(*command, **settings)


async def compare(config: ServeConfig, model: str, until: str) -> str:
    """Compare one window; returns what was found in a sentence."""
    settings = config.monitor
    arguments = [
        "monitor", config.store, "--reference", settings.reference, "--window", settings.window, "--until", until,
        "--model", model, "--false-alarms", f"{settings.false_alarms:g}", "--canaries-every", settings.canaries_every,
        "--canaries", str(settings.canaries or 1), "--json", "-q",
    ]  # fmt: skip
    child = await start_tuneloop(arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL)
    try:
        out, _ = await child.communicate()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()
        raise
    try:
        report = parse_json(out)
        return str(report["summary"][0] if "summary" in report else report["error"]["what"])
    except (ValueError, KeyError, IndexError, TypeError):
        return f"tuneloop monitor ended with {child.returncode}"
