"""Statistics that need no numpy."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneloop.core.stats.tests import cohens_h, detectable, holm, holm_levels, standardised, wilson_interval


def test_wilsons_interval_as_published() -> None:
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I: 81 of 263, 0 of 20, 1 of 29.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    assert wilson_interval(9, 9)[1] == 1.0 and math.isnan(wilson_interval(0, 0)[0])


def test_holm_multiplies_by_the_number_of_tests_that_are_left() -> None:
    assert holm([0.01, 0.04, 0.03, math.nan])[:3] == pytest.approx([0.03, 0.06, 0.06])
    assert math.isnan(holm([math.nan])[0])
    assert holm_levels([0.01, 0.04, 0.03]) == pytest.approx([0.05 / 3, 0.05, 0.025])


@given(st.lists(st.floats(0, 1), max_size=6))
def test_adjusted_p_values_keep_their_order_and_are_no_smaller(values: list[float]) -> None:
    adjusted = holm(values)
    assert all(a >= p and a <= 1 for a, p in zip(adjusted, values, strict=True))
    assert sorted(range(len(values)), key=lambda i: (values[i], i)) == sorted(
        range(len(values)), key=lambda i: (adjusted[i], values[i], i)
    )


def test_effect_sizes() -> None:
    assert cohens_h(0.5, 0.5) == 0.0 and cohens_h(0.25, 0.75) == pytest.approx(1.0472, abs=1e-4)
    assert detectable(-1.96, 1.96) == pytest.approx(2.8016, abs=1e-3)
    assert standardised(1.0, 0.0, 2.0, 4) == pytest.approx(0.98, abs=1e-3) and math.isnan(standardised(1, 1, 1, 4))


def test_it_loads_without_numpy() -> None:
    code = "import sys; sys.modules['numpy'] = None; import tuneloop.core.stats.tests"
    subprocess.run([sys.executable, "-c", code], check=True)
