"""Many adapters on many engines, on paper: which router keeps the objective, with how many engines.

    python benchmarks/serve_adapters.py [--per-day 10000000] [--adapters 200] [--engines 2,3,4] [--prefix 300]

The busiest hour (`--peak` times the mean) of requests that come at random (Poisson), each for one of the adapters, whose
popularity falls as 1/rank. A prompt begins with its adapter's own instruction (`--prefix` tokens). What a prompt token and a
step take is the planner's figure for vLLM in 16 bits on the card (`tuneloop plan --serve`): not measured on a GPU. An engine
has room for so many adapters (`--slots`), and for instructions in what its memory leaves; the least recently used go. An
instruction that is not there is read again, an adapter that is not there is loaded (`--load-ms`) before its request is read.

Each engine has the admission that serves (`tuneloop.serving.admission`), which refuses what can't keep the objective. Routers:
one engine after the other (`turns`); the less busy of two that are drawn (`least`); the less busy of an adapter's own engines
(`affinity`): those that come first by a hash of both, two of them, and more for an adapter with more traffic. Where an engine
refuses, `least` and `affinity` ask another one. What adapters cost in a step is not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import math
import random
import sys
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from benchmarks.replayed_traffic import Arrival, Outcome, Replay, Run, ask_in_time, ask_one_of  # noqa: E402
from benchmarks.simulated_server import Costs, SimulatedEngine, simulate  # noqa: E402

from tuneloop.inference.request import Request  # noqa: E402
from tuneloop.serving.admission import Admission  # noqa: E402

Router = Literal["turns", "least", "affinity"]
ROUTERS: tuple[Router, ...] = ("turns", "least", "affinity")
DAY = 86400


class Recent:
    """Names of which so many are kept, those that were used last."""

    def __init__(self, room: int) -> None:
        self.room, self.names = max(room, 1), OrderedDict[str, None]()

    def use(self, name: str) -> bool:
        """Whether it was there; it is now."""
        there = name in self.names
        self.names[name] = None
        self.names.move_to_end(name)
        if len(self.names) > self.room:
            self.names.popitem(last=False)
        return there


@dataclass(eq=False)
class AdapterEngine(SimulatedEngine):
    """An engine that keeps some adapters and some instructions.

    Args:
        prefix: tokens of an instruction.
        load_ms: of an adapter that is not there.
        adapters, prefixes: those that are.
    """

    prefix: int = 0
    load_ms: float = 0.0
    adapters: Recent = field(default_factory=lambda: Recent(1))
    prefixes: Recent = field(default_factory=lambda: Recent(1))
    loaded: int = 0
    hits: int = 0
    asked: int = 0

    async def stream(self, request: Request) -> AsyncGenerator[int, None]:
        """As `SimulatedEngine.stream`, with what is there already left out."""
        self.asked += 1
        if not self.adapters.use(request.adapter):
            self.loaded += 1
            await asyncio.sleep(self.load_ms / 1000)
        ids = request.ids or ()
        if self.prefix and self.prefixes.use(request.adapter):
            self.hits += 1
            ids = ids[self.prefix :]
        async for told in super().stream(replace(request, ids=ids)):
            yield told


@dataclass(frozen=True)
class Setting:
    """What is simulated.

    Args:
        rate: requests a second.
        seconds: of the simulated clock.
        prompt, answer: tokens of a request; `prefix` of the prompt are its adapter's instruction.
        slots: adapters that an engine has room for; `prefixes`: instructions.
        rows: requests that an engine answers at a time.
    """

    rate: float
    seconds: float
    adapters: int
    prompt: int
    answer: int
    prefix: int
    slots: int
    prefixes: int
    rows: int
    load_ms: float
    objective_ms: float
    costs: Costs


@dataclass(frozen=True)
class Found:
    """What a router did with some engines.

    Args:
        refused: share of the requests.
        within: share of the accepted ones whose first token came within the objective; p50, p99: ms to it.
        busy: share of the time that the engines' work would take with all rows of a step in use.
        hits: share whose instruction was there; `loaded`: whose adapter was not.
    """

    router: str
    engines: int
    requests: int
    refused: float
    within: float
    p50: float
    p99: float
    busy: float
    hits: float
    loaded: float


def shares(adapters: int) -> list[float]:
    """Of the traffic, by rank: 1/rank (Zipf)."""
    whole = sum(1 / rank for rank in range(1, adapters + 1))
    return [1 / rank / whole for rank in range(1, adapters + 1)]


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which a share of all lies; 0 where there is none."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)] if values else 0.0


def traffic(setting: Setting, seed: int) -> list[Arrival]:
    """Requests at random times, each with its adapter."""
    draw, at, found = random.Random(seed), 0.0, []
    names, weights = [f"a{n}" for n in range(setting.adapters)], shares(setting.adapters)
    while (at := at + draw.expovariate(setting.rate)) < setting.seconds:
        tokens = max(round(draw.gauss(setting.answer, setting.answer / 4)), 1)
        found.append(Arrival(at, setting.prompt, tokens, draw.choices(names, weights)[0]))
    return found


def homes(setting: Setting, engines: int) -> dict[str, list[int]]:
    """An adapter's own engines: by the highest hash of both, so that few move when an engine comes or goes."""

    def rank(name: str, engine: int) -> bytes:
        return hashlib.sha256(f"{name}/{engine}".encode()).digest()

    return {
        f"a{n}": sorted(range(engines), key=lambda e: rank(f"a{n}", e), reverse=True)[
            : max(2, math.ceil(2 * share * engines))
        ]
        for n, share in enumerate(shares(setting.adapters))
    }


