"""Labels: rare, unbalanced, contradicting, doubtful."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from tickets import WORDS, by_name, dataset, levels, row, tickets

from tuneloop.data import checks
from tuneloop.data.checks import find_suspects, overview_of, run_checks, suspect_records
from tuneloop.records.rows import Dataset


def test_rare_and_unbalanced_labels_are_a_warning() -> None:
    rare = by_name(dataset([row(900, "odd thing", "rare", "rare"), *tickets(300)]))["label_balance"]
    assert (
        (rare["level"], rare["rows"]) == ("warn", 1)
        and "'rare'" in rare["message"]
        and rare["examples"][0]["line"] == 901
    )
    lopsided = [r for r in tickets(900) if r.label == "card"] + tickets(60, seed=1, start=2000)
    random.Random(0).shuffle(lopsided)
    check = by_name(dataset(lopsided))["label_balance"]
    assert check["level"] == "warn" and "as diverse as" in check["message"]


def test_allowed_labels_without_rows_are_rare_ones() -> None:
    check = by_name(dataset(tickets(300), labels=["card", "money", "app", "never"]))["label_balance"]
    assert check["level"] == "warn" and check["rows"] == 0 and "'never'" in check["message"]


def test_labels_that_train_never_shows_are_named() -> None:
    check = by_name(dataset([*tickets(300), row(900, "odd thing", "new", "new")]))["unseen_labels"]
    assert (check["level"], check["rows"]) == ("warn", 1) and check["examples"][0]["split"] == "test"


def test_one_text_with_two_labels_is_a_warning() -> None:
    rows = tickets(300)
    copy = row(900, rows[3].messages[0]["content"].upper(), "app", "app" if rows[3].label != "app" else "card")
    check = by_name(dataset([copy, *rows]))["conflicting_labels"]
    assert (check["level"], check["rows"]) == ("warn", 2)
    assert {e["label"] for e in check["examples"]} == {rows[3].label, copy.label}


def test_wrong_labels_are_found_at_each_level() -> None:
    def flipped(n: int) -> Dataset:
        rows = tickets(600)
        for i in range(n):
            wrong = next(label for label in WORDS if label != rows[i].label)
            rows[i] = row(i, rows[i].messages[0]["content"], wrong, wrong)
        return dataset(rows)

    assert levels(flipped(0))["label_errors"] == "ok"
    check = by_name(flipped(20))["label_errors"]
    assert check["level"] == "warn" and 15 <= check["rows"] <= 20
    assert {e["line"] for e in check["examples"]} <= set(range(1, 21)) and "suggested" in check["examples"][0]
    many = checks.doubted_labels(
        overview_of(flipped(0)),
        checks.Suspects([checks.LabelError(i, "a", "b", 0.0, i < 150) for i in range(600)], 600),
    )
    assert many.level == "error"


def test_suspects_are_listed_for_people_and_a_sample_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tickets(400)
    rows[5] = row(5, rows[5].messages[0]["content"], *(2 * [next(x for x in WORDS if x != rows[5].label)]))
    overview = overview_of(dataset(rows))
    first = suspect_records(overview, find_suspects(overview))[0]
    assert first.line == 6 and first.text == rows[5].messages[0]["content"] and first.split == "train"
    monkeypatch.setattr(checks, "ALL_LABELS", 300)
    monkeypatch.setattr(checks, "SOME_LABELS", 200)
    suspects = find_suspects(overview)
    assert (len(suspects.errors), suspects.of) == (200, 400)
    message = next(c for c in run_checks(overview, suspects=lambda: suspects) if c["name"] == "label_errors")["message"]
    assert message.endswith("a sample of 400 rows")


def test_labels_that_nearly_every_row_has_alone_are_no_classes() -> None:
    alone = [replace(r, label=f"id {i}") for i, r in enumerate(tickets(600))]
    check = by_name(dataset(alone))["label_balance"]
    assert check["level"] == "error" and "480 labels for 480 training rows" in check["message"]
    twice = [replace(r, label=f"id {i // 2}") for i, r in enumerate(tickets(600))]
    assert levels(dataset(twice))["label_balance"] == "warn"
    assert levels(dataset(alone[:60]))["label_balance"] == "warn"


def test_labels_of_a_few_rows_are_not_doubted() -> None:
    """Sets of labels, as multi-label data have them, are mostly rare; half of them used to be called wrong."""
    rows = [replace(r, label=f"set {i % 40}") for i, r in enumerate(tickets(120))]  # three rows a label
    assert len(find_suspects(overview_of(dataset(rows))).errors) == 0
    common = [replace(r, label=f"set {i % 8}") for i, r in enumerate(rows)]
    assert len(find_suspects(overview_of(dataset(common))).errors) == 120
