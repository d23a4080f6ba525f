"""Long conversations become token ids in a process that can be ended: a template is a foreign program, and the time of
many turns grows with their square, for each answer is looked for in the conversation up to it."""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from tuneloop.core.bounded_work import WORK, TooMuchWork
from tuneloop.core.foreign import LIMITS, parse_json
from tuneloop.models.chat.template import Template, TemplateError, unpacked_template
from tuneloop.records.rows import Message

_LIMITS = LIMITS["conversation"]
CHARACTERS, TURNS, TOOLS, SECONDS = _LIMITS.bytes, _LIMITS.nodes, _LIMITS.nodes, _LIMITS.seconds
READING = 20.0  # the same where the tokenizer is read first
_TEMPLATES: OrderedDict[str, Template] = OrderedDict()  # in the child: the last ones, by their hash


def is_long(text: str, messages: Sequence[Message] = (), tools: Sequence[Mapping[str, Any]] = ()) -> bool:
    """Whether a text, or a conversation with its tools, is not rendered in this process."""
    if len(messages) > TURNS or len(tools) > TOOLS or len(text) > CHARACTERS:
        return True
    calls = sum(len(str(turn["tool_calls"])) for turn in messages if turn.get("tool_calls"))
    written = sum(len(turn.get("content") or "") + len(turn.get("reasoning_content") or "") for turn in messages)
    return calls + written + sum(len(str(tool)) for tool in tools) > CHARACTERS


async def ids_of_long(
    template: Template, text: str, messages: Sequence[Message] = (), tools: Sequence[Mapping[str, Any]] = ()
) -> list[int]:
    """Token ids of a text, or of a prompt with its turns, as `Template.encode` and `Template.prompt_ids` give them.

    Raises:
        TemplateError: the template refuses the conversation, or it takes more than `SECONDS`. TooBusy: see
            `core.bounded_work`.
    """
    order = json.dumps([text, list(messages), list(map(dict, tools))]).encode()
    head = (await asyncio.to_thread(lambda: template.digest)).encode() + b"\n"
    try:
        reply = await WORK.result(ids_job, head + b"\n" + order, seconds=SECONDS)
        if reply == b"null":  # this child has not read the template yet
            reply = await WORK.result(ids_job, head + template.packed + b"\n" + order, seconds=READING)
    except TooMuchWork:
        raise TemplateError("the conversation takes too long: send fewer turns") from None
    answer = parse_json(reply)
    if isinstance(answer, str):
        raise TemplateError(answer)
    return list(answer)


def ids_job(payload: bytes) -> bytes:
    """In a process of `core.bounded_work`: token ids as JSON, a text with what is wrong, or null: send the template."""
    digest, packed, order = payload.split(b"\n", 2)
    if (name := digest.decode()) not in _TEMPLATES:
        if not packed:
            return b"null"
        _TEMPLATES[name] = unpacked_template(packed)
        if len(_TEMPLATES) > 4:
            _TEMPLATES.popitem(last=False)
    text, messages, tools = parse_json(order)
    try:
        template = _TEMPLATES[name]
        return json.dumps(template.prompt_ids(messages, tools) if messages else template.encode(text)).encode()
    except TemplateError as error:
        return json.dumps(str(error)).encode()
