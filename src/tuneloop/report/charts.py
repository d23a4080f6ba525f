"""Charts as inline SVG: no script, no network, colours by CSS variables so that light and dark both work.

A chart is drawn wide and narrow: a wide one shrunk to a phone has unreadable labels. Axes cover what a curve does most
of the time; points beyond are triangles at the edge, so that one spike does not flatten it."""

from __future__ import annotations

import math
import statistics
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from tuneloop.core.written import count, number
from tuneloop.evaluation.metrics import metric_of, title_of
from tuneloop.evaluation.metrics.written import interval, metric_text, percentage, with_interval
from tuneloop.records.evaluation import Estimate
from tuneloop.records.run import FindingLine, TrainingStep, Validation
from tuneloop.report.facts import SystemFacts

WIDE, NARROW = 760, 350
MAX_POINTS = 400  # a curve of more points looks the same and makes the page heavy
MOST_COLUMNS = 60  # of values that a pointer shows


@dataclass(frozen=True)
class Axis:
    """A scale from data to pixels."""

    low: float  # low, high: of the data
    high: float
    start: float  # start, end: pixels of low and high
    end: float
    log: bool
    ticks: tuple[float, ...]  # values to label

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        share = (at - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)


def nice_ticks(low: float, high: float, steps: int = 5) -> tuple[float, ...]:
    """Round numbers (steps of 1, 2 or 5 times a power of ten) from at most `low` to at least `high`, about so many."""
    if high - low <= 1e-9 * max(abs(low), abs(high), 1.0):  # one value, or what rounds to one
        span = max(abs(low) * 0.1, 1e-6) if abs(low) > 1e-6 else 1.0
        low, high = low - span, high + span
    raw = (high - low) / max(steps, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(round(i * step, 12) for i in range(first, last + 1))


def log_ticks(low: float, high: float) -> tuple[float, ...]:
    """1, 2 and 5 times powers of ten around `low` to `high` (both above 0); powers alone over many decades."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(powers) <= 4 else (1,)
    ticks = [m * 10.0**p for p in powers for m in steps]
    first = max((t for t in ticks if t <= low), default=ticks[0])
    last = min((t for t in ticks if t >= high), default=ticks[-1])
    return tuple(t for t in ticks if first <= t <= last)


def axis(values: Sequence[float], start: float, end: float, *, steps: int = 5, log: bool | None = None) -> Axis:
    """An axis that covers `values`; logarithmic when they span more than a factor of 20 (`log=None`)."""
    low, high = min(values), max(values)
    if log is None:
        log = low > 0 and high / low > 20
    if log and low > 0:
        ticks = log_ticks(low, high)
        if len(ticks) >= 2:
            return Axis(ticks[0], ticks[-1], start, end, True, ticks)
    ticks = nice_ticks(low, high, steps)
    if low >= 0 and ticks[0] < 0:  # one value alone: no axis of negative ones for what has none
        ticks = nice_ticks(0.0, high or 1.0, steps)
    return Axis(ticks[0], ticks[-1], start, end, False, ticks)


def short(value: float) -> str:
    """A tick label: `0.00005`, `200`, `1.5k`; never with an exponent."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    if abs(value) >= 10_000:
        return f"{value / 1e3:g}k"
    text = f"{value:g}"
    return f"{value:.12f}".rstrip("0").rstrip(".") if "e-" in text else text


def smooth(values: Sequence[float], window: float) -> list[float]:
    """Exponential moving average, corrected for its start, so that the first value is itself."""
    keep = 1 - 1 / max(window, 1.0)
    total, weight, out = 0.0, 0.0, []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        out.append(total / weight)
    return out


def fit(text: str, pixels: float, *, size: float = 12) -> str:
    """Cut a label to about `pixels`, with an ellipsis; wide (East Asian) characters count double."""
    room, used = pixels / (size * 0.56), 0.0
    for at, char in enumerate(text):
        used += 1.8 if unicodedata.east_asian_width(char) in "WF" else 1.0
        if used > room:
            return text[: max(at - 1, 1)].rstrip(" _-") + "…"
    return text


def fit_middle(text: str, pixels: float, *, size: float = 12) -> str:
    """`fit` that leaves out the middle: names that begin alike stay apart by their ends."""
    if fit(text, pixels, size=size) == text:
        return text
    head, tail = (fit(part, pixels / 2, size=size) for part in (text, text[::-1]))
    return head.removesuffix("…") + tail[::-1]


def svg_chart(
    width: float, height: float, title: str, body: Sequence[str], kind: str, size: str = "", role: str = "img"
) -> Markup:
    """A picture of parts; `title`: what it is called, for those who don't see it; `kind`: its class."""
    size = size or ("narrow" if width < 500 else "wide")
    label, namespace = escape(title), 'xmlns="http://www.w3.org/2000/svg"'
    head = f'<svg class="chart {kind} {size}" viewBox="0 0 {width:g} {height:g}" role="{role}" aria-label="{label}"'
    return Markup(f"{head} {namespace}><title>{label}</title>{''.join(body)}</svg>")


def svg_text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    """A text of a picture, escaped; `kind`: its class."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'


def svg_line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A straight line of a picture."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def grid(
    scale: Axis,
    a: float,
    b: float,
    *,
    across: bool,
    unit: str = "",
    gap: float = 7,
    label: Callable[[float], str] = short,
) -> list[str]:
    """A line at each tick, from `a` to `b`, with its value: below upright lines, left of level ones (`across`)."""
    body = []
    for tick in scale.ticks:
        at, value = scale(tick), f"{unit}{label(tick)}"
        if across:
            body += [svg_line(a, at, b, at, "grid"), svg_text(a - gap, at + 4, value, "tick", "end")]
        else:
            body += [svg_line(at, a, at, b, "grid"), svg_text(at, b + 17, value, "tick", "middle")]
    return body


def _bar(x: float, y: float, width: float, height: float, tip: str) -> str:
    box = f'x="{x:.2f}" y="{y:.1f}" width="{width:.2f}" height="{height:.1f}" rx="1"'
    return f'<rect class="bar" {box}><title>{escape(tip)}</title></rect>'


def svg_path(points: Sequence[tuple[float, float]], kind: str) -> str:
    """A line of a picture through points; nothing where there is but one."""
    if len(points) < 2:
        return ""
    return f'<path class="{kind}" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in points)}"/>'


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MAX_POINTS` points, the last one kept."""
    stride = math.ceil(len(points) / MAX_POINTS) or 1
    thinned = list(points[::stride])
    return thinned if not points or thinned[-1] == points[-1] else [*thinned, points[-1]]


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
    points = _thin(points)
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
                _bar(left, bar_y, length, 12, f"{name}: {count(n)}"),
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
        body.append(_bar(left + i * step + step * 0.12, y, step * 0.76, max(bottom - y, 0.5), f"{name}: {count(n)}"))
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
            _bar(scale(least), y - 6, max(scale(p90) - scale(least), 1), 12, tip),
            svg_line(scale(p50), y - 8, scale(p50), y + 8, "median"),
        ]
    ranges = [f"{name}: median {v[1]:,.0f}, 90 % at most {v[2]:,.0f}, longest {v[3]:,.0f}" for name, v in rows]
    return svg_chart(width, bottom + 24, f"Tokens a row. {'; '.join(ranges)}", body, "tokens")


