"""What a recipe adds: parts of an answer scored on their own, as `FIELD.METRIC`, and the user's scorers in a file."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args

from tuneloop.core.errors import UserError
from tuneloop.core.patterns import Pattern, compile_pattern
from tuneloop.core.python_file import error_with_line, run_python_file
from tuneloop.records.metric import Better, Metric, Scale, Test
from tuneloop.records.rows import Row, last_user_turn, references_of

METRICS = (
    Metric("invalid_rate", "invalid answers", "share", "lower", "exact McNemar", "fields", headline="valid answers",
           gained="valid answers",
           meaning="share of answers that name no allowed label, lack a field or are no JSON where that is required"),
)  # fmt: skip

# What a scorer may ask for, by the names of its parameters.
_NAMES = {
    "prediction": ("prediction", "answer", "output", "response", "completion", "hypothesis", "text"),
    "reference": ("reference", "expected", "target", "label", "gold", "truth"),
    "references": ("references", "targets"), "prompt": ("prompt", "question", "input"),
    "row": ("row", "record", "example", "sample"), "meta": ("meta", "metadata"),
}  # fmt: skip
_MEANING = {name: meaning for meaning, names in _NAMES.items() for name in names}
_IN_ORDER = ("prediction", "reference", "row")
Function = TypeVar("Function", bound=Callable[..., Any])
DECLARED = "__tuneloop_metric__"  # attribute of a function that `metric` has declared


def metric(
    title: str = "",
    *,
    better: Better = "higher",
    scale: Scale = "0..1",
    test: Test = "by its scores",
    headline: bool = True,
    decimals: int | None = None,
    least_margin: float | None = None,
) -> Callable[[Function], Function]:
    """Declare a scorer of your own (`evaluate.scorers`) as a metric; what is left out follows from its name and scores.

    Args:
        title: as people read it.
        better: `higher`, `lower`, or `neither`: then it is shown and not compared.
        scale: `share` of rows, `0..1`, `0..100`, or `from 0`.
        test: `exact McNemar` (scores are 0 or 1), `paired bootstrap`, or `none`.
        headline: whether a verdict rests on it and tables show it.
        decimals: in tables.
        least_margin: differences below it are worth no argument; `tuneloop gate --init` proposes no smaller margin.
    """
    choices = {"better": (Better, better), "scale": (Scale, scale), "test": (Test, test)}
    for key, (kind, value) in choices.items():
        if value not in get_args(kind):
            raise ValueError(f"{key}={value!r}: choose one of {', '.join(map(repr, get_args(kind)))}")
    settings = {"title": title, "better": better, "scale": scale, "test": test, "decimals": decimals,
                "least_margin": least_margin, "headline": "own" if headline else ""}  # fmt: skip

    def declared(function: Function) -> Function:
        setattr(function, DECLARED, own_metric(getattr(function, "__name__", "metric"), **settings))
        return function

    return declared


def own_metric(name: str, **settings: Any) -> Metric:
    """A metric of the user's: named as in the recipe, with what is declared of it."""
    title = settings.pop("title", "") or name.replace("_", " ")
    return Metric(name, title, **{"test": "by its scores", "needs": "scorer", "headline": "own", **settings})


def compile_fields(fields: Mapping[str, str]) -> dict[str, Pattern]:
    """Check and compile field patterns; `^` and `$` mean the ends of a line. Raises UserError: a pattern is no regular
    expression, or hasn't exactly one group."""
    compiled = {}
    for name, pattern in fields.items():
        where = f"evaluate.fields.{name}"
        try:
            compiled[name] = compile_pattern(pattern, re.MULTILINE)
        except ValueError as error:
            message = f"Not a regular expression: {error}"
            raise UserError(message, where=where, next_step="write it as in 'Queue: (.+)'") from None
        if compiled[name].groups != 1:
            message = f"A field's pattern needs exactly one group, this one has {compiled[name].groups}: {pattern!r}"
            next_step = "put (...) around the part to compare, and (?:...) around other groups"
            raise UserError(message, where=where, next_step=next_step)
    return compiled


def extract(pattern: Pattern, text: str) -> str | None:
    """The trimmed content of the pattern's group, or None where it doesn't match."""
    match = pattern.search(text)
    return match.group(1).strip() if match and match.group(1) is not None else None


