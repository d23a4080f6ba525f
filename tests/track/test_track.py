"""Tracking: trackers get the whole run, a continued run stays one, and what fails there never reaches the training."""

from __future__ import annotations

import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from patience import HANG, slowness
from tuneloop import track
from tuneloop.track import follow

needs_mlflow = pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed")
RECIPE: dict[str, Any] = {
    "name": "tickets",
    "model": "smollm2-135m",
    "seed": 0,
    "train": {"learning_rate": 5e-4, "targets": ["q_proj", "v_proj"], "max_minutes": None},
    "data": {"instruction": "x" * 2000},
    "track": {"report_to": ["mlflow"], "experiment": "tuneloop"},
}


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def add_steps(run: Path, first: int, last: int) -> None:
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        for step in range(first, last + 1):
            file.write(
                json.dumps({"step": step, "loss": 3.0 / step, "tokens_per_second": 300.0, "grad_norm": None}) + "\n"
            )
        file.write(json.dumps({"step": last, "val_loss": 2.0 / last, "best": True, "seconds": 1.0}) + "\n")


def finish_run(run: Path) -> None:
    write(
        run / "environment.json", {"version": 1, "python": "3.11", "git_commit": "c" * 40, "packages": {"torch": "2"}}
    )
    write(
        run / "dataset/dataset.json",
        {
            "id": "tickets-0123456789ab",
            "hash": "0123456789ab" * 5 + "0123",
            "task": "generation",
            "splits": {"train": {"path": "train.jsonl", "rows": 9}},
        },
    )
    write(run / "run.json", {"seconds": 90.0, "peak_memory_gib": 1.5, "usd": 0.01, "stopped": "early"})
    write(
        run / "eval.json",
        {
            "split": "test",
            "metrics": {"accuracy": {"value": 0.9, "low": 0.8, "high": 0.95}, "pass@1": 0.5},
            "words": ["Better."],
            "baselines": {"tf-idf + logistic regression": {"accuracy": {"value": 0.7}, "pass@1": {"value": 0.1}}},
            "comparisons": [
                {"a": "tf-idf + logistic regression", "b": "tuned", "metric": "accuracy", "delta": 0.2, "p": 0.01},
                {"a": "tf-idf + logistic regression", "b": "tuned", "metric": "pass@1", "delta": 0.4, "p": 0.01},
            ],
        },
    )
    (run / "samples.jsonl").write_text(
        json.dumps({"id": "a", "prompt": "p", "reference": "r", "prediction": "t", "baselines": {"few-shot": "f"}})
        + "\n"
    )
    (run / "report.html").write_text("<!doctype html>")
    write(run / "adapter/adapter_config.json", {"r": 16})


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project folder as the current one, with a run folder in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "runs/tickets-1").mkdir(parents=True)
    return tmp_path


def rows(project: Path, query: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(project / "mlflow.db") as database:
        return database.execute(query).fetchall()


@needs_mlflow
def test_a_run_that_is_interrupted_and_continued_is_one_whole_mlflow_run(project: Path) -> None:
    run, warnings = project / "runs/tickets-1", list[str]()
    add_steps(run, 1, 20)
    first = track.start_tracking(RECIPE, run, warn=warnings.append)
    first.finish("KILLED", timeout=HANG)
    assert rows(project, "select status from runs") == [("KILLED",)]

    # The resumed run goes back to its checkpoint at step 10 and repeats ten steps.
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:10]))
    add_steps(run, 11, 30)
    finish_run(run)
    second = track.start_tracking(RECIPE, run, warn=warnings.append)
    second.finish(timeout=HANG)

    assert warnings == []
    assert rows(project, "select status, name from runs") == [("FINISHED", "tickets-1")]
    assert rows(project, "select step from metrics where key = 'train/loss' order by step") == [
        (s,) for s in range(1, 31)
    ]
    assert rows(project, "select step, value from metrics where key = 'val/loss' order by step") == [
        (20, 0.1),
        (30, pytest.approx(2 / 30)),
    ]
    params = dict(rows(project, "select key, value from params"))
    assert params["train.learning_rate"] == "0.0005" and params["train.targets"] == '["q_proj", "v_proj"]'
    assert len(params["data.instruction"]) == follow.LONGEST_PARAM and "train.max_minutes" not in params
    latest = dict(rows(project, "select key, value from latest_metrics"))
    assert (
        latest["test/accuracy"] == 0.9
        and latest["test/pass_1"] == 0.5
        and latest["baselines accuracy/tf-idf _ logistic regression"] == 0.7
        and latest["gain in accuracy/over tf-idf _ logistic regression"] == 0.2
    )
    assert sum("tf-idf" in name for name in latest) == 2, "a baseline's other metrics are in the table alone"
    assert latest["usage/minutes"] == 1.5
    tags = dict(rows(project, "select key, value from tags"))
    assert tags["mlflow.source.git.commit"] == "c" * 40 and tags["mlflow.note.content"] == "Better."
    assert rows(project, "select name, digest from datasets") == [("tickets-0123456789ab", "0123456789ab" * 3)]
    artifacts = next((project / "mlartifacts/tuneloop").glob("*/artifacts"))
    names = {str(p.relative_to(artifacts)) for p in artifacts.rglob("*") if p.is_file()}
    assert {
        "report.html",
        "eval.json",
        "comparison.json",
        "samples.json",
        "adapter/adapter_config.json",
        "dataset/dataset.json",
    } <= names
    table = json.loads((artifacts / "comparison.json").read_text())
    assert table["data"][0][:4] == ["tf-idf + logistic regression", 0.7, 0.1, 0.01]
    assert table["data"][1] == ["tuned", 0.9, 0.5, None, "0.8 to 0.95", ""]