def chart_pair(draw: Callable[..., Markup], *args: object) -> Markup:
    """The wide and the narrow drawing of a chart; the page shows the one that fits."""
    return Markup("").join(draw(*args, width=width) for width in (WIDE, NARROW))


SMALL = 300  # width of a chart in a row of others, in CSS pixels
WINDOW = 5  # steps of a running median: one or two spikes among them do not move it
SLACK = 0.5  # of the axis: points that far beyond the rest are still drawn on it
MOST_RUNS = 8  # curves that can be distinguished in one chart

Point = tuple[float, float]  # step, value
Records = Sequence[TrainingStep] | Sequence[Validation]
Findings = Sequence[FindingLine]


def points_of(records: Records, key: str) -> list[Point]:
    """(step, value) of the records whose value is a finite number."""
    values = ((record.step, number(getattr(record, key))) for record in records)
    return [(step, value) for step, value in values if value is not None]


@dataclass(frozen=True)
class Curve:
    """Losses of one run: by step, and those of its validations."""

    name: str
    train: list[Point]
    val: list[Point]


def robust_axis(
    curves: Sequence[Sequence[float]], start: float, end: float, *, steps: int = 5, log: bool | None = None
) -> Axis:
    """An axis over values in order of steps that single spikes do not stretch.

    It covers the running medians of each curve and its first value; further values where they are within half of its
    length beyond. It is logarithmic where these values span more than a factor of 20 (`log=None`).
    """
    core = [v for curve in curves for v in [*curve[:1], *running_median(curve)]]
    low, high = min(core), max(core)
    log = low > 0 and high / low > 20 if log is None else log
    scale = math.log if log else float
    room = SLACK * (scale(high) - scale(low)) or abs(scale(high)) * SLACK or 1.0
    values = [v for curve in curves for v in curve if v > 0 or not log]
    inside = [v for v in values if scale(low) - room <= scale(v) <= scale(high) + room]
    return axis([low, high, *inside], start, end, steps=steps, log=log)


