"""A server that is killed (SIGKILL) again and again in the middle of a batch; one JSON object of what is left.

    python killed_batch.py FOLDER SEED

Each server dies before a write to the disk of which the seed draws the number. It forks, so it is a program of its own:
a test's process has threads.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from live_server import StubEngine

from tuneloop.core.ui import quiet
from tuneloop.serving.admission import Keyring
from tuneloop.serving.batch.api import Batches
from tuneloop.serving.batch.batch import INPUT, OUTPUT, make_batch
from tuneloop.serving.batch.record import read_state
from tuneloop.serving.config import ServeConfig
from tuneloop.serving.gateway import Gateway, ServedModel
from tuneloop.serving.store.store import opened, read_requests
from tuneloop.serving.store.writer import StoreWriter

LINES = 60
CHAT = "/v1/chat/completions"


def die_before(number: int) -> None:
    """End this process by SIGKILL before so many of its writes."""
    left = number

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    for name in ("write", "fsync", "replace", "ftruncate"):
        setattr(os, name, counted(getattr(os, name)))


async def serve(folder: Path) -> None:
    """What a server does with the batches that an earlier one has left, until they are over."""
    prices = {"input": 1.0, "output": 1.0}
    config = ServeConfig.model_validate({"folder": str(folder), "batch": {"rows": 8}, "prices": prices})
    with quiet():
        store = StoreWriter(folder, "full")
        store.start()
        models, engine = {"stub": ServedModel("stub")}, StubEngine(pause=0.002)
        gateway = Gateway(engine, models, config, store, Keyring(folder))  # type: ignore[arg-type]
        batches = Batches(gateway, folder / "batch")
        batches.resume()
        await asyncio.gather(*(task for _, task in batches.running.values()))
        store.stop()


def main(folder: Path, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    batch = folder / "batch" / "batches" / f"batch_{1:032x}"
    batch.mkdir(parents=True)
    with (batch / INPUT).open("w") as file:
        for i in range(LINES):
            body = {"model": "stub", "messages": [{"role": "user", "content": f"say {i}"}]}
            file.write(json.dumps({"custom_id": f"id-{i}", "method": "POST", "url": CHAT, "body": body}) + "\n")
    make_batch(batch, CHAT, seconds=3600)
    kills = 0
    while not read_state(batch).over:
        number = rng.randrange(1, 60)
        if not (child := os.fork()):
            die_before(number)
            asyncio.run(serve(folder))
            os._exit(0)
        kills += os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    if not (child := os.fork()):  # the last server may have been killed after the batch's end
        asyncio.run(serve(folder))
        os._exit(0)
    os.waitpid(child, 0)
    with opened(folder) as store:
        rows = list(read_requests(store))
        (usd,) = store.execute("SELECT SUM(usd) FROM costs").fetchone()
    results = [json.loads(line) for line in (batch / OUTPUT).read_text().splitlines()]
    times = Counter(row.prompt[0]["content"] for row in rows)
    return {
        "kills": kills, "results": len({result["custom_id"] for result in results}), "rows": len(rows),
        "repeated": sum(number > 1 for number in times.values()), "missing": LINES - len(times),
        "errors": sum(row.error is not None for row in rows), "usd": round(usd * 1e6),
        "same": {row.id for row in rows} == {result["response"]["request_id"] for result in results},
        "keys": sorted({key for result in results for key in result}),
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
