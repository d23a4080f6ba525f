"""Real conversations as chat traffic: each turn of a customer is sent with all turns before it, tools and their answers too.

    python benchmarks/serve_chats.py [--data FOLDER] [--chats 60] [--clients 2] [--context 2048] [--json]

Conversations of taskmaster4 (a customer orders drinks, the assistant calls tools) are sent to `tuneloop serve` with SmolLM2-135M
in llama.cpp by several clients at a time: a turn at a time and by streaming, with the turns as they stand in the data and the
conversation's name in a header. Counted: answers and errors; the time to the first token of first and later turns, by the
length of their prompt, which says whether an engine reads the turns before again; and whether the store has each turn once,
with its conversation. The data is not part of this repository.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sqlite3
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serve_soak import ROOT, serving


@dataclass
class Turn:
    """An answered turn: its number in the conversation, characters of its prompt, ms to the first token."""

    number: int
    characters: int
    ms: float


@dataclass
class Seen:
    """What clients saw."""

    ends: Counter[str] = field(default_factory=Counter)
    ids: list[str] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)


async def chat(client: Any, talk: dict[str, Any], seen: Seen) -> None:
    """Send a conversation, turn after turn."""
    number = 0
    for at, message in enumerate(talk["messages"]):
        if message["role"] == "assistant":
            continue
        if at + 1 < len(talk["messages"]) and talk["messages"][at + 1]["role"] == "tool":
            continue  # several tools answer before the assistant goes on
        body = {"messages": talk["messages"][: at + 1], "max_tokens": 16, "stream": True}
        number += 1
        began, first, text = time.perf_counter(), 0.0, ""
        headers = {"x-tuneloop-conversation": talk["id"], "x-tuneloop-user": talk["id"]}
        async with client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as reply:
            if "x-tuneloop-request" in reply.headers:
                seen.ids.append(reply.headers["x-tuneloop-request"])
            async for part in reply.aiter_text():
                first = first or time.perf_counter()
                text += part
        if reply.status_code != 200:
            seen.ends[f"{reply.status_code}: {json.loads(text)['error']['message'][:80]}"] += 1
        elif "[DONE]" in text and '"error"' not in text:
            seen.ends["answered"] += 1
            seen.turns.append(Turn(number, len(json.dumps(body["messages"])), 1000 * (first - began)))
        else:
            seen.ends["broken"] += 1


async def traffic(address: str, talks: Sequence[dict[str, Any]], clients: int) -> Seen:
    """All conversations, by so many clients at a time."""
    import httpx

    seen, left = Seen(), list(reversed(talks))

    async def one(client: Any) -> None:
        while left:
            await chat(client, left.pop(), seen)

    async with httpx.AsyncClient(base_url=address, timeout=120) as client:
        await asyncio.gather(*(one(client) for _ in range(clients)))
    return seen


def figures(seen: Seen, folder: Path) -> dict[str, Any]:
    """What is printed."""
    store = sqlite3.connect(folder / "store.db")
    stored = dict(store.execute("SELECT id, conversation FROM requests"))

    def ms(turns: Sequence[Turn]) -> str:
        if not turns:
            return "none"
        times = sorted(turn.ms for turn in turns)
        size = statistics.median(turn.characters for turn in turns)
        return f"{len(turns)} turns of {size:,.0f} characters: {statistics.median(times):.0f} ms, p99 {times[int(0.99 * (len(times) - 1))]:.0f} ms"

    return {
        "ends": dict(seen.ends), "first turns": ms([turn for turn in seen.turns if turn.number == 1]),
        "later turns": ms([turn for turn in seen.turns if turn.number > 1]),
        "longest prompts": ms(sorted(seen.turns, key=lambda turn: turn.characters)[-len(seen.turns) // 5 :]),
        "in the store": f"{sum(id_ in stored for id_ in seen.ids)} of {len(seen.ids)}, {len(stored)} in all, {sum(map(bool, stored.values()))} with a conversation",
    }  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--chats", type=int, default=60)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    file = options.data / "taskmaster4_chats" / "train.jsonl"
    if not file.is_file():
        sys.exit(f"No file {file}: name the folder of the data sets with --data")
    lines = file.read_text(encoding="utf-8").splitlines()
    talks = [json.loads(line) for line in lines[:: max(len(lines) // options.chats, 1)][: options.chats]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with serving(folder, f"context={options.context}", "objective.admission=queue") as (_, address):
            seen = asyncio.run(traffic(address, talks, options.clients))
        found = figures(seen, folder / "serve")
    if options.json:
        print(json.dumps(found))
        return
    for title, value in found.items():
        print(f"{title:<16} {value}")


if __name__ == "__main__":
    main()
