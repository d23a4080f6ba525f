"""Charts of the pages that no report has: bars by day, estimated accuracy, and the lineage of a model's versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from tuneloop.improve.monitor.record import QualityEstimate
from tuneloop.report.charts import WIDE, _line, _path, _svg, _text, axis, fit, fit_middle, grid

MOST_BARS, MOST_BAR = 92, 48.0  # bars; pixels that one may be wide
COLUMN, ROW, BOX_WIDTH, BOX_HEIGHT = 208, 62, 168, 44  # pixels of the picture of a lineage


def day_chart(values: Sequence[tuple[str, float, str]], legend: str, width: float = WIDE) -> Markup:
    """Bars by day: (day, value, what a pointer shows); of many days the last ones."""
    values = values[-(31 if width < 500 else MOST_BARS) :]
    if not values:
        return Markup("")
    left, right, top, bottom = 52.0, width - 8, 26.0, 150.0
    y = axis([0.0, *(value for _, value, _ in values)], bottom, top, steps=3, log=False)
    body = grid(y, left, right, across=True)
    step = min((right - left) / len(values), MOST_BAR)
    for at, (_, value, tip) in enumerate(values):
        box = f'x="{left + step * (at + 0.12):.1f}" y="{y(value):.1f}" width="{max(step * 0.76, 0.8):.1f}"'
        body.append(f'<rect class="bar" {box} height="{bottom - y(value):.1f}"><title>{escape(tip)}</title></rect>')
    body += [_text(left, 12, legend, "legend"), _text(left, bottom + 17, values[0][0], "tick")]
    if len(values) > 1:
        body.append(_text(right, bottom + 17, values[-1][0], "tick", "end"))
    return _svg(width, bottom + 24, f"{legend}, {values[0][0]} to {values[-1][0]}", body, "days")


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
            body.append(_line(x, y(q.low), x, y(q.high), "whisker other"))
            line.append((x, y(q.estimated)))
            circle = f'<circle class="shape0" cx="{x:.1f}" cy="{y(q.estimated):.1f}" r="3"/>'
            body.append(f"<g><title>{escape(tip)}</title>{circle}</g>")
    body.append(_path(line, "train"))
    legend = "share of right answers, as people judged, with its 95 % interval"
    body += [_text(0, 12, fit(legend, right), "legend"), _text(left, bottom + 17, points[0][0][:10], "tick")]
    if len(points) > 1:
        body.append(_text(right, bottom + 17, points[-1][0][:10], "tick", "end"))
    return _svg(width, bottom + 24, "Accuracy by window", body, "accuracy")


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
        body.append(_text(at * COLUMN, 12, name, "legend"))
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
            lines = _text(x + 10, y + 18, fit_middle(node.text, BOX_WIDTH - 20), node.tone)
            lines += _text(x + 10, y + 34, fit_middle(node.detail, BOX_WIDTH - 20, size=11), "tick")
            group = f"<g>{tip}{box}{lines}</g>"
            body.append(f'<a href="{escape(node.href)}">{group}</a>' if node.href else group)
    width = COLUMN * len(columns) - COLUMN + BOX_WIDTH + 2
    return _svg(width, 24 + ROW * most, title, body, "lineage", "whole") if columns else Markup("")
