"""Samples of lm-eval (`--log_samples`): a file for each task, or the folder with those of one model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.evaluation.foreign.record import ForeignEvaluation, Observation, collected

TOOL = "lm-eval"
# What a sample has besides its metrics.
_NOT_METRICS = {
    "doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics", "doc_hash", "prompt_hash",
    "target_hash", "task_name", "prompt", "id", "schema_version",
}  # fmt: skip
_IDS = ("id", "item_id", "sample_id")


def claims_records(records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether these are samples of lm-eval."""
    first = records[0].keys() if records else set()
    return {"doc_id", "doc"} <= first and not {"resps", "filtered_resps"}.isdisjoint(first)


def read_records(source: str, records: Sequence[Mapping[str, Any]]) -> list[ForeignEvaluation]:
    """The samples of one task."""
    return [collected(source, TOOL, "", _observations(source, records, ""))]


def read_tasks(source: str, files: Mapping[Path, Sequence[Mapping[str, Any]]]) -> list[ForeignEvaluation]:
    """The samples of several tasks of one model, by file: of a task the newest ones."""
    if len(models := {path.parent for path in files}) > 1:
        step = f"name one of its folders: {', '.join(sorted(path.name for path in models)[:5])}"
        raise UserError("The folder holds the samples of several models", where=source, next_step=step)
    newest: dict[str, Path] = {}
    for path in sorted(files):  # samples_TASK_2026-11-30T10-20-30.123456.jsonl
        newest[task_of(path)] = path
    older = len(files) - len(newest)
    notes = [f"{older} older files of the same tasks were left out."] if older else []
    several = len(newest) > 1
    samples = (o for task, path in newest.items() for o in _observations(source, files[path], task if several else ""))
    return [collected(source, TOOL, next(iter(models)).name, samples, notes)]


def task_of(path: Path) -> str:
    """The task in the name of a file of samples."""
    name = path.stem.removeprefix("samples_")
    head, underscore, tail = name.rpartition("_")
    return head if underscore and tail[:4].isdigit() and "T" in tail else name


def _observations(source: str, records: Sequence[Mapping[str, Any]], task: str) -> Iterator[Observation]:
    for number, record in enumerate(records, 1):
        doc = record.get("doc")
        if not isinstance(doc, Mapping) or "doc_id" not in record:
            message = f"Sample {number} has no doc_id or doc: not all of this file is of lm-eval"
            raise UserError(message, where=source, next_step="give one file as lm-eval writes it")
        kind = record.get("filter") or "none"
        given = next((doc[n] for n in _IDS if isinstance(doc.get(n), str | int)), record["doc_id"])
        replies = record.get("filtered_resps") or [""]
        scores = {
            str(name) if kind == "none" else f"{name},{kind}": value
            for name, value in record.items()
            if name in (record.get("metrics") or record.keys() - _NOT_METRICS)
            and (isinstance(value, bool | int | float) or value is None)
        }
        yield Observation(
            id=f"{task}/{given}" if task else str(given),
            scores=scores,
            input=dict(doc),
            kind="doc",
            reference=str(record.get("target", "")),
            answer=str(replies[0]) if isinstance(replies[0], str) else "",
            epoch=kind,
            meta={n: v for n, v in doc.items() if n not in _IDS} | ({"task": task} if task else {}),
        )
