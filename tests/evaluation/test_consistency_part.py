"""The stage around consistency: off by default, its time is said before, and what stands in its way costs no evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from manifests import manifest_of

from tuneloop.core.errors import UserError
from tuneloop.core.files import read_jsonl
from tuneloop.core.ui import reporting
from tuneloop.evaluation.consistency import ANSWERS, consistency_part
from tuneloop.recipe import make_recipe
from tuneloop.records.completion import Completion
from tuneloop.records.rows import Dataset, Row

LABELS = ["late", "lost"]


def rows(n: int, text: str = "Where is the parcel that you wanted to deliver on day {}?") -> list[Row]:
    return [
        Row(
            f"r{i}",
            [{"role": "user", "content": text.format(i)}, {"role": "assistant", "content": LABELS[i % 2]}],
            LABELS[i % 2],
        )
        for i in range(n)
    ]


def asked(questions: Sequence[Row]) -> list[Completion]:
    return [Completion("late") for _ in questions]


def refused(questions: Sequence[Row]) -> list[Completion]:
    raise UserError("1 of 4 prompts are too long", where="row r0")


def part_of(folder: Path, said: list[str], given: list[Row], asks: Any, *settings: str) -> dict[str, Any]:
    config = make_recipe({}, ["evaluate.bootstrap=200", *settings]).evaluate
    dataset = Dataset("d", manifest_of(task="classification", labels=LABELS), [], [], given)
    with reporting(say=said.append):
        return consistency_part(dataset, given, asks, folder, config, name="tuned", seconds=30.0, seed=0)


def test_it_is_off_unless_asked_for(tmp_path: Path) -> None:
    said: list[str] = []
    assert part_of(tmp_path, said, rows(4), refused) == {} and said == []


def test_a_sample_is_asked_its_time_said_before_and_every_answer_kept(tmp_path: Path) -> None:
    said: list[str] = []
    part = part_of(tmp_path, said, rows(30), asked, "evaluate.consistency=3", "evaluate.consistency_rows=10")
    found = part["consistency"]
    assert (found.rows, found.ways) == (10, 3) and found.seconds >= 0
    assert said[0] == "consistency 10 rows are put in several ways: 30 questions, about 0.5 minutes"
    assert said[1].startswith("evaluate  Asked 3 ways") and any("worthless" in line for line in said)
    kept = read_jsonl(tmp_path / ANSWERS)
    assert len(kept) == 30 and {item["answer"] for item in kept} == {"late"}


@pytest.mark.parametrize(
    ("given", "asks", "reason"),
    [(rows(4), refused, "prompts are too long"), (rows(4, "def f{}(x):"), asked, "programs")],
)
def test_what_stands_in_its_way_is_told_and_costs_nothing_else(
    tmp_path: Path, given: list[Row], asks: Any, reason: str
) -> None:
    said: list[str] = []
    assert part_of(tmp_path, said, given, asks, "evaluate.consistency=3") == {}
    assert said[-1].startswith("warn: consistency was not measured") and reason in said[-1]
