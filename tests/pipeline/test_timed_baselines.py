"""Rows asked in rounds while a clock runs: as many as fit, the same by every prompt, with the examples that there is time for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tuneloop.core.ui import reporting
from tuneloop.evaluation.evaluate import sample_rows
from tuneloop.pipeline import baselines as rounds
from tuneloop.pipeline.answers import asking as systems
from tuneloop.pipeline.baselines import (
    FIRST,
    LEAST,
    ask_base,
    ask_within,
    base_examples,
    baseline_stage,
    measured_before,
)
from tuneloop.pipeline.context import RunContext
from tuneloop.pipeline.prepare import prepare_stage
from tuneloop.recipe import Recipe, make_recipe
from tuneloop.records.rows import Dataset


@pytest.fixture
def job(tmp_path: Path, tiny_llama: Path) -> RunContext:
    things = ["order", "parcel", "lamp", "kettle", "voucher"]
    with (tmp_path / "cases.jsonl").open("w") as file:
        for i in range(130):
            text = f"Case {i * 37 % 101}: the {things[i % 5]} sent on day {i * 13 % 29}, number {i * i}?"
            file.write(json.dumps({"text": text, "label": ["late", "refund", "praise"][i % 3]}) + "\n")
    recipe = make_recipe(
        {
            "name": "cases", "model": str(tiny_llama), "output_dir": str(tmp_path / "run"),
            "data": {"sources": [str(tmp_path / "cases.jsonl")], "split": {"test": 0.5, "val": 0.1}},
            "baselines": {"few_shot": 6},
        }
    )  # fmt: skip
    return RunContext(recipe, tmp_path / "run")


@pytest.fixture
def dataset(job: RunContext) -> Dataset:
    return prepare_stage(job)


def test_where_all_rows_fit_the_answers_are_those_of_one_round(job: RunContext, dataset: Dataset) -> None:
    rows = sample_rows(dataset.test, None, seed=job.recipe.seed)
    found = ask_within(job, dataset, 1e6)
    assert found.rows == len(rows) > 4 * FIRST  # more than one round
    assert found.examples == found.all_examples == 6
    whole = ask_base(job, dataset, rows, base_examples(job, dataset, rows))
    assert set(found.answers) == {"zero-shot", "zero-shot calibrated", "few-shot", "few-shot calibrated"}
    for kind in ("", "calibrated"):
        asked = found.answers[f"few-shot {kind}".strip()]
        assert [a.text for a in asked.completions] == [a.text for a in whole[kind].completions]
        sure = [[a.confidence for a in found.completions] for found in (asked, whole[kind])]
        assert sure[0] == pytest.approx(sure[1], abs=1e-4)


def test_without_time_a_few_rows_are_all_and_are_a_sample_of_that_size_and_it_is_told_what_they_take(
    job: RunContext, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def listen(job: RunContext, dataset: Dataset, rows, examples=()):  # type: ignore[no-untyped-def]
        asked.append([row.id for row in rows])
        return ask_base(job, dataset, rows, examples)

    monkeypatch.setattr(rounds, "ask_base", listen)
    monkeypatch.setattr(rounds, "reading_seconds", lambda *_: 0.0)
    expected: list[float] = []
    found = ask_within(job, dataset, 0.0, lambda seconds: expected.append(seconds))
    assert found.rows == LEAST < FIRST
    assert set(asked[0]) == {row.id for row in sample_rows(dataset.test, LEAST, seed=job.recipe.seed)}
    assert len({tuple(ids) for ids in asked}) == 1, "every prompt is asked the same rows"
    assert all(len(answer.completions) == LEAST for answer in found.answers.values())
    zero = found.answers["zero-shot calibrated"].seconds
    assert 0 < zero < expected[0] < 4 * zero


@pytest.mark.parametrize(("reading", "examples"), [(2.0, 6), (8.0, 3), (1e6, 0)])
def test_examples_that_take_too_long_to_read_are_fewer_or_none(
    job: RunContext, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, reading: float, examples: int
) -> None:
    monkeypatch.setattr(rounds, "reading_seconds", lambda *_: reading)
    monkeypatch.setattr(rounds, "READING", 0.1)
    found = ask_within(job, dataset, 40.0)  # 4 seconds for reading
    assert (found.examples, found.all_examples) == (examples, 6)
    assert ("few-shot" in found.answers) == bool(examples)


def test_few_shot_whose_answers_take_too_long_shows_fewer_examples(
    job: RunContext, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed(job: RunContext, dataset: Dataset, way: rounds._Way, rows):  # type: ignore[no-untyped-def]
        way.parts.append(ask_base(job, dataset, rows, way.examples))
        way.each = 1.0 + len(way.examples)  # seconds a row: each example costs one

    monkeypatch.setattr(rounds, "_ask", timed)
    monkeypatch.setattr(rounds, "reading_seconds", lambda *_: 0.0)
    # The time of 24 rows at 6 s: 2.15 for zero-shot and the tuned model, 3.85 for few-shot: two examples.
    found = ask_within(job, dataset, 24 * 6.0)
    assert (found.examples, found.all_examples) == (2, 6)


def test_examples_stay_where_asking_anew_with_fewer_takes_the_time_that_is_left() -> None:
    def way(name: str, examples: int, seconds: float) -> rounds._Way:
        asked = systems.SystemAnswers([], seconds * FIRST)
        return rounds._Way(name, [None] * examples, 0.0, [{"": asked}], seconds)  # type: ignore[list-item]

    zero, few = way("zero-shot", 0, 1.0), way("few-shot", 6, 7.0)
    # Asked so far: 96 s. 12 rows of the tuned model take 14, asking anew with 4 examples 60, a few more rows 17.
    assert rounds._fewer_examples(zero, few, 190.0, FIRST, 60) == 4
    assert rounds._fewer_examples(zero, few, 180.0, FIRST, 60) == 6
    assert rounds._fewer_examples(zero, way("few-shot", 6, 1.9), 190.0, FIRST, 60) == 6
    assert rounds._fewer_examples(zero, few, 190.0, FIRST, FIRST) == 6


def test_reading_is_expected_to_take_longer_with_more_examples(job: RunContext, dataset: Dataset) -> None:
    rows = dataset.test[:4]
    few, more = (base_examples(job, dataset, rows, k) for k in (2, 24))
    systems.reading_seconds(job.model, few, rows[0])
    assert 0 < systems.reading_seconds(job.model, few, rows[0], 16) * 3 < 60
    assert systems.reading_seconds(job.model, more, rows[0]) > 0


@pytest.mark.parametrize(
    ("asked", "rows", "fitting", "more"),
    [(12, 100, 50.0, 36), (12, 100, 20.5, 20), (12, 100, 2.0, 0), (48, 100, 500.0, 52), (48, 100, 48.0, 52), (12, 13, 2.0, 1),
     (12, 12, 9.0, 0), (12, 100, -3.0, 0)],
)  # fmt: skip
def test_the_next_round_has_what_fits_and_at_most_three_times_what_was_asked(
    asked: int, rows: int, fitting: float, more: int
) -> None:
    assert rounds._more(asked, rows, fitting) == more


def test_a_baseline_is_told_of_before_the_next_is_asked(job: RunContext, dataset: Dataset) -> None:
    told: list[str] = []

    def hear(line: str) -> None:
        if line.startswith("baseline "):
            told.append(line.split(":")[0].strip())

    def listen(task: str, done: float, total: float, /, **info: float | str) -> None:
        if task.startswith(("few-shot", "cheap")) and not done:
            told.append(task)

    with reporting(hear, listen):
        found = baseline_stage(job, dataset)
    places = [
        told.index(name)
        for name in ("baseline  zero-shot", "few-shot (6 examples)", "baseline  few-shot", "cheap alternatives")
    ]
    assert places == sorted(places)
    assert {f"baseline  {name}" for name in found} <= set(told)


def test_examples_that_show_only_some_labels_are_said_in_the_log_and_in_the_files(
    job: RunContext, dataset: Dataset
) -> None:
    told: list[str] = []
    few = job.recipe.baselines.model_copy(update={"few_shot": 2, "classical": False})
    config = job.recipe.evaluate.model_copy(update={"limit": 6})
    job.recipe = job.recipe.model_copy(update={"baselines": few, "evaluate": config})
    with reporting(say=told.append):
        baseline_stage(job, dataset)
    note = "The 2 examples in the prompt show 2 of 3 labels."
    assert [line.endswith(note) for line in told if line.startswith("baseline  few-shot:")] == [True]
    assert not any(note in line for line in told if line.startswith("baseline  zero-shot"))
    written = json.loads((job.folder / "baselines" / "few-shot" / "eval.json").read_text())
    assert note in written["notes"]


@pytest.mark.parametrize("measured", [None, 30])
def test_answers_that_advice_has_measured_are_taken_and_only_the_other_rows_are_asked(
    job: RunContext, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: int | None
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = ask_within(job, dataset, 1e6)

    def limited(rows: int | None) -> Recipe:
        return job.recipe.model_copy(update={"evaluate": job.recipe.evaluate.model_copy(update={"limit": rows})})

    advised = RunContext(limited(measured), tmp_path / "evals" / "advise-cases")
    advised.__dict__["model"] = job.model
    baseline_stage(advised, dataset)
    asked: list[int] = []

    def listen(job: RunContext, dataset: Dataset, rows, examples=()):  # type: ignore[no-untyped-def]
        asked.append(len(rows))
        return ask_base(job, dataset, rows, examples)

    monkeypatch.setattr(rounds, "ask_base", listen)
    found = ask_within(job, dataset, 1e6, before=measured_before(job, dataset))
    assert found.rows == whole.rows and found.free > 0
    assert sum(asked) == 2 * (whole.rows - (measured or whole.rows)), "zero-shot and few-shot"
    assert set(found.answers) == set(whole.answers)
    for name, answers in whole.answers.items():
        assert [a.text for a in found.answers[name].completions] == [a.text for a in answers.completions]
    asked.clear()
    little = ask_within(job, dataset, 0.0, before=measured_before(job, dataset))
    assert (little.rows, asked) == (LEAST, [])

    job.recipe = limited(10)  # without a limit on time
    rows = sample_rows(dataset.test, 10, seed=job.recipe.seed)
    baselines = baseline_stage(job, dataset)
    assert asked == [] and [row.id for row in baselines["few-shot"].rows] == [row.id for row in rows]
    job.recipe = make_recipe(job.recipe.model_dump(), ["baselines.few_shot=2"])
    assert measured_before(job, dataset) is None, "other prompts"


def test_taken_answers_to_written_texts_are_joined_with_the_other_rows(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with (tmp_path / "asked.jsonl").open("w") as file:
        for i in range(40):
            record = {"prompt": f"Say {i * 37 % 101} and {i * i}", "completion": f"It is {i * 13 % 29}, {i}."}
            file.write(json.dumps(record) + "\n")
    data = {"sources": [str(tmp_path / "asked.jsonl")], "split": {"test": 0.5, "val": 0.1}}
    recipe = {"name": "asked", "model": str(tiny_llama), "data": data, "baselines": {"few_shot": 2}}
    advised = RunContext(make_recipe(recipe, ["evaluate.limit=6"]), tmp_path / "evals" / "advise-asked")
    dataset = prepare_stage(advised)
    assert all(answer.loss is not None for answer in baseline_stage(advised, dataset)["zero-shot"].answers)
    job = RunContext(make_recipe(recipe, ["evaluate.limit=10", "max_minutes=30"]), tmp_path / "run")
    found = ask_within(job, dataset, 1e6, before=measured_before(job, dataset))
    assert found.rows == 10 and found.free > 0
    assert all(len(asked.completions) == 10 for asked in found.answers.values())
    assert all(answer.loss is None for asked in found.answers.values() for answer in asked.completions)
