"""Curves of a training run by step: losses, learning rate, gradient norm, speed; and the losses of several runs in one chart.

One spike must not flatten a curve: an axis covers what the curve does most of the time, and points beyond it stand as
triangles at its edge, counted.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from tuneloop.records.run import FindingLine, TrainingStep, Validation
from tuneloop.report.charts import WIDE, Axis, _line, _path, _svg, _text, _thin, axis, fit, grid, short, smooth
from tuneloop.report.facts import count, number

SMALL = 300  # width of a chart that stands in a row of others, in CSS pixels
WINDOW = 5  # steps of a running median: one or two spikes among them do not move it
SLACK = 0.5  # of the axis: points that far beyond the rest are still drawn on it
MOST_RUNS = 6  # curves that can be told apart in one chart

Point = tuple[float, float]  # step, value
Records = Sequence[TrainingStep] | Sequence[Validation]


def points_of(records: Records, key: str) -> list[Point]:
    """(step, value) of the records whose value is a finite number."""
    found = ((record.step, number(getattr(record, key))) for record in records)
    return [(step, value) for step, value in found if value is not None]


@dataclass(frozen=True)
class Curve:
    """Losses of one run: by step, and those of its validations."""

    name: str
    train: list[Point]
    val: list[Point]


def robust_axis(
    curves: Sequence[Sequence[float]], start: float, end: float, *, wanted: int = 5, log: bool | None = None
) -> Axis:
    """An axis over values in order of steps that single spikes do not stretch.

    It covers the running medians of each curve and its first value; further values where they lie within half of its length
    beyond. It is logarithmic where these values span more than a factor of 20 (`log=None`).
    """
    core = [v for values in curves for v in [*values[:1], *running_median(values)]]
    low, high = min(core), max(core)
    log = low > 0 and high / low > 20 if log is None else log
    scale = math.log if log else float
    room = SLACK * (scale(high) - scale(low)) or abs(scale(high)) * SLACK or 1.0
    inside = [
        v
        for values in curves
        for v in values
        if (v > 0 or not log) and scale(low) - room <= scale(v) <= scale(high) + room
    ]
    return axis([low, high, *inside], start, end, wanted=wanted, log=log)


def running_median(values: Sequence[float]) -> list[float]:
    """The median of each value and its neighbours, `WINDOW` of them in all, fewer at the ends."""
    half = WINDOW // 2
    return [statistics.median(values[max(i - half, 0) : i + half + 1]) for i in range(len(values))]


# --- drawing -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """A chart's axes. Values beyond an axis are drawn at its edge."""

    x: Axis
    y: Axis

    def at(self, points: Sequence[Point]) -> list[Point]:
        """Pixels of points, held inside the axes."""
        return [(self.x(step), self.y(min(max(v, self.y.low), self.y.high))) for step, v in points]

    def on(self, points: Sequence[Point]) -> list[Point]:
        """Points within the axis of values."""
        return [(step, v) for step, v in points if self.y.low <= v <= self.y.high]

    def off(self, points: Sequence[Point]) -> list[Point]:
        """Points beyond the axis of values."""
        return [(step, v) for step, v in points if v > self.y.high or v < self.y.low]

    def lines(self, x_title: str, y_title: str, width: float, height: float) -> list[str]:
        """Grid, ticks and the axes' titles."""
        left, right, bottom = self.x.start, self.x.end, self.y.start
        body = grid(self.y, left, right, across=True)
        for tick in self.x.ticks:
            if tick <= self.x.high:
                body += [_line(self.x(tick), bottom, self.x(tick), bottom + 4, "rule"),
                         _text(self.x(tick), bottom + 17, short(tick), "tick", "middle")]  # fmt: skip
        body.append(_line(left, bottom, right, bottom, "rule"))
        body.append(_text(right, height - 4, x_title, "tick", "end"))
        body.append(_text(0, height - 4, f"{y_title}, log scale" if self.y.log else y_title, "tick"))
        return body

    def marks_off(self, points: Sequence[Point]) -> list[str]:
        """A triangle at the edge for each point beyond it."""
        body = []
        for step, v in self.off(points):
            above = v > self.y.high
            x, y, d = self.x(step), self.y.end if above else self.y.start, 6 if above else -6
            body.append(
                f'<path class="off" d="M{x - 4:.1f} {y + d:.1f}L{x + 4:.1f} {y + d:.1f}L{x:.1f} {y:.1f}Z">'
                f"<title>step {step:g}: {v:.4g}</title></path>"
            )
        return body


