"""Curves by step: a spike does not flatten them, and several runs can be told apart without colour."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from tuneloop.records.run import TrainingStep
from tuneloop.report.charts.curves import MOST_RUNS, Curve, loss_chart, overlay_chart, robust_axis, step_chart
from tuneloop.report.charts.svg import Axis

FALLING = [TrainingStep(step=s, loss=3.0 - 2.5 * s / 100, grad_norm=1.0, learning_rate=1e-5 * s) for s in range(1, 101)]


def ends(axis: Axis) -> tuple[float, float]:
    return axis.low, axis.high


def test_one_spike_does_not_stretch_the_axis() -> None:
    values = [r.loss for r in FALLING]
    spiked = [*values[:40], 900.0, *values[41:]]
    assert ends(robust_axis([spiked], 100, 0)) == ends(robust_axis([values], 100, 0))


def test_a_loss_that_stays_high_is_on_the_axis() -> None:
    diverged = [1.0] * 50 + [900.0] * 10
    assert robust_axis([diverged], 100, 0).high >= 900


def test_the_first_loss_is_on_the_axis_however_fast_it_falls() -> None:
    assert robust_axis([[9.0, 1.2, 1.1, 1.0, 1.0, 0.9]], 100, 0).high >= 9


def test_what_lies_off_the_axis_is_marked_and_counted_and_does_not_drag_the_smoothed_line_along() -> None:
    plain = loss_chart(FALLING, [])
    steps = [r.model_copy(update={"loss": 500.0}) if r.step == 50 else r for r in FALLING]
    chart = loss_chart(steps, [])
    assert "1 point off the axis" in chart and "up to 500" in chart
    assert re.findall(r'class="off".*?<title>(.*?)</title>', chart) == ["step 50: 500"]
    assert "off the axis" not in plain

    def heights(svg: str) -> list[float]:
        (path,) = re.findall(r'class="train" d="M([^"]+)"', svg)
        return [float(point.split()[1]) for point in path.split("L")]

    assert min(heights(chart)) >= min(heights(plain)) - 1


def test_figures_of_steps_have_charts_of_their_own_where_they_are_known() -> None:
    chart = step_chart(FALLING, "learning_rate", "Learning rate")
    root = ElementTree.fromstring(chart)
    assert "small" in (root.get("class") or "") and "from 1e-05 to 0.001" in str(root.get("aria-label"))
    assert "e-0" not in "".join(t.text or "" for t in root.iter() if t.tag.endswith("text"))
    assert step_chart(FALLING, "tokens_per_second", "Speed") == ""


@pytest.mark.parametrize("width", [760, 350])
def test_runs_over_each_other_have_lines_and_marks_of_their_own(width: float) -> None:
    runs = [
        Curve(f"run <{i}>", [(s, 3 - i / 10 - s / 50) for s in range(1, 60)], [(30, 2.0), (60, 1.5 - i / 10)])
        for i in range(MOST_RUNS + 1)
    ]
    chart = overlay_chart(runs, width)
    root = ElementTree.fromstring(chart)
    classes = [e.get("class") or "" for e in root.iter()]
    assert {f"run run{i}" for i in range(MOST_RUNS)} <= set(classes) and f"run run{MOST_RUNS}" not in classes
    assert all(classes.count(f"shape{i}") == 3 for i in range(MOST_RUNS)), "two validations and the legend"
    assert "run &lt;0&gt;" in chart
    assert overlay_chart([]) == ""
