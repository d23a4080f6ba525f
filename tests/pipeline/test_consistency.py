"""The stage around consistency: off by default, its time is said before, and what stands in its way costs no evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from manifests import manifest_of

from tuneloop.core.errors import UserError
from tuneloop.core.files import read_jsonl
from tuneloop.core.ui import reporting
from tuneloop.pipeline.answers import ask
from tuneloop.pipeline.consistency import ANSWERS, consistency_part, prompt_systems, tuned_system
from tuneloop.pipeline.context import RunContext, attach_trained
from tuneloop.pipeline.evaluate import base_model
from tuneloop.pipeline.scoring import SystemAnswers
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


def asked(questions: Sequence[Row]) -> dict[str, SystemAnswers]:
    return {"tuned": SystemAnswers([Completion("late") for _ in questions], 2.0)}


def refused(questions: Sequence[Row]) -> dict[str, SystemAnswers]:
    raise UserError("1 of 4 prompts are too long", where="row r0")


def part_of(folder: Path, said: list[str], given: list[Row], asks: Any, *settings: str) -> dict[str, Any]:
    job = RunContext(make_recipe({}, ["evaluate.bootstrap=200", *settings]), folder)
    dataset = Dataset("d", manifest_of(task="classification", labels=LABELS), [], [], given)
    costs = {"tuned": {"seconds": 30.0}, "TF-IDF": {"seconds": 1000.0}}
    with reporting(say=said.append):
        return consistency_part(job, folder, dataset, given, asks, name="tuned", costs=costs)


def test_it_is_off_unless_asked_for(tmp_path: Path) -> None:
    said: list[str] = []
    assert part_of(tmp_path, said, rows(4), [refused]) == {} and said == []


def test_a_sample_is_asked_its_time_said_before_and_every_answer_kept(tmp_path: Path) -> None:
    said: list[str] = []
    part = part_of(tmp_path, said, rows(30), [asked], "evaluate.consistency=3", "evaluate.consistency_rows=10")
    found = part["consistency"]
    assert (found.rows, found.ways, found.seconds) == (10, 3, {"tuned": 2.0})
    assert said[0] == (
        "consistency 10 rows are put in several ways: 30 questions for each system, about 0.5 minutes for tuned"
    )
    assert said[1].startswith("evaluate  Asked 3 ways") and any("worthless" in line for line in said)
    kept = read_jsonl(tmp_path / ANSWERS)
    assert len(kept) == 30 and {each["answers"]["tuned"] for each in kept} == {"late"}


@pytest.mark.parametrize(
    ("given", "asks", "why"),
    [(rows(4), [refused], "prompts are too long"), (rows(4, "def f{}(x):"), [asked], "programs")],
)
def test_what_stands_in_its_way_is_told_and_costs_nothing_else(
    tmp_path: Path, given: list[Row], asks: Any, why: str
) -> None:
    said: list[str] = []
    assert part_of(tmp_path, said, given, asks, "evaluate.consistency=3") == {}
    assert said[-1].startswith("warn: consistency was not measured") and why in said[-1]


@pytest.mark.parametrize("task", ["generation", "classification"])
def test_a_run_is_asked_beside_the_prompts_of_its_base(
    make_run: Any, tiny_llama: Path, tmp_path: Path, task: str
) -> None:
    job = RunContext(make_recipe({"model": str(tiny_llama)}, [
        "evaluate.bootstrap=200", "evaluate.consistency=5", "evaluate.max_new_tokens=6", "baselines.few_shot=1"
    ]), make_run())  # fmt: skip
    manifest = manifest_of(task=task, labels=LABELS if task == "classification" else None)
    dataset = Dataset("d", manifest, rows(4, "Once more: where is parcel {}, please?"), [], rows(3))
    attach_trained(job)
    asks = [tuned_system(job, dataset), prompt_systems(job, dataset, lambda: base_model(job))]
    part = consistency_part(job, tmp_path, dataset, dataset.test, asks, name="tuned", costs={})["consistency"]
    prompts = {"zero-shot", "few-shot"}
    prompts |= {f"{n}-shot calibrated" for n in ("zero", "few")} if task == "classification" else set()
    assert set(part.systems) == {"tuned", *prompts}
    kept = read_jsonl(tmp_path / ANSWERS)
    assert any(each["answers"]["tuned"] != each["answers"]["zero-shot"] for each in kept), "the base answers for itself"
    questions = [replace(dataset.test[0], messages=[*each["messages"], dataset.test[0].messages[-1]]) for each in kept]
    again = ask(job.model, dataset, questions, job.recipe.evaluate)[""].completions
    assert [answer.text for answer in again] == [each["answers"]["tuned"] for each in kept], "the run is as it was"