async def _ask_all(runs: Sequence[Run], arrivals: Sequence[Arrival], router: Router, own: dict[str, list[int]]) -> None:
    draw = random.Random(1)

    def order(number: int, arrival: Arrival) -> list[Run]:
        if router == "turns":
            return [runs[number % len(runs)]]
        some = draw.sample(range(len(runs)), min(2, len(runs)))
        if router == "affinity":
            some = sorted(own[arrival.adapter], key=lambda n: runs[n].engine.load_ms) + some  # type: ignore[attr-defined]
            return [runs[n] for n in dict.fromkeys(some)][:3]
        return sorted((runs[n] for n in some), key=lambda run: run.engine.load_ms)  # type: ignore[attr-defined]

    await asyncio.gather(*await ask_in_time(arrivals, lambda number, item: ask_one_of(order(number, item), item)))


def simulated(setting: Setting, router: Router, engines: int, seed: int = 0) -> Found:
    """A router before some engines. The first third of the time fills memories and is not counted."""
    arrivals = traffic(setting, seed)
    places = [
        AdapterEngine(
            setting.costs, setting.rows, grain=4, prefix=setting.prefix, load_ms=setting.load_ms,
            adapters=Recent(setting.slots), prefixes=Recent(setting.prefixes),
        )
        for _ in range(engines)
    ]  # fmt: skip
    given = Replay(setting.rows, setting.objective_ms, (), 0, setting.seconds)
    counted_from = setting.seconds / 3

    async def work() -> tuple[list[Outcome], float, float]:
        runs = [Run(location, "ours", given, Admission(given.slots)) for location in places]
        clock = asyncio.get_running_loop().time
        for run in runs:
            run.admission.clock = clock
        began = clock()
        task = asyncio.ensure_future(_ask_all(runs, arrivals, router, homes(setting, engines)))
        await asyncio.sleep(counted_from)
        for path in places:
            path.read = path.written = path.loaded = path.hits = path.asked = 0
        await task
        outcomes = [match for run in runs for match in run.found if not match.moved]
        return outcomes, began + counted_from, clock()

    outcomes, since, until = simulate(work)
    asked = [outcome for outcome in outcomes if outcome.arrived >= since]
    times = [1000 * (item.first - item.arrived) for item in asked if not item.refused]
    total = max(sum(path.asked for path in places), 1)
    return Found(
        router, engines, len(asked), sum(item.refused for item in asked) / len(asked),
        sum(time <= setting.objective_ms for time in times) / max(len(times), 1), percentile(times, 0.5), percentile(times, 0.99),
        sum(setting.costs.seconds(path.read, path.written, setting.rows) for path in places) / (engines * (until - since)),
        sum(path.hits for path in places) / total, sum(path.loaded for path in places) / total,
    )  # fmt: skip


