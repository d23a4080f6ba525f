"""Metrics of labels are scikit-learn's; an answer outside the labels is wrong."""

import math
import random
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from tuneloop.evaluation.metrics.labels import label_matcher, label_statistics

LABELS = ["ant", "bee", "cat", "dog"]


@given(st.lists(st.tuples(st.sampled_from(LABELS[:3]), st.sampled_from([*LABELS, None])), min_size=1, max_size=30))
def test_label_metrics_are_scikit_learns_with_answers_outside_the_labels_as_wrong(pairs):
    references, predictions = [a for a, _ in pairs], [b for _, b in pairs]
    ours = label_statistics(references, predictions).point_values()
    said = [p or "(invalid)" for p in predictions]
    named = sorted({*references, *predictions} - {None})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = {
            "accuracy": sk.accuracy_score(references, said),
            "macro_f1": sk.f1_score(references, said, average="macro", labels=named, zero_division=0),
            "micro_f1": sk.f1_score(references, said, average="micro", zero_division=0),
            "weighted_f1": sk.f1_score(references, said, average="weighted", labels=named, zero_division=0),
            "balanced_accuracy": sk.balanced_accuracy_score(references, said),
            "precision_macro": sk.precision_score(references, said, average="macro", labels=named, zero_division=0),
            "recall_macro": sk.recall_score(references, said, average="macro", labels=named, zero_division=0),
            "precision_micro": sk.precision_score(references, said, average="micro", zero_division=0),
            "recall_micro": sk.recall_score(references, said, average="micro", zero_division=0),
            "precision_weighted": sk.precision_score(
                references, said, average="weighted", labels=named, zero_division=0
            ),
            "recall_weighted": sk.recall_score(references, said, average="weighted", labels=named, zero_division=0),
        }
    assert ours == pytest.approx(theirs)


@given(st.lists(st.tuples(st.sampled_from(LABELS[:3]), st.sampled_from(LABELS)), min_size=1, max_size=30))
def test_where_all_answers_are_labels_averages_are_scikit_learns_own_defaults(pairs):
    references, predictions = [a for a, _ in pairs], [b for _, b in pairs]
    ours = label_statistics(references, predictions).point_values()
    for average in ("macro", "micro", "weighted"):
        for name, function in (("f1", sk.f1_score), ("precision", sk.precision_score), ("recall", sk.recall_score)):
            key = f"{average}_f1" if name == "f1" else f"{name}_{average}"
            assert ours[key] == pytest.approx(function(references, predictions, average=average, zero_division=0))


def test_rows_without_a_reference_do_not_count():
    with_gap = label_statistics(["a", None, "b", "b"], ["a", "b", "a", "b"])
    without = label_statistics(["a", "b", "b"], ["a", "a", "b"])
    assert with_gap.point_values() == without.point_values()
    assert math.isnan(with_gap.row_scores["accuracy"][1])


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("card_arrival", "card_arrival"),
        ("  card_arrival \n", "card_arrival"),
        ('"Card_Arrival".', "card_arrival"),
        ("**card_arrival**", "card_arrival"),
        ("card_arrival\nbecause the card is late", "card_arrival"),
        ("the label is card_arrival", None),
        ("card arrival", None),
        ("", None),
        ("\n \n", None),
        ("C", "C"),
        ("c#", "C#"),
        ("'C'", None),  # fits C and C# once the punctuation is off: decides nothing
        ("\ud800", None),
        ("x" * 1_000_000, None),
    ],
)
def test_free_answers_match_a_label_or_none(answer, label):
    assert label_matcher(["card_arrival", "C", "C#"])(answer) == label


def test_a_reference_text_stands_for_its_label():
    match = label_matcher(["billing"], {"Queue: billing": "billing"})
    assert match("queue: Billing.") == "billing"


@given(st.lists(st.text(min_size=1), min_size=1, max_size=5, unique=True), st.text())
def test_matching_never_fails_and_only_names_labels(labels, answer):
    found = label_matcher(labels)(answer)
    assert found is None or found in labels


def test_every_label_that_is_different_after_trimming_matches_itself():
    labels = ["a", "A", "a.", "b b", "?", "ß", "ss", "two\nlines"]
    match = label_matcher(labels)
    assert [match(label) for label in labels] == labels


def test_labels_in_the_hundreds_are_quick_and_right():
    rng = random.Random(0)
    names = [f"label {i}" for i in range(300)]
    references = [rng.choice(names) for _ in range(2000)]
    predictions = [r if rng.random() < 0.8 else rng.choice(names) for r in references]
    ours = label_statistics(references, predictions).point_values()["macro_f1"]
    assert ours == pytest.approx(sk.f1_score(references, predictions, average="macro", zero_division=0))
