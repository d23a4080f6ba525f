"""Bodies of requests as JSON objects: small ones are read at once, others first where that can be ended."""

from __future__ import annotations

import json
from typing import Any

import orjson

from tuneloop.core.bounded_work import WORK, TooMuchWork
from tuneloop.core.json_schema import MOST_DEPTH, too_deep
from tuneloop.serving.http.api_request import ApiError

AT_ONCE = 65_536  # bytes of a body that is read at once
PARTS_AT_ONCE = 10_000  # quotes and brackets of such a body
MOST_PARTS = 50_000  # objects, lists and texts of a body; numbers are not counted: prompts may be token ids
SECONDS = 2.0  # of a processor for one body


async def json_object(raw: bytes) -> dict[str, Any]:
    """A body as a JSON object.

    Raises:
        ApiError: it is none, nested too deeply, or too much for this server. TooBusy: see `core.bounded_work`.
    """
    if len(raw) <= AT_ONCE and sum(map(raw.count, (b'"', b"[", b"{"))) <= PARTS_AT_ONCE:
        return _read(raw)
    try:
        fault = json.loads(await WORK.result(check_job, raw, seconds=SECONDS))
    except TooMuchWork:
        fault = 413, "Reading the request takes too long: send less", "request_too_large"
    if fault:
        status, message, code = fault
        raise ApiError(status, message, code=code)
    value: dict[str, Any] = orjson.loads(raw)
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
        value = orjson.loads(raw)
    except ValueError as error:
        raise ApiError(400, f"The body is not valid JSON: {error}"[:300], code="invalid_json") from None
    except RecursionError:
        value = None
    if not isinstance(value, dict):
        raise ApiError(400, "The body must be a JSON object", code="invalid_json")
    if too_deep(raw, value):
        raise ApiError(400, f"The body is nested in more than {MOST_DEPTH} levels", code="invalid_json")
    return value