def values_repeat(values: Sequence[str]) -> bool:
    """Whether a field's values are few enough to be treated as labels: at most max(2, n / 3) different ones."""
    return len(set(values)) <= max(2, len(values) / 3)


@dataclass(frozen=True)
class Scorer:
    """A scorer of the user's: a function from a row and an answer to a score, and what is declared of the metric."""

    metric: Metric
    score: Callable[[Row, str], Any]

    def __call__(self, row: Row, answer: str) -> Any:
        return self.score(row, answer)


def load_scorer(name: str, scorer_path: str) -> Scorer:
    """The function `file.py:function` as a scorer; what it declares of itself (`tuneloop.metric`) comes with it.

    Its parameters say by their names what it gets: `prediction`, `reference` (the first), `references` (all),
    `prompt` (the last user turn), `row` (the record as in the split's file), `meta`. Other names are filled in this
    order: prediction, reference, row. It returns a number, True or False, or None where the row doesn't count.

    The file runs in this process, with everything that you may do: name only files that you trust.

    Raises UserError: no such file or function, the file fails, or the function asks for more.
    """
    where = f"evaluate.scorers.{name}"
    file, colon, function_name = scorer_path.rpartition(":")
    path = Path(file).expanduser()
    if not colon or not function_name.isidentifier() or not file:
        next_step = "write it as in my_scorers.py:polite"
        raise UserError(f"Not file.py:function: {scorer_path!r}", where=where, next_step=next_step)
    module = run_python_file(file, where, "scorer's file")
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UserError(f"{file} has no function {function_name!r}", where=where, next_step="check its name")
    parameters = _parameters(function, where)

    def score(row: Row, answer: str) -> Any:
        references = references_of(row)
        values = {
            "prediction": answer, "reference": references[0], "references": references,
            "prompt": last_user_turn(row), "row": row.to_json(), "meta": row.meta,
        }  # fmt: skip
        try:
            return function(**{parameter: values[meaning] for parameter, meaning in parameters.items()})
        except Exception as error:
            message = f"The scorer {name} fails: {error_with_line(error, path)}"
            raise UserError(message, where=f"row {row.id}", next_step=f"fix {file}") from None

    declared = getattr(function, DECLARED, None)
    metric = declared if isinstance(declared, Metric) else own_metric(function_name, title=name.replace("_", " "))
    return Scorer(replace(metric, name=name), score)


def _parameters(function: Callable[..., Any], where: str) -> dict[str, str]:
    meanings: dict[str, str] = {}
    unnamed = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise UserError("A scorer's parameters can't be positional-only", where=where, next_step="leave out the /")
        if parameter.name in _MEANING:
            meanings[parameter.name] = _MEANING[parameter.name]
        elif parameter.default is parameter.empty:
            unnamed.append(parameter.name)
    left = [meaning for meaning in _IN_ORDER if meaning not in meanings.values()]
    if len(unnamed) > len(left):
        next_step = f"name its parameters from {', '.join(_NAMES)}"
        raise UserError(f"The scorer asks for {', '.join(unnamed)}", where=where, next_step=next_step)
    return meanings | dict(zip(unnamed, left, strict=False))


def own_scores(scorer: Scorer, rows: Sequence[Row], answers: Sequence[str]) -> list[float]:
    """A scorer's score of each row (NaN for None). Raises UserError: it fails, or returns something that is no number,
    or that its declared test can't compare."""
    scores, name = [], scorer.metric.name
    for row, answer in zip(rows, answers, strict=True):
        result, where = scorer(row, answer), f"row {row.id}"
        try:
            value = math.nan if result is None else float(result)
        except (TypeError, ValueError):
            message = f"The scorer {name} returned {type(result).__name__}, not a number"
            next_step = "return a number, True or False, or None where the row doesn't count"
            raise UserError(message, where=where, next_step=next_step) from None
        if math.isinf(value):
            raise UserError(f"The scorer {name} returned {value}", where=where, next_step="return finite numbers")
        if scorer.metric.test == "exact McNemar" and value not in (0.0, 1.0) and not math.isnan(value):
            message = (
                f"The scorer {name} returned {value:g}; its test, exact McNemar, compares right with wrong: 1 with 0"
            )
            next_step = 'return True or False, or declare test="paired bootstrap"'
            raise UserError(message, where=where, next_step=next_step)
        scores.append(value)
    return scores
