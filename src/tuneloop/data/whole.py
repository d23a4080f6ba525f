"""A file's records as rows to be evaluated: all of them, in order, none split off, repaired or left out as a copy."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tuneloop.data.config import PrepareConfig
from tuneloop.data.formats import Parsed, check_columns, detect, parse_record
from tuneloop.data.sources.parse import SourceRecord
from tuneloop.data.sources.read import read_records
from tuneloop.types import Message, Row, UserError

SAMPLE = 2000  # records that tell the format
# A reference answer by itself, without a prompt: what predictions made elsewhere are held against.
REFERENCES = ("references", "reference", "label", "target", "answer", "expected", "output", "gold", "completion")
IDS = ("id", "row", "index")


@dataclass(frozen=True)
class WholeFile:
    """Rows of a file.

    Args:
        rows: the row of each record that is one, in order.
        task: `classification` where each row has a label, else `generation`.
        skipped: records that are no rows, by reason.
        form: how the file was read.
    """

    rows: list[Row]
    task: str
    skipped: dict[str, int] = field(default_factory=dict)
    form: str = ""


def read_whole(path: str, config: PrepareConfig, *, prompts: bool = True) -> WholeFile:
    """Read a file of any format that `tuneloop prepare` reads, or of references alone.

    Args:
        path: the file.
        config: what says how records are read: columns, templates, instruction.
        prompts: whether rows need prompts; else a column `references` or `reference` is enough, whatever stands beside it.

    A row keeps its record's `id`; records without one, and those that repeat one, get the number of their line.

    Raises:
        UserError: no such file, no format, or no record that is a row.
    """
    items = list(read_records([path]))
    records = [item for item in items if isinstance(item, SourceRecord)]
    skipped: Counter[str] = Counter(item.reason for item in items if not isinstance(item, SourceRecord))
    if not records:
        raise UserError("The file holds no records", where=path, next_step="give JSON Lines, JSON, CSV or Parquet")
    sample = [record.value for record in itertools.islice(records, SAMPLE)]
    if alone := _only_references(sample) or ("" if prompts else _has_references(sample)):
        made = [_reference_row(record, alone, config) for record in records]
        form = f"references in {alone!r}"
    else:
        if all(isinstance(record.get("messages"), list) for record in sample):  # conversations need no columns named
            config = config.model_copy(update=dict.fromkeys(("text", "label", "input", "output")) | {"format": "auto"})
        check_columns(sample, config)
        guess = detect(sample, config)
        made = []
        for record in records:
            parsed = parse_record(record.value, guess, config)
            made.append(_row(record, parsed) if isinstance(parsed, Parsed) else parsed.reason)
        form = guess.name
    skipped.update(reason for reason in made if isinstance(reason, str))
    rows = _with_ids([(row, record) for row, record in zip(made, records, strict=True) if isinstance(row, Row)])
    if not rows:
        reasons = ", ".join(f"{n} {reason}" for reason, n in skipped.most_common(3))
        raise UserError(
            f"No record of the file can be evaluated ({reasons})",
            where=path,
            next_step="give prompts with answers; name columns with data.input, data.output, data.label",
        )
    labelled = config.task in ("auto", "classification") and all(row.label is not None for row in rows)
    return WholeFile(rows, "classification" if labelled else "generation", dict(skipped), form)


def _only_references(sample: Sequence[Mapping[str, Any]]) -> str | None:
    """The column of references in a file that holds nothing else that could be a prompt."""
    columns = {column for record in sample for column in record}
    column = next((name for name in REFERENCES if name in columns), None)
    if column is None or columns - {column, "reference", "references", *IDS}:
        return None
    return column


def _has_references(sample: Sequence[Mapping[str, Any]]) -> str:
    return next((name for name in REFERENCES[:2] if all(name in record for record in sample)), "")


def _reference_row(record: SourceRecord, column: str, config: PrepareConfig) -> Row | str:
    value = record.value.get(column)
    several = [str(v) for v in value if v is not None] if isinstance(value, list) else []
    answer = several[0] if several else "" if value is None or isinstance(value, dict | list) else str(value)
    if not answer and value != "":
        return "missing_field"
    labelled = column == "label" or config.task == "classification"
    messages: list[Message] = [{"role": "assistant", "content": answer}]
    meta: dict[str, Any] = {"source": record.source, "line": record.line}
    if several:
        meta["labels" if labelled else "references"] = several
        if labelled:
            answer = ", ".join(sorted(several))
            messages = [{"role": "assistant", "content": answer}]
    return Row("", messages, answer if labelled else None, [], meta)


def _row(record: SourceRecord, parsed: Parsed) -> Row:
    meta: dict[str, Any] = {"source": record.source, "line": record.line}
    for column, cell in record.value.items():
        flat = not isinstance(cell, dict) and not (
            isinstance(cell, list) and any(isinstance(v, dict | list) for v in cell)
        )
        if flat and column not in parsed.used and column not in meta and column != "id":
            meta[column] = None if isinstance(cell, float) and not math.isfinite(cell) else cell
    own = record.value.get("meta")  # a split's file
    if isinstance(own, dict):
        meta = {**own, **meta, "source": own.get("source", record.source), "line": own.get("line", record.line)}
    label = parsed.label
    if label is None and record.value.get("label") == parsed.messages[-1]["content"]:
        label = record.value["label"]  # of a split's file
    return Row("", parsed.messages, label, parsed.tools, meta | parsed.extra)


def _with_ids(found: list[tuple[Row, SourceRecord]]) -> list[Row]:
    ids = [
        next((record.value[n] for n in IDS if isinstance(record.value.get(n), str | int)), None) for _, record in found
    ]
    counts = Counter(str(i) for i in ids if i is not None)
    rows = []
    for (row, record), own in zip(found, ids, strict=True):
        unique = own is not None and counts[str(own)] == 1
        rows.append(replace(row, id=str(own) if unique else f"{Path(record.source).name}:{record.line}"))
    return rows
