"""Who may say what of an answer: feedback that comes in by HTTP, checked against the request that it is about.

Who names a request, whose id has 62 secret random bits, had its answer or was shown it. A conversation's name can be
guessed: only its key may speak of it. User, weight and source are believed only from keys with the right to them.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash
from tuneloop.core.ids import utc_now, uuid7
from tuneloop.records.feedback import Feedback, feedback_of
from tuneloop.records.request import ANYONE
from tuneloop.serving.gateway import Caller, Gateway
from tuneloop.serving.http.api_request import ApiError, parsed, unavailable
from tuneloop.serving.http.contract import FeedbackBody
from tuneloop.serving.store.database import Database, DatabaseError, is_database_url
from tuneloop.serving.store.store import AnsweredRequest, find_answered, had_conversation, opened

TRUSTED = ("source", "weight")  # fields that need the right `feedback`
T = TypeVar("T")
ELSEWHERE = 0.3  # seconds after which another server has stored what it has just answered
_LOOKING = ThreadPoolExecutor(2, "feedback")  # no other work comes before it


def read_feedback_of(body: Mapping[str, Any], caller: Caller, *, page: bool) -> Feedback:
    """Feedback as it was sent, by a reader of a page where `page`; ApiError: a field or value is wrong or refused."""
    trusted = "feedback" in caller.rights
    asked = parsed(FeedbackBody, body)
    for name in TRUSTED:
        if getattr(asked, name) is not None and not trusted:
            what = f"{name} needs a key with the right: tuneloop keys add NAME --rights feedback"
            raise ApiError(403, what, param=name)
    user, source = asked.user or caller.user or None, asked.source or ("page" if page else "api")
    try:
        record = feedback_of({**body, "user": user, "source": source}, new_id=uuid7(), now=utc_now())
    except UserError as error:
        raise ApiError(400, f"{error.what} ({error.next_step})", param=error.where) from None
    if record.conversation is not None and caller.key is None and not trusted:
        what = "Feedback on a conversation needs the key that had it; name a request"
        raise ApiError(403, what, param="conversation")
    voice = f"trusted:{caller.name}" if trusted else f"key:{caller.name}" if caller.key is not None else ANYONE
    return record.model_copy(update={"voice": voice})


async def of_its_sender(gateway: Gateway, record: Feedback, caller: Caller) -> Feedback:
    """Feedback that the sender may give on what it is about, with the user whose it is.

    An idempotency key belongs to its sender, without an API key to the request: another one's equal key is another key.

    Raises:
        ApiError: there is no such answer or it is another key's, which look the same; or the store can't be read.
    """
    about, conversation = None, record.conversation
    if record.believed:
        pass
    elif conversation is not None:
        now = time.monotonic()
        recent = {(each.key, each.conversation) for each, until in gateway.recent.values() if until > now}
        if (caller.name, conversation) not in recent and not await read_store(
            gateway, lambda store: had_conversation(store, caller.name, conversation)
        ):
            raise ApiError(404, "This key had no such conversation", param="conversation", code="not_found")
    else:
        about = await _answered(gateway, record.request or "", caller, "request")
        if record.kind == "choice":
            await _answered(gateway, str(record.value), caller, "value")
    user = about.user if about is not None and about.voice is None else None
    if record.believed or "users" in caller.rights:
        user = record.user
    scope = [record.voice, "" if caller.key is not None else record.request or conversation, record.key]
    return record.model_copy(update={"user": user, "key": record.key and f"api:{content_hash(scope)[:32]}"})


async def _answered(gateway: Gateway, id_: str, caller: Caller, param: str) -> AnsweredRequest:
    """A request of the sender's that was answered, or, where it has no key, any one of this id."""
    answered, until = gateway.recent.get(id_, (None, 0.0))
    if until <= time.monotonic():
        answered = await read_store(gateway, lambda store: find_answered(store, id_))
    if answered is None or (caller.key is not None and answered.key != caller.name):
        raise ApiError(404, "There is no answer of this id", param=param, code="not_found")
    return answered


async def read_store(gateway: Gateway, look: Callable[[Database], T | None]) -> T | None:
    """What the store says, also a moment later where other servers write to it; ApiError: it can't be read."""
    place = gateway.config.store

    def work() -> T | None:
        with opened(place) as store:
            return look(store)

    try:
        loop = asyncio.get_running_loop()
        value = await loop.run_in_executor(_LOOKING, work)
        if not value and is_database_url(place):
            await asyncio.sleep(ELSEWHERE)
            value = await loop.run_in_executor(_LOOKING, work)
        return value
    except (UserError, DatabaseError):
        raise unavailable("The store can't be read at present", "store") from None


def limited_as(caller: Caller, client: Any) -> str:
    """By what a sender's feedback is counted: its key, else its address; of IPv6 the network: a host has 2^64."""
    if caller.key is not None:
        return f"key:{caller.name}"
    try:
        address = ipaddress.ip_address(client[0])
    except (TypeError, ValueError, IndexError):
        return ""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(getattr(address, "ipv4_mapped", None) or address)
