"""Answers made elsewhere, from a file: each found to its row by id or by number."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tuneloop.types import Answer, Row, UserError

NAMES = ("prediction", "answer", "output", "response", "completion", "generated")


def answers_from(records: Sequence[Any], rows: Sequence[Row], where: str) -> list[Answer]:
    """The answers to rows, in their order.

    Args:
        records: `{"id" or "row", "prediction"}` each. `id` is that of the row, or its record's own (`meta.id`); `row`
            is the row's number, from 0 or from 1 (the file's lowest number tells). Without both, the order counts.
            Predictions that are no text are taken as JSON; a list of texts is several answers to one prompt (the first
            is scored; see `several_from`).
        rows: what is evaluated.
        where: the file, for errors.

    Raises:
        UserError: a record without prediction, a row without one or with two, an id that no row has.
    """
    return [Answer(texts[0]) for texts in several_from(records, rows, where)]


def several_from(records: Sequence[Any], rows: Sequence[Row], where: str) -> list[list[str]]:
    """`answers_from` with all answers of a row, for pass@k."""
    if not records:
        raise UserError("The file holds no predictions", where=where, next_step='write rows {"id", "prediction"}')
    found: dict[int, list[str]] = {}
    places = _places(records, rows, where)
    for number, (record, place) in enumerate(zip(records, places, strict=True), 1):
        if place in found:
            raise UserError(
                f"Two predictions for row {rows[place].id}",
                where=f"{where}, record {number}",
                next_step="keep one of them; several answers of one prompt are a list",
            )
        found[place] = _texts(record, rows[place], f"{where}, record {number}")
    missing = [row.id for i, row in enumerate(rows) if i not in found]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(rows)} rows have no prediction (the first: {missing[0]})",
            where=where,
            next_step='add them; a row without an answer has the prediction ""',
        )
    return [found[i] for i in range(len(rows))]


def _places(records: Sequence[Any], rows: Sequence[Row], where: str) -> list[int]:
    """Which row each record is about."""
    for number, record in enumerate(records, 1):
        if not isinstance(record, Mapping):
            raise UserError("Not an object", where=f"{where}, record {number}", next_step='write {"id", "prediction"}')
    if all("id" in record for record in records):
        return _by_id(records, rows, where)
    if all("row" in record for record in records):
        return _by_number(records, rows, where)
    if any("id" in record or "row" in record for record in records):
        raise UserError(
            "Some predictions have an id and some have not", where=where, next_step="give all an id, or none"
        )
    if len(records) != len(rows):
        raise UserError(
            f"{len(records)} predictions without ids for {len(rows)} rows",
            where=where,
            next_step='give each its row: {"id": ..., "prediction": ...}',
        )
    return list(range(len(rows)))


def _by_id(records: Sequence[Mapping[str, Any]], rows: Sequence[Row], where: str) -> list[int]:
    known: dict[str, int] = {}
    for i, row in enumerate(rows):
        if row.meta.get("id") is not None:  # the source's own id, in a prepared data set
            known.setdefault(str(row.meta["id"]), i)
    known |= {row.id: i for i, row in enumerate(rows)}
    places = []
    for number, record in enumerate(records, 1):
        place = known.get(str(record["id"]))
        if place is None:
            raise UserError(
                f"No row has the id {str(record['id'])[:60]!r}",
                where=f"{where}, record {number}",
                next_step=f"ids of the rows are as in {rows[0].id!r}; is this the right split or reference file?",
            )
        places.append(place)
    return places


def _by_number(records: Sequence[Mapping[str, Any]], rows: Sequence[Row], where: str) -> list[int]:
    numbers = []
    for i, record in enumerate(records, 1):
        number = record["row"]
        number = int(number) if isinstance(number, str) and number.isdecimal() else number
        if not isinstance(number, int) or isinstance(number, bool):
            raise UserError(
                f"Not a row's number: {record['row']!r}", where=f"{where}, record {i}", next_step="count from 0"
            )
        numbers.append(number)
    first = 1 if min(numbers) == 1 and max(numbers) <= len(rows) else 0
    for i, number in enumerate(numbers, 1):
        if not 0 <= number - first < len(rows):
            raise UserError(
                f"There is no row {number}", where=f"{where}, record {i}", next_step=f"there are {len(rows)} rows"
            )
    return [number - first for number in numbers]


def _texts(record: Mapping[str, Any], row: Row, where: str) -> list[str]:
    name = next((n for n in NAMES if n in record), None)
    if name is None:
        raise UserError("No prediction", where=where, next_step='write {"id": ..., "prediction": "..."}')
    value = record[name]
    if isinstance(value, list) and value and all(isinstance(v, str) for v in value):
        return [", ".join(value)] if "labels" in row.meta else list(value)  # several labels are one answer
    return ["" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)]
