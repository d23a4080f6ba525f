"""Charts of advice: every figure is in the drawing, and nothing is drawn of nothing."""

from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree

import pytest

from tuneloop.records.advice import AdvisedAlternative, AssumptionSwing, MeasuredSystem
from tuneloop.report.advise_html import _spread, cost_chart, dollars, tornado_chart
from tuneloop.report.quality import efficient, quality_chart

SWINGS = [
    AssumptionSwing(name="queries a day", low=50.0, high=200.0, at_low=-10.0, at_high=300.0),
    AssumptionSwing(name="answer <tokens>", low=1.0, high=4.0, at_low=120.0, at_high=80.0),
]
ROWS = [AdvisedAlternative(name=name, upfront_usd=up, usd_per_month=month, usd_per_1000_queries=0, total_usd=0, prompt_tokens=9)
        for name, up, month in (("today's prompt", 0, 300), ("LoRA", 1200, 70), ("larger", 0, 1900))]  # fmt: skip
LADDER = [MeasuredSystem(name=n, metric="accuracy", value=v, low=v - 0.05, high=v + 0.05, usd_per_1000_queries=c)
          for n, v, c in (("zero-shot", 0.3, 0.2), ("few-shot", 0.6, 0.9), ("tuned", 0.9, 0.2))]  # fmt: skip


@pytest.mark.parametrize("width", [760, 350])
def test_charts_are_sound_svg_inside_their_box_and_escape_names(width: int) -> None:
    for chart in (
        tornado_chart(SWINGS, 100.0, width),
        cost_chart(ROWS, 12, "LoRA", width),
        quality_chart(LADDER, width),
    ):
        tree = ElementTree.fromstring(chart)
        _, _, wide, high = (float(v) for v in tree.attrib["viewBox"].split())
        for node in tree.iter():
            for key, most in (
                ("x", wide),
                ("x1", wide),
                ("x2", wide),
                ("cx", wide),
                ("y", high),
                ("y1", high),
                ("cy", high),
            ):
                if key in node.attrib:
                    assert -1 <= float(node.attrib[key]) <= most + 1, (node.tag, key, node.attrib)
    assert "&lt;tokens&gt;" in tornado_chart(SWINGS, 100.0, width)


def test_bars_reach_from_the_base_to_both_ends() -> None:
    chart = tornado_chart(SWINGS[:1], 100.0)
    bars = {
        m[1]: (float(m[2]), float(m[3]))
        for m in re.finditer(r'class="swing (\w+)" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', chart)
    }
    (low_x, low_width), (high_x, high_width) = bars["low"], bars["high"]
    assert low_x + low_width == pytest.approx(high_x, abs=0.2), "both begin at the base"
    assert high_width / low_width == pytest.approx(200 / 110, rel=0.01)


def test_nothing_is_drawn_of_nothing() -> None:
    assert tornado_chart([], 0) == "" and cost_chart(ROWS[:1], 12, "LoRA") == "" and quality_chart(LADDER[:1]) == ""


def test_labels_do_not_cover_each_other() -> None:
    placed = _spread([(100, "a"), (101, "b"), (258, "c"), (259, "d")], 15, 254)
    ys = [y for y, _ in placed]
    assert all(b - a >= 15 for a, b in itertools.pairwise(ys)) and ys[-1] <= 254


def test_dollars_are_plain() -> None:
    assert [dollars(v) for v in (1234.5, -56.0, 0.42, float("inf"))] == ["$1,234", "−$56.00", "$0.42", "never"]


def test_names_of_systems_of_one_price_do_not_cover_each_other() -> None:
    alike = [
        LADDER[0].model_copy(
            update={"name": f"system number {i}", "value": 0.3 + i / 100, "usd_per_1000_queries": 1e-6 * (1 + i / 50)}
        )
        for i in range(5)
    ]
    for width in (760, 350):
        chart = quality_chart([*alike, *LADDER], width)
        assert "e-0" not in chart and ">$0.00" in chart, "no exponents"
        names = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" class="name \w+" text-anchor="(\w+)">([^<]+)<', chart)
        assert len(names) == 8
        spans = [(float(x) - (len(t) * 6 if at == "end" else 0), float(y), len(t) * 6) for x, y, at, t in names]
        for (x, y, w), (u, v, z) in itertools.combinations(spans, 2):
            assert abs(y - v) > 9 or x + w <= u or u + z <= x, "two names share a place"


def test_the_efficient_systems_are_joined_in_the_chart_of_quality_and_cost() -> None:
    dear = LADDER[0].model_copy(update={"name": "dear", "value": 0.7, "usd_per_1000_queries": 0.5})
    cheap = LADDER[0].model_copy(update={"name": "cheap", "value": 0.5, "usd_per_1000_queries": 0.1})
    systems = [*LADDER, dear, cheap]
    assert [system.name for system in efficient(systems)] == ["cheap", "tuned"]
    chart = quality_chart(systems)
    assert chart.count('<path class="raw"') == 1 and "Efficient: cheap, tuned" in chart
    errors = [s.model_copy(update={"metric": "perplexity", "value": 1 - s.value}) for s in systems]
    assert [system.name for system in efficient(errors)] == ["cheap", "tuned"]
