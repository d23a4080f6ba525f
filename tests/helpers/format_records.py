"""Records of every format, and how tests parse them and read what comes of it."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tuneloop.data.config import PrepareConfig
from tuneloop.data.formats.guess import Parsed, Rejection, detect, parse_record

ASK = {"role": "user", "content": "a"}
SAY = {"role": "assistant", "content": "b"}
HUMAN = {"from": "human", "value": "a"}
GPT = {"from": "gpt", "value": "b"}


def parse(record: dict[str, Any], like: list[dict[str, Any]] | None = None, **config: Any) -> Parsed | Rejection:
    """A record parsed in the format of some records, by default of itself."""
    made = PrepareConfig(**config)
    return parse_record(record, detect(like or [record], made), made)


def turns(parsed: Parsed | Rejection) -> list[tuple[str, str]]:
    assert isinstance(parsed, Parsed), parsed
    return [(m["role"], m["content"]) for m in parsed.messages]


def reason(parsed: Parsed | Rejection) -> str:
    assert isinstance(parsed, Rejection), parsed
    return parsed.reason


def conversation(*pairs: tuple[str, Any], **more: Any) -> dict[str, Any]:
    return {"conversations": [{"from": a, "value": b} for a, b in pairs], **more}


GOOD, BAD = {"role": "assistant", "content": "good"}, {"role": "assistant", "content": "bad"}
REQUEST = {"model": "m", "messages": [{"role": "system", "content": "s"}, ASK]}
RESPONSE = {"choices": [{"index": 0, "message": SAY, "finish_reason": "stop"}]}


def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


CHUNKS = [chunk({"role": "assistant", "content": ""}), chunk({"content": "b"}), chunk({}, "stop"), {"choices": []}]
OLLAMA = [{"message": {"role": "assistant", "content": word}, "done": word == ""} for word in ("b", "")]
ANTHROPIC = [
    {"type": "message_start", "message": {"role": "assistant", "content": []}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "b"}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}},
    {"type": "message_stop"},
]


RESPONSES_API = [
    {"type": "response.created", "response": {"status": "in_progress", "output": []}},
    {"type": "response.output_text.delta", "delta": "b"},
    {"type": "response.completed", "response": {"status": "completed", "output": [
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b"}]}]}},
]  # fmt: skip


SAMPLES: dict[str, list[dict[str, Any]]] = {
    "alpaca": [{"instruction": "a", "output": "b"}],
    "sharegpt": [conversation(("human", "a"))],
    "messages": [{"messages": [ASK]}],
    "prompt_completion": [{"prompt": "a", "completion": "b"}],
    "text_label": [{"text": "a", "label": "b"}],
    "many_labels": [{"text": "a", "label": ["b"]}],
    "text": [{"text": "a"}],
    "preference": [{"messages": [ASK], "chosen": GOOD, "rejected": BAD}],
    "preferred_text": [{"prompt": "a", "chosen": "b", "rejected": "c"}],
    "ranking": [{"prompt": "a", "completions": ["b", "c"], "scores": [1, 2]}],
    "thumbs": [{"messages": [ASK, SAY], "label": True}],
    "rated": [{"prompt": "a", "completion": "b", "label": 1}],
    "logs": [{"request": {"messages": [ASK]}, "response": RESPONSE}],
    "fields": [],
}


WORDS = ["user", "human", "gpt", "assistant", "tool", "[]", "{}", "data: {}", "up", "\n\nHuman: a\n\nAssistant: b"]
PARTS = [
    "role", "content", "from", "value", "tool_calls", "tool_call_id", "function", "arguments", "name", "id", "text", "weight",
    "type", "messages", "body", "choices", "message", "delta", "output", "error", "status", "finish_reason", "index", "tools",
]  # fmt: skip


ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 600) | st.floats() | st.text(max_size=6) | st.sampled_from(WORDS),
    lambda c: st.lists(c, max_size=3) | st.dictionaries(st.sampled_from(PARTS), c, max_size=4),
    max_leaves=12,
)


# Turns that are nearly right reach the checks of their order.
TURN = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "system", "Bot"]), "content": st.sampled_from(["a", "b", " ", None])},
    optional={
        "tool_calls": st.lists(st.sampled_from([{"id": "x", "function": {"name": "f", "arguments": a}} for a in ("{}", "{", {})]), max_size=2),
        "tool_call_id": st.sampled_from(["x", "y"]),
        "weight": st.sampled_from([0, 1, 2]),
    },
)  # fmt: skip


CELL = ANY | st.lists(TURN, max_size=6)
KEYS = sorted(
    {key for rows in SAMPLES.values() for row in rows for key in row} | {"tools", "system", "history", "input"}
)
