"""`tuneloop ui` over 10,000 runs and a store of a million requests with 100,000 ratings, as a table.

    python benchmarks/ui.py [--runs 10000] [--requests 1000000] [--ratings 100000] [--folder FOLDER] [--url postgresql://...]
                            [--seconds 30] [--json]

The pages come from a process of `tuneloop ui`, as a browser gets them: the time to the first byte of each page (as the very
first one of a process of its own; the first time in one that has shown others; and the median and the most of five more),
its bytes on the wire with all that it loads, searches, and the memory of the process after all of it. Then the gateway of `serve_gateway.py`, with a stub for an engine,
answers 100 requests a second, in turns of a second with and without someone who opens one page after the other:
what that adds to their 99th percentile. `--folder` keeps what was made, and uses what is there.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import http.client
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks")]

import serve_gateway  # noqa: E402
import store  # noqa: E402

from tuneloop.core.files import write_json  # noqa: E402
from tuneloop.records.record import write_record  # noqa: E402
from tuneloop.records.run import RunManifest  # noqa: E402

FIRST_BYTE_MS, PAGE_KB, SEARCH_MS, MEMORY_MB, ADDED_MS = 200, 150, 500, 250, 1.0  # what is wanted
PAGES = ("/", "/runs", "/runs?text=lora&sort=score", "/data", "/traffic", "/traffic/000000500000", "/quality", "/experiments",
         "/models", "/costs")  # fmt: skip
SEARCHES = {
    "a frequent text": "text=parcel+17+",
    "a text that is nowhere": "text=zebra",
    "slow requests of a model": "model=m1&slower=800",
    "bad feedback on a candidate": "feedback=bad&arm=candidate",
    "a kind of feedback that is rare": "feedback=correction",
    "a user": "user=u17",
    "a key in a month of the past": "key=key3&since=2026-01-01&until=2026-02-01",
}


@dataclass(frozen=True)
class Loaded:
    """A page as it was loaded.

    Args:
        first_ms: to the first byte, at the first time; `median_ms`, `most_ms`: of five more.
        start_ms: as the first page of a process, asked for as soon as that says that it is ready; the median of three.
        kb: on the wire, with scripts and style.
    """

    path: str
    first_ms: float
    median_ms: float
    most_ms: float
    kb: float
    start_ms: float


def make_runs(folder: Path, number: int) -> None:
    """Folders of finished runs, each with settings, metrics and an evaluation."""
    rng = random.Random(0)
    for i in range(number):
        run = folder / "runs" / f"sweep{i // 100:03d}" / f"run-{i:05d}"
        run.mkdir(parents=True)
        loss = rng.uniform(0.2, 1.2)
        dataset, rate = f"tickets-{i % 40}", rng.choice((1e-4, 2e-4, 5e-4))
        (run / "config.yaml").write_text(
            f"model: smollm2-135m\ndata:\n  sources: [tickets.jsonl]\ntrain:\n  learning_rate: {rate}\n"
        )
        lines = [json.dumps({"step": step, "loss": loss + 2 / step, "time": step}) for step in range(1, 21)]
        (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        score = {"value": 1 - loss / 2, "low": 0.95 - loss / 2, "high": 1.02 - loss / 2}
        write_json(run / "eval.json", {"version": 1, "model": "smollm2-135m", "dataset": dataset, "split": "test", "n": 200,
                                       "metrics": {"accuracy": score}})  # fmt: skip
        manifest = RunManifest(id=run.name, key=f"{i:064x}", method="lora", model="smollm2-135m", dataset=dataset, steps=20,
                               total_steps=20, planned_steps=20, best_step=20, best_val_loss=loss, seconds=60.0, usd=0.02)  # fmt: skip
        write_record(run / RunManifest.file, manifest)


cookies: dict[str, str] = {}  # by address: who has opened the pages there


@contextmanager
def pages(folder: Path, url: str) -> Iterator[tuple[subprocess.Popen[str], str, float]]:
    """A process of `tuneloop ui`, its address, and the seconds until it answers."""
    command = [
        sys.executable,
        "-m",
        "tuneloop",
        "ui",
        str(folder),
        "port=0",
        "--json",
        *(["--store", url] if url else []),
    ]
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        opened = urlsplit(json.loads(process.stdout.readline())["address"])
        address = opened.netloc
        seconds = time.perf_counter() - begin
        connection = http.client.HTTPConnection(address, timeout=120)
        connection.request("GET", f"/?{opened.query}")
        cookies[address] = connection.getresponse().headers["set-cookie"].partition(";")[0]
        connection.close()
        try:
            yield process, address, seconds
        finally:
            process.terminate()


def get(address: str, path: str) -> tuple[float, bytes]:
    """Milliseconds to the first byte, and the body as it came."""
    connection = http.client.HTTPConnection(address, timeout=120)
    begin = time.perf_counter()
    connection.request("GET", path, headers={"Accept-Encoding": "gzip", "Cookie": cookies[address]})
    answer = connection.getresponse()
    body = answer.read(1)
    ms = 1000 * (time.perf_counter() - begin)
    body += answer.read()
    connection.close()
    assert answer.status == 200, f"{path}: {answer.status} {body[:2000]!r}"
    return ms, body


def plain(body: bytes) -> str:
    """A page's text."""
    return (gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body).decode()


