"""Runs: sorted, filtered, grouped by data set; up to eight are compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from itertools import groupby
from typing import Any

from starlette.requests import Request

from tuneloop.core.errors import UserError
from tuneloop.web.runs import RunLine, asked_number, loss_picture, run_lines, score_picture
from tuneloop.web.sources import Sources

ON_A_PAGE = 50
SORTS: dict[str, Callable[[RunLine], Any]] = {
    "changed": lambda line: line.changed, "name": lambda line: line.place, "state": lambda line: line.state,
    "model": lambda line: line.model, "score": lambda line: line.score, "loss": lambda line: line.loss,
    "seconds": lambda line: line.seconds, "usd": lambda line: line.usd, "steps": lambda line: line.steps,
}  # fmt: skip
RISING = {"name", "model", "state", "loss"}  # what is sorted from the lowest on at first
EXACT = ("model", "dataset", "method", "state", "tags")
FILTERS = ("text", *EXACT, "metric", "least", "most", "since", "until")
TITLES = {"dataset": "data set", "tags": "tag", "least": "at least", "most": "at most"}


def show(request: Request, sources: Sources) -> dict[str, Any]:
    """What the page shows."""
    query: Mapping[str, str] = request.query_params
    every = run_lines(sources)
    lines = filtered(every, query)
    metric = query.get("metric", "")
    by = query.get("sort", "changed")
    if by not in SORTS:
        raise UserError("Runs can't be sorted by this", where=by[:80], next_step=", ".join(SORTS))
    value: Callable[[RunLine], Any] = SORTS[by]
    if by == "score" and metric:
        value = partial(_value, metric=metric)
    down = query.get("order", "up" if by in RISING else "down") == "down"
    there = sorted((line for line in lines if value(line) is not None), key=value, reverse=down)
    lines = [*there, *(line for line in lines if value(line) is None)]
    groups = query.get("group", "dataset") == "dataset"
    if groups:  # the group with the first line first
        order = {name: number for number, name in enumerate(dict.fromkeys(line.dataset for line in lines))}
        lines.sort(key=lambda line: order[line.dataset])
    size = ON_A_PAGE if sources.files is None else max(len(lines), 1)
    number = max(1, math.ceil(len(lines) / size))
    at = min(max(asked_number(query.get("page", "")) or 1, 1), number)
    part = lines[int(at - 1) * size : int(at) * size]
    chosen = {name: value for name, value in query.items() if value and name in FILTERS}
    rest = {name: {key: parameter for key, parameter in query.items() if key not in (name, "page")} for name in chosen}
    return {
        "groups": [(name, list(of)) for name, of in groupby(part, lambda line: line.dataset if groups else "")],
        "total": len(every), "matching": len(lines), "at": int(at), "pages": number, "sort": by, "down": down,
        "metric": metric, "score": lambda line: score_picture(line, metric or line.primary),
        "curve": partial(loss_picture, sources), "titles": TITLES,
        "chips": {name: (value, rest[name]) for name, value in chosen.items()},
        "choices": {name: sorted({part for line in every for part in _words(line, name)} - {""}) for name in EXACT},
        "metrics": sorted({name for line in every for name in line.metrics}),
    }  # fmt: skip


def filtered(lines: Sequence[RunLine], query: Mapping[str, str]) -> list[RunLine]:
    """Runs that a query asks for: `text`, those of `EXACT`, `metric` from `least` to `most`, and days `since` and
    `until`. Raises UserError: a number or a day that is none."""
    terms = query.get("text", "").casefold().split()
    exact = [(name, query[name]) for name in EXACT if query.get(name)]
    least, most = (asked_number(query.get(name, "")) for name in ("least", "most"))
    low, high = -math.inf if least is None else least, math.inf if most is None else most
    since, until = _day(query.get("since", "")), _day(query.get("until", ""))
    metric = query.get("metric", "")

    def fits(line: RunLine) -> bool:
        if any(value not in _words(line, name) for name, value in exact):
            return False
        if (since and line.changed < since) or (until and line.changed >= until + 86_400):
            return False
        value = _value(line, metric)
        if (low, high) != (-math.inf, math.inf) and (value is None or not low <= value <= high):
            return False
        values = [word for name in EXACT for word in _words(line, name)]
        text = " ".join([line.place, line.verdict, *values]).casefold()
        return all(word in text for word in terms)

    return [line for line in lines if fits(line)]


def _words(line: RunLine, name: str) -> Sequence[str]:
    value = getattr(line, name)
    return [value] if isinstance(value, str) else value


def _value(line: RunLine, metric: str) -> float | None:
    return line.metrics[metric][0] if metric in line.metrics else None if metric else line.score


def _day(text: str) -> float | None:
    if not text.strip():
        return None
    with suppress(ValueError):
        return datetime.fromisoformat(text).timestamp()
    raise UserError("This is not a day", where=text[:80], next_step="write it as 2026-01-31")