def off_words(frame: Frame, points: Sequence[Point]) -> str:
    """`2 points off the axis, up to 58.1`; empty where all are on it."""
    off = [v for _, v in frame.off(points)]
    if not off:
        return ""
    end = f"up to {max(off):.3g}" if max(off) > frame.y.high else f"down to {min(off):.3g}"
    return f"{count(len(off), 'point')} off the axis (▲ ▼), {end}"


def smoothed(frame: Frame, points: Sequence[Point]) -> list[Point]:
    """Pixels of the smoothed curve through the points on the axis: what is off it would drag the curve along."""
    on = frame.on(points)
    curve = smooth([v for _, v in on], max(3.0, len(on) / 25))
    return _thin(frame.at([(step, v) for (step, _), v in zip(on, curve, strict=True)]))


def step_axis(last: float, left: float, right: float, wanted: int) -> Axis:
    """Steps from 0 to the last one."""
    return Axis(0.0, last or 1.0, left, right, False, axis([0.0, last], left, right, wanted=wanted, log=False).ticks)


def loss_chart(
    steps: Records, validations: Records, findings: Sequence[FindingLine] = (), width: float = WIDE
) -> Markup:
    """Training loss by step (raw, faint, and smoothed) with the validation losses; the best one and findings are marked.

    Empty when there is no finite loss. `findings` are numbered marks at their steps.
    """
    train, val = points_of(steps, "loss"), points_of(validations, "val_loss")
    general = points_of(validations, "general_loss")
    if not train and not val:
        return Markup("")
    narrow = width < 500
    height = 250 if narrow else 320
    left, right, top, bottom = (38.0, width - 8, 34.0, height - 36.0)
    curves = [[v for _, v in points] for points in (train, val, general) if points]
    frame = Frame(
        step_axis(max(s for s, _ in train + val), left, right, 4 if narrow else 8),
        robust_axis(curves, bottom, top, wanted=4 if narrow else 5),
    )
    body = frame.lines("step", "loss", width, height)
    body.append(_path(_thin(frame.at(train)), "raw"))
    body.append(_path(smoothed(frame, train), "train"))
    body.append(_path(frame.at(general), "general"))
    body.append(_path(frame.at(val), "val"))
    body += [f'<circle class="val" cx="{x:.1f}" cy="{y:.1f}" r="3.2"/>' for x, y in frame.at(val)]
    best = min(val, key=lambda point: point[1]) if val else None
    if best:
        (place,) = frame.at([best])
        body += _best_mark(*place, f"best {best[1]:.3f}", left, right, top, bottom)
    body += _finding_marks(findings, frame.x, top, bottom)
    body += frame.marks_off(train + val)
    entries = [("train", "smoothed" if narrow else "train (smoothed)"), ("raw", "each step"), ("val", "validation")]
    entries += [("general", "other work")] if general else []
    body += _legend(left, entries, bool(train), bool(val))
    off = off_words(frame, train + val)
    if off:
        body.append(_text(right, top - 5, off, "legend", "end"))
    title = f"Loss over {count(len(train), 'training step')}"
    if best:
        title += f"; best validation loss {best[1]:.3f} at step {best[0]:g}"
    return _svg(width, height, f"{title}; {off}" if off else title, body, "loss")


def _finding_marks(findings: Sequence[FindingLine], x: Axis, top: float, bottom: float) -> list[str]:
    body = []
    for i, finding in enumerate(findings, 1):
        at = finding.step
        if at <= x.high:
            tip = escape(finding.sentence)
            mark = _line(x(at), top, x(at), bottom, "rule") + _text(x(at), top - 2, str(i), "tick", "middle")
            body.append(f'<g class="finding"><title>{tip}</title>{mark}</g>')
    return body


def _best_mark(px: float, py: float, text: str, left: float, right: float, top: float, bottom: float) -> list[str]:
    anchor = "end" if px > right - 60 else "start" if px < left + 60 else "middle"
    below = py < top + 26  # no room above
    ty = py + 22 if below else py - 13
    return [
        f'<circle class="best" cx="{px:.1f}" cy="{py:.1f}" r="7"/>',
        _text(px, min(ty, bottom - 5), text, "mark", anchor),
    ]


