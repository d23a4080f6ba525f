"""The plan of a run in words."""

from __future__ import annotations

from typing import Any

import pytest

from tuneloop.pipeline.plan import plan_line


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (0, "72 steps, which see all rows 3 times: 3.0 minutes (2.4 to 3.6)"),
        (25, "72 steps, which see all rows 3 times, and 7 validations of 25 rows: 3.0 minutes (2.4 to 3.6)"),
    ],
)
def test_the_line_names_validations_only_where_there_are_some(rows: int, text: str) -> None:
    plan: dict[str, Any] = {
        "time": {"hours": 0.05, "low": 0.04, "high": 0.06},
        "cost": {"usd": 0.0025, "usd_per_hour": 0.05},
        "validation": {"times": 7, "rows": rows},
        "trainable_parameters": 4_880_000,
        "total_parameters": 134_500_000,
        "memory": {"peak_gib": 1.0},
        "steps": 72,
        "rows": {"words": "all rows 3 times"},
    }
    assert text in plan_line(plan)
