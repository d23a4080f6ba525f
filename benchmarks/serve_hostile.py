"""Does a server keep answering while clients send the worst that is known?

    python benchmarks/serve_hostile.py [--seconds 300] [--clients 32] [--only NAME,...] [--each]

`tuneloop serve` of the packaged model, with 8 keys that send hostile requests, one after the other from each client,
while a ninth key sends `/v1/feedback` and no one `/healthz`, ten times a second each. Each client is signed in to the
pages too, which are over a folder with a thousand runs and some hostile ones. `--each` takes one kind of payload
after the other, for so many seconds each. It prints a row for each, with the longest times and the answers' statuses, and
the server's memory; the exit status is 1 where `/healthz` took more than 250 ms, feedback more
than 500 ms, or the server's log has a traceback.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import http.client
import itertools
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

LIMITS = {"/healthz": 0.25, "/v1/feedback": 0.5}
CHAT, JSON = "/v1/chat/completions", "application/json"
Payload = tuple[str, bytes, dict[str, str]]  # path, body, headers
SIGNED_IN = "the cookie of the key"
STRANGE = ("bomb", "deep", "large")  # runs, besides a thousand plain ones


def chat(content: Any = "Rain?", **more: Any) -> Payload:
    """A conversation of one turn."""
    turns = content if isinstance(content, list) else [{"role": "user", "content": content}]
    return CHAT, json.dumps({"messages": turns, "max_tokens": 8, **more}).encode(), {}


def schema(value: Any, **more: Any) -> Payload:
    """A request whose answer is held to a schema."""
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": value}}
    return chat(response_format=form, **{"max_tokens": 200, **more})


def spans(count: int) -> bytes:
    """A compressed message of empty spans in protobuf."""

    def field(number: int, content: bytes) -> bytes:
        size, length = len(content), b""
        while size > 127:
            size, length = size >> 7, length + bytes([size & 127 | 128])
        return bytes([number << 3 | 2]) + length + bytes([size]) + content

    return gzip.compress(field(1, field(2, b"\x12\x00" * count)))


def pages(folder: Path) -> list[str]:
    """Pages over the folders that `fill` makes."""
    keys = [hashlib.sha256(f"{folder.resolve()}/runs/{name}".encode()).hexdigest()[:12] for name in ("run1", *STRANGE)]
    listed = ["", "runs", "data", "models", "quality", "costs", "traffic?q=" + "a" * 4_000, "runs?q=(a%2B)%2B$"]
    single = [page for key in keys for page in (f"runs/{key}", f"runs/{key}/report")]
    return [*listed, *single, "compare?" + "&".join(f"run={key}" for key in keys * 100)]


def payloads(folder: Path) -> dict[str, list[Payload]]:
    """The worst that is known, by name; `folder`: where the server is started."""
    node = {"oneOf": [{"type": "string"}, *[{"type": "object", "properties": {"a": {"$ref": "#/$defs/n"}}}] * 6]}
    linked = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 3} for i in range(200)} | {"d200": {"type": "null"}}
    many = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}] * 100_000
    packed = {"content-type": "application/x-protobuf", "content-encoding": "gzip"}
    tools = [
        {"type": "function", "function": {"name": f"f{i}", "parameters": {"type": "object"}}} for i in range(20_000)
    ]
    wide = b'{"messages":[{"role":"user","content":"x"}],"metadata":[' + b"[]," * 3_000_000 + b"0]}"
    deep = b'{"messages":' + b"[" * 4_000_000
    values = [{"stringValue": "x"}] * 200_000
    attributes = [{"key": "gen_ai.request.model", "value": {"arrayValue": {"values": values}}}]
    traces = {
        "resourceSpans": [
            {"scopeSpans": [{"spans": [{"traceId": "0" * 32, "spanId": "1" * 16, "attributes": attributes}]}]}
        ]
    }
    return {
        "spans": [("/v1/traces", spans(1_500_000), packed)],
        "few_spans": [("/v1/traces", spans(9_999), packed)],
        "json_spans": [("/v1/traces", b'{"resourceSpans":[{"scopeSpans":[{"spans":[' + b"{}," * 3_000_000 + b"{}]}]}]}", {})],
        "attributes": [("/v1/traces", json.dumps(traces).encode(), {})],
        "recursion": [schema({"$defs": {"n": node}, "$ref": "#/$defs/n"})],
        "references": [schema({"$defs": linked, "$ref": "#/$defs/d0"})],
        "patterns": [schema({"type": "string", "allOf": [{"pattern": f"a{i}.*b"} for i in range(20)]})],
        "alternatives": [schema({"anyOf": [{"const": f"value {i}"} for i in range(999)]})],
        "properties": [schema({"properties": {f"p{i}": {"type": "string"} for i in range(999)}, "type": "object"})],
        "tools": [chat(tools=tools), chat(tools=tools[:1000], tool_choice="required")],
        "wide": [(CHAT, wide, {})],
        "deep": [(CHAT, deep, {}), (CHAT, deep[:100_000], {})],
        "long": [chat("word " * 1_900_000), chat("<|im_start|>" * 800_000), chat("https://a:b@" * 800_000)],
        "turns": [chat(many), chat(many[:5_000])],
        "middle": [chat("word " * 12_000), chat(many[:500]), chat("a@b.de " * 9_000)],
        "biases": [chat(logit_bias={str(i): 1 for i in range(1_000_000)})],
        "stops": [chat(stop=["a" * 256] * 16, n=16, max_tokens=400)],
        "prompts": [("/v1/completions", json.dumps({"prompt": ["x " * 1_000] * 16, "max_tokens": 1}).encode(), {})],
        "tokenize": [("/tokenize", json.dumps({"prompt": "word é <|im_end|> " * 500_000}).encode(), {})],
        "classify": [("/v1/classify", json.dumps({"input": ["x" * 1_000] * 256}).encode(), {})],
        "feedback": [("/v1/feedback", json.dumps({"kind": "comment", "value": "a@b.de " * 18_000, "conversation": "c"}).encode(), {})],
        "batch": [("/v1/files", b"".join(_upload(b'{"a":1}\n' * 3_000_000)), {"content-type": "multipart/form-data; boundary=x"})],
        "parts": [("/v1/files", b'--x\r\ncontent-disposition: form-data; name="a"\r\n\r\nb\r\n' * 100_000, {"content-type": "multipart/form-data; boundary=x"})],
        "ui": [("GET /ui/", b"", {}), ("GET /ui/traffic?q=" + "a" * 4_000, b"", {})],
        "pages": [(f"GET /ui/{page}", b"", {"cookie": SIGNED_IN}) for page in pages(folder)],
        "headers": [("GET /healthz", b"", {f"x-{i}": "a" * 600 for i in range(90)})],
    }  # fmt: skip


def _upload(data: bytes) -> Sequence[bytes]:
    head = b'--x\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    file = b'--x\r\ncontent-disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
    return head, file, data, b"\r\n--x--\r\n"


def sent(address: str, payload: Payload, key: str, seconds: float = 30) -> int:
    """The status of an answer; 0: the connection broke off, or it took longer."""
    path, body, headers = payload
    method, _, path = path.rpartition(" ")
    folder = urlsplit(address)
    connection = http.client.HTTPConnection(folder.hostname or "", folder.port, timeout=seconds)
    try:
        line = {"content-type": JSON, **headers} | ({"authorization": f"Bearer {key}"} if key else {})
        connection.request(method or "POST", path, body, line)
        reply = connection.getresponse()
        reply.read()
        return reply.status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def signed_in(address: str, key: str) -> str:
    """The cookie of the pages for a key."""
    path = urlsplit(address)
    connection = http.client.HTTPConnection(path.hostname or "", path.port, timeout=30)
    form = {"content-type": "application/x-www-form-urlencoded", "origin": address}
    connection.request("POST", "/ui/login", urlencode({"secret": key}), form)
    reply = connection.getresponse()
    cookie = reply.headers["set-cookie"]
    assert cookie, (reply.status, reply.read())
    return str(cookie).partition(";")[0]


def fill(folder: Path) -> None:
    """A thousand runs, and some of a stranger: a bomb of aliases, deep JSON, and an evaluation of 40 MB."""
    manifest = {"version": 1, "id": "x", "name": "x", "status": "finished", "method": "lora", "steps": 10}
    for i in range(1000):
        run = folder / "runs" / f"run{i}"
        run.mkdir(parents=True)
        (run / "run.json").write_text(json.dumps({**manifest, "id": f"run{i}"}))
        (run / "config.yaml").write_text("model: smollm2-135m\ndata: {sources: [a.jsonl]}\n")
        (run / "metrics.jsonl").write_text("".join(json.dumps({"step": j, "loss": 1.0}) + "\n" for j in range(2000)))
    names = "abcdefghijk"
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in itertools.pairwise(names)
    )
    samples = json.dumps({"prompt": "x" * 4000, "answer": "y" * 4000, "reference": "z", "scores": {"accuracy": 1.0}})
    strange = (("config.yaml", bomb), ("eval.json", "[" * 2_000_000), ("samples.jsonl", (samples + "\n") * 5_000))
    for name, (file, text) in zip(STRANGE, strange, strict=True):
        run = folder / "runs" / name
        run.mkdir()
        (run / "run.json").write_text(json.dumps(manifest))
        (run / file).write_text(text)


def asked(address: str, key: str) -> str:
    """The id of a request that was answered."""
    from urllib.request import Request, urlopen

    headers = {"content-type": JSON, "authorization": f"Bearer {key}"}
    with urlopen(Request(address + CHAT, data=chat()[1], headers=headers)) as reply:
        return str(reply.headers["x-tuneloop-request"])


def probe(address: str, payload: Payload, key: str, over: Any, found: Any) -> None:
    """Send one small request after the other until it is over; then the times and the statuses go to a queue."""
    times, statuses = [], Counter[int]()
    while not over.wait(0.1):
        began = time.perf_counter()
        statuses[sent(address, payload, key)] += 1
        times.append(time.perf_counter() - began)
    found.put((times, statuses))


class Probe:
    """`probe` in a process of its own: in one with the hostile clients it would wait for their threads as well."""

    def __init__(self, address: str, payload: Payload, key: str) -> None:
        self.times: list[float] = []
        self.statuses: Counter[int] = Counter()
        own = multiprocessing.get_context("spawn")
        self.over, self.found = own.Event(), own.Queue()
        self.process = own.Process(target=probe, args=(address, payload, key, self.over, self.found), daemon=True)
        self.process.start()

    def stop(self) -> None:
        """End it with its last request."""
        self.over.set()
        self.times, self.statuses = self.found.get(timeout=60)
        self.process.join()

    def row(self) -> str:
        """Median, 99 %, longest in milliseconds, and the statuses but for 200."""
        times = sorted(self.times)
        values = (times[len(times) // 2], times[len(times) * 99 // 100], times[-1])
        failed = {status: n for status, n in self.statuses.items() if status != 200}
        return " / ".join(f"{1000 * value:.0f}" for value in values) + (f" {failed}" if failed else "")


def attack(
    address: str, request: str, chosen: Sequence[Payload], keys: Sequence[str], clients: int, seconds: float
) -> tuple[list[Probe], Counter[int]]:
    """Let clients send payloads for some time; the probes, and the statuses of the hostile answers.

    Args:
        request: id of one that the last key has sent, which its feedback is about.
    """
    feedback = ("/v1/feedback", json.dumps({"kind": "thumbs", "value": True, "request": request}).encode(), {})
    probes = [Probe(address, ("GET /healthz", b"", {}), ""), Probe(address, feedback, keys[-1])]
    until, statuses = time.monotonic() + seconds, Counter[int]()
    cookies = [signed_in(address, key) for key in keys]

    def client(number: int) -> None:
        choice, whose = random.Random(number), number % (len(keys) - 1)
        while time.monotonic() < until:
            path, body, headers = choice.choice(chosen)
            if headers.get("cookie") == SIGNED_IN:
                headers = {"cookie": cookies[whose]}
            statuses[sent(address, (path, body, headers), keys[whose])] += 1

    threads = [threading.Thread(target=client, args=(number,), daemon=True) for number in range(clients)]
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    for probe in probes:
        probe.stop()
    for thread in threads:
        thread.join(40)
    return probes, statuses


def memory(process: int) -> float:
    """Megabytes that a process and its children have resident."""
    table = subprocess.run(["ps", "-eo", "pid=,ppid=,rss="], capture_output=True, text=True).stdout
    rows = [tuple(map(int, line.split())) for line in table.splitlines()]
    return sum(rss for pid, parent, rss in rows if process in (pid, parent)) / 1024


def main() -> int:
    """Start a server, attack it, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--only", default="")
    parser.add_argument("--each", action="store_true")
    options = parser.parse_args()
    from tuneloop.serving.keys import Limits, add_key

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "serve"
        path.mkdir()
        fill(Path(folder))
        kinds = payloads(Path(folder))
        chosen = {name: kinds[name] for name in options.only.split(",") if name} or kinds
        rounds = chosen if options.each else {"all": [payload for some in chosen.values() for payload in some]}
        rights: Any = ["traces", "users", "ui"]
        keys = [add_key(path, f"k{i}", Limits(rights=rights))[0] for i in range(9)]
        command = [sys.executable, "-m", "tuneloop", "serve", "base=smollm2-135m", "port=0", f"folder={path}", "ui=true", "--json", "-q",
                   "feedback.per_minute=100000", "feedback.pages_per_minute=100000"]  # fmt: skip
        with open(Path(folder) / "log", "w+") as log:
            server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder)
            assert server.stdout is not None
            try:
                address = json.loads(server.stdout.readline())["address"]
                late, request = False, asked(address, keys[-1])
                print(f"load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
                print("payload | /healthz ms (median / 99 % / longest) | /v1/feedback ms | answers | MB")
                for name, some in rounds.items():
                    probes, statuses = attack(address, request, some, keys, options.clients, options.seconds)
                    late = late or any(max(p.times) > limit for p, limit in zip(probes, LIMITS.values(), strict=True))
                    late = late or any(set(probe.statuses) != {200} for probe in probes)
                    cells = [name, *(probe.row() for probe in probes), str(dict(statuses)), f"{memory(server.pid):.0f}"]
                    print(" | ".join(cells), flush=True)
                print(f"load after: {os.getloadavg()[0]:.1f}")
            finally:
                server.send_signal(signal.SIGTERM)
                ended = server.wait(120)
                log.seek(0)
                lines = log.read()
                print(f"exit status {ended}; tracebacks {lines.count('Traceback')}; its log ends: {lines[-600:]}")
    return int(late or "Traceback" in lines)


if __name__ == "__main__":
    raise SystemExit(main())
