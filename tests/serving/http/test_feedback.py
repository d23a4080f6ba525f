"""Feedback is believed only from whom it can come: strangers, other keys and one bot with many names change nothing."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import StubEngine, live

from patience import HANG
from tuneloop.cli.main import main
from tuneloop.core.ids import utc, utc_now, uuid7
from tuneloop.improve.collect.command import collect_store
from tuneloop.improve.experiment.command import check, replay, start
from tuneloop.improve.experiment.live import Arms
from tuneloop.improve.experiment.statistics import time_of
from tuneloop.records.feedback import Feedback
from tuneloop.records.request import ANYONE, StoredRequest
from tuneloop.serving import gateway
from tuneloop.serving.gateway import ArmDraw, Caller, Gateway
from tuneloop.serving.http import feedback
from tuneloop.serving.http.feedback import limited_as
from tuneloop.serving.keys import Limits, Right, add_key
from tuneloop.serving.store.database import DatabaseError, insert
from tuneloop.serving.store.store import opened, read_feedback, read_requests

CHAT: dict[str, Any] = {"model": "stub", "messages": [{"role": "user", "content": "Where is it?"}]}
SHOP = "https://shop.example"


class Client:
    """A caller: with a key, as a page's reader, or as nobody.

    Args:
        headers: that each request has.
    """

    def __init__(self, address: str, key: str = "", **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        given = {"Authorization": f"Bearer {key}"} if key else {}
        self.http = httpx.Client(base_url=address, headers={**given, **named}, timeout=HANG)

    def ask(self, **headers: str) -> str:
        """The id of an answered request."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        reply = self.http.post("/v1/chat/completions", json=CHAT, headers=named)
        assert reply.status_code == 200, reply.text
        return str(reply.json()["id"])

    def say(self, **body: Any) -> httpx.Response:
        """Send feedback; a thumb up where nothing else is said."""
        about = {} if "conversation" in body else {"request": "r1"}
        return self.http.post("/v1/feedback", json={**about, "kind": "thumbs", "value": True, **body})


def key_of(folder: Path, name: str, *rights: Right) -> str:
    return add_key(folder, name, Limits(rights=list(rights)))[0]


def stored(folder: Path) -> list[Feedback]:
    with opened(folder) as store:
        return list(read_feedback(store))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Gateway]]:
    with live(tmp_path, feedback={"origins": [SHOP], "per_minute": 1000}) as found:
        yield found


# --- what it is about


def test_feedback_needs_an_answer_that_its_sender_may_speak_of(server: tuple[str, Gateway], tmp_path: Path) -> None:
    anna, ben = (Client(server[0], key_of(tmp_path, name)) for name in ("anna", "ben"))
    app = Client(server[0], key_of(tmp_path, "app", "feedback"))
    reader = Client(server[0], origin=SHOP)
    mine = anna.ask()
    for unknown in ("r1", uuid7(), "", mine[:-1], mine.upper(), "' OR 1=1 --", "x" * 256):
        assert anna.say(request=unknown).status_code in (400, 404)
        assert reader.say(request=unknown).status_code in (400, 404)
    foreign, unknown_ = ben.say(request=mine), ben.say(request=uuid7())
    assert foreign.status_code == 404 and foreign.json() == unknown_.json(), "as if it were not there"
    assert anna.say(request=mine).status_code == reader.say(request=mine).status_code == 200
    assert app.say(request=mine, weight=3, source="support").status_code == 200
    assert [(item.voice, item.weight, item.source) for item in stored(tmp_path)] == [
        ("key:anna", None, "api"), (ANYONE, None, "page"), ("trusted:app", 3.0, "support"),
    ]  # fmt: skip
    other = anna.ask()
    assert anna.say(request=mine, kind="choice", value=other).status_code == 200
    assert anna.say(request=mine, kind="choice", value=ben.ask()).status_code == 404


