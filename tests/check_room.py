"""What a change of one room needs in a minute: format, types, the room's quick tests, the rules of the house, golden values.

    python tests/check_room.py ROOM               # exit status 1 if anything fails
    python tests/check_room.py ROOM --seconds 90  # of processor time for the tests
    python tests/check_room.py ROOM --seconds inf --record   # all but its slow tests; how long each took goes to tests/durations.json

Two things run at a time: the tests, and what needs one core next to them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from helpers.room_tests import HOUSE, RECORD, SECONDS
from places import ROOT
from test_architecture import ORDER
from test_layout import TESTED_IN

ROOMS = tuple(room for room in ORDER if room[0] != "_")
TEST_SECONDS = 20.0  # of processor time; collecting and the two files of the house take as much again
# Groups of golden values that a room decides, of those that take less than 40 seconds. That leaves out the pages.
GOLDEN = {
    "core": "data,plan",
    "records": "plan,data",
    "models": "export",
    "inference": "serve",
    "data": "data",
    "planning": "plan",
    "training": "train",
    "evaluation": "evaluate",
    "recipe": "plan",
    "pipeline": "evaluate",
    "release": "export",
    "combine": "merge,distill,route",
    "serving": "serve",
    "improve": "monitor,ab",
    "api": "data,evaluate",
    "imports": "import",
    "migrate": "migrate",
    "agents": "agents",
    "deploy": "deploy",
    "web": "web",
    "cli": "plan,reference",
}
TOLERANCE = "5e-3"  # processors add in different orders


@dataclass(frozen=True)
class Step:
    """A command that ran, with seconds by the clock and of processor time with the processes that it started."""

    name: str
    status: int
    wall: float
    processor: float


def step(name: str, *text: str, **variables: str) -> Step:
    """Run a module of this environment's Python in the root of the repository, and print what it says."""
    path = os.pathsep.join(map(str, (ROOT / "src", ROOT / "tests", ROOT / "tests" / "helpers")))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **variables}
    begin = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *text], cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
        output.seek(0)
        printed = output.read()
    code = os.waitstatus_to_exitcode(status)
    print(f"--- {name}\n{printed.rstrip()}", flush=True)
    return Step(name, code, time.monotonic() - begin, usage.ru_utime + usage.ru_stime)


def source_of(room: str) -> str:
    """The folder or file of a room."""
    folder = Path("src", "tuneloop", room)
    return str(folder if (ROOT / folder).is_dir() else folder.with_suffix(".py"))


def tests_of(room: str) -> list[str]:
    """The folder of a room's tests, or the file; and the files elsewhere that test modules of the room."""
    places = [path for path in (f"tests/{room}", f"tests/test_{room}.py") if (ROOT / path).exists()]
    elsewhere = [
        f"tests/{file}"
        for file, modules in TESTED_IN.items()
        if any(module.split(".")[0] == room for module in modules.split()) and not file.startswith(f"{room}/")
    ]
    return places + elsewhere


def static_checks(room: str) -> list[Step]:
    """Lint, format, types and golden values, one after the other."""
    code = [source_of(room), *tests_of(room)]
    steps = [
        step("ruff check", "ruff", "check", "-q", *code),
        step("ruff format", "ruff", "format", "--check", "-q", *code),
        step("mypy", "mypy", source_of(room)),
        step("words", "vocabulary", source_of(room)),
    ]
    if room in GOLDEN:
        text = ["benchmarks.golden", "compare", "--tolerance", TOLERANCE, "--only", GOLDEN[room]]
        steps.append(step(f"golden {GOLDEN[room]}", *text))
    return steps


def main(arguments: Sequence[str] | None = None) -> int:
    """Check a room, print what each step says and took, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("room", choices=ROOMS, metavar="ROOM", help=" ".join(ROOMS))
    parser.add_argument("--seconds", type=float, default=TEST_SECONDS, help="for the tests; default: %(default)s")
    parser.add_argument(
        "--record",
        action="store_true",
        help="write how long each test took; with --seconds inf all but the slow ones are run",
    )
    options = parser.parse_args(arguments)
    room = options.room
    variables = {SECONDS: str(options.seconds), RECORD: "1" if options.record else ""}
    with ThreadPoolExecutor(1) as pool:
        others = pool.submit(static_checks, room)
        text = ["pytest", "-p", "room_tests", "-p", "no:xdist", *tests_of(room), *HOUSE]
        tests = step("tests", *text, **variables)
    steps = [*others.result(), tests]
    for item in steps:
        print(
            f"{item.name:24} {item.wall:6.1f} s, {item.processor:6.1f} s of a core  {'ok' if not item.status else 'FAILED'}"
        )
    failed = [entry.name for entry in steps if entry.status]
    if room not in GOLDEN:
        print("no golden values here; all: python benchmarks/golden.py compare")
    print(f"{room}: {'failed: ' + ', '.join(failed) if failed else 'all is well'}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
