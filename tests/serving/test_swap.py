"""A running server swaps what it serves: nobody notices, and what can't be proved changes nothing."""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import time
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import StubEngine, live
from serving_load import Load

from patience import HANG
from serving import ANSWERS, FIELDS, MakeTuned, running
from tuneloop.core.errors import UserError
from tuneloop.core.ui import reporting
from tuneloop.improve.experiment.live import Experiments
from tuneloop.serving import swap as serve_swap
from tuneloop.serving.config import ServeConfig
from tuneloop.serving.gateway import ServedModel
from tuneloop.serving.models import ServerDeployment
from tuneloop.serving.store.store import opened, read_decisions
from tuneloop.serving.swap import Swaps, deploy_to_server, freeze_heap, pinned

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi you"}]}


class Stoppable(StubEngine):
    stopped = False

    async def stop(self) -> None:
        self.stopped = True

    async def stream(self, request: Any) -> Any:
        async for update in super().stream(request):
            assert not self.stopped, "it was stopped before its last answer"
            yield update


@pytest.fixture(autouse=True)
def no_search_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the libraries of all tests, whose objects take a second to search at each swap."""
    monkeypatch.setattr(serve_swap, "freeze_heap", lambda: None)


def test_no_request_fails_across_ten_swaps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engines = [Stoppable(words=[f"{i}", " said"], pause=0.03) for i in range(11)]
    made = iter(engines[1:])

    def deployment(*_: Any) -> ServerDeployment:
        return ServerDeployment(next(made), [], "stub-model")

    monkeypatch.setattr(serve_swap, "deployment_of", deployment)
    monkeypatch.setattr(
        ServerDeployment, "models", lambda self: {"m": ServedModel("m", release=f"m/{engines.index(self.engine)}")}
    )
    queue = {"admission": "queue"}  # on a busy machine some would be late, and refused for it
    with live(tmp_path, engines[0], {"m": ServedModel("m", release="m/0")}, objective=queue) as (address, gateway):
        experiments = Experiments(tmp_path)
        swaps = Swaps(gateway.config, experiments)

        async def ten() -> None:
            for number in range(1, 11):
                assert await swaps.swap(gateway, {"m": str(number)})
                wanted = len(load.found) + 3
                async with asyncio.timeout(HANG):
                    while len(load.found) < wanted:  # however busy the machine is
                        await asyncio.sleep(0.01)
            await asyncio.gather(*swaps._ending)

        with Load(address, CHAT) as load:
            time.sleep(0.2)
            asyncio.run(ten())
    assert not load.faults and len(load.found) >= 20
    assert all(said == f"{release.partition('/')[2]} said" for release, said in load.found)
    assert len({release for release, _ in load.found}) >= 8
    assert [engine.stopped for engine in engines[:10]] == [True] * 10
    with opened(tmp_path) as store:
        events = list(read_decisions(store))
    assert Counter(event.kind for event in events) == {"deployment.swap": 10}
    assert events[-1].data["before"] == {"m": "9"} and events[-1].data["wanted"] == {"m": "10"}


def test_what_cannot_be_proved_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Stoppable):
        async def start(self) -> None:
            raise UserError("out of memory")

    broken = Broken()
    monkeypatch.setattr(serve_swap, "deployment_of", lambda *_: ServerDeployment(broken, [], "stub-model"))
    said: list[str] = []
    with live(tmp_path) as (address, gateway):
        before = gateway.engine
        with reporting(say=said.append):
            swaps = Swaps(gateway.config, Experiments(tmp_path))
            assert not asyncio.run(swaps.swap(gateway, {"m": "2"}))
            assert gateway.engine is before and broken.stopped and swaps.refused == {"m": "2"}
            assert httpx.post(f"{address}/v1/chat/completions", json={**CHAT, "model": "stub"}).status_code == 200
    assert "out of memory" in said[-1]
    with opened(tmp_path) as store:
        (event,) = read_decisions(store)
    assert event.kind == "deployment.refused" and event.data["why"] == "out of memory"


def test_an_engine_that_has_ended_is_started_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Stoppable):
        async def start(self) -> None:
            raise UserError("out of memory")

    fresh = Stoppable(words=["fresh"])
    made = iter([Broken(), fresh])
    monkeypatch.setattr(serve_swap, "EVERY", 0.01)
    monkeypatch.setattr(serve_swap, "RESTART_PAUSE", 0.01)
    monkeypatch.setattr(serve_swap, "deployment_of", lambda *_: ServerDeployment(next(made), [], "stub-model"))
    monkeypatch.setattr(ServerDeployment, "models", lambda self: {"m": ServedModel("m")})
    first = Stoppable()
    said: list[str] = []
    with live(tmp_path, first, {"m": ServedModel("m")}) as (address, gateway), reporting(say=said.append):
        swaps = Swaps(gateway.config, Experiments(tmp_path))
        swaps.current = swaps.wanted()

        async def follow() -> None:
            async with swaps.followed_by(gateway):
                await asyncio.sleep(0.1)
                assert gateway.engine is first
                first.ended = True  # type: ignore[attr-defined]
                while gateway.engine is first:
                    await asyncio.sleep(0.01)

        asyncio.run(follow())
        assert (
            httpx.post(f"{address}/v1/chat/completions", json=CHAT).json()["choices"][0]["message"]["content"]
            == "fresh"
        )
    assert first.stopped and any("restarted" in line for line in said) and any("refused" in line for line in said)


def test_an_alias_that_moved_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Version:
        version = "1"

    monkeypatch.setattr(serve_swap, "open_registry", lambda: None)
    monkeypatch.setattr(serve_swap, "version_of", lambda registry, source: Version)
    stamps = iter(range(9))
    monkeypatch.setattr(serve_swap, "_stamp", lambda: (next(stamps),))
    config = ServeConfig(adapters={"m": "tickets@champion", "n": "runs/n"}, folder=str(tmp_path))
    swaps = Swaps(config, Experiments(tmp_path))
    first = swaps.wanted()
    assert first == {"m": "tickets@champion, version 1", "n": "runs/n"} and swaps.wanted() == first
    Version.version = "2"
    assert swaps.wanted()["m"].endswith("version 2")
    with pytest.raises(UserError, match="No server was started"):
        deploy_to_server(tmp_path, "runs/n")


@pytest.mark.slow
def test_deploy_swaps_a_running_server(make_tuned: MakeTuned, tmp_path: Path, cli_environment: dict[str, str]) -> None:
    old = make_tuned(ANSWERS, data=FIELDS, name="answers")
    new = make_tuned(ANSWERS, data=FIELDS, name="other", dora=True)
    folder = tmp_path / "serve"

    def deploy(source: Path, *more: str, status: int = 0) -> dict[str, Any]:
        command = [sys.executable, "-m", "tuneloop", "deploy", str(source), "--to", str(folder), "--json", *more]
        done = subprocess.run(command, capture_output=True, text=True, env=cli_environment, check=False)
        assert done.returncode == status, done.stderr
        return json.loads(done.stdout) if done.stdout else {}

    content = json.dumps({"subject": "a", "body": "b"})
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 2}
    settings = (
        str(old),
        "objective.admission=queue",
    )  # loading takes a busy machine's time: none is to be refused for it
    with running(*settings, folder=folder, environment=cli_environment) as (address, _):
        with Load(address, body, rate=8) as load:
            time.sleep(0.5)
            assert deploy(new, "--name", "answers")["swapped"] is True
            assert deploy(old, "--name", "answers")["swapped"] is True
            time.sleep(0.3)
        assert not load.faults and len({release for release, _ in load.found}) == 2
        deploy(new, status=2)  # no model of its name is served
    state = json.loads((folder / "state.json").read_text())
    assert state["devices"], "what its own engine computes on"
    assert state["models"][0]["source"] == str(old)
    assert deploy(new, "--name", "answers")["running"] is False
    assert pinned(ServeConfig(adapters={"answers": str(old)}, folder=str(folder))).adapters == {"answers": str(new)}


SCRIPT = """
import gc, sys
from tuneloop.serving.swap import freeze_heap
loaded = [[i] for i in range(100_000)]
freeze_heap()
print(gc.get_freeze_count(), sys.getswitchinterval())
"""


class Ring:
    """An object that names itself, so that only the search for garbage finds it."""

    def __init__(self) -> None:
        self.me = self


def test_what_is_loaded_is_never_searched_again() -> None:
    output = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
    frozen, interval = output.split()
    assert int(frozen) > 100_000 and float(interval) < 0.001


def test_what_has_gone_since_is_given_back() -> None:
    before = sys.getswitchinterval()
    try:
        ring = Ring()
        gone = weakref.ref(ring)
        freeze_heap()
        del ring
        gc.collect()
        assert gone() is not None, "it was left out of the search"
        freeze_heap()
        assert gone() is None
    finally:
        gc.freeze()  # as it was: tests/conftest.py
        sys.setswitchinterval(before)
