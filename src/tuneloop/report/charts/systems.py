"""Systems next to each other by a metric, and shares of rows: dots, intervals and bars."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

from tuneloop.core.written import count, number
from tuneloop.evaluation.metrics import interval, metric_of, metric_text, percentage, title_of, with_interval
from tuneloop.records.evaluation import Estimate
from tuneloop.report.charts.svg import (
    WIDE,
    Axis,
    axis,
    fit,
    grid,
    nice_ticks,
    short,
    svg_bar,
    svg_chart,
    svg_line,
    svg_path,
    svg_text,
    thinned,
)
from tuneloop.report.facts import SystemFacts


def forest_chart(
    lines: Sequence[SystemFacts], at: int, metric: str, width: float = WIDE, *, recommended: str = ""
) -> Markup:
    """Systems under each other, each a value with its 95 % interval; a line marks the tuned model's value.

    `at`: which of the lines' scores to draw; `recommended`: the system with a check mark. Empty when nothing was
    measured.
    """
    rows = [(line, score) for line in lines if (score := line.scores[at]) is not None]
    if not rows:
        return Markup("")
    pitch, top = (40.0, 12.0) if width < 500 else (30.0, 8.0)
    bars = [
        (
            f"{line.name} ✓" if line.name == recommended else line.name,
            score,
            *(("tuned", 5) if line.tuned else ("other", 4)),
        )
        for line, score in rows
    ]
    marks = [score.value for line, score in rows if line.tuned]
    body = interval_bars(bars, marks, metric, pitch, top, width, caps=True)
    values = "; ".join(f"{line.name} {metric_text(score.value, metric)}" for line, score in rows)
    title = f"{title_of(metric)}: {values}" + (f". Recommended: {recommended}" if recommended else "")
    return svg_chart(width, top + pitch * len(rows) + 26, title, body, "forest")


def interval_bars(
    bars: Sequence[tuple[str, Estimate, str, int]],
    marks: Sequence[float],
    metric: str,
    pitch: float,
    top: float,
    width: float,
    *,
    caps: bool = False,
) -> list[str]:
    """Values with their intervals under each other, on a common axis; an upright line at each of `marks`.

    `bars`: (name, value with interval, CSS class, radius of the dot); `pitch`, `top`: pixels; `caps`: bars with ends.
    """
    narrow, share = width < 500, percentage(metric)
    written = share or (lambda value: metric_text(value, metric))
    left, right = (4.0, width - 8) if narrow else (230.0, width - 150)
    ends = [v for _, s, _, _ in bars for v in (s.value, s.low, s.high) if math.isfinite(v)]
    scale = axis([*ends, *marks], left + 6, right - 6, steps=4 if narrow else 6, log=False)
    bottom = top + pitch * len(bars)
    body = grid(scale, top, bottom, across=False, label=share or short)
    body += [svg_line(scale(mark), top, scale(mark), bottom, "reference") for mark in marks]
    for i, (name, score, kind, radius) in enumerate(bars):
        y = top + pitch * i + (pitch - 12 if narrow else pitch / 2)
        label_y = y - 12 if narrow else y + 4
        body.append(svg_text(0, label_y, fit(name, width - 130 if narrow else 222), f"name {kind}"))
        value, bounds = written(score.value), interval(score, metric)
        bounds = f"[{written(score.low)}, {written(score.high)}]".replace(" %,", ",") if bounds and share else bounds
        label = f'<tspan class="value">{value}</tspan>' + (f' <tspan class="bounds">{bounds}</tspan>' if bounds else "")
        body.append(f'<text x="{width:g}" y="{label_y:.1f}" class="figure {kind}" text-anchor="end">{label}</text>')
        if bounds:
            low, high = scale(score.low), scale(score.high)
            body.append(svg_line(low, y, high, y, f"whisker {kind}"))
            body += [svg_line(end, y - 4, end, y + 4, f"whisker {kind}") for end in (low, high) if caps]
        body.append(f'<circle class="dot {kind}" cx="{scale(score.value):.1f}" cy="{y:.1f}" r="{radius}"/>')
    return body


def sparkline(bars: Sequence[tuple[str, float]], title: str, width: float = 220, height: float = 44) -> Markup:
    """A picture the size of a word: a bar for each (name, value), the last one marked; empty without any value."""
    most = max((value for _, value in bars), default=0.0)
    if not most:
        return Markup("")
    pitch, body = width / len(bars), list[str]()
    for i, (name, value) in enumerate(bars):
        tall = max((height - 2) * value / most, 1.0)
        box = f'x="{i * pitch + 1:.1f}" y="{height - tall:.1f}" width="{pitch - 2:.1f}" height="{tall:.1f}"'
        kind = "bar last" if i + 1 == len(bars) else "bar"
        body.append(f'<rect class="{kind}" {box} rx="1"><title>{escape(name)}: {short(value)}</title></rect>')
    said = "; ".join(f"{name} {short(value)}" for name, value in bars)
    return svg_chart(width, height, f"{title}: {said}", body, "spark", "tiny")


def small_curve(points: Sequence[tuple[float, float]], title: str, width: float = 96, height: float = 26) -> Markup:
    """A curve the size of a word, from its first point to its last, which is marked; empty below two points.

    `points`: (step, value) in order; `title`: what it is, for those who don't see it.
    """
    points = thinned(points)
    if len(points) < 2:
        return Markup("")
    middle = sorted(value for _, value in points)[: math.ceil(0.98 * len(points))]  # a spike or two flatten nothing
    x = Axis(points[0][0], points[-1][0], 2, width - 4, False, ())
    y = Axis(middle[0], max(middle[-1], points[-1][1]), height - 3, 3, False, ())
    line = [(x(step), y(min(value, y.high))) for step, value in points]
    dot = f'<circle class="dot tuned" cx="{line[-1][0]:.1f}" cy="{line[-1][1]:.1f}" r="2.5"/>'
    body = [svg_path(line, "train"), dot]
    return svg_chart(width, height, f"{title}: {points[0][1]:.3g} to {points[-1][1]:.3g}", body, "curve", "tiny")


def gain_chart(gain: float, low: float, high: float, goal: float, width: float = 150, height: float = 16) -> Markup:
    """A difference with its bounds the size of a word, around 0; a dashed mark at what was to be gained."""
    if not all(math.isfinite(value) for value in (gain, low, high)):
        return Markup("")
    most = max(abs(low), abs(high), abs(goal)) * 1.05 or 1.0
    scale, y = Axis(-most, most, 4, width - 4, False, ()), height / 2
    body = [
        svg_line(4, y, width - 4, y, "grid"),
        svg_line(scale(0), 1, scale(0), height - 1, "zero"),
        svg_line(scale(goal), 1, scale(goal), height - 1, "limit"),
        svg_line(scale(low), y, scale(high), y, "whisker tuned"),
        f'<circle class="dot tuned" cx="{scale(gain):.1f}" cy="{y:.1f}" r="3.5"/>',
    ]
    return svg_chart(width, height, f"Difference {gain:+.3f} [{low:+.3f}, {high:+.3f}]", body, "gain", "tiny")


def dot_chart(score: Estimate, metric: str, width: float = 120, height: float = 14) -> Markup:
    """A value with its interval the size of a word, between 0 and the metric's best value; empty without bounds."""
    bounded = math.isfinite(score.low + score.high)
    if not math.isfinite(score.value) or metric_of(metric).scale == "from 0":
        return Markup("")
    scale = Axis(0.0, metric_of(metric).out_of, 4, width - 4, False, ())
    y = height / 2
    body = [svg_line(4, y, width - 4, y, "grid")]
    body += [svg_line(scale(score.low), y, scale(score.high), y, "whisker tuned")] if bounded else []
    body.append(f'<circle class="dot tuned" cx="{scale(score.value):.1f}" cy="{y:.1f}" r="2.5"/>')
    return svg_chart(width, height, f"{title_of(metric)} {with_interval(score, metric)}", body, "dot", "tiny")


