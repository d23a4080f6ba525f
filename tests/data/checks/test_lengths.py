"""Rows that are too long, and rows that the template refuses."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from tickets import by_name, dataset, essays, levels, row

from tuneloop.records.rows import Row


@dataclass(frozen=True)
class Measured:
    tokens: int
    supervised: int


def test_a_pasted_log_is_an_outlier() -> None:
    rows = essays(300)
    rows[3] = row(3, "Line of a log\n" * 800, rows[3].answer)
    check = by_name(dataset(rows, "generation"))["length_outliers"]
    assert (check["level"], check["rows"], check["examples"][0]["line"]) == ("warn", 1, 4)


@pytest.mark.parametrize(("rejected", "level"), [(0, "ok"), (20, "warn"), (100, "error")])
def test_rows_over_the_limit_are_counted(rejected: int, level: str) -> None:
    data = dataset(essays(300), "generation", rejected={"too_long": rejected}, config={"max_length": 64})
    assert levels(data)["too_long"] == level


def test_rows_are_measured_where_that_is_possible() -> None:
    def measure(some: Row) -> Measured:
        if some.meta["line"] == 5:
            raise ValueError("no such turn")
        return Measured(2000 if some.meta["line"] <= 10 else 20, 1)

    found = by_name(dataset(essays(300), "generation", config={"max_length": 64}), measure=measure)
    assert (found["too_long"]["level"], found["too_long"]["rows"]) == ("warn", 9)
    assert (found["template"]["level"], found["template"]["rows"], found["template"]["examples"][0]["line"]) == (
        "warn",
        1,
        5,
    )


@pytest.mark.parametrize(("broken", "level"), [(0, "ok"), (3, "warn"), (40, "error")])
def test_rows_that_the_template_refuses_are_counted(broken: int, level: str) -> None:
    assert levels(dataset(essays(300), "generation", rejected={"template_error": broken}))["template"] == level
