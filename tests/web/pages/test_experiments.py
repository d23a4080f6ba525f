"""Experiments on the page: started, decided and stopped by the same commands; the second of two people is warned."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from traffic import at, traffic
from web_pages import pages_of

from patience import HANG
from tuneloop.improve.experiment import command as ab
from tuneloop.improve.experiment.state import read_experiments
from tuneloop.serving.store.database import insert
from tuneloop.serving.store.store import opened, read_decisions

SETTINGS = {"model": "m", "shadow": False, "maturation_hours": 24.0, "ramp": "50,100"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with an experiment that continues, after one decision."""
    monkeypatch.setattr(ab.secrets, "token_hex", lambda size: "5a" * size)  # who meets which arm is not left to chance
    store = tmp_path / "serve"
    with opened(store, create=True):
        pass
    state = ab.start(store, "new", SETTINGS, at=at(0))
    with opened(store) as connection:
        for records in traffic(state.design, state.share, 200, 5):
            insert(connection, records)
    ab.check(store, at=at(2))
    return tmp_path


def test_its_sequence_arms_guardrails_and_decisions_are_shown(folder: Path) -> None:
    pages = pages_of(folder)
    assert "/experiments/new" in pages.get("/experiments")
    html = pages.get("/experiments/new")
    assert 'class="chart sequence' in html and "of new users" in html and "latency" in html
    assert "Continues at" in html and "requests a day" in html
    assert "There is no experiment" in pages.get("/experiments/other", 404)


def test_a_person_decides_and_stops_and_the_log_has_who(folder: Path) -> None:
    pages = pages_of(folder)
    assert "Continues at" in pages.send("/experiments/new", {"step": "decide", "seen": "1"})
    html = pages.send("/experiments/new", {"step": "stop", "seen": "2", "why": "enough"})
    assert "the champion answers all users" in html and "stopped by hand" in html
    assert read_experiments(folder / "serve")["new"].why == "enough (ann)"
    with opened(folder / "serve") as store:
        done = [event.data["sentence"] for event in read_decisions(store, where="kind = 'page.action'")]
    assert re.fullmatch(r"ann: tuneloop ab stop new --store .* --why .*", done[-1]) and "ab check" in done[0]


def test_of_two_people_the_second_one_is_warned(folder: Path) -> None:
    ann, bob = pages_of(folder), pages_of(folder, who="bob")
    ann.send("/experiments/new", {"step": "stop", "seen": "1"})
    assert "was decided upon meanwhile" in bob.send("/experiments/new", {"step": "decide", "seen": "1"}, 400)
    assert "There is no such step" in bob.send("/experiments/new", {"step": "odd", "seen": "1"}, 400)


def test_one_is_started_as_by_command_and_refused_as_by_command(folder: Path) -> None:
    pages = pages_of(folder)
    form = {"name": "next", "model": "m", "candidate": "@candidate", "effect": "0.1", "ramp": "25,50", "shadow": "yes"}
    assert "still runs" in pages.send("/experiments", form, 400)
    ab.stop(folder / "serve", "new", "")
    assert "next has begun" in pages.send("/experiments", form)
    state = read_experiments(folder / "serve")["next"]
    assert (state.design.candidate, state.design.effect, state.design.shadow) == ("m@candidate", 0.1, True)


def test_decisions_are_made_again_and_an_experiment_is_simulated_on_the_page(folder: Path) -> None:
    pages = pages_of(folder)
    for path, text in (("/experiments/new?replay=1", "made again: the same"), ("/experiments/new?plan=1", "promoted")):
        pages.get(path)
        until = time.monotonic() + HANG
        while time.monotonic() < until:
            html = pages.get(path)
            if 'http-equiv="refresh"' not in html:
                break
            time.sleep(0.05)
        assert text in html