def _legend(left: float, entries: Sequence[tuple[str, str]], train: bool, val: bool) -> list[str]:
    body, at = [], left
    for kind, name in entries:
        if not (val if kind in ("val", "general") else train):
            continue
        body += [_line(at, 11, at + 16, 11, kind), _text(at + 21, 15, name, "legend")]
        if kind == "val":
            body.append(f'<circle class="val" cx="{at + 8:.1f}" cy="11" r="3.2"/>')
        at += 21 + len(name) * 6.4 + 16
    return body


# --- next to the loss --------------------------------------------------------------------------


def step_chart(steps: Records, key: str, title: str) -> Markup:
    """One figure of each step, in a small chart among others; empty when fewer than two steps have it."""
    points = points_of(steps, key)
    if len(points) < 2:
        return Markup("")
    width, height = float(SMALL), 170.0
    left, right, top, bottom = 52.0, width - 8, 24.0, height - 34.0
    values = [v for _, v in points]
    frame = Frame(step_axis(points[-1][0], left, right, 4), robust_axis([values], bottom, top, wanted=3, log=False))
    body = frame.lines("step", "", width, height)
    body.append(_path(_thin(frame.at(points)), "train"))
    body += frame.marks_off(points)
    off = off_words(frame, points)
    if off:
        body.append(_text(right, top - 9, off, "legend", "end"))
    said = f"{title} by step: from {values[0]:.4g} to {values[-1]:.4g}, at most {max(values):.4g}"
    return _svg(width, height, said, body, "steps", "small")


# --- several runs ------------------------------------------------------------------------------


def overlay_chart(curves: Sequence[Curve], width: float = WIDE) -> Markup:
    """Losses of several runs over each other: smoothed training loss as a line, validations as marks of the same kind.

    Each run has a dash pattern and a shape of its own, so that colour is not needed to tell them apart. The first `MOST_RUNS` are
    drawn.
    """
    shown = [c for c in curves if c.train or c.val][:MOST_RUNS]
    if not shown:
        return Markup("")
    narrow = width < 500
    height = (230.0 if narrow else 290.0) + 18 * len(shown)
    left, right, top, bottom = 38.0, width - 8, 18.0 * len(shown) + 22, height - 36.0
    every = [p for c in shown for p in c.train + c.val]
    values = [[v for _, v in points] for c in shown for points in (c.train, c.val) if points]
    frame = Frame(
        step_axis(max(s for s, _ in every), left, right, 4 if narrow else 8),
        robust_axis(values, bottom, top, wanted=4 if narrow else 5),
    )
    body = frame.lines("step", "loss", width, height)
    for i, curve in enumerate(shown):
        kind = f"run run{i}"
        body.append(_path(smoothed(frame, curve.train), kind))
        body += [_shape(i, x, y) for x, y in frame.at(curve.val)]
        y = 11.0 + 18 * i
        best = f", best validation {min(v for _, v in curve.val):.3f}" if curve.val else ""
        body += [_line(left, y, left + 30, y, kind), _shape(i, left + 15, y)]
        body.append(_text(left + 38, y + 4, fit(f"{curve.name}{best}", right - left - 40), "legend"))
        body += frame.marks_off(curve.train + curve.val)
    off = off_words(frame, every)
    if off:
        body.append(_text(right, top - 3, off, "legend", "end"))
    said = "; ".join(f"{c.name}: last {(c.train or c.val)[-1][1]:.3f}" for c in shown)
    return _svg(width, height, f"Loss of {count(len(shown), 'run')} by step. {said}", body, "overlay")


def _shape(i: int, x: float, y: float) -> str:
    """A validation's mark: circle, square, diamond, triangle, cross, ring."""
    kind, r = f"shape{i}", 3.6
    paths = {
        1: f"M{x - r} {y - r}h{2 * r}v{2 * r}h{-2 * r}Z",
        2: f"M{x} {y - 1.3 * r}L{x + 1.3 * r} {y}L{x} {y + 1.3 * r}L{x - 1.3 * r} {y}Z",
        3: f"M{x} {y - r}L{x + r} {y + r}L{x - r} {y + r}Z",
        4: f"M{x - r} {y - r}L{x + r} {y + r}M{x + r} {y - r}L{x - r} {y + r}",
    }
    if i not in paths:
        return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{r}"/>'
    return f'<path class="{kind}" d="{paths[i]}"/>'
