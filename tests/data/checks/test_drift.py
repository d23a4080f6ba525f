"""Whether two sides' texts differ: texts as numbers, the comparison, and production against the training rows."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from manifests import manifest_of
from scipy import stats
from tickets import by_name, dataset, row, tickets

from places import DATA_SETS
from tuneloop.core.errors import UserError
from tuneloop.data.checks import drift as production
from tuneloop.data.checks.drift import (
    Drift,
    as_prepared,
    auc_estimate,
    chi_square,
    compare_with,
    folds,
    groups,
    kolmogorov_smirnov,
    level_of,
    read_production,
    sample,
    sketch,
    tfidf,
    total_variation,
)
from tuneloop.records.evaluation import Estimate
from tuneloop.records.rows import Row

CARD = ["card", "pin", "chip", "lost", "stolen", "blocked", "expired"]
LOAN = ["loan", "mortgage", "rate", "credit", "house", "interest", "years"]


def texts(text: list[str], n: int, seed: int = 0, size: int = 4) -> list[str]:
    rng = random.Random(seed)
    return [f"please my {' '.join(rng.choices(text, k=size))} {rng.randrange(1000)}" for _ in range(n)]


def test_texts_of_one_source_are_alike() -> None:
    drift = compare_with(texts(CARD, 300), texts(CARD, 200, seed=1))
    assert drift.level == "ok" and drift.auc.low < 0.5 and drift.examples
    assert 0.9 < drift.length_ratio < 1.1
    assert drift.new_words == 0 and drift.label_distance is None


def test_texts_of_another_subject_are_told_apart_and_named() -> None:
    train = texts(CARD, 300)
    production = [*texts(CARD, 10, seed=5), *texts(LOAN, 150, seed=1, size=8)]
    drift = compare_with(train, production, ["a"] * 300, ["a"] * 80 + ["b"] * 80)
    assert drift.level == "error" and drift.auc.value > 0.9
    assert set(drift.words_b) == set(LOAN) and set(drift.words_a) <= set(CARD)
    assert drift.length_ratio > 1.3 and drift.new_words > 0.5 and drift.usual_new_words == 0
    assert drift.label_distance == pytest.approx(0.5)
    assert len(drift.examples) == 10 and all(i >= 10 for i in drift.examples)


def test_a_partial_shift_is_a_warning() -> None:
    production = [*texts(CARD, 120, seed=5), *texts(LOAN, 120, seed=1)]
    assert compare_with(texts(CARD, 300), production).level == "warn"


def test_copies_on_both_sides_or_on_one_fool_nobody() -> None:
    some = texts(CARD, 200)
    both = compare_with(some, some)
    assert both.auc.value == pytest.approx(0.5, abs=0.02)
    repeated = compare_with(some, texts(CARD, 100, seed=1) * 9)
    assert repeated.level == "ok" and repeated.rows == (200, 100)


def test_halves_of_one_set_are_found_alike_as_often_as_the_interval_promises() -> None:
    rng = np.random.default_rng(0)
    text = [f"word{i}" for i in range(300)]
    held = 0
    for seed in range(20):
        some = [" ".join(rng.choice(text, 8)) for _ in range(160)]
        auc = compare_with(some[:80], some[80:], seed=seed).auc
        held += auc.low <= 0.5 <= auc.high
    assert held >= 17


def test_few_texts_say_nothing() -> None:
    drift = compare_with(texts(CARD, 5), texts(LOAN, 300))
    assert drift.level == "ok" and drift.auc.low != drift.auc.low and drift.examples == []
    assert compare_with([], []).rows == (0, 0)


@pytest.mark.parametrize(
    ("auc", "level"),
    [((0.9, 0.8, 1.0), "error"), ((0.9, 0.7, 1.0), "warn"), ((0.7, 0.5, 0.9), "ok"), ((0.6, 0.59, 0.61), "ok")],
)
def test_the_level_needs_a_difference_that_is_large_and_certain(auc: tuple[float, float, float], level: str) -> None:
    assert level_of(Estimate(*auc)) == level


def test_the_auc_has_its_known_values() -> None:
    assert auc_estimate(np.array([0.0, 1.0]), np.array([2.0, 3.0])).value == 1.0
    assert auc_estimate(np.array([1.0, 1.0]), np.array([1.0, 1.0])).value == 0.5
    rng = np.random.default_rng(0)
    found = auc_estimate(rng.normal(0, 1, 400), rng.normal(1, 1, 300))
    assert found.low < stats.norm.cdf(0.5**0.5) < found.high and 0.03 < found.high - found.low < 0.1


def test_the_tests_agree_with_scipy() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, 300), rng.normal(0.2, 1, 200)
    theirs = stats.ks_2samp(a, b, method="asymp")
    distance, p = kolmogorov_smirnov(a, b)
    assert distance == pytest.approx(theirs.statistic) and p == pytest.approx(theirs.pvalue, rel=0.25)
    theirs = stats.chi2_contingency([[10, 20, 30], [20, 20, 20]], correction=False)
    p, size = chi_square([10, 20, 30, 0], [20, 20, 20, 0])
    assert p == pytest.approx(theirs.pvalue) and 0 < size < 1
    assert chi_square([1], [2]) == (1.0, 0.0) == chi_square([1, 2], [0, 0])


def test_total_variation_is_the_share_that_must_change() -> None:
    assert total_variation(Counter("aab"), Counter("aab" * 3)) == 0
    assert total_variation(Counter("a"), Counter("b")) == 1


TEXTS = ["My card is lost", "my CARD  is lost", "the lost card", "transfer pending", "is my transfer pending", "xyzzy"]


def test_rows_have_unit_length_and_like_texts_are_near() -> None:
    table = tfidf(TEXTS)
    likeness = (table @ table.T).toarray()
    assert np.allclose(likeness.diagonal()[:5], 1, atol=1e-5)
    assert likeness[0, 1] > 0.999 > likeness[0, 2] > likeness[0, 3]
    assert table[5].nnz == 0  # what stands in one text only says nothing about another


def test_a_sketch_keeps_inner_products() -> None:
    table = tfidf(TEXTS)
    dense = sketch(table, 4096)
    assert np.allclose(dense @ dense.T, (table @ table.T).toarray(), atol=0.1)


@given(st.lists(st.text(), min_size=1, max_size=8))
def test_any_texts_become_rows_of_unit_length_or_zero(texts: list[str]) -> None:
    table = tfidf(texts)
    lengths = np.sqrt(table.multiply(table).sum(axis=1))
    assert table.shape[0] == len(texts) and np.all(lengths < 1.0001)


def test_equal_texts_are_one_group_in_one_fold() -> None:
    assert groups(TEXTS).tolist() == [0, 0, 1, 2, 3, 4]
    fold = folds(TEXTS, 5, 1)
    assert fold[0] == fold[1] and fold.max() < 5


def test_a_sample_depends_on_the_texts_alone() -> None:
    texts = [f"text {i}" for i in range(50)]
    chosen = {texts[i] for i in sample(texts, 10, 0)}
    assert chosen == {texts[::-1][i] for i in sample(texts[::-1], 10, 0)} and len(chosen) == 10
    assert sample(texts, 50, 0) == list(range(50))


DATA = DATA_SETS


def asked(tmp_path: Path, *records: Any) -> tuple[list[list[str]], int]:
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    rows, without = read_production([str(path)])
    assert all(row.messages[-1] == {"role": "assistant", "content": ""} for row in rows)
    return [[m["content"] for m in row.prompt] for row in rows], without


TURNS = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Where is it?"},
    {"role": "assistant", "content": "Which one?"},
    {"role": "user", "content": "The red one."},
]


@pytest.mark.parametrize(
    "record",
    [
        {"messages": TURNS},
        {"messages": [*TURNS, {"role": "assistant", "content": "On its way."}]},
        {"request": {"body": {"model": "m", "messages": TURNS}}, "response": {"id": "r"}},
        {"conversations": [{"from": {"user": "human", "assistant": "gpt"}.get(t["role"], "system"), "value": t["content"]} for t in TURNS]},
        {"messages": [{"role": t["role"], "content": [{"type": "text", "text": t["content"]}]} for t in TURNS]},
    ],
)  # fmt: skip
def test_the_users_turns_of_conversations_are_taken(tmp_path: Path, record: dict[str, Any]) -> None:
    assert asked(tmp_path, record) == ([["Where is it?", "The red one."]], 0)


@pytest.mark.parametrize(
    "record",
    [
        {"text": "Where is it?"},
        {"id": "7", "created": "2024-05-01", "message": "Where is it?"},
        {"prompt": "Where is it?", "latency": 0.2},
        {"Anfrage": "Where is it?", "n": 3},
        {"log": {"prompt": "Where is it?"}},
    ],
)
def test_the_text_column_is_taken(tmp_path: Path, record: dict[str, Any]) -> None:
    assert asked(tmp_path, record, record)[0] == [["Where is it?"]] * 2


def test_training_records_give_what_is_asked_and_not_what_is_answered(tmp_path: Path) -> None:
    assert asked(tmp_path, *[{"prompt": f"Where is {i}?", "completion": "There."} for i in range(5)])[0][1] == ["Where is 1?"]  # fmt: skip


def test_records_that_say_nothing_are_counted(tmp_path: Path) -> None:
    rows, without = asked(tmp_path, {"text": "hello"}, {"text": " "}, {"text": None}, {"n": 1})
    assert (rows, without) == ([["hello"]], 3)
    with pytest.raises(UserError, match="No record of 1"):
        asked(tmp_path, {"n": 1})


def test_real_logs_are_read() -> None:
    path = DATA / "taskmaster4_feedback" / "all.jsonl"
    if not path.is_file():
        pytest.skip("the shared data sets are not here")
    rows, without = read_production([str(path)])
    assert len(rows) + without == sum(1 for _ in path.open()) and without < 0.01 * len(rows)


def test_records_are_read_by_the_columns_of_the_data_set_and_keep_their_labels(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    records = [{"id": f"n{i}", "body": f"Where is it {i}?", "kind": "ask", "other": f"x {i}"} for i in range(20)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    form = {"name": "text_label", "columns": {"text": "body", "label": "kind"}}
    manifest = manifest_of(format=form, config={"text": None})
    rows, _ = read_production([str(path)], as_prepared(manifest, [str(path)]))
    assert [(r.messages[0]["content"], r.label) for r in rows[:1]] == [("Where is it 0?", "ask")]
    path.write_text("".join(json.dumps({"body": r["body"], "other": r["other"]}) + "\n" for r in records))
    rows, _ = read_production([str(path)], as_prepared(manifest, [str(path)]))
    assert [(r.messages[0]["content"], r.label) for r in rows[:1]] == [("Where is it 0?", None)]


def test_templates_of_the_data_set_make_the_same_question(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps({"text": "hello", "queue": "a"}) + "\n")
    config = {"input": "Ticket: {text}", "output": "{queue}"}
    manifest = manifest_of(format={"name": "fields", "columns": {}}, config=config)
    rows, _ = read_production([str(path)], as_prepared(manifest, [str(path)]))
    assert rows[0].messages[0]["content"] == "Ticket: hello"


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
