from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest

from places import DATA_SETS
from tuneloop.data.checks import label_errors
from tuneloop.data.checks.drift import groups, tfidf
from tuneloop.data.checks.label_errors import confident_errors, find_label_errors
from tuneloop.data.dataset import normalised

DATA = DATA_SETS
WORDS = {
    "card": ["card", "plastic", "chip", "pin", "expired", "swallowed", "activate"],
    "money": ["transfer", "pending", "account", "sent", "received", "balance", "salary"],
    "app": ["password", "login", "phone", "update", "screen", "crashes", "install"],
}


def tickets(n: int, seed: int = 0) -> tuple[list[str], list[str]]:
    rng = random.Random(seed)
    labels = [rng.choice(list(WORDS)) for _ in range(n)]
    return [f"my {' '.join(rng.sample(WORDS[label], 3))} please {rng.randrange(90)}" for label in labels], labels


def test_flipped_labels_come_first_with_the_right_suggestion() -> None:
    texts, labels = tickets(300)
    right = list(labels)
    flipped = random.Random(1).sample(range(300), 12)
    for index in flipped:
        labels[index] = next(name for name in WORDS if name != labels[index])
    errors = find_label_errors(texts, labels, seed=0)
    assert sorted(error.index for error in errors) == list(range(300))
    assert {error.index for error in errors[:12]} == set(flipped)
    assert all(e.suggested == right[e.index] and e.label == labels[e.index] for e in errors[:12])
    assert [e.score for e in errors] == sorted(e.score for e in errors) and not any(e.confident for e in errors[12:])
    assert sum(error.confident for error in errors) >= 9


def test_a_wrong_copy_does_not_testify_against_the_right_one() -> None:
    texts, labels = tickets(200)
    texts.append(texts[0].upper())
    labels.append(next(name for name in WORDS if name != labels[0]))
    path = [error.index for error in find_label_errors(texts, labels)]
    assert path[0] == 200 and path.index(0) > 20


def test_the_same_input_gives_the_same_ranking_of_every_row() -> None:
    texts, labels = tickets(1200)
    assert find_label_errors(texts, labels, seed=3) == find_label_errors(texts, labels, seed=3)
    errors = find_label_errors(texts, labels)
    assert len(errors) == 1200 and all(labels[error.index] == error.label for error in errors)


@pytest.mark.parametrize(
    ("texts", "labels"),
    [
        ([], []),
        (["a", "b"], ["x", "x"]),
        (["a", "b"], ["x", "y"]),
        (["", ""], ["x", "y"]),
        (["\ud800", "é"], ["x", "y"]),
    ],
)
def test_degenerate_data_is_ranked_or_passed_over(texts: list[str], labels: list[str]) -> None:
    found = find_label_errors(texts, labels)
    assert len(found) == (len(texts) if len(set(labels)) > 1 else 0)
    assert all(0 <= error.score <= 1 for error in found)


def test_embeddings_are_used_where_they_are_given() -> None:
    rng = random.Random(0)
    texts = [f"{rng.random()}" for _ in range(200)]  # nothing to learn from the words
    labels = ["a" if i % 2 else "b" for i in range(200)]

    def embed(some: Any) -> Any:
        side = np.array([texts.index(text) % 2 for text in some], dtype=np.float32)
        return np.stack([side, 1 - side], axis=1)

    labels[7] = "b"
    assert find_label_errors(texts, labels, embed=embed)[0].index == 7


def test_the_confident_joint_leaves_out_what_is_merely_hard() -> None:
    probability = np.array([[0.9, 0.1], [0.8, 0.2], [0.05, 0.95], [0.1, 0.9], [0.55, 0.45], [0.02, 0.98]])
    label = np.array([0, 0, 1, 1, 1, 0])  # the fifth is hard, the sixth wrong
    assert confident_errors(probability, label).tolist() == [False] * 5 + [True]


def test_injected_flips_in_real_tickets_are_ranked_high() -> None:
    folder = DATA / "messy_tickets"
    if not folder.is_dir():
        pytest.skip("messy_tickets is not here")
    kinds: dict[int, set[str]] = {}
    for defect in json.loads((folder / "gold.json").read_text())["defects"]:
        kinds.setdefault(defect["line"], set()).add(defect["type"])
    rows: dict[tuple[str, str], tuple[str, str, set[str]]] = {}
    for number, line in enumerate((folder / "messy.jsonl").read_text("utf-8-sig", "replace").split("\n"), 1):
        try:
            text, label = (json.loads(line)[key] for key in ("text", "label"))
        except (ValueError, KeyError, TypeError):
            continue
        if isinstance(text, str) and isinstance(label, str) and text.strip() and label.strip():
            rows.setdefault((normalised(text), label), (text, label, kinds.get(number, set())))
    kept = [row for row in rows.values() if not row[2] & {"conflicting_duplicate", "foreign_language"}]  # other checks'
    ranked = [kept[e.index][2] for e in find_label_errors([r[0] for r in kept], [r[1] for r in kept])]
    hits = np.array(["label_flip" in kinds for kinds in ranked])
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    assert hits.sum() == 150 and precision[hits].mean() >= 0.82


def test_naive_bayes_scores_each_text_as_if_its_rows_were_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_errors, "SMOOTHINGS", (0.02,))
    texts, names = tickets(40)
    texts, names = (
        [*texts, texts[0], texts[0], texts[1]],
        [*names, "app", "money", names[1]],
    )  # copies, with other labels
    label, members, table = np.unique(names, return_inverse=True)[1], groups(texts), tfidf(texts)
    found = label_errors._naive_bayes(table, label, 3, members)
    for row in range(len(texts)):
        others = members != members[row]
        counts = np.stack([table.toarray()[others & (label == number)].sum(axis=0) for number in range(3)])
        smooth = counts + 0.02
        prior = np.log([np.sum(others & (label == number)) + 0.5 for number in range(3)])
        wanted = table[row].toarray() @ (np.log(smooth) - np.log(smooth.sum(axis=1, keepdims=True))).T + prior
        np.testing.assert_allclose(found[row], wanted[0], rtol=1e-4)