@needs_mlflow
def test_steps_appear_while_the_run_goes_on_and_a_killed_run_is_closed(project: Path) -> None:
    run = project / "runs/tickets-1"
    add_steps(run, 1, 5)
    script = (
        "import sys, time, json; from pathlib import Path; from tuneloop.track import start_tracking\n"
        "t = start_tracking(json.loads(sys.argv[1]), Path(sys.argv[2]), poll_seconds=0.2)\ntime.sleep(600)"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(track.__file__).parents[2])}
    parent = subprocess.Popen([sys.executable, "-c", script, json.dumps(RECIPE), str(run)], env=env)
    try:
        wait_for(
            lambda: (
                (project / "mlflow.db").exists()
                and (run / "tracking.json").exists()
                and rows(project, "select count(*) from metrics where key = 'train/loss'") == [(5,)]
            )
        )
    finally:
        parent.kill()
        parent.wait()
    wait_for(lambda: rows(project, "select status from runs") == [("KILLED",)])


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if condition():
                return
        except sqlite3.OperationalError:  # the tables are being made
            pass
        time.sleep(0.2)
    raise AssertionError("did not happen in time")


@needs_mlflow
@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:////proc/no/mlflow.db", "nonsense://x"])
def test_a_tracker_that_is_down_costs_one_warning_and_no_time(
    project: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    run, warnings = project / "runs/tickets-1", list[str]()
    started = time.monotonic()
    tracker = track.start_tracking(RECIPE, run, warn=warnings.append, poll_seconds=0.1)
    assert time.monotonic() - started < 1.0 * slowness()
    add_steps(run, 1, 3)
    tracker.finish(timeout=HANG)
    tracker.finish(timeout=HANG)
    assert len(warnings) == 1 and "MLflow" in warnings[0] and "\n" not in warnings[0]


def test_a_follower_that_hangs_is_left_behind(project: Path) -> None:
    warnings = list[str]()
    process = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    started = time.monotonic()
    track.Tracking([track.Tracker(process, warnings.append)]).finish(timeout=0.5)
    assert time.monotonic() - started < 5 * slowness() and process.poll() is not None
    assert len(warnings) == 1


def test_a_follower_that_crashes_costs_one_warning(project: Path) -> None:
    warnings = list[str]()
    process = subprocess.Popen(
        [sys.executable, "-c", "raise SystemExit(3)"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    track.Tracking([track.Tracker(process, warnings.append)]).finish(timeout=HANG)
    assert len(warnings) == 1 and "status 3" in warnings[0]


def test_without_mlflow_the_run_goes_on_with_one_warning(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    warnings = list[str]()
    tracker = track.start_tracking(RECIPE, project / "runs/tickets-1", warn=warnings.append)
    tracker.finish()
    assert len(warnings) == 1 and "pip install" in warnings[0]
    assert not (project / "mlflow.db").exists()


def test_report_to_none_starts_nothing(project: Path) -> None:
    tracker = track.start_tracking(
        {**RECIPE, "track": {"report_to": ["none"]}}, project / "runs/tickets-1", warn=pytest.fail
    )
    assert not tracker.trackers
    tracker.finish()


def test_telemetry_is_off_and_a_dead_server_is_given_up_soon_unless_the_user_says_otherwise(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def refuse(command: list[str], **options: Any) -> None:
        seen.update(options["env"])
        raise OSError("no more processes")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    for name in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
        monkeypatch.delenv(name, raising=False)
    warnings = list[str]()
    track.start_tracking(RECIPE, project / "runs/tickets-1", warn=warnings.append).finish()
    assert seen["MLFLOW_DISABLE_TELEMETRY"] == "true" and seen["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"
    assert seen["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert len(warnings) == 1 and "no more processes" in warnings[0]


def test_another_training_in_the_same_folder_is_another_mlflow_run_and_another_evaluation_is_not(project: Path) -> None:
    run = project / "runs/tickets-1"
    settings = {"run": str(run), "config": RECIPE, "experiment": "tuneloop", "uri": "", "started": 0}
    state = {**follow.make_follower(settings).state, "run_id": "abc"}
    write(run / "tracking.json", state)
    evaluated = {**RECIPE, "evaluate": {"limit": 5}}
    retrained = {**RECIPE, "seed": 1}
    assert follow.make_follower({**settings, "config": evaluated}).state["run_id"] == "abc"
    assert "run_id" not in follow.make_follower({**settings, "config": retrained}).state
    assert "run_id" not in follow.make_follower({**settings, "uri": "http://elsewhere"}).state
    (run / "tracking.json").write_text("{damaged")
    assert "run_id" not in follow.make_follower(settings).state


def test_importing_the_tracker_loads_no_mlflow() -> None:
    env = {**os.environ, "PYTHONPATH": str(Path(track.__file__).parents[2])}
    code = "import sys, tuneloop.track; print([m for m in ('mlflow', 'pandas', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- TensorBoard and Weights & Biases


def with_trackers(*names: str) -> dict[str, Any]:
    return {**RECIPE, "track": {"report_to": list(names), "experiment": "tuneloop"}}


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard would show: the points of all event files of a folder, by name."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(folder.iterdir()):
        data, at = file.read_bytes(), 0
        while at < len(data):  # TFRecord: length, its checksum, the event, its checksum
            length = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += length + 16
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


@pytest.mark.skipif(importlib.util.find_spec("tensorboardX") is None, reason="tensorboardX is not installed")
def test_tensorboard_has_every_step_of_a_continued_run_once_and_the_scores(project: Path) -> None:
    run, warnings = project / "runs/tickets-1", list[str]()
    add_steps(run, 1, 20)
    track.start_tracking(with_trackers("tensorboard"), run, warn=warnings.append).finish("KILLED", timeout=HANG)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:10]))
    add_steps(run, 11, 30)
    finish_run(run)
    track.start_tracking(with_trackers("tensorboard"), run, warn=warnings.append).finish(timeout=HANG)
    shown = scalars(run / "tensorboard")
    assert warnings == []
    assert [step for step, _ in shown["train/loss"]] == list(range(1, 31))
    assert shown["val/loss"] == [(20, pytest.approx(0.1)), (30, pytest.approx(2 / 30))]
    assert shown["test/accuracy"] == [(0, pytest.approx(0.9))] and shown["usage/minutes"] == [(0, 1.5)]


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_takes_a_run_offline(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    run, warnings = project / "runs/tickets-1", list[str]()
    add_steps(run, 1, 20)
    finish_run(run)
    track.start_tracking(with_trackers("wandb"), run, warn=warnings.append).finish(timeout=HANG)
    assert warnings == []
    (log,) = project.glob("wandb/offline-run-*/*.wandb")
    text = log.read_bytes()
    for name in (b"train/loss", b"val/loss", b"test/accuracy", b"usage/minutes", b"train.learning_rate"):
        assert name in text


@needs_mlflow
def test_a_tracker_that_fails_leaves_the_others_alone(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else find(name))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://x")
    run, warnings = project / "runs/tickets-1", list[str]()
    add_steps(run, 1, 5)
    track.start_tracking(with_trackers("mlflow", "tensorboard", "wandb"), run, warn=warnings.append).finish(
        timeout=HANG
    )
    assert len(warnings) == 2
    assert "Weights & Biases is not installed" in warnings[0] and "MLflow could not be written" in warnings[1]
    assert len(scalars(run / "tensorboard")["train/loss"]) == 5


def test_figures_that_fail_to_be_written_are_tried_again(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tuneloop.track import tensorboard

    run, seen = project / "runs/tickets-1", list[int]()
    settings = {"to": "tensorboard", "run": str(run), "config": RECIPE, "experiment": "e", "uri": "", "started": 0}
    follower = follow.make_follower(settings)
    add_steps(run, 1, 5)
    monkeypatch.setattr(tensorboard, "open_run", lambda follower: None)
    monkeypatch.setattr(tensorboard, "log_points", lambda follower, points: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        follow.sync(follower)
    monkeypatch.setattr(tensorboard, "log_points", lambda follower, points: seen.extend(p.step for p in points))
    follow.sync(follower)
    assert sorted(set(seen)) == [1, 2, 3, 4, 5]
    follow.sync(follower)
    assert len(seen) == 12, "two figures a step and two of the validation, once each"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("mlflow", ["mlflow"]), ("none", ["none"]), ("[]", ["none"]), ("tensorboard,wandb", ["tensorboard", "wandb"]),
     ("[mlflow, mlflow]", ["mlflow"])],
)  # fmt: skip
def test_report_to_takes_a_word_or_a_list(given: str, wanted: list[str]) -> None:
    from tuneloop.workflows.recipe import make_recipe

    assert make_recipe({}, [f"report_to={given}"]).track.report_to == wanted
