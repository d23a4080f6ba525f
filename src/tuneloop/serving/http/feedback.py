"""`/v1/feedback`: what people say of an answer, by HTTP, checked against the request that it is about.

Who names a request, whose id has 62 secret random bits, had its answer or was shown it. A conversation's name can be
guessed: only its key may speak of it. User, weight and source are believed only from keys with the right to them.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash
from tuneloop.core.ids import utc_now, uuid7
from tuneloop.records.feedback import Feedback, feedback_of
from tuneloop.records.request import ANYONE
from tuneloop.serving.admission import Bucket, Refusal
from tuneloop.serving.gateway import Caller, Gateway
from tuneloop.serving.http.api_request import ApiError, parsed, unavailable
from tuneloop.serving.http.contract import FeedbackBody
from tuneloop.serving.store.store import AnsweredRequest, find_answered, had_conversation

if TYPE_CHECKING:
    from tuneloop.serving.http.app import Call

TRUSTED = ("source", "weight")  # fields that need the right `feedback`
MOST_FEEDBACK = 150_000  # bytes of feedback: its longest text, mostly also where it is escaped
MOST_SENDERS = 10_000  # senders whose feedback is counted at a time


async def take_feedback(gateway: Gateway, limit: FeedbackLimit, call: Call) -> None:
    """`POST /v1/feedback`: what people say of an answer. It is stored when the reply comes."""
    page = call.header("origin") if call.header("origin") in gateway.config.feedback.origins else ""
    shared = {"access-control-allow-origin": page, "vary": "origin"} if page else {}
    if call.scope["method"] == "OPTIONS":  # a browser asks before it sends what a page of another site wants sent
        more = {"access-control-allow-headers": "content-type, idempotency-key", "access-control-max-age": "3600"}
        if not page:
            raise ApiError(403, "Requests from pages of other sites are refused", code="foreign_origin")
        await call.reply_bytes(b"", "text/plain", 204, {**shared, **more})
        return
    caller = Caller(rights=()) if page else gateway.caller(call.header)  # readers of pages have no key
    body = await call.json(MOST_FEEDBACK)
    body.setdefault("key", call.header("idempotency-key") or None)
    record = read_feedback_of(body, caller, page=bool(page))
    user = record.user or "" if "users" in caller.rights else ""
    limit.take(limited_as(caller, call.scope.get("client")), page=bool(page), user=user)
    record = await of_its_sender(gateway, record, caller)
    try:
        id_ = await asyncio.wrap_future(gateway.store.add_durably(record))
    except OSError:  # the log has it
        raise unavailable("The store takes nothing at present", "store") from None
    reply = {"id": id_, "object": "feedback", "request": record.request, "conversation": record.conversation}
    await call.reply(reply, headers=shared)


def read_feedback_of(body: Mapping[str, Any], caller: Caller, *, page: bool) -> Feedback:
    """Feedback as it was sent, by a reader of a page where `page`; ApiError: a field or value is wrong or refused."""
    trusted = "feedback" in caller.rights
    asked = parsed(FeedbackBody, body)
    for name in TRUSTED:
        if getattr(asked, name) is not None and not trusted:
            message = f"{name} needs a key with the right: tuneloop keys add NAME --rights feedback"
            raise ApiError(403, message, param=name)
    user, source = asked.user or caller.user or None, asked.source or ("page" if page else "api")
    try:
        record = feedback_of({**body, "user": user, "source": source}, new_id=uuid7(), now=utc_now())
    except UserError as error:
        param = error.where if error.where in FeedbackBody.model_fields else None
        raise ApiError(400, f"{error.what} ({error.next_step})", param=param) from None
    if record.conversation is not None and caller.key is None and not trusted:
        message = "Feedback on a conversation needs the key that had it; name a request"
        raise ApiError(403, message, param="conversation")
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
        recent = {(sender.key, sender.conversation) for sender, until in gateway.recent.values() if until > now}
        if (caller.name, conversation) not in recent and not await gateway.read_store(
            lambda store: had_conversation(store, caller.name, conversation)
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
        answered = await gateway.read_store(lambda store: find_answered(store, id_))
    if answered is None or (caller.key is not None and answered.key != caller.name):
        raise ApiError(404, "There is no answer of this id", param=param, code="not_found")
    return answered


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


@dataclass
class FeedbackLimit:
    """How much feedback is taken in a minute, so that no one fills the store alone."""

    each: int  # pieces a minute from one sender
    pages: int  # from all readers of pages together, or from all users whom one key names
    clock: Callable[[], float] = time.monotonic  # seconds
    _open: Bucket | None = None
    _senders: dict[str, Bucket] = field(default_factory=dict)

    def take(self, who: str, *, page: bool, user: str = "") -> None:
        """Count a piece of feedback, or raise a Refusal where there was too much of it in this minute.

        Args:
            who: the key, or the address where there is none.
            page: it comes from a reader of a page.
            user: whom a key names that is believed; empty: none.
        """
        now = self.clock()
        if page:
            self._open = self._open or Bucket(self.pages, self.pages, now)
            if wait := self._open.take(1, now):
                raise Refusal("rate_limit_exceeded", f"Pages may send {self.pages:,} pieces of feedback a minute", wait)
        for sender, rate in ((who, self.pages), (f"{who}\x1f{user}", self.each)) if user else ((who, self.each),):
            bucket = self._senders.pop(sender, None) or Bucket(rate, rate, now)
            self._senders[sender] = bucket  # the last ones stand last
            if len(self._senders) > MOST_SENDERS:
                del self._senders[next(iter(self._senders))]
            if wait := bucket.take(1, now):
                raise Refusal("rate_limit_exceeded", f"One sender may send {rate:,} pieces of feedback a minute", wait)
