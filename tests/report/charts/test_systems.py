"""Charts: what they draw, that they stay valid, and that hostile numbers and names do no harm."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneloop.records.evaluation import Estimate
from tuneloop.records.run import TrainingStep, Validation
from tuneloop.report.charts.curves import loss_chart
from tuneloop.report.charts.svg import MAX_POINTS, NARROW, WIDE, axis, nice_ticks, smooth
from tuneloop.report.charts.systems import forest_chart, label_chart, token_chart
from tuneloop.report.facts import SystemFacts

finite = st.floats(-1e9, 1e9, allow_nan=False)


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


@given(finite, finite)
def test_ticks_cover_the_data_in_even_steps(a: float, b: float) -> None:
    ticks = nice_ticks(min(a, b), max(a, b))
    slack = 1e-6 * max(1.0, abs(a), abs(b))
    assert ticks[0] <= min(a, b) + slack and ticks[-1] >= max(a, b) - slack
    assert 2 <= len(ticks) <= 14


def test_an_axis_turns_logarithmic_only_over_a_wide_positive_range() -> None:
    assert axis([0.01, 5.0], 100, 0).log
    assert not axis([1.0, 5.0], 100, 0).log
    assert not axis([0.0, 5.0], 100, 0).log


def test_the_smoothed_curve_starts_at_the_first_value_and_stays_within_the_data() -> None:
    curve = smooth([4.0, 2.0, 3.0, 1.0], 3)
    assert curve[0] == 4.0
    assert all(1.0 <= v <= 4.0 for v in curve)


def test_the_best_validation_is_marked_at_its_place() -> None:
    steps = [TrainingStep(step=s, loss=3.0 - s / 100) for s in range(1, 101)]
    validations = [Validation(step=50, val_loss=2.0), Validation(step=100, val_loss=2.5)]
    svg = loss_chart(steps, validations)
    best = next(e for e in parse(svg).iter() if e.get("class") == "best")
    left, right = 38.0, WIDE - 8
    assert float(best.get("cx", "nan")) == pytest.approx((left + right) / 2, abs=1)
    assert "best 2.000" in svg and "at step 50" in svg


def test_losses_that_are_not_numbers_are_left_out_of_the_curve() -> None:
    steps = [TrainingStep(step=i, loss=loss) for i, loss in enumerate([2.0, math.inf, math.nan, 1.0], 1)]
    svg = loss_chart(steps, [])
    assert "nan" not in svg.lower().replace("nann", "")
    assert "2 training steps" in svg
    assert loss_chart([TrainingStep(step=1, loss=math.nan)], []) == ""


def test_a_long_curve_is_thinned_and_keeps_its_last_point() -> None:
    svg = loss_chart([TrainingStep(step=s, loss=1 + 1 / s) for s in range(1, 20_001)], [])
    path = next(e for e in parse(svg).iter() if e.get("class") == "train")
    points = path.get("d", "").lstrip("M").split("L")
    assert len(points) <= MAX_POINTS + 2
    assert float(points[-1].split()[0]) == pytest.approx(WIDE - 8, abs=0.2)


def test_intervals_stand_at_their_values_in_the_forest() -> None:
    lines = [
        SystemFacts("few-shot", (Estimate(0.2, 0.1, 0.3),)),
        SystemFacts("tuned", (Estimate(0.9, 0.85, 0.95),), tuned=True),
    ]
    root = parse(forest_chart(lines, 0, "accuracy"))
    dots = {e.get("class"): float(e.get("cx", "nan")) for e in root.iter() if "dot" in (e.get("class") or "")}
    whiskers = [e for e in root.iter() if (e.get("class") or "") == "whisker tuned" and e.get("y1") == e.get("y2")]
    middle = (float(whiskers[0].get("x1", "nan")) + float(whiskers[0].get("x2", "nan"))) / 2
    assert dots["dot tuned"] > dots["dot other"]
    assert middle == pytest.approx(dots["dot tuned"], abs=0.2)


def test_every_label_has_a_bar_and_77_labels_are_drawn_as_columns() -> None:
    few = parse(label_chart({f"label_{i}": i + 1 for i in range(5)}))
    many = parse(label_chart({f"label_{i}": i + 1 for i in range(77)}))
    for root, n in ((few, 5), (many, 77)):
        bars = [e for e in root.iter() if e.get("class") == "bar"]
        assert len(bars) == n
    box = [float(v) for v in many.get("viewBox", "").split()]
    assert box[3] < 200


@given(
    st.dictionaries(st.text(max_size=60), st.one_of(st.integers(0, 10**9), st.none()), max_size=40),
    st.lists(st.one_of(finite, st.none()), max_size=30),
    st.text(min_size=1, max_size=80),
)
def test_any_names_and_numbers_give_well_formed_svg(
    labels: dict[str, int | None], losses: list[float | None], name: str
) -> None:
    from tuneloop.core.written import clean, clean_all

    lines = (
        [
            SystemFacts(clean(name), (Estimate(0.5),)),
            SystemFacts("tuned", (Estimate(losses[0] or 0.0, -1e9, 1e9),), tuned=True),
        ]
        if losses
        else []
    )
    drawn = [
        label_chart(clean_all(labels)),
        loss_chart([TrainingStep(step=i, loss=math.nan if v is None else v) for i, v in enumerate(losses)], []),
        forest_chart(lines, 0, "chrf", NARROW),
        token_chart({clean(name): {"min": 1, "p50": 1, "p90": 1, "max": 1}}, 512),
    ]
    for svg in drawn:
        if svg:
            # U+FFFE and U+FFFF are no XML characters; a browser's HTML parser takes them.
            root = parse(re.sub("[\ufffe\uffff]", "", svg))
            assert root.get("role") == "img" and root[0].tag.endswith("title")
            assert "nan" not in " ".join(
                str(v) for e in root.iter() for k, v in e.attrib.items() if k in ("d", "x", "y", "cx", "x1", "width")
            )


def test_the_limit_is_drawn_only_where_it_is_near() -> None:
    stats = {"train": {"min": 5, "p50": 40, "p90": 80, "max": 300}}
    assert "limit 512" in token_chart(stats, 512)
    assert "limit" not in token_chart(stats, 8192)
