"""The real vLLM behind the gateway, next to llama.cpp's server, our engine, and MLflow's gateway, in one table.

    make test-vllm          # once: it makes the environment .vllm, or set TUNELOOP_VLLM to another one's Python
    python benchmarks/serve_vllm.py [--seconds 4] [--rounds 3] [--only vllm,engines,hybrid,gateways]

Takes eight minutes on two quiet cores, of which vLLM has one. All engines serve SmolLM2-135M.

vllm, engines: clients (1, 8 and 32) that ask again as soon as they have an answer, of 4 tokens to a prompt of 49 that no one
has read, first at the engine's own server and then through the gateway, in rounds of some seconds whose order changes. The
added quantiles are medians of the rounds' differences. Our engine has no server but the gateway.

hybrid: the time to the first token of a short request of one adapter, alone and while a row of 600 tokens of another one
gives way: on vLLM with `--scheduling-policy priority` and by its priorities, on vLLM as it comes (FCFS) and by our quanta.

gateways: an engine that answers at once, by its URL behind our gateway and behind MLflow's (`serve_gateway.py --peers mlflow`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import serve_gateway as gateways

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests" / "helpers")]
PARTS = ("vllm", "engines", "hybrid", "gateways")
CLIENTS = (1, 8, 32)
TOKENS = 4


@dataclass
class Way:
    """One way to an engine: where requests are sent, and in which form."""

    name: str
    wire: Any
    path: str
    shared: dict[str, Any]
    limit: str = "max_tokens"
    base: str = ""  # name of the way that the engine's own server is; empty: it is that
    draw: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.draw = random.Random(self.name)  # a prompt that another way has sent would be in the engine's cache

    async def ask(self) -> float:
        """Milliseconds to the whole answer to a new prompt."""
        prompt = [self.draw.randrange(1000, 40000) for _ in range(49)]
        body = json.dumps({**self.shared, "prompt": prompt, self.limit: TOKENS}).encode()
        began = time.perf_counter()
        await self.wire.post(self.path, body)
        return 1000 * (time.perf_counter() - began)


async def round_of(way: Way, clients: int, seconds: float) -> tuple[list[float], float]:
    """Latencies (ms), and answers a second, of clients that ask again and again."""
    found, began = list[float](), time.perf_counter()

    async def client() -> None:
        while time.perf_counter() < began + seconds:
            found.append(await way.ask())

    await asyncio.gather(*(client() for _ in range(clients)))
    return found, len(found) / (time.perf_counter() - began)


async def compare(ways: Sequence[Way], options: argparse.Namespace) -> list[dict[str, Any]]:
    """A line for each way and number of clients."""
    lines = []
    for way in ways:
        await round_of(way, 2, 1.0)
    for clients in CLIENTS:
        rounds: dict[str, list[tuple[list[float], float]]] = {way.name: [] for way in ways}
        for turn in range(options.rounds):
            for way in ways if turn % 2 else reversed(ways):
                rounds[way.name].append(await round_of(way, clients, options.seconds))
        for way in ways:
            own, plain = rounds[way.name], rounds.get(way.base, [])
            line: dict[str, Any] = {"way": way.name, "clients": clients, "n": sum(len(ms) for ms, _ in own)}
            for name, share in (("p50", 0.5), ("p99", 0.99)):
                line[name] = statistics.median(gateways.quantile(ms, share) for ms, _ in own)
                pairs = zip(own, plain, strict=False)
                added = [gateways.quantile(a[0], share) - gateways.quantile(b[0], share) for a, b in pairs]
                line[f"added_{name}"] = statistics.median(added) if added else None
            line["per_second"] = statistics.median(rate for _, rate in own)
            lines.append(line)
            show_line(line, options)
    return lines


def show_line(line: dict[str, Any], options: argparse.Namespace) -> None:
    if options.json:
        return
    added = "".join(
        f"{line[name]:>11.2f}" if line[name] is not None else f"{'-':>11}" for name in ("added_p50", "added_p99")
    )
    print(
        f"{line['way']:<24}{line['clients']:>8}{line['n']:>7}{line['p50']:>10.1f}{line['p99']:>10.1f}{added}"
        f"{line['per_second']:>9.1f}",
        flush=True,
    )


@contextmanager
def real_vllm(folder: Path, *arguments: str) -> Iterator[str]:
    """The address of a vLLM with the packaged model and two adapters' places."""
    import real_vllm as helper

    from tuneloop.models.files.names import resolve

    server = helper.RealVllm(Path(resolve("smollm2-135m")), folder / "vllm.log", *arguments)
    try:
        yield server.start().address
    finally:
        server.kill()


