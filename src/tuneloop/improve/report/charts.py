"""Charts of the pages that no report has: bars by day, estimated accuracy, and the lineage of a model's versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import NamedTuple

from markupsafe import Markup, escape

from tuneloop.improve.monitor.record import QualityEstimate
from tuneloop.report.charts import WIDE, axis, fit, fit_middle, grid, svg_chart, svg_line, svg_path, svg_text

MOST_BARS, MOST_BAR = 92, 48.0  # bars; pixels that one may be wide
COLUMN, ROW, BOX_WIDTH, BOX_HEIGHT = 208, 62, 168, 44  # pixels of the picture of a lineage


class DayBar(NamedTuple):
    """A day of a chart: its value, what a pointer shows, the part of it that failed, and where the day leads to."""

    day: str
    value: float
    tip: str
    failed: float = 0.0
    href: str = ""


def day_chart(values: Sequence[DayBar | tuple[str, float, str]], legend: str, width: float = WIDE) -> Markup:
    """Bars by day, of many days the last ones; what failed of a day is another colour.

    A day's link is for the pointer alone: a form filters by the keyboard, without ninety stops before it."""
    if not values:
        return Markup("")
    bars = [DayBar(*value) for value in values]
    ages = _ages([bar.day for bar in bars], width)
    bars, number = bars[-len(ages) :], ages[0] + 1
    left, right, top, bottom = 52.0, width - 8, 26.0, 150.0
    y = axis([0.0, *(bar.value for bar in bars)], bottom, top, steps=3, log=False)
    body = grid(y, left, right, across=True)
    step = min((right - left) / number, MOST_BAR)
    for bar, age in zip(bars, ages, strict=True):
        box = f'x="{left + step * (number - 1 - age + 0.12):.1f}" width="{max(step * 0.76, 0.8):.1f}"'
        parts = [f'<rect class="bar" {box} y="{y(bar.value):.1f}" height="{bottom - y(bar.value):.1f}"/>']
        if bar.failed:
            parts.append(f'<rect class="alarm" {box} y="{y(bar.failed):.1f}" height="{bottom - y(bar.failed):.1f}"/>')
        drawn = f"<title>{escape(bar.tip)}</title>{''.join(parts)}"
        body.append(f'<a href="{escape(bar.href)}" tabindex="-1">{drawn}</a>' if bar.href else f"<g>{drawn}</g>")
    ends, end = (bars[0].day, bars[-1].day), left + step * number
    body.append(svg_text(left, 12, legend, "legend"))
    body += _ends(*ends, left, end, bottom + 17)
    role = "group" if any(bar.href for bar in bars) else "img"
    return svg_chart(width, bottom + 24, f"{legend}, {ends[0]} to {ends[1]}", body, "days", role=role)


def _ages(days: Sequence[str], width: float) -> list[int]:
    """Days before the last one, of those that a chart shows; all charts of a page show the same ones."""
    last = date.fromisoformat(days[-1])
    ages = ((last - date.fromisoformat(day)).days for day in days)
    return [age for age in ages if age < (31 if width < 500 else MOST_BARS)]


def _ends(first: str, last: str, left: float, right: float, y: float) -> list[str]:
    """The first and the last day below an axis, as one text where there is no room for two."""
    if right - left > 150:
        return [svg_text(left, y, first, "tick"), svg_text(right, y, last, "tick", "end")]
    return [svg_text(left, y, " to ".join(dict.fromkeys((first, last))), "tick")]


def latency_chart(days: Sequence[tuple[str, float, float]], width: float = WIDE) -> Markup:
    """Median and 99th percentile of the time to a whole answer by day: (day, both in milliseconds)."""
    ages = _ages([day for day, _, _ in days], width) if days else []
    if len(ages) < 2:
        return Markup("")
    days = days[-len(ages) :]
    left, right, top, bottom = 52.0, width - 8, 26.0, 110.0
    y = axis([0.0, *(slow / 1000 for _, _, slow in days)], bottom, top, steps=3, log=False)
    step = min((right - left) / (ages[0] + 1), MOST_BAR)  # as in `day_chart`: a day stands under its bar
    xs = [left + step * (ages[0] - age + 0.5) for age in ages]
    body = grid(y, left, right, across=True)
    medians, slowest = [y(median / 1000) for _, median, _ in days], [y(slow / 1000) for _, _, slow in days]
    body += [svg_path([*zip(xs, slowest, strict=True)], "val"), svg_path([*zip(xs, medians, strict=True)], "train")]
    for x, level, (day, median, slow) in zip(xs, medians, days, strict=True):
        tip = f"{day}: half within {median / 1000:.2f} s, 99 of 100 within {slow / 1000:.2f} s"
        body.append(f'<circle class="shape0" cx="{x:.1f}" cy="{level:.1f}" r="2.5"><title>{tip}</title></circle>')
    body.append(svg_text(left, 12, fit("seconds to an answer: median, and 99 of 100", right - left), "legend"))
    body += _ends(days[0][0], days[-1][0], left, left + step * (ages[0] + 1), bottom + 17)
    return svg_chart(width, bottom + 24, f"Seconds to an answer, {days[0][0]} to {days[-1][0]}", body, "latency")


