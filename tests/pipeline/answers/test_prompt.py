"""Examples in the prompt: which are chosen, and how many fit."""

from collections import Counter
from dataclasses import replace

import numpy as np

from tuneloop.pipeline.answers.prompt import (
    choose_examples,
    fit_examples,
    labels_shown,
    nearest_examples,
    prompt_turns,
    rarest_label,
)
from tuneloop.records.rows import Row


def row(i, text, label=None, answer=None):
    return Row(
        f"r{i:03}",
        [
            {"role": "system", "content": "Sort the mail."},
            {"role": "user", "content": text},
            {"role": "assistant", "content": answer or label or "answer", "weight": 1},
        ],
        label,
    )


TRAIN = [row(i, f"question {i}", "abc"[min(i // 20, 2)]) for i in range(90)]  # 20 a, 20 b, 50 c


def test_examples_are_balanced_whatever_the_class_sizes():
    assert Counter(r.label for r in choose_examples(TRAIN, 6, seed=1)) == {"a": 2, "b": 2, "c": 2}
    assert max(Counter(r.label for r in choose_examples(TRAIN, 4, seed=1)).values()) == 2
    assert len({r.label for r in choose_examples(TRAIN, 2, seed=1)}) == 2


def test_the_choice_is_seeded_and_independent_of_row_order():
    first = choose_examples(TRAIN, 6, seed=1)
    assert choose_examples(TRAIN[::-1], 6, seed=1) == first
    assert choose_examples(TRAIN, 6, seed=2) != first


def test_long_rows_are_a_last_resort():
    long = [row(100 + i, "very long " * 50, "abc"[i % 3], answer=f"x{i}") for i in range(60)]
    only_long = [row(200, "very long " * 50, "d")]
    chosen = choose_examples([*TRAIN, *long, *only_long], 12, seed=0)
    assert {r.label for r in chosen if len(r.messages[1]["content"]) > 100} == {"d"}


def test_more_than_there_is_gives_all_once():
    small = [*TRAIN[:3], row(500, "question 0", "a")]  # the last one repeats a text and its answer
    assert len(choose_examples(small, 10, seed=0)) == 3
    assert choose_examples([], 4, seed=0) == []
    assert choose_examples(TRAIN, 0, seed=0) == []


def test_classes_may_be_anything_of_the_row():
    cards = [row(i, f"mail {i}", answer=f"Queue: {'xy'[i % 10 == 0]}") for i in range(50)]
    chosen = choose_examples(cards, 4, seed=0, stratify=lambda r: r.answer)
    assert Counter(r.answer for r in chosen) == {"Queue: x": 2, "Queue: y": 2}


def test_frequent_classes_are_shown_where_there_are_too_many():
    rare = [row(300 + i, f"rare {i}", f"rare {i}") for i in range(40)]
    assert {r.label for r in choose_examples([*rare, *TRAIN], 3, seed=0, frequent_first=True)} == {"a", "b", "c"}
    assert {r.label for r in choose_examples([*rare, *TRAIN], 3, seed=0)} != {"a", "b", "c"}


def test_a_row_of_several_labels_stands_for_its_rarest_one():
    rows = [row(i, f"q {i}", label) for i, label in enumerate(["a", "a, b", "a, b, c"])]
    rows = [replace(r, meta={"labels": r.label.split(", ")}) for r in rows]
    of = rarest_label(rows)
    assert [of(r) for r in rows] == ["a", "b", "c"]
    assert of(row(9, "no label")) is None
    assert labels_shown(rows[:2], rows) == "The 2 examples in the prompt show 2 of 3 labels."
    assert labels_shown(rows[2:], rows) == ""


def test_examples_stand_after_the_system_turn():
    turns = prompt_turns(TRAIN[0], examples=TRAIN[1:3])
    assert [t["role"] for t in turns] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert turns[1]["content"] == "question 1"
    assert turns[-1]["content"] == "question 0"
    assert all("weight" not in t for t in turns)
    assert TRAIN[1].messages[-1]["weight"] == 1  # the row is as it was


def test_examples_that_do_not_fit_go_longest_first_with_a_warning():
    examples = [row(i, "x" * size, "a") for i, size in enumerate((10, 40, 20))]

    def count(turns):
        return sum(len(t["content"]) for t in turns)

    assert fit_examples(examples, 100, count) == (examples, None)
    kept, warning = fit_examples(examples, 40, count)
    assert kept == [examples[0], examples[2]]
    assert warning and "2 of 3" in warning
    kept, warning = fit_examples(examples, -5, count)
    assert kept == [] and warning and "0 of 3" in warning


def test_the_nearest_examples_share_words_with_the_row_and_the_nearest_comes_last():
    train = [row(1, "my card is lost"), row(2, "I lost my card in the park"), row(3, "what is the exchange rate")]
    asked = [row(9, "I lost my card"), row(10, "the rate of exchange")]
    near = nearest_examples(train, asked, 2)
    assert [example.id for example in near[0]] == ["r001", "r002"]
    assert near[1][-1].id == "r003"


def test_the_nearest_examples_by_vectors_and_without_any_words():
    axis = {"a": [1.0, 0.0], "b": [0.0, 1.0], "b too": [0.1, 0.9]}
    train = [row(1, "a"), row(2, "b")]

    def embed(texts):
        return np.array([axis[text] for text in texts])

    assert nearest_examples(train, [row(9, "b too")], 1, embed=embed)[0][0].id == "r002"
    assert len(nearest_examples([row(1, "!!"), row(2, "??")], [row(9, "...")], 2)[0]) == 2
    assert nearest_examples([], [row(9, "b")], 2) == [[]]
