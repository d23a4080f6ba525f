"""Charts of the pages: one box for what several versions share, bars for the last days, dots where people judged."""

from __future__ import annotations

import math
import re
from datetime import date, timedelta

import pytest

from tuneloop.improve.monitor.record import QualityEstimate
from tuneloop.improve.report.charts import LineageNode, accuracy_chart, day_chart, latency_chart, lineage_chart


def test_a_lineage_has_a_box_each_and_lines_between_columns_that_are_there() -> None:
    columns = [
        ("data set", {"d": LineageNode("tickets-1a2b", "<b>")}),
        ("run", {}),
        ("version", {"v1": LineageNode("version 1", href="/x?a=1&b=2"), "v2": LineageNode("version 2", tone="good")}),
    ]
    svg = str(lineage_chart(columns, [("d", "v1"), ("d", "v2"), ("v2", "gone")], "of tickets"))
    assert svg.count("<rect") == 3 and svg.count('class="edge"') == 2 and "&lt;b&gt;" in svg and "a=1&amp;b=2" in svg
    assert ">run<" not in svg and not lineage_chart([], [], "none")


def test_bars_of_the_last_days_and_none_without_any() -> None:
    first = date(2026, 1, 1)
    days = [(str(first + timedelta(i)), float(i), f"tip {i}") for i in range(200)]
    svg = str(day_chart(days, "requests by day"))
    assert svg.count("<rect") == 92 and "tip 199" in svg and "tip 0<" not in svg and not day_chart([], "nothing")


def test_a_day_without_a_value_is_a_gap_and_the_last_label_stands_under_the_last_bar() -> None:
    days = [("2026-01-01", 5.0, "first"), ("2026-01-02", 5.0, "second"), ("2026-01-09", 5.0, "last")]
    svg = str(day_chart(days, "requests by day"))
    first, second, last = (float(x) for x in re.findall(r'<rect class="bar" x="([\d.]+)"', svg))
    assert last - first == pytest.approx(8 * (second - first))
    end = float(re.findall(r'<text x="([\d.]+)"[^>]*>2026-01-09<', svg)[0])
    assert last < end < last + (second - first)
    assert "2026-01-01 to 2026-01-02</text>" in str(day_chart(days[:2], "requests by day"))


def test_after_a_long_pause_the_axis_begins_at_the_first_day_shown_and_latencies_stand_under_their_bars() -> None:
    first = date(2026, 9, 1)
    days = ["2026-01-01", *(str(first + timedelta(i)) for i in range(40))]
    bars = str(day_chart([(day, 5.0, day) for day in days], "requests by day"))
    dots = str(latency_chart([(day, 900.0, 2000.0) for day in days]))
    lefts = [float(x) for x in re.findall(r'<rect class="bar" x="([\d.]+)"', bars)]
    xs = [float(x) for x in re.findall(r'cx="([\d.]+)"', dots)]
    assert len(lefts) == len(xs) == 40 and "2026-01-01" not in bars + dots
    step = lefts[1] - lefts[0]
    assert lefts[0] < float(re.findall(r'<text x="([\d.]+)"[^>]*>2026-09-01<', bars)[0]) + step
    assert all(left < x < left + step for left, x in zip(lefts, xs, strict=True))


def test_accuracy_is_drawn_where_it_is_known() -> None:
    nan = math.nan
    first = QualityEstimate(estimated=0.9, low=0.85, high=0.95, before=nan, judged=60)
    second = QualityEstimate(estimated=nan, low=nan, high=nan, before=0.9, judged=2)
    points = [("2026-01-08", first), ("2026-01-15", second)]
    svg = str(accuracy_chart(points))
    assert svg.count("<circle") == 1 and svg.count("whisker") == 1 and "nan" not in svg
    assert "90.0% [85.0%, 95.0%] of 60 judged answers" in svg and not accuracy_chart([("2026-01-15", second)])