def running_median(values: Sequence[float]) -> list[float]:
    """The median of each value and its neighbours, `WINDOW` of them in all, fewer at the ends."""
    half = WINDOW // 2
    return [statistics.median(values[max(i - half, 0) : i + half + 1]) for i in range(len(values))]


@dataclass(frozen=True)
class PlotFrame:
    """A chart's axes. Values beyond an axis are drawn at its edge."""

    x: Axis
    y: Axis

    def at(self, points: Sequence[Point]) -> list[Point]:
        """Pixels of points, held inside the axes."""
        return [(self.x(step), self.y(min(max(v, self.y.low), self.y.high))) for step, v in points]

    def off(self, points: Sequence[Point]) -> list[Point]:
        """Points beyond the axis of values."""
        return [(step, v) for step, v in points if v > self.y.high or v < self.y.low]

    def lines(self, x_title: str, y_title: str, width: float, height: float) -> list[str]:
        """Grid, ticks and the axes' titles."""
        left, right, bottom = self.x.start, self.x.end, self.y.start
        body = grid(self.y, left, right, across=True)
        for tick in self.x.ticks:
            if tick <= self.x.high:
                x = self.x(tick)
                body += [
                    svg_line(x, bottom, x, bottom + 4, "rule"),
                    svg_text(x, bottom + 17, short(tick), "tick", "middle"),
                ]
        body.append(svg_line(left, bottom, right, bottom, "rule"))
        body.append(svg_text(right, height - 4, x_title, "tick", "end"))
        body.append(svg_text(0, height - 4, f"{y_title}, log scale" if self.y.log else y_title, "tick"))
        return body

    def columns(self, curves: Mapping[str, Sequence[Point]]) -> list[str]:
        """Unseen columns at steps of the curves, at most `MOST_COLUMNS`: a pointer shows the values of its column."""
        values: dict[float, list[str]] = {}
        for name, points in curves.items():
            for step, v in points[:: math.ceil(len(points) / MOST_COLUMNS) or 1]:
                values.setdefault(step, []).append(f"{name} {v:.4g}".strip())
        width = abs(self.x.end - self.x.start) / max(len(values), 1)
        box = f'y="{self.y.end:.0f}" width="{width:.1f}" height="{self.y.start - self.y.end:.0f}" fill="none"'
        body = []
        for step, words in sorted(values.items()):
            tip = f"<title>step {step:g}: {escape(', '.join(words))}</title>"
            at = f'x="{self.x(step) - width / 2:.1f}" {box} pointer-events="all"'
            body.append(f'<rect class="column" {at}>{tip}</rect>')
        return body

    def marks_off(self, points: Sequence[Point]) -> list[str]:
        """A triangle at the edge for each point beyond it."""
        body = []
        for step, v in self.off(points):
            above = v > self.y.high
            x, y, d = self.x(step), self.y.end if above else self.y.start, 6 if above else -6
            shape = f"M{x - 4:.1f} {y + d:.1f}L{x + 4:.1f} {y + d:.1f}L{x:.1f} {y:.1f}Z"
            body.append(f'<path class="off" d="{shape}"><title>step {step:g}: {v:.4g}</title></path>')
        return body


def off_words(frame: PlotFrame, points: Sequence[Point]) -> str:
    """`2 points off the axis, up to 58.1`; empty where all are on it."""
    off = [v for _, v in frame.off(points)]
    if not off:
        return ""
    end = f"up to {max(off):.3g}" if max(off) > frame.y.high else f"down to {min(off):.3g}"
    return f"{count(len(off), 'point')} off the axis (▲ ▼), {end}"


