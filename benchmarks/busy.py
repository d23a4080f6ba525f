"""Training on a machine whose cores other programs hold: all threads as ever next to threads that adapt, and how well a limit of time holds.

    python benchmarks/busy.py DATASET [--busy 0 2 4] [--seconds 20] [--minutes 0]

For each number of busy programs, tokens a second of forward and backward passes of the packaged model in two processes one after the other:
with the thread count fixed to all cores, and as it adapts. With `--minutes`, also `tuneloop train DATASET train.max_minutes=...` with the busy
programs running from before the start (`all`), ended when the run has begun (`start`), or started then (`end`): minutes, steps, planned.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tuneloop.core.machine import cores, processor

SPIN = "import itertools\nfor _ in itertools.count(): pass"
MODEL = "smollm2-135m"


@contextlib.contextmanager
def busy_programs(count: int) -> Iterator[None]:
    """So many other programs that compute without end."""
    programs = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def speed(dataset: Path, seconds: float) -> None:
    """Print tokens a second of this process's passes, once they have run for a while."""
    from tuneloop.core.threads import use_threads
    from tuneloop.data.dataset import load_dataset
    from tuneloop.models.load import load_model
    from tuneloop.training.config import TrainConfig
    from tuneloop.training.rows import training_rows
    from tuneloop.training.speed import SUSTAINED, measure_speed

    use_threads()
    model, config = load_model(MODEL), TrainConfig()
    rows = training_rows(load_dataset(dataset).train, model.template, config)
    measure_speed(model, rows, config, 0, seconds=seconds / 4)  # adapts, where it may
    print(measure_speed(model, rows, config, 0, seconds=seconds) / SUSTAINED)


def measured(dataset: Path, seconds: float, fixed: bool) -> float:
    environment = os.environ | ({"OMP_NUM_THREADS": str(cores())} if fixed else {})
    command = [sys.executable, __file__, str(dataset), "--one", str(seconds)]
    return float(subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout)


def limited(dataset: Path, minutes: float, count: int, when: str) -> str:
    """A run with a limit, in words."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [
            sys.executable,
            "-m",
            "tuneloop",
            "train",
            str(dataset),
            "--out",
            str(out),
            f"train.max_minutes={minutes}",
        ]
        with contextlib.ExitStack() as others:
            if when != "end":
                others.enter_context(busy_programs(count))
            run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while not (out / "metrics.jsonl").is_file() and run.poll() is None:
                time.sleep(0.2)
            time.sleep(5.0)
            if when == "start":
                others.close()
            if when == "end":
                others.enter_context(busy_programs(count))
            run.wait()
        made = json.loads((out / "run.json").read_text())
    return f"{made['seconds'] / 60:.2f} min of {minutes:g}, {made['steps']} steps (planned {made['planned_steps']}), saw {made['seen']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--busy", type=int, nargs="*", default=[0, cores(), 2 * cores()])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--one", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        speed(given.dataset, given.one)
        return
    print(f"{processor()}, {cores()} cores; tokens a second of {MODEL}")
    print("busy programs | all threads | adapted | ratio")
    for count in given.busy:
        with busy_programs(count):
            fixed, adapted = (measured(given.dataset, given.seconds, fixed) for fixed in (True, False))
        print(f"{count:>13} | {fixed:>11.0f} | {adapted:>7.0f} | {adapted / fixed:.2f}", flush=True)
    if given.minutes:
        for count in [count for count in given.busy if count]:
            for when in ("all", "start", "end"):
                print(f"{count} busy, {when:>5}: {limited(given.dataset, given.minutes, count, when)}", flush=True)


if __name__ == "__main__":
    main()
