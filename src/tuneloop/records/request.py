"""A request that was served, as it is stored."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

from pydantic import TypeAdapter

from tuneloop.records.record import JsonSteps, checked
from tuneloop.records.rows import Message

NOT_LOADED = "the candidate is not loaded"  # a fallback that says nothing of it, as just after a server's start
ANYONE = "anyone"  # who sent something, where no key says it
REFUSED = "refused"  # how a request ended that a limit or its own fault kept from being answered
LEFT = "the client left"  # no answer is at fault: the client went, or the server was stopped


@dataclass(slots=True, kw_only=True)
class StoredRequest:
    """A stored request. Feedback, monitors and experiments name it by its `id`.

    A server makes thousands a second, so its values are checked only where they come from a file: see `as_request`.

    Args:
        id: UUIDv7; also the completion's `id`.
        time: when it arrived, ISO 8601 in UTC.
        key: name of the API key that it came with, never the key itself; `model`: as it was requested.
        adapter: hash of the trained weights that answered; None: the base model.
        release: version in the registry; None where none is named.
        arm: of an experiment, and `propensity`, the chance to meet the candidate when its user came; None outside of
            experiments.
        fallback: why the champion answered in the candidate's place; None: who was drawn answered.
        shadow: id of the request of which this is a copy that a candidate answered unseen, or `canary:ROW` where the
            monitor sent a row of its data set; None: a client sent it.
        route: what a router decided: `model`, `why` (`best`, `by chance`, `none of these`, `conversation`), `scores` by
            model, `similarity` to the rows that it was fitted to, `chance` of this choice; None: no router.
        voice: as whom it counts where users are counted: `key:NAME`, or `anyone` without a key, all of whose users
            together are one; None: its key's word for its user and conversation is taken.
        train: `no`: it must not become training data, as its key says; None: it may.
        user: pseudonym of the end user; `conversation`: that the request belongs to, as the client names it.
        prompt: the messages, and `tools`, the functions that the model could call.
        completion: the text, and tool calls if there are any; None where it failed.
        prompt_tokens, completion_tokens: read and written.
        ttft_ms, total_ms: milliseconds to the first token and in all.
        finish: why it ended: `stop`, `length`, `tool_calls`, ...; `refused`: it never ran.
        tier: service tier.
        usd: its price.
        seconds: of the engine that it took; None: not measured.
        error: why it failed; None where it didn't.
    """

    title: ClassVar[str] = "a stored request"
    again: ClassVar[str] = "read the store with the version that wrote it"
    migrations: ClassVar[JsonSteps] = ()  # of its lines in files; the store has its own

    id: str
    time: str
    key: str = ""
    model: str
    adapter: str | None = None
    release: str | None = None
    arm: str | None = None
    propensity: float | None = None
    fallback: str | None = None
    shadow: str | None = None
    route: dict[str, Any] | None = None
    train: str | None = None
    voice: str | None = None
    user: str | None = None
    conversation: str | None = None
    prompt: list[Message]
    tools: list[dict[str, Any]] = field(default_factory=list)
    completion: dict[str, Any] | str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    ttft_ms: float | None = None
    total_ms: float | None = None
    finish: str | None = None
    tier: str | None = None
    usd: float | None = None
    seconds: float | None = None
    error: str | None = None


def as_request(value: Any, where: str) -> StoredRequest:
    """A JSON value from the file `where` as a stored request, without unknown keys; refused as by `read_record`."""

    def validate(record: dict[str, Any]) -> StoredRequest:
        names = StoredRequest.__dataclass_fields__
        return _adapter().validate_python({name: item for name, item in record.items() if name in names}, extra="allow")

    return checked(StoredRequest, value, where, validate)


@cache
def _adapter() -> TypeAdapter[StoredRequest]:
    return TypeAdapter(StoredRequest)
