"""`/v1/responses`: what a client requests, the answer as a whole and in pieces, and earlier answers that it refers to.

Those are as the store has them, for the key that had them alone. Nothing is kept for it but the log: what is erased
there, or was never in it, can't be referred to.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from tuneloop.records.completion import Completion
from tuneloop.records.request import StoredRequest
from tuneloop.records.rows import Message
from tuneloop.serving.gateway import Caller, Gateway, Piece
from tuneloop.serving.http.api_request import (
    CHOICES,
    EXAMPLE,
    ApiError,
    ApiRequest,
    as_messages,
    bad,
    sampling_of,
    schema_of,
    tier_of,
    tools_of,
)
from tuneloop.serving.http.contract import ResponsesBody
from tuneloop.serving.http.replies import CallSplitter, calls_of, usage
from tuneloop.serving.store.database import Database
from tuneloop.serving.store.store import read_requests

MOST_EARLIER = 64  # answers that one request may refer to
WRITTEN_WITHIN = 3.0  # seconds after its end in which an answer comes into the store
LOOK_EVERY = 0.05


@dataclass(frozen=True)
class EarlierResponse:
    """An answer of `/v1/responses` that a later request refers to."""

    prompt: Sequence[Message]  # the turns before it, without instructions
    answer: Message


# Ids of items, from those of their answers: a message, a thought, the call of that number.
ITEM_ID = re.compile(r"(msg|rs|fc)_([0-9a-f-]{36})(?:_(\d{1,3}))?")
Earlier = Mapping[str, EarlierResponse]  # by id


def read_responses(asked: ResponsesBody, earlier: Earlier) -> ApiRequest:
    """A body of `/v1/responses`, with the answers that it refers to; ApiError: see `read_chat`."""
    turns: Any = [{"role": "user", "content": asked.input}] if isinstance(asked.input, str) else _turns(asked, earlier)
    messages = as_messages(turns)
    if not messages:
        raise bad(f"input must hold a message: {EXAMPLE}", "input")
    if asked.previous_response_id:
        before = earlier[asked.previous_response_id]
        messages = [*before.prompt, before.answer, *messages]
    if asked.instructions:
        messages = [{"role": "system", "content": asked.instructions}, *messages]
    choice: Any = asked.tool_choice or "auto"
    given: Any = asked.tools or ()
    fields = ("name", "description", "parameters")
    tools, schema = tools_of(
        [{"type": "function", "function": {n: tool[n] for n in fields if tool.get(n) is not None}} for tool in given],
        choice if choice in CHOICES else choice["name"],
    )
    names = ("instructions", "tools", "previous_response_id")
    repeated = {name: getattr(asked, name) for name in names} | {
        "tool_choice": choice,
        "store": asked.store is not False,
    }
    return ApiRequest(
        "responses",
        messages=messages,
        tools=tools,
        one_call=asked.parallel_tool_calls is False,
        repeated=repeated,
        schema=schema or schema_of((asked.text or {}).get("format")),
        model=asked.model or "",
        user=asked.user or "",
        tier=tier_of(asked.service_tier),
        stream=bool(asked.stream),
        max_new_tokens=asked.max_output_tokens,
        sampling=sampling_of(asked.temperature, asked.top_p),
    )


def _turns(asked: ResponsesBody, earlier: Earlier) -> list[dict[str, Any]]:
    """The turns of items: calls belong to the turn of the assistant before them."""
    turns: list[dict[str, Any]] = []
    for item in asked.input:
        part: Any = item
        kind = part.get("type") or "message"
        if kind == "item_reference":
            part = _referred(part["id"], earlier)
        elif kind == "function_call":
            function = {"name": part["name"], "arguments": part["arguments"]}
            part = {"role": "assistant", "content": "", "tool_calls": [
                {"id": part["call_id"], "type": "function", "function": function}
            ]}  # fmt: skip
        elif kind == "function_call_output":
            part = {"role": "tool", "content": part["output"], "tool_call_id": part["call_id"]}
        elif kind == "reasoning":
            continue
        calls = part.get("tool_calls") if part else None
        if calls and turns and turns[-1]["role"] == "assistant" and not part.get("content"):
            turns[-1] = {**turns[-1], "tool_calls": [*turns[-1].get("tool_calls", ()), *calls]}
        elif part:
            turns.append(part)
    return turns


def _referred(id_: str, earlier: Earlier) -> dict[str, Any] | None:
    """An item of an earlier answer as a turn; None: it has no turn of its own, as a thought."""
    kind, of, number = ITEM_ID.fullmatch(id_).groups()  # type: ignore[union-attr]
    answer: Any = earlier[of].answer
    if kind == "msg":
        return {"role": "assistant", "content": answer["content"]}
    calls = answer.get("tool_calls", [])[int(number) :][:1] if kind == "fc" and number else []
    return {"role": "assistant", "content": "", "tool_calls": calls} if calls else None


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
        message = f"This server keeps no texts of earlier answers (log.content: {content}): send all turns as input"
        raise bad(message, next(iter(named.values()))[0])
    if len(named) > MOST_EARLIER:
        raise bad(f"at most {MOST_EARLIER} earlier answers can be referred to in a request", "input")
    until, found = time.monotonic() + WRITTEN_WITHIN, dict[str, EarlierResponse]()
    while True:
        missing = [id_ for id_ in named if id_ not in found]
        records = await gateway.read_store(partial(_records, ids=missing, key=caller.name)) or []
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
    said, calls = calls_of(text, record.tools, only_one=bool(noted.get("one_call")), id_=record.id)
    answer = {"role": "assistant", "content": said} | ({"tool_calls": calls} if calls else {})
    return EarlierResponse(record.prompt[1 if noted.get("instructions") else 0 :], cast(Message, answer))


def responses_body(
    request: ApiRequest, piece: Piece, completion: Completion | None, output: Sequence[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """The body of `/v1/responses`; without a completion that of an answer that has only begun.

    Args:
        output: its items, where they are known; None: those of the completion.
    """
    tokens, repeated = usage([completion]) if completion else None, request.repeated
    cut = completion is not None and completion.finish == "length"
    if output is None and completion is not None:
        said, calls = calls_of(completion.text, request.tools, only_one=request.one_call, id_=piece.id)
        items = [_message_item(piece.id, said, "completed")] if said or not calls else []
        output = [*_thoughts(piece.id, completion), *items, *_call_items(piece.id, calls)]
    return {
        "id": piece.id, "object": "response", "created_at": int(time.time()), "model": piece.model.name,
        "status": ("incomplete" if cut else "completed") if completion else "in_progress",
        "error": None, "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "metadata": {}, "parallel_tool_calls": not request.one_call, "temperature": request.sampling.temperature,
        "top_p": request.sampling.top_p, "max_output_tokens": request.max_new_tokens,
        **repeated, "tools": repeated.get("tools") or [],
        "text": {"format": {"type": "text"}}, "truncation": "disabled", "user": request.user or None,
        "output": output or [],
        "usage": tokens and {
            "input_tokens": tokens["prompt_tokens"], "input_tokens_details": tokens["prompt_tokens_details"],
            "output_tokens": tokens["completion_tokens"], "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": tokens["total_tokens"],
        },
    }  # fmt: skip


def _thoughts(id_: str, completion: Completion) -> list[dict[str, Any]]:
    """What a model thought before its answer, as an item of its own; not of a streamed answer, whose item has begun."""
    content = [{"type": "reasoning_text", "text": completion.reasoning}]
    return [{"id": f"rs_{id_}", "type": "reasoning", "summary": [], "content": content}] if completion.reasoning else []


def _message_item(id_: str, text: str, status: str) -> dict[str, Any]:
    content = [] if status == "in_progress" else [_part(text)]
    return {"id": f"msg_{id_}", "type": "message", "role": "assistant", "status": status, "content": content}


def _call_items(id_: str, calls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Calls as items, whose ids say of which answer they are, so that a later request can refer to them."""
    of_all = {"type": "function_call", "status": "completed"}
    return [
        {"id": f"fc_{id_}_{number}", **of_all, "call_id": call["id"], **call["function"]}
        for number, call in enumerate(calls)
    ]


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


