"""The user's own scorers: functions in a file, named in the recipe."""

from __future__ import annotations

import importlib.util
import inspect
import math
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.evaluate.metrics import last_user_turn, references_of
from tuneloop.records.rows import Row

# What a scorer may ask for, by the names of its parameters.
_NAMES = {
    "prediction": ("prediction", "answer", "output", "response", "completion", "hypothesis", "text"),
    "reference": ("reference", "expected", "target", "label", "gold", "truth"),
    "references": ("references", "targets"),
    "prompt": ("prompt", "question", "input"),
    "row": ("row", "record", "example", "sample"),
    "meta": ("meta", "metadata"),
}
_MEANING = {name: meaning for meaning, names in _NAMES.items() for name in names}
_IN_ORDER = ("prediction", "reference", "row")

Scorer = Callable[[Row, str], Any]


def load_scorer(name: str, place: str) -> Scorer:
    """The function `file.py:function` as one from a row and an answer to a score.

    Its parameters say by their names what it gets: `prediction`, `reference` (the first), `references` (all),
    `prompt` (the last user turn), `row` (the record as in the split's file), `meta`. Other names are filled in this
    order: prediction, reference, row. It returns a number, True or False, or None where the row doesn't count.

    The file runs in this process, with everything that you may do: name only files that you trust.

    Raises:
        UserError: no such file or function, the file fails, or the function asks for more.
    """
    where = f"evaluate.scorers.{name}"
    file, colon, function_name = place.rpartition(":")
    path = Path(file).expanduser()
    if not colon or not function_name.isidentifier() or not file:
        raise UserError(
            f"Not file.py:function: {place!r}", where=where, next_step="write it as in my_scorers.py:polite"
        )
    if not path.is_file():
        raise UserError(f"No file {file!r}", where=where, next_step="the path starts at the current folder")
    spec = importlib.util.spec_from_file_location(f"tuneloop_scorer_{name}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"Not a Python file: {file!r}", where=where, next_step="name a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(
            f"The scorer's file fails: {_told(error, path)}", where=where, next_step="mend the file"
        ) from None
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UserError(f"{file} has no function {function_name!r}", where=where, next_step="check its name")
    wanted = _parameters(function, where)

    def score(row: Row, answer: str) -> Any:
        references = references_of(row)
        given = {
            "prediction": answer, "reference": references[0], "references": references,
            "prompt": last_user_turn(row), "row": row.to_json(), "meta": row.meta,
        }  # fmt: skip
        try:
            return function(**{parameter: given[meaning] for parameter, meaning in wanted.items()})
        except Exception as error:
            raise UserError(
                f"The scorer {name} fails: {_told(error, path)}", where=f"row {row.id}", next_step=f"mend {file}"
            ) from None

    return score


def _parameters(function: Callable[..., Any], where: str) -> dict[str, str]:
    """Parameter -> what it gets."""
    wanted: dict[str, str] = {}
    unnamed = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise UserError("A scorer's parameters can't be positional-only", where=where, next_step="leave out the /")
        if parameter.name in _MEANING:
            wanted[parameter.name] = _MEANING[parameter.name]
        elif parameter.default is parameter.empty:
            unnamed.append(parameter.name)
    left = [meaning for meaning in _IN_ORDER if meaning not in wanted.values()]
    if len(unnamed) > len(left):
        raise UserError(
            f"The scorer asks for {', '.join(unnamed)}",
            where=where,
            next_step=f"name its parameters from {', '.join(_NAMES)}",
        )
    return wanted | dict(zip(unnamed, left, strict=False))


def own_scores(name: str, scorer: Scorer, rows: Sequence[Row], answers: Sequence[str]) -> tuple[list[float], bool]:
    """A scorer's figures for each row (NaN for None), and whether all are right-or-wrong.

    Raises:
        UserError: it fails, or returns something that is no number.
    """
    scores, binary = [], True
    for row, answer in zip(rows, answers, strict=True):
        found = scorer(row, answer)
        if found is None:
            scores.append(math.nan)
            continue
        try:
            value = float(found)
        except (TypeError, ValueError):
            raise UserError(
                f"The scorer {name} returned {type(found).__name__}, not a number",
                where=f"row {row.id}",
                next_step="return a number, True or False, or None where the row doesn't count",
            ) from None
        if math.isinf(value):
            raise UserError(
                f"The scorer {name} returned {value}", where=f"row {row.id}", next_step="return finite numbers"
            )
        binary = binary and (isinstance(found, bool) or value in (0.0, 1.0) or math.isnan(value))
        scores.append(value)
    return scores, binary


def _told(error: Exception, path: Path) -> str:
    """An error with the line of the user's file where it happened."""
    line = next(
        (f.lineno for f in reversed(traceback.extract_tb(error.__traceback__)) if Path(f.filename) == path), None
    )
    place = f" (line {line})" if line else ""
    return f"{type(error).__name__}: {error}{place}"
