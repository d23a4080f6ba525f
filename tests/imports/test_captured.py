"""What the official exporters sent of the instrumented clients of OpenAI and Anthropic (`captured_traces.py`), field by field."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from captured_traces import FILE, WEATHER
from imported import brought, faults, stored
from live_server import live

from tuneloop.records.request import StoredRequest
from tuneloop.serving.store.store import opened, read_requests

LINES = [json.loads(line) for line in gzip.decompress(FILE.read_bytes()).splitlines()]
PACKAGES = sorted({line["of"] for line in LINES})
SYSTEM, QUESTION = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Weather in Paris?"}
CASES = {"plain", "tool", "result", "stream", "stream-tool", "picture", "texts", "async"}
# What an instrumentation itself does not send of a call, and no reader can know.
LOST = {
    "openai-v2 span_only": {"texts": "prompt", "picture": "prompt"},
    "openai-v2 event_only": {"texts": "prompt", "picture": "prompt"},
}
NO_TOOLS = {"openai-v2 span_only", "openai-v2 event_only"}


def called(of: str) -> dict[str, Any]:
    name = "toolu_1" if "anthropic" in of else "call_1"
    return {"id": name, "type": "function", "function": {"name": "weather", "arguments": '{"at": "Paris"}'}}


def compare(of: str, requests: list[StoredRequest]) -> None:
    """Each request against what was sent and answered."""
    by_case = {str(request.conversation): request for request in requests}
    assert len(by_case) == len(requests) and by_case.keys() == CASES | (
        {"stream-helper"} if "anthropic" in of else {"two"}
    )
    call = called(of)
    for case, item in by_case.items():
        turns = [SYSTEM, QUESTION]
        if case == "result":
            turns += [{"role": "assistant", "content": "", "tool_calls": [call]}]
            turns += [{"role": "tool", "content": "rain", "tool_call_id": call["id"]}]
        lost = LOST.get(of, {}).get(case) == "prompt" or case == "picture"
        assert item.prompt == ([] if lost else turns), (of, case)
        wants = case in ("tool", "stream-tool")
        assert item.completion == ({"role": "assistant", "content": "", "tool_calls": [call]} if wants else "Rainy."), (
            of,
            case,
        )
        assert item.finish == ("tool_calls" if wants else "stop") and item.model in ("gpt", "claude"), (of, case)
        streams = of == "anthropic" and case.startswith("stream")  # this instrumentation adds the first event's token
        assert (item.prompt_tokens, item.completion_tokens) == (12, 4 if streams else 3), (of, case)
        tools = [{"type": "function", "function": WEATHER}] if "tool" in case or case == "result" else []
        assert item.tools == ([] if of in NO_TOOLS else tools), (of, case)
        assert item.user and item.total_ms


@pytest.mark.parametrize("of", PACKAGES)
def test_what_was_sent_is_what_is_stored_and_what_is_lost_has_a_line(tmp_path: Path, of: str) -> None:
    summary = brought(tmp_path, "otel", [line["message"] for line in LINES if line["of"] == of])
    requests, _ = stored(tmp_path)
    compare(of, requests)
    lines = faults(summary)
    lacking = {(fault["reason"], fault["request"]) for fault in lines if "request" in fault}
    silent = {request.id for request in requests if not request.prompt}
    assert lacking == {("without_prompt", item) for item in silent} | {
        ("further_answers", request.id) for request in requests if request.conversation == "two"
    }
    again = [fault["reason"] for fault in lines if "request" not in fault]
    assert again == ["same_call"] * (9 if "anthropic" in of else 0), "Anthropic's client sends spans of its own"


@pytest.mark.parametrize("of", PACKAGES)
def test_a_server_that_gets_the_same_stores_the_same(tmp_path: Path, of: str) -> None:
    with live(tmp_path / "serve", keys={"open_rights": ["traces", "users"]}) as (address, _):
        for line in LINES:
            if line["of"] == of:
                path = f"{address}/v1/{'logs' if line['kind'] == 'logs' else 'traces'}"
                body = json.dumps(line["message"]).encode()
                with urlopen(Request(path, data=body, headers={"Content-Type": "application/json"})) as reply:
                    assert reply.status == 200
    with opened(tmp_path / "serve") as store:
        compare(of, list(read_requests(store)))