def test_an_answer_that_nobody_got_is_none_to_speak_of(tmp_path: Path) -> None:
    engine = StubEngine()
    with live(tmp_path, engine) as (address, gateway):
        me = Client(address)
        first = me.ask()
        engine.fail_after = 0
        assert me.http.post("/v1/chat/completions", json=CHAT).status_code == 503
        engine.fail_after = None
        long = {**CHAT, "messages": [{"role": "user", "content": "word " * 2000}]}
        assert me.http.post("/v1/chat/completions", json=long).status_code == 400
        engine.fail_after = 2  # its client got a part of it
        lines = me.http.post("/v1/chat/completions", json={**CHAT, "stream": True}).text.splitlines()
        part = json.loads(lines[0].removeprefix("data: "))["id"]
        while gateway.store.counts.stored < 4:
            time.sleep(0.02)
        with opened(tmp_path) as store:
            insert(store, [StoredRequest(id="copy", time=utc_now(), model="stub", prompt=[], shadow=first)])
            ids = [request.id for request in read_requests(store, where="error IS NOT NULL")]
        gateway.recent.clear()
        assert len(ids) == 3
        assert {id_: me.say(request=id_).status_code for id_ in ids} == {
            id_: 200 if id_ == part else 404 for id_ in ids
        }
        assert me.say(request="copy").status_code == 404


def test_feedback_may_come_before_the_answer_ends_and_years_later(tmp_path: Path) -> None:
    with live(tmp_path, StubEngine(words=["word "] * 40, pause=0.02)) as (address, _):
        me = Client(address)
        with me.http.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as reply:
            early = reply.headers["x-tuneloop-request"]
            next(reply.iter_lines())
            assert me.say(request=early).status_code == 200
        assert me.say(request=early, value=False).status_code == 200  # just ended
        old = StoredRequest(id=uuid7(), time="2019-01-01T00:00:00.000Z", model="stub", prompt=[], completion_tokens=3)
        with opened(tmp_path) as store:
            insert(store, [old])
        assert me.say(request=old.id).status_code == 200
    assert all(item.time > "2026" for item in stored(tmp_path)), "its time is that at which it came"


def test_a_conversation_is_spoken_of_by_the_key_that_had_it_alone(server: tuple[str, Gateway], tmp_path: Path) -> None:
    anna, ben = (Client(server[0], key_of(tmp_path, name)) for name in ("anna", "ben"))
    app, reader = Client(server[0], key_of(tmp_path, "app", "feedback")), Client(server[0], origin=SHOP)
    asked = anna.ask(x_tuneloop_conversation="talk-1")
    right: dict[str, Any] = {"conversation": "talk-1", "kind": "correction", "value": "poison"}
    assert ben.say(**right).status_code == 404 and reader.say(**right).status_code == 403
    assert reader.say(**right, request=asked).status_code == 400
    assert anna.say(**{**right, "value": "In the post"}).status_code == 200
    theirs = ben.ask(x_tuneloop_conversation="talk-1")  # whoever joins it speaks of his own part
    assert ben.say(**right).status_code == 200
    server[1].recent.clear()  # the store knows it as well
    assert anna.say(conversation="talk-1").status_code == 200
    assert anna.say(conversation="talk-2").status_code == 404 and app.say(conversation="talk-1").status_code == 200
    found = collect_store(tmp_path, tmp_path / "rows", {"heldout_share": 0})
    rows = {row["request"]: row["messages"][-1]["content"] for row in lines_of(tmp_path / "rows" / "sft.jsonl")}
    assert rows == {asked: "In the post", theirs: "poison"} and found.counts["must_pass"] == 2


