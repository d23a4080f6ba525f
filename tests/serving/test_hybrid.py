"""Batches and the tier flex give way in an engine that can do so, and stay behind the admission of one that can't."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import StubEngine, live

from patience import HANG
from tuneloop.serving.admission import Admission
from tuneloop.serving.http.api_request import ApiError
from tuneloop.serving.keys import Limits, add_key
from tuneloop.serving.store.store import opened, read_requests

CHAT: dict[str, Any] = {"model": "stub", "messages": [{"role": "user", "content": "Hi you"}]}


def answer_batch(address: str, rows: int) -> dict[str, Any]:
    """A batch that is done, as the API shows it."""
    data = "".join(
        json.dumps({"custom_id": f"id-{i}", "method": "POST", "url": "/v1/chat/completions", "body": CHAT}) + "\n"
        for i in range(rows)
    )
    file = httpx.post(f"{address}/v1/files", files={"file": ("in.jsonl", data)}, data={"purpose": "batch"}).json()
    body = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch: dict[str, Any] = httpx.post(f"{address}/v1/batches", json=body).json()
    end = time.monotonic() + 20
    while batch["status"] != "completed":
        assert time.monotonic() < end, batch
        time.sleep(0.02)
        batch = httpx.get(f"{address}/v1/batches/{batch['id']}").json()
    return batch


class Giving(StubEngine):
    gives_way = True


@pytest.mark.parametrize("engine", [Giving(), StubEngine()], ids=["can", "can not"])
def test_flex_and_batches_give_way_where_the_engine_can(tmp_path: Path, engine: StubEngine) -> None:
    with live(tmp_path, engine) as (address, gateway):
        for tier in ("flex", "default"):
            assert httpx.post(f"{address}/v1/chat/completions", json={**CHAT, "service_tier": tier}).status_code == 200
        can = isinstance(engine, Giving)
        assert [item.gives_way for item in engine.asked] == [can, False]
        assert gateway.admission.tally.accepted == (1 if can else 2)
        assert answer_batch(address, 2)["request_counts"]["completed"] == 2
        assert [item.gives_way for item in engine.asked[2:]] == [can, can]


def test_flex_takes_no_place_of_those_who_wait(tmp_path: Path) -> None:
    engine = Giving(pause=0.2)
    with live(tmp_path, engine) as (address, gateway):
        gateway.admission.slots = 1
        with httpx.stream(
            "POST", f"{address}/v1/chat/completions", json={**CHAT, "service_tier": "flex", "stream": True}
        ) as flex:
            events = flex.iter_lines()
            next(events)
            assert gateway.admission.in_background == 1 and not gateway.admission.active
            began = time.monotonic()
            assert httpx.post(f"{address}/v1/chat/completions", json=CHAT, timeout=HANG).status_code == 200
            assert time.monotonic() - began < 5
        end = time.monotonic() + 5
        while gateway.admission.in_background and time.monotonic() < end:
            time.sleep(0.01)
        assert not gateway.admission.in_background


def test_what_gives_way_has_its_bound() -> None:
    admission = Admission(1, most_waiting=1)
    with admission.background(), pytest.raises(ApiError, match="waiting already"), admission.background():
        pass
    assert admission.in_background == 0 and admission.tally.refused == 1
    admission.close()
    with pytest.raises(ApiError, match="stopping"), admission.background():
        pass


def test_what_would_be_late_is_answered_as_flex_where_its_key_says_so(tmp_path: Path) -> None:
    with live(tmp_path, Giving(pause=0.3)) as (address, gateway):
        gateway.admission.slots = 1
        for _ in range(30):
            gateway.admission.times("stub").learn(2, 1, 3, 200.0, 900.0)
        limits = {
            "slow": Limits(),
            "strict": Limits(deadline_ms=250),
            "patient": Limits(deadline_ms=250, late="flex", rpm=2),
        }
        keys = {name: add_key(gateway.keyring.folder, name, limit)[0] for name, limit in limits.items()}

        def ask(name: str, **more: Any) -> Any:
            headers = {"Authorization": f"Bearer {keys[name]}"}
            return httpx.stream(
                "POST", f"{address}/v1/chat/completions", json=CHAT | more, headers=headers, timeout=HANG
            )

        with ask("slow", stream=True) as other:
            events = other.iter_lines()
            next(events)  # it has the only slot
            with ask("strict") as refused:
                assert refused.status_code == 429 and "deadline" in refused.read().decode()
            with ask("patient") as late:
                assert json.loads(late.read())["service_tier"] == "flex"
        with ask("patient") as again:  # a request that was asked twice inside counts once
            assert json.loads(again.read())["service_tier"] == "default"
        with ask("patient") as third:
            assert "rate_limit_exceeded" in third.read().decode()
        tally = gateway.admission.tally
        assert (tally.refused, tally.downgraded) == (1, 1)
        assert (
            "tuneloop_downgraded 1.0"
            in httpx.get(f"{address}/metrics", headers={"Authorization": f"Bearer {keys['strict']}"}).text
        )
    with opened(tmp_path) as store:
        found = [(request.key, request.tier, request.error is None) for request in read_requests(store)]
    assert [tier for key, tier, ok in found if key == "patient" and ok] == ["flex", "default"]
