"""Rows with several labels: reading them out of answers, and their metrics."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk
from sklearn.preprocessing import MultiLabelBinarizer

from tuneloop.evaluation.config import EvaluateConfig
from tuneloop.evaluation.deciding import primary_metric
from tuneloop.evaluation.evaluate import evaluate
from tuneloop.evaluation.metrics.labels import LabelSet, label_lists, label_reader, multilabel_statistics, vocabulary
from tuneloop.evaluation.paired import compare
from tuneloop.evaluation.results import load_evaluation, write_evaluation
from tuneloop.records.completion import Completion
from tuneloop.records.evaluation import Subject
from tuneloop.records.rows import Row

LABELS = ["account", "card", "lost_stolen", "balance"]
FAST = EvaluateConfig(bootstrap=100)


def row(i, labels):
    joined = ", ".join(sorted(labels))
    turns = [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": joined}]
    return Row(f"r{i}", turns, joined, meta={"labels": sorted(labels)})


@given(
    st.lists(
        st.tuples(
            st.sets(st.sampled_from(LABELS[:3]), min_size=1), st.sets(st.sampled_from(LABELS)), st.integers(0, 1)
        ),
        min_size=1,
        max_size=12,
    )
)
def test_metrics_are_scikit_learns_with_parts_outside_the_labels_as_false_positives(cases):
    references = [frozenset(r) for r, _, _ in cases]
    ours = multilabel_statistics(
        references, [LabelSet(frozenset(p), outside) for _, p, outside in cases]
    ).point_values()
    binarizer = MultiLabelBinarizer(classes=[*LABELS, "(outside)"])
    right = binarizer.fit_transform(references)
    said = binarizer.transform([p | ({"(outside)"} if outside else set()) for _, p, outside in cases])
    named = [i for i in range(len(LABELS)) if right[:, i].any() or said[:, i].any()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = {"accuracy": sk.accuracy_score(right, said), "subset_accuracy": sk.accuracy_score(right, said)}
        theirs["jaccard"] = sk.jaccard_score(right, said, average="samples", zero_division=1)
        for name, function in (("f1", sk.f1_score), ("precision", sk.precision_score), ("recall", sk.recall_score)):
            for average in ("micro", "macro", "weighted"):
                labels = None if average == "micro" else named
                key = f"{average}_f1" if name == "f1" else f"{name}_{average}"
                theirs[key] = function(right, said, average=average, labels=labels, zero_division=0)
    assert ours == pytest.approx(theirs, abs=1e-9)


def test_no_label_is_right_only_where_the_answer_says_so():
    values = multilabel_statistics([frozenset()] * 2, [LabelSet(frozenset(), none=True), LabelSet(frozenset())])
    assert values.row_scores["accuracy"] == values.row_scores["micro_f1"] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("answer", "labels", "outside"),
    [
        ("card, lost_stolen", {"card", "lost_stolen"}, 0),
        ("Card; LOST_STOLEN.", {"card", "lost_stolen"}, 0),
        ('["card", "balance"]', {"card", "balance"}, 0),
        ("- card\n- balance\n", {"card", "balance"}, 0),
        ("1. card\n2. balance", {"card", "balance"}, 0),
        ("card and balance", {"card", "balance"}, 0),
        ("card, nonsense, card", {"card"}, 1),
        ("", set(), 0),
        (" ,, ;", set(), 0),
        ("the answer is card", set(), 1),
    ],
)
def test_answers_are_read_as_lists_of_labels(answer, labels, outside):
    assert label_reader(LABELS)(answer) == LabelSet(frozenset(labels), outside)


@pytest.mark.parametrize("answer", ["none", "None.", '["none"]'])
def test_that_no_label_applies_is_an_answer_and_no_label(answer):
    assert label_reader(LABELS)(answer) == LabelSet(frozenset(), 0, none=True)
    rows = [row(0, {"none"}), row(1, {"card"})]
    said = [Completion(answer), Completion("card, none")]
    result = evaluate(rows, said, task="classification", labels=None, config=FAST, seed=0)
    assert result.labels == ["card"] and result.valid == [True, False]
    assert result.row_scores["accuracy"] == [1.0, 1.0]


@pytest.mark.parametrize(("answer", "valid"), [("", False), ("none", True)])
def test_an_empty_answer_says_nothing_even_where_no_label_is_right(answer, valid):
    for first in ({"balance"}, {"none"}):
        rows = [row(0, first), row(1, {"card"})]
        result = evaluate(rows, [Completion(answer)] * 2, task="classification", labels=None, config=FAST, seed=0)
        assert result.valid == [valid] * 2
        assert result.row_scores["accuracy"] == [float(valid and first == {"none"}), 0.0]


def test_labels_that_hold_a_comma_are_one_label():
    assert label_reader(["a, b", "a", "c"])("a, b, c").labels == {"a, b", "c"}


@given(st.text())
def test_reading_never_fails_and_only_names_labels(answer):
    assert label_reader(LABELS)(answer).labels <= set(LABELS)


def test_rows_with_one_label_are_left_to_the_plain_metrics():
    plain = Row("a", [{"role": "assistant", "content": "x"}], "x")
    assert label_lists([row(0, {"card"}), plain]) is None
    assert vocabulary([row(0, {"card"})], ["account, balance", "card"]) == ["account", "balance", "card"]


def some_rows(n=60):
    rng = np.random.default_rng(0)
    rows = [row(i, set(rng.choice(LABELS, size=1 + i % 2, replace=False))) for i in range(n)]
    answers = [Completion(r.answer if i % 3 else "card") for i, r in enumerate(rows)]
    return rows, answers


def test_an_evaluation_of_several_labels_a_row_has_its_own_metric_and_survives_the_files(tmp_path):
    rows, answers = some_rows()
    answers[0] = Completion("no idea")
    result = evaluate(rows, answers, task="classification", labels=None, config=FAST, seed=0)
    assert result.primary == primary_metric("classification", (), result.metrics) == "micro_f1"
    assert result.metrics["subset_accuracy"] == result.metrics["accuracy"]
    assert result.invalid == 1 and result.labels == sorted(LABELS)
    assert 0 < result.metrics["micro_f1"].low < result.metrics["micro_f1"].value < result.metrics["micro_f1"].high < 1
    perfect = evaluate(
        rows, [Completion(r.answer) for r in rows], task="classification", labels=None, config=FAST, seed=0
    )
    comparison = {c.metric: c for c in compare("a", result, "b", perfect)}
    assert comparison["micro_f1"].verdict == "better" and comparison["accuracy"].test == "exact McNemar"
    write_evaluation(tmp_path, result, Subject("m", "d", "test"))
    loaded = load_evaluation(tmp_path)
    assert loaded.metrics == result.metrics and loaded.rows == rows
