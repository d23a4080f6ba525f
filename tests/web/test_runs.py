"""Runs: finished, half-written, damaged, running, killed; listed, filtered and compared."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from evaluations import labels_evaluation, written
from reviews import vote

from tuneloop.evaluation.review.items import append_vote, make_review, read_systems
from tuneloop.web import index, runs
from web.conftest import Site, accuracy, keys, write_run

WORKING = """
import sys, time
from tuneloop.core.files import lock_folder
with lock_folder(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "AGAIN", 0.0)


def test_runs_are_sorted_filtered_and_grouped(site: Site, tmp_path: Path) -> None:
    for i in range(12):
        write_run(tmp_path / f"run{i:02}", metrics=accuracy(0.5 + i / 100))
    client = site()
    page = client.get("/runs?sort=score&order=up").text
    assert [page.index(f">run{i:02}<") for i in range(12)] == sorted(page.index(f">run{i:02}<") for i in range(12))
    page = client.get("/runs?least=0.6&most=0.605&metric=accuracy").text
    assert ">run10<" in page and ">run11<" not in page and ">run09<" not in page
    assert "1 run of 12" in client.get("/runs?text=RUN03+better").text
    assert "No run fits" in client.get("/runs?until=2001-01-01").text
    assert client.get("/runs?sort=colour").status_code == 404 and client.get("/runs?least=much").status_code == 404


def test_runs_are_filtered_by_words_of_the_users_own(site: Site, tmp_path: Path) -> None:
    done = write_run(tmp_path / "one") / "run.json"
    done.write_text(json.dumps({**json.loads(done.read_text()), "tags": ["baseline", "<b>dora</b>"]}))
    config = write_run(tmp_path / "two", done=False) / "config.yaml"
    config.write_text(f"{config.read_text()}track: {{tags: [baseline]}}\n")
    write_run(tmp_path / "three")
    client = site()
    page = client.get("/runs?tags=baseline").text
    assert ">one<" in page and ">two<" in page and ">three<" not in page and "<b>dora" not in page
    assert "1 run of 3" in client.get("/runs?text=dora").text


