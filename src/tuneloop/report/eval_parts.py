"""The parts of a page about an evaluation that say where it is good and where not: labels, slices, calibration, costs.

Used by the run's report and by the page of an evaluation or a comparison. Each part is left out where `eval.json`
does not hold it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from tuneloop.report import charts, eval_charts
from tuneloop.report.facts import (
    CONTENDERS,
    figure,
    interval,
    metric_title,
    minutes,
    number,
    p_value,
    score_of,
    section,
    usd,
)

MOST_LABELS = {charts.WIDE: 24, charts.NARROW: 12}  # of a confusion matrix that can be read, by its width
MOST_SLICES = 14  # drawn for one field
REST = "all other"
INVALID = "(invalid)"


def evaluation_parts(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Everything the shared templates show, computed and written out."""
    return {
        "labels": _labels(evaluation),
        "slices": _slices(evaluation),
        "calibration": _calibration(evaluation),
        "errors": [
            {"terms": [str(t) for t in e.get("terms") or []], "n": n, "example": str(e.get("example") or "")}
            for e in _records(evaluation.get("errors"))
            if (n := number(e.get("n")))
        ],
        "costs": _costs(evaluation),
    }


def _records(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


# --- labels ------------------------------------------------------------------------------------


def _labels(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    classes = [
        {
            "label": str(c.get("label")),
            "n": number(c.get("n")) or 0,
            **{key: figure(number(c.get(key))) for key in ("precision", "recall", "f1")},
            "invalid": number(c.get("invalid")) or 0,
        }
        for c in _records(evaluation.get("per_class"))
    ]
    confusion = section(evaluation.get("confusion"))
    cells = {
        (str(cell[0]), INVALID if cell[1] is None else str(cell[1])): int(cell[2])
        for cell in confusion.get("cells") or []
        if isinstance(cell, list) and len(cell) == 3 and number(cell[2]) is not None
    }
    if not classes and not cells:
        return {}
    pairs = sorted(((n, a, b) for (a, b), n in cells.items() if a != b), reverse=True)[:10]
    return {
        "classes": sorted(classes, key=lambda c: (c["f1"], c["label"])),
        "chart": Markup("").join(
            eval_charts.confusion_chart(*_most_confused(cells, most), width) for width, most in MOST_LABELS.items()
        ),
        "part": len({a for a, _ in cells} | {b for _, b in cells}) > MOST_LABELS[charts.NARROW],
        "total": len({a for a, _ in cells}),
        "pairs": pairs,
    }


def _most_confused(cells: Mapping[tuple[str, str], int], most: int) -> tuple[list[str], dict[tuple[str, str], int]]:
    """The labels to draw, those with the most errors first to be kept; the rest is one row and column."""
    names = sorted({name for pair in cells for name in pair}, key=lambda name: (name == INVALID, name))
    if len(names) <= most:
        return names, dict(cells)
    errors: Counter[str] = Counter()
    for (a, b), n in cells.items():
        if a != b:
            errors[a] += n
            errors[b] += n
    kept = {name for name, _ in errors.most_common(most - 1)}
    folded: Counter[tuple[str, str]] = Counter()
    for (a, b), n in cells.items():
        folded[a if a in kept else REST, b if b in kept else REST] += n
    return [*(name for name in names if name in kept), REST], dict(folded)


# --- slices ------------------------------------------------------------------------------------


def _slices(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    metric = str(evaluation.get("primary") or "accuracy")
    found = [s for s in _records(evaluation.get("slices")) if number(s.get("score")) is not None]
    if not found:
        return {}
    whole = score_of(section(evaluation.get("metrics")).get(metric))
    fields: dict[str, list[dict[str, Any]]] = {}
    for s in found:
        fields.setdefault(str(s.get("field")), []).append(
            {
                "value": str(s.get("value")),
                "n": number(s.get("n")) or 0,
                "score": number(s["score"]),
                "low": number(s.get("low")),
                "high": number(s.get("high")),
                "verdict": str(s.get("verdict") or ""),
            }
        )
    drawn = []
    for field, each in fields.items():
        # Of many values those that differ most are drawn.
        kept = sorted(each, key=lambda s: s["score"])
        if len(kept) > MOST_SLICES:
            kept = kept[: MOST_SLICES - 4] + kept[-4:]
        chart = charts.chart_pair(eval_charts.slice_chart, kept, metric, whole.value if whole else None)
        drawn.append({"field": field, "chart": chart, "shown": len(kept), "total": len(each)})
    worse = [
        {
            "field": str(s.get("field")),
            "value": str(s.get("value")),
            "n": number(s.get("n")) or 0,
            "score": f"{figure(number(s['score']), metric)} {interval(score_of({'value': s['score'], **s}), metric)}",
            "rest": figure(number(s.get("rest")), metric),
            "p": p_value(number(s.get("p_holm"))),
        }
        for s in found
        if s.get("verdict") == "worse"
    ]
    return {"metric": metric_title(metric), "fields": drawn, "worse": worse, "total": len(found)}


# --- calibration, costs ------------------------------------------------------------------------


def _calibration(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    found = section(evaluation.get("calibration"))
    bins = [
        b
        for b in _records(found.get("bins"))
        if all(number(b.get(key)) is not None for key in ("confidence", "accuracy", "n"))
    ]
    if not bins:
        return {}
    ece = score_of(found.get("ece"))
    return {
        "chart": charts.chart_pair(eval_charts.reliability_chart, bins),
        "ece": f"{ece.value:.3f}" + (f" [{ece.low:.3f}, {ece.high:.3f}]" if interval(ece) else "") if ece else "",
    }


def _costs(evaluation: Mapping[str, Any]) -> list[dict[str, str]]:
    """Each contender's time, tokens and price of an answer."""
    n = number(evaluation.get("n"))
    costs = section(evaluation.get("costs"))
    own = str(evaluation.get("name") or "tuned")
    order = [*(name for name in CONTENDERS if name in costs), *(name for name in costs if name not in CONTENDERS)]
    lines = []
    for name in sorted(order, key=lambda name: name == own):
        cost = {key: number(value) for key, value in section(costs[name]).items()}
        if not n or not any(cost.values()):
            continue
        a_row = {key: value / n for key, value in cost.items() if value is not None}
        usd_of = a_row.get("usd")
        lines.append(
            {
                "name": name,
                "tuned": "yes" if name == own else "",
                "seconds": f"{a_row['seconds']:.3g} s" if "seconds" in a_row else "–",
                "prompt": f"{a_row['prompt_tokens']:,.0f}" if a_row.get("prompt_tokens") else "–",
                "answer": f"{a_row['tokens']:,.0f}" if a_row.get("tokens") else "–",
                "thousand": usd(1000 * usd_of) if usd_of is not None else "–",
                "whole": minutes(cost["seconds"] / 60) if cost.get("seconds") is not None else "–",  # type: ignore[operator]
            }
        )
    return lines
