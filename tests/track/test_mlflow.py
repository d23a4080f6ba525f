"""MLflow has the whole run: interrupted, continued or killed, and no server that is down disturbs it."""

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
from tracked_run import RECIPE, add_steps, finish_run, needs_mlflow, write

from patience import HANG, slowness
from tuneloop import track
from tuneloop.track import follow


def rows(project: Path, query: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(project / "mlflow.db") as database:
        return database.execute(query).fetchall()


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
def test_a_run_that_is_interrupted_and_continued_is_one_whole_mlflow_run(project: Path) -> None:
    run, warnings = project / "runs/tickets-1", list[str]()
    add_steps(run, 1, 20)
    recipe = RECIPE | {"track": RECIPE.get("track", {}) | {"tags": ["baseline", "week 48"]}}
    first = track.start_tracking(recipe, run, warn=warnings.append)
    first.finish("KILLED", timeout=HANG)
    assert rows(project, "select status from runs") == [("KILLED",)]

    # The resumed run goes back to its checkpoint at step 10 and repeats ten steps.
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:10]))
    add_steps(run, 11, 30)
    finish_run(run)
    second = track.start_tracking(recipe, run, warn=warnings.append)
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
    assert tags["baseline"] == tags["week 48"] == "true"
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


def test_without_mlflow_the_run_goes_on_with_one_warning(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    warnings = list[str]()
    tracker = track.start_tracking(RECIPE, project / "runs/tickets-1", warn=warnings.append)
    tracker.finish()
    assert len(warnings) == 1 and "pip install" in warnings[0]
    assert not (project / "mlflow.db").exists()


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
    state = {**follow.make_follower(settings).state.to_json(), "run_id": "abc"}
    write(run / "tracking.json", state)
    evaluated = {**RECIPE, "evaluate": {"limit": 5}}
    retrained = {**RECIPE, "seed": 1}
    assert follow.make_follower({**settings, "config": evaluated}).state.run_id == "abc"
    assert follow.make_follower({**settings, "config": retrained}).state.run_id is None
    assert follow.make_follower({**settings, "uri": "http://elsewhere"}).state.run_id is None
    (run / "tracking.json").write_text("{damaged")
    assert follow.make_follower(settings).state.run_id is None


def test_importing_the_tracker_loads_no_mlflow() -> None:
    env = {**os.environ, "PYTHONPATH": str(Path(track.__file__).parents[2])}
    code = "import sys, tuneloop.track; print([m for m in ('mlflow', 'pandas', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
