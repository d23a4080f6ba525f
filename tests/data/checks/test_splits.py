"""Splits must be apart and alike."""

from __future__ import annotations

from dataclasses import replace

from tickets import by_name, dataset, levels, row, tickets

from tuneloop.records.rows import Dataset


def test_a_prompt_of_the_test_in_train_is_an_error() -> None:
    rows = tickets(600)
    assert levels(dataset(rows))["leaked_prompts"] == "ok"
    leaked = replace(rows[0], id="f" * 16)
    check = by_name(dataset([*rows[:-1], leaked]))["leaked_prompts"]
    assert (check["level"], check["rows"]) == ("error", 1)
    of_val = Dataset("d", dataset(rows).manifest, rows[:400], [*rows[400:500], leaked], rows[500:])
    assert levels(of_val)["leaked_prompts"] == "warn"


def test_splits_that_differ_are_a_warning() -> None:
    rows = sorted(tickets(900), key=lambda r: r.label or "")  # the last label fills val and test
    found = by_name(dataset(rows))
    assert (found["split_labels"]["level"], found["split_wording"]["level"]) == ("warn", "warn")
    assert "money" not in found["split_labels"]["message"] and "test" in found["split_labels"]["message"]
    long = [*tickets(800), *[row(2000 + i, "please " * 30 + str(i), "card", "card") for i in range(200)]]
    assert levels(dataset(long))["split_lengths"] == "warn"
