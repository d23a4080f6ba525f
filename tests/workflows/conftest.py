"""Runs with a data set and a task, their weights not trained but made."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tuneloop.data.config import PrepareConfig
from tuneloop.data.prepare import TokenCount, prepare
from tuneloop.workflows.run_context import RunContext, load_run_recipe
from tuneloop.workflows.task import write_task

MakeTuned = Callable[..., Path]


def text(i: int) -> str:
    rng = random.Random(i)
    return " ".join("".join(rng.choices("bdfgklmnprst", k=3)) + rng.choice("aeiou") for _ in range(6))


def tickets(n: int = 40) -> list[dict[str, Any]]:
    """Tickets with something to repair and to redact."""
    return [
        {"text": f" cafÃ© {text(i)} from bob{i}@example.com", "label": ["late", "lost", "thanks"][i % 3]}
        for i in range(n)
    ]


@pytest.fixture
def make_tuned(make_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeTuned:
    """Make a run of a task: `make_tuned(records, data={"instruction": ...}, method="full")`."""
    monkeypatch.chdir(tmp_path)

    def make(
        records: list[Any] | None = None, data: dict[str, Any] | None = None, name: str = "run", **run: Any
    ) -> Path:
        folder = make_run(name, **run)
        source = tmp_path / f"{name}.jsonl"
        source.write_text("".join(json.dumps(record) + "\n" for record in records or tickets()), encoding="utf-8")
        settings: dict[str, Any] = {"sources": [str(source)], "split": {"val": 0.0, "test": 0.1}} | (data or {})
        config = PrepareConfig(**settings)
        dataset = prepare(config, name=name, seed=0, out=folder / "dataset", measure=lambda row: TokenCount(40, 4))
        write_task(RunContext(load_run_recipe(folder, []), folder), dataset)
        return folder

    return make
