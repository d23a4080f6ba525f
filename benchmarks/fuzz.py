"""Fuzz every parser of foreign files: python benchmarks/fuzz.py --minutes 10 [--only NAME] [--seed N]

Prints for each parser how many mutated files it was given, the slowest, and each way in which it failed otherwise than by the
package's own error. `tests/test_fuzz.py` runs the same with a few examples. Exit status 1: something failed.
"""

from __future__ import annotations

import argparse
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))

from fuzzing import PARSERS, fuzzed, write_seeds

LONGEST = 20  # seconds of an example
MEMORY = 12 << 30  # bytes of address space


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="of all parsers together")
    parser.add_argument("--only", default="", help="parsers with this in their name")
    parser.add_argument("--seed", type=int, default=0, help="of the first example")
    given = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    signal.signal(signal.SIGALRM, _too_long)
    chosen = {name: parser for name, parser in PARSERS.items() if given.only in name}
    examples: Counter[str] = Counter()
    slowest: defaultdict[str, float] = defaultdict(float)
    failures: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_seeds(folder)
        until, share = time.monotonic() + 60 * given.minutes, 60 * given.minutes / len(chosen) / 4
        while time.monotonic() < until:
            for name, item in chosen.items():
                end = min(time.monotonic() + share, until)
                while time.monotonic() < end:
                    seed = given.seed + examples[name]
                    began = time.monotonic()
                    signal.alarm(LONGEST)
                    try:
                        fuzzed(item, folder, seed)
                    except Exception as error:
                        frame = traceback.extract_tb(error.__traceback__)[-1]
                        key = f"{name}: {type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"
                        if key not in failures:
                            failures[key] = f"seed {seed}: {str(error)[:300]}"
                            print(f"FAIL {key}  {failures[key]}", flush=True)
                    finally:
                        signal.alarm(0)
                    slowest[name] = max(slowest[name], time.monotonic() - began)
                    examples[name] += 1
    for name in chosen:
        print(f"{name:32} {examples[name]:>9,} examples  slowest {slowest[name]:5.1f} s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{sum(examples.values()):,} examples in {given.minutes:g} min; {len(failures)} kinds of failure; {peak:,.0f} MiB at most"
    )
    return bool(failures)


def _too_long(number: int, frame: object) -> None:
    raise TimeoutError(f"longer than {LONGEST} s")


if __name__ == "__main__":
    sys.exit(main())
