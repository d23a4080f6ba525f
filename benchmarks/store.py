"""How long the queries of each command take on a store of a million requests and 100,000 ratings, as a table.

    python benchmarks/store.py [--requests 1000000] [--ratings 100000] [--folder FOLDER]

The commands' own functions run on the store; every statement that they send is measured with the reading of its rows, as the
least of three times of the processor, so that other work on the machine counts little. What a command computes from the rows
is not part of it, but stands in the last column: the whole call. The store has a year of traffic, an experiment in its last
24 days, canary prompts every day, and is made in a temporary folder (0.7 GB) unless one is named.
"""

from __future__ import annotations

import argparse
import json
import random
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from tuneloop.core.ids import utc
from tuneloop.records.feedback import Feedback
from tuneloop.records.request import StoredRequest
from tuneloop.serve import store as stores
from tuneloop.serve.erase import find
from tuneloop.serve.store import connect, first_arms, last_routes, opened, read_feedback, read_requests
from tuneloop.workflows import ab
from tuneloop.workflows.canary_prompts import findings, rounds_due
from tuneloop.workflows.costs import costs_of
from tuneloop.workflows.feedback import show
from tuneloop.workflows.improve import facts_of
from tuneloop.workflows.monitor import due_window

END = 1_790_000_000.0  # of the year of traffic
DAY = 86_400.0
LEAST_MS = 1.0  # of a statement that is listed