def accuracy_chart(points: Sequence[tuple[str, QualityEstimate]], width: float = WIDE) -> Markup:
    """Accuracy of judged answers with its interval, by the ends of windows."""
    points = points[-(12 if width < 500 else 40) :]
    values = [v for _, q in points for v in (q.estimated, q.low, q.high) if v == v]
    if not values:
        return Markup("")
    left, right, top, bottom = 52.0, width - 8, 26.0, 190.0
    y = axis([*values, min(1.0, max(values) + 0.02)], bottom, top, steps=4, log=False)
    body = grid(y, left, right, across=True)
    step, line = (right - left) / len(points), []
    for at, (until, q) in enumerate(points):
        x, tip = left + step * (at + 0.5), f"to {until[:10]}"
        if q.estimated == q.estimated:
            tip += f": {q.estimated:.1%} [{q.low:.1%}, {q.high:.1%}] of {q.judged:,} judged answers"
            body.append(svg_line(x, y(q.low), x, y(q.high), "whisker other"))
            line.append((x, y(q.estimated)))
            circle = f'<circle class="shape0" cx="{x:.1f}" cy="{y(q.estimated):.1f}" r="3"/>'
            body.append(f"<g><title>{escape(tip)}</title>{circle}</g>")
    body.append(svg_path(line, "train"))
    legend = "share of right answers, as people judged, with its 95 % interval"
    body.append(svg_text(0, 12, fit(legend, right), "legend"))
    first, last = points[0][0][:10], points[-1][0][:10]
    if len(points) > 1:
        body += [svg_text(left, bottom + 17, first, "tick"), svg_text(right, bottom + 17, last, "tick", "end")]
    else:
        body.append(svg_text(left + step / 2, bottom + 17, first, "tick", "middle"))
    return svg_chart(width, bottom + 24, "Accuracy by window", body, "accuracy")


@dataclass(frozen=True)
class LineageNode:
    """A box of the picture: what it is, in two lines; `href`: where more of it is; `tone`: how it is shown."""

    text: str
    detail: str = ""
    href: str = ""
    tone: str = ""


Columns = Sequence[tuple[str, Mapping[str, LineageNode]]]  # the name of each column, and its boxes by their ids


def lineage_chart(columns: Columns, edges: Sequence[tuple[str, str]], title: str) -> Markup:
    """Boxes in columns, from the data set to who is answered, with lines between ids of boxes of different columns."""
    columns = [(name, nodes) for name, nodes in columns if nodes]
    places: dict[str, tuple[float, float]] = {}
    most = max((len(nodes) for _, nodes in columns), default=0)
    body: list[str] = []
    for at, (name, nodes) in enumerate(columns):
        body.append(svg_text(at * COLUMN, 12, name, "legend"))
        for row, id_ in enumerate(nodes):
            places[id_] = at * COLUMN, 24 + ROW * (row + (most - len(nodes)) / 2)
    for start, end in edges:
        if start in places and end in places:
            (x1, y1), (x2, y2) = places[start], places[end]
            x1, y1, y2 = x1 + BOX_WIDTH, y1 + BOX_HEIGHT / 2, y2 + BOX_HEIGHT / 2
            middle = (x1 + x2) / 2
            body.append(f'<path class="edge" d="M{x1} {y1:.1f}C{middle} {y1:.1f} {middle} {y2:.1f} {x2} {y2:.1f}"/>')
    for _, nodes in columns:
        for id_, node in nodes.items():
            x, y = places[id_]
            tip = f"<title>{escape(f'{node.text} {node.detail}')}</title>"
            box = (
                f'<rect class="box {node.tone}" x="{x}" y="{y:.1f}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6"/>'
            )
            lines = svg_text(x + 10, y + 18, fit_middle(node.text, BOX_WIDTH - 20), node.tone)
            lines += svg_text(x + 10, y + 34, fit_middle(node.detail, BOX_WIDTH - 20, size=11), "tick")
            group = f"<g>{tip}{box}{lines}</g>"
            body.append(f'<a href="{escape(node.href)}">{group}</a>' if node.href else group)
    width = COLUMN * len(columns) - COLUMN + BOX_WIDTH + 2
    # A group, not one picture: its links are reached one by one.
    chart = svg_chart(width, 24 + ROW * most, title, body, "lineage", "whole", "group")
    return chart if columns else Markup("")