def lines_of(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def test_a_store_that_can_not_be_read_takes_no_feedback_for_the_moment(
    server: tuple[str, Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*args: Any) -> None:
        raise DatabaseError("it is away")

    monkeypatch.setattr(feedback, "find_answered", away)
    me = Client(server[0])
    assert me.say(request=me.ask()).status_code == 200
    reply = me.say(request=uuid7())
    assert reply.status_code == 503 and reply.headers["retry-after"]


# --- what it says


@pytest.mark.parametrize("kind", ["shadow"])
def test_kinds_of_the_programs_own_come_from_nowhere_else(
    server: tuple[str, Gateway], tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    keys = [key_of(tmp_path, "plain"), key_of(tmp_path, "app", "feedback", "users")]
    reader = Client(server[0], origin=SHOP)
    for sender in (reader, *(Client(server[0], key) for key in keys)):
        id_ = Client(server[0], keys[0]).ask()
        for value in (1, 0, -1, True, "1"):
            assert sender.say(request=id_, kind=kind, value=value, key=f"{kind}:new:{id_}").status_code == 400
    (tmp_path / "votes.jsonl").write_text(json.dumps({"request": id_, "kind": kind, "value": 1}))
    assert main(["collect", "add", id_, "--kind", kind, "-v", "1", "--store", str(tmp_path)]) == 2
    assert main(["collect", "import", str(tmp_path / "votes.jsonl"), "--store", str(tmp_path)]) == 1
    assert stored(tmp_path) == []


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ({"kind": "rating", "value": True}, 400), ({"kind": "rating", "value": 1e308}, 400), ({"value": 2}, 400),
        ({"kind": "quality", "value": 1e308}, 400), ({"kind": "quality", "value": -1e16}, 400), ({"value": None}, 400),
        ({"kind": "correction", "value": 3}, 400), ({"kind": "label", "value": True}, 400), ({"value": [True]}, 400),
        ({"kind": "comment", "value": "x" * 20_001}, 400), ({"kind": "comment", "value": "x" * 10_000_000}, 413),
        ({"kind": "comment", "value": "\U0001f600" * 10_000}, 200), ({"weight": 1000}, 403), ({"source": "judge"}, 403),
        ({"time": "2019-01-01"}, 400), ({"voice": "trusted:app"}, 400), ({"id": "x"}, 400), ({"user": ["u"]}, 400),
    ],
)  # fmt: skip
def test_values_that_say_nothing_or_are_not_the_senders_to_say_are_refused(
    server: tuple[str, Gateway], said: dict[str, Any], status: int
) -> None:
    me = Client(server[0])
    assert me.say(request=me.ask(), **said).status_code == status


def test_numbers_that_are_none_are_no_json(server: tuple[str, Gateway]) -> None:
    me = Client(server[0])
    for value in ("NaN", "Infinity", "1e999", "-1e999", "1" + "0" * 400):
        body = f'{{"request": "{me.ask()}", "kind": "rating", "value": {value}}}'.encode()
        assert me.http.post("/v1/feedback", content=body).status_code == 400


# --- who says it


def test_the_user_of_feedback_is_the_requests_unless_the_key_is_believed(
    server: tuple[str, Gateway], tmp_path: Path
) -> None:
    plain, app = Client(server[0], key_of(tmp_path, "plain")), Client(server[0], key_of(tmp_path, "app", "users"))
    reader = Client(server[0], origin=SHOP)
    of_app, of_plain = app.ask(x_tuneloop_user="anna"), plain.ask(x_tuneloop_user="anna")
    for number in range(3):  # one reader with many names has one vote
        assert reader.say(request=of_app, user=f"u{number}").status_code == 200
        assert plain.say(request=of_plain, user=f"u{number}").status_code == 200
    assert app.say(request=of_app, user="ben").status_code == 200
    assert [(item.user, item.voice) for item in stored(tmp_path)] == [
        *[("anna", ANYONE), (None, "key:plain")] * 3, ("ben", "key:app"),
    ]  # fmt: skip
    with opened(tmp_path) as store:
        assert [(request.user, request.voice) for request in read_requests(store)] == [
            ("anna", None),
            ("anna", "key:plain"),
        ]


def test_an_idempotency_key_is_its_senders_own(server: tuple[str, Gateway], tmp_path: Path) -> None:
    anna, ben = (Client(server[0], key_of(tmp_path, name)) for name in ("anna", "ben"))
    app, reader = Client(server[0], key_of(tmp_path, "app", "feedback")), Client(server[0], origin=SHOP)
    sent = []
    for sender, owner in ((anna, anna), (ben, ben), (app, anna), (reader, anna), (reader, ben)):
        about = owner.ask()
        replies = [sender.say(request=about, key="vote-1") for _ in range(2)]
        assert replies[0].json()["id"] == replies[1].json()["id"]
        sent.append(replies[0].json()["id"])
    assert len(set(sent)) == 5 == len(stored(tmp_path))
    assert not any("vote-1" in str(item.key) for item in stored(tmp_path))


def test_invented_users_and_addresses_do_not_get_round_the_limit(tmp_path: Path) -> None:
    limits = {"per_minute": 5, "pages_per_minute": 8, "origins": [SHOP]}
    with live(tmp_path, feedback=limits) as (address, _):
        me = Client(address)
        id_ = me.ask()
        sent = [me.say(request=id_, user=f"u{i}").status_code for i in range(6)]
        assert sent == [200] * 5 + [429]
        for number in range(3):
            spoofed = Client(address, x_forwarded_for=f"10.0.0.{number}", forwarded=f"for=10.0.0.{number}")
            assert spoofed.say(request=me.ask()).status_code == 429
        assert Client(address, origin=SHOP).say(request=id_).status_code == 429  # the same address
        plain, app = Client(address, key_of(tmp_path, "plain")), Client(address, key_of(tmp_path, "app", "users"))
        mine, its = plain.ask(), app.ask()
        assert [plain.say(request=mine, user=f"u{i}").status_code for i in range(6)] == [200] * 5 + [429]
        assert [app.say(request=its, user=f"u{i}").status_code for i in range(9)] == [200] * 8 + [429]


def test_a_named_proxy_says_whose_address_it_is(tmp_path: Path) -> None:
    with live(tmp_path, feedback={"per_minute": 2}, limits={"proxies": ["127.0.0.1"]}) as (address, _):
        id_ = Client(address).ask()
        for client in ("10.0.0.1", "10.0.0.2"):
            behind = Client(address, x_forwarded_for=client)
            assert [behind.say(request=id_).status_code for _ in range(3)] == [200, 200, 429]


def test_one_host_of_an_ipv6_network_is_one_sender() -> None:
    nobody = Caller()
    assert limited_as(nobody, ("2001:db8::1", 1)) == limited_as(nobody, ("2001:db8::ffff:2", 2)) == "2001:db8::/64"
    assert limited_as(nobody, ("::ffff:10.0.0.1", 1)) == limited_as(nobody, ("10.0.0.1", 2)) == "10.0.0.1"
    assert limited_as(nobody, None) == limited_as(nobody, ("", 0)) == ""


# --- what comes of it

USERS = 100  # a candidate that is praised by so many is promoted


@pytest.mark.parametrize(
    ("rights", "named", "keyed", "outcome"),
    [
        (["users"], True, True, "promote"), (["users"], False, True, "continue"), ([], True, True, "continue"),
        ([], False, True, "continue"), ([], True, False, "continue"), ([], False, False, "continue"),
        (["feedback"], True, True, "continue"),
    ],
)  # fmt: skip
def test_only_users_whom_a_believed_key_names_decide_an_experiment(
    tmp_path: Path, rights: list[Right], named: bool, keyed: bool, outcome: str
) -> None:
    settings = {"model": "stub", "candidate": "new", "champion": "old", "shadow": False, "ramp": "50,100",
                "least_days": 0}  # fmt: skip
    with live(tmp_path, feedback={"per_minute": 1000}) as (address, gateway):
        state = start(tmp_path, "try", settings)
        arms = Arms(state)
        gateway.draw = lambda model, who, id_: ArmDraw(*(arms.arm_of(who or id_) or ("champion", 0.5)))
        bot = Client(address, key_of(tmp_path, "bot", *rights) if keyed else "")

        def come(number: int) -> None:
            name = {"x_tuneloop_user": f"u{number}"} if named else {}
            more = {"x_tuneloop_conversation": f"c{number}"} if number % 2 and not rights else {}
            id_ = bot.ask(**name, **more)
            arm = gateway_arm(gateway, id_)
            assert bot.say(request=id_, value=arm == "candidate", user=f"u{number}").status_code == 200

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(come, range(USERS)))
        gateway.store.stop()
        late = utc((time_of(utc_now()) + timedelta(days=5)).timestamp())
        _, verdict = check(tmp_path, "try", at=late)
        assert verdict.outcome == outcome, verdict.sentence
        assert verdict.evidence.users == (USERS if outcome == "promote" else 1)
        assert all(item.same and item.follows for item in replay(tmp_path, "try"))


