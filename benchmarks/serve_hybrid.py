"""A short request behind a long row of a batch that has another adapter, in llama.cpp and in our engine.

    python benchmarks/serve_hybrid.py [--engine llama.cpp|tuneloop] [--tokens 3000] [--turns 8]

The model is SmolLM2-135M with two random adapters. Three times to the first token of a short request are taken in turns:
alone; behind the row as it comes (`at once`); behind the row when it gives way. Then the row's answer is compared with the one that
nobody interrupted, and it is counted what was read again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests" / "helpers")]


def make_engine(kind: str, folder: Path, context: int) -> Any:
    """An engine on the packaged model with two adapters."""
    from adapters import write_adapter

    from tuneloop.inference.llamacpp.serving import LlamaCppEngine
    from tuneloop.inference.local.serving import LocalEngine
    from tuneloop.inference.protocol import EngineSettings, Served
    from tuneloop.models.files.names import packaged_gguf, resolve
    from tuneloop.release.gguf.lora import write_gguf_lora

    base = resolve("smollm2-135m")
    adapters = [write_adapter(base, folder / f"adapter-{seed}", seed, 0.01) for seed in (1, 2)]
    if kind == "tuneloop":
        return LocalEngine(Served(str(base)), [Served(str(entry)) for entry in adapters], EngineSettings(slots=4))
    source = packaged_gguf()
    assert source is not None
    shutil.copyfile(source, folder / "base.gguf")
    for adapter in adapters:
        write_gguf_lora(base, adapter, adapter.with_suffix(".gguf"), "f16", adapter.name)
    loras = [Served(str(entry.with_suffix(".gguf"))) for entry in adapters]
    return LlamaCppEngine(Served(str(folder / "base.gguf")), loras, EngineSettings(slots=4, context=context))


async def first_token_ms(engine: Any, request: Any) -> float:
    """Milliseconds to the first piece of an answer, whose stream is then read to its end."""
    began, first = time.perf_counter(), 0.0
    async for _ in engine.stream(request):
        first = first or 1000 * (time.perf_counter() - began)
    return first


async def measure(engine: Any, tokens: int, turns: int) -> dict[str, Any]:
    """Times to the first token alone and behind a row, and whether the row's answer is the same."""
    from tuneloop.inference.protocol import complete
    from tuneloop.inference.request import Request

    first, second = engine.adapters
    text = list(await engine.tokenize("The history of the city begins with a small village on the river. " * 300))
    draw = random.Random(0)
    row = Request(ids=text[:tokens], adapter=first, max_new_tokens=64)

    def short() -> Request:
        path = draw.randrange(200)  # another beginning each time, so that none is read already
        return Request(ids=[draw.randrange(1000, 20000), *text[path : path + 39]], adapter=second, max_new_tokens=4)

    wanted = await complete(engine, row)
    found: dict[str, list[float]] = {"alone": [], "at once": [], "gives way": []}
    same, interrupted = 0, 0
    await first_token_ms(engine, short())
    for turn in range(turns):
        found["alone"].append(await first_token_ms(engine, short()))
        fresh = replace(row, ids=[draw.randrange(1000, 20000), *row.ids[1:]])
        if turn < 2:  # it takes long
            task = asyncio.ensure_future(complete(engine, fresh))
            await asyncio.sleep(0.05)
            found["at once"].append(await first_token_ms(engine, short()))
            await task
        task = asyncio.ensure_future(complete(engine, replace(row, gives_way=True)))
        while not task.done():
            await asyncio.sleep(draw.uniform(0.5, 4.0))
            if not task.done():
                found["gives way"].append(await first_token_ms(engine, short()))
                interrupted += 1
        same += (await task).token_ids == wanted.token_ids
        told = {name: [round(value) for value in values] for name, values in found.items()}
        print(f"turn {turn + 1}: ms to the first token {told}", file=sys.stderr, flush=True)
    return {"ms": found, "same": same, "rows": turns, "interrupted": interrupted}


def count_read_again(engine: Any) -> list[int]:
    """Tokens that llama.cpp reads again in each quantum, filled while it works."""
    found: list[int] = []
    if not hasattr(engine, "_quantum"):
        return found
    ask, before = engine._quantum, {}

    async def watched(request: Any, ids: Any, tokens: int, slot: int) -> Any:
        said = await ask(request, ids, tokens, slot)
        if (held := before.get(slot)) is not None and len(ids) > held:
            found.append(max(said["timings"]["prompt_n"] - (len(ids) - held), 0))
        before[slot] = len(ids)
        return said

    engine._quantum = watched
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("llama.cpp", "tuneloop"), default="llama.cpp")
    parser.add_argument("--tokens", type=int, default=3000, help="of the row's prompt")
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    async def work(folder: Path) -> tuple[dict[str, Any], list[int]]:
        engine = make_engine(options.engine, folder, options.tokens + 256)
        again = count_read_again(engine)
        await engine.start()
        try:
            return await measure(engine, options.tokens, options.turns), again
        finally:
            await engine.stop()

    with tempfile.TemporaryDirectory() as folder:
        found, again = asyncio.run(work(Path(folder)))
    ms = {name: statistics.median(values) for name, values in found["ms"].items() if values}
    worst = {name: max(values) for name, values in found["ms"].items() if values}
    result = {
        "engine": options.engine, "tokens": options.tokens, "median_ms": ms, "worst_ms": worst,
        "times_alone": ms["gives way"] / ms["alone"], "interrupted": found["interrupted"],
        "rows_same": found["same"], "rows": found["rows"], "most_read_again": max(again, default=0),
    }  # fmt: skip
    if options.json:
        print(json.dumps(result))
        return
    print(f"{options.engine}: a request of 40 tokens behind a row of {options.tokens:,} tokens with another adapter")
    for name in ms:
        print(
            f"{name:<10} {ms[name]:>9.0f} ms median {worst[name]:>9.0f} ms worst  {len(found['ms'][name]):>4} requests"
        )
    print(f"gives way: {result['times_alone']:.2f} times alone; {found['interrupted']} interruptions")
    print(f"answers equal to the uninterrupted one: {found['same']} of {found['rows']}")
    print(f"tokens read again at most: {result['most_read_again']}")


if __name__ == "__main__":
    main()
