"""How many rows there are for what is asked of them."""

from __future__ import annotations

import pytest
from manifests import manifest_of
from tickets import dataset, essays, levels, tickets

from tuneloop.data import checks
from tuneloop.data.checks import overview_of
from tuneloop.records.rows import Dataset


@pytest.mark.parametrize(
    ("n", "level", "word"), [(50, "warn", "by heart"), (300, "ok", "narrow task"), (700, "ok", "style"), (1500, "ok", "field"), (7000, "ok", "language")]
)  # fmt: skip
def test_the_number_of_rows_is_judged_by_what_it_is_good_for(n: int, level: str, word: str) -> None:
    overview = overview_of(Dataset("d", manifest_of(task="chat"), essays(n), [], []))
    check = checks.enough_rows(overview)
    assert check.level == level and word in check.message


def test_a_small_test_split_is_a_warning() -> None:
    assert levels(dataset(tickets(400)))["test_size"] == "warn"
    assert levels(dataset(tickets(600)))["test_size"] == "ok"


@pytest.mark.parametrize(("rows", "half"), [(18, "23"), (2_000, "2.2"), (40_000, "0.5"), (100_000, "0.3")])
def test_what_a_test_split_can_tell_is_never_said_to_be_exact(rows: int, half: str) -> None:
    split = essays(1)[:1] * rows
    check = checks.test_size(overview_of(Dataset("d", manifest_of(task="chat"), essays(1), [], split)))
    assert f"± {half} points" in check.message