def fill(folder: Path, requests: int, ratings: int) -> None:
    """Make the store."""
    rng = random.Random(0)
    connect(folder, create=True).close()
    prompts = [
        json.dumps(
            [{"role": "user", "content": f"where is parcel {i} that was sent on monday, nobody knows of it" * 2}]
        )
        for i in range(1000)
    ]
    begin = END - 365 * DAY
    columns = (*stores._COLUMNS[StoredRequest], "place")

    def row(i: int) -> tuple[Any, ...]:
        at = begin + 365 * DAY * i / requests
        inside = at > END - 24 * DAY
        arm = ("candidate" if i % 10 < 3 else "champion") if inside else None
        values = {
            "id": f"{i:012d}", "time": utc(at), "key": f"key{i % 20}", "model": f"m{i % 3}", "release": str(i * 12 // requests),
            "arm": arm, "propensity": 0.3 if inside else None, "user": f"u{rng.randrange(requests // 5)}",
            "conversation": f"c{i // 4}" if i % 20 < 4 else None, "prompt": prompts[i % 1000], "tools": "[]",
            "completion": '{"role": "assistant", "content": "shipping", "probability": 0.9}', "prompt_tokens": 60, "completion_tokens": 3,
            "ttft_ms": 80.0, "total_ms": rng.lognormvariate(5, 0.5), "finish": "stop", "tier": "default", "usd": 1e-5,
            "seconds": 0.02, "place": i + 1,
        }  # fmt: skip
        return tuple(values.get(name) for name in columns)

    with closing(sqlite3.connect(folder / stores.FILE)) as store, store:
        marks = ", ".join("?" * len(columns))
        store.executemany(f"INSERT INTO requests ({', '.join(columns)}) VALUES ({marks})", map(row, range(requests)))
        said = (*stores._COLUMNS[Feedback], "place")
        step = requests / ratings

        def vote(j: int) -> tuple[Any, ...]:
            i = int(j * step)
            at = utc(begin + 365 * DAY * i / requests + 60)
            values = {"id": f"f{j:011d}", "request": f"{i:012d}", "kind": "thumbs" if j % 10 else "label",
                      "value": "true" if j % 3 else "false", "user": f"u{j % 5000}", "time": at, "place": requests + j}  # fmt: skip
            return tuple(values.get(name) for name in said)

        store.executemany(
            f"INSERT INTO feedback ({', '.join(said)}) VALUES ({', '.join('?' * len(said))})", map(vote, range(ratings))
        )
        asked = (
            {"id": f"z{day:04d}{k:04d}", "time": utc(begin + day * DAY), "model": "m0", "prompt": prompts[k], "tools": "[]",
             "completion": '"shipping"', "shadow": f"canary:r{k}", "conversation": f"round{day}", "key": "",
             "prompt_tokens": 60, "completion_tokens": 3, "place": 0}
            for day in range(365) for k in range(20)
        )  # fmt: skip
        store.executemany(
            f"INSERT INTO requests ({', '.join(columns)}) VALUES ({marks})",
            (tuple(each.get(name) for name in columns) for each in asked),
        )
        store.execute("UPDATE places SET last = ?", [requests + ratings])


class Rows:
    """The rows of a statement, read at once."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = iter(rows)

    def __iter__(self) -> Iterator[Any]:
        return self.rows

    def fetchone(self) -> Any:
        """The next row."""
        return next(self.rows, None)

    def fetchall(self) -> list[Any]:
        """All that are left."""
        return list(self.rows)


class Timed(sqlite3.Connection):
    """A connection that notes how long its statements take."""

    told: ClassVar[dict[str, tuple[float, int]]] = {}

    def execute(self, sql: str, values: Any = (), /) -> Any:
        """The statement with all of its rows."""
        cursor = super().execute(sql, values)
        if not sql.lstrip().upper().startswith("SELECT"):
            return cursor
        began = time.process_time()
        rows = super().execute(sql, values).fetchall()
        ms = 1000 * (time.process_time() - began)
        before = Timed.told.get(sql, (0.0, 0))
        Timed.told[sql] = before[0] + ms, before[1] + len(rows)
        return Rows(rows)


def calls(folder: Path) -> dict[str, Callable[[], Any]]:
    """What each command reads."""
    now = utc(END)
    week, month = utc(END - 7 * DAY), utc(END - 24 * DAY)

    def reading(work: Callable[[sqlite3.Connection], Any]) -> Callable[[], Any]:
        def run() -> Any:
            with opened(folder) as store:
                return work(store)

        return run

    return {
        "serve: an experiment's users so far": reading(lambda s: first_arms(s, "m0", month)),
        "serve: conversations of a router": reading(last_routes),
        "serve, monitor: is a window due": lambda: due_window(folder, "7d", "m0", now=now),
        "serve, monitor: are canary prompts due": lambda: rounds_due(folder, "m0", (None, None), 1.0, now=now),
        "monitor: canary prompts of 400 days": reading(lambda s: findings(s, "m0", {}, 0.01, now)),
        "monitor: a day": reading(lambda s: list(read_requests(s, since=utc(END - DAY), where="model = ?", values=["m0"]))),
        "monitor: a week": reading(lambda s: list(read_requests(s, since=week, where="model = ?", values=["m0"]))),
        "ab check: requests of 24 days": reading(
            lambda s: list(read_requests(s, since=month, until=now, where="arm IS NOT NULL AND model = ?", values=["m0"]))
        ),
        "ab check: feedback of 24 days": reading(lambda s: list(read_feedback(s, since=month, until=now))),
        "ab show": lambda: ab.read_experiments(folder),
        "collect: feedback of all time": reading(lambda s: list(read_feedback(s))),
        "feedback show, of a week": lambda: show(folder, since=week),
        "improve: is there a reason": reading(lambda s: facts_of(s, [], now)),
        "costs, of a week": lambda: costs_of(folder, since=week),
        "costs, of all time": lambda: costs_of(folder),
        "forget: a user": reading(lambda s: find(s, "user=u17")),
        "a request and what was said of it": reading(
            lambda s: (list(read_requests(s, where="id = ?", values=["000000500000"])),
                       list(read_feedback(s, where="request = ?", values=["000000500000"])))
        ),
    }  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--ratings", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="of the store; one that is there is used as it is")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.folder or Path(scratch)
        if not (folder / stores.FILE).is_file():
            fill(folder, asked.requests, asked.ratings)
        stores.sqlite3.connect = partial(sqlite3.connect, factory=Timed)  # type: ignore[assignment]
        print(f"{(folder / stores.FILE).stat().st_size / 1e9:.2f} GB\n")
        print("| what is read | statement | rows | ms | the whole call, ms |\n|---|---|---|---|---|")
        for name, work in calls(folder).items():
            best: dict[str, tuple[float, int]] = {}
            whole = float("inf")
            for _ in range(3):
                Timed.told = {}
                began = time.process_time()
                work()
                whole = min(whole, 1000 * (time.process_time() - began) - sum(ms for ms, _ in Timed.told.values()))
                best = {sql: min(told, best.get(sql, told)) for sql, told in Timed.told.items()}
            for sql, (ms, rows) in best.items():
                if ms >= LEAST_MS or len(best) == 1:
                    short = " ".join(sql.split())
                    shown = short if len(short) < 90 else f"{short[:30]} ... {short[-55:]}"
                    print(f"| {name} | `{shown}` | {rows:,} | {ms:.1f} | {whole:.0f} |", flush=True)


if __name__ == "__main__":
    main()
