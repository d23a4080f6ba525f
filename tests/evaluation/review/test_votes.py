"""Votes on disk: none is lost, the last of a reviewer counts."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

from reviews import vote

from tuneloop.evaluation.review.items import append_vote, read_votes, standing


def _cast(path: str, reviewer: str) -> None:
    for i in range(40):
        append_vote(path, vote("item", f"{reviewer}{i}", note="x" * 500))


def test_votes_of_many_processes_at_the_same_moment_all_count(tmp_path: Path) -> None:
    path = str(tmp_path / "votes.jsonl")
    context = multiprocessing.get_context("fork")
    people = [context.Process(target=_cast, args=(path, name)) for name in "abcd"]
    for person in people:
        person.start()
    for person in people:
        person.join()
    votes, damaged = read_votes(path)
    assert (len(votes), damaged) == (160, 0)
    assert len(standing(votes)) == 160


def test_a_line_cut_off_by_a_crash_costs_itself_alone(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    append_vote(path, vote("a", "anna", winner="x"))
    with path.open("a") as file:
        file.write('{"item": "b", "revi')
    append_vote(path, vote("c", "anna", winner="x", note="naïve \ud800"))
    votes, damaged = read_votes(path)
    assert [v.item for v in votes] == ["a", "c"] and damaged == 1


def test_the_last_vote_of_a_reviewer_counts(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    for choice in ("tie", "both_bad"):
        append_vote(path, vote("a", "anna", choice))
    append_vote(path, vote("a", "ben", "skip"))
    counted = standing(read_votes(path)[0])
    assert counted["a", "anna"].choice == "both_bad" and len(counted) == 2
