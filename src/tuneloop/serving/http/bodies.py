"""Bodies of requests as JSON objects: small ones are read at once, others first where that can be ended."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tuneloop.core.bounded_work import WORK, TooMuchWork
from tuneloop.core.foreign import LIMITS, fast_json, parse_json
from tuneloop.core.json_schema import MOST_DEPTH, too_deep
from tuneloop.serving.http.api_request import ApiError

AT_ONCE, PARTS_AT_ONCE = LIMITS["at once"].bytes, LIMITS["at once"].nodes  # parts: quotes and brackets
MOST_PARTS, SECONDS = LIMITS["body"].nodes, LIMITS["body"].seconds  # parts: objects, lists and texts
QUICK = 4_096  # bytes of a body that is read and validated in a fraction of a millisecond; others take turns


async def json_object(raw: bytes, turns: asyncio.Lock) -> dict[str, Any]:
    """A body as a JSON object.

    Args:
        turns: of bodies that are not `QUICK`. In each round of the event loop one of them is read and
            validated in up to ten milliseconds: thirty at once would hold all others up for a third of a second.

    Raises:
        ApiError: it is none, nested too deeply, or too much for this server. TooBusy: see `core.bounded_work`.
    """
    is_small = len(raw) <= AT_ONCE and sum(map(raw.count, (b'"', b"[", b"{"))) <= PARTS_AT_ONCE
    if not is_small:
        try:
            fault = parse_json(await WORK.result(check_job, raw, seconds=SECONDS))
        except TooMuchWork:
            fault = 413, "Reading the request takes too long: send less", "request_too_large"
        if fault:
            status, message, code = fault
            raise ApiError(status, message, code=code)
    if len(raw) > QUICK:
        async with turns:
            await asyncio.sleep(0)
    if is_small:
        return _read(raw)
    value: dict[str, Any] = fast_json(raw)
    return value


def check_job(raw: bytes) -> bytes:
    """In a process of `core.bounded_work`: what is wrong with a body, as JSON of status, message and code, or null."""
    try:
        value = _read(raw)
    except ApiError as error:
        return json.dumps([error.status, error.message, error.code]).encode()
    parts = 0
    left: list[Any] = [value]
    while left and parts <= MOST_PARTS:
        part = left.pop()
        if isinstance(part, dict):
            parts += len(part)
            part = part.values()
        below = [item for item in part if isinstance(item, dict | list | str)]
        parts += len(below)
        left += [item for item in below if not isinstance(item, str)]
    if parts > MOST_PARTS:
        what = f"The body has more than {MOST_PARTS:,} objects, lists and texts"
        return json.dumps([413, what, "request_too_large"]).encode()
    return b"null"


def _read(raw: bytes) -> dict[str, Any]:
    try:
        value = fast_json(raw)
    except ValueError as error:
        raise ApiError(400, f"The body is not valid JSON: {error}"[:300], code="invalid_json") from None
    except RecursionError:
        value = None
    if not isinstance(value, dict):
        raise ApiError(400, "The body must be a JSON object", code="invalid_json")
    if too_deep(raw, value):
        raise ApiError(400, f"The body is nested in more than {MOST_DEPTH} levels", code="invalid_json")
    return value
