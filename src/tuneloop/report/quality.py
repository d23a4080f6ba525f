"""Quality against cost: each measured system a point, the efficient ones joined by a line."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from tuneloop.evaluation.metrics import metric_of, metric_text
from tuneloop.records.advice import MeasuredSystem
from tuneloop.records.evaluation import LeaderboardEntry
from tuneloop.report.charts.svg import WIDE, axis, fit, grid, short, svg_chart, svg_line, svg_path, svg_text


def priced_systems(leaderboard: Sequence[LeaderboardEntry]) -> list[MeasuredSystem]:
    """The systems of an evaluation as the chart takes them; those without a price or an interval are left out."""
    return [
        MeasuredSystem(
            name=entry.name,
            metric=entry.metric,
            value=entry.value,
            low=entry.low,
            high=entry.high,
            usd_per_1000_queries=entry.usd_per_1000,
        )
        for entry in leaderboard
        if entry.usd_per_1000 and math.isfinite(entry.low + entry.value + entry.high)
    ]


def efficient(systems: Sequence[MeasuredSystem]) -> list[MeasuredSystem]:
    """The systems that none is better than at their price or below, the cheapest first."""
    priced = [(system.usd_per_1000_queries, system) for system in systems if system.usd_per_1000_queries is not None]
    joined, best = list[MeasuredSystem](), -math.inf
    for _, system in sorted(priced, key=lambda pair: (pair[0], -_worth(pair[1]))):
        if _worth(system) > best:
            joined.append(system)
            best = _worth(system)
    return joined


def _worth(system: MeasuredSystem) -> float:
    return -system.value if metric_of(system.metric).lower_is_better else system.value


Box = tuple[float, float, float, float]  # left, top, right, bottom


def _point_names(
    points: Sequence[tuple[float, float, str, str]], left: float, right: float, bottom: float
) -> list[str]:
    """Names of points (x, y, name, kind), each at the nearest place that is free; a thin line leads to one far off."""

    def shared(a: Box, b: Box) -> float:
        return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))

    boxes = [(x - 6, y - 6, x + 6, y + 6) for x, y, _, _ in points]
    body = []
    for x, y, name, kind in sorted(points, key=lambda p: (p[3] != "tuned", p[1])):
        wide = len(name) * (7.2 if kind == "tuned" else 6.4)
        places = [
            (x + side * 10 - (wide if side < 0 else 0), y + down)
            for down in (0, -14, 14, -28, 28, -42, 42, -56, 56, -70, 70)
            for side in ((-1, 1) if x > (left + right) / 2 else (1, -1))
        ]
        inside = [(a, b) for a, b in places if a >= left and a + wide <= right + 40 and 14 <= b <= bottom - 4] or places
        a, b = min(inside, key=lambda at: sum(shared((at[0], at[1] - 7, at[0] + wide, at[1] + 7), t) for t in boxes))
        boxes.append((a, b - 7, a + wide, b + 7))
        if abs(b - y) > 14:
            body.append(svg_line(x, y, a + wide if a < x else a, b, "rule"))
        at, anchor = (a + wide, "end") if a < x else (a, "start")
        body.append(svg_text(at, b + 4, name, f"name {kind}", anchor))
    return body


def quality_chart(leaderboard: Sequence[MeasuredSystem], width: float = WIDE) -> Markup:
    """Quality with its interval above what 1,000 queries cost: two axes, never one number.

    A line joins the efficient systems: none is better at their price or below.
    """
    points = [(c, c.usd_per_1000_queries) for c in leaderboard if c.usd_per_1000_queries is not None]
    if len(points) < 2:
        return Markup("")
    narrow = width < 500
    left, right, top, bottom = (40.0, width - 12, 16.0, 230.0) if narrow else (56.0, width - 60, 16.0, 270.0)
    cost = axis([price for _, price in points], left + 14, right - 14)
    quality = axis([v for c, _ in points for v in (c.value, c.low, c.high)], bottom, top, log=False)
    body = grid(quality, left, right, across=True)
    for i, tick in enumerate(cost.ticks):
        if not narrow or i % 2 == 0 or len(cost.ticks) < 4:
            body.append(svg_text(cost(tick), bottom + 17, f"${short(tick)}", "tick", "middle"))
    body.append(svg_text(right, bottom + 33, "dollars for 1,000 queries, as measured", "tick", "end"))
    joined = efficient(leaderboard)
    body.append(svg_path([(cost(c.usd_per_1000_queries or 0.0), quality(c.value)) for c in joined], "raw"))
    dots = []
    for c, price in points:
        kind = "tuned" if c.name == "tuned" else "other"
        x, y = cost(price), quality(c.value)
        dots.append((x, y, fit(c.name, 140 if narrow else 200), kind))
        body += [
            svg_line(x, quality(c.low), x, quality(c.high), f"whisker {kind}"),
            f'<circle class="dot {kind}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>',
        ]
    body += _point_names(dots, left, right, bottom)
    title = "Quality and cost: " + "; ".join(f"{c.name} {metric_text(c.value, c.metric)}" for c, _ in points)
    title += f". Efficient: {', '.join(c.name for c in joined)}"
    return svg_chart(width, bottom + 40, title, body, "quality")
