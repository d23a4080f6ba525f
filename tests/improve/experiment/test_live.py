"""A server draws users into the arms of an experiment, keeps them there, and follows `tuneloop ab` while it runs."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from live_server import StubEngine

from patience import HANG
from serving import ANSWERS, FIELDS, MakeTuned, running
from tuneloop.improve.experiment import command as ab
from tuneloop.improve.experiment import live as serve_experiments
from tuneloop.improve.experiment import state as state_module
from tuneloop.improve.experiment.live import Experiments
from tuneloop.improve.experiment.state import read_experiments
from tuneloop.inference.request import Request
from tuneloop.records.completion import Completion
from tuneloop.records.request import StoredRequest
from tuneloop.serving.admission import Keyring
from tuneloop.serving.config import ServeConfig
from tuneloop.serving.gateway import Caller, Gateway, ServedModel
from tuneloop.serving.http.api_request import ApiRequest
from tuneloop.serving.http.app import whole
from tuneloop.serving.store.store import connect, opened, read_requests
from tuneloop.serving.store.writer import StoreWriter

SETTINGS = {"model": "m", "shadow": False, "ramp": "50,100"}


class NamingEngine(StubEngine):
    """Answers with the adapter that was asked; `broken` ones fail."""

    broken: Sequence[str] = ()

    async def stream(self, request: Request) -> Any:
        from tuneloop.inference.request import Update

        self.asked.append(request)
        if request.adapter in self.broken:
            yield Update(completion=Completion(finish="error", error="engine: it died"))
        else:
            yield Update(request.adapter, Completion(request.adapter, (), "stop", len(request.ids), 1))


def served(folder: Path, work: Callable[[Gateway, NamingEngine], Any], candidates: Sequence[str] = ("new",)) -> Any:
    """What a coroutine function makes of a gateway that follows the experiments of a folder."""

    async def main() -> Any:
        engine = NamingEngine()
        store = StoreWriter(folder)
        store.start()
        config = ServeConfig(folder=str(folder))
        gateway = Gateway(
            engine, {"m": ServedModel("m", "old-weights", release="m/1")}, config, store, Keyring(folder),
            candidates={name: ServedModel("m", "new-weights", release="m/2") for name in candidates},
        )  # fmt: skip
        experiments = Experiments(folder)
        experiments.candidates()
        async with experiments.followed_by(gateway):
            found = await work(gateway, engine)
        await gateway.copies.stop()
        store.stop()
        return found

    return asyncio.run(main())


async def ask(gateway: Gateway, user: str, conversation: str = "") -> str:
    asked = ApiRequest("chat", messages=[{"role": "user", "content": "hi"}])
    async with aclosing(gateway.answer(asked, Caller(user=user, conversation=conversation))) as pieces:
        return (await whole(pieces))[1][0].text


def stored(folder: Path, shadow: bool | None = False) -> list[StoredRequest]:
    with opened(folder) as store:
        return list(read_requests(store, shadow=shadow))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(serve_experiments, "EVERY", 0.02)
    connect(tmp_path, create=True).close()
    return tmp_path


async def until(condition: Callable[[], Any]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen")


def test_users_keep_their_arm_which_stands_in_the_log(folder: Path) -> None:
    ab.start(folder, "new", SETTINGS)
    users = [f"u{i}" for i in range(60)]

    async def twice(gateway: Gateway, _: NamingEngine) -> list[list[str]]:
        return [[await ask(gateway, user) for user in users] for _ in range(2)]

    first, second = served(folder, twice)
    assert first == second and 15 < first.count("new-weights") < 45
    (after, _) = served(folder, twice)  # another process
    assert after == first
    kept = stored(folder)
    assert {(r.arm, r.adapter, r.release, r.propensity) for r in kept} == {
        ("candidate", "new-weights", "m/2", 0.5),
        ("champion", "old-weights", "m/1", 0.5),
    }
    with opened(folder) as store:
        verdict = ab.verdict_of(store, read_experiments(folder)["new"], "2999-01-01T00:00:00Z")
    assert verdict.evidence.users == 60 and verdict.evidence.candidate_users == first.count("new-weights")


def test_a_stop_takes_effect_while_the_server_runs(folder: Path) -> None:
    ab.start(folder, "new", SETTINGS)

    async def work(gateway: Gateway, _: NamingEngine) -> Counter[str]:
        assert {await ask(gateway, f"u{i}") for i in range(20)} == {"new-weights", "old-weights"}
        ab.stop(folder, "new", "enough")
        await until(lambda: gateway.draw is None)
        return Counter([await ask(gateway, f"u{i}") for i in range(20)])

    assert served(folder, work) == {"old-weights": 20}
    assert [r.arm for r in stored(folder)][20:] == [None] * 20


def test_a_stop_by_a_machine_whose_clock_is_behind_takes_effect(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ab.start(folder, "new", SETTINGS)

    async def work(gateway: Gateway, _: NamingEngine) -> Counter[str]:
        assert {await ask(gateway, f"u{i}") for i in range(20)} == {"new-weights", "old-weights"}
        monkeypatch.setattr(state_module, "uuid7", lambda: "01900000-0000-7000-8000-000000000000")
        ab.stop(folder, "new", "enough")
        await until(lambda: gateway.draw is None)
        return Counter([await ask(gateway, f"u{i}") for i in range(20)])

    assert served(folder, work) == {"old-weights": 20}
    assert read_experiments(folder)["new"].ended == "stopped"


def test_a_step_of_the_ramp_holds_for_new_users_only(folder: Path) -> None:
    ab.start(folder, "new", {**SETTINGS, "ramp": "1,100"})
    share = {"value": 0.01}

    async def work(gateway: Gateway, _: NamingEngine) -> tuple[list[str], list[str]]:
        old = [await ask(gateway, f"u{i}") for i in range(20)]
        draw = gateway.draw.__self__  # type: ignore[union-attr]
        share["value"] = draw.running["m"].share
        with opened(folder) as store:
            verdict = ab.verdict_of(store, read_experiments(folder)["new"], "2026-01-01T00:00:00Z")
            data = verdict.model_copy(update={"share": 1.0, "outcome": "continue"}).to_json()
            from tuneloop.core.ids import utc_now, uuid7
            from tuneloop.records.server import Decision
            from tuneloop.serving.store.database import insert

            insert(store, [Decision(id=uuid7(), time=utc_now(), kind="experiment.decision", subject="new", data=data)])
        await until(lambda: draw.running["m"].share == 1.0)
        assert [await ask(gateway, f"u{i}") for i in range(20)] == old
        return old, [await ask(gateway, f"v{i}") for i in range(20)]

    old, new = served(folder, work)
    assert share["value"] == 0.01 and old.count("new-weights") < 4
    assert new == ["new-weights"] * 20
    assert {r.propensity for r in stored(folder)} == {0.01, 1.0}


def test_where_the_candidate_fails_the_champion_answers_and_it_is_marked(folder: Path) -> None:
    ab.start(folder, "new", SETTINGS)

    async def work(gateway: Gateway, engine: NamingEngine) -> str:
        user = next(f"u{i}" for i in range(50) if gateway.draw("m", f"u{i}", "r").served)  # type: ignore[misc,union-attr]
        assert await ask(gateway, user, "talk") == "new-weights"
        engine.broken = ["new-weights"]
        assert await ask(gateway, user, "talk") == "old-weights"
        return user

    served(folder, work)
    first, second = stored(folder)
    assert (first.arm, first.fallback, second.arm, second.adapter) == ("candidate", None, "candidate", "old-weights")
    assert second.fallback == "it died" and second.error is None
    with opened(folder) as store:
        verdict = ab.verdict_of(store, read_experiments(folder)["new"], "2999-01-01T00:00:00Z")
    assert (verdict.evidence.dropped, verdict.evidence.users) == (0, 1)
    assert verdict.evidence.guardrails[0].name == "invalid" and verdict.evidence.guardrails[0].candidate == 0.5

    async def later(gateway: Gateway, _: NamingEngine) -> list[str]:
        return [await ask(gateway, first.user or ""), *[await ask(gateway, f"w{i}") for i in range(9)]]

    assert set(served(folder, later, candidates=())) == {"old-weights"}  # it is not loaded at all
    known, *strangers = stored(folder)[2:]
    assert known.arm == "candidate" and known.fallback == "the candidate is not loaded"
    assert {(r.arm, r.fallback) for r in strangers} == {(None, None)}


def test_a_shadow_answers_copies_that_nobody_sees(folder: Path) -> None:
    ab.start(folder, "new", {**SETTINGS, "shadow": True})

    async def work(gateway: Gateway, _: NamingEngine) -> list[str]:
        found = [await ask(gateway, f"u{i}", "talk") for i in range(5)]
        await until(lambda: gateway.store.counts.stored == 10)
        return found

    assert served(folder, work) == ["old-weights"] * 5
    answers, copies = stored(folder), stored(folder, shadow=True)
    assert [copy.shadow for copy in copies] == [r.id for r in answers]
    assert {(c.adapter, c.arm, c.propensity, c.tier, c.completion) for c in copies} == {
        ("new-weights", "candidate", None, "shadow", "new-weights")
    }
    assert {r.arm for r in answers} == {None} and len(stored(folder, shadow=None)) == 10
    assert [(c.user, c.conversation, c.prompt) for c in copies] == [(r.user, r.conversation, r.prompt) for r in answers]


@pytest.mark.slow
def test_a_server_follows_the_command(make_tuned: MakeTuned, tmp_path: Path, cli_environment: dict[str, str]) -> None:
    old = make_tuned(ANSWERS, data=FIELDS, name="answers")
    new = make_tuned(ANSWERS, data=FIELDS, name="new-answers", dora=True)
    folder = tmp_path / "served"
    settings = {**SETTINGS, "model": "answers", "candidate": str(new), "champion": str(old)}

    def releases(address: str) -> set[str]:
        found = set()
        for user in range(12):
            turn = {"role": "user", "content": json.dumps({"subject": "a", "body": "b"})}
            body = json.dumps({"messages": [turn], "max_tokens": 2, "user": f"u{user}"}).encode()
            with urllib.request.urlopen(f"{address}/v1/chat/completions", body, timeout=HANG) as reply:
                found.add(reply.headers["x-tuneloop-release"])
        return found

    with running(str(old), folder=folder, environment=cli_environment) as (address, _):
        assert len(releases(address)) == 1
        for act, count in ((lambda: ab.start(folder, "try", settings), 2), (lambda: ab.stop(folder, "try", ""), 1)):
            act()
            end = time.monotonic() + HANG
            while len(releases(address)) != count:
                assert time.monotonic() < end
                time.sleep(0.2)
