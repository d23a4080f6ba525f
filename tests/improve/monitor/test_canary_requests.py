"""Canary prompts go to a server's engine or to any target, are stored as requests of no one, and reported."""

import asyncio
import json
from types import SimpleNamespace

import pytest
from live_server import StubEngine
from traffic import request

from tuneloop.cli.main import main
from tuneloop.core.errors import UserError
from tuneloop.core.ids import utc_now
from tuneloop.data.checks.drift import compare_with
from tuneloop.data.dataset import load_dataset
from tuneloop.improve.collect.command import collect_store
from tuneloop.improve.monitor import canaries as w
from tuneloop.improve.monitor.canaries import FIRST_ROUNDS, canary_level
from tuneloop.serving.admission import Admission
from tuneloop.serving.gateway import ServedModel
from tuneloop.serving.store.database import insert
from tuneloop.serving.store.store import connect, opened, read_decisions, read_requests
from tuneloop.serving.store.writer import StoreWriter

LEVEL = canary_level(2.0, 1.0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rows = [{"prompt": f"what is the number after {i}", "completion": f"it is {i + 1}"} for i in range(120)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = [str(folder / "rows.jsonl"), "-o", str(folder / "set"), "-q", "duplicates.near=false"]
    assert main(["prepare", *text]) == 0
    return load_dataset(folder / "set")


def asked(path, rows, *, text=("it is", " so"), adapter="base", release="1", rounds=1, engine=None):
    """Rounds by a server's gateway, and what the last one shows."""

    async def ask():
        store = StoreWriter(path, "full")
        store.start()
        models = {"m": ServedModel("m", adapter=adapter, release=release)}
        gateway = SimpleNamespace(
            engine=engine or StubEngine(text), models=models, admission=Admission(4, 10, True), store=store
        )
        try:
            for _ in range(rounds):
                await w.ask_gateway(gateway, "m", rows)
        finally:
            await asyncio.to_thread(store.stop)

    asyncio.run(ask())
    return w.check_last(path, "m", rows, LEVEL)


def test_a_server_asks_when_it_is_due_and_an_unexplained_change_is_an_alarm(tmp_path, dataset):
    rows = w.rows_of(dataset, 10)
    assert len(rows) == 10 and {row.id for row in rows} <= {row.id for row in dataset.test}
    connect(tmp_path, create=True).close()
    assert w.rounds_due(tmp_path, "m", (None, "1"), 1.0) == FIRST_ROUNDS
    assert not asked(tmp_path, rows, rounds=FIRST_ROUNDS).alarm
    assert w.rounds_due(tmp_path, "m", (None, "1"), 1.0) == 0
    assert w.rounds_due(tmp_path, "m", (None, "2"), 1.0) == 1  # another release
    assert w.rounds_due(tmp_path, "m", (None, "1"), 1.0, now="2999-01-01T00:00:00Z") == 1
    found = asked(tmp_path, rows, text=("it was",))
    assert found.alarm and len(found.changed) == 10 and found.changed[0].now == "it was"
    with opened(tmp_path) as store:
        events = list(read_decisions(store, where="kind = 'monitor.canaries'"))
        assert [event.data["alarm"] for event in events] == [False, True]
        assert "it was" not in json.dumps(events[-1].data)
        assert not list(read_requests(store))  # no count of traffic has them
    with pytest.raises(UserError, match="No request of 0"):
        collect_store(tmp_path, tmp_path / "out", {})


def test_a_model_that_is_swapped_away_in_the_middle_ends_the_round(tmp_path, dataset):
    class Swapped(StubEngine):
        async def stream(self, request):
            gateway.engine = StubEngine()
            async for update in super().stream(request):
                yield update

    gateway = SimpleNamespace(engine=Swapped(), models={"m": ServedModel("m")}, admission=Admission(4, 10, True))
    store = StoreWriter(tmp_path, "full")
    store.start()
    gateway.store = store
    with pytest.raises(UserError, match="Another engine"):
        asyncio.run(w.ask_gateway(gateway, "m", w.rows_of(dataset, 5)))
    store.stop()


def test_the_report_of_a_window_has_them(tmp_path, dataset, capsys, monkeypatch):
    from tuneloop.improve.monitor import command as monitor

    monkeypatch.setattr(
        monitor, "helpers", lambda: monitor.Helpers(None, None, lambda before, now: compare_with(before, now).words_b)
    )
    rows = w.rows_of(dataset, 10)
    asked(tmp_path, rows, rounds=FIRST_ROUNDS)
    with opened(tmp_path) as store:
        insert(store, [request(i, 0, time=utc_now()) for i in range(5)])
    text = ["monitor", str(tmp_path), "--reference", dataset.path, "--canaries", "10"]
    assert main(text) == 0
    assert f"sent {FIRST_ROUNDS} times, all answered as before" in capsys.readouterr().out
    asked(tmp_path, rows, text=("it was",))
    assert main([*text, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["alarms"] == ["canaries"] and report["canary_rounds"] == FIRST_ROUNDS + 1
    assert any("what is the number after" in line and "'it was'" in line for line in report["summary"])
    with opened(tmp_path) as store:
        event = list(read_decisions(store, where="kind = 'monitor.window'"))[-1]
    assert "it was" not in json.dumps(event.data) and event.data["alarms"] == ["canaries"]


class Echo:
    """A target that answers by a rule."""

    identity, scores_labels, task = "echo", False, None

    def __init__(self, text):
        self.target, self.text = self, text

    def complete(self, requests, *, task):
        from tuneloop.records.completion import Completion

        return [Completion(self.text) for _ in requests]


def test_any_target_can_be_asked(tmp_path, dataset):
    from tuneloop.improve.monitor.command import monitor_store

    connect(tmp_path, create=True).close()
    settings = {"model": "m", "canaries": 10}
    first = monitor_store(tmp_path, dataset.path, settings, ask=Echo("a"))
    assert first.canary_rounds == FIRST_ROUNDS and not first.alarms
    assert monitor_store(tmp_path, dataset.path, settings, ask=Echo("a")).canary_rounds == FIRST_ROUNDS + 1
    assert monitor_store(tmp_path, dataset.path, settings, ask=Echo("b")).alarms == ["canaries"]
    with pytest.raises(UserError, match="asks now"):
        monitor_store(tmp_path, dataset.path, {**settings, "until": "2026-01-01"}, ask=Echo("a"))
    with pytest.raises(UserError, match="No request"):  # of which model, where none has answered?
        monitor_store(tmp_path, dataset.path, {}, ask=Echo("a"))


def test_a_server_is_not_asked_from_outside_since_its_log_takes_that_for_traffic(tmp_path, dataset, capsys):
    connect(tmp_path, create=True).close()
    (tmp_path / "state.json").write_text('{"version": 1, "address": "http://127.0.0.1:9"}')
    text = ["monitor", str(tmp_path), "--reference", dataset.path, "--ask-model", "m", "--ask", "http://127.0.0.1:9/v1"]
    assert main(text) == 2
    assert "monitor.reference=DATASET" in capsys.readouterr().err


def test_an_endpoint_needs_the_name_of_its_model(tmp_path, dataset, capsys):
    connect(tmp_path, create=True).close()
    text = ["monitor", str(tmp_path), "--reference", dataset.path, "--model", "m", "--ask", "http://127.0.0.1:9/v1"]
    assert main(text) == 2
    assert "--ask-model" in capsys.readouterr().err
