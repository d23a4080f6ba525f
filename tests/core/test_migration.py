"""Forms of what is stored: an older one takes the steps that it lacks, in order; a newer one is refused."""

from __future__ import annotations

from typing import Any

import pytest

from tuneloop.core.errors import UserError
from tuneloop.core.migration import JsonSteps, MigrationStep, latest, missing, upgraded


def renamed(value: dict[str, Any]) -> dict[str, Any]:
    rest = dict(value)
    return {"rows": rest.pop("n"), **rest}


STEPS: JsonSteps = (
    MigrationStep(2, "n is called rows", renamed),
    MigrationStep(3, "rows by split", lambda value: {**value, "rows": {"test": value["rows"]}}),
)


def test_each_form_takes_the_steps_that_it_lacks() -> None:
    newest = {"version": 3, "rows": {"test": 5}, "name": "x"}
    assert upgraded({"n": 5, "name": "x"}, STEPS, "a thing", "file") == newest, "without a number it is the first form"
    assert upgraded({"version": 1, "n": 5, "name": "x"}, STEPS, "a thing", "file") == newest
    assert upgraded({"version": 2, "rows": 5, "name": "x"}, STEPS, "a thing", "file") == newest
    assert upgraded(newest, STEPS, "a thing", "file") == newest


def test_the_steps_change_no_value_of_the_caller() -> None:
    before = {"version": 1, "n": 5}
    upgraded(before, STEPS, "a thing", "file")
    assert before == {"version": 1, "n": 5}


def test_a_newer_form_is_refused_with_what_to_do() -> None:
    with pytest.raises(
        UserError, match="A newer tuneloop wrote a thing: it is of version 4, and this one reads 3"
    ) as refusal:
        upgraded({"version": 4}, STEPS, "a thing", "file")
    assert refusal.value.where == "file" and "--upgrade" in refusal.value.next_step


def test_a_list_with_a_gap_is_a_fault_of_ours() -> None:
    with pytest.raises(ValueError, match="no step leads from version 1 to 3"):
        missing(STEPS[1:], 1, "a thing", "file")
    assert missing(STEPS[1:], 2, "a thing", "file") == [STEPS[1]]
    assert latest(()) == 1 and latest(STEPS) == 3
