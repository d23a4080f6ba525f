"""A real model that reasons because its earlier turns did, asked through our whole server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
from live_server import live

from tuneloop.models.adapters.assignment import BASE
from tuneloop.models.chat.reasoning import with_tags
from tuneloop.serving.gateway import ServedModel

EXAMPLES = (
    ("What is 2 + 3?", "I add 3 to 2.", "5"),
    ("What is the capital of Spain?", "Spain is in Europe.", "Madrid"),
    ("What colour is grass?", "I think of a lawn.", "Green"),
)


def turns(question: str) -> list[dict[str, str]]:
    """A conversation whose answers begin with reasoning, in the text."""
    before = [
        {"role": role, "content": text}
        for request, thought, answer in EXAMPLES
        for role, text in (("user", request), ("assistant", with_tags(thought) + answer))
    ]
    return [*before, {"role": "user", "content": question}]


def check_reasoning(engine: Any, folder: Path) -> None:
    """Reasoning comes in a field of its own, in a whole reply as in a stream, and never behind the answer."""
    body = {"model": BASE, "messages": turns("What colour is the sky?"), "max_tokens": 40, "temperature": 0}
    with live(folder, engine, {BASE: ServedModel(BASE)}) as (address, _):
        url = f"{address}/v1/chat/completions"
        reply = httpx.post(url, json=body, timeout=600).raise_for_status().json()
        message = reply["choices"][0]["message"]
        assert message["reasoning_content"] and message["content"]
        assert "think>" not in message["content"] + message["reasoning_content"]
        with httpx.stream("POST", url, json=body | {"stream": True}, timeout=600) as stream:
            lines = [line.removeprefix("data: ") for line in stream.iter_lines() if line.startswith("data: {")]
    choices = [choice for line in lines for choice in json.loads(line)["choices"]]
    deltas = [choice["delta"] for choice in choices]
    for name in ("reasoning_content", "content"):
        assert "".join(delta.get(name) or "" for delta in deltas).strip() == message[name]
    spoken = [bool(delta.get("content")) for delta in deltas if delta.get("content") or delta.get("reasoning_content")]
    assert spoken == sorted(spoken) and spoken.count(False) > 1, "first its reasoning in pieces, then the answer"
