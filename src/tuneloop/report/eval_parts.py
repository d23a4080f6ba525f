"""The parts of a page about an evaluation that say where it is good and where not: labels, slices, calibration, costs.

Used by the run's report and by the page of an evaluation or a comparison. Each part is left out where `eval.json`
does not hold it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from tuneloop.evaluate.metrics import metric_of, title_of
from tuneloop.report import charts, eval_charts
from tuneloop.report.facts import (
    CONTENDERS,
    EFFECTS,
    TUNED,
    Score,
    contenders,
    figure,
    gain_header,
    interval,
    minutes,
    number,
    p_value,
    score_of,
    section,
    signed,
    usd,
    with_interval,
)

MOST_LABELS = {charts.WIDE: 24, charts.NARROW: 12}  # of a confusion matrix that can be read, by its width
MOST_SLICES = 14  # drawn for one field
REST = "all other"
INVALID = "(invalid)"


def evaluation_parts(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Everything the shared templates show, computed and written out."""
    return {
        "own": str(evaluation.get("name") or TUNED),
        "labels": _labels(evaluation),
        "slices": _slices(evaluation),
        "calibration": _calibration(evaluation),
        "errors": [
            {"terms": [str(t) for t in e.get("terms") or []], "n": n, "example": str(e.get("example") or "")}
            for e in _records(evaluation.get("errors"))
            if (n := number(e.get("n")))
        ],
        "ladder": _ladder(evaluation),
        "disagreements": _disagreements(evaluation),
        "effects": _effects(evaluation),
        "consistency": _consistency(evaluation),
        "production": _production(evaluation),
        "judge": _words(section(evaluation.get("judge")).get("words")),
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
    return {
        "classes": sorted(classes, key=lambda c: (c["f1"], c["label"])),
        "chart": Markup("").join(
            eval_charts.confusion_chart(*_most_confused(cells, most), width) for width, most in MOST_LABELS.items()
        ),
        "part": len({a for a, _ in cells} | {b for _, b in cells}) > MOST_LABELS[charts.NARROW],
        "total": len({a for a, _ in cells}),
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
    metric = str(evaluation.get("row_metric") or evaluation.get("primary") or "accuracy")
    figures = ("n", "score", "low", "high", "rest", "p_holm")
    found: list[dict[str, Any]] = [
        {
            **{key: str(s.get(key) or "") for key in ("field", "value", "verdict")},
            **{k: number(s.get(k)) for k in figures},
        }
        for s in _records(evaluation.get("slices"))
    ]
    found = [s | {"n": s["n"] or 0} for s in found if s["score"] is not None]
    if not found:
        return {}
    whole = score_of(section(evaluation.get("metrics")).get(metric))
    fields: dict[str, list[dict[str, Any]]] = {}
    for s in found:
        fields.setdefault(s["field"], []).append(s)
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
            **s,
            "score": f"{figure(s['score'], metric)} {interval(score_of({'value': s['score'], **s}), metric)}",
            "rest": figure(s["rest"], metric),
            "p": p_value(s["p_holm"]),
        }
        for s in found
        if s["verdict"] == "worse"
    ]
    return {"metric": title_of(metric), "fields": drawn, "worse": worse, "total": len(found)}


# --- calibration -------------------------------------------------------------------------------


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


# --- the ladder: gain, cost --------------------------------------------------------------------


