"""A server compares each window when it is over, in a process of its own, and goes on serving whatever comes of it."""

import asyncio

import pytest
from traffic import request

from tuneloop.core.errors import UserError
from tuneloop.core.ids import utc_now
from tuneloop.serve.config import ServeConfig
from tuneloop.serve.store import connect, insert, opened, read_decisions
from tuneloop.workflows import serve_monitor as w


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
        async with w.monitored(config(store, reference="data"), ["m"], said.append):
            await asyncio.sleep(0.2)

    asyncio.run(serve())
    assert asked == [("m", "2026-03-08")] and said == ["monitor   m: No alarm"]


def test_without_a_data_set_nothing_is_read_and_a_bad_length_is_refused(tmp_path):
    async def serve(**monitor):
        async with w.monitored(config(tmp_path / "none", **monitor), ["m"], print):
            pass

    asyncio.run(serve())
    with pytest.raises(UserError, match="Not a length of time"):
        asyncio.run(serve(reference="data", window="soon"))


@pytest.mark.slow
def test_the_command_runs_in_a_process_of_its_own(store, tmp_path):
    found = asyncio.run(w.compare(config(store, reference=str(tmp_path / "gone")), "m", "2026-03-08"))
    assert found == "No complete data set here"
    with opened(store) as connection:
        assert not list(read_decisions(connection))
