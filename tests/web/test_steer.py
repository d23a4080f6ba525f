"""What a page starts and ends is what the command line would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from patience import HANG
from tuneloop.agents.jobs import Job, cancel_job
from tuneloop.core.confined import CONFINED
from tuneloop.core.errors import UserError
from tuneloop.recipe import load_recipe
from tuneloop.records.record import write_record
from tuneloop.web import index, steer
from tuneloop.web.index import Found, Index
from tuneloop.web.sources import Sources
from web.conftest import Site, keys, write_run
from web.test_runs import WORKING


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The jobs that would be started."""
    jobs: list[Any] = []
    monkeypatch.setattr(steer, "start_job", lambda *job: jobs.append(job))
    monkeypatch.setattr(index, "AGAIN", 0.0)
    return jobs


@pytest.fixture
def stopped(tmp_path: Path) -> tuple[Sources, Found]:
    """A run that has stopped, with the data that it was started on."""
    (tmp_path / "in.jsonl").touch()
    run = write_run(tmp_path / "runs" / "one", done=False)
    os.utime(run / "metrics.jsonl", (1, 1))
    sources = Sources(Index((tmp_path,)), who="ana")
    return sources, sources.all("run")[0]


def test_resuming_gives_the_same_command_in_the_folder_where_the_run_was_started(
    site: Site, tmp_path: Path, started: list[Any], stopped: tuple[Sources, Found]
) -> None:
    client, (_, found) = site(), stopped
    page = client.get(f"/runs/{found.key}").text
    line = f"cd {tmp_path} &amp;&amp; tuneloop run runs/one/config.yaml output_dir=runs/one"
    assert line in page and "Resume now" in page and "Stop now" not in page
    answer = client.post(f"/runs/{found.key}", data={"action": "resume", "token": client.token})
    assert answer.status_code == 303 and answer.headers["location"].startswith(f"/runs/{found.key}?said=")
    ((folder, text, path, _),) = started
    assert (folder, path) == (found.path, tmp_path)
    assert text == ("run", "runs/one/config.yaml", "output_dir=runs/one")
    assert "ana: resume" in client.get(f"/runs/{found.key}").text


def test_a_clone_shows_its_command_before_it_starts(
    site: Site, started: list[Any], stopped: tuple[Sources, Found]
) -> None:
    client, (_, found) = site(), stopped
    form = {"action": "clone", "token": client.token, "name": "two", "changes": "train.epochs=2\n\nseed=7"}
    answer = client.post(f"/runs/{found.key}", data=form)
    page = client.get(answer.headers["location"]).text
    assert "tuneloop run runs/two/config.yaml  # with " in page and "train.epochs=2" in page and "seed=7" in page
    assert not started and not (found.path.parent / "two").exists()
    assert client.post(f"/runs/{found.key}", data={**form, "sure": "yes"}).headers["location"].startswith("/runs?said=")
    assert started[0][1] == ("run", "runs/two/config.yaml")
    recipe = load_recipe(found.path.parent / "two" / "config.yaml")
    assert (recipe.output_dir, recipe.train.epochs, recipe.seed) == ("runs/two", 2, 7)
    assert started[0][3][CONFINED]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("../two", [], "no name for a folder"),
        ("--on", [], "no name for a folder"),
        ("one", [], "a folder of this name already"),
        ("two", ["epochs"], "written as key=value"),
        ("two", ["data.sources=/etc/passwd"], "refused"),
        ("two", ["train.method=evil.py"], "Code is not run"),
    ],
)
def test_a_clone_stays_within_the_folders(
    stopped: tuple[Sources, Found], name: str, changes: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        steer.clone_command(*stopped, name, changes)


def test_a_run_whose_data_are_not_found_can_not_be_started(stopped: tuple[Sources, Found], tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").unlink()
    with pytest.raises(UserError, match="can't be seen where"):
        steer.resume_command(*stopped)


@pytest.mark.process
def test_stopping_ends_the_process_and_is_written_down(
    site: Site, started: list[Any], stopped: tuple[Sources, Found]
) -> None:
    client, (_, found) = site(), stopped
    process = subprocess.Popen([sys.executable, "-c", WORKING, str(found.path)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    assert keys(client.get("/runs").text) == [found.key]
    refused = client.post(f"/runs/{found.key}", data={"action": "resume", "token": client.token})
    assert refused.status_code == 400 and "running already" in refused.text and not started
    assert client.post(f"/runs/{found.key}", data={"action": "stop", "token": client.token}).status_code == 303
    assert process.wait(timeout=HANG) != 0
    (line,) = steer.history(found.path)
    assert (line.who, line.action, line.command) == ("ana", "stop", f"kill -TERM {process.pid}")


@pytest.mark.parametrize(
    "change",
    ['data.sources=["/outside/passwords.csv"]', "evaluate.scorers={x: 'pwn.py:f'}", "train.method='pwn.py'",
     'data.sources=["http://HOST/pwn2.py"]', "output_dir='../elsewhere'", "sources=/outside/passwords.csv"],
)  # fmt: skip
def test_quotes_and_brackets_hide_nothing_in_a_clone(stopped: tuple[Sources, Found], change: str) -> None:
    with pytest.raises(UserError):
        steer.clone_command(*stopped, "two", [change])


def test_a_run_whose_recipe_names_code_is_not_resumed_by_a_page(stopped: tuple[Sources, Found]) -> None:
    sources, found = stopped
    with (found.path / "config.yaml").open("a") as file:
        file.write("evaluate: {scorers: {x: 'pwn.py:f'}}\n")
    with pytest.raises(UserError, match="may name code"):
        steer.resume_command(sources, found)


@pytest.mark.parametrize("name", ["actions.jsonl", "job.log", "job.out"])
def test_resuming_writes_through_no_link(stopped: tuple[Sources, Found], tmp_path: Path, name: str) -> None:
    sources, found = stopped
    outside = tmp_path / "outside.txt"
    outside.write_text("keep")
    (found.path / name).symlink_to(outside)
    with pytest.raises(UserError, match="link"):
        steer.start(sources, steer.resume_command(sources, found), "resume")
    assert outside.read_text() == "keep"


def test_a_forged_job_or_lock_names_no_process_to_stop(stopped: tuple[Sources, Found]) -> None:
    sources, found = stopped
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        born = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19]
        job = Job(command=[], pid=process.pid, born=born, started="2026-01-01T00:00:00+00:00")
        write_record(found.path / Job.file, job)
        (found.path / ".lock").write_text(f"pid {process.pid}")
        with pytest.raises(UserError, match="No process"):
            steer.stop(sources, found)
        assert cancel_job(found.path).state == "stopped" and process.poll() is None
        process.kill()


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


def test_an_alias_bomb_and_linked_files_in_a_run_are_said_and_not_read(site: Site, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("the secret of another folder\n")
    for name in ("config.yaml", "samples.jsonl", "metrics.jsonl"):
        (tmp_path / "runs" / "linked").mkdir(parents=True, exist_ok=True)
        (tmp_path / "runs" / "linked" / name).symlink_to(tmp_path / "secret.txt")
    (tmp_path / "runs" / "bomb").mkdir()
    (tmp_path / "runs" / "bomb" / "config.yaml").write_text(BOMB)
    client = site()
    page = client.get("/runs")
    assert page.status_code == 200 and "more than 200,000 values" in page.text
    for key in keys(page.text):
        assert "the secret" not in client.get(f"/runs/{key}").text
