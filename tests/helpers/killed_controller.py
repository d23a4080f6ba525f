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


def commands(place: Path, kill: tuple[str, str] = ("", "")) -> w.Command:
    """Commands that succeed; at one step the process dies before or after it."""

    def run(words: Sequence[str]) -> tuple[int, dict[str, Any]]:
        step = NAMES.get(words[1] if words[0] == "ab" else words[0], words[words[0] == "models"])
        if kill == (step, "before"):
            os.kill(os.getpid(), signal.SIGKILL)
        if step == "experiment":
            ab.start(place, words[2], {"model": "m"})
        if kill == (step, "after"):
            os.kill(os.getpid(), signal.SIGKILL)
        return 0, {"outcome": "promote", "sentence": "Promoted"} if step == "decide" else {"path": step}

    return run


def survives(place: Path, step: str, when: str) -> bool:
    """Whether the log has each step once, and every decision follows, after a kill and another pass."""
    store = connect(place, create=True)
    insert(store, (request(i, 0) for i in range(60)))
    insert(store, (thumb(i, 0, True) for i in range(60)))
    store.close()
    project = ProjectConfig.model_validate(
        {"name": "queue", "store": str(place), "model": "m", "recipe": "r.yaml", "champion": "runs/old", "suite": "s.yaml",
         "triggers": {"every_days": 1}}
    )  # fmt: skip
    if not (child := os.fork()):
        w.improve(project, command=commands(place, (step, when)))
        os._exit(0)
    killed = os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    ended = w.improve(project, command=commands(place)).state == "ended"
    with opened(place) as store:
        events = [(event.kind, event.data.get("step")) for event in read_decisions(store)]
    once = len(events) == len(set(events)) and [s for kind, s in events if kind == "improve.step"] == STEPS[:-1]
    return killed and ended and once and all(one.follows for one in w.replay(project))


if __name__ == "__main__":
    for each in STEPS:
        for moment in ("before", "after"):
            print(each, moment, survives(Path(sys.argv[1]) / f"{each}-{moment}", each, moment), flush=True)
