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
        path = folder.with_name(f"{folder.name}-{name}")
        shutil.rmtree(path, ignore_errors=True)
        path.with_suffix(".log").unlink(missing_ok=True)
        return Path(shutil.copytree(folder, path))

    wholes = []
    for name in ("first", "second"):
        location = fresh(name)
        status, _ = run(arguments, location, 0)
        time.sleep(1)  # times in whole seconds are not the same in both by chance
        wholes.append(values(location))
    first, second = wholes
    steady = {key for key in first.keys() & second.keys() if first[key] == second[key] and not is_time(key)}
    names = {key.partition(":")[0] for key in first.keys() | second.keys()}
    for number in range(times):
        location = fresh("both")
        statuses = both(arguments, location, 0.004 * 4**number)
        log = location.with_suffix(".log").read_text()
        left = values(location)
        line = {
            "status": status, "statuses": sorted(statuses), "traceback": "Traceback" in log,
            "refusals": sorted({line[7:] for line in log.splitlines() if line.startswith("Error: ")}),
            "wrong": sorted(item for item in steady if left.get(item, "missing") != first[item])[:5],
            "more": sorted({item.partition(":")[0] for item in left} - names),
            "tmp": len([path for path in location.rglob("*.tmp")]),
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
