"""The same command twice at the same time in one folder; a JSON line: how both ended, and what they left.

    python two_commands.py FOLDER TIMES WORD...      # see killed_command.py, which compares the files

A few milliseconds lie between the two, other ones each time.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path

from killed_command import is_time, run, values


def both(arguments: list[str], folder: Path, pause: float) -> list[int]:
    """Exit statuses of the command, given again after a pause, and of both together."""
    children = []
    for wait in (0.0, pause):
        if not (child := os.fork()):
            time.sleep(wait)
            os._exit(run(arguments, folder, 0)[0] & 0xFF)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def main(folder: Path, times: int, arguments: list[str]) -> None:
    def fresh(name: str) -> Path:
        place = folder.with_name(f"{folder.name}-{name}")
        shutil.rmtree(place, ignore_errors=True)
        place.with_suffix(".log").unlink(missing_ok=True)
        return Path(shutil.copytree(folder, place))

    wholes = []
    for name in ("first", "second"):
        place = fresh(name)
        status, _ = run(arguments, place, 0)
        time.sleep(1)  # times in whole seconds are not the same in both by chance
        wholes.append(values(place))
    first, second = wholes
    steady = {each for each in first.keys() & second.keys() if first[each] == second[each] and not is_time(each)}
    names = {each.partition(":")[0] for each in first.keys() | second.keys()}
    for number in range(times):
        place = fresh("both")
        statuses = both(arguments, place, 0.004 * 4**number)
        log = place.with_suffix(".log").read_text()
        left = values(place)
        line = {
            "status": status, "statuses": sorted(statuses), "traceback": "Traceback" in log,
            "refusals": sorted({each[7:] for each in log.splitlines() if each.startswith("Error: ")}),
            "wrong": sorted(each for each in steady if left.get(each, "missing") != first[each])[:5],
            "more": sorted({each.partition(":")[0] for each in left} - names),
            "tmp": len([path for path in place.rglob("*.tmp")]),
        }  # fmt: skip
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    import numpy  # noqa: F401
    import torch

    torch.set_num_threads(1)
    import tuneloop.cli.main
    import tuneloop.imports.importing
    import tuneloop.pipeline.run
    import tuneloop.release.export  # noqa: F401

    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]), sys.argv[3:])
