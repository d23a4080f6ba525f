"""What was measured of merging, routing and distilling stands in advice, with what follows from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tuneloop.advice.measured import combined_facts
from tuneloop.advice.recommendation import advise, make_question
from tuneloop.core.errors import UserError
from tuneloop.records.distillation import DistillationRecord, DistilledFigures, ModelCost
from tuneloop.records.merge import MergeRecord, MergeSource, Share, TaskResult
from tuneloop.records.record import Record, write_record
from tuneloop.records.router import CascadeRecord, RouterFigures, RouterRecord, RouteTarget, SingleModel


def share(value: float, low: float, high: float) -> Share:
    return Share(value=value, low=low, high=high)


def distillation(low: float) -> DistillationRecord:
    results = DistilledFigures(
        metric="accuracy", n=200, teacher=0.9, student=0.8, control=0.78, kept=share(0.89, 0.85, 0.93),
        over_control=share(0.02, low, 0.05), teacher_cost=ModelCost(rows_per_second=2), student_cost=ModelCost(rows_per_second=4),
    )  # fmt: skip
    return DistillationRecord(
        teacher="big", teacher_key="k", student="small", dataset="d", asked=9, kept=9, results=results
    )


def merge(routed: list[str]) -> MergeRecord:
    sources = [MergeSource(name=name, hash=name, weight=1, rank=8) for name in "ab"]
    tasks = [
        TaskResult(task=name, metric="accuracy", split="test", n=9, base=0, expert=1, merged=value, kept=share(value, value - 0.1, 1),
                   delta=share(0, 0, 0), holds=True)
        for name, value in (("a", 0.97), ("b", 0.91))
    ]  # fmt: skip
    return MergeRecord(
        key="k", model="m", method="svd", rank=8, lost=0, hash="h", sources=sources, tasks=tasks, routed=routed
    )


def cascade(cost: float, high: float) -> CascadeRecord:
    return CascadeRecord(
        small="s", large="l", costs=(1, 10), threshold=0.6, metric="accuracy", n=80, quality=share(0.9, 0.8, 0.95), cost=cost,
        asked_large=0.3, over_large=share(-0.01, -0.05, high),
    )  # fmt: skip


ROUTER = RouterRecord(
    kind="knn", features="words", exclusive=False, routes=[RouteTarget(name="s", cost=1), RouteTarget(name="l", cost=10)],
    results=RouterFigures(
        n=70, quality=share(0.85, 0.8, 0.9), cost=4,
        singles=[SingleModel(name="s", cost=1, quality=0.6), SingleModel(name="l", cost=10, quality=0.88), SingleModel(name="oracle", cost=5, quality=0.92)],
    ),
)  # fmt: skip


@pytest.mark.parametrize(
    ("record", "rule", "text"),
    [
        (distillation(0.005), "distilled-and-better", "89% [85%, 93%] of it kept), at 50% of the teacher's time"),
        (distillation(-0.01), "distilled-and-no-better", "tune the small model on the rows alone"),
        (merge([]), "merged", "the worst task, b, keeps 91%"),
        (merge(["c"]), "merged-in-part", "stay with their experts, which the same base serves as well: c"),
        (ROUTER, "routed", "the best single model, l, has 0.880 at 10"),
        (cascade(4, 0.03), "cascade-pays", "at 40% of the large model's cost"),
        (cascade(4, -0.002), "cascade-does-not-pay", "Ask the large model alone"),
    ],
)
def test_each_record_gives_its_note(record: Record, rule: str, text: str, tmp_path: Path) -> None:
    write_record(tmp_path / record.file, record)
    facts = combined_facts([str(tmp_path)])
    assert facts == combined_facts([str(tmp_path / record.file)])
    said: Any = {reason.rule: reason.says for reason in advise(make_question({"rows": 500, "combined": facts})).reasons}
    assert text in said[rule]


def test_a_place_without_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Nothing was measured"):
        combined_facts([str(tmp_path)])
    assert combined_facts([]) == {}
