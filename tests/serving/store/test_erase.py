"""What leaves a store leaves it for good, and the tombstone tells nobody whose it was."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from live_server import live

from patience import HANG
from tuneloop.cli.main import main
from tuneloop.core.errors import UserError
from tuneloop.core.ids import utc, utc_now, uuid7
from tuneloop.core.ui import reporting
from tuneloop.improve.collect.command import exported
from tuneloop.records.feedback import Feedback
from tuneloop.records.request import StoredRequest
from tuneloop.serving.config import ServeConfig
from tuneloop.serving.keys import ApiKey, Limits, add_key
from tuneloop.serving.server import expire_all
from tuneloop.serving.store.database import insert
from tuneloop.serving.store.erase import expire, find, proved, spent_by_erased
from tuneloop.serving.store.store import connect, opened, read_decisions, read_feedback, read_requests

EACH = pytest.mark.usefixtures("each_database")
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi you"}]}


def request(number: int, **changes: Any) -> StoredRequest:
    """A stored request."""
    given: dict[str, Any] = {
        "id": uuid7(), "time": utc_now(), "model": "m", "prompt": [{"role": "user", "content": f"question {number}"}],
        "completion": f"answer {number}",
    }  # fmt: skip
    return StoredRequest(**{**given, **changes})


def filled(folder: Path) -> dict[str, str]:
    """A store with requests of two users; ids by name."""
    a1 = request(1, user="anna", conversation="t", key="k", usd=0.5, completion="the unmistakable answer")
    a2 = request(2, user="anna", conversation="t", key="k", usd=0.25)
    copy = request(3, user="anna", shadow=a1.id, tier="shadow")
    ben = request(4, user="ben", conversation="b", completion="Grüße an alle")
    said = [
        Feedback(id=uuid7(), request=a1.id, kind="thumbs", value=True, time=utc_now()),
        Feedback(id=uuid7(), conversation="t", kind="comment", value="nice", time=utc_now()),
        Feedback(id=uuid7(), request=ben.id, kind="thumbs", value=True, user="ben", time=utc_now()),
    ]
    with opened(folder, create=True) as store:
        insert(store, [a1, a2, copy, ben, *said])
    return {"a1": a1.id, "a2": a2.id, "copy": copy.id, "ben": ben.id}


def bytes_of(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.iterdir() if file.is_file())


def test_a_user_is_erased_and_the_receipt_shows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = filled(tmp_path)
    assert b"unmistakable" in bytes_of(tmp_path)

    def forget(*more: str, status: int = 0) -> dict[str, Any]:
        assert main(["data", "forget", str(tmp_path), "--match", "user=anna", "--json", *more]) == status
        out = capsys.readouterr().out
        return json.loads(out) if out else {}

    asked = {
        "requests": 3,
        "feedback": 2,
        "lines": 0,
        "descendants": [],
        "erased": False,
        "receipt": None,
        "rebuilt": {},
    }
    assert forget("--dry-run") == asked
    forget(status=2)  # nobody was asked
    done = forget("--yes")
    assert done["erased"] and done["requests"] == 3
    with opened(tmp_path) as store:
        assert [item.id for item in read_requests(store, shadow=None)] == [ids["ben"]]
        assert [item.user for item in read_feedback(store)] == ["ben"]
        (stone,) = read_decisions(store)
        assert spent_by_erased(store) == {"k": 0.75}  # it still counts against the budget
        assert proved(store, "user=anna", done["receipt"]) == stone
        assert proved(store, "user=ben", done["receipt"]) is None and proved(store, "user=anna", "guess") is None
    text = json.dumps(stone.data)
    assert "anna" not in text and not any(id_ in text for id_ in ids.values()) and len(stone.data["records"]) == 5
    left = bytes_of(tmp_path)
    assert b"unmistakable" not in left and b"anna" not in left and done["receipt"].encode() not in left
    assert forget("--receipt", done["receipt"])["proved"] is True
    assert forget("--receipt", "guess", status=1)["proved"] is False
    assert forget("--yes", status=1)["requests"] == 0


@EACH
def test_matches_are_columns_or_texts(tmp_path: Path) -> None:
    ids = filled(tmp_path)
    with opened(tmp_path) as store:
        assert find(store, "GRÜSSE").requests == (ids["ben"],)
        assert find(store, f"id={ids['a2']}").requests == (ids["a2"],)
        assert set(find(store, "conversation=t").requests) == {ids["a1"], ids["a2"], ids["copy"]}
        assert len(find(store, "conversation=t").feedback) == 2
        assert find(store, "question = 9").requests == ()
        for bad in ("", "colour=red"):
            with pytest.raises(UserError):
                find(store, bad)


def test_texts_and_users_expire_and_figures_stay(tmp_path: Path, each_database: str) -> None:
    filled(tmp_path)
    with opened(tmp_path) as store:
        insert(store, [request(9, user="carl", time="2020-01-01T00:00:00Z", usd=0.125, key="k")])
        assert expire(store, "2021-01-01T00:00:00Z") == 1 and expire(store, "2021-01-01T00:00:00Z") == 0
        kept = list(read_requests(store))
    old = next(item for item in kept if item.time.startswith("2020"))
    assert (old.prompt, old.completion, old.user, old.usd) == ([], None, None, 0.125)
    assert sum(item.completion is not None for item in kept) == 3
    assert exported(old) is None
    if each_database == "sqlite":
        assert b"carl" not in bytes_of(tmp_path)


def test_requests_of_a_key_without_consent_are_no_training_data(tmp_path: Path) -> None:
    with live(tmp_path) as (address, gateway):
        for name, train in (("yes", "yes"), ("no", "no")):
            key, _ = add_key(tmp_path, name, Limits(train=train))  # type: ignore[arg-type]
            reply = httpx.post(
                f"{address}/v1/chat/completions", json=CHAT, headers={"Authorization": f"Bearer {key}"}, timeout=HANG
            )
            assert reply.status_code == 200
        assert gateway.keyring.used
    with opened(tmp_path) as store:
        kept = {item.key: item for item in read_requests(store)}
    assert (kept["yes"].train, kept["no"].train) == (None, "no")
    assert exported(kept["yes"]) is not None and exported(kept["no"]) is None


@EACH
def test_a_key_may_say_how_long_its_requests_are_kept(tmp_path: Path) -> None:
    def ago(days: float) -> str:
        return utc(1_800_000_000 - 86_400 * days)

    kept = {"short": 2.0, "long": 90.0}
    keys = [
        ApiKey(id=name, name=name, sha256="", created="", limits=Limits(keep_days=days)) for name, days in kept.items()
    ]
    keys.append(ApiKey(id="plain", name="plain", sha256="", created=""))
    rows = [
        request(0, id=f"{key}-{days}", key=key, time=ago(days), user="u", conversation=f"{key}-{days}")
        for key in ("short", "long", "plain", "") for days in (1, 10, 50, 100)
    ]  # fmt: skip
    said = [
        Feedback(id=f"{row.id}-{about}", kind="comment", value="so", user="u", time=row.time, **{about: row.id})
        for row in rows for about in ("request", "conversation")
    ]  # fmt: skip
    with opened(tmp_path, create=True) as store:
        insert(store, [*rows, *said])
        for days, more in ((None, 3 + 1), (30.0, 2 + 2)):
            assert expire_all(store, days, keys, 1_800_000_000) == more
            assert expire_all(store, days, keys, 1_800_000_000) == 0
        left = {item.id for item in read_requests(store) if item.completion is not None}
        wanted = {"short-1", "long-1", "long-10", "long-50", "plain-1", "plain-10", "-1", "-10"}
        assert left == wanted == {item.id for item in read_requests(store) if item.user and item.conversation}
        assert {item.id.rpartition("-")[0] for item in read_feedback(store)} == wanted


def test_nothing_expires_in_the_hour_in_which_the_clock_went_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tuneloop.serving import server

    passes: list[str] = []
    jumps = iter([0.0, 366 * 86_400.0, -3600.0])

    async def sleep(seconds: float) -> None:
        passes.append("an hour")
        if passes.count("an hour") > 3:
            raise asyncio.CancelledError

    monkeypatch.setattr(server.asyncio, "sleep", sleep)
    monkeypatch.setattr(server, "ClockWatch", lambda: SimpleNamespace(ahead=lambda: next(jumps)))
    monkeypatch.setattr(server, "expire_all", lambda *_: passes.append("expires") or 0)
    monkeypatch.setattr(server, "expire_files", lambda *_: 0)
    connect(tmp_path, create=True).close()
    said: list[str] = []
    with reporting(say=said.append), contextlib.suppress(asyncio.CancelledError):
        asyncio.run(server._expire(ServeConfig.model_validate({"folder": str(tmp_path)})))
    assert passes == ["expires", "an hour", "expires", "an hour", "an hour", "expires", "an hour"]
    assert len(said) == 1 and "the clock went 8,784.0 hours ahead" in said[0]
