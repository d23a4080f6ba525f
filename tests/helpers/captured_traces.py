"""What OpenTelemetry's official exporters send of the clients of OpenAI and Anthropic, instrumented as on PyPI: `captured_traces.jsonl.gz`.

    python tests/helpers/captured_traces.py openai-v2 | openllmetry | openinference | anthropic | openinference-anthropic

Runs in an environment with the clients, the exporter by HTTP and the instrumentation; each call adds its lines to the
file (a line a message of spans or log records, as OTLP's JSON). Both clients call a service on this machine, which
answers the same to everything; what it is sent and answers is in `test_captured.py`.
"""

from __future__ import annotations

import asyncio
import gzip
import importlib
import json
import os
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("captured_traces.jsonl.gz")
MODULES = {
    "openai-v2": "opentelemetry.instrumentation.openai_v2:OpenAIInstrumentor",
    "openllmetry": "opentelemetry.instrumentation.openai:OpenAIInstrumentor",
    "openinference": "openinference.instrumentation.openai:OpenAIInstrumentor",
    "anthropic": "opentelemetry.instrumentation.anthropic:AnthropicInstrumentor",
    "openinference-anthropic": "openinference.instrumentation.anthropic:AnthropicInstrumentor",
}
MODES = {"openai-v2": ("SPAN_ONLY", "EVENT_ONLY")}
WEATHER = {
    "name": "weather",
    "description": "Of a town",
    "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
}
SYSTEM, QUESTION = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Weather in Paris?"}
PICTURE = "iVBORw0KGgowMDAw"
sent: list[tuple[str, dict[str, Any]]] = []  # kind of message, and it


class Service(BaseHTTPRequestHandler):
    """A collector of OTLP, OpenAI's chats and Anthropic's messages."""

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        kind = {"/v1/traces": "trace", "/v1/logs": "logs"}.get(self.path)
        if kind:
            from google.protobuf.json_format import MessageToDict

            module = importlib.import_module(f"opentelemetry.proto.collector.{kind}.v1.{kind}_service_pb2")
            request = getattr(module, f"Export{kind.title()}ServiceRequest")
            sent.append((kind, MessageToDict(request.FromString(body))))
            return self.answer(b"", "application/x-protobuf")
        order = json.loads(body)
        events = of_anthropic(order) if self.path.endswith("/messages") else of_openai(order)
        if not order.get("stream"):
            return self.answer(json.dumps(events[0][1]).encode(), "application/json")
        named = "messages" in self.path
        lines = [(f"event: {name}\n" if named else "") + f"data: {json.dumps(data)}\n\n" for name, data in events[1:]]
        self.answer(("".join(lines) + ("" if named else "data: [DONE]\n\n")).encode(), "text/event-stream")

    def answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def of_openai(order: dict[str, Any]) -> list[tuple[str, Any]]:
    """The answer as a whole, then its parts."""
    calls = bool(order.get("tools")) and order["messages"][-1]["role"] != "tool"
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"at": "Paris"}'}}
    finish, head = "tool_calls" if calls else "stop", {"id": "chatcmpl-1", "created": 1, "model": order["model"]}
    usage = {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}
    texts = ["Rainy.", "Sunny."][: order.get("n") or 1]
    messages = [
        {"role": "assistant", "content": None if calls else text, **({"tool_calls": [call]} if calls else {})}
        for text in texts
    ]
    choices = [{"index": i, "message": message, "finish_reason": finish} for i, message in enumerate(messages)]
    whole = {**head, "object": "chat.completion", "choices": choices, "usage": usage}
    pieces: list[dict[str, Any]] = [{"role": "assistant", "content": text} for text in ("Rai", "ny", ".")]
    if calls:
        begun = {"index": 0, **call, "function": {"name": "weather", "arguments": ""}}
        pieces = [{"role": "assistant", "content": None, "tool_calls": [begun]}]
        pieces += [{"tool_calls": [{"index": 0, "function": {"arguments": part}}]} for part in ('{"at": ', '"Paris"}')]
    parts = [[{"index": 0, "delta": delta, "finish_reason": None}] for delta in pieces]
    parts += [[{"index": 0, "delta": {}, "finish_reason": finish}], []]
    chunk = {**head, "object": "chat.completion.chunk"}
    return [("", whole), *(("", {**chunk, "choices": part, **({} if part else {"usage": usage})}) for part in parts)]


