"""A plain table, CSV or JSON, and that of ragas: a column with ids or inputs, and columns of scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.evaluation.foreign.record import ForeignEvaluation, Observation, collected, key_of, score_value

IDS = ("id", "item_id", "sample_id", "example_id", "row_id", "doc_id", "question_id", "task_id", "idx", "index")
INPUTS = ("user_input", "input", "prompt", "question", "query", "text", "messages", "request")
_ANSWERS = ("output", "answer", "response", "prediction", "completion", "generation")
_REFERENCES = ("reference", "target", "expected", "label", "gold", "ground_truth", "ideal")
_EPOCHS = ("epoch", "repeat", "repetition", "trial", "attempt", "seed", "run", "sample_idx")
_NOT_SCORES = {*IDS, *INPUTS, *_ANSWERS, *_REFERENCES, *_EPOCHS, "time", "timestamp", "created_at", "line", "row"}


def read_records(source: str, records: Sequence[Mapping[str, Any]]) -> list[ForeignEvaluation]:
    """The rows of a table. Raises UserError: no column of ids or inputs, or none of scores."""
    columns = dict.fromkeys(str(name) for record in records for name in record)
    by_lower = {name.casefold().strip(): name for name in columns}
    ids, inputs = (next((by_lower[n] for n in names if n in by_lower), "") for names in (IDS, INPUTS))
    scores = [c for c in columns if c.casefold().strip() not in _NOT_SCORES and _holds_scores(records, c)]
    if not (ids or inputs) or not scores:
        message = "This is no evaluation that can be read: "
        message += "no column has scores" if ids or inputs else "no column has ids or inputs"
        if {"prediction", *_ANSWERS} & by_lower.keys() and not scores:
            step = "give --references FILE, or --dataset FOLDER"
            raise UserError("This is a file of predictions: against which references?", where=source, next_step=step)
        step = f"its columns are {', '.join(list(columns)[:8])}; give `id` and a column of numbers for each metric"
        raise UserError(message, where=source, next_step=step)
    of_ragas = "user_input" in by_lower or {"question", "contexts"} <= by_lower.keys()
    evaluation = collected(
        source, "ragas" if of_ragas else "table", "", _observations(source, records, ids, inputs, scores)
    )
    return [replace(evaluation, id_column=ids.casefold().strip())]


def _holds_scores(records: Sequence[Mapping[str, Any]], column: str) -> bool:
    """Whether every cell that is filled is a score."""
    cells = [record[column] for record in records if record.get(column) not in (None, "")]
    numbers = (score_value(cell) == score_value(cell) or _is_nan(cell) for cell in cells)
    return bool(cells) and all(numbers)


def _is_nan(cell: Any) -> bool:
    return str(cell).strip().casefold() in ("nan", "none", "null", "na", "n/a")


def _observations(
    source: str, records: Sequence[Mapping[str, Any]], ids: str, inputs: str, scores: Sequence[str]
) -> Iterator[Observation]:
    def cell(record: Mapping[str, Any], names: Sequence[str]) -> str:
        return str(next((v for n, v in record.items() if str(n).casefold() in names and v is not None), ""))

    for number, record in enumerate(records, 1):
        text, given = record.get(inputs) if inputs else None, record.get(ids) if ids else None
        row_id = str(given) if given not in (None, "") else key_of(text)
        if not row_id:
            message = f"Row {number} has neither an id nor an input"
            raise UserError(message, where=source, next_step=f"fill the column {ids or inputs}, or leave the row out")
        used = {ids, inputs, *scores}
        yield Observation(
            id=row_id,
            scores={name: record.get(name) for name in scores},
            input=text,
            reference=cell(record, _REFERENCES),
            answer=cell(record, _ANSWERS),
            epoch=cell(record, _EPOCHS),
            meta={n: v for n, v in record.items() if n not in used and n.casefold() not in _NOT_SCORES},
        )