def smoothed(frame: PlotFrame, points: Sequence[Point]) -> list[Point]:
    """Pixels of the smoothed curve through the points on the axis: what is off it would drag the curve along."""
    on = [(step, v) for step, v in points if frame.y.low <= v <= frame.y.high]
    curve = smooth([v for _, v in on], max(3.0, len(on) / 25))
    return _thin(frame.at([(step, v) for (step, _), v in zip(on, curve, strict=True)]))


def step_axis(first: float, last: float, left: float, right: float, steps: int) -> Axis:
    """Steps from the first to the last one."""
    end = last if last > first else first + 1.0
    ticks = axis([first, last], left, right, steps=steps, log=False).ticks
    return Axis(first, end, left, right, False, tuple(tick for tick in ticks if tick >= first))


def loss_chart(
    steps: Records,
    validations: Records,
    findings: Findings = (),
    width: float = WIDE,
    *,
    values: bool = False,
    first: float = 0.0,
) -> Markup:
    """Training loss by step (raw and smoothed) with the validation losses; the best one and findings are marked.

    Empty when there is no finite loss. `findings` are numbered marks at their steps. `values`: a pointer shows them.
    `first`: step at which the axis begins.
    """
    train, val = points_of(steps, "loss"), points_of(validations, "val_loss")
    general = points_of(validations, "general_loss")
    if not train and not val:
        return Markup("")
    narrow = width < 500
    height = 250 if narrow else 320
    left, right, top, bottom = (38.0, width - 8, 34.0, height - 36.0)
    curves = [[v for _, v in points] for points in (train, val, general) if points]
    frame = PlotFrame(
        step_axis(first, max(s for s, _ in train + val), left, right, 4 if narrow else 8),
        robust_axis(curves, bottom, top, steps=4 if narrow else 5),
    )
    body = frame.lines("step", "loss", width, height)
    body += frame.columns({"loss": train, "validation": val}) if values else []
    body += [svg_path(_thin(frame.at(train)), "raw"), svg_path(smoothed(frame, train), "train")]
    body += [svg_path(frame.at(general), "general"), svg_path(frame.at(val), "val")]
    body += [f'<circle class="val" cx="{x:.1f}" cy="{y:.1f}" r="3.2"/>' for x, y in frame.at(val)]
    best = min(val, key=lambda point: point[1]) if val else None
    if best:
        ((x, y),) = frame.at([best])
        anchor = "end" if x > right - 60 else "start" if x < left + 60 else "middle"
        text_y = y + 22 if y < top + 26 else y - 13  # below where there is no room above
        body.append(f'<circle class="best" cx="{x:.1f}" cy="{y:.1f}" r="7"/>')
        body.append(svg_text(x, min(text_y, bottom - 5), f"best {best[1]:.3f}", "mark", anchor))
    for i, finding in enumerate(findings, 1):
        x = frame.x(finding.step)
        if first <= finding.step <= frame.x.high:
            mark = svg_line(x, top, x, bottom, "rule") + svg_text(x, top - 2, str(i), "tick", "middle")
            body.append(f'<g class="finding"><title>{escape(finding.sentence)}</title>{mark}</g>')
    body += frame.marks_off(train + val)
    entries = [("train", "smoothed" if narrow else "train (smoothed)"), ("raw", "each step"), ("val", "validation")]
    entries += [("general", "other work")] if general else []
    body += _legend(left, entries, bool(train), bool(val))
    off = off_words(frame, train + val)
    if off:
        body.append(svg_text(right, top - 5, off, "legend", "end"))
    title = f"Loss over {count(len(train), 'training step')}"
    if best:
        title += f"; best validation loss {best[1]:.3f} at step {best[0]:g}"
    return svg_chart(width, height, f"{title}; {off}" if off else title, body, "loss")


def _legend(left: float, entries: Sequence[tuple[str, str]], train: bool, val: bool) -> list[str]:
    body, at = [], left
    for kind, name in entries:
        if not (val if kind in ("val", "general") else train):
            continue
        body += [svg_line(at, 11, at + 16, 11, kind), svg_text(at + 21, 15, name, "legend")]
        if kind == "val":
            body.append(f'<circle class="val" cx="{at + 8:.1f}" cy="11" r="3.2"/>')
        at += 21 + len(name) * 6.4 + 16
    return body