def _ladder(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The gain over each system, what its training cost, and what its requests take.

    Gains are those of the comparison, with its sign. Without any (only baselines so far) they are the ladder's, over the prompt;
    without `ladder` there are the costs alone.
    """
    n, own = number(evaluation.get("n")), str(evaluation.get("name") or TUNED)
    costs = {name: section(cost) for name, cost in section(evaluation.get("costs")).items()}
    rungs = {str(r.get("name")): r for r in _records(evaluation.get("ladder"))}
    names = list(rungs) or sorted(
        [*(name for name in CONTENDERS if name in costs), *(name for name in costs if name not in CONTENDERS)],
        key=lambda name: name == own,
    )
    metric = str(evaluation.get("primary") or next(iter(rungs.values()), {}).get("metric") or "accuracy")
    compared = {line.name: line for line in contenders(evaluation, [metric]) if line.delta is not None}
    lines = []
    for name in names:
        rung, cost = rungs.get(name, {}), costs.get(name, {})
        if not n or not any(number(value) for value in cost.values()):
            continue
        gain = compared[name].delta if name in compared else None
        if not compared:
            gain = score_of({"value": rung.get("gain"), "low": rung.get("gain_low"), "high": rung.get("gain_high")})
        price = rung.get("usd_per_1000") if rung else (usd_of := number(cost.get("usd"))) and 1000 * usd_of / n
        lines.append(
            {
                "name": name,
                "tuned": "yes" if name == own else "",
                "gain": _gain(gain, metric) if gain else ("", ""),
                "training": _training(number(cost.get("training_seconds")), number(cost.get("training_usd"))),
                "seconds": _span(seconds / n) if (seconds := number(cost.get("seconds"))) is not None else "–",
                "prompt": f"{read / n:,.0f}" if (read := number(cost.get("prompt_tokens"))) else "–",
                "answer": f"{written / n:,.0f}" if (written := number(cost.get("tokens"))) else "–",
                "thousand": usd(number(price), 2),
            }
        )
    if not lines:
        return {}
    first = next(
        (name for name, rung in rungs.items() if rung.get("kind") == "prompt" and rung.get("gain") is None), ""
    )
    against = gain_header(evaluation)[1]
    if first and not compared:
        against = f"Gain: of each line over {first}; positive means that the line is better."
    shown = against if any(line["gain"][0] for line in lines) else ""
    return {"lines": lines, "against": shown, "words": _words(evaluation.get("ladder_words"))}


def _training(seconds: float | None, price: float | None) -> str:
    if not seconds:
        return "–"
    spent = minutes(seconds / 60) if seconds >= 1 else _span(seconds)
    return f"{spent}, {usd(price, 2)}" if price else spent


def _span(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds >= 1 else f"{1000 * seconds:.{0 if seconds >= 0.01 else 2}f} ms"


def _gain(change: Score, metric: str) -> tuple[str, str]:
    return signed(change.value, metric), interval(change, metric).replace("-", "−")


def _changed(change: Score, metric: str) -> str:
    """`+0.123 [+0.034, +0.212]`."""
    digits = metric_of(metric).precise_decimals
    bounds = f" [{change.low:+.{digits}f}, {change.high:+.{digits}f}]" if interval(change) else ""
    return f"{change.value:+.{digits}f}{bounds}".replace("-", "−")


def _words(value: object) -> list[str]:
    return [str(line) for line in value] if isinstance(value, list) else [str(value)] if value else []


# --- what tuning has done besides its task -----------------------------------------------------


def _effects(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Forgetting, public tasks, memorisation and canaries, each in words and as lines of before, after and change."""
    found = []
    shown = (
        ("General ability", _forgotten),
        ("Public tasks", _tasks),
        ("Training rows known by heart", _memorised),
        ("Canaries: exposure in bits", _canaries),
    )
    for key, (title, lines_of) in zip(EFFECTS, shown, strict=True):
        part = section(evaluation.get(key))
        if part:
            found.append({"title": title, "words": _words(part.get("words")), "lines": lines_of(part)})
    return found


Line = tuple[str, str, str, str]  # of what, before, after, change


def _forgotten(part: Mapping[str, Any]) -> list[Line]:
    before, after = section(part.get("base")), section(part.get("tuned"))
    lost, grown = score_of(part.get("score")), score_of(part.get("loss"))
    sides = [(f"{title_of(key)}", number(before.get(key)), number(after.get(key))) for key in ("token_f1", "loss")]
    share = f"{100 * -lost.value:+.1f} % [{100 * -lost.high:+.1f}, {100 * -lost.low:+.1f}]" if lost else ""
    shares = [share.replace("-", "−"), _changed(grown, "loss") if grown else ""]
    return [
        (name, f"{a:.3f}", f"{b:.3f}", change)
        for (name, a, b), change in zip(sides, shares, strict=True)
        if a is not None and b is not None
    ]


def _tasks(part: Mapping[str, Any]) -> list[Line]:
    return [
        (f"{t.get('task')}: {str(t.get('metric')).removesuffix(',none')}", f"{a:.3f}", f"{b:.3f}",
         _changed(change, "accuracy") if (change := score_of(t.get("change"))) else "")
        for t in _records(part.get("tasks"))
        if (a := number(t.get("base"))) is not None and (b := number(t.get("tuned"))) is not None
    ]  # fmt: skip


def _memorised(part: Mapping[str, Any]) -> list[Line]:
    before, after, beyond = (score_of(part.get(key)) for key in ("base", "share", "beyond"))
    if not (before and after and beyond):
        return []
    return [("completed verbatim", with_interval(before), with_interval(after), _changed(beyond, "accuracy"))]


def _canaries(part: Mapping[str, Any]) -> list[Line]:
    return [
        (str(c.get("prompt") or c.get("id")), f"{a:.1f}", f"{b:.1f}", f"{b - a:+.1f}".replace("-", "−"))
        for c in _records(part.get("each"))
        if (a := number(c.get("base_exposure"))) is not None and (b := number(c.get("exposure"))) is not None
    ]


# --- asked several ways ------------------------------------------------------------------------

CONSISTENCY = {
    "agreement": "same answer",
    "similarity": "alike",
    "unanimous": "all the same",
    "format": "format kept",
    "always_right": "right in every way",
}


def _consistency(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """How often answers agree when a row is asked several ways: a line a system, kinds of ways, contradictions."""
    found, own = section(evaluation.get("consistency")), str(evaluation.get("name") or TUNED)
    given = {str(name): section(figures) for name, figures in section(found.get("contenders")).items()}
    if not given:
        return {}
    names = [key for key in CONSISTENCY if any(key in figures for figures in given.values())]
    compared = [pair for pair in _records(found.get("comparisons")) if pair.get("metric") == found.get("metric")]
    pairs = {str(pair.get("a")): pair for pair in compared}
    same = {str(name): section(kinds) for name, kinds in section(found.get("same_as_plain")).items()}
    kinds = list(dict.fromkeys(kind for each in same.values() for kind in each))
    return {
        "words": _words(found.get("words")),
        "columns": [CONSISTENCY[key] for key in names],
        "lines": [
            {
                "name": name,
                "tuned": "yes" if name == own else "",
                "cells": [with_interval(score_of(figures.get(key))) for key in names],
                "p": p_value(number(pairs[name].get("p_holm"))) if name in pairs else "",
            }
            for name, figures in sorted(given.items(), key=lambda item: item[0] == own)
        ],
        "kinds": kinds,
        "same": [
            (name, [figure(number(each.get(kind))) for kind in kinds])
            for name, each in sorted(same.items(), key=lambda item: item[0] == own)
        ],
        "examples": [
            {
                "reference": str(example.get("reference") or ""),
                "ways": [
                    tuple(str(way.get(key) or "") for key in ("kind", "question", "answer"))
                    for way in _records(example.get("ways"))
                ],
            }
            for example in _records(found.get("examples"))
            if _records(example.get("ways"))
        ],
    }


# --- production, disagreements, a judge --------------------------------------------------------


def _production(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Whether the test rows are like those of production, and the score as production weighs them."""
    found = section(evaluation.get("production"))
    auc, weighted = number(found.get("auc")), score_of(found.get("reweighted"))
    if auc is None or weighted is None:
        return {}
    metric = str(found.get("metric") or "accuracy")
    return {
        "facts": [
            ("production rows", f"{number(found.get('rows')) or 0:,.0f}"),
            ("told apart, AUC (0.5: not at all)", f"{auc:.2f}"),
            (f"{title_of(metric)} on the test rows", figure(number(found.get("score")), metric)),
            ("weighted as production", with_interval(weighted, metric)),
            ("worth as many rows", f"{number(found.get('effective_rows')) or 0:,.0f}"),
        ],
        "differs": _words(found.get("differs_in")) if found.get("differs") else [],
    }


def _disagreements(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How many rows each other system gets better, and worse, than the evaluation's own."""
    return [
        {"name": str(name), "better": int(better), "worse": int(worse)}
        for name, part in section(evaluation.get("disagreements")).items()
        if (better := number(section(part).get("better"))) is not None
        and (worse := number(section(part).get("worse"))) is not None
    ]
