"""Parts that the pages of a run and of an evaluation share: labels, slices, calibration, side effects; with charts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from markupsafe import Markup, escape

from tuneloop.core import written as w
from tuneloop.core.stats.tests import NOT_ENOUGH
from tuneloop.core.units import counted, span_words
from tuneloop.evaluation.metrics import gain_interval, interval, metric_of, metric_text, signed, title_of, with_interval
from tuneloop.records.evaluation import CalibrationBin, Estimate, EvaluationManifest, Slice
from tuneloop.report import facts as f
from tuneloop.report.charts.svg import (
    NARROW,
    WIDE,
    Axis,
    chart_pair,
    fit_middle,
    short,
    svg_chart,
    svg_line,
    svg_path,
    svg_text,
)
from tuneloop.report.charts.systems import interval_bars
from tuneloop.report.quality import priced_systems, quality_chart

T = TypeVar("T")


def confusion_chart(labels: Sequence[str], cells: Mapping[tuple[str, str], int], width: float = WIDE) -> Markup:
    """A confusion matrix: rows are true labels, columns predicted ones; shade is the share of the row.

    `labels` are in order, the last may be a name for all others; `cells`: (reference, answer) -> rows.
    """
    if len(labels) < 2:
        return Markup("")
    narrow = width < 500
    left, top = (124.0, 122.0) if narrow else (232.0, 168.0)  # names, and a line for the axis's title
    size = min((width - left) / len(labels), 46.0)
    totals = {a: sum(n for (ref, _), n in cells.items() if ref == a) for a in labels}
    extent = size * len(labels)
    turn = f'transform="translate(11 {top + extent / 2:.1f}) rotate(-90)"'
    body = [
        svg_text(left + extent / 2, 13, "predicted", "legend", "middle"),
        f'<text {turn} class="legend" text-anchor="middle">true</text>',
    ]
    for i, name in enumerate(labels):
        middle = size * (i + 0.5)
        body.append(svg_text(left - 8, top + middle + 4, fit_middle(name, left - 28), "name", "end"))
        # Written towards the column, so that the last name ends inside the chart too.
        at = f"translate({left + middle + 3:.1f} {top - 6:.1f}) rotate(55)"
        label = escape(fit_middle(name, (top - 18) * 1.15 - 6))
        body.append(f'<text transform="{at}" class="name" text-anchor="end">{label}</text>')
    for i, reference in enumerate(labels):
        for j, answer in enumerate(labels):
            n = cells.get((reference, answer), 0)
            share = n / totals[reference] if totals[reference] else 0.0
            kind = "hit" if i == j else "miss"
            shade = 0.12 + 0.78 * share if n else 0.0
            x, y = left + size * j, top + size * i
            whole = f"{n} of {totals[reference]}"
            tip = f"{reference} taken for {answer}: {whole}" if i != j else f"{reference}: {whole} right"
            box = f'x="{x + 0.5:.1f}" y="{y + 0.5:.1f}" width="{size - 1:.1f}" height="{size - 1:.1f}"'
            style = f'style="fill-opacity:{shade:.2f}"'
            body.append(f'<rect class="cell {kind}" {box} {style}><title>{escape(tip)}</title></rect>')
            if n and size >= max(17, 8.5 * len(str(n))):
                strong = " strong" if shade > 0.55 else ""
                body.append(svg_text(x + size / 2, y + size / 2 + 4, str(n), f"count{strong}", "middle"))
    wrong = sum(n for (a, b), n in cells.items() if a != b)
    axes = "a row for each true label, a column for each predicted one"
    title = f"Confusion matrix of {counted(len(labels), 'label')}: {axes}; {counted(wrong, 'row')} off the diagonal"
    return svg_chart(width, top + extent + 6, title, body, "confusion")


def reliability_chart(bins: Sequence[CalibrationBin], width: float = WIDE) -> Markup:
    """Share of right answers by confidence; on the diagonal confidence is deserved. Dots grow with their rows."""
    if not bins:
        return Markup("")
    side = min(width - 60, 330.0)
    left, top = 44.0, 10.0
    x = Axis(0, 1, left, left + side, False, (0, 0.2, 0.4, 0.6, 0.8, 1))
    y = Axis(0, 1, top + side, top, False, (0, 0.2, 0.4, 0.6, 0.8, 1))
    body = []
    for tick in x.ticks:
        body += [
            svg_line(left, y(tick), left + side, y(tick), "grid"),
            svg_text(left - 7, y(tick) + 4, short(tick), "tick", "end"),
        ]
        body.append(svg_text(x(tick), top + side + 17, short(tick), "tick", "middle"))
    body.append(svg_line(x(0), y(0), x(1), y(1), "reference"))
    most = max(b.n for b in bins)
    points = [(x(b.confidence), y(b.accuracy)) for b in bins]
    body.append(svg_path(points, "train"))
    for (px, py), b in zip(points, bins, strict=True):
        tip = f"confidence {b.confidence:.2f}: {b.accuracy:.0%} of {b.n:,} right"
        radius = 3 + 6 * (b.n / most) ** 0.5
        dot = f'cx="{px:.1f}" cy="{py:.1f}" r="{radius:.1f}"'
        body.append(f'<circle class="dot tuned" {dot}><title>{escape(tip)}</title></circle>')
    body.append(svg_text(left + side / 2, top + side + 34, "confidence", "legend", "middle"))
    body.append(svg_text(left + 6, top + 12, "share right", "legend"))
    summary = "; ".join(f"{b.confidence:.2f}: {b.accuracy:.2f}" for b in bins)
    return svg_chart(width, top + side + 42, f"Share of right answers by confidence. {summary}", body, "reliability")


def slice_chart(slices: Sequence[Slice], metric: str, whole: float | None, width: float = WIDE) -> Markup:
    """Slices under each other, each a value with its interval; a line marks the value on all rows (`whole`)."""
    if not slices:
        return Markup("")
    pitch, kinds = 40.0 if width < 500 else 26.0, {"worse": "worse", "better": "tuned"}
    names = [f"{s.value} ({s.n:,})" for s in slices]
    scores = [(Estimate(s.score, s.low, s.high), kinds.get(s.verdict, "other"), 4) for s in slices]
    bars = [(name, *score) for name, score in zip(names, scores, strict=True)]
    body = interval_bars(bars, [] if whole is None else [whole], metric, pitch, 8, width)
    title = "; ".join(f"{s.value} {metric_text(s.score, metric)}" for s in slices)
    return svg_chart(width, 8.0 + pitch * len(slices) + 24, title, body, "forest")


MOST_LABELS = {WIDE: 24, NARROW: 12}  # of a confusion matrix that can be read, by its width
MOST_SLICES = 14  # drawn for one field
REST = "all other"
INVALID = "(invalid)"


def evaluation_parts(evaluation: EvaluationManifest) -> dict[str, Any]:
    """Everything the shared templates show, computed and written out."""
    calibration = evaluation.calibration
    deserved = {}
    if calibration and calibration.bins:
        ece = calibration.ece
        bounds = f" [{ece.low:.3f}, {ece.high:.3f}]" if interval(ece) else ""
        deserved = {"chart": chart_pair(reliability_chart, calibration.bins), "ece": f"{ece.value:.3f}{bounds}"}
    return {
        "own": evaluation.name, "labels": _labels(evaluation), "fields": _fields(evaluation),
        "slices": _slices(evaluation), "calibration": deserved, "errors": evaluation.errors,
        "leaderboard": _leaderboard(evaluation),
        "disagreements": [(name, part.better, part.worse) for name, part in evaluation.disagreements.items()],
        "effects": _effects(evaluation), "consistency": _consistency(evaluation),
        "judge": _words((evaluation.judge or {}).get("words")),
    }  # fmt: skip


def _labels(evaluation: EvaluationManifest) -> dict[str, Any]:
    classes = sorted(evaluation.per_class or (), key=lambda c: (metric_text(c.f1), c.label))
    confusions = evaluation.confusion.cells if evaluation.confusion else []
    cells = {(label, INVALID if predicted is None else predicted): n for label, predicted, n in confusions}
    if not classes and not cells:
        return {}
    pairs = (confusion_chart(*_most_confused(cells, most), width) for width, most in MOST_LABELS.items())
    labels = {a for a, _ in cells}
    return {
        "classes": classes, "chart": Markup("").join(pairs), "total": len(labels),
        "part": len(labels | {b for _, b in cells}) > MOST_LABELS[NARROW],
    }  # fmt: skip


def _most_confused(cells: Mapping[tuple[str, str], int], most: int) -> tuple[list[str], dict[tuple[str, str], int]]:
    names = sorted({name for pair in cells for name in pair}, key=lambda name: (name == INVALID, name))
    if len(names) <= most:
        return names, dict(cells)
    errors: Counter[str] = Counter()
    for (a, b), n in cells.items():
        if a != b:
            errors[a] += n
            errors[b] += n
    labels = {name for name, _ in errors.most_common(most - 1)}
    folded: Counter[tuple[str, str]] = Counter()
    for (a, b), n in cells.items():
        folded[a if a in labels else REST, b if b in labels else REST] += n
    return [*(name for name in names if name in labels), REST], dict(folded)


OF_FIELDS = ("item_f1", "exact_match", "accuracy", "token_f1", "rougeL", "chrf")  # the first that a field has is shown


def _fields(evaluation: EvaluationManifest) -> dict[str, Any]:
    metrics = evaluation.metrics or next(iter(evaluation.baselines.values()), {})
    metric_of_field: dict[str, str] = {}
    for name in metrics:
        field, _, last = name.rpartition(".")
        if field and last in OF_FIELDS:
            metric_of_field[field] = min(metric_of_field.get(field, last), last, key=OF_FIELDS.index)
    systems = {**evaluation.baselines, **({evaluation.name: evaluation.metrics} if evaluation.metrics else {})}
    lines = []
    for field, last in metric_of_field.items():
        values = [
            with_interval(f.finite(system_values.get(f"{field}.{last}")), last) for system_values in systems.values()
        ]
        lines.append((field, title_of(last), values))
    return {"systems": list(systems), "lines": lines} if lines else {}


def _slices(evaluation: EvaluationManifest) -> dict[str, Any]:
    metric = evaluation.row_metric or evaluation.primary or "accuracy"
    measured = [s for s in evaluation.slices if math.isfinite(s.score)]
    if not measured:
        return {}
    whole = f.finite(evaluation.metrics.get(metric))
    fields: dict[str, list[Slice]] = {}
    for s in measured:
        fields.setdefault(s.field, []).append(s)
    charts_of_fields = []
    for field, slices in fields.items():
        # Of many values those that differ most are charts_of_fields.
        ranked = sorted(slices, key=lambda s: s.score)
        if len(ranked) > MOST_SLICES:
            ranked = ranked[: MOST_SLICES - 4] + ranked[-4:]
        chart = chart_pair(slice_chart, ranked, metric, whole.value if whole else None)
        charts_of_fields.append({"field": field, "chart": chart, "shown": len(ranked), "total": len(slices)})
    worse = []
    for s in (s for s in measured if s.verdict == "worse"):
        score, rest = with_interval(Estimate(s.score, s.low, s.high), metric), metric_text(w.number(s.rest), metric)
        fields_of = {"field": s.field, "value": s.value, "n": s.n, "score": score, "rest": rest}
        worse.append({**fields_of, "p": w.p_value(w.number(s.p_holm))})
    pairs = [
        {
            "name": name,
            "field": s.field,
            "value": s.value,
            "n": s.n,
            "gain": signed(s.delta, metric),
            "verdict": s.verdict,
            "p": w.p_value(w.number(s.p_holm)),
        }
        for name, entry in evaluation.slice_comparisons.items()
        for s in entry
        if s.verdict != NOT_ENOUGH
    ]
    table = {"metric": title_of(metric), "fields": charts_of_fields, "worse": worse, "total": len(measured)}
    return table | {"pairs": pairs, "first": next(iter(evaluation.baselines), "")}


def _leaderboard(evaluation: EvaluationManifest) -> dict[str, Any]:
    """The gain over each system, what its training cost, and what its requests take.

    Gains are those of the comparison, with its sign. Without any (only baselines so far) they are the leaderboard's,
    over the prompt; without a leaderboard there are the costs alone.
    """
    n, system, costs = evaluation.n, evaluation.name, evaluation.costs
    entries = {entry.name: entry for entry in evaluation.leaderboard}
    usual = [name for name in f.SYSTEMS if name in costs]
    names = list(entries) or sorted([*usual, *(name for name in costs if name not in usual)], key=system.__eq__)
    metric = evaluation.primary or next((entry.metric for entry in entries.values()), "accuracy")
    compared = {line.name: line.delta for line in f.systems_of(evaluation, [metric]) if line.delta is not None}
    lines = []
    for name in names:
        entry, cost = entries.get(name), costs.get(name)
        if not n or cost is None or not any(cost.to_json().values()):
            continue
        gain, seconds = compared.get(name), cost.training_seconds
        training = "–" if not seconds else w.minutes(seconds / 60) if seconds >= 1 else span_words(seconds)
        if not compared and entry and entry.gain is not None:
            gain = Estimate(entry.gain, *(math.nan if b is None else b for b in (entry.gain_low, entry.gain_high)))
        change = ("", "")
        if gain:
            change = signed(gain.value, metric), gain_interval(gain, metric).replace("-", "−")
        lines.append({
            "name": name, "tuned": "yes" if name == system else "", "gain": change,
            "training": training + (f", {w.usd(cost.training_usd, 2)}" if seconds and cost.training_usd else ""),
            "seconds": span_words(cost.seconds / n) if "seconds" in cost.model_fields_set else "–",
            "prompt": f"{cost.prompt_tokens / n:,.0f}" if cost.prompt_tokens else "–",
            "answer": f"{cost.tokens / n:,.0f}" if cost.tokens else "–",
            "thousand": w.usd(entry.usd_per_1000 if entry else cost.usd and 1000 * cost.usd / n, 2),
        })  # fmt: skip
    if not lines:
        return {}
    first = next((entry.name for entry in entries.values() if entry.kind == "prompt" and entry.gain is None), "")
    against = f.gain_header(evaluation)[1]
    if first and not compared:
        against = f"Gain: of each line over {first}; positive means that the line is better."
    note = against if any(line["gain"][0] for line in lines) else ""
    chart = chart_pair(quality_chart, priced_systems(evaluation.leaderboard))
    return {"lines": lines, "against": note, "words": evaluation.leaderboard_words, "chart": chart}


def _changed(change: Estimate, metric: str) -> str:
    """`+0.123 [+0.034, +0.212]`."""
    digits = metric_of(metric).precise_decimals
    bounds = f" [{change.low:+.{digits}f}, {change.high:+.{digits}f}]" if interval(change) else ""
    return f"{change.value:+.{digits}f}{bounds}".replace("-", "−")


def _words(value: object) -> list[str]:
    return [str(line) for line in value] if isinstance(value, list) else [str(value)] if value else []


def _effects(evaluation: EvaluationManifest) -> list[dict[str, Any]]:
    parts: list[tuple[str, str, list[tuple[str, str, str, str]]]] = []  # of what, before, after, change
    if part := evaluation.forgetting:
        score, loss = f.finite(part.score), f.finite(part.loss)
        share = f"{100 * -score.value:+.1f} % [{100 * -score.high:+.1f}, {100 * -score.low:+.1f}]" if score else ""
        rows = [
            (title_of("token_f1"), part.base.token_f1, part.tuned.token_f1, share.replace("-", "−")),
            (title_of("loss"), part.base.loss, part.tuned.loss, _changed(loss, "loss") if loss else ""),
        ]
        lines = [(name, f"{a:.3f}", f"{b:.3f}", change) for name, a, b, change in rows if math.isfinite(a + b)]
        parts.append(("General ability", part.words, lines))
    if learned := evaluation.memorisation:
        before, after, beyond = map(f.finite, (learned.base, learned.share, learned.beyond))
        lines = []
        if before and after and beyond:
            bounds = with_interval(before), with_interval(after)
            lines = [("completed verbatim", *bounds, _changed(beyond, "accuracy"))]
        parts.append(("Training rows known by heart", learned.words, lines))
    return [{"title": title, "words": _words(content), "lines": lines} for title, content, lines in parts]


CONSISTENCY = {"agreement": "same answer", "similarity": "similar", "always_right": "right in every way"}


def _consistency(evaluation: EvaluationManifest) -> dict[str, Any]:
    consistency = evaluation.consistency
    if consistency is None or not consistency.values:
        return {}
    values = [(CONSISTENCY[k], with_interval(f.finite(v))) for k, v in consistency.values.items() if k in CONSISTENCY]
    return {
        "words": consistency.words,
        "values": values,
        "same": [(kind, metric_text(w.number(share))) for kind, share in consistency.same_as_plain.items()],
        "examples": [example for example in consistency.examples if example.ways],
    }
