"""Charts of an evaluation: which labels are confused, whether confidence is deserved, where results differ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

from tuneloop.core.units import counted
from tuneloop.records.evaluation import CalibrationBin, Estimate, Slice
from tuneloop.report.charts import WIDE, Axis, _line, _path, _svg, _text, axis, fit, fit_middle, grid, short
from tuneloop.report.facts import figure, interval


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
    body = [
        _text(left + extent / 2, 13, "predicted", "legend", "middle"),
        f'<text transform="translate(11 {top + extent / 2:.1f}) rotate(-90)" class="legend" text-anchor="middle">true</text>',
    ]
    for i, name in enumerate(labels):
        middle = size * (i + 0.5)
        body.append(_text(left - 8, top + middle + 4, fit_middle(name, left - 28), "name", "end"))
        # Written towards the column, so that the last name ends inside the chart too.
        at = f"translate({left + middle + 3:.1f} {top - 6:.1f}) rotate(55)"
        body.append(
            f'<text transform="{at}" class="name" text-anchor="end">{escape(fit_middle(name, (top - 18) * 1.15 - 6))}</text>'
        )
    for i, reference in enumerate(labels):
        for j, answer in enumerate(labels):
            n = cells.get((reference, answer), 0)
            share = n / totals[reference] if totals[reference] else 0.0
            kind = "hit" if i == j else "miss"
            shade = 0.12 + 0.78 * share if n else 0.0
            x, y = left + size * j, top + size * i
            tip = f"{reference} taken for {answer}: {n} of {totals[reference]}" if i != j else f"{reference}: {n} of {totals[reference]} right"  # fmt: skip
            body.append(
                f'<rect class="cell {kind}" x="{x + 0.5:.1f}" y="{y + 0.5:.1f}" width="{size - 1:.1f}" '
                f'height="{size - 1:.1f}" style="fill-opacity:{shade:.2f}"><title>{escape(tip)}</title></rect>'
            )
            if n and size >= max(17, 8.5 * len(str(n))):
                strong = " strong" if shade > 0.55 else ""
                body.append(_text(x + size / 2, y + size / 2 + 4, str(n), f"count{strong}", "middle"))
    wrong = sum(n for (a, b), n in cells.items() if a != b)
    title = f"Confusion matrix of {counted(len(labels), 'label')}: a row for each true label, a column for each predicted one; {counted(wrong, 'row')} off the diagonal"
    return _svg(width, top + extent + 6, title, body, "confusion")


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
            _line(left, y(tick), left + side, y(tick), "grid"),
            _text(left - 7, y(tick) + 4, short(tick), "tick", "end"),
        ]
        body.append(_text(x(tick), top + side + 17, short(tick), "tick", "middle"))
    body.append(_line(x(0), y(0), x(1), y(1), "reference"))
    most = max(b.n for b in bins)
    points = [(x(b.confidence), y(b.accuracy)) for b in bins]
    body.append(_path(points, "train"))
    for (px, py), b in zip(points, bins, strict=True):
        tip = f"confidence {b.confidence:.2f}: {b.accuracy:.0%} of {b.n:,} right"
        radius = 3 + 6 * (b.n / most) ** 0.5
        body.append(f'<circle class="dot tuned" cx="{px:.1f}" cy="{py:.1f}" r="{radius:.1f}"><title>{escape(tip)}</title></circle>')  # fmt: skip
    body.append(_text(left + side / 2, top + side + 34, "confidence", "legend", "middle"))
    body.append(_text(left + 6, top + 12, "share right", "legend"))
    summary = "; ".join(f"{b.confidence:.2f}: {b.accuracy:.2f}" for b in bins)
    return _svg(width, top + side + 42, f"Share of right answers by confidence. {summary}", body, "reliability")


def slice_chart(slices: Sequence[Slice], metric: str, whole: float | None, width: float = WIDE) -> Markup:
    """Slices under each other, each a value with its interval; a line marks the value on all rows (`whole`)."""
    if not slices:
        return Markup("")
    narrow = width < 500
    pitch, left, right = (40.0, 4.0, width - 8) if narrow else (26.0, 230.0, width - 150)
    ends = [v for s in slices for v in (s.score, s.low, s.high) if math.isfinite(v)]
    scale = axis(
        [*ends, *([whole] if whole is not None else [])], left + 6, right - 6, wanted=4 if narrow else 6, log=False
    )
    bottom = 8.0 + pitch * len(slices)
    body = grid(scale, 8, bottom, across=False)
    if whole is not None:
        body.append(_line(scale(whole), 8, scale(whole), bottom, "reference"))
    for i, s in enumerate(slices):
        y = 8 + pitch * i + (pitch - 12 if narrow else pitch / 2)
        kind = {"worse": "worse", "better": "tuned"}.get(s.verdict, "other")
        words, label_y = f"{s.value} ({s.n:,})", y - 12 if narrow else y + 4
        body.append(_text(0, label_y, fit(words, width - 130 if narrow else 222), f"name {kind}"))
        bounds = interval(Estimate(s.score, s.low, s.high), metric)
        label = f'<tspan class="value">{figure(s.score, metric)}</tspan> <tspan class="bounds">{bounds}</tspan>'
        body.append(f'<text x="{width:g}" y="{label_y:.1f}" class="figure {kind}" text-anchor="end">{label}</text>')
        if bounds:
            body.append(_line(scale(s.low), y, scale(s.high), y, f"whisker {kind}"))
        body.append(f'<circle class="dot {kind}" cx="{scale(s.score):.1f}" cy="{y:.1f}" r="4"/>')
    title = "; ".join(f"{s.value} {figure(s.score, metric)}" for s in slices)
    return _svg(width, bottom + 24, title, body, "forest")
