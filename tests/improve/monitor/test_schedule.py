"""A server compares each window when it is over, in its own process, and continues to serve whatever comes of it."""

import asyncio
import json
from types import SimpleNamespace

import pytest
from live_server import StubEngine
from traffic import request

from tuneloop.cli.main import main
from tuneloop.core.errors import UserError
from tuneloop.core.ids import utc_now
from tuneloop.core.ui import reporting
from tuneloop.improve.monitor import schedule as w
from tuneloop.serving.admission import Admission
from tuneloop.serving.config import ServeConfig
from tuneloop.serving.gateway import ServedModel
from tuneloop.serving.store.database import insert
from tuneloop.serving.store.store import connect, opened, read_decisions
from tuneloop.serving.store.writer import StoreWriter


def served(*names, engine=None):
    models = {name: ServedModel(name) for name in names}
    admission = Admission(4, 10, True)
    return SimpleNamespace(models=models, own_models=[*names], engine=engine or StubEngine(), admission=admission)


def config(folder, **monitor):
    return ServeConfig.model_validate({"folder": str(folder), "monitor": monitor})


@pytest.fixture
def store(tmp_path):
    connection = connect(tmp_path, create=True)
    insert(connection, (request(i, i / 20) for i in range(140)))  # a week of March 2026
    insert(connection, [request(999, 0, time=utc_now())])
    connection.close()
    return tmp_path


def test_a_window_that_is_over_is_compared_once(store, monkeypatch):
    asked, said = [], []
    monkeypatch.setattr(w, "due_window", lambda folder, window, model: "" if asked else "2026-03-08")

    async def compare(config, model, until):
        asked.append((model, until))
        return "No alarm"

    monkeypatch.setattr(w, "compare", compare)

    async def serve():
        async with w.monitored(config(store, reference="data", canaries=0), served("m")):
            await asyncio.sleep(0.2)

    with reporting(say=said.append):
        asyncio.run(serve())
    assert asked == [("m", "2026-03-08")] and said == ["monitor   m: No alarm"]


def test_without_a_data_set_nothing_is_read_and_a_bad_length_is_refused(tmp_path):
    async def serve(**monitor):
        async with w.monitored(config(tmp_path / "none", **monitor), served("m")):
            pass

    asyncio.run(serve())
    with pytest.raises(UserError, match="Not a length of time"):
        asyncio.run(serve(reference="data", window="soon"))
    with pytest.raises(UserError, match="Not a length of time"):
        asyncio.run(serve(reference="data", canaries_every="daily"))


def test_canary_prompts_are_asked_when_they_are_due_and_what_they_show_is_said(store, tmp_path, monkeypatch):
    rows = [{"prompt": f"what comes after {i}", "completion": f"it is {i + 1}"} for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert (
        main(["prepare", str(tmp_path / "rows.jsonl"), "-o", str(tmp_path / "set"), "-q", "duplicates.near=false"]) == 0
    )
    monkeypatch.setattr(w, "due_window", lambda folder, window, model: "")
    said: list[str] = []

    async def serve(*text):
        gateway = served("m", engine=StubEngine(text))
        gateway.store = StoreWriter(store, "full")
        gateway.store.start()
        reading = config(store, reference=str(tmp_path / "set"), canaries=5, canaries_every="1h")
        async with w.monitored(reading, gateway):
            for _ in range(100):
                await asyncio.sleep(0.05)
                if said:
                    break
        await asyncio.to_thread(gateway.store.stop)

    with reporting(say=said.append):
        asyncio.run(serve("so"))
    assert said == ["canaries  m: All of 5 canary prompts are answered as before."]
    said.clear()
    monkeypatch.setattr(w, "rounds_due", lambda *given: 1)
    with reporting(say=said.append):
        asyncio.run(serve("so", " not"))
    assert said[0].startswith("canaries  m: 5 of 5 canary prompts are answered otherwise") and "Next:" in said[0]
    said.clear()
    gone = config(store, reference=str(tmp_path / "gone"))
    with reporting(say=said.append):
        asyncio.run(w._canaries(gone, served("m"), 1.0, 1.0))
    assert said == ["canaries  no prompt can be sent: No complete data set here"]


@pytest.mark.slow
def test_the_command_runs_in_a_process_of_its_own(store, tmp_path):
    found = asyncio.run(w.compare(config(store, reference=str(tmp_path / "gone")), "m", "2026-03-08"))
    assert found == "No complete data set here"
    with opened(store) as connection:
        assert not list(read_decisions(connection))
