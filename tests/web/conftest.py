"""The pages over a folder with runs, without a port."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tuned_runs import make_tuned as make_tuned

from tuneloop.web.index import Index
from tuneloop.web.sources import Sources

Site = Callable[..., Any]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A client of the pages over `tmp_path`, or other folders; other arguments are those of `Sources`."""
    pytest.importorskip("starlette.testclient")
    from web_pages import browser_of

    def make(*folders: Path, **settings: Any) -> Any:
        sources = Sources(Index(folders or (tmp_path,)), **{"who": "ana", **settings})
        return browser_of(sources, base_url="http://localhost", follow_redirects=False)

    return make


def keys(html: str, kind: str = "runs") -> list[str]:
    """Keys of what a list links to."""
    return list(dict.fromkeys(re.findall(rf'href="/{kind}/([0-9a-f]{{12}})"', html)))


def write_run(folder: Path, *, done: bool = True, steps: int = 3, **evaluation: Any) -> Path:
    """A run's files as training leaves them, without weights."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("name: t\nmodel: smollm2-135m\ndata: {sources: [in.jsonl]}\n", encoding="utf-8")
    lines = [
        {"step": i, "loss": 2.0 / i, "learning_rate": 1e-4, "grad_norm": 1.0, "tokens_per_second": 90.0,
         "seconds": 2.0 * i, "memory_gib": 1.0} for i in range(1, steps + 1)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    if done:
        run = {"version": 1, "id": folder.name, "model": "smollm2-135m", "dataset": "in-0123456789ab", "steps": steps,
               "method": "lora", "best_val_loss": 0.5, "usd": 0.01, "seconds": 60.0}  # fmt: skip
        (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    if evaluation:
        value = {"version": 1, "n": 40, "primary": "accuracy", "words": ["Better: by much."], **evaluation}
        (folder / "eval.json").write_text(json.dumps(value), encoding="utf-8")
    return folder


def accuracy(value: float) -> dict[str, dict[str, float]]:
    """Metrics of an evaluation."""
    return {"accuracy": {"value": value, "low": value - 0.1, "high": value + 0.1}}
