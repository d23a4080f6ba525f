"""Production compared with the training rows."""

from __future__ import annotations

import random
from dataclasses import replace

from tickets import by_name, dataset, row, tickets

from tuneloop.data.checks import drift as production
from tuneloop.data.checks.drift import Drift
from tuneloop.records.rows import Row


def test_production_is_held_against_train() -> None:
    data = dataset(tickets(600))
    like = [
        replace(r, messages=[*r.messages[:1], {"role": "assistant", "content": ""}])
        for r in tickets(300, seed=9, start=3000)
    ]
    assert by_name(data, against=like)["production"]["level"] == "ok"
    rng = random.Random(0)
    loans = ["mortgage", "interest", "house", "credit", "instalment", "years"]
    other = [row(5000 + i, f"i want a {' '.join(rng.sample(loans, 4))} of {i}", "") for i in range(200)]
    check = by_name(data, against=other)["production"]
    assert (check["level"] == "error" and "'mortgage'" in check["message"]) or "more of" in check["message"]
    assert len(check["examples"]) == 10 and check["examples"][0]["line"] > 5000
    assert "too few" in by_name(data, against=other[:5])["production"]["message"]
    assert "production" not in by_name(data)


def test_personal_data_of_production_is_neither_a_difference_nor_shown() -> None:
    def asked(i: int, contact: str) -> Row:
        return row(4000 + i, f"{tickets(600)[i].messages[0]['content']} write to {contact}", "card", "card")

    known = [asked(i, "<EMAIL>") for i in range(300)]
    new = [asked(300 + i, f"jane.doe{i}@example.org") for i in range(300)]
    assert by_name(dataset(known), against=new)["production"]["level"] == "ok"
    loans = [row(5000 + i, f"a loan of {i * 17} for a house, ask jane.doe{i}@example.org", "") for i in range(300)]
    check = by_name(dataset(known), against=loans)["production"]
    assert check["level"] == "error" and "'loan'" in check["message"] and "doe" not in str(check)
    assert all("house, ask <EMAIL>" in example["text"] for example in check["examples"])


def test_general_rows_are_no_part_of_what_production_is_held_against() -> None:
    general = [replace(r, meta={**r.meta, "mix": "general.jsonl"}) for r in tickets(300, seed=9, start=3000)]
    loans = [row(5000 + i, f"i want a loan of {i} for {i % 17} years", "") for i in range(200)]
    like = tickets(200, seed=9, start=7000)
    assert by_name(dataset([*loans, *general]), against=like)["production"]["level"] == "error"


def test_the_drift_sentence_names_every_figure() -> None:
    estimate = production.compare_with([], []).auc
    drift = Drift("warn", type(estimate)(0.7, 0.6, 0.8), (9, 9), 2.0, 0.25, 0.4, 0.1, ["card"], ["loan"], [])
    assert production.drift_message(drift) == (
        "a classifier tells production from train with AUC 0.70 (0.60 to 0.80; 0.5: alike); texts are 2.0 times as long; "
        "40% of the words are new to train (of train's own 10%); 25% of the labels would have to change; "
        "production has more of 'loan'; train has more of 'card'"
    )
