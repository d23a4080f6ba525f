"""The sandbox and the reading of answers, on HumanEval: every reference solution must pass, every wrong answer fail.

    python benchmarks/humaneval.py [--data FOLDER]

Prints a table: for each form in which a model may answer, how many of the 164 problems pass and the seconds it took; then the protections
that this machine allows.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tuneloop.data.load_eval_file import row_of_problem
from tuneloop.evaluation.metrics.code import run_tests
from tuneloop.records.rows import Row

# Name -> the answer, and whether it must pass.
FORMS: dict[str, tuple[Callable[[Row], str], bool]] = {
    "the rest of the function": (lambda r: r.answer, True),
    "without its first indentation": (lambda r: r.answer.strip(), True),
    "the whole function": (lambda r: r.meta["prompt"] + r.answer, True),
    "in a fence, with prose": (lambda r: f"Sure:\n```python\n{r.meta['prompt']}{r.answer}\n```\nIt works.", True),
    "running on, cut off": (lambda r: r.answer + "\n\ndef other(x:\n    y", True),
    "nothing": (lambda r: "", False),
    "pass": (lambda r: "    pass\n", False),
    "always None": (lambda r: f"def {r.meta['entry_point']}(*a, **k):\n    return None", False),
    "leaves before the tests": (lambda r: "    import os; os._exit(0)", False),
    "another problem's solution": (lambda r: r.meta["other"], False),
}


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/humaneval", help="folder with test.jsonl")
    file = Path(parser.parse_args().data) / "test.jsonl"
    if not file.is_file():
        print(f"No {file}: give the folder with --data", file=sys.stderr)
        return 2
    found = [row_of_problem(json.loads(line)) for line in file.read_text().splitlines()]
    rows = [row for row in found if row is not None]
    for row, other in zip(rows, rows[1:] + rows[:1], strict=True):
        row.meta["other"] = other.answer
    failures, locks = 0, ()
    print(f"{'answer':<32} {'pass':>5} {'of':>5} {'seconds':>8}")
    for name, (answer, must_pass) in FORMS.items():
        started = time.monotonic()
        outcomes = [outcome for (outcome,) in run_tests(rows, [[answer(row)] for row in rows]) if outcome]
        passed = sum(outcome.passed for outcome in outcomes)
        failures += passed != (len(rows) if must_pass else 0)
        locks = outcomes[0].protections
        print(f"{name:<32} {passed:>5} {len(rows):>5} {time.monotonic() - started:>8.1f}")
    print("\nprotections:", *locks, sep="\n  ")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
