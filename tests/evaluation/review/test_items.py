"""Which rows people are shown."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reviews import pair_review

from tuneloop.core.errors import UserError
from tuneloop.evaluation.review.items import SAME, make_review, read_systems, sample_rows


def test_a_quarter_of_the_rows_is_drawn_with_a_random_part_and_never_equal_answers(two: Path) -> None:
    review = pair_review(two, share=0.25)
    assert len(review.items) == 10
    assert Counter(item.stratum for item in review.items)["random"] == 4
    assert all(len(set(item.answers)) == 2 for item in review.items)
    (sizes,) = review.populations.values()
    assert sizes[SAME] == 10 and sum(sizes.values()) == 40


@given(
    st.lists(st.sampled_from(["same", "disagreement", "uncertain", "rest"]), min_size=1, max_size=60),
    st.integers(1, 60),
)
def test_the_budget_is_used_as_far_as_rows_differ(groups: list[str], budget: int) -> None:
    named = {str(i): group for i, group in enumerate(groups)}
    drawn = sample_rows(named, budget, random.Random(0))
    assert len(drawn) == min(budget, sum(group != SAME for group in groups))
    assert all(stratum in ("random", named[row]) for row, stratum in drawn.items())


def test_every_row_has_the_same_chance_in_the_random_part() -> None:
    groups = {str(i): "disagreement" if i < 5 else "rest" for i in range(20)}
    counts: Counter[str] = Counter()
    for seed in range(600):
        counts.update(
            row for row, stratum in sample_rows(groups, 10, random.Random(seed)).items() if stratum == "random"
        )
    assert all(80 <= counts[row] <= 165 for row in groups)  # 120 expected


def test_a_review_goes_on_and_refuses_other_answers(two: Path, make_evaluation: Any) -> None:
    first = pair_review(two)
    assert pair_review(two).items == first.items
    other = make_evaluation("other", ["x"] * 40)
    with pytest.raises(UserError, match="other answers"):
        make_review(read_systems([str(two), str(other)]), two / "review", mode="pairwise")


def test_names_of_systems_with_the_same_name_are_their_places(make_evaluation: Any) -> None:
    a, b = make_evaluation("a", ["x"]), make_evaluation("b", ["y"])
    assert [c.name for c in read_systems([str(a), str(b)])] == [str(a), str(b)]


@pytest.mark.parametrize(
    ("second", "match"),
    [("nowhere", "No evaluation"), ("{run}:zero", "no answers of"), ("{run}", "named twice"), ("{equal}", "equal")],
)
def test_bad_systems_are_refused(two: Path, make_evaluation: Any, second: str, match: str) -> None:
    answers = [json.loads(line)["prediction"] for line in (two / "samples.jsonl").read_text().splitlines()]
    equal = make_evaluation("equal", answers)
    places = [str(two), second.format(run=two, equal=equal)]
    with pytest.raises(UserError, match=match):
        make_review(read_systems(places), two / "review", mode="pairwise")
