"""What three tasks cost on one machine: three adapters on one base, one merged model, three models; each by `tuneloop serve`.

    python benchmarks/past/merge_costs.py [--requests 45] [--at-once 12] [--usd-per-hour 0.05]

Three adapters of rank 16 of the packaged model with random matrices: what they answer means nothing, how long it takes does. The
merged model is their `svd` merge of rank 16. Requests of some 50 tokens with answers of at most 32, in turn to the three tasks, `--at-once` of
them open. Memory is the servers' share of the machine's (Pss of all their processes) after the last answer. Way after way, each twice;
the better one counts.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from merge import ADAPTERS, ENVIRONMENT, MODEL, ROOT, write_adapters
from serve_soak import started

TOPICS = ("a parcel that is late", "a lamp that flickers", "an invoice", "a visit", "a cat", "the weather", "a lease")


def start(targets: Sequence[str], folder: Path, threads: int) -> tuple[subprocess.Popen[bytes], str]:
    """A server and its address. Servers share the cores: with two threads each, three on two cores hinder each other."""
    settings = ["port=0", f"folder={folder}", "context=512", "objective.ttft_ms=60000"]
    environment = {**ENVIRONMENT, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "tuneloop", "serve", *targets, *settings]
    return started(command, environment, folder, folder.with_suffix(".log"))


def memory(process: subprocess.Popen[bytes]) -> float:
    """GiB of a process and its children, shared pages by share."""
    total, left = 0, [process.pid]
    while left:
        pid = left.pop()
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
            left += [
                int(child)
                for task in Path(f"/proc/{pid}/task").iterdir()
                for child in (task / "children").read_text().split()
            ]
        except (OSError, StopIteration):
            continue
    return total / 2**20


async def asked(where: Sequence[tuple[str, str]], requests: int, at_once: int) -> tuple[int, float]:
    """Tokens read and written, and seconds. Task after task gets a request at its address under its name."""
    import httpx

    tokens, gate = 0, asyncio.Semaphore(at_once)
    async with httpx.AsyncClient(timeout=300) as client:

        async def one(number: int) -> int:
            address, name = where[number % len(where)]
            text = f"Write two polite sentences, number {number}, about {TOPICS[number % len(TOPICS)]}, for a customer who waits."
            body = {"model": name, "messages": [{"role": "user", "content": text}], "max_tokens": 32}
            async with gate:
                answer = await client.post(f"{address}/v1/chat/completions", json=body)
            answer.raise_for_status()
            return int(answer.json()["usage"]["total_tokens"])

        await asyncio.gather(*(one(-1 - i) for i in range(len(where))))  # what is loaded once
        began = time.monotonic()
        tokens = sum(await asyncio.gather(*(one(number) for number in range(requests))))
        return tokens, time.monotonic() - began


def measured(servers: Sequence[Sequence[str]], place: Path, options: argparse.Namespace) -> dict[str, float]:
    """A way of serving: its servers, each with its targets."""
    import httpx

    running: list[subprocess.Popen[bytes]] = []
    where: list[tuple[str, str]] = []
    threads = max(len(os.sched_getaffinity(0)) // len(servers), 1)
    try:
        for number, targets in enumerate(servers):
            process, address = start(targets, place / f"serve-{number}", threads)
            running.append(process)
            names = [each["id"] for each in httpx.get(f"{address}/v1/models").json()["data"]]
            known = [Path(target).name for target in targets if Path(target).name in names]
            where += [(address, name) for name in known or names[:1]]
        tokens, seconds = asyncio.run(asked(where, options.requests, options.at_once))
        found = {"tokens": tokens, "seconds": seconds, "gib": sum(map(memory, running))}
        print(f"{len(servers)} servers of {len(where)} names: {found}", file=sys.stderr, flush=True)
        return found
    finally:
        for process in running:
            os.killpg(process.pid, signal.SIGTERM)
        for process in running:
            process.wait(60)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=45)
    parser.add_argument("--at-once", type=int, default=12)
    parser.add_argument("--usd-per-hour", type=float, default=0.05)
    parser.add_argument("--times", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        sys.path.insert(0, str(ROOT / "src"))
        write_adapters(place)
        sources = [str(place / str(seed)) for seed in range(ADAPTERS)]
        merge = [
            sys.executable,
            "-m",
            "tuneloop",
            "merge",
            *sources,
            "--base",
            MODEL,
            "--out",
            str(place / "merged"),
            "--no-judge",
            "-q",
        ]
        subprocess.run(merge, env=ENVIRONMENT, check=True)
        ways: dict[str, list[list[str]]] = {
            "three adapters on one base": [sources],
            "one merged adapter": [[str(place / "merged")]],
            "three servers, a model each": [[source] for source in sources],
        }
        found: dict[str, dict[str, Any]] = {}
        for turn in range(options.times):
            for way, servers in ways.items():
                here = place / f"{turn}-{len(found)}-{way.split()[0]}"
                here.mkdir()
                now = measured(servers, here, options)
                if way not in found or now["seconds"] < found[way]["seconds"]:
                    found[way] = now
    first = next(iter(found.values()))
    print(
        "| three tasks served by | memory | tokens/s, read and written | dollars a million tokens |\n|---|---|---|---|"
    )
    for way, now in found.items():
        rate, base = now["tokens"] / now["seconds"], first["tokens"] / first["seconds"]
        usd = options.usd_per_hour / 3600 / rate * 1e6
        print(
            f"| {way} | {now['gib']:.2f} GiB, {now['gib'] / first['gib']:.2f} times | {rate:,.0f}, {rate / base:.2f} times | ${usd:.3f} |"
        )


if __name__ == "__main__":
    main()
