"""Eight clients on our own engine with several adapters: does any answer differ from that of a cold engine asked alone?

    python benchmarks/serve_leaks.py [--model smollm2-135m] [--seconds 60] [--clients 8] [--rounds 3] [--json]

`tuneloop serve` has the base and three adapters of random weights in fp32, in four slots. Clients ask all of them the same
prompts, which begin alike, greedily, whole or as streams, and leave a third of the streams. Meanwhile, in each round, one
adapter is swapped for another one under its name, and the server is killed (SIGKILL) and started again. Each answer, and each
piece of one that was left or cut, must be that of the source that its header names, asked alone in a fresh engine; and the
header must name a source that had the name then.
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
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT), str(ROOT / "tests" / "helpers")]
START = "You answer questions about the weather on other planets, in a few words. "
PROMPTS = [
    START + rest for rest in ("Is it windy on Jupiter?", "Does it rain?", "Is it windy on Mars?", "How cold is it?")
]
BASE = "base"


@dataclass
class Plan:
    """What is served and how long.

    Args:
        base: the model.
        adapters: name -> folders that take turns under it.
        seconds: of each round.
        rounds: of a swap and a kill each.
        tokens: of an answer.
    """

    base: str
    adapters: Mapping[str, Sequence[Path]]
    seconds: float = 5.0
    rounds: int = 2
    clients: int = 8
    tokens: int = 16


@dataclass
class Seen:
    """What clients saw: how requests ended, and what was wrong."""

    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    swaps: int = 0
    kills: int = 0


@dataclass
class Names:
    """Which sources have had a name: hashes, with the time from which on only they may answer."""

    now: dict[str, tuple[float, str]]
    all: dict[str, set[str]]

    def may(self, name: str, source: str, began: float) -> bool:
        """Whether a source may have answered a request that began then."""
        since, current = self.now[name]
        return source == current or (source in self.all[name] and began < since)


async def cold_answers(plan: Plan) -> tuple[dict[Path, str], dict[tuple[str, str], str]]:
    """What headers call each adapter, and the answer of each source to each prompt, each by an engine of its own."""
    from tuneloop.inference.local.serving import LocalEngine
    from tuneloop.inference.protocol import EngineSettings, Served, complete
    from tuneloop.inference.request import Request

    hashes: dict[Path, str] = {}
    found = {}
    for folder in (None, *(folder for folders in plan.adapters.values() for folder in folders)):
        for prompt in PROMPTS:
            engine = LocalEngine(
                Served(plan.base), [] if folder is None else [Served(str(folder))], EngineSettings(slots=1)
            )
            await engine.start()
            try:
                adapter = next(iter(engine.adapters), BASE)
                ids = await engine.render([{"role": "user", "content": prompt}], adapter=adapter)
                request = Request(ids=tuple(ids), adapter=adapter, max_new_tokens=plan.tokens)
                found[adapter[:16], prompt] = (await complete(engine, request)).text
            finally:
                await engine.stop()
        if folder is not None:
            hashes[folder] = adapter[:16]
    return hashes, found


async def client(
    address: str, plan: Plan, names: Names, cold: Mapping[tuple[str, str], str], seen: Seen, seed: int
) -> None:
    """Ask one request after the other until it is cancelled."""
    import httpx

    from tuneloop.core.text import storable

    draw = random.Random(seed)
    async with httpx.AsyncClient(base_url=address, timeout=600) as http:
        while True:
            name, prompt, leaves = draw.choice([*names.now]), draw.choice(PROMPTS), draw.random() < 0.2
            streamed = leaves or draw.random() < 0.5
            body = {
                "model": name,
                "messages": [{"role": "user", "content": prompt}],
                "max_tokens": plan.tokens,
                "stream": streamed,
            }
            began, text, source, end = time.monotonic(), "", "", "cut"
            try:
                async with http.stream("POST", "/v1/chat/completions", json=body) as reply:
                    source = reply.headers.get("x-tuneloop-release", "")
                    if reply.status_code != 200:
                        end = str(reply.status_code)
                    elif not streamed:
                        text, end = json.loads(await reply.aread())["choices"][0]["message"]["content"], "whole"
                    else:
                        async for line in reply.aiter_lines():
                            if line == "data: [DONE]":
                                end = "whole"
                            elif line.startswith("data: ") and "error" not in (event := json.loads(line[6:])):
                                text += "".join(item["delta"].get("content") or "" for item in event["choices"])
                            if leaves and text:
                                end = "left"
                                break
            except httpx.HTTPError:
                await asyncio.sleep(0.5)  # it is being started again
            seen.ends[end] += 1
            if not source:
                continue
            expected = cold.get((source, prompt))
            expected = None if expected is None else storable(expected)  # as a server answers and keeps it
            same = expected is not None and (text == expected if end == "whole" else expected.startswith(text))
            if not same or not names.may(name, source, began):
                seen.wrong.append(f"{name} by {source}, {end}: {text!r} and not {expected!r}")


def started(plan: Plan, folder: Path, port: int) -> subprocess.Popen[bytes]:
    """A server that is ready."""
    import httpx

    adapters = [f"adapters.{name}={folders[0]}" for name, folders in plan.adapters.items()]
    command = [
        sys.executable, "-m", "tuneloop", "serve", f"base={plan.base}", *adapters, f"port={port}", f"folder={folder}",
        "slots=4", "engine=tuneloop", "objective.admission=queue", "batch.enabled=false",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "TUNELOOP_DTYPE": "float32"}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "server.log").open("ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    end = time.monotonic() + 180
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5).status_code == 200:
                return process
        except httpx.HTTPError:
            time.sleep(0.1)
    raise SystemExit(f"the server did not start: {(folder.parent / 'server.log').read_text()[-600:]}")


async def matrix(plan: Plan, folder: Path) -> Seen:
    """Serve, ask, swap and kill; what clients saw."""
    from tuneloop.serving.swap import deploy_to_server

    os.environ["TUNELOOP_DTYPE"] = "float32"
    hashes, cold = await cold_answers(plan)
    if len({cold[source, PROMPTS[0]] for source in (BASE, *hashes.values())}) < 1 + len(hashes):
        raise SystemExit("the adapters make no difference")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = Path(plan.base).name if Path(plan.base).exists() else plan.base
    at = {name: hashes[folders[0]] for name, folders in plan.adapters.items()}
    names = Names(
        {own: (0.0, BASE), **{name: (0.0, digest) for name, digest in at.items()}},
        {own: {BASE}, **{name: {hashes[folder] for folder in folders} for name, folders in plan.adapters.items()}},
    )
    seen, process = Seen(), await asyncio.to_thread(started, plan, folder, port)
    clients = [
        asyncio.create_task(client(f"http://127.0.0.1:{port}", plan, names, cold, seen, seed))
        for seed in range(plan.clients)
    ]
    try:
        for round_ in range(plan.rounds):
            for name, folders in plan.adapters.items():
                if len(folders) > 1:
                    new = folders[(round_ + 1) % len(folders)]
                    names.now[name] = (float("inf"), hashes[new])  # until it is swapped, both may answer
                    done = await asyncio.to_thread(deploy_to_server, folder, str(new), name=name)
                    names.now[name] = (time.monotonic(), hashes[new])
                    seen.swaps += bool(done.swapped)
            await asyncio.sleep(plan.seconds)
            process.send_signal(signal.SIGKILL)
            process.wait()
            seen.kills += 1
            process = await asyncio.to_thread(started, plan, folder, port)
            await asyncio.sleep(plan.seconds)
    finally:
        for item in clients:
            item.cancel()
        ended: list[Any] = await asyncio.gather(*clients, return_exceptions=True)
        process.kill()
        process.wait()
    for fault in ended:
        if isinstance(fault, Exception):
            raise fault
    return seen


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    from adapters import write_adapter

    from tuneloop.models.files.names import resolve

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="a name or a folder")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each half of a round")
    parser.add_argument("--rounds", type=int, default=3, help="of a swap and a kill each")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=24, help="of an answer")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as path:
        made = [write_adapter(resolve(given.model), Path(path) / f"adapter-{seed}", seed) for seed in range(1, 5)]
        adapters = {"a": made[:2], "b": [made[2]], "c": [made[3]]}
        plan = Plan(given.model, adapters, given.seconds, given.rounds, given.clients, given.tokens)
        seen = asyncio.run(matrix(plan, Path(path) / "serve"))
    if given.json:
        print(json.dumps({"ends": dict(seen.ends), "wrong": seen.wrong, "swaps": seen.swaps, "kills": seen.kills}))
        return
    print(f"{given.model}, {given.clients} clients, {seen.swaps} swaps, {seen.kills} kills")
    for end, count in seen.ends.most_common():
        print(f"  {end:<8}{count:>8,}")
    print(f"  {'wrong':<8}{len(seen.wrong):>8,}")
    for line in seen.wrong[:5]:
        print(f"    {line}")
    if seen.wrong or not seen.ends["whole"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
