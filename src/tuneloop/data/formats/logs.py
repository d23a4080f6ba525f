"""Logged requests to a chat API and their responses."""

from __future__ import annotations

from typing import Any

from tuneloop.data.config import PrepareConfig
from tuneloop.data.formats.conversation import as_list
from tuneloop.data.formats.draft import Draft, checked_parser
from tuneloop.data.formats.exchanges import (
    REQUEST_NAMES,
    RESPONSE_NAMES,
    looks_like_request,
    looks_like_response,
    read_exchange,
)
from tuneloop.data.formats.registry import Format
from tuneloop.data.formats.sample import FormatGuess, Record, Sample, mostly
from tuneloop.data.formats.turns import ROLES, read_tools, read_turns


def logs(record: Record, guess: FormatGuess, config: PrepareConfig) -> Draft:
    """A logged request to a chat API and its response."""
    exchange = read_exchange(record, guess.columns["request"], guess.columns["response"])
    repairs: list[dict[str, Any]] = []
    turns = read_turns(exchange.turns, guess.keys, repairs)
    extra = {"model": exchange.model} if exchange.model else {}
    return Draft(turns, repairs, read_tools(exchange.tools, "the request's tools"), extra)


def _find_logs(sample: Sample, config: PrepareConfig) -> FormatGuess | None:
    known = {name.casefold(): name for name in reversed(sample.columns) if sample.is_usual(name)}
    requests = [known[name] for name in REQUEST_NAMES if name in known]
    responses = [known[name] for name in RESPONSE_NAMES if name in known]
    for request in requests:
        asked = sample.of(request)
        structured = mostly(asked, looks_like_request)
        if structured and mostly(asked, _is_answered):
            continue  # whole conversations: they need no response
        for response in responses:
            answers = sample.of(response)
            if response == request or not (structured or mostly(answers, looks_like_response)):
                continue
            if any(answer is not None for answer in answers):
                return FormatGuess(
                    "logs",
                    {"request": request, "response": response},
                    sample.seen([request, response], " of a chat API"),
                )
    return None


def _is_answered(value: Any) -> bool:
    """Whether a list of turns ends with the assistant's."""
    value = as_list(value)
    last = value[-1] if isinstance(value, list) and value else None
    return isinstance(last, dict) and ROLES.get(str(last.get("role")).casefold()) == "assistant"


FORMAT = Format("logs", "request and response", checked_parser(logs), _find_logs)
