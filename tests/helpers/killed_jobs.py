"""Work in the current folder that `killed_command.py` kills, where it is no command of its own."""

from __future__ import annotations

from pathlib import Path

from killed_controller import commands
from traffic import request, thumb
from web_pages import pages_of

from tuneloop.core.errors import UserError
from tuneloop.improve.controller import command as controller
from tuneloop.improve.controller.controller import ProjectConfig
from tuneloop.serving.store.database import insert
from tuneloop.serving.store.store import opened

PROJECT = {
    "name": "queue", "store": "serve", "model": "m", "recipe": "r.yaml", "champion": "runs/old", "suite": "s.yaml",
    "triggers": {"every_days": 1},
}  # fmt: skip


def fill(folder: Path) -> None:
    """A server's store with traffic: the first sixty answers were liked."""
    with opened(folder / "serve", create=True) as store:
        insert(store, (request(i, 0) for i in range(64)))
        insert(store, (thumb(i, 0, True) for i in range(60)))


def improve() -> int:
    """`tuneloop improve`, whose commands are stand-ins, but the experiment's; a cycle that another one ended is done."""
    try:
        state = controller.improve(ProjectConfig.model_validate(PROJECT), command=commands(Path("serve"))).state
    except UserError as error:
        print(f"Error: {error}")
        return 2
    return 0 if state in ("ended", "idle") else 3


def ui() -> int:
    """What people do on the pages of `tuneloop ui`: they judge three answers."""
    pages = pages_of(Path.cwd())
    for number in (60, 61, 62):
        page = f"/traffic/r{number:06d}"
        pages.get(page)
        pages.send(page, {"kind": "up" if number % 2 else "down"})
        pages.send(page, {"kind": "comment", "value": f"note {number}"})
    return 0
