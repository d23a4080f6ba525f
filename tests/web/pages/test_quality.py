"""Quality: windows, alarms with words and requests, accuracy; a change that is expected raises no alarm."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from traffic import at, request
from web_pages import pages_of

from tuneloop.core.files import plain
from tuneloop.improve.experiment.state import add_event
from tuneloop.improve.monitor.command import EVENT, ignored
from tuneloop.improve.monitor.record import Detection, MonitorReport, QualityEstimate
from tuneloop.serving.store.database import insert
from tuneloop.serving.store.store import opened


def report(week: int, alarm: bool) -> MonitorReport:
    found = Detection(
        name="inputs", compared_with="reference", p=1e-6 if alarm else 0.5, level=0.01, size=0.4, unit="distance", alarm=alarm,
        rows=[100, 90], sentence="inputs differ", next_step="collect them", words=["crypto", "<wallet>"], requests=["r000001"],
    )  # fmt: skip
    quality = QualityEstimate(estimated=0.9 - week / 50, low=0.8, high=0.95, before=0.9, judged=20)
    return MonitorReport(
        model="m", since=at(7 * week), until=at(7 * week + 7), requests=140, compared=120, false_alarms_per_year=2, detections=[found],
        skipped={}, quality=quality, alarms=["inputs"] if alarm else [], summary=["inputs: no change"],
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six windows, the last with an alarm, and one that another version wrote."""
    with opened(tmp_path / "serve", create=True) as store:
        insert(store, [request(1, 1)])
        add_event(store, EVENT, "m", {"model": "m", "of": "another version"})
        for week in range(6):
            add_event(store, EVENT, "m", plain(report(week, week == 5)), at=at(7 * week + 7))
    return tmp_path


def test_windows_accuracy_and_what_is_behind_an_alarm(folder: Path) -> None:
    html = pages_of(folder).get("/quality")
    assert (
        'class="chart windows' in html and 'class="chart accuracy' in html and "6 windows, 5 without an alarm" in html
    )
    assert (
        "inputs differ" in html and re.search(r"/traffic/r000001.{,40}>question 1</a>", html) and "text=crypto" in html
    )
    assert "&lt;wallet&gt;" in html and "<wallet>" not in html


def test_an_alarm_needs_a_person_at_home(folder: Path) -> None:
    assert "m: alarm of inputs" in pages_of(folder).get("/")


def test_a_change_that_is_expected_is_noted_with_who_said_so(folder: Path) -> None:
    pages = pages_of(folder)
    form: dict[str, Any] = {"model": "m", "detector": "inputs", "until": "2031-01-01", "why": "a new product"}
    assert "raises no alarm until 2031-01-01" in pages.send("/quality", form)
    with opened(folder / "serve") as store:
        assert ignored(store, "m", at(50)) == {"inputs": "2031-01-01T00:00:00.000Z"}
    for wrong in ({"detector": "odd"}, {"until": "soon"}, {"until": "7d"}, {"model": ""}):
        pages.send("/quality", {**form, **wrong}, 400)


def test_without_windows_the_page_says_how_to_get_one(tmp_path: Path) -> None:
    with opened(tmp_path / "serve", create=True):
        pass
    assert "tuneloop monitor" in pages_of(tmp_path).get("/quality")
