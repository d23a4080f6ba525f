"""Latency that the gateway adds, and LiteLLM's proxy before the same engine.

    python benchmarks/serve_gateway.py [--rate 200] [--seconds 20] [--litellm]

An engine that answers at once stands behind its own small HTTP server (direct), behind tuneloop's gateway with all of it
on (keys, store, metrics, admission), and behind LiteLLM's proxy, which is installed into an environment of its own. Every
setup gets the same requests at the same planned times, in turns of a second; a request is timed from its planned time,
so that a slow answer is not hidden by later ones that wait for it (open loop). Added latency is the difference of
quantiles to the direct setup in the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BODY = {"model": "stub", "messages": [{"role": "user", "content": "Where is my parcel?"}], "max_tokens": 8}
WORDS = "It is on its way."
KEY = "sk-bench"


# --- the three servers -----------------------------------------------------------------------------


def run_direct(port: int) -> None:
    """The engine's own server: it answers chat completions at once."""
    import orjson
    import uvicorn

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raw = b""
        while True:
            message = await receive()
            raw += message.get("body", b"")
            if not message.get("more_body"):
                break
        orjson.loads(raw or b"{}")
        choice = {"index": 0, "message": {"role": "assistant", "content": WORDS}, "finish_reason": "stop"}
        body = {
            "id": "x", "object": "chat.completion", "created": 0, "model": "stub", "choices": [choice],
            "usage": {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11},
        }  # fmt: skip
        data = orjson.dumps(body)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": data})

    uvicorn.run(app, port=port, log_level="error", access_log=False, lifespan="off", timeout_keep_alive=600)


def run_gateway(port: int, folder: str, loop: str = "auto") -> None:
    """tuneloop's gateway with the same engine inside, everything on."""
    import uvicorn

    from tuneloop.inference.engine import Update
    from tuneloop.records.completion import Completion
    from tuneloop.serve.admission import Admission
    from tuneloop.serve.app import make_app
    from tuneloop.serve.config import ServeConfig
    from tuneloop.serve.gateway import Gateway, ServedModel
    from tuneloop.serve.keys import Keyring, add_key
    from tuneloop.serve.limits import Ledger
    from tuneloop.serve.pauses import short_pauses
    from tuneloop.serve.writer import StoreWriter

    class Stub:
        name, base, context, slots, adapters = "stub", "stub", 4096, 64, {}

        async def render(self, messages: Any, tools: Any = (), *, adapter: str = "base") -> Sequence[int]:
            return range(5)

        async def healthy(self) -> bool:
            return True

        async def stream(self, request: Any) -> AsyncIterator[Update]:
            yield Update(WORDS, Completion(WORDS, (), "stop", 5, 6))

    from tuneloop.records.api_key import Limits

    place = Path(folder)
    key, _ = add_key(place, "bench", Limits(rpm=10_000_000, tpm=1_000_000_000, budget_usd=1e9))
    (place / "key").write_text(key)
    config = ServeConfig.model_validate({"folder": folder, "prices": {"input": 0.1, "output": 0.4}})
    store = StoreWriter(place)
    store.start()
    stub: Any = Stub()
    gateway = Gateway(
        stub, {"stub": ServedModel("stub")}, config, Keyring(place, 0.02), Ledger(), store, Admission(64)
    )  # fmt: skip
    short_pauses()  # as `tuneloop serve` does
    uvicorn.run(
        make_app(gateway), port=port, log_level="error", access_log=False, lifespan="off", timeout_keep_alive=600,
        loop=loop,
    )  # fmt: skip
    store.stop()


def litellm_environment() -> str:
    """The interpreter of an environment with LiteLLM's proxy."""
    place = Path(tempfile.gettempdir()) / "tuneloop-bench-litellm"
    python = place / "bin" / "python"
    if not (place / "bin" / "litellm").exists():
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "litellm[proxy]"], check=True)
    return str(python)


def start_litellm(port: int, engine: int, folder: str) -> subprocess.Popen[bytes]:
    python = litellm_environment()
    config = Path(folder) / "litellm.yaml"
    config.write_text(
        "model_list:\n  - model_name: stub\n    litellm_params:\n      model: openai/stub\n"
        f"      api_base: http://127.0.0.1:{engine}/v1\n      api_key: none\n"
        f"general_settings:\n  master_key: {KEY}\n"
    )
    command = [str(Path(python).parent / "litellm"), "--config", str(config), "--port", str(port)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, env={**os.environ, "LITELLM_LOG": "ERROR"}, start_new_session=True, **quiet)  # type: ignore[call-overload]


# --- load --------------------------------------------------------------------------------------------


class Connections:
    """Plain HTTP/1.1 over kept connections, so that the load takes little of the processors that it shares."""

    def __init__(self, port: int, key: str) -> None:
        body = json.dumps(BODY).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self.port, self.data = port, head.encode() + body
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
        self.free.append((reader, writer))
        return head.startswith(b"HTTP/1.1 200")


