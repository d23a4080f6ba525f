"""Canary prompts at work: rows of a data set are asked, stored among the requests, and compared with their answers before."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import plain
from tuneloop.core.ids import utc, utc_now, uuid7
from tuneloop.improve.experiment.statistics import time_of
from tuneloop.improve.monitor.canary_prompts import FIRST_ROUNDS, MARK, canary_rows, follow, rounds_of, without_texts
from tuneloop.improve.monitor.record import CanaryRound
from tuneloop.inference.answer import can_give_way, complete
from tuneloop.inference.request import Request
from tuneloop.models.adapters import BASE
from tuneloop.records.completion import Completion
from tuneloop.records.decision import Decision
from tuneloop.records.request import StoredRequest
from tuneloop.records.rows import Dataset, Row
from tuneloop.serving.store.database import Database
from tuneloop.serving.store.store import insert, opened, read_requests

if TYPE_CHECKING:
    from tuneloop.pipeline.targets import TaskTarget
    from tuneloop.serving.gateway import Gateway, ServedModel

EVENT = "monitor.canaries"
TOKENS = 64  # of an answer
LOOKS_BACK = 400.0  # days


def rows_of(known: Dataset, most: int) -> list[Row]:
    """The rows of a data set that are asked: of its test, which no training has seen; without one of its training."""
    return canary_rows(known.test, most) or canary_rows(known.train, most)


def findings(store: Database, model: str, rows: Mapping[str, Row], level: float, until: str = "") -> list[CanaryRound]:
    """What each round shows against those before it.

    Args:
        store: open.
        model: served name.
        rows: of the data set, by their ids.
        level: see `canary_level`.
        until: only rounds before that time.
    """
    since = utc((time_of(until or utc_now()) - timedelta(days=LOOKS_BACK)).timestamp())
    where = f"model = ? AND shadow LIKE '{MARK}%'"
    own = read_requests(store, since=since, until=until, where=where, values=[model], shadow=True)
    return follow(rounds_of(own), rows, level)


def check_last(place: Path | str, model: str, rows: Sequence[Row], level: float) -> CanaryRound | None:
    """What the last round shows, which is logged as an event `monitor.canaries`; None: nothing was asked yet.

    Raises:
        UserError: there is no store.
    """
    with opened(place) as store:
        found = findings(store, model, {row.id: row for row in rows}, level)
        if not found:
            return None
        key, data = f"{EVENT}:{model}:{found[-1].round}", plain(without_texts(found[-1]))
        insert(store, [Decision(id=uuid7(), time=utc_now(), kind=EVENT, subject=model, data=data, key=key)])
    return found[-1]


def rounds_due(
    place: Path | str, model: str, identity: tuple[str | None, str | None], every_days: float, *, now: str = ""
) -> int:
    """How many rounds are due: several at first, one when the last one is old enough or another release answers.

    Args:
        place: the store's file, or the server's folder.
        model: served name.
        identity: adapter and release that answer now.
        every_days: between two rounds.
        now: the time; the clock's where empty.

    Raises:
        UserError: there is no store.
    """
    with opened(place) as store:
        last = store.execute(
            f"SELECT time, adapter, release FROM requests WHERE model = ? AND shadow IS NOT NULL AND shadow LIKE '{MARK}%' "
            "ORDER BY id DESC LIMIT 1",
            [model],
        ).fetchone()
    if last is None:
        return FIRST_ROUNDS
    days = (time_of(now or utc_now()) - time_of(last[0])).total_seconds() / 86_400
    return int(days >= every_days or tuple(last[1:]) != identity)


# --- asking ------------------------------------------------------------------------------------


def identity_of(model: ServedModel) -> tuple[str | None, str | None]:
    """Adapter and release of a served model, as its requests are stored."""
    return None if model.adapter == BASE else model.adapter, model.release or None


async def ask_gateway(gateway: Gateway, name: str, rows: Sequence[Row]) -> None:
    """Ask the rows of a model that a server has, while nobody else waits, and store the answers.

    Raises:
        UserError: the engine ended, or another one took its place.
    """
    engine, model, called = gateway.engine, gateway.models[name], uuid7()
    adapter, release = identity_of(model)
    stored = []
    for row in rows:
        await gateway.admission.quiet()
        if gateway.engine is not engine or gateway.admission.closed:
            raise UserError("Another engine answers now", where=name, next_step="the next look asks it")
        asked = replace(_request(row), adapter=model.adapter, choices=model.labels, gives_way=can_give_way(engine))
        began = time.perf_counter()
        answer = await complete(engine, asked)
        record = _record(row, answer, called, model=name, adapter=adapter, release=release)
        record.total_ms = round(1000 * (time.perf_counter() - began), 3)
        stored.append(asyncio.wrap_future(gateway.store.add_durably(record)))
    await asyncio.gather(*stored, return_exceptions=True)


def ask_target(place: Path | str, name: str, rows: Sequence[Row], target: TaskTarget, *, rounds: int) -> None:
    """Ask the rows of any target, and store the answers as those of a model.

    Args:
        place: the store's file, or the server's folder.
        name: of the model in the store.
        rows: that are asked.
        target: who answers.
        rounds: one after the other.

    Raises:
        UserError: there is no store, or the target can't answer.
    """
    requests = [_request(row) for row in rows]
    labels = target.task.labels if target.scores_labels and target.task is not None else None
    for i in range(rounds):
        task = f"asking canary prompts, round {i + 1} of {rounds}"
        answers = (
            target.target.score(requests, labels, task=task) if labels else target.target.complete(requests, task=task)
        )
        called = uuid7()
        records = [
            _record(row, answer, called, model=name, adapter=target.identity, release=None)
            for row, answer in zip(rows, answers, strict=True)
        ]
        with opened(place) as store:
            insert(store, records)


def _request(row: Row) -> Request:
    return Request(row.prompt, row.tools or (), max_new_tokens=TOKENS)


def _record(row: Row, answer: Completion, called: str, **model: Any) -> StoredRequest:
    """An answer as it is stored: as nobody's request, so that no count of traffic has it."""
    chance = answer.label_probability
    text: dict[str, Any] | str | None = None if answer.error else answer.text
    if text is not None and chance is not None and chance == chance:
        text = {"role": "assistant", "content": answer.text, "probability": round(chance, 6)}
    return StoredRequest(
        id=uuid7(), time=utc_now(), **model, shadow=f"{MARK}{row.id}", conversation=called, train="no", prompt=row.prompt,
        tools=row.tools, completion=text, prompt_tokens=answer.prompt_tokens, completion_tokens=answer.completion_tokens,
        total_ms=answer.total_ms, finish=answer.finish, tier="canary", usd=0.0, error=answer.error or None,
    )  # fmt: skip