def start_ms(path: str, folder: Path, url: str) -> float:
    """Milliseconds to the first byte of the first page of a process."""
    times = []
    for _ in range(3):
        with pages(folder, url) as (_, address, _):
            times.append(get(address, path)[0])
    return statistics.median(times)


def load_page(address: str, path: str, start: float) -> Loaded:
    """Load a page six times, and once all that it names; `start`: see `start_ms`."""
    first, body = get(address, path)
    times = [get(address, path)[0] for _ in range(5)]
    assets = re.findall(r'(?:src|href)="(/static/[^"]+)"', plain(body))
    size = len(body) + sum(len(get(address, asset)[1]) for asset in set(assets))
    return Loaded(path, first, statistics.median(times), max(times), size / 1000, start)


def added(folder: Path, address: str, seconds: int) -> dict[str, float]:
    """99th percentiles of a server's answers, in ms, without and with someone who opens one page after the other."""
    setup = serve_gateway.start_own("gateway", folder, "stub")
    looking, over = threading.Event(), threading.Event()

    def look() -> None:
        at = 0
        while not over.is_set():
            looking.wait()
            get(address, PAGES[at % len(PAGES)])
            at += 1
            time.sleep(0.2)  # no one reads faster

    async def measure() -> dict[str, list[float]]:
        times: dict[str, list[float]] = {"without": [], "with": []}
        connections = serve_gateway.Connections(setup)
        await serve_gateway.load(connections, 50, 2.0, 0)
        for turn in range(seconds):
            for name in random.Random(turn).sample(sorted(times), 2):
                (looking.set if name == "with" else looking.clear)()
                times[name] += await serve_gateway.load(connections, 100, 1.0, turn)
        return times

    thread = threading.Thread(target=look, daemon=True)
    try:
        serve_gateway.ready(setup, folder)
        thread.start()
        times = asyncio.run(measure())
    finally:
        over.set()
        looking.set()
        thread.join(60)
        serve_gateway.stop(setup)
    return {name: serve_gateway.quantile(values, 0.99) for name, values in times.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--ratings", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="of runs and store; what is there is used as it is")
    parser.add_argument("--url", default="", help="of a Postgres database instead of the store's file")
    parser.add_argument("--seconds", type=int, default=30, help="of requests with and without the page; 0: none")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        if not (folder / "runs").is_dir():
            make_runs(folder, options.runs)
        location = options.url or folder / "serve"
        if not store._is_there(location):
            store.fill(location, options.requests, options.ratings)
        starts = [start_ms(path, folder, options.url) for path in PAGES]
        with pages(folder, options.url) as (process, address, ready):
            loaded = [load_page(address, path, start) for path, start in zip(PAGES, starts, strict=True)]
            searches = {
                name: max(get(address, f"/traffic?{query}")[0] for _ in range(3)) for name, query in SEARCHES.items()
            }
            memory = serve_gateway.resident_mb(process.pid)
            with tempfile.TemporaryDirectory() as apart:
                p99 = added(Path(apart), address, options.seconds) if options.seconds else {}
            later = serve_gateway.resident_mb(process.pid)
    record = {"ready_seconds": ready, "pages": [asdict(page) for page in loaded], "searches_ms": searches,
              "memory_mb": memory, "memory_later_mb": later, "p99_ms": p99}  # fmt: skip
    if options.json:
        print(json.dumps(record))
        return
    print(
        f"{options.runs:,} runs, {options.requests:,} requests, {options.ratings:,} ratings; ready in {ready:.2f} s\n"
    )
    print(f"first bytes, ms, at most {FIRST_BYTE_MS}; KB at most {PAGE_KB}\n")
    print("| page | first after a start | first time | median | most | KB |\n|---|---|---|---|---|---|")
    for page in loaded:
        print(
            f"| `{page.path}` | {page.start_ms:.0f} | {page.first_ms:.0f} | {page.median_ms:.0f} | {page.most_ms:.0f} | {page.kb:.0f} |"
        )
    print(f"\n| search | most of 3, ms (at most {SEARCH_MS}) |\n|---|---|")
    for name, ms in searches.items():
        print(f"| {name} | {ms:.0f} |")
    print(f"\nmemory: {memory:.0f} MB, {later:.0f} MB after more pages (at most {MEMORY_MB})")
    if p99:
        more = p99["with"] - p99["without"]
        print(f"a server's p99: {p99['without']:.2f} ms without, {p99['with']:.2f} ms with a page open: "
              f"{more:+.2f} ms (at most {ADDED_MS:g})")  # fmt: skip


if __name__ == "__main__":
    main()