@dataclass
class ResponsesStream:
    """The events of a streamed answer of `/v1/responses`; each has its type."""

    request: ApiRequest
    number: int = -1
    text: str = ""  # that was given out
    splitter: CallSplitter | None = None

    def events(self, piece: Piece) -> Iterator[dict[str, Any]]:
        """What a piece of the answer becomes."""
        if self.splitter is None:
            self.splitter = CallSplitter(self.request, piece.id)
            body = responses_body(self.request, piece, None)
            yield self._event("response.created", response=body)
            yield self._event("response.in_progress", response=body)
        text, calls = self.splitter.split(piece.text, last=piece.completion is not None)
        at = {"item_id": f"msg_{piece.id}", "output_index": 0, "content_index": 0}
        over = piece.completion is not None
        if not self.text and (text or (over and not calls)):
            item = _message_item(piece.id, "", "in_progress")
            yield self._event("response.output_item.added", output_index=0, item=item)
            yield self._event("response.content_part.added", **at, part=_part(""))
        self.text += text
        if text:
            yield self._event("response.output_text.delta", **at, delta=text, logprobs=[])
        if piece.completion is None:
            return
        output = []
        if self.text or not calls:
            yield self._event("response.output_text.done", **at, text=self.text, logprobs=[])
            yield self._event("response.content_part.done", **at, part=_part(self.text))
            output.append(_message_item(piece.id, self.text, "completed"))
            yield self._event("response.output_item.done", output_index=0, item=output[0])
        for item in _call_items(piece.id, calls):
            yield from self._called(item, len(output))
            output.append(item)
        body = responses_body(self.request, piece, piece.completion, output)
        yield self._event(f"response.{body['status']}", response=body)

    def _called(self, item: dict[str, Any], index: int) -> Iterator[dict[str, Any]]:
        """The events of a call, which is known as a whole when it begins."""
        at = {"item_id": item["id"], "output_index": index}
        begun = {**item, "arguments": "", "status": "in_progress"}
        yield self._event("response.output_item.added", output_index=index, item=begun)
        yield self._event("response.function_call_arguments.delta", **at, delta=item["arguments"])
        done = {"name": item["name"], "arguments": item["arguments"]}
        yield self._event("response.function_call_arguments.done", **at, **done)
        yield self._event("response.output_item.done", output_index=index, item=item)

    def end(self) -> Iterator[dict[str, Any]]:
        """Nothing: the last event says that it is the last."""
        return iter(())

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        self.number += 1
        return {"type": kind, "sequence_number": self.number, **fields}