@contextmanager
def through_gateway(folder: Path, name: str, engine: str) -> Iterator[Way]:
    """The gateway before an engine, as a way."""
    from tuneloop.core.http.wire import Wire

    setup = gateways.start_own(name, folder, engine)
    try:
        gateways.ready(setup, folder)
        wire = Wire(f"http://127.0.0.1:{setup.port}", (folder / name / "key").read_text())
        yield Way(name, wire, "/v1/completions", {"model": "stub", "temperature": 0.0})
    finally:
        gateways.stop(setup)


def part_vllm(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """vLLM's own server, and the same through the gateway."""
    from tuneloop.core.http.wire import Wire

    with real_vllm(folder) as address, through_gateway(folder, "gateway, vLLM", f"{address}#base") as ours:
        own = Way("vLLM", Wire(address), "/v1/completions", {"model": "base", "temperature": 0.0})
        ours.base = own.name
        return asyncio.run(compared([own, ours], options))


def part_engines(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """llama.cpp's own server, the same through the gateway, and our engine; one of the two engines at a time."""
    from tuneloop.core.http.wire import Wire

    os.environ["SLOTS"] = "32"
    with through_gateway(folder, "gateway, llama.cpp", "llama.cpp") as ours:
        server = json.loads((folder / ours.name / "server").read_text())
        shared = {"temperature": 0.0, "cache_prompt": True, "lora": []}
        own = Way("llama.cpp", Wire(server["address"], server["key"]), "/completion", shared, "n_predict")
        ours.base = own.name
        lines = asyncio.run(compared([own, ours], options))
    with through_gateway(folder, "gateway, tuneloop", "tuneloop") as ours:
        return lines + asyncio.run(compared([ours], options))


async def compared(ways: Sequence[Way], options: argparse.Namespace) -> list[dict[str, Any]]:
    try:
        return await compare(ways, options)
    finally:
        await asyncio.gather(*(way.wire.close() for way in ways))


def part_hybrid(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A short request behind a row that gives way, by vLLM's priorities and by our quanta."""
    import serve_hybrid
    from adapters import write_adapter

    from tuneloop.inference.openai.serving import EndpointEngine, EndpointSettings
    from tuneloop.inference.protocol import Served
    from tuneloop.models.files.names import resolve

    base, lines = Path(resolve("smollm2-135m")), []
    places = [write_adapter(base, folder / f"adapter-{seed}", seed, 0.01) for seed in (1, 2)]

    async def work(address: str, priorities: bool) -> dict[str, Any]:
        settings = EndpointSettings(address, tokenizer=str(base), slots=4, priorities=priorities)
        engine = EndpointEngine(Served("base"), [Served(str(path)) for path in places], settings)
        await engine.start()
        try:
            return await serve_hybrid.measure(engine, 600, options.turns)
        finally:
            await engine.stop()

    for policy in ("priority", "fcfs"):
        with real_vllm(folder, "--scheduling-policy", policy) as address:
            found = asyncio.run(work(address, policy == "priority"))
        ms = {name: statistics.median(values) for name, values in found["ms"].items() if values}
        line = {"policy": policy, "median_ms": ms, "interrupted": found["interrupted"], "same": found["same"],
                "rows": found["rows"]}  # fmt: skip
        lines.append(line)
        if not options.json:
            times = ", ".join(f"{name} {value:.0f} ms" for name, value in ms.items())
            how = "vLLM's priorities" if policy == "priority" else "FCFS, our quanta"
            same = f"{found['same']} of {found['rows']} rows as uninterrupted"
            print(f"hybrid, {how}: first token {times}; {same}", flush=True)
    return lines


def part_gateways(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Our gateway and MLflow's before an engine by URL."""
    settings = argparse.Namespace(rate=60.0, seconds=8, peers="mlflow", requests=0, apart=False)
    found = gateways.with_stub(settings, folder)
    if not options.json:
        gateways.show_stub(found, settings)
    return [found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a round of one way")
    parser.add_argument("--rounds", type=int, default=3, help="of each way and number of clients")
    parser.add_argument("--turns", type=int, default=2, help="rows that give way, for each policy")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.environ.setdefault("TUNELOOP_VLLM", str(ROOT / ".vllm" / "bin" / "python"))
    parts: dict[str, Callable[[Path, argparse.Namespace], list[dict[str, Any]]]]
    parts = {"vllm": part_vllm, "engines": part_engines, "hybrid": part_hybrid, "gateways": part_gateways}
    names = [name for name in options.only.split(",") if name]
    if unknown := set(names) - set(parts):
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}")
    if {"vllm", "hybrid"} & set(names) and not Path(os.environ["TUNELOOP_VLLM"]).is_file():
        parser.error("vLLM is not installed: make test-vllm, or --only engines,gateways")
    if not options.json:
        print(
            f"{'':<24}{'clients':>8}{'n':>7}{'p50 ms':>10}{'p99 ms':>10}{'added p50':>11}{'added p99':>11}{'per s':>9}"
        )
    found: dict[str, Any] = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = parts[name](Path(folder), options)
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
