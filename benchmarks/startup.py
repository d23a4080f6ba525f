"""Processor time of what should answer at once, next to Python itself and the import of torch.

    python benchmarks/startup.py [REPEATS]

Each figure is user and system time of the process, the least of REPEATS (default 7).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}


def cpu_seconds(arguments: list[str], repeats: int) -> float:
    """Least user and system time of `python ARGUMENTS`, in seconds."""
    best = float("inf")
    for _ in range(repeats):
        process = subprocess.Popen(
            [sys.executable, *arguments], env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        best = min(best, usage.ru_utime + usage.ru_stime)
    return best


def commands() -> list[str]:
    """Names of the commands, as the help lists them."""
    done = subprocess.run(
        [sys.executable, "-m", "tuneloop", "--help"], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    listed = done.stdout.partition("Commands:\n")[2]
    return [line.split()[0] for line in listed.splitlines() if line.startswith("  ") and line[2] != " "]


def main(repeats: int = 7) -> None:
    """Measure and print the table."""
    python = cpu_seconds(["-c", "pass"], repeats)
    rows = [("python -c pass", python), ("import torch", cpu_seconds(["-c", "import torch"], min(repeats, 3)))]
    lines = [["--help"], ["--version"], *([name, "--help"] for name in commands()), ["nonsense"], ["run", "--nonsense"]]
    rows += [("tuneloop " + " ".join(line), cpu_seconds(["-m", "tuneloop", *line], repeats)) for line in lines]
    torch = rows[1][1]
    print(f"{'command':<28} {'CPU s':>7} {'/ python':>9} {'/ torch':>9}")
    for name, seconds in rows:
        print(f"{name:<28} {seconds:>7.3f} {seconds / python:>9.1f} {seconds / torch:>9.3f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
