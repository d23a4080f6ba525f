"""A file's records as rows to be evaluated: all of them, in order, none split off, repaired or left out as a copy."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.data.config import PrepareConfig
from tuneloop.data.formats.guess import NO_LABELS, Parsed, check_columns, detect, parse_record
from tuneloop.data.pii.redact import Redactor, find
from tuneloop.data.sources.parse import SourceRecord, finite, is_flat
from tuneloop.data.sources.read import read_records
from tuneloop.records.rows import Message, Reject, Row

SAMPLE = 2000  # records that tell the format
PROGRAMS = "programs with unit tests"
# A reference answer without a prompt: what predictions made elsewhere are compared with.
REFERENCES = (
    "references", "reference", "label", "labels", "target", "answer", "expected", "ground_truth", "output", "gold",
    "completion",
)  # fmt: skip
# What may stand next to a reference as its prompt; it is only shown and grouped by, so one column is enough.
PROMPTS = (
    "prompt", "question", "instruction", "input", "dialogue", "document", "article", "source_text", "text",
    "context",
)  # fmt: skip
SOLUTIONS = ("canonical_solution", "code", "solution", "completion", "reference", "output")
NO_META = {*REFERENCES, *PROMPTS, "id"}
IDS = ("id", "row", "index", "task_id")


@dataclass(frozen=True)
class WholeFile:
    """Rows of a file (`renamed`: by a record's own id that holds personal data, the one that its row has instead)."""

    rows: list[Row]  # the row of each record that is one, in order
    task: str  # `classification` where each row has a label, else `generation`
    skipped: dict[str, int] = field(default_factory=dict)  # records that are no rows, by reason
    form: str = ""  # how the file was read
    order: list[str] = field(default_factory=list)  # the id of each record of the file, of those that are no rows too
    renamed: dict[str, str] = field(default_factory=dict)
    personal: str = ""  # what was found of personal data, in a line; empty for nothing


def read_whole(path: str, config: PrepareConfig, *, prompts: bool = True, redact: bool = False) -> WholeFile:
    """Read a file of any format that `tuneloop prepare` reads, or of references alone.

    A row keeps its record's `id`; records without one, and those that repeat one, get the number of their line.

    Args:
        config: what says how records are read: columns, templates, instruction.
        prompts: whether rows need prompts; else a column `references` or `reference` is enough.
        redact: replace personal data as `config.personal` says, but not in programs with unit tests: another test is
            another problem.

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
        if config.personal.mode in ("placeholder", "pseudonym", "reject"):  # a placeholder would not be a row's own
            renamed = {name: f"record {n}" for n, name in enumerate(order, 1) if find(name, config.personal)}
        order = [renamed.get(name, name) for name in order]
        items = [
            item._replace(value=redactor(item.value)) if isinstance(item, SourceRecord) else item for item in items
        ]
    results = [read(item) if isinstance(item, SourceRecord) else item.reason for item in items]
    rows = [replace(row, id=row_id) for row, row_id in zip(results, order, strict=True) if isinstance(row, Row)]
    skipped = Counter(reason for reason in results if isinstance(reason, str))
    if not rows:
        reasons = ", ".join(f"{n} {reason}" for reason, n in skipped.most_common(3))
        step = "give prompts with answers; name columns with data.input, data.output, data.label"
        raise UserError(f"No record of the file can be evaluated ({reasons})", where=path, next_step=step)
    labelled = config.task in ("auto", "classification") and all(row.label is not None for row in rows)
    personal = redactor.words(path, len(items)) if redactor else ""
    return WholeFile(
        rows, "classification" if labelled else "generation", dict(skipped), form, order, renamed, personal
    )


def _reader(
    sample: Sequence[Mapping[str, Any]], config: PrepareConfig, prompts: bool
) -> tuple[str, Callable[[SourceRecord], Row | str]]:
    if any(row_of_problem(record) for record in sample):

        def problem(record: SourceRecord) -> Row | str:
            row = row_of_problem(record.value)
            return (
                replace(row, meta=row.meta | {"source": record.source, "line": record.line}) if row else "missing_field"
            )

        return PROGRAMS, problem
    columns = {column for record in sample for column in record}
    alone = next((name for name in REFERENCES if name in columns), "")
    if columns - {alone, "reference", "references", *IDS}:  # there may be a prompt
        alone = "" if prompts else _has_references(sample, REFERENCES[:2])
    if not alone and not prompts:  # references that are JSON objects, not texts
        objects = (name for name in REFERENCES if all(isinstance(record.get(name), dict) for record in sample))
        alone = next(objects, "")
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


def row_of_problem(record: Mapping[str, Any]) -> Row | None:
    """A record of HumanEval or MBPP as it is published, as a row; None for other records. The unit tests (`test` and
    `entry_point`, or `test_list`) stay in `meta`. Without a solution the reference is empty.
    """
    question = record.get("prompt", record.get("text"))
    solution = next((record[name] for name in SOLUTIONS if record.get(name) is not None), "")
    texts = isinstance(record.get("test"), str) and isinstance(record.get("entry_point"), str)
    tested = texts or isinstance(record.get("test_list"), list)
    if not (tested and isinstance(question, str) and isinstance(solution, str)):
        return None
    turns: list[Message] = [{"role": "user", "content": question}, {"role": "assistant", "content": solution}]
    return Row(str(record.get("task_id", record.get("id", ""))), turns, meta=dict(record))


def _has_references(sample: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    return next((name for name in names if all(name in record for record in sample)), "")


def _reference_row(record: SourceRecord, column: str, config: PrepareConfig) -> Row | str:
    value = record.value.get(column)
    if value is None:
        return "missing_field"
    labelled = column in ("label", "labels") or config.task == "classification"
    listed = isinstance(value, list) and (column == "references" or not any(isinstance(v, dict | list) for v in value))
    several = [_as_text(v) for v in value if v is not None] if listed else []
    question = next((record.value[n] for n in PROMPTS if n != column and isinstance(record.value.get(n), str)), None)
    turns: list[Message] = [{"role": "user", "content": question}] if question else []
    meta: dict[str, Any] = {
        **{n: v for n, v in record.value.items() if isinstance(v, str | int | float) and n not in NO_META},
        "source": record.source,
        "line": record.line,
    }
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
        if column not in (*parsed.used, *meta, "id") and is_flat(cell):
            meta[column] = finite(cell)
    row_meta = record.value.get("meta")  # a split's file
    if isinstance(row_meta, dict):
        meta = {**row_meta, **meta, **{name: row_meta.get(name, meta[name]) for name in ("source", "line")}}
    label = parsed.label
    if label is None and record.value.get("label") == parsed.messages[-1]["content"]:
        label = record.value["label"]  # of a split's file
    return Row("", parsed.messages, label, parsed.tools, meta | parsed.extra)


def _ids(items: Sequence[SourceRecord | Reject]) -> list[str]:
    """An id for each record: its own where no other has it, else its line, else its number."""

    values = [item.value if isinstance(item, SourceRecord) else {} for item in items]
    names = [next((str(value[n]) for n in IDS if isinstance(value.get(n), str | int)), None) for value in values]
    counts = Counter(names)
    by_line = len({(item.source, item.line) for item in items}) == len(items)  # an array may be on one line
    return [
        name if name is not None and counts[name] == 1 else f"{Path(item.source).name}:{item.line if by_line else n}"
        for n, (name, item) in enumerate(zip(names, items, strict=True), 1)
    ]
