"""A file's records as rows to be evaluated: all of them, in order, none split off, repaired or left out as a copy."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.data.clean.pii import Redactor, find
from tuneloop.data.config import PersonalConfig, PrepareConfig
from tuneloop.data.formats import NO_LABELS, Parsed, check_columns, detect, parse_record
from tuneloop.data.sources.parse import SourceRecord
from tuneloop.data.sources.read import read_records
from tuneloop.records.rows import Message, Reject, Row

SAMPLE = 2000  # records that tell the format
PROGRAMS = "programs with unit tests"
# A reference answer without a prompt: what predictions made elsewhere are compared with.
REFERENCES = ("references", "reference", "label", "labels", "target", "answer", "expected", "ground_truth", "output", "gold",
              "completion")  # fmt: skip
# What may stand next to a reference as its prompt; it is only shown and grouped by, so one column is enough.
PROMPTS = (
    "prompt", "question", "instruction", "input", "dialogue", "document", "article", "source_text", "text",
    "context",
)  # fmt: skip
SOLUTIONS = ("canonical_solution", "code", "solution", "completion", "reference", "output")
IDS = ("id", "row", "index", "task_id")


@dataclass(frozen=True)
class WholeFile:
    """Rows of a file.

    Args:
        rows: the row of each record that is one, in order.
        task: `classification` where each row has a label, else `generation`.
        skipped: records that are no rows, by reason.
        form: how the file was read.
        order: the id of each record of the file, of those that are no rows too.
        renamed: by a record's own id that holds personal data, the one that its row has instead.
        personal: what was found of personal data, in a line; empty for nothing.
    """

    rows: list[Row]
    task: str
    skipped: dict[str, int] = field(default_factory=dict)
    form: str = ""
    order: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    personal: str = ""


def read_whole(path: str, config: PrepareConfig, *, prompts: bool = True, redact: bool = False) -> WholeFile:
    """Read a file of any format that `tuneloop prepare` reads, or of references alone.

    Args:
        path: the file.
        config: what says how records are read: columns, templates, instruction.
        prompts: whether rows need prompts; else a column `references` or `reference` is enough, whatever other columns there are.
        redact: replace personal data as `config.personal` says. Programs with unit tests stay as they are: another test is
            another problem.

    A row keeps its record's `id`; records without one, and those that repeat one, get the number of their line.

    Raises:
        UserError: no such file, no format, or no record that is a row.
    """
    items = [item for item in read_records([path]) if not (isinstance(item, Reject) and item.reason == "blank_line")]
    records = [item for item in items if isinstance(item, SourceRecord)]
    if not records:
        raise UserError("The file holds no records", where=path, next_step="give JSON Lines, JSON, CSV or Parquet")
    form, read = _reader([record.value for record in records[:SAMPLE]], config, prompts)
    order = _ids(items)
    renamed: dict[str, str] = {}
    redactor = Redactor(config.personal) if redact and form != PROGRAMS else None
    if redactor:
        renamed = _without_personal(order, config.personal)
        order = [renamed.get(row_id, row_id) for row_id in order]
        items = [
            item._replace(value=redactor(item.value)) if isinstance(item, SourceRecord) else item for item in items
        ]
    made = [read(item) if isinstance(item, SourceRecord) else item.reason for item in items]
    rows = [replace(row, id=row_id) for row, row_id in zip(made, order, strict=True) if isinstance(row, Row)]
    skipped = Counter(reason for reason in made if isinstance(reason, str))
    if not rows:
        reasons = ", ".join(f"{n} {reason}" for reason, n in skipped.most_common(3))
        raise UserError(
            f"No record of the file can be evaluated ({reasons})",
            where=path,
            next_step="give prompts with answers; name columns with data.input, data.output, data.label",
        )
    labelled = config.task in ("auto", "classification") and all(row.label is not None for row in rows)
    personal = redactor.words(path, len(items)) if redactor else ""
    return WholeFile(
        rows, "classification" if labelled else "generation", dict(skipped), form, order, renamed, personal
    )


def _without_personal(ids: Sequence[str], config: PersonalConfig) -> dict[str, str]:
    """By each id that holds personal data the one that its row has instead; a placeholder would not be a row's own."""
    if config.mode not in ("placeholder", "pseudonym", "reject"):
        return {}
    return {row_id: f"record {number}" for number, row_id in enumerate(ids, 1) if find(row_id, config)}


def _reader(
    sample: Sequence[Mapping[str, Any]], config: PrepareConfig, prompts: bool
) -> tuple[str, Callable[[SourceRecord], Row | str]]:
    """How a file is read, and the function from one of its records to a row or the reason why it is not one."""
    if any(row_of_problem(record) for record in sample):
        return PROGRAMS, _problem
    alone = _only_references(sample) or ("" if prompts else _has_references(sample, REFERENCES[:2]) or _objects(sample))
    if not alone:
        if all(isinstance(record.get("messages"), list) for record in sample):  # conversations need no columns named
            config = config.model_copy(update=dict.fromkeys(("text", "label", "input", "output")) | {"format": "auto"})
        check_columns(sample, config)
        try:
            guess = detect(sample, config)
        except UserError:
            alone = "" if prompts else _has_references(sample, REFERENCES)
            if not alone:
                raise
        else:

            def read(record: SourceRecord) -> Row | str:
                parsed = parse_record(record.value, guess, config)
                return _row(record, parsed) if isinstance(parsed, Parsed) else parsed.reason

            return guess.name, read
    return f"references in {alone!r}", lambda record: _reference_row(record, alone, config)


