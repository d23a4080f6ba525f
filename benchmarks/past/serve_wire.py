"""What asking a server costs the asker: processor time of a request, and of an event of a stream, by aiohttp and by httpx.

    python benchmarks/past/serve_wire.py [--times 500]

The engines of `serve` ask llama.cpp's server and endpoints by aiohttp (`inference/wire.py`), on the processors that a small
model computes on. Behind both clients stands the same server, in a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / "src")]

EVENTS = 400  # of a stream
PAUSE = 0.0005  # seconds between two of them
EVENT = b"data: " + json.dumps({"content": "word ", "tokens": [1, 2, 3], "stop": False}).encode() + b"\n\n"


def serve(port: int) -> None:
    """A server that streams at /stream, and answers at once elsewhere."""
    import uvicorn

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        while (await receive()).get("more_body"):
            pass
        if scope["path"] != "/stream":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
            await send({"type": "http.response.body", "body": b"{}"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(EVENTS):
            await send({"type": "http.response.body", "body": EVENT, "more_body": True})
            await asyncio.sleep(PAUSE)
        await send({"type": "http.response.body", "body": b""})

    uvicorn.run(app, port=port, log_level="critical")


async def microseconds(work: Callable[[], Awaitable[None]], times: int) -> float:
    """Processor time of this process for one of some times."""
    await work()
    began = time.process_time()
    for _ in range(times):
        await work()
    return (time.process_time() - began) / times * 1e6


async def measure(address: str, times: int) -> None:
    import httpx

    from tuneloop.inference.wire import Wire

    wire, client = Wire(address), httpx.AsyncClient(base_url=address)

    async def wire_request() -> None:
        await wire.post("/", b"{}")

    async def wire_stream() -> None:
        async for _ in wire.events("/stream", b"{}"):
            pass

    async def httpx_request() -> None:
        await client.post("/", content=b"{}")

    async def httpx_stream() -> None:
        async with client.stream("POST", "/stream", content=b"{}") as response:
            async for line in response.aiter_lines():
                line.startswith("data:")

    async def streamed(work: Callable[[], Awaitable[None]]) -> float:
        return (await microseconds(work, max(times // 100, 1))) / EVENTS

    print(f"{'':<10} {'request':>10} {'event':>10}   (us of the processor; the better of two)")
    ways = {"aiohttp": (wire_request, wire_stream), "httpx": (httpx_request, httpx_stream)}
    rounds = [
        {name: (await microseconds(ask, times), await streamed(read)) for name, (ask, read) in ways.items()} for _ in range(2)
    ]  # fmt: skip
    for name in ways:
        request, event = (min(values) for values in zip(*(each[name] for each in rounds), strict=True))
        print(f"{name:<10} {request:>10.0f} {event:>10.1f}")
    await wire.close()
    await client.aclose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=500)
    times = parser.parse_args().times
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(port,), daemon=True)
    server.start()
    end = time.monotonic() + 30
    while socket.socket().connect_ex(("127.0.0.1", port)) and time.monotonic() < end:
        time.sleep(0.1)
    try:
        asyncio.run(measure(f"http://127.0.0.1:{port}", times))
    finally:
        server.terminate()


if __name__ == "__main__":
    main()
