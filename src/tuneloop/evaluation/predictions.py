"""Answers made elsewhere, from a file: each found to its row by id or by number."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.units import counted
from tuneloop.evaluation.metrics.kinds import problem_of
from tuneloop.evaluation.metrics.labels import NO_LABELS
from tuneloop.records.rows import Row

NAMES = ("prediction", "predicted", "answer", "output", "response", "completion", "generated", "label", "labels")
IDS = ("id", "task_id")


@dataclass(frozen=True)
class MatchedPredictions:
    """What a file of predictions says of rows."""

    answers: list[list[str]]  # of each row: the first one and further ones
    unknown: list[str]  # ids that no row has

    def missing(self, rows: Sequence[Row]) -> list[str]:
        """The ids of rows without an answer."""
        return [row.id for row, answer in zip(rows, self.answers, strict=True) if not answer]


def answers_from(
    records: Sequence[Any], rows: Sequence[Row], where: str, *, all_rows: Sequence[Row] = (), order: Sequence[str] = ()
) -> MatchedPredictions:
    """Find the answers to rows.

    Rows that the file leaves out, and ids that no row has, are reported, not refused: a job elsewhere that has lost
    some rows is still measured on all of them. What could be about the wrong rows is refused.

    `records`: `{"id" or "row", "prediction"}` each. `id` is that of the row, or its record's own (`meta.id`); `row` is
    the record's number, from 0 or from 1 (the file's lowest number tells). Without both, the order counts. Ids that are
    numbers, where no row has such an id, are taken as `row`. Predictions that are no text are taken as JSON; a list of
    texts is several answers to one prompt, and so are, for programs, several records. `all_rows`: all that there may be
    predictions for; default: `rows`. `order`: the ids of all records that are counted; default: of `all_rows`. Raises
    UserError: a record without prediction, a row with two, no record about any row, numbers that leave open whether
    they count from 0 or from 1.
    """
    if not records:
        raise UserError("The file holds no predictions", where=where, next_step='write rows {"id", "prediction"}')
    row_of, all_rows = {row.id: row for row in rows}, all_rows or rows
    texts: dict[str, list[str]] = {}
    unknown: list[str] = []
    order = order or [row.id for row in all_rows]
    places, everything = _places(records, all_rows, order, where), {*order, *row_of}
    for number, (record, row_id) in enumerate(zip(records, places, strict=True), 1):
        row = row_of.get(row_id)
        if row_id not in everything:
            unknown.append(row_id)
        if row is None:
            continue  # of a row that is not evaluated
        location = f"{where}, record {number}"
        if row_id in texts and problem_of(row) is None:
            next_step = "keep one of them; several answers of one prompt are a list"
            raise UserError(f"Two predictions for row {row_id}", where=location, next_step=next_step)
        texts[row_id] = texts.get(row_id, []) + _texts(record, row, location)
    if not texts:
        message = f"None of its predictions is about the {counted(len(rows), 'row')} (the first: {places[0][:60]!r})"
        next_step = f"ids of the rows are as in {rows[0].id!r}; is this the right split or reference file?"
        raise UserError(message, where=where, next_step=next_step)
    return MatchedPredictions([texts.get(row.id, []) for row in rows], unknown)


def _places(records: Sequence[Any], all_rows: Sequence[Row], order: Sequence[str], where: str) -> list[str]:
    for number, record in enumerate(records, 1):
        if not isinstance(record, Mapping):
            raise UserError("Not an object", where=f"{where}, record {number}", next_step='write {"id", "prediction"}')
    for name in IDS:
        if all(name in record for record in records):
            ids = [record[name] for record in records]
            sources = ((row.meta.get("id"), row.id) for row in reversed(all_rows))  # a prepared data set keeps both
            ids_of = {str(source): row_id for source, row_id in sources if source is not None}
            ids_of |= {row_id: row_id for row_id in order}
            if not any(str(id_) in ids_of for id_ in ids) and all(_number(id_) is not None for id_ in ids):
                return _by_number(ids, order, where)
            return [ids_of.get(str(id_), str(id_)) for id_ in ids]
    if all("row" in record for record in records):
        return _by_number([record["row"] for record in records], order, where)
    if any("id" in record or "row" in record for record in records):
        message = "Some predictions have an id and some have not"
        raise UserError(message, where=where, next_step="give all an id, or none")
    if len(records) != len(order):
        message = f"{len(records)} predictions without ids for {counted(len(order), 'row')}"
        raise UserError(message, where=where, next_step='give each its row: {"id": ..., "prediction": ...}')
    return list(order)


def _by_number(values: Sequence[Any], order: Sequence[str], where: str) -> list[str]:
    numbers = []
    for i, value in enumerate(values, 1):
        number = _number(value)
        if number is None:
            raise UserError(f"Not a row's number: {value!r}", where=f"{where}, record {i}", next_step="count from 0")
        numbers.append(number)
    if 0 not in numbers and len(order) not in numbers and 0 < max(numbers) < len(order):
        message = f"Do these numbers count rows from 0 or from 1? Rows 0 and {len(order)} are both missing"
        step = 'give ids instead, or add a record for the first or last row, with the prediction "" if need be'
        raise UserError(message, where=where, next_step=step)
    first = 1 if min(numbers) > 0 and max(numbers) == len(order) else 0
    for i, number in enumerate(numbers, 1):
        if not 0 <= number - first < len(order):
            there = f"there are {counted(len(order), 'row')}"
            raise UserError(f"There is no row {number}", where=f"{where}, record {i}", next_step=there)
    return [order[number - first] for number in numbers]


def _number(value: Any) -> int | None:
    """A whole number, also as CSV (text) and tables with gaps (3.0) have it."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 16:
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _texts(record: Mapping[str, Any], row: Row, where: str) -> list[str]:
    name = next((n for n in NAMES if n in record), None)
    if name is None:
        raise UserError("No prediction", where=where, next_step='write {"id": ..., "prediction": "..."}')
    value = record[name]
    if "labels" in row.meta and (isinstance(value, list) or not value):  # several labels are one answer
        return [", ".join(map(str, value or ())) or NO_LABELS]
    if isinstance(value, list) and value and all(isinstance(v, str) for v in value):
        return list(value)
    return ["" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)]
