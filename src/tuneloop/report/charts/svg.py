"""Charts as inline SVG: no script, no network, colours by CSS variables so that light and dark both work.

A chart is drawn wide and narrow: a wide one shrunk to a phone has unreadable labels."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

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


def svg_bar(x: float, y: float, width: float, height: float, tip: str) -> str:
    box = f'x="{x:.2f}" y="{y:.1f}" width="{width:.2f}" height="{height:.1f}" rx="1"'
    return f'<rect class="bar" {box}><title>{escape(tip)}</title></rect>'


def svg_path(points: Sequence[tuple[float, float]], kind: str) -> str:
    """A line of a picture through points; nothing where there is but one."""
    if len(points) < 2:
        return ""
    return f'<path class="{kind}" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in points)}"/>'


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MAX_POINTS` points, the last one kept."""
    stride = math.ceil(len(points) / MAX_POINTS) or 1
    thinned = list(points[::stride])
    return thinned if not points or thinned[-1] == points[-1] else [*thinned, points[-1]]


def chart_pair(draw: Callable[..., Markup], *args: object) -> Markup:
    """The wide and the narrow drawing of a chart; the page shows the one that fits."""
    return Markup("").join(draw(*args, width=width) for width in (WIDE, NARROW))
