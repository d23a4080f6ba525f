"""Any evaluation of another tool, recognised by what is in the file. A new format is one file here and its line."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.foreign import file_bytes, parse_json, parse_line
from tuneloop.evaluation.foreign import (
    deepeval,
    inspect_ai,
    lm_eval_samples,
    mlflow_table,
    openai_evals,
    promptfoo,
    table,
)
from tuneloop.evaluation.foreign.record import ForeignEvaluation

DOCUMENTS = (inspect_ai, promptfoo, openai_evals, deepeval, mlflow_table)  # `claims` and `read`: a JSON document
RECORDS = (lm_eval_samples, openai_evals, mlflow_table)  # `claims_records` and `read_records`: rows
_OURS = ("eval.json", "run.json", "config.yaml", "baselines.json", "dataset.json", "artifact.json")


def is_foreign(source: str) -> bool:
    """Whether a place is a file, or a folder of files, that other tools may have written."""
    name = source if Path(source).exists() else source.rpartition(":")[0]
    path = Path(name)
    if name and path.is_dir():
        return not any((path / name).exists() for name in _OURS)
    return bool(name) and path.is_file() and path.name not in _OURS


def read_foreign(source: str) -> list[ForeignEvaluation]:
    """The evaluations at a place: one, or one for each system that a file holds; `FILE:SYSTEM` names one of them.

    Raises:
        UserError: there is nothing, it is of no known format, damaged, not UTF-8, or holds no such system.
    """
    path, system = Path(source), ""
    if not path.exists():
        file, _, system = source.rpartition(":")
        path = Path(file)
    if not path.exists() or not str(path).strip("."):
        raise UserError("No such file", where=source, next_step="check the path")
    evaluations = _of_folder(path) if path.is_dir() else _of_file(path)
    if not system:
        return evaluations
    matches = [e for e in evaluations if e.system == system] or [e for e in evaluations if system in e.system]
    if len(matches) != 1:
        step = f"choose one of {', '.join(e.system for e in evaluations)}"
        raise UserError(f"The file holds no one system {system!r}", where=str(path), next_step=step)
    return matches


def _of_folder(folder: Path) -> list[ForeignEvaluation]:
    samples = sorted(folder.rglob("samples_*.jsonl"))
    if samples:
        return lm_eval_samples.read_tasks(str(folder), {path: _records(path, _text(path)) for path in samples})
    logs = sorted([*folder.glob("*.eval"), *folder.glob("*.json"), *folder.glob("*.jsonl"), *folder.glob("*.csv")])
    if len(logs) != 1:
        message = (
            f"The folder holds {len(logs)} files that may be evaluations" if logs else "No evaluation in this folder"
        )
        step = f"name one: {', '.join(path.name for path in logs[:5])}" if logs else "check the path"
        raise UserError(message, where=str(folder), next_step=step)
    return _of_file(logs[0])


def _of_file(path: Path) -> list[ForeignEvaluation]:
    source = str(path)
    if zipfile.is_zipfile(path):
        return inspect_ai.read_zip(source)
    text = _text(path)
    value = _document(text)
    if isinstance(value, dict):
        for document in DOCUMENTS:
            if document.claims(value):
                return _guarded(document.read, source, value)
    records = _rows_of(value) if value is not None else _records(path, text)
    for rows in RECORDS:
        if rows.claims_records(records):
            return _guarded(rows.read_records, source, records)
    return table.read_records(source, records)


def _guarded(read: Any, source: str, value: Any) -> list[ForeignEvaluation]:
    """What a reader makes of a file; a file whose parts are not of the shape that its format has is damaged."""
    try:
        evaluations: list[ForeignEvaluation] = read(source, value)
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        message = f"The file is damaged, or of a version that is not known ({type(error).__name__}: {error})"
        raise UserError(message, where=source, next_step="write it again with a current version of its tool") from None
    return evaluations


def _text(path: Path) -> str:
    data = file_bytes(path, "json")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        step = f"convert it: iconv -f windows-1252 -t utf-8 {path.name}"
        raise UserError(f"Not UTF-8: line {line} has other bytes", where=str(path), next_step=step) from None


def _document(text: str) -> Any:
    """The text as one JSON value; None where it is none."""
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return parse_json(text)
    except ValueError:
        return None


def _rows_of(value: Any) -> list[Mapping[str, Any]]:
    """The rows of a JSON document: a list of objects, an object of columns, or one row."""
    if isinstance(value, list):
        return [row for row in value if isinstance(row, dict)]
    if value and all(isinstance(column, dict) for column in value.values()):  # as pandas writes a table
        places = dict.fromkeys(index for column in value.values() for index in column)
        return [{name: column.get(index) for name, column in value.items()} for index in places]
    lists = [v for v in value.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
    one_row = len(lists) != 1 or any(rows.claims_records([value]) for rows in RECORDS)
    return [value] if one_row else lists[0]


def _records(path: Path, text: str) -> list[Mapping[str, Any]]:
    """The rows of JSON Lines, or of CSV."""
    if text.lstrip()[:1] in ("{", "["):
        rows: list[Mapping[str, Any]] = []
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                row = parse_line(line)
            except ValueError as error:
                where = f"{path}:{number}"
                raise UserError(f"Not valid JSON: {error}", where=where, next_step="correct the line") from None
            rows += [row] if isinstance(row, dict) else row if isinstance(row, list) else []
        return rows
    head = text.lstrip().partition("\n")[0]
    delimiter = max(",;\t|", key=head.count)
    try:
        reader = csv.DictReader(io.StringIO(text), delimiter=delimiter)
        return [{n: v for n, v in row.items() if n is not None} for row in reader]
    except csv.Error as error:
        raise UserError(f"Not valid CSV: {error}", where=str(path), next_step="correct the file") from None
