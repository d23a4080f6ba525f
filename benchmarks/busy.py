"""Training on a machine whose cores other programs hold: all threads as ever next to threads that adapt, and how well limits of time hold.

    python benchmarks/busy.py DATASET [--busy 0 2 4 20] [--seconds 20] [--minutes 1] [--whole 3] [--anyway]

DATASET is a prepared folder. For each number of busy programs, tokens a second of forward and backward passes of the packaged model in two
processes one after the other: with the thread count fixed to all cores, and as it adapts (`--seconds 0`: not). With `--minutes`, `tuneloop train
DATASET train.max_minutes=...`, with `--whole` also `tuneloop run DATASET max_minutes=...`, with the busy programs all the time, until the half of
that time, and from there on. A limit is kept within a tenth of it or 20 seconds; a run that can come to nothing is refused, unless `--anyway`.
What is limited: the training with its validations; or the whole process of the run, which is what `--whole` measures.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Load:
    """Other busy programs while a limited run trains."""

    words: str
    first: bool  # whether they run from before its start
    then: bool  # and from the half of its time on


LOADS = (Load("all the time", True, True), Load("until half-way", True, False), Load("from half-way on", False, True))


def limited(command: list[str], folder: Path, minutes: float, count: int, load: Load) -> str:
    """A run with a limit, in words: what it took, what it did, and whether the limit was kept."""
    out = folder / "run"
    with contextlib.ExitStack() as others:
        if load.first:
            others.enter_context(busy_programs(count))
        began = time.monotonic()
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        messages: list[str] = []
        reader = threading.Thread(target=lambda: messages.extend(run.stderr or []))
        reader.start()
        # Half of the time of what is limited: of the training, or of the whole run.
        whole = "run" in command
        while run.poll() is None and not (whole or (out / "metrics.jsonl").is_file()):
            time.sleep(0.1)
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.wait(30 * minutes)
        if load.first and not load.then:
            others.close()
        if load.then and not load.first:
            others.enter_context(busy_programs(count))
        run.wait()
        took = time.monotonic() - began
        reader.join()
    if run.returncode:
        error = " ".join(line.strip() for line in messages[-3:])
        return f"{took:.0f} s, then exit {run.returncode}: {error}"
    made = json.loads((out / "run.json").read_text(encoding="utf-8"))
    seconds = took if whole else made["seconds"]
    over = seconds - 60 * minutes
    kept = "kept" if over <= max(0.1 * 60 * minutes, 20) else "NOT KEPT"
    steps = f"{made['steps']} steps (planned {made['planned_steps']}) saw {made['seen']}"
    checked = f"validation {made['checking_seconds']:.0f} s"
    return f"{kept}: {seconds:.0f} s of {60 * minutes:.0f}; {steps}; {checked}; {took:.0f} s in all"


def limits(given: argparse.Namespace, anyway: bool) -> None:
    """Print how the limits hold with each number of busy programs, and where that number changes half-way."""
    extra = ["--anyway"] if anyway else []
    jobs = [("train", given.minutes, "train.max_minutes"), ("run", given.whole, "max_minutes")]
    for verb, minutes, key in jobs:
        for count in given.busy if minutes else ():
            for load in LOADS if count else LOADS[:1]:
                with tempfile.TemporaryDirectory() as scratch:
                    folder = Path(scratch)
                    settings = [f"{key}={minutes}", "track.report_to=none"] if verb == "run" else [f"{key}={minutes}"]
                    out = ["-o", str(folder / "run")]
                    command = [sys.executable, "-m", "tuneloop", verb, str(given.dataset), *out, *settings, *extra]
                    result = limited(command, folder, minutes, count, load)
                print(f"{verb}, {key}={minutes:g}, {count} busy {load.words}: {result}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--busy", type=int, nargs="*", default=[0, 2, 4, 20])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--whole", type=float, default=0.0)
    parser.add_argument("--anyway", action="store_true")
    parser.add_argument("--one", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        speed(given.dataset, given.one)
        return
    print(f"{processor()}, {cores()} cores; tokens a second of {MODEL}")
    if given.seconds:
        print("busy programs | all threads | adapted | ratio")
    for count in given.busy if given.seconds else ():
        with busy_programs(count):
            fixed, adapted = (measured(given.dataset, given.seconds, fixed) for fixed in (True, False))
        print(f"{count:>13} | {fixed:>11.0f} | {adapted:>7.0f} | {adapted / fixed:.2f}", flush=True)
    limits(given, given.anyway)


if __name__ == "__main__":
    main()
