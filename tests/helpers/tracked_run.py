"""A run folder that grows as a run does, for trackers."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

needs_mlflow = pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed")


RECIPE: dict[str, Any] = {
    "name": "tickets",
    "model": "smollm2-135m",
    "seed": 0,
    "train": {"learning_rate": 5e-4, "targets": ["q_proj", "v_proj"], "max_minutes": None},
    "data": {"instruction": "x" * 2000},
    "track": {"report_to": ["mlflow"], "experiment": "tuneloop"},
}


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def add_steps(run: Path, first: int, last: int) -> None:
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        for step in range(first, last + 1):
            file.write(
                json.dumps({"step": step, "loss": 3.0 / step, "tokens_per_second": 300.0, "grad_norm": None}) + "\n"
            )
        file.write(json.dumps({"step": last, "val_loss": 2.0 / last, "best": True, "seconds": 1.0}) + "\n")


def finish_run(run: Path) -> None:
    write(
        run / "environment.json",
        {"version": 1, "tuneloop": "0.1.0", "python": "3.11", "git_commit": "c" * 40, "packages": {"torch": "2"}},
    )
    write(
        run / "dataset/dataset.json",
        {
            "version": 1,
            "id": "tickets-0123456789ab",
            "name": "tickets",
            "hash": "0123456789ab" * 5 + "0123",
            "task": "generation",
            "config": {},
            "counts": {"read": 9, "kept": 9, "rejected": 0, "train": 9},
            "rejected": {},
            "splits": {
                name: {"path": f"{name}.jsonl", "rows": n, "sha256": "0" * 64}
                for name, n in (("train", 9), ("val", 0), ("test", 0))
            },
        },
    )
    write(
        run / "run.json",
        {
            "version": 1,
            "model": "smollm2-135m",
            "seconds": 90.0,
            "peak_memory_gib": 1.5,
            "usd": 0.01,
            "stopped": "early",
        },
    )
    write(
        run / "eval.json",
        {
            "version": 1,
            "n": 40,
            "split": "test",
            "metrics": {"accuracy": {"value": 0.9, "low": 0.8, "high": 0.95}, "pass@1": {"value": 0.5}},
            "words": ["Better."],
            "baselines": {"tf-idf + logistic regression": {"accuracy": {"value": 0.7}, "pass@1": {"value": 0.1}}},
            "comparisons": [
                {
                    "a": "tf-idf + logistic regression",
                    "b": "tuned",
                    "metric": metric,
                    "delta": delta,
                    "low": None,
                    "high": None,
                    "p": 0.01,
                    "verdict": "better",
                }
                for metric, delta in (("accuracy", 0.2), ("pass@1", 0.4))
            ],
        },
    )
    (run / "samples.jsonl").write_text(
        json.dumps({"id": "a", "prompt": "p", "reference": "r", "prediction": "t", "baselines": {"few-shot": "f"}})
        + "\n"
    )
    (run / "report.html").write_text("<!doctype html>")
    write(run / "adapter/adapter_config.json", {"r": 16})


def with_trackers(*names: str) -> dict[str, Any]:
    return {**RECIPE, "track": {"report_to": list(names), "experiment": "tuneloop"}}


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard would show: the points of all event files of a folder, by name."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(folder.iterdir()):
        data, at = file.read_bytes(), 0
        while at < len(data):  # TFRecord: length, its checksum, the event, its checksum
            length = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += length + 16
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found