def test_home_names_reviews_that_are_open_and_answers_about_which_reviewers_differ(site: Site, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    written(run, labels_evaluation(12, 0.5), {})
    review = make_review(read_systems([str(run)]), tmp_path / "asked", mode="rating", share=1.0)
    for item in review.items[:3]:
        append_vote(review.votes_path, vote(item.id, "anna", "rating", stars=5))
        append_vote(review.votes_path, vote(item.id, "ben", "rating", stars=1 if item == review.items[0] else 4))
    page = site().get("/").text
    assert f"{len(review.items) - 3} of {len(review.items)} answers open" in page
    assert f"reviewers differ about 1 of {len(review.items)} answers" in page


def test_ten_thousand_lines_come_in_pages(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = runs.RunLine("0" * 12, tmp_path, "run", "finished", 1.0, dataset="d")
    monkeypatch.setattr("tuneloop.web.pages.runs.run_lines", lambda sources: [line] * 10_000)
    page = site().get("/runs?page=200").text
    assert page.count('type="checkbox"') == 50 and "200 of 200" in page and ">Back<" in page and ">Next<" not in page


def test_a_damaged_and_a_half_written_run_are_shown_as_what_they_are(site: Site, tmp_path: Path) -> None:
    damaged = write_run(tmp_path / "damaged")
    (damaged / "run.json").write_text('{"version": 1, "mo', encoding="utf-8")
    half = write_run(tmp_path / "half", done=False)
    with (half / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('not json\n{"step": 4, "loss": 0.')
    os.utime(half / "metrics.jsonl", (1, 1))
    client = site()
    listed = client.get("/runs").text
    assert "state-damaged" in listed and "state-stopped" in listed and "can&#39;t be read" in listed
    for key in keys(listed):
        page = client.get(f"/runs/{key}")
        assert page.status_code == 200
    assert "1 line of metrics.jsonl" in "".join(client.get(f"/runs/{key}").text for key in keys(listed))


def test_a_run_that_is_deleted_while_it_is_shown_says_so(site: Site, tmp_path: Path) -> None:
    run = write_run(tmp_path / "gone", done=False)
    client = site()
    (key,) = keys(client.get("/runs").text)
    shutil.rmtree(run)
    answer = client.get(f"/runs/{key}")
    assert answer.status_code == 404 and "There is no such run any more" in answer.text


def test_curves_are_read_on_from_where_they_ended_and_again_where_the_file_was_cut_back(tmp_path: Path) -> None:
    from tuneloop.web.sources import Sources

    run = write_run(tmp_path / "run", done=False, steps=3)
    sources = Sources(index.Index((tmp_path,)))
    (found,) = sources.all("run")
    assert sorted(runs.curves(sources, found).steps) == [1, 2, 3]
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 4, "loss": 0.1}\n{"step": 4, "val_loss": 0.2}\n{"step": 5, "lo')
    kept = runs.curves(sources, found)
    assert sorted(kept.steps) == [1, 2, 3, 4] and list(kept.validations) == [4]
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 9.0}\n', encoding="utf-8")
    assert {step: line.loss for step, line in runs.curves(sources, found).steps.items()} == {1: 9.0}


@pytest.mark.process
def test_a_run_runs_while_a_process_holds_it_and_has_stopped_when_that_is_killed(site: Site, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", done=False)
    os.utime(run / "metrics.jsonl", (1, 1))
    client = site()
    assert "state-stopped" in client.get("/runs").text
    process = subprocess.Popen([sys.executable, "-c", WORKING, str(run)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    assert runs.holder(run) == process.pid
    (key,) = keys(client.get("/runs").text)
    page = client.get(f"/runs/{key}").text
    assert "Running</span>" in page and f"kill -TERM {process.pid}" in page
    process.kill()
    process.wait()
    assert runs.holder(run) is None
    assert "state-stopped" in client.get("/runs").text


def test_a_run_elsewhere_counts_as_running_while_its_file_grows(site: Site, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", done=False)
    assert "state-running" in site().get("/").text or "Running now" in site().get("/").text
    assert "state-running" in site().get("/runs").text
    old = (run / "metrics.jsonl").stat().st_mtime - 2 * runs.FRESH
    os.utime(run / "metrics.jsonl", (old, old))
    assert "state-stopped" in site().get("/runs").text


def test_runs_are_compared_with_their_paired_differences(site: Site, tmp_path: Path) -> None:
    for name, right in (("a", 0.4), ("b", 0.95)):
        written(write_run(tmp_path / name), labels_evaluation(60, right), {})
    client = site()
    first, second = keys(client.get("/runs?sort=name").text)
    page = client.get(f"/compare?run={first}&run={second}").text
    assert "runs compared" in page and "Being computed" in page and "best validation" not in page
    page = client.get(f"/compare?run={first}&run={second}&paired=yes").text
    assert re.search(r">accuracy<.*?\+0\.\d\d.*?better", page, re.S)
    assert client.get(f"/compare?run={first}").status_code == 404


def test_a_pointer_shows_values_and_a_part_of_the_steps_is_drawn_as_finely_as_it_was_trained(
    site: Site, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / name, steps=300, done=name == "a")
    client = site()
    first, second = keys(client.get("/runs?sort=name").text)
    for path in (f"/runs/{first}?", f"/runs/{second}?", f"/compare?run={first}&run={second}&"):
        whole, part = client.get(path).text, client.get(f"{path}from=200&to=240").text
        assert "step 1: " in whole and "step 202: " not in whole, "sixty columns for a pointer"
        for step in (200, 202, 240):
            assert f"<title>step {step}: " in part
        assert "step 199: " not in part and "step 241: " not in part and ">210</text>" in part
        assert client.get(f"{path}from=9000").status_code == 200, "where there is no step the form stays"
        assert "This is not a number" in client.get(f"{path}from=soon").text
