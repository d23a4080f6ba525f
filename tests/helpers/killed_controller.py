"""A controller that is killed (SIGKILL) at each step, before and after its command, and goes on each time; one line a kill.

    python killed_controller.py FOLDER

It forks, so it is a program of its own: a test's process has threads. Commands are stand-ins, but the experiment's.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from traffic import request, thumb

from tuneloop.improve.controller import command as w
from tuneloop.improve.controller.controller import ProjectConfig
from tuneloop.improve.experiment import command as ab
from tuneloop.serving.store.database import insert
from tuneloop.serving.store.store import connect, opened, read_decisions

STEPS = ["collect", "train", "evaluate", "gate", "export", "register", "experiment", "decide", "promote"]
NAMES = {"run": "train", "start": "experiment", "check": "decide"}


def commands(path: Path, kill: tuple[str, str] = ("", "")) -> w.Command:
    """Commands that succeed; at one step the process dies before or after it."""

    def run(text: Sequence[str]) -> tuple[int, dict[str, Any]]:
        step = NAMES.get(text[1] if text[0] == "ab" else text[0], text[text[0] == "models"])
        if kill == (step, "before"):
            os.kill(os.getpid(), signal.SIGKILL)
        if step == "experiment":
            ab.start(path, text[2], {"model": "m"})
        if kill == (step, "after"):
            os.kill(os.getpid(), signal.SIGKILL)
        return 0, {"outcome": "promote", "sentence": "Promoted"} if step == "decide" else {"path": step}

    return run


def survives(path: Path, step: str, when: str) -> bool:
    """Whether the log has each step once, and every decision follows, after a kill and another pass."""
    store = connect(path, create=True)
    insert(store, (request(i, 0) for i in range(60)))
    insert(store, (thumb(i, 0, True) for i in range(60)))
    store.close()
    project = ProjectConfig.model_validate(
        {"name": "queue", "store": str(path), "model": "m", "recipe": "r.yaml", "champion": "runs/old", "suite": "s.yaml",
         "triggers": {"every_days": 1}}
    )  # fmt: skip
    if not (child := os.fork()):
        w.improve(project, command=commands(path, (step, when)))
        os._exit(0)
    killed = os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    ended = w.improve(project, command=commands(path)).state == "ended"
    with opened(path) as store:
        events = [(event.kind, event.data.get("step")) for event in read_decisions(store)]
    once = len(events) == len(set(events)) and [s for kind, s in events if kind == "improve.step"] == STEPS[:-1]
    return killed and ended and once and all(entry.follows for entry in w.replay(project))


if __name__ == "__main__":
    for item in STEPS:
        for moment in ("before", "after"):
            print(item, moment, survives(Path(sys.argv[1]) / f"{item}-{moment}", item, moment), flush=True)
