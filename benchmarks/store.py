"""How long the queries of each command take on a store of a million requests and 100,000 ratings, as a table.

    python benchmarks/store.py [--requests 1000000] [--ratings 100000] [--folder FOLDER | --url postgresql://...]

The commands' own functions run on the store; every statement that they send is measured with the reading of its rows, as the
least of three times of the processor, so that other work on the machine counts little; in Postgres by the clock. What a
command computes from the rows is not part of it, but stands in the last column: the whole call. The store has a year of traffic, an experiment in its last
24 days, canary prompts every day, and is made in a temporary folder (0.7 GB) unless one is named.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tuneloop.core.errors import UserError
from tuneloop.core.ids import utc, utc_now, uuid7
from tuneloop.improve.controller.command import facts_of
from tuneloop.improve.experiment.state import read_experiments
from tuneloop.improve.feedback.command import show
from tuneloop.improve.monitor.canaries import findings, rounds_due
from tuneloop.improve.monitor.command import due_window
from tuneloop.records.feedback import Feedback
from tuneloop.records.request import StoredRequest
from tuneloop.serving.costs import costs_of
from tuneloop.serving.store import store as stores
from tuneloop.serving.store.database import Database, insert, is_database_url
from tuneloop.serving.store.erase import find
from tuneloop.serving.store.store import drawn_arms, last_routes, opened, read_feedback, read_requests

END = 1_790_000_000.0  # of the year of traffic
DAY = 86_400.0
LEAST_MS = 1.0  # of a statement that is listed


def fill(path: Path | str, requests: int, ratings: int) -> None:
    """Make the store."""
    rng = random.Random(0)
    prompts = [
        json.dumps(
            [{"role": "user", "content": f"where is parcel {i} that was sent on monday, nobody knows of it" * 2}]
        )
        for i in range(1000)
    ]
    begin = END - 365 * DAY
    columns = {**stores.COLUMNS[StoredRequest], "place": "INTEGER"}

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

    said = {**stores.COLUMNS[Feedback], "place": "INTEGER"}
    step = requests / ratings

    def vote(j: int) -> tuple[Any, ...]:
        i = int(j * step)
        at = utc(begin + 365 * DAY * i / requests + 60)
        values = {"id": f"f{j:011d}", "request": f"{i:012d}", "kind": "thumbs" if j % 10 else "label",
                  "value": "true" if j % 3 else "false", "user": f"u{j % 5000}", "time": at, "place": requests + j}  # fmt: skip
        return tuple(values.get(name) for name in said)

    asked = (
        {"id": f"z{day:04d}{k:04d}", "time": utc(begin + day * DAY), "model": "m0", "prompt": prompts[k], "tools": "[]",
         "completion": '"shipping"', "shadow": f"canary:r{k}", "conversation": f"round{day}", "key": "",
         "prompt_tokens": 60, "completion_tokens": 3, "place": 0}
        for day in range(365) for k in range(20)
    )  # fmt: skip
    with opened(path, create=True) as store, store.transaction():
        for i in range(0, requests, 10_000):
            store.insert("requests", columns, [row(j) for j in range(i, min(i + 10_000, requests))])
        for i in range(0, ratings, 10_000):
            store.insert("feedback", said, [vote(j) for j in range(i, min(i + 10_000, ratings))])
        store.insert("requests", columns, [tuple(item.get(name) for name in columns) for item in asked])
        store.execute("UPDATE places SET last = ?", [requests + ratings])
    if is_database_url(path):
        with opened(path) as store:
            store.execute("VACUUM (ANALYZE)")  # as Postgres does by itself within minutes


@dataclass
class Timed:
    """A database that notes how long its queries take."""

    inner: Any
    told: ClassVar[dict[str, tuple[float, int]]] = {}
    clock: ClassVar[Callable[[], float]] = time.process_time

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def execute(self, sql: str, values: Any = ()) -> Any:
        """The statement, after it was measured."""
        self._measured(self.inner.execute, sql, values)
        return self.inner.execute(sql, values)

    def read(self, sql: str, values: Any = ()) -> Any:
        """As `execute`."""
        self._measured(self.inner.read, sql, values)
        return self.inner.read(sql, values)

    def _measured(self, ask: Callable[[str, Any], Any], sql: str, values: Any) -> None:
        """Ask once, and read the rows one by one as the program does."""
        if not sql.lstrip().upper().startswith("SELECT"):
            return
        began, rows = Timed.clock(), 0
        for _ in ask(sql, values):
            rows += 1
        ms = 1000 * (Timed.clock() - began)
        before = Timed.told.get(sql, (0.0, 0))
        Timed.told[sql] = before[0] + ms, before[1] + rows


def calls(folder: Path | str) -> dict[str, Callable[[], Any]]:
    """What each command reads."""
    now = utc(END)
    week, month = utc(END - 7 * DAY), utc(END - 24 * DAY)

    def reading(work: Callable[[Database], Any]) -> Callable[[], Any]:
        def run() -> Any:
            with opened(folder) as store:
                return work(store)

        return run

    return {
        "serve: an experiment's users so far": reading(lambda s: drawn_arms(s, "m0", month)),
        "serve: conversations of a router": reading(last_routes),
        "serve, monitor: is a window due": lambda: due_window(folder, "7d", "m0", now=now),
        "serve, monitor: are canary prompts due": lambda: rounds_due(folder, "m0", (None, None), 1.0, now=now),
        "monitor: canary prompts of 400 days": reading(lambda s: findings(s, "m0", {}, 0.01, now)),
        "monitor: a day": reading(lambda s: list(read_requests(s, since=utc(END - DAY), where="model = ?", values=["m0"]))),
        "monitor: a week": reading(lambda s: list(read_requests(s, since=week, where="model = ?", values=["m0"]))),
        "ab check: requests of 24 days": reading(
            lambda s: list(read_requests(s, since=month, until=now, where="model = ? AND arm IS NOT NULL", values=["m0"], texts=False))
        ),
        "ab check: feedback of 24 days": reading(lambda s: list(read_feedback(s, since=month, until=now))),
        "ab show": lambda: read_experiments(folder),
        "collect: feedback of all time": reading(lambda s: list(read_feedback(s, origin=False))),
        "feedback show, of a week": lambda: show(folder, since=week),
        "improve: is there a reason": reading(lambda s: facts_of(s, "m0", [], now)),
        "costs, of a week": lambda: costs_of(folder, since=week),
        "costs, of all time": lambda: costs_of(folder),
        "forget: a user": reading(lambda s: find(s, "user=u17")),
        "a request and what was said of it": reading(
            lambda s: (list(read_requests(s, where="id = ?", values=["000000500000"])),
                       list(read_feedback(s, where="request = ?", values=["000000500000"])))
        ),
    }  # fmt: skip


def written(sums: bool) -> float:
    """Microseconds of the processor to store a request in SQLite.

    Args:
        sums: with the triggers that keep sums by day.
    """
    least = float("inf")
    with tempfile.TemporaryDirectory() as scratch, opened(scratch, create=True) as store:
        if not sums:
            store.execute("DROP TRIGGER costs_more")
        for _ in range(10):
            given = [
                StoredRequest(id=uuid7(), time=utc_now(), key=f"k{i % 20}", model=f"m{i % 3}", completion="In Berlin", usd=1e-5,
                              prompt=[{"role": "user", "content": "where is parcel " * 8}], prompt_tokens=60, seconds=0.02)
                for i in range(1000)
            ]  # fmt: skip
            began = time.process_time()
            insert(store, given)
            least = min(least, time.process_time() - began)
    return 1e6 * least / 1000


def _is_there(path: Path | str) -> bool:
    try:
        with opened(path) as store:
            return bool(store.execute("SELECT 1 FROM requests LIMIT 1").fetchone())
    except UserError:
        return False


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--ratings", type=int, default=100_000)
    parser.add_argument("--url", default="", help="of a Postgres database instead; one with a store is used as it is")
    parser.add_argument("--folder", type=Path, help="of the store; one that is there is used as it is")
    asked = parser.parse_args()
    if not asked.url:
        print("| a request is stored, µs | with sums | without |\n|---|---|---|")
        print(f"| in SQLite | {written(True):.1f} | {written(False):.1f} |\n")
    with tempfile.TemporaryDirectory() as scratch:
        folder: Path | str = asked.url or asked.folder or Path(scratch)
        if not _is_there(folder):
            fill(folder, asked.requests, asked.ratings)
        if asked.url:
            Timed.clock = time.perf_counter
        for name in ("open_sqlite", "open_postgres"):
            opening = getattr(stores, name)
            setattr(stores, name, lambda *given, opening=opening: Timed(opening(*given)))
        if not asked.url:
            print(f"{stores.store_file(folder).stat().st_size / 1e9:.2f} GB\n")
        print("| what is read | statement | rows | ms | the whole call, ms |\n|---|---|---|---|---|")
        for name, work in calls(folder).items():
            best: dict[str, tuple[float, int]] = {}
            whole = float("inf")
            for _ in range(3):
                Timed.told = {}
                began = Timed.clock()
                work()
                spent = sum(ms for ms, _ in Timed.told.values())  # once to measure
                whole = min(whole, 1000 * (Timed.clock() - began) - spent)
                best = {sql: min(told, best.get(sql, told)) for sql, told in Timed.told.items()}
            for sql, (ms, rows) in best.items():
                if ms >= LEAST_MS or len(best) == 1:
                    short = " ".join(sql.split())
                    shown = short if len(short) < 90 else f"{short[:30]} ... {short[-55:]}"
                    print(f"| {name} | `{shown}` | {rows:,} | {ms:.1f} | {whole:.0f} |", flush=True)


if __name__ == "__main__":
    main()