def _problem(record: SourceRecord) -> Row | str:
    row = row_of_problem(record.value)
    return replace(row, meta=row.meta | {"source": record.source, "line": record.line}) if row else "missing_field"


def row_of_problem(record: Mapping[str, Any]) -> Row | None:
    """A record of HumanEval or MBPP as it is published, as a row; None for other records.

    The unit tests (`test` and `entry_point`, or `test_list`) stay in `meta`. A record without solution has an empty
    reference: it can be tested all the same.
    """
    question = record.get("prompt", record.get("text"))
    solution = next((record[name] for name in SOLUTIONS if record.get(name) is not None), "")
    tested = isinstance(record.get("test_list"), list) or all(
        isinstance(record.get(name), str) for name in ("test", "entry_point")
    )
    if not (tested and isinstance(question, str) and isinstance(solution, str)):
        return None
    turns: list[Message] = [{"role": "user", "content": question}, {"role": "assistant", "content": solution}]
    return Row(str(record.get("task_id", record.get("id", ""))), turns, meta=dict(record))


def _only_references(sample: Sequence[Mapping[str, Any]]) -> str | None:
    """The column of references in a file that holds nothing else that could be a prompt."""
    columns = {column for record in sample for column in record}
    column = next((name for name in REFERENCES if name in columns), None)
    if column is None or columns - {column, "reference", "references", *IDS}:
        return None
    return column


def _has_references(sample: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    return next((name for name in names if all(name in record for record in sample)), "")


def _objects(sample: Sequence[Mapping[str, Any]]) -> str:
    """The column of references that are JSON objects, not texts."""
    return next((name for name in REFERENCES if all(isinstance(record.get(name), dict) for record in sample)), "")


def _reference_row(record: SourceRecord, column: str, config: PrepareConfig) -> Row | str:
    value = record.value.get(column)
    if value is None:
        return "missing_field"
    labelled = column in ("label", "labels") or config.task == "classification"
    listed = isinstance(value, list) and (column == "references" or not any(isinstance(v, dict | list) for v in value))
    several = [_as_text(v) for v in value if v is not None] if listed else []
    question = next((record.value[n] for n in PROMPTS if n != column and isinstance(record.value.get(n), str)), None)
    turns: list[Message] = [{"role": "user", "content": question}] if question else []
    further = {
        n: v
        for n, v in record.value.items()
        if n not in (*REFERENCES, *PROMPTS, "id") and isinstance(v, str | int | float)
    }
    meta: dict[str, Any] = {**further, "source": record.source, "line": record.line}
    if labelled and listed:
        several = sorted(several) or [NO_LABELS]
        meta["labels"] = several
        answer = ", ".join(several)
    elif listed:
        if not several:
            return "missing_field"
        meta["references"], answer = several, several[0]
    else:
        answer = _as_text(value)
    return Row("", [*turns, {"role": "assistant", "content": answer}], answer if labelled else None, [], meta)


def _as_text(value: Any) -> str:
    """A reference that is no text stands as JSON, as a prediction does."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _row(record: SourceRecord, parsed: Parsed) -> Row:
    meta: dict[str, Any] = {"source": record.source, "line": record.line}
    for column, cell in record.value.items():
        flat = not isinstance(cell, dict) and not (
            isinstance(cell, list) and any(isinstance(v, dict | list) for v in cell)
        )
        if flat and column not in parsed.used and column not in meta and column != "id":
            meta[column] = None if isinstance(cell, float) and not math.isfinite(cell) else cell
    row_meta = record.value.get("meta")  # a split's file
    if isinstance(row_meta, dict):
        meta = {
            **row_meta,
            **meta,
            "source": row_meta.get("source", record.source),
            "line": row_meta.get("line", record.line),
        }
    label = parsed.label
    if label is None and record.value.get("label") == parsed.messages[-1]["content"]:
        label = record.value["label"]  # of a split's file
    return Row("", parsed.messages, label, parsed.tools, meta | parsed.extra)


def _ids(items: Sequence[SourceRecord | Reject]) -> list[str]:
    """An id for each record: its own where no other has it, else its line, else its number."""

    def id_of(item: SourceRecord | Reject) -> str | None:
        value = item.value if isinstance(item, SourceRecord) else {}
        value_of_id = next((value[n] for n in IDS if isinstance(value.get(n), str | int)), None)
        return None if value_of_id is None else str(value_of_id)

    owned = [id_of(item) for item in items]
    counts = Counter(owned)
    by_line = len({(item.source, item.line) for item in items}) == len(items)  # an array may stand on one line
    return [
        given if given is not None and counts[given] == 1 else f"{Path(item.source).name}:{item.line if by_line else n}"
        for n, (given, item) in enumerate(zip(owned, items, strict=True), 1)
    ]
