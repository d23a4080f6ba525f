"""Golden values of what meets other programs: files for hosts, the pages, traces of other tools, a hosted service, agents.

golden.py has the groups with all others; these functions get its helpers' values as arguments.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

HOSTS = ("baseten", "compose", "huggingface", "kubernetes", "modal", "ollama", "replicate",
          "runpod", "sagemaker", "together")  # fmt: skip
FORMS = {"ollama": "gguf"}  # the others serve what was merged
NOON = "2026-09-21T12:00:00Z"
QUESTION, ANSWER = "Where is my parcel?", "It comes today."
TURNS = [{"role": "user", "content": QUESTION}]
REPLY = {"choices": [{"index": 0, "message": {"role": "assistant", "content": ANSWER}, "finish_reason": "stop"}]}
CALL = {"startTime": NOON, "endTime": "2026-09-21T12:00:01Z"}


def _span() -> dict[str, Any]:
    """An export of OpenTelemetry with a call of a model."""
    texts = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "gpt",
        "gen_ai.input.messages": json.dumps([{"role": "user", "parts": [{"type": "text", "content": QUESTION}]}]),
        "gen_ai.output.messages": json.dumps([{"role": "assistant", "parts": [{"type": "text", "content": ANSWER}]}]),
    }
    start = 1_790_000_000_000_000_000
    span = {
        "traceId": "a" * 32, "spanId": "b" * 16, "parentSpanId": "", "name": "chat gpt",
        "startTimeUnixNano": str(start), "endTimeUnixNano": str(start + 1_000_000_000),
        "attributes": [{"key": key, "value": {"stringValue": text}} for key, text in texts.items()],
    }  # fmt: skip
    return {"resourceSpans": [{"resource": {"attributes": []}, "scopeSpans": [{"scope": {}, "spans": [span]}]}]}


def _langfuse() -> dict[str, Any]:
    """A trace of Langfuse with a call and what a user said of it."""
    call = {
        "id": "g", "type": "GENERATION", "name": "call", "traceId": "t", "parentObservationId": None, "model": "gpt",
        "input": TURNS, "output": ANSWER, "usageDetails": {"input": 11, "output": 5}, **CALL,
    }  # fmt: skip
    said = {"id": "x", "name": "user-feedback", "value": 1, "dataType": "BOOLEAN", "source": "API",
            "observationId": "g", "timestamp": NOON}  # fmt: skip
    trace = {"id": "t", "timestamp": NOON, "name": "chat", "userId": "anna@example.com", "sessionId": "s1"}
    return {"trace": trace, "observations": [call], "scores": [said]}


TRACES: dict[str, list[dict[str, Any]]] = {
    "jsonl": [{"id": "r1", "time": NOON, "model": "gpt", "user": "anna", "messages": TURNS, "answer": ANSWER,
               "cost": 0.001, "latency_ms": 900, "thumbs": "up"}, {"unrelated": 1}],
    "openai": [{"id": "c", "created": 1_790_000_000, "model": "gpt", "messages": TURNS,
                "metadata": {"thumbs": "down"}, **REPLY}],
    "litellm": [{"request_id": "a", "call_type": "acompletion", "model": "gpt", "spend": 0.002,
                 "messages": json.dumps(TURNS), "response": json.dumps(REPLY), **CALL}],
    "helicone": [{"request_id": "h", "request_created_at": NOON, "request_model": "gpt", "delay_ms": 800,
                  "request_body": {"model": "gpt", "messages": TURNS}, "response_body": REPLY,
                  "feedback_rating": True}],
    "tensorzero": [{"id": "t1", "timestamp": NOON, "function_name": "support", "variant_name": "a",
                    "episode_id": "e", "input": {"messages": TURNS}, "output": [{"type": "text", "text": ANSWER}]},
                   {"id": "f1", "timestamp": NOON, "target_id": "t1", "metric_name": "solved", "value": True}],
    "langfuse": [_langfuse()],
    "otel": [_span()],
}  # fmt: skip


def import_values(folder: Path, output_of: Callable[..., str]) -> Iterator[tuple[str, Any]]:
    """What becomes of traces of each format in a store; pseudonyms of users are random for each store."""
    for name, records in TRACES.items():
        source, store = folder / f"{name}.traces.jsonl", folder / f"imported-{name}"
        source.write_text("".join(f"{json.dumps(record)}\n" for record in records))
        summary = json.loads(output_of("import", name, source, "--store", store, "--keep-users", "--json"))
        with contextlib.closing(sqlite3.connect(store / "store.db")) as database:
            database.row_factory = sqlite3.Row
            stored = [[{k: v for k, v in dict(row).items() if k not in ("chain", "place")}
                       for row in database.execute(f"SELECT * FROM {table} ORDER BY 1")]
                      for table in ("requests", "feedback")]  # fmt: skip
        yield f"import.{name}", {"summary": summary, "stored": stored}


class Service(BaseHTTPRequestHandler):
    """A fine-tuning job with its files at a service of OpenAI's API."""

    protocol_version = "HTTP/1.1"
    job: ClassVar = {
        "id": "ftjob-1", "object": "fine_tuning.job", "model": "gpt-4o-mini-2024-07-18", "created_at": 1_772_300_000,
        "finished_at": 1_772_303_600, "fine_tuned_model": "ft:gpt-4o-mini-2024-07-18:acme::1", "status": "succeeded",
        "training_file": "file-train", "validation_file": None, "result_files": [], "trained_tokens": 5768, "error": {},
        "organization_id": "org-acme", "hyperparameters": {"n_epochs": 3}, "seed": 7,
    }  # fmt: skip
    content = "".join(
        json.dumps({"messages": [*TURNS, {"role": "assistant", "content": f"answer {i}"}]}) + "\n" for i in range(12)
    ).encode()
    file: ClassVar = {"id": "file-train", "object": "file", "bytes": len(content), "created_at": 1_772_299_000,
            "filename": "train.jsonl", "purpose": "fine-tune", "status": "processed"}  # fmt: skip

    def log_message(self, *args: object) -> None:
        """Nothing is logged."""

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        name = parts.path.removeprefix("/v1")
        lists = {"/fine_tuning/jobs": [self.job], "/files": [self.file]}
        items = [] if "after" in parse_qs(parts.query) else lists.get(name, [])
        body = json.dumps({"object": "list", "data": items, "has_more": False}).encode()
        if name == "/files/file-train":
            body = json.dumps(self.file).encode()
        if name.endswith("/content"):
            body = self.content
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def migrate_values(
    folder: Path, output_of: Callable[..., str], hashes_of: Callable[[Path], dict[str, str]]
) -> Iterator[tuple[str, Any]]:
    """A copy of what a hosted service has: its record, and the files."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        text = ["--base-url", f"http://127.0.0.1:{server.server_port}/v1", "--api-key-env", "PATH", "--yes"]
        record = output_of("migrate", "openai", *text, "--out", folder / "openai", "--json", "--quiet")
    finally:
        server.shutdown()
        server.server_close()
    yield "migrate.record", json.loads(record)
    files = hashes_of(folder / "openai")
    changing = ("migration.json", ".lock")  # with a time, an address, a process
    yield "migrate.files", {name: found for name, found in files.items() if Path(name).name not in changing}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def agent_values(folder: Path) -> Iterator[tuple[str, Any]]:
    """The tools that agents see, hashed with the schemas of their arguments, and an answer of one."""
    import anyio
    from mcp.client import Client

    from tuneloop.agents.server import make_server

    async def talk() -> list[Any]:
        async with Client(make_server([root])) as client:
            tools = (await client.list_tools()).tools
            plan = await client.call_tool("plan", {"model": "llama-3.1-8b", "options": {"gpu": "l40s"}})
            assert not plan.is_error, plan.content
            return [
                {tool.name: _digest(tool.model_dump(mode="json")) for tool in tools},
                json.loads(plan.content[0].text),
            ]

    root = folder / "root"
    root.mkdir(exist_ok=True)
    with contextlib.chdir(root):  # which the server leaves
        tools, plan = anyio.run(talk)
    yield "agents.tools", tools
    yield "agents.plan", plan
