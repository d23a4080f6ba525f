"""Plugin of pytest: torch can't be imported, and a test that starts a process or a server fails."""

from __future__ import annotations

import sys
from collections.abc import Generator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

import pytest
from layers import loads_torch

STARTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "socket.bind"}  # audit events of Python
running: list[str] = []


class WithoutTorch:
    """Finds modules as Python does, but not torch. (With None for it in `sys.modules`, scipy fails.)"""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return None if name == "torch" else PathFinder.find_spec(name, path, target)


sys.meta_path[:] = [WithoutTorch if finder is PathFinder else finder for finder in sys.meta_path]  # type: ignore[list-item]


def refuse(event: str, arguments: tuple[object, ...]) -> None:
    if running and event in STARTS:
        raise AssertionError(f"{running[0]} is a unit test and starts a process or a server: {event}{arguments[:1]}")


sys.addaudithook(refuse)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Pass over the files that load torch: none of their tests is a unit test."""
    return True if collection_path.name.startswith("test_") and loads_torch(collection_path) else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let the hook know that a test runs."""
    running.append(item.nodeid)
    try:
        return (yield)
    finally:
        running.clear()