def label_chart(labels: Mapping[str, float], width: float = WIDE, *, most: int = 24) -> Markup:
    """How many rows each label has, the largest first.

    Up to `most` labels get a bar with their name; above that thin columns show the shape, and the two ends are named.
    """
    counts = ((str(k), n) for k, v in labels.items() if (n := number(v)) is not None)
    pairs = sorted(counts, key=lambda pair: (-pair[1], pair[0]))
    if not pairs:
        return Markup("")
    ends = [f"{count(n)} ({name})" for name, n in (pairs[0], pairs[-1])]
    title = f"Rows of each of {count(len(pairs), 'label')}: from {ends[0]} to {ends[1]}"
    top_value = max(pairs[0][1], 1.0)
    if len(pairs) <= most:
        narrow = width < 500
        pitch, left = (34.0, 0.0) if narrow else (22.0, 230.0)
        body = []
        for i, (name, n) in enumerate(pairs):
            y = i * pitch
            bar_y, text_y = (y + 18, y + 13) if narrow else (y + 5, y + 15)
            length = max((width - 48 - left) * n / top_value, 1.0)
            body += [
                svg_text(0, text_y, fit(name, width - 20 if narrow else left - 10), "name"),
                svg_bar(left, bar_y, length, 12, f"{name}: {count(n)}"),
                svg_text(left + length + 6, bar_y + 10, count(n), "tick"),
            ]
        return svg_chart(width, pitch * len(pairs) + 4, title, body, "labels")
    left, bottom, top = 34.0, 130.0, 8.0
    ticks = nice_ticks(0, top_value, 3)
    y_axis = Axis(0, ticks[-1], bottom, top, False, ticks)
    body = grid(y_axis, left, width, across=True, gap=6)
    step = (width - left) / len(pairs)
    for i, (name, n) in enumerate(pairs):
        y = y_axis(n)
        body.append(svg_bar(left + i * step + step * 0.12, y, step * 0.76, max(bottom - y, 0.5), f"{name}: {count(n)}"))
    half = (width - left) / 2 - 8
    body.append(svg_text(left, bottom + 17, fit(f"most: {pairs[0][0]}", half), "tick"))
    body.append(svg_text(width, bottom + 17, fit(f"least: {pairs[-1][0]}", half), "tick", "end"))
    return svg_chart(width, bottom + 24, title, body, "labels")


