"""A run with a limit on its time: what is chosen, kept, and said about what was left out."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json, read_jsonl, read_yaml, write_json
from tuneloop.core.ui import reporting
from tuneloop.evaluation.config import EvaluateConfig
from tuneloop.pipeline import time_limit
from tuneloop.pipeline.baselines import LEAST, ask_tuned_within, expected_evaluation
from tuneloop.pipeline.context import RunContext
from tuneloop.pipeline.run import run_job
from tuneloop.pipeline.time_limit import limited
from tuneloop.pipeline.train import train_alone
from tuneloop.recipe import Recipe, make_recipe
from tuneloop.records.evaluation import BaselinesManifest
from tuneloop.records.run import TimeChoices

ROWS = 60


@pytest.fixture
def recipe(tmp_path: Path, tiny_llama: Path) -> Recipe:
    """30 training rows and 30 test rows for 7 seconds."""
    things, asked = ["order", "parcel", "lamp", "kettle", "voucher"], ["where is it", "money back please", "thank you"]
    with (tmp_path / "cases.jsonl").open("w") as file:
        for i in range(ROWS):
            text = f"Case {i * 37 % 101}: the {things[i % 5]} sent on day {i * 13 % 29}, {asked[i % 3]} {i * i}?"
            file.write(json.dumps({"text": text, "label": ["late", "refund", "praise"][i % 3]}) + "\n")
    return make_recipe(
        {
            "name": "cases", "model": str(tiny_llama), "output_dir": str(tmp_path / "run"), "max_minutes": 0.12,
            "data": {"sources": [str(tmp_path / "cases.jsonl")], "split": {"test": 0.5, "val": 0.1}},
            "train": {"epochs": 200, "rank": 4}, "evaluate": {"bootstrap": 100}, "baselines": {"classical": False},
            "track": {"report_to": "none"},
        }
    )  # fmt: skip


@pytest.mark.slow
def test_a_limited_run_asks_fewer_rows_and_trains_less_and_says_what_a_full_one_takes(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_limit, "ANSWERS", 0.0)  # a slow machine: no time for more than the first round
    said: list[str] = []
    with reporting(say=said.append):
        folder = run_job(recipe)
    asked = read_json(folder / "eval.json")["n"]
    found, trained = read_json(folder / TimeChoices.file), read_json(folder / "run.json")
    assert asked == found["test_rows"] == LEAST < found["all_test_rows"]
    assert trained["seconds"] < 1.5 * 60 * found["train_minutes"] + 5
    assert trained["total_steps"] < found["full_run"]["steps"]
    assert any(f"{asked} of {found['all_test_rows']} test rows are used" in line for line in said)
    text = " ".join(found["words"])
    assert trained["seen"] in text and "max_minutes=null" in text
    assert text.split(" ", 1)[0] == "This" and found["words"][0] in (folder / "report.html").read_text()
    config = read_yaml(folder / "config.yaml")
    assert (config["evaluate"]["limit"], config["train"]["max_minutes"]) == (asked, found["train_minutes"])

    said.clear()
    steps = read_jsonl(folder / "metrics.jsonl")
    with reporting(say=said.append):
        assert run_job(recipe) == folder
    assert sum("already done" in line for line in said) == 4, said
    assert read_jsonl(folder / "metrics.jsonl") == steps and read_json(folder / TimeChoices.file) == found


@pytest.mark.nightly
@pytest.mark.slow
def test_where_time_runs_out_all_are_compared_on_the_rows_that_the_tuned_model_was_asked(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(recipe.model_dump(), ["max_minutes=30", "train.epochs=1"])
    monkeypatch.setattr("tuneloop.pipeline.time_limit.ask_tuned_within", lambda *a: ask_tuned_within(*a[:2], 0.0))
    said: list[str] = []
    with reporting(say=said.append):
        folder = run_job(recipe)
    found, judged = read_json(folder / TimeChoices.file), read_json(folder / "eval.json")
    assert judged["n"] == found["test_rows"] == LEAST < found["all_test_rows"]
    assert set(judged["baselines"]) >= {"zero-shot", "few-shot"} and judged["comparisons"]
    baseline = read_jsonl(folder / "baselines" / "few-shot" / "samples.jsonl")
    assert [row["id"] for row in baseline] == [row["id"] for row in read_jsonl(folder / "samples.jsonl")]
    assert any(line.startswith("evaluate  time runs out") for line in said)
    assert f"{LEAST} of {found['all_test_rows']} test rows were used" in found["words"][0]

    said.clear()
    with reporting(say=said.append):
        assert run_job(recipe) == folder
    assert sum("already done" in line for line in said) == 4, said


@pytest.mark.nightly
@pytest.mark.slow
def test_where_all_fits_nothing_is_left_out(recipe: Recipe) -> None:
    folder = run_job(make_recipe(recipe.model_dump(), ["max_minutes=30", "train.epochs=1"]))
    found = read_json(folder / TimeChoices.file)
    assert found["test_rows"] == found["all_test_rows"] == read_json(folder / "eval.json")["n"]
    assert found["full_run"] is None and found["words"] == []


@pytest.mark.slow
def test_training_by_itself_gets_the_whole_time_and_a_run_goes_on_from_it(recipe: Recipe) -> None:
    folder, trained = train_alone(recipe)
    assert read_yaml(folder / "config.yaml")["train"]["max_minutes"] == 0.12
    assert trained.seconds < 30
    said: list[str] = []
    with reporting(say=said.append):
        assert run_job(recipe) == folder
    assert any(line.startswith("train     already done") for line in said)


def test_a_limit_that_cannot_be_kept_is_told_of_once_and_how_long_it_will_be(recipe: Recipe, tmp_path: Path) -> None:
    said: list[str] = []
    eight = make_recipe(recipe.model_dump(), ["max_minutes=8"])
    limit = time_limit.TimeLimit(RunContext(eight, tmp_path), eight, time.monotonic() - 120)
    with reporting(say=said.append):
        limit.expect(240.0)  # 2 and 4 minutes, and a little of training
        assert said == []
        limit.expect(600.0)
        limit.expect(900.0)
    assert len(said) == 1
    minutes = re.search(
        r"8 minutes are not enough on this machine, as (busy|slow) as it is now: .* about (\d+) minutes", said[0]
    )
    assert minutes and 12 <= int(minutes[2]) <= 16
    assert "Ctrl-C" in said[0] and "what is done is kept" in said[0]


def test_what_was_chosen_is_kept_for_the_same_recipe_alone(recipe: Recipe, tmp_path: Path) -> None:
    assert limited(recipe, tmp_path) == recipe
    chosen: dict[str, Any] = {"version": 1, "key": time_limit._key(recipe), "test_rows": 25, "train_minutes": 0.1}
    write_json(tmp_path / TimeChoices.file, chosen)
    found = limited(recipe, tmp_path)
    assert (found.evaluate.limit, found.train.max_minutes) == (25, 0.1)
    other = make_recipe(recipe.model_dump(), ["train.epochs=3"])
    assert limited(other, tmp_path) == other
    stricter = make_recipe(recipe.model_dump(), ["evaluate.limit=10"])
    assert limited(stricter, tmp_path).evaluate.limit == 10
    free = make_recipe(recipe.model_dump(), ["max_minutes=null"])
    assert limited(free, tmp_path) == free


def listed(costs: Any, seconds: float, n: int = 0) -> BaselinesManifest:
    return BaselinesManifest(systems={}, costs=costs, seconds=seconds, n=n)


def test_the_evaluation_is_expected_to_take_what_zero_shot_took() -> None:
    def cost(seconds: float, training: float = 0.0) -> dict[str, float]:
        return {"seconds": seconds, "training_seconds": training}

    costs = {
        "zero-shot": cost(10), "zero-shot calibrated": cost(11), "few-shot": cost(20), "few-shot calibrated": cost(21),
        "tf-idf": cost(1, 4),
    }  # fmt: skip
    assert expected_evaluation(listed(costs, 40.0)) == 15.0
    assert expected_evaluation(listed({}, 0.0)) == 0.0
    # 8 of 40 rows, 5 ways, of the tuned model, as fast as zero-shot: as many answers as there are rows.
    several = EvaluateConfig(consistency=5, consistency_rows=8)
    assert expected_evaluation(listed(costs, 40.0, 40), several) == 15.0 + 10.0
    assert expected_evaluation(listed(costs, 40.0, 40), EvaluateConfig()) == 15.0
    assert expected_evaluation(listed({}, 0.0), several) == 0.0


def test_a_tuned_model_is_expected_to_end_where_the_references_end() -> None:
    """Zero-shot writes 90 tokens a row, on to the limit; references have 30. Of 10 seconds, 30 read tokens take one."""
    zero = {"seconds": 10.0, "training_seconds": 0.0, "tokens": 3600, "computed_tokens": 4800}
    assert expected_evaluation(listed({"zero-shot": zero}, 14.0, 40), reference=30) == pytest.approx(4.0 + 4.0)
    assert expected_evaluation(listed({"zero-shot": zero}, 14.0, 40), reference=200) == 14.0, "never longer"
    scored = {"seconds": 10.0, "training_seconds": 0.0, "tokens": 0, "computed_tokens": 4800}
    assert expected_evaluation(listed({"zero-shot": scored}, 14.0, 40), reference=3) == 14.0, "labels are scored alike"


def test_a_machine_that_was_busy_while_zero_shot_was_asked_is_expected_to_be_as_fast_as_later() -> None:
    def costs(few_seconds: float) -> dict[str, dict[str, float]]:
        return {
            "zero-shot": {"seconds": 80.0, "training_seconds": 0.0, "tokens": 2000},
            "few-shot": {"seconds": few_seconds, "training_seconds": 0.0, "tokens": 1000},
        }

    assert expected_evaluation(listed(costs(60.0), 150.0)) == 90.0  # few-shot is slower by token, as usual
    assert expected_evaluation(listed(costs(15.0), 105.0)) == 40.0  # 30 seconds at its speed, 10 of scoring


@pytest.mark.parametrize(
    "speed, refused", [(3.0, True), (1e6, False)], ids=["a step or two in its time", "time for more"]
)
def test_a_run_that_can_come_to_nothing_is_refused_before_its_baselines_unless_anyway(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, speed: float, refused: bool
) -> None:
    def baselines(*_: Any, **__: Any) -> Any:
        raise Begun

    monkeypatch.setattr("tuneloop.training.speed.measure_speed", lambda *a, **k: speed)
    monkeypatch.setattr(time_limit, "ask_within", baselines)
    minute = make_recipe(recipe.model_dump(), ["max_minutes=1"])
    with pytest.raises(UserError if refused else Begun) as error:
        run_job(minute)
    if refused:
        assert "too little" in error.value.what
        needed = re.search(r"max_minutes=([\d.]+) or more, or add --anyway", error.value.next_step)
        assert needed and float(needed[1]) > 1
    with pytest.raises(Begun):
        run_job(minute, anyway=True)


class Begun(Exception):
    """The baselines would be measured now."""


def test_training_alone_is_refused_likewise_and_a_trial_of_seconds_is_not(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuneloop.training.speed.measure_speed", lambda *a, **k: 3.0)
    with pytest.raises(UserError, match="too little"):
        train_alone(make_recipe(recipe.model_dump(), ["max_minutes=null", "train.max_minutes=0.5"]))
    monkeypatch.setattr("tuneloop.pipeline.train.train_stage", lambda *a: (_ for _ in ()).throw(Begun()))
    with pytest.raises(Begun):
        train_alone(make_recipe(recipe.model_dump(), ["max_minutes=null", "train.max_minutes=0.1"]))
