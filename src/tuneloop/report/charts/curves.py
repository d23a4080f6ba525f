"""Curves over the steps of a training.

Axes cover what a curve does most of the time; points beyond are triangles at the edge, so that one spike does not
flatten it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from tuneloop.core.written import count, number
from tuneloop.records.run import FindingLine, TrainingStep, Validation
from tuneloop.report.charts.svg import (
    MOST_COLUMNS,
    WIDE,
    Axis,
    axis,
    fit,
    grid,
    short,
    smooth,
    svg_chart,
    svg_line,
    svg_path,
    svg_text,
    thinned,
)

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
        for step, labels in sorted(values.items()):
            tip = f"<title>step {step:g}: {escape(', '.join(labels))}</title>"
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
    return thinned(frame.at([(step, v) for (step, _), v in zip(on, curve, strict=True)]))


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
    body += [svg_path(thinned(frame.at(train)), "raw"), svg_path(smoothed(frame, train), "train")]
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
    body.append(svg_path(thinned(frame.at(points)), "train"))
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
