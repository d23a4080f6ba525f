"""Answers of `/v1/responses` that a later request refers to, as the store has them: for the key that had them alone.

Nothing is kept for it but the log: what is erased there, or was never in it, can't be referred to.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

from tuneloop.records.request import StoredRequest
from tuneloop.records.rows import Message
from tuneloop.serving.gateway import Caller, Gateway
from tuneloop.serving.http.api_request import ITEM_ID, ApiError, Earlier, EarlierResponse, bad
from tuneloop.serving.http.contract import ResponsesBody
from tuneloop.serving.http.replies import calls_of
from tuneloop.serving.http.senders import read_store
from tuneloop.serving.store.database import Database
from tuneloop.serving.store.store import read_requests

MOST_EARLIER = 64  # answers that one request may refer to
WRITTEN_WITHIN = 3.0  # seconds after its end in which an answer comes into the store
LOOK_EVERY = 0.05


async def earlier_responses(gateway: Gateway, asked: ResponsesBody, caller: Caller) -> Earlier:
    """The answers that a request refers to, by id.

    Raises:
        ApiError: one is not there, is another key's or was not to be stored, which look the same; there are too many;
            or the log keeps no texts.
    """
    named = _named(asked)
    if not named:
        return {}
    if (content := gateway.config.log.content) in ("hash", "none"):
        what = f"This server keeps no texts of earlier answers (log.content: {content}): send all turns as input"
        raise bad(what, next(iter(named.values()))[0])
    if len(named) > MOST_EARLIER:
        raise bad(f"at most {MOST_EARLIER} earlier answers can be referred to in a request", "input")
    until, found = time.monotonic() + WRITTEN_WITHIN, dict[str, EarlierResponse]()
    while True:
        missing = [id_ for id_ in named if id_ not in found]
        records = await read_store(gateway, partial(_records, ids=missing, key=caller.name)) or []
        found |= {record.id: earlier for record in records if (earlier := _earlier(record)) is not None}
        waiting = [id_ for id_ in missing if id_ not in {record.id for record in records} and id_ in gateway.recent]
        if not waiting or time.monotonic() > until:
            break
        await asyncio.sleep(LOOK_EVERY)
    for id_, (param, name) in named.items():
        if id_ not in found and param == "previous_response_id":
            raise bad(f"Previous response with id {name!r:.80} not found.", param, "previous_response_not_found")
        if id_ not in found:
            raise ApiError(404, f"Item with id {name!r:.80} not found.", param=param, code="not_found")
    return found


def _named(asked: ResponsesBody) -> dict[str, tuple[str, str]]:
    """Ids of answers, each with the field that names it, and what this says."""
    named: dict[str, tuple[str, str]] = {}
    if id_ := asked.previous_response_id:
        named[id_] = ("previous_response_id", id_)
    for number, item in enumerate([] if isinstance(asked.input, str) else asked.input):
        part: Any = item
        if part.get("type") == "item_reference":
            match = ITEM_ID.fullmatch(part["id"])
            named.setdefault(match[2] if match else part["id"], (f"input[{number}].id", part["id"]))
    return named


def _records(store: Database, ids: Sequence[str], key: str) -> list[StoredRequest]:
    where = f"id IN ({', '.join('?' * len(ids))}) AND COALESCE(key, '') = ?"
    return list(read_requests(store, where=where, values=[*ids, key]))


def _earlier(record: StoredRequest) -> EarlierResponse | None:
    """What was said; None: the answer failed, was not to be stored, or its texts are not in the log."""
    completion = record.completion
    if not isinstance(completion, dict) or record.error is not None or not record.prompt:
        return None
    noted, text = completion.get("response"), completion.get("content")
    if not isinstance(noted, dict) or not isinstance(text, str):
        return None
    said, calls = calls_of(text, record.tools, one=bool(noted.get("one_call")), id_=record.id)
    answer = {"role": "assistant", "content": said} | ({"tool_calls": calls} if calls else {})
    return EarlierResponse(record.prompt[1 if noted.get("instructions") else 0 :], cast(Message, answer))
