"""Many short rows through `prepare`, in processes of this machine and on a Ray cluster: rows a second, memory, spill.

    python benchmarks/scale_prepare.py --rows 1_000_000
    python benchmarks/scale_prepare.py --rows 200_000 --engines processes ray

One table, a line an engine. Rows are made from a seed: 20 words each, one in ten nearly a copy of another, two labels. Memory is the
most that this process and its children held together (proportional set size: shared pages count once), looked at twice a second;
of a Ray cluster that was started elsewhere, its processes are not seen. Spill is the most bytes that stood in the spool folder.
The ratio compares each engine with the first one, in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tuneloop.core.ui import reporting
from tuneloop.data.config import PrepareConfig
from tuneloop.data.prepare import prepare_dataset
from tuneloop.data.process_record import TokenCount
from tuneloop.records.rows import Row


@dataclass
class Watched:
    """The most that was seen, in bytes."""

    memory: int = 0
    spill: int = 0


def make_rows(path: Path, number: int) -> int:
    """Write rows, and return their bytes."""
    draw = random.Random(0)
    syllables = [
        f"{first}{vowel}{last}" for first in "bdfgklmnprst" for vowel in "aeiou" for last in ("", "n", "r", "s")
    ]
    sentence = ["".join(draw.choices(syllables, k=draw.randint(1, 3))) for _ in range(20_000)]
    before = ""
    with path.open("w", encoding="utf-8") as file:
        for n in range(number):
            text = before + " again" if n % 10 == 9 else " ".join(draw.choices(sentence, k=20))
            before = text
            file.write(json.dumps({"text": text, "label": "ab"[n % 2]}) + "\n")
    return path.stat().st_size


def count_words(row: Row) -> TokenCount:
    """A stand-in for a tokenizer, so that preparing is what is measured."""
    return TokenCount(sum(len(m["content"].split()) for m in row.messages) + 8, 3)


def family(pid: int) -> Iterator[int]:
    """A process and those that it started."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*"):
        try:
            children = (task / "children").read_text().split()
        except OSError:
            continue
        for child in children:
            yield from family(int(child))


def memory_of(pid: int) -> int:
    """Bytes that a process and its children hold together."""
    total = 0
    for item in family(pid):
        try:
            text = Path(f"/proc/{item}/smaps_rollup").read_text()
        except OSError:
            continue
        total += next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:")), 0)
    return total


def watch(out: Path, found: Watched, over: threading.Event) -> None:
    """Keep the most that is seen until the work is over."""
    while not over.wait(0.5):
        found.memory = max(found.memory, memory_of(os.getpid()))
        try:
            spill = sum(path.stat().st_size for path in (out / ".spool").iterdir())
        except OSError:
            continue
        found.spill = max(found.spill, spill)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--engines", nargs="+", default=["processes"], choices=["processes", "ray"])
    parser.add_argument("--workers", type=int, default=None)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "rows.jsonl"
        size = make_rows(source, given.rows)
        print(f"{given.rows:,} rows, {size / 2**20:,.0f} MiB")
        print(
            f"{'engine':<10} {'seconds':>8} {'rows/s':>8} {'reading':>8} {'GiB':>6} {'B/row':>6} {'spill GiB':>9} {'ratio':>6}  hash"
        )
        first = 0.0
        for engine in given.engines:
            out, found, over = Path(scratch) / engine, Watched(), threading.Event()
            thread = threading.Thread(target=watch, args=(out, found, over), daemon=True)
            idle = memory_of(os.getpid())
            began, read = time.monotonic(), [0.0]

            def progress(task: str, *_: object, began: float = began, read: list[float] = read, **__: object) -> None:
                if task == "reading":
                    read[0] = time.monotonic() - began

            thread.start()
            config = PrepareConfig(sources=[str(source)], engine=engine, workers=given.workers)
            with reporting(progress=progress):
                made = prepare_dataset(config, name="rows", seed=0, out=out, measure=count_words)
            seconds = time.monotonic() - began
            over.set()
            thread.join()
            first = first or seconds
            print(
                f"{engine:<10} {seconds:>8.1f} {given.rows / seconds:>8,.0f} {read[0]:>8.1f} {found.memory / 2**30:>6.2f} "
                f"{max(found.memory - idle, 0) / given.rows:>6,.0f} {found.spill / 2**30:>9.2f} {first / seconds:>6.2f}  {made.manifest.hash[:12]}",
                flush=True,
            )


if __name__ == "__main__":
    main()
