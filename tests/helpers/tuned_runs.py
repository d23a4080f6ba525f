"""Runs with a data set and a task, their weights not trained but made."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from shared_folder import made_once

from tuneloop.core.files import content_hash
from tuneloop.data.config import PrepareConfig
from tuneloop.data.prepare import TokenCount, prepare_dataset
from tuneloop.pipeline.answers.asking import write_task
from tuneloop.pipeline.context import RunContext

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
def make_tuned(
    make_run: Callable[..., Path],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> MakeTuned:
    """Make a run of a task: `make_tuned(records, data={"instruction": ...}, method="full")`; equal ones are made once and copied."""
    monkeypatch.chdir(tmp_path)

    def make(
        records: list[Any] | None = None, data: dict[str, Any] | None = None, name: str = "run", **run: Any
    ) -> Path:
        folder, source = make_run(name, **run), Path(f"{name}.jsonl")
        source.write_text("".join(json.dumps(record) + "\n" for record in records or tickets()), encoding="utf-8")
        config = PrepareConfig(**{"sources": [str(source)], "split": {"val": 0.0, "test": 0.1}} | (data or {}))

        def write(path: Path) -> None:
            dataset = prepare_dataset(
                config, name=name, seed=0, out=path / "dataset", measure=lambda row: TokenCount(40, 4)
            )
            shutil.copytree(path / "dataset", folder / "dataset")
            write_task(RunContext.of_run(folder), dataset)
            shutil.copytree(folder, path / "run")

        of = content_hash([source.read_text(encoding="utf-8"), repr(config), name, repr(sorted(run.items()))])[:16]
        made = made_once(tmp_path_factory, f"tuned-{of}", write)
        return Path(shutil.copytree(made / "run", folder, dirs_exist_ok=True))

    return make