def planned_costs(model: str, gpu: str, context: int, rows: int, adapters_gib: float) -> tuple[Costs, float]:
    """What the planner says of an engine: its costs, and the GiB that weights, adapters and half-written answers leave."""
    from tuneloop.planning.catalogue.gpus import find_gpu
    from tuneloop.planning.catalogue.shape import find_model
    from tuneloop.planning.serve import plan_serving

    shape, card = find_model(model)[1], find_gpu(gpu)
    item, many = (plan_serving(shape, [card], context, number, 1)[0] for number in (1, rows))
    assert item.one and item.prompt and many.all, f"{model} does not fit on one {gpu}"
    alone, together = 1000 / item.one, 1000 * rows / many.all
    row = (together - alone) / (rows - 1)
    left = 0.9 * card.gib - many.peak_gib - adapters_gib
    return Costs(prompt=3.0, read=1000 / item.prompt, step=alone - row, row=row), left


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-day", type=float, default=1e7, help="requests")
    parser.add_argument("--peak", type=float, default=3.0, help="the busiest hour, as a multiple of the mean")
    parser.add_argument("--adapters", type=int, default=200)
    parser.add_argument("--engines", default="2,3,4")
    parser.add_argument("--model", default="llama-3.1-8b")
    parser.add_argument("--gpu", default="h100-sxm")
    parser.add_argument("--prompt", type=int, default=400, help="tokens, the instruction among them")
    parser.add_argument("--answer", type=int, default=40, help="tokens on average")
    parser.add_argument("--prefix", type=int, default=300, help="tokens of an adapter's instruction")
    parser.add_argument("--slots", type=int, default=200, help="adapters that an engine has room for")
    parser.add_argument("--adapter-mib", type=float, default=80.0)
    parser.add_argument("--load-ms", type=float, default=100.0, help="to load an adapter")
    parser.add_argument("--rows", type=int, default=64, help="requests that an engine answers at a time")
    parser.add_argument("--ttft-ms", type=float, default=500.0)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--routers", default=",".join(ROUTERS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    from tuneloop.planning.catalogue.shape import find_model
    from tuneloop.planning.serve import cache_bytes

    context = options.prompt + options.answer
    adapters_gib = options.slots * options.adapter_mib / 1024
    costs, left = planned_costs(options.model, options.gpu, context, options.rows, adapters_gib)
    room = int(left * 2**30 / max(cache_bytes(find_model(options.model)[1], options.prefix), 1))
    setting = Setting(
        options.per_day / DAY * options.peak, options.seconds, options.adapters, options.prompt, options.answer, options.prefix,
        options.slots, room, options.rows, options.load_ms, options.ttft_ms, costs,
    )  # fmt: skip
    kept = f" and {max(room, 0):,} instructions of {options.prefix:,} tokens" if options.prefix else ""
    print(f"{setting.rate:,.0f} requests a second, {options.adapters} adapters; an engine is one {options.gpu} with room for "
          f"{options.slots} adapters{kept}")  # fmt: skip
    print(f"costs: {1000 / costs.read:,.0f} prompt tokens a second, a step {costs.step:.2f} + {costs.row:.4f} ms a row")
    print(
        f"{'engines':>7}  {'router':<9} {'within':>7} {'refused':>8} {'p50 ms':>7} {'p99 ms':>7} {'busy':>5} {'known':>6} {'loads':>6}"
    )
    for engines in map(int, options.engines.split(",")):
        for router in options.routers.split(","):
            item = simulated(setting, router, engines, options.seed)
            print(f"{item.engines:>7}  {item.router:<9} {item.within:>7.1%} {item.refused:>8.1%} {item.p50:>7.0f} {item.p99:>7.0f} "
                  f"{item.busy:>5.0%} {item.hits:>6.0%} {item.loaded:>6.1%}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