def token_chart(splits: Mapping[str, Mapping[str, object]], limit: float | None = None, width: float = WIDE) -> Markup:
    """How many tokens the rows of each split have: least to most, a bar to the 90th percentile, a mark at the median.

    The `limit` of a row is drawn when it is near enough to matter.
    """
    rows = []
    for name, stats in splits.items():
        values = [number(stats.get(key)) for key in ("min", "p50", "p90", "max")]
        if all(v is not None for v in values):
            rows.append((str(name), [float(v) for v in values if v is not None]))
    if not rows:
        return Markup("")
    narrow = width < 500
    most = max(values[3] for _, values in rows)
    shown_limit = limit if limit is not None and limit <= 3 * most else None
    pitch, left = (42.0, 4.0) if narrow else (32.0, 60.0)
    top = 16.0 if shown_limit else 4.0
    bottom = top + pitch * len(rows)
    ends = [0.0, most, *([shown_limit] if shown_limit else [])]
    scale = axis(ends, left + 2, width - 14, steps=4 if narrow else 8, log=False)
    body = grid(scale, top, bottom, across=False)
    if shown_limit:
        body += [svg_line(scale(shown_limit), top, scale(shown_limit), bottom, "limit")]
        body.append(svg_text(scale(shown_limit) - 3, 11, f"limit {shown_limit:,.0f}", "tick", "end"))
    for i, (name, (least, p50, p90, longest)) in enumerate(rows):
        y = top + pitch * i + (pitch - 13 if narrow else pitch / 2)
        tip = f"{name}: 90 % of rows have at most {p90:,.0f} tokens"
        body += [
            svg_text(0, y - 14 if narrow else y + 4, name, "name"),
            svg_line(scale(least), y, scale(longest), y, "whisker other"),
            svg_line(scale(longest), y - 4, scale(longest), y + 4, "whisker other"),
            svg_bar(scale(least), y - 6, max(scale(p90) - scale(least), 1), 12, tip),
            svg_line(scale(p50), y - 8, scale(p50), y + 8, "median"),
        ]
    ranges = [f"{name}: median {v[1]:,.0f}, 90 % at most {v[2]:,.0f}, longest {v[3]:,.0f}" for name, v in rows]
    return svg_chart(width, bottom + 24, f"Tokens a row. {'; '.join(ranges)}", body, "tokens")
