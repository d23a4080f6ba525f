"""Answers that are JSON: do they parse, do they fit a schema, are their fields right."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tuneloop.core.bounded_work import TooMuchWork
from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json
from tuneloop.core.json_schema import CHECK_SECONDS, check_fit, schema_problem, validator_of
from tuneloop.core.lazy import np
from tuneloop.core.stats.intervals import Array, Statistics, ratio
from tuneloop.evaluation.metrics.kinds import parse, parses
from tuneloop.records.metric import Metric

METRICS = (
    Metric("field_f1", "field-F1", needs="JSON", meaning="F1 of (path, value) pairs over all rows"),
    Metric("field_precision", "field precision", needs="JSON", meaning="share of the answers' fields that are right"),
    Metric("field_recall", "field recall", needs="JSON", meaning="share of the references' fields that are found"),
    Metric("valid_json", "valid JSON", "share", "higher", "exact McNemar", "JSON", meaning="answers that parse"),
    Metric("schema_valid", "answers that fit the schema", "share", "higher", "exact McNemar", "JSON", "JSON",
           meaning="share of answers that fit `evaluate.json_schema`"),
)  # fmt: skip


def unfenced(text: str) -> str:
    """The content of the first Markdown fence in a text, or the text where there is none."""
    match = re.search(r"```[^\n`]*\n(.*?)```", text, re.DOTALL)
    return match.group(1) if match else text


def schema_check(schema: Mapping[str, Any]) -> Callable[[Any], bool]:
    """Make the function that tells whether a value conforms to a JSON schema. Raises UserError: no valid schema."""
    try:
        if reason := schema_problem(schema, any_keyword=True):
            raise ValueError(reason)
        validator_of(schema)
    except ValueError as error:
        message, step = f"Not a JSON schema: {error}", "fix the schema's file"
        raise UserError(message, where="evaluate.json_schema", next_step=step) from None

    def conforms(value: Any) -> bool:
        try:
            return not check_fit(schema, json.dumps(value)).result()
        except RecursionError:
            return False
        except TooMuchWork:
            problem, step = (
                f"A check takes more than {CHECK_SECONDS:g} s",
                "use fewer references to what has references",
            )
            raise UserError(problem, where="evaluate.json_schema", next_step=step) from None

    return conforms


def read_schema(path: str) -> dict[str, Any]:
    """A JSON schema from its file."""
    schema = read_json(Path(path))
    if not isinstance(schema, dict):
        raise UserError("A JSON schema is an object", where=path, next_step="see evaluate.json_schema")
    return schema


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """A value's fields as (path, value) pairs; the items of a list share a path, so their order doesn't count. Numbers
    are compared as numbers (1 equals 1.0), texts without the white space around them."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and value:
        for inner in value:
            yield from leaves(inner, f"{prefix}[]")
    else:
        yield prefix, as_text(value)


def as_text(value: Any) -> str:
    """A leaf's value for comparison."""
    if isinstance(value, str):
        return f'"{value.strip()}"'
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        value = int(value)
    try:
        return json.dumps(value)
    except ValueError:  # an integer of thousands of digits
        return hex(value)


def structured_statistics(
    references: Sequence[Sequence[str]], answers: Sequence[str], conforms: Sequence[float] | None
) -> Statistics:
    """Share of answers that are valid JSON and fit the schema; precision, recall and F1 of fields.

    A field is a (path, value) pair, right if the reference has the same; counts are summed over all rows (micro). Of
    several references, the one with the best F1 counts. An answer that is no JSON has no field. `conforms`: 1 or 0 for
    each row, whether the answer fits the schema; None without schema.
    """
    n = len(answers)
    rows = np.zeros((n, 6))  # hits, fields of the answer, of the reference, valid, conforming, rows
    valid, scores = [], []
    for i, (row, answer) in enumerate(zip(references, answers, strict=True)):
        fields = _leaves(answer)
        valid.append(float(parses(answer)))
        options = []
        for right in map(_leaves, row):
            hits, both = (fields & right).total(), fields.total() + right.total()
            options.append((2 * hits / both if both else 1.0, hits, right.total()))
        best, hits, total = max(options)
        scores.append(best)
        rows[i] = hits, fields.total(), total, valid[-1], conforms[i] if conforms else 0.0, 1.0
    values: dict[str, Callable[[Array], Array]] = {
        "field_f1": lambda sums: ratio(2 * sums[:, 0], sums[:, 1] + sums[:, 2]),
        "field_precision": lambda sums: ratio(sums[:, 0], sums[:, 1]),
        "field_recall": lambda sums: ratio(sums[:, 0], sums[:, 2]),
        "valid_json": lambda sums: ratio(sums[:, 3], sums[:, 5], empty=np.nan),
    }
    row_scores = {"field_f1": scores, "valid_json": valid}
    if conforms is not None:
        values["schema_valid"] = lambda sums: ratio(sums[:, 4], sums[:, 5], empty=np.nan)
        row_scores["schema_valid"] = list(conforms)
    return Statistics(rows, values, row_scores, frozenset({"valid_json", "schema_valid"} & row_scores.keys()))


def _leaves(text: str) -> Counter[tuple[str, str]]:
    """The fields of an answer, with how often each occurs; none of a text that is no JSON."""
    try:
        return Counter(leaves(parse(text)))
    except (ValueError, RecursionError):
        return Counter()
