"""What votes say, and the data that are made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from reviews import pair_review, vote

from tuneloop.core.errors import UserError
from tuneloop.evaluation.review.items import ReviewFolder, append_vote, load_review, make_review, read_systems
from tuneloop.evaluation.review.results import export, results_of


def rating_review(run: Path) -> ReviewFolder:
    return make_review(read_systems([str(run)]), run / "rating", mode="rating", share=1.0)


def test_equal_answers_count_as_ties_and_two_reviewers_on_an_item_as_one_row(two: Path) -> None:
    review = pair_review(two)
    for item in review.items:
        for reviewer in ("anna", "ben"):
            append_vote(review.votes_path, vote(item.id, reviewer, winner="tuned", shown=item.systems))
    found = results_of(review)
    (pair,) = found["pairs"]
    assert (pair["a"], pair["b"], pair["wins_b"], pair["equal_answers"]) == ("few_shot", "tuned", 60, 10)
    assert pair["win_rate"]["estimate"].value == pytest.approx(0.75 + 0.25 / 2)
    assert pair["verdict"] == "better"
    assert list(found["ranking"]) == ["tuned", "few_shot"]
    assert found["reviewers"] == {"anna": 30, "ben": 30}
    assert found["agreement"]["preference"].value != found["agreement"]["preference"].value  # all one value: undefined


def test_a_few_votes_are_not_enough_evidence(two: Path) -> None:
    review = pair_review(two)
    for item, winner in zip(review.items[:4], ["tuned", "few_shot", "tuned", "tuned"], strict=True):
        append_vote(review.votes_path, vote(item.id, "anna", winner=winner))
    (pair,) = results_of(review)["pairs"]
    assert pair["verdict"] == "not enough evidence"


def test_ratings_are_weighted_to_the_whole_test_set(two: Path) -> None:
    review = rating_review(two)
    for item in review.items:
        good = item.group == "rest"
        append_vote(review.votes_path, vote(item.id, "anna", "rating", stars=5 if good else 1, tags=("wrong fact",)))
    found = results_of(review)["ratings"]["tuned"]
    (sizes,) = review.populations.values()
    assert found["good"]["estimate"].value == pytest.approx(sizes["rest"] / 40)
    assert found["stars"]["estimate"].value == pytest.approx(1 + 4 * sizes["rest"] / 40)
    assert found["tags"] == {"wrong fact": 40}


def test_agreement_of_ratings_is_ordinal(two: Path) -> None:
    review = rating_review(two)
    for i, item in enumerate(review.items[:12]):
        append_vote(review.votes_path, vote(item.id, "anna", "rating", stars=1 + i % 5))
        append_vote(review.votes_path, vote(item.id, "ben", "rating", stars=min(5, 2 + i % 5)))
    alpha = results_of(review)["agreement"]["stars"]
    assert 0.5 < alpha.value < 1 and alpha.low <= alpha.value <= alpha.high


def test_preferences_leave_out_ties_and_disagreement_and_take_corrections(two: Path, tmp_path: Path) -> None:
    review = pair_review(two)
    item, tie, split, mended, *_ = review.items
    append_vote(review.votes_path, vote(item.id, "anna", winner="tuned"))
    append_vote(review.votes_path, vote(tie.id, "anna", "tie"))
    append_vote(review.votes_path, vote(split.id, "anna", winner="tuned"))
    append_vote(review.votes_path, vote(split.id, "ben", winner="few_shot"))
    append_vote(review.votes_path, vote(mended.id, "anna", winner="few_shot", corrected="Better still."))
    written = export(review, "preference", tmp_path / "p.jsonl")
    rows = {r["row"]: r for r in map(json.loads, (tmp_path / "p.jsonl").read_text().splitlines())}
    assert rows.keys() == {item.row, mended.row}
    assert rows[item.row]["chosen"] == item.answers[1] and rows[item.row]["rejected"] == item.answers[0]
    assert (rows[mended.row]["chosen"], rows[mended.row]["rejected"]) == ("Better still.", mended.answers[0])
    assert written["left_out"]["tie or both bad"] == 1 and written["left_out"]["reviewers disagree"] == 1


def test_thumbs_come_from_ratings_and_corrections_are_good(two: Path, tmp_path: Path) -> None:
    review = rating_review(two)
    bad, good, *_ = review.items
    append_vote(review.votes_path, vote(bad.id, "anna", "rating", thumb=False, corrected="As it should be."))
    append_vote(review.votes_path, vote(good.id, "anna", "rating", stars=5))
    export(review, "kto", tmp_path / "k.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "k.jsonl").read_text().splitlines()]
    assert [(r["messages"][-1]["content"], r["thumb"]) for r in rows] == [
        (bad.answers[0], "down"), ("As it should be.", "up"), (good.answers[0], "up"),
    ]  # fmt: skip


def test_the_corrected_test_set_takes_what_most_reviewers_wrote_and_names_conflicts(two: Path, tmp_path: Path) -> None:
    review = rating_review(two)
    first, second, *_ = review.items
    for name, text in [("anna", "Right."), ("ben", "Right."), ("cleo", "Wrong.")]:
        append_vote(review.votes_path, vote(first.id, name, "rating", thumb=False, corrected=text))
    append_vote(review.votes_path, vote(second.id, "anna", "rating", thumb=True))
    written = export(review, "corrected", tmp_path / "c.jsonl")
    rows = {r["id"]: r for r in map(json.loads, (tmp_path / "c.jsonl").read_text().splitlines())}
    assert rows[first.row]["messages"][-1]["content"] == "Right."
    assert rows[second.row]["messages"][-1]["content"] == second.references[0]
    assert written["conflicts"] == [first.row] and written["rows"] == 2


def test_nothing_to_export_is_said(two: Path, tmp_path: Path) -> None:
    review = pair_review(two)
    with pytest.raises(UserError, match="Nothing to export"):
        export(review, "preference", tmp_path / "p.jsonl")


@pytest.mark.parametrize("kind", ["preference", "kto", "corrected"])
def test_prepare_reads_what_is_exported(two: Path, tmp_path: Path, kind: Any) -> None:
    from tuneloop.data.config import PrepareConfig
    from tuneloop.data.formats.guess import detect

    review = pair_review(two) if kind == "preference" else rating_review(two)
    for i, item in enumerate(review.items):
        if kind == "preference":
            append_vote(review.votes_path, vote(item.id, "anna", winner=item.systems[i % 2]))
        else:
            append_vote(review.votes_path, vote(item.id, "anna", "rating", thumb=bool(i % 2)))
    export(review, kind, tmp_path / "d.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "d.jsonl").read_text().splitlines()]
    found = detect(rows, PrepareConfig(sources=[str(tmp_path / "d.jsonl")]))
    assert found.name == {"preference": "preference", "kto": "thumbs", "corrected": "messages"}[kind]


def test_a_damaged_review_is_a_user_error(two: Path) -> None:
    review = pair_review(two)
    (review.folder / "items.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(UserError, match="damaged"):
        load_review(review.folder)