def step_chart(steps: Records, key: str, title: str, *, values: bool = False, first: float = 0.0) -> Markup:
    """One number of each step, in a small chart among others; empty when fewer than two steps have it."""
    points = points_of(steps, key)
    if len(points) < 2:
        return Markup("")
    width, height = float(SMALL), 170.0
    left, right, top, bottom = 52.0, width - 8, 24.0, height - 34.0
    column = [v for _, v in points]
    frame = PlotFrame(
        step_axis(first, points[-1][0], left, right, 4), robust_axis([column], bottom, top, steps=3, log=False)
    )
    body = frame.lines("step", "", width, height)
    body.append(svg_path(_thin(frame.at(points)), "train"))
    body += frame.marks_off(points)
    off = off_words(frame, points)
    if off:
        body.append(svg_text(right, top - 9, off, "legend", "end"))
    body += frame.columns({"": points}) if values else []
    title_text = f"{title} by step: from {column[0]:.4g} to {column[-1]:.4g}, at most {max(column):.4g}"
    return svg_chart(width, height, title_text, body, "steps", "small")


def overlay_chart(curves: Sequence[Curve], width: float = WIDE, *, values: bool = False, first: float = 0.0) -> Markup:
    """Losses of several runs over each other: smoothed training loss as a line, validations as marks of the same kind.

    Each run has its own dash pattern and shape, so that colour is not needed to distinguish them. The first `MOST_RUNS`
    are drawn. `values`: a pointer shows them; `first`: step at which the axis begins.
    """
    runs = [c for c in curves if c.train or c.val][:MOST_RUNS]
    if not runs:
        return Markup("")
    narrow = width < 500
    height = (230.0 if narrow else 290.0) + 18 * len(runs)
    left, right, top, bottom = 38.0, width - 8, 18.0 * len(runs) + 22, height - 36.0
    every = [p for c in runs for p in c.train + c.val]
    losses = [[v for _, v in points] for c in runs for points in (c.train, c.val) if points]
    frame = PlotFrame(
        step_axis(first, max(s for s, _ in every), left, right, 4 if narrow else 8),
        robust_axis(losses, bottom, top, steps=4 if narrow else 5),
    )
    body = frame.lines("step", "loss", width, height)
    body += frame.columns({c.name: c.train or c.val for c in runs}) if values else []
    for i, curve in enumerate(runs):
        kind = f"run run{i}"
        body.append(svg_path(smoothed(frame, curve.train), kind))
        body += [_shape(i, x, y) for x, y in frame.at(curve.val)]
        y = 11.0 + 18 * i
        best = f", best validation {min(v for _, v in curve.val):.3f}" if curve.val else ""
        body += [svg_line(left, y, left + 30, y, kind), _shape(i, left + 15, y)]
        body.append(svg_text(left + 38, y + 4, fit(f"{curve.name}{best}", right - left - 40), "legend"))
        body += frame.marks_off(curve.train + curve.val)
    off = off_words(frame, every)
    if off:
        body.append(svg_text(right, top - 3, off, "legend", "end"))
    summary = "; ".join(f"{c.name}: last {(c.train or c.val)[-1][1]:.3f}" for c in runs)
    return svg_chart(width, height, f"Loss of {count(len(runs), 'run')} by step. {summary}", body, "overlay")


def _shape(i: int, x: float, y: float) -> str:
    kind, r = f"shape{i}", 3.6
    paths = {
        1: f"M{x - r} {y - r}h{2 * r}v{2 * r}h{-2 * r}Z",
        2: f"M{x} {y - 1.3 * r}L{x + 1.3 * r} {y}L{x} {y + 1.3 * r}L{x - 1.3 * r} {y}Z",
        3: f"M{x} {y - r}L{x + r} {y + r}L{x - r} {y + r}Z",
        4: f"M{x - r} {y - r}L{x + r} {y + r}M{x + r} {y - r}L{x - r} {y + r}",
        6: f"M{x - r} {y - r}L{x + r} {y - r}L{x} {y + r}Z",
        7: f"M{x - r} {y}H{x + r}M{x} {y - r}V{y + r}",
    }
    if i not in paths:
        return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{r}"/>'
    return f'<path class="{kind}" d="{paths[i]}"/>'
