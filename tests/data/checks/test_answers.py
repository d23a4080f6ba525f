"""Answers and prompts that nobody should learn from."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tickets import by_name, dataset, essays, levels, row

from tuneloop.records.rows import Row


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
    for each in rows:
        each.messages[-1] |= {"content": "Rome", "reasoning_content": "It is Rome."}
    assert by_name(dataset(rows, "generation"))["reasoning"]["level"] == "ok"