def of_anthropic(order: dict[str, Any]) -> list[tuple[str, Any]]:
    """The answer as a whole, then its events."""
    last = order["messages"][-1]["content"]
    calls = bool(order.get("tools")) and isinstance(last, str)
    call = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"at": "Paris"}}
    block, stop = (call, "tool_use") if calls else ({"type": "text", "text": "Rainy."}, "end_turn")
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": order["model"], "stop_sequence": None}
    usage = {"input_tokens": 12, "output_tokens": 3}
    begun = {**head, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
    deltas: list[dict[str, Any]] = [{"type": "text_delta", "text": text} for text in ("Rai", "ny.")]
    if calls:
        deltas = [{"type": "input_json_delta", "partial_json": '{"at": "Paris"}'}]
    events = [
        {"type": "message_start", "message": begun},
        {"type": "content_block_start", "index": 0, "content_block": {**call, "input": {}} if calls else {**block, "text": ""}},
        *({"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": stop, "stop_sequence": None}, "usage": {"output_tokens": 3}},
        {"type": "message_stop"},
    ]  # fmt: skip
    return [
        ("", {**head, "content": [block], "stop_reason": stop, "usage": usage}),
        *((str(e["type"]), e) for e in events),
    ]


def openai_cases(url: str) -> dict[str, Callable[[], Any]]:
    """What is asked of OpenAI's client, by name."""
    import openai

    create = openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0).chat.completions.create
    later = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0).chat.completions.create
    turns: Any = [SYSTEM, QUESTION]
    tools: Any = {"tools": [{"type": "function", "function": WEATHER}]}
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"at": "Paris"}'}}
    result: Any = [*turns, {"role": "assistant", "content": None, "tool_calls": [call]},
                   {"role": "tool", "tool_call_id": "call_1", "content": "rain"}]  # fmt: skip
    picture: Any = [{"role": "user", "content": [{"type": "text", "text": "What is it?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}}]}]  # fmt: skip
    texts: Any = [
        SYSTEM,
        {"role": "user", "content": [{"type": "text", "text": name} for name in ("Weather ", "in Paris?")]},
    ]
    stream: Any = {"stream": True, "stream_options": {"include_usage": True}}
    return {
        "plain": lambda: create(model="gpt", messages=turns), "tool": lambda: create(model="gpt", messages=turns, **tools),
        "result": lambda: create(model="gpt", messages=result, **tools),
        "stream": lambda: list(create(model="gpt", messages=turns, **stream)),
        "stream-tool": lambda: list(create(model="gpt", messages=turns, **tools, **stream)),
        "picture": lambda: create(model="gpt", messages=picture), "texts": lambda: create(model="gpt", messages=texts),
        "two": lambda: create(model="gpt", messages=turns, n=2),
        "async": lambda: asyncio.run(later(model="gpt", messages=turns)),
    }  # fmt: skip


def anthropic_cases(url: str) -> dict[str, Callable[[], Any]]:
    """What is asked of Anthropic's client, by name."""
    import anthropic

    client = anthropic.Anthropic(base_url=url, api_key="k", max_retries=0)
    later = anthropic.AsyncAnthropic(base_url=url, api_key="k", max_retries=0).messages.create
    usual: Any = {"model": "claude", "max_tokens": 99, "system": SYSTEM["content"]}
    tool = {"name": "weather", "description": "Of a town", "input_schema": WEATHER["parameters"]}
    tools: Any = {**usual, "tools": [tool]}
    call = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"at": "Paris"}}
    result: Any = [QUESTION, {"role": "assistant", "content": [call]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "rain"}]}]  # fmt: skip
    source = {"type": "base64", "media_type": "image/png", "data": PICTURE}
    picture: Any = [
        {"role": "user", "content": [{"type": "text", "text": "What is it?"}, {"type": "image", "source": source}]}
    ]
    texts: Any = [{"role": "user", "content": [{"type": "text", "text": name} for name in ("Weather ", "in Paris?")]}]
    create, turns = client.messages.create, [QUESTION]

    def helper() -> None:
        with client.messages.stream(messages=turns, **usual) as stream:
            list(stream)

    return {
        "plain": lambda: create(messages=turns, **usual), "tool": lambda: create(messages=turns, **tools),
        "result": lambda: create(messages=result, **tools),
        "stream": lambda: list(create(messages=turns, stream=True, **usual)), "stream-helper": helper,
        "stream-tool": lambda: list(create(messages=turns, stream=True, **tools)),
        "picture": lambda: create(messages=picture, **usual), "texts": lambda: create(messages=texts, **usual),
        "async": lambda: asyncio.run(later(messages=turns, **usual)),
    }  # fmt: skip


def main() -> None:
    """Capture one instrumentation, in the first of its modes or the one named after it."""
    name, mode = (*sys.argv[1:], "")[:2]
    if name in MODES:
        os.environ["OTEL_SEMCONV_STABILITY_OPT_IN"] = "gen_ai_latest_experimental"
    os.environ["OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"] = mode or "true"
    from opentelemetry import trace
    from opentelemetry._logs import set_logger_provider
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    spans, logs = TracerProvider(), LoggerProvider()
    spans.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{url}/v1/traces")))
    logs.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter(f"{url}/v1/logs")))
    trace.set_tracer_provider(spans)
    set_logger_provider(logs)
    path, _, kind = MODULES[name].partition(":")
    getattr(importlib.import_module(path), kind)().instrument()
    cases = anthropic_cases(url) if "anthropic" in name else openai_cases(url)
    for case, ask in cases.items():
        with trace.get_tracer("app").start_as_current_span(case, attributes={"session.id": case, "user.id": "anna"}):
            ask()
    logs.shutdown()
    spans.shutdown()
    package = path.replace("_", "-").replace(".", "-")
    of = f"{name} {mode.lower()}".strip()
    with gzip.open(FILE, "at", compresslevel=9) as file:
        for kind, message in sent:
            file.write(
                json.dumps({"of": of, "package": f"{package} {version(package)}", "kind": kind, "message": message})
                + "\n"
            )


if __name__ == "__main__":
    main()