async def load(connections: Connections, rate: float, seconds: float, seed: int) -> list[float]:
    """Latencies in ms of requests at random planned times, each from its planned time."""
    draw, at, times = random.Random(seed), 0.0, []
    while (at := at + draw.expovariate(rate)) < seconds:
        times.append(at)
    began, found = time.perf_counter(), []

    async def one(due: float) -> None:
        assert await connections.ask()
        found.append(1000 * (time.perf_counter() - began - due))

    tasks = []
    for due in times:
        left = due - (time.perf_counter() - began)
        if left > 0:
            await asyncio.sleep(left)
        tasks.append(asyncio.ensure_future(one(due)))
    await asyncio.gather(*tasks)
    return found


async def measure(setups: dict[str, Connections], rate: float, seconds: int) -> dict[str, list[float]]:
    """Latencies of all setups, in turns of a second with the same planned times."""
    found: dict[str, list[float]] = {name: [] for name in setups}
    for each in setups.values():
        await load(each, min(rate, 50), 2.0, 0)
    for turn in range(seconds):
        order = list(setups)
        random.Random(turn).shuffle(order)
        for name in order:
            found[name] += await load(setups[name], rate, 1.0, turn)
    return found


async def most(connections: Connections, seconds: float, clients: int = 16) -> float:
    """Requests a second of clients that ask again as soon as they are answered."""
    end, count = time.perf_counter() + seconds, 0

    async def client() -> None:
        nonlocal count
        while time.perf_counter() < end:
            await connections.ask()
            count += 1

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return count / (time.perf_counter() - began)


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


# --- the run ---------------------------------------------------------------------------------------


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
    return sum(each.memory_info().rss for each in [process, *process.children(recursive=True)]) / 1e6


def _key(folder: Path) -> str:
    """The key that a gateway has made; empty: there is no such gateway."""
    return (folder / "key").read_text() if (folder / "key").exists() else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second")
    parser.add_argument("--seconds", type=int, default=20, help="seconds of load for each setup")
    parser.add_argument(
        "--litellm", action="store_true", help="LiteLLM's proxy too; it is installed when it is missing"
    )
    parser.add_argument("--asyncio", action="store_true", help="tuneloop in Python's own event loop too")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--server", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.server:
        kind, port, *rest = options.server
        run_direct(int(port)) if kind == "direct" else run_gateway(int(port), *rest)
        return
    with tempfile.TemporaryDirectory() as folder:
        ports = {
            name: free_port()
            for name in (
                "direct",
                "tuneloop",
                *(["asyncio"] if options.asyncio else []),
                *(["litellm"] if options.litellm else []),
            )
        }
        own = [sys.executable, __file__, "--server"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        processes = {
            "direct": subprocess.Popen([*own, "direct", str(ports["direct"])], env=environment),
            "tuneloop": subprocess.Popen([*own, "gateway", str(ports["tuneloop"]), folder], env=environment),
        }
        if options.asyncio:
            other = Path(folder) / "asyncio"
            other.mkdir()
            processes["asyncio"] = subprocess.Popen(
                [*own, "gateway", str(ports["asyncio"]), str(other), "asyncio"], env=environment
            )
        try:
            if options.litellm:
                processes["litellm"] = start_litellm(ports["litellm"], ports["direct"], folder)
            for port in ports.values():
                wait_for(port, 120)
            keys = {
                "asyncio": _key(Path(folder) / "asyncio"),
                "direct": KEY,
                "tuneloop": (Path(folder) / "key").read_text(),
                "litellm": KEY,
            }
            setups = {name: Connections(port, keys[name]) for name, port in ports.items()}

            async def work() -> tuple[dict[str, list[float]], dict[str, float]]:
                latencies = await measure(setups, options.rate, options.seconds)
                return latencies, {name: await most(each, 4.0) for name, each in setups.items()}

            latencies, rates = asyncio.run(work())
            memory = {name: resident_mb(process.pid) for name, process in processes.items()}
        finally:
            for name, process in processes.items():
                if name == "litellm":
                    os.killpg(process.pid, signal.SIGTERM)
                else:
                    process.terminate()
                process.wait(30)
    rows = {
        name: {
            "n": len(values), "p50_ms": quantile(values, 0.5), "p99_ms": quantile(values, 0.99),
            "added_p50_ms": quantile(values, 0.5) - quantile(latencies["direct"], 0.5),
            "added_p99_ms": quantile(values, 0.99) - quantile(latencies["direct"], 0.99),
            "most_per_second": rates[name], "resident_mb": memory[name],
        }
        for name, values in latencies.items()
    }  # fmt: skip
    if options.json:
        print(json.dumps(rows))
        return
    print(f"{options.rate:g} requests/s, {options.seconds} s for each setup in turns of one second")
    print(f"{'':<10} {'n':>7} {'p50 ms':>8} {'p99 ms':>8} {'added p50':>10} {'added p99':>10} {'most/s':>8} {'MB':>7}")
    for name, row in rows.items():
        print(
            f"{name:<10} {row['n']:>7} {row['p50_ms']:>8.2f} {row['p99_ms']:>8.2f} {row['added_p50_ms']:>10.2f} "
            f"{row['added_p99_ms']:>10.2f} {row['most_per_second']:>8.0f} {row['resident_mb']:>7.0f}"
        )


if __name__ == "__main__":
    main()
