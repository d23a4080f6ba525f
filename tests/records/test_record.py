"""What all records share: how they are written, read by this version and by others, and brought to a new form."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import ValidationError

from stored import unpacked
from tuneloop.core.errors import UserError
from tuneloop.core.files import write_json
from tuneloop.records.artifact import ArtifactManifest
from tuneloop.records.evaluation import BaselinesManifest, Comparison, Estimate, EvaluationManifest, GateResult
from tuneloop.records.feedback import Feedback
from tuneloop.records.plan import Plan, PlannedCost, PlannedMemory, PlannedTime
from tuneloop.records.record import (
    JsonSteps,
    MigrationStep,
    Record,
    as_record,
    latest,
    missing,
    read_record,
    upgraded,
    write_record,
)
from tuneloop.records.request import StoredRequest, as_request
from tuneloop.records.run import Environment, Predicted, RunManifest

RUN = RunManifest(
    id="r1",
    model="smollm2-135m",
    steps=3,
    predicted=Predicted(minutes=1.5, low=1, high=2, peak_gib=1),
    adapter="adapter",
)
PLAN = Plan(
    model="m", method="lora", gpu="cpu", gpus=0, fits=True, memory=PlannedMemory(peak_gib=1, capacity_gib=2),
    time=PlannedTime(hours=1, low=0.5, high=2), cost=PlannedCost(usd=0.1),
)  # fmt: skip
EVALUATION = EvaluationManifest(
    n=4, metrics={"accuracy": Estimate(0.5, 0.2, 0.8), "perplexity": Estimate(3.0, math.nan, math.nan)},
    baselines={"zero-shot": {"accuracy": Estimate(0.25, 0.1, 0.5)}},
    comparisons=[Comparison("zero-shot", "tuned", "accuracy", 0.25, 0.0, 0.5, 0.06, "not enough evidence", "McNemar")],
)  # fmt: skip
REQUEST = StoredRequest(
    id="0198c2f0-0000-7000-8000-000000000001", time="2026-01-02T03:04:05Z", model="llama", adapter="abc", arm="b",
    propensity=0.5, user="u1", prompt=[{"role": "user", "content": "Where is it?"}], completion="On its way.",
    prompt_tokens=5, completion_tokens=4, ttft_ms=12.5, total_ms=80.0, finish="stop", tier="default", usd=0.0001,
)  # fmt: skip
FEEDBACK = Feedback(id="f1", request=REQUEST.id, kind="thumbs", value=False, time="2026-01-02T03:05:00Z", key="k")
RECORDS: list[Record] = [
    RUN, PLAN, EVALUATION, FEEDBACK, GateResult(status="fail"), Environment(tuneloop="0.1.0"),
    BaselinesManifest(systems={"zero-shot": "zero-shot"}),
    ArtifactManifest.model_validate(
        {"id": "a", "format": "merged", "run": {"id": "r1"}, "base": {"model": "m"}, "files": {"x": {"bytes": 1, "sha256": "0"}}}
    ),
]  # fmt: skip
EACH = pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)


@EACH
def test_what_is_written_is_read_again(record: Record, tmp_path: Path) -> None:
    path = tmp_path / record.file
    write_record(path, record)
    found = read_record(type(record), path)
    assert found.to_json() == record.to_json() == json.loads(path.read_text())
    assert next(iter(json.loads(path.read_text()))) == "version"
    assert read_record(type(record), tmp_path).to_json() == found.to_json()  # the folder stands for its file


@EACH
def test_an_unknown_key_is_kept_when_read_and_refused_when_made(record: Record) -> None:
    value = record.to_json() | {"of_a_later_version": {"x": 1}}
    assert as_record(type(record), value, "file").to_json() == value
    with pytest.raises(ValidationError):
        type(record).model_validate(value)


@EACH
@pytest.mark.parametrize("text", ["", "{", "[]", "5", "null", '"text"', "{}", '{"version": 99}', '{"version": true}'])
def test_a_damaged_or_foreign_file_is_refused_in_words(record: Record, text: str, tmp_path: Path) -> None:
    path = tmp_path / record.file
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_record(type(record), path)
    assert caught.value.where == str(path) and caught.value.next_step and "\n" not in caught.value.what


@EACH
def test_a_file_that_was_cut_is_refused(record: Record, tmp_path: Path) -> None:
    path = tmp_path / record.file
    write_record(path, record)
    path.write_text(path.read_text()[: len(path.read_text()) // 2])
    with pytest.raises(UserError, match="Not valid JSON"):
        read_record(type(record), path)


@pytest.mark.parametrize(
    ("record", "key", "value", "named"),
    [
        (RUN, "steps", "many", "steps: "), (RUN, "predicted", {"minutes": 1}, "predicted.low is missing"),
        (PLAN, "memory", [], "memory: "), (EVALUATION, "metrics", {"accuracy": 0.5}, "metrics.accuracy: "),
        (EVALUATION, "comparisons", [{}], "comparisons.0.a is missing"), (EVALUATION, "n", None, "n: "),
        (FEEDBACK, "conversation", "c1", "one of them"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named(record: Record, key: str, value: Any, named: str) -> None:
    with pytest.raises(UserError) as caught:
        as_record(type(record), record.to_json() | {key: value}, "file.json")
    assert named in caught.value.what


def test_a_stored_request_is_checked_where_it_comes_from_a_file() -> None:
    value = {"version": 1, **asdict(REQUEST)}
    assert as_request(value, "file") == REQUEST == as_request({**value, "of_a_later_version": 1}, "file")
    odd = {"role": "user", "content": "Hi", "of_another_program": [1]}
    assert as_request({**value, "prompt": [odd]}, "file").prompt == [odd]
    for wrong, named in (
        ({**value, "version": 2}, "of version 2"), (asdict(REQUEST), "no version"), ([], "no JSON object"),
        ({**value, "prompt_tokens": "many"}, "prompt_tokens: "), ({"version": 1, "id": "a"}, "is missing"),
    ):  # fmt: skip
        with pytest.raises(UserError) as caught:
            as_request(wrong, "file")
        assert named in caught.value.what and caught.value.where == "file"


def test_keys_that_are_missing_have_defaults() -> None:
    found = as_record(EvaluationManifest, {"version": 1, "n": 2, "metrics": {}}, "eval.json")
    assert (found.name, found.split, found.comparisons) == ("tuned", "test", [])


def test_a_bound_that_is_no_number_is_null_in_the_file_and_nan_in_the_record() -> None:
    value = EVALUATION.to_json()
    assert value["metrics"]["perplexity"] == {"value": 3.0, "low": None, "high": None}
    found = as_record(EvaluationManifest, value, "eval.json")
    assert math.isnan(found.metrics["perplexity"].low) and math.isnan(found.comparisons[0].p_holm)


def test_a_run_says_where_its_result_is() -> None:
    assert RUN.result == "adapter" and RunManifest(model="m", weights="model").result == "model"


class LaterRun(Record, noun="a run", file="run.json", again="train again"):
    """A run as two later versions have it, which no release has: a field more, then one with another name."""

    migrations: ClassVar[JsonSteps] = (
        MigrationStep(2, "who trained it", lambda value: {**value, "author": "unknown"}),
        MigrationStep(
            3,
            "steps are updates",
            lambda value: {**{k: v for k, v in value.items() if k != "steps"}, "updates": value["steps"]},
        ),
    )

    id: str
    model: str
    updates: int
    author: str


def test_a_run_of_the_first_version_is_read_and_written_by_later_ones(tmp_path: Path) -> None:
    folder = unpacked(tmp_path / "kept") / "run"
    before = (folder / "run.json").read_bytes()
    run = read_record(LaterRun, folder)
    assert (run.id, run.model, run.updates, run.author) == ("run", "smollm2-135m", 3, "unknown")
    assert (folder / "run.json").read_bytes() == before, "who reads changes no file"
    write_record(folder / "run.json", run)
    written = json.loads((folder / "run.json").read_text())
    assert written["version"] == 3 and written["updates"] == 3 and written["rows"] == 20 and "steps" not in written
    assert read_record(LaterRun, folder).to_json() == run.to_json()
    with pytest.raises(UserError, match="A newer tuneloop wrote a run: it is of version 3, and this one reads 1"):
        read_record(RunManifest, folder)
    write_json(folder / "run.json", {"version": 2, "id": "run", "model": "m", "steps": 7, "author": "anna"})
    assert read_record(LaterRun, folder).updates == 7


def test_what_the_first_version_stored_is_read(tmp_path: Path) -> None:
    folder = unpacked(tmp_path / "kept")
    assert read_record(RunManifest, folder / "run").steps == 3
    assert read_record(EvaluationManifest, folder / "run").metrics["accuracy"].value == 0.75


def renamed(value: dict[str, Any]) -> dict[str, Any]:
    rest = dict(value)
    return {"rows": rest.pop("n"), **rest}


STEPS: JsonSteps = (
    MigrationStep(2, "n is called rows", renamed),
    MigrationStep(3, "rows by split", lambda value: {**value, "rows": {"test": value["rows"]}}),
)


def test_each_form_takes_the_steps_that_it_lacks() -> None:
    newest = {"version": 3, "rows": {"test": 5}, "name": "x"}
    assert upgraded({"n": 5, "name": "x"}, STEPS, "a thing", "file") == newest, "without a number it is the first form"
    assert upgraded({"version": 1, "n": 5, "name": "x"}, STEPS, "a thing", "file") == newest
    assert upgraded({"version": 2, "rows": 5, "name": "x"}, STEPS, "a thing", "file") == newest
    assert upgraded(newest, STEPS, "a thing", "file") == newest


def test_the_steps_change_no_value_of_the_caller() -> None:
    before = {"version": 1, "n": 5}
    upgraded(before, STEPS, "a thing", "file")
    assert before == {"version": 1, "n": 5}


def test_a_newer_form_is_refused_with_what_to_do() -> None:
    with pytest.raises(
        UserError, match="A newer tuneloop wrote a thing: it is of version 4, and this one reads 3"
    ) as refusal:
        upgraded({"version": 4}, STEPS, "a thing", "file")
    assert refusal.value.where == "file" and "--upgrade" in refusal.value.next_step


def test_a_list_with_a_gap_is_a_fault_of_ours() -> None:
    with pytest.raises(ValueError, match="no step leads from version 1 to 3"):
        missing(STEPS[1:], 1, "a thing", "file")
    assert missing(STEPS[1:], 2, "a thing", "file") == [STEPS[1]]
    assert latest(()) == 1 and latest(STEPS) == 3