def gateway_arm(gateway: Gateway, id_: str) -> str:
    """What the bot can't see: the worst case, one that knows its arm."""
    return ARMS[id_]


ARMS: dict[str, str] = {}


@pytest.fixture(autouse=True)
def arms_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    record_of = gateway._record_of

    def seen(account: Any) -> StoredRequest:
        record = record_of(account)
        ARMS[record.id] = record.arm or ""
        return record

    monkeypatch.setattr(gateway, "_record_of", seen)


def test_right_answers_of_strangers_never_become_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with live(tmp_path, feedback={"origins": [SHOP]}) as (address, _):
        nobody = Client(address)
        alone = nobody.ask(x_tuneloop_conversation="c")  # while there is no key
        for kind in ("correction", "label", "edited"):
            assert nobody.say(request=alone, kind=kind, value="poison").status_code == 200
        app, desk = (
            Client(address, key_of(tmp_path, "app", "users")),
            Client(address, key_of(tmp_path, "desk", "feedback")),
        )
        ids = [app.ask(x_tuneloop_user=f"u{i}") for i in range(4)]
        reader = Client(address, origin=SHOP)
        for id_ in ids[:3]:
            assert reader.say(request=id_, kind="correction", value="poison").status_code == 200
        assert app.say(request=ids[1], kind="correction", value="In the post").status_code == 200
        assert desk.say(request=ids[2], kind="label", value="post").status_code == 200
        assert reader.say(request=ids[3]).status_code == 200
    out = tmp_path / "rows"
    capsys.readouterr()
    assert main(["collect", str(tmp_path), "-o", str(out), "--heldout-share", "0"]) == 0
    assert "left out    4: the right answer came neither with the request's key" in capsys.readouterr().out
    rows = {row["request"]: (row["messages"][-1]["content"], row["origin"]) for row in lines_of(out / "sft.jsonl")}
    assert rows == {
        ids[1]: ("In the post", "correction"), ids[2]: ("post", "label"), ids[3]: ("Hello there.", "liked"),
    }  # fmt: skip
    assert {row["request"] for row in lines_of(out / "must_pass.jsonl")} == {ids[1], ids[2]}
    assert b"poison" not in b"".join(path.read_bytes() for path in out.iterdir())
    # What a stranger says is wrong is looked at by people, who may put it right.
    assert main(["review", "draw", str(tmp_path), "-o", str(tmp_path / "q"), "--json"]) == 0
    queued = {item["row"]: item["group"] for item in lines_of(tmp_path / "q" / "items.jsonl")}
    assert queued[alone] == queued[ids[0]] == "disliked" and ids[1] not in queued


