"""The report of improvement: what a store says, in one record and one page."""

import json
import math
import re

import pytest
from traffic import at, design, request, thumb, traffic

from tuneloop.cli.main import main
from tuneloop.core.errors import UserError
from tuneloop.core.ids import uuid7
from tuneloop.improve.experiment import command as ab
from tuneloop.improve.experiment.statistics import registration_hash
from tuneloop.improve.report.command import report_of
from tuneloop.improve.report.html import render_improve_page
from tuneloop.records.record import write_record
from tuneloop.records.server import Decision
from tuneloop.serving.store.database import insert
from tuneloop.serving.store.store import connect, opened

HOSTILE = '<script>alert("x")</script>'


def event(days, kind, subject, data):
    return Decision(id=uuid7(), time=at(days), kind=kind, subject=subject, data=data)


def window(since, alarms):
    return event(since + 7, "monitor.window", "m", {
        "since": at(since), "until": at(since + 7), "requests": 70, "alarms": alarms, "summary": ["No alarm"], "quality": None,
        "detections": [{"name": name, "p": 1e-4 if name in alarms else 0.4, "level": 0.01, "alarm": name in alarms,
                        "sentence": f"{name} differs {HOSTILE}"} for name in ("inputs", "novelty")],
    })  # fmt: skip


def cycle_events():
    project = {"name": "queue", "model": "m", "recipe": "r.yaml", "usd_per_hour": 2.0}
    facts = {"days": 100, "feedback": 500, "corrections": 0, "alarms": 1}
    began = {
        "cycle": 1,
        "reasons": ["1 windows with an alarm"],
        "facts": facts,
        "project": project,
        "why": "",
        "gain_usd": None,
    }

    def step(name, hours, result):
        return {"cycle": 1, "step": name, "status": 0, "result": result, "hours": hours, "usd": 2 * hours}

    yield event(20, "improve.start", "queue", began)
    yield event(20.1, "improve.step", "queue", step("collect", 0.0, {"counts": {"sft": 120, "heldout": 9}}))
    yield event(20.2, "improve.step", "queue", step("train", 1.5, {"path": "runs/x"}))


@pytest.fixture
def store(tmp_path):
    """Two months: an experiment that is promoted, one that is rolled back, two windows and an open cycle."""
    folder = tmp_path / "serve"
    connection = connect(folder, create=True)
    for name, rates, begin in (("good", (0.8, 0.4), 0.0), ("bad", (0.05, 0.8), 30.0)):
        registered = design(name=name)
        data = {"design": registered.model_dump(mode="json"), "registration": registration_hash(registered)}
        write_record(ab.registration_file(folder, name), registered)
        begun = event(begin, "experiment.start", name, data)
        requests, said = traffic(registered, 0.5, 400, 20, rates=rates, seed=1, first=int(1000 * begin), begin=begin)
        insert(connection, [begun, *requests, *said])
        for day in range(1, 25):
            _, verdict = ab.check(folder, name, at=at(begin + day))
            if verdict.outcome != "continue":
                break
    insert(connection, [request(999_999, 62, user="z"), thumb(999_999, 62, False, user="z")])
    insert(connection, [window(7, []), window(14, ["novelty"]), *cycle_events()])
    connection.close()
    return folder


def test_the_report_counts_what_the_store_holds(store):
    found = report_of(store)
    funnel = {step.name: step.count for step in found.funnel}
    assert funnel["requests"] == 801 and funnel["with judgements"] == 801 and funnel["training rows"] == 120
    assert funnel["runs trained"] == 1 and funnel["experiments"] == 2 and funnel["versions registered"] == 0
    assert sum(p.requests for p in found.periods) == 801 and found.periods[-1].liked == 0
    assert [line.outcome for line in found.experiments] == ["promote", "roll back"]
    assert found.training_hours == 1.5 and found.training_usd == 3.0
    assert math.isclose(found.requests_usd, 0.801)
    (cycle,) = found.cycles
    assert cycle.outcome == "" and [step.step for step in cycle.steps] == ["collect", "train"]
    strengths = found.windows[1].strengths
    assert found.windows[1].alarms == ["novelty"] and strengths["novelty"] == 2.0 and strengths["inputs"] < 1


def test_points_are_the_decisions_with_their_bounds(store):
    promoted = report_of(store).experiments[0]
    assert len(promoted.points) > 1
    last = promoted.points[-1]
    assert 0 < last.low < last.difference < last.high and last.units > 30
    assert "Promoted after" in promoted.sentence


def test_the_page_shows_each_part_and_no_text_becomes_markup(store):
    page = render_improve_page(report_of(store))
    for said in ("rolled back", "promoted", "Rolled back after", "Funnel", "Ledger", "Timeline", "novelty"):
        assert said in page
    assert page.count('class="chart sequence wide"') == 2 and page.count('class="chart windows narrow"') == 1
    assert HOSTILE not in page and "&lt;script&gt;" in page
    assert not re.search(r"(?:src|href)=\"(?!#)", page)  # one file, no network


def test_the_command_writes_page_and_record(store, capsys):
    assert main(["improve", "report", str(store), "--json", "-q"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["funnel"][0]["count"] == 801
    assert (store / "improve" / "report.html").is_file() and (store / "improve" / "report.json").is_file()


def test_an_alarm_names_words_and_next_step_and_a_stopped_experiment_does_not_go_on(tmp_path):
    connect(tmp_path / "serve", create=True).close()
    assert main(["ab", "start", "new", "--model", "m", "--no-shadow", "--store", str(tmp_path / "serve")]) == 0
    assert main(["ab", "check", "new", "--store", str(tmp_path / "serve")]) == 3
    assert main(["ab", "stop", "new", "--why", "new product line", "--store", str(tmp_path / "serve")]) == 0
    alarm = window(0, ["novelty"])
    alarm.data["detections"][1] |= {"words": ["crypto"], "next_step": "look at them"}
    with opened(tmp_path / "serve") as store:
        insert(store, [alarm])
    found = report_of(tmp_path / "serve")
    assert found.experiments[0].sentence == "Stopped by hand: new product line."
    (said,) = found.windows[0].sentences
    assert "Words: crypto. Next: look at them." in said


def test_an_empty_store_gives_a_page_and_none_an_error(tmp_path, capsys):
    connect(tmp_path / "serve", create=True).close()
    assert "No request was served yet" in render_improve_page(report_of(tmp_path / "serve"))
    with pytest.raises(UserError):
        report_of(tmp_path / "nothing")
    assert main(["improve", "report", str(tmp_path / "nothing")]) == 2