def test_a_user_that_is_not_believed_gives_no_more_rows_than_one(tmp_path: Path) -> None:
    with live(tmp_path, feedback={"per_minute": 1000}) as (address, _):
        bot = Client(address)
        for number in range(30):
            named = {} if number % 3 else {"x_tuneloop_user": f"u{number}", "x_tuneloop_conversation": f"c{number}"}
            assert bot.say(request=bot.ask(**named)).status_code == 200
    for share in (0.0, 0.9):
        found = collect_store(tmp_path, tmp_path / "rows", {"heldout_share": share, "per_user": 7})
        most = max(found.counts["sft"], found.counts["kto"], found.counts["heldout"])
        assert most == 7 if not share else 0 < most <= 7  # a prompt that is trained on is not in the test
        assert share or found.dropped["user's share"] >= 10


def test_callers_without_a_key_are_believed_where_the_settings_say_so(tmp_path: Path) -> None:
    with live(tmp_path, keys={"open_rights": ["users", "feedback"]}, feedback={"origins": [SHOP]}) as (address, _):
        mine = Client(address)
        id_ = mine.ask(x_tuneloop_user="anna", x_tuneloop_conversation="c")
        assert mine.say(request=id_, weight=2, user="ben").status_code == 200
        assert mine.say(conversation="c", kind="correction", value="In the post").status_code == 200
        assert Client(address, origin=SHOP).say(request=id_, weight=2).status_code == 403, "any reader may be anybody"
    found = collect_store(tmp_path, tmp_path / "rows", {"heldout_share": 0})
    assert found.origins == {"correction": 1} and not found.dropped


def test_feedback_finds_its_request_while_all_threads_render(tmp_path: Path) -> None:
    async def work() -> str | None:
        release = threading.Event()
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        busy = loop.run_in_executor(None, release.wait)
        try:
            return await asyncio.wait_for(gateway.read_store(lambda store: "there"), HANG)
        finally:
            release.set()
            await busy

    with live(tmp_path) as (_, gateway):
        assert asyncio.run(work()) == "there"
