"""LoRA, QLoRA, prefix tuning and full tuning on four data sets: time, speed, memory, loss and test metric in one table.

    python benchmarks/train_table.py [--data FOLDER] [--out FOLDER] [--minutes 1.2] [--only banking77/lora,...] [--write]

Every row gets the same minutes of training, validations included (`train.max_minutes`), so methods are compared at equal time; each is a process of its own and is appended to
OUT/table.json as it ends. A row that is there is not made again, and one that was cut short goes on from its checkpoint. The whole table takes
at most 40 minutes of two cores: 16 rows of 1.2 minutes of training, about 0.5 of loading and timing, and 0.5 of at most 120 test rows; and 4 rows of the
base model at 0.5. `--write` puts the table into benchmarks/records/results.md. Needs the data sets, which are not part of this repository. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HEADING = "## Four methods on four data sets"
METHODS = ("untouched", "lora", "qlora", "prefix", "full")
TITLES = {"accuracy": "accuracy", "rougeL": "ROUGE-L"}


@dataclass(frozen=True)
class Set:
    """A data set: its source, how it is prepared, and how its test rows are answered."""

    source: str
    prepare: tuple[str, ...]
    evaluate: tuple[str, ...]
    test_rows: int
    metric: str


SETS = {
    "banking77": Set(
        "banking77/train.jsonl", ("split.test={data}/banking77/test.jsonl",), ("answer=choice",), 120, "accuracy"
    ),
    "dialogsum": Set(
        "dialogsum/dev.jsonl",
        (
            "instruction=Summarise the dialogue in one to three sentences.",
            "input={{dialogue}}",
            "output={{summary}}",
            "split.test=0.1",
        ),
        ("max_new_tokens=80",),
        40,
        "rougeL",
    ),
    "alpaca": Set("alpaca_en_demo/train.json", (), ("max_new_tokens=128",), 40, "rougeL"),
    "taskmaster4": Set("taskmaster4_chats/train.jsonl", (), ("max_new_tokens=80",), 40, "rougeL"),
}


def tuneloop(*arguments: str) -> dict[str, Any]:
    """Run a command and return what it prints with --json."""
    print("$ tuneloop", *arguments, file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "tuneloop", *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    answer = json.loads(done.stdout) if done.stdout.strip() else {}
    if done.returncode == 2 or not answer:
        raise RuntimeError(json.dumps(answer.get("error", f"status {done.returncode}")))
    return dict(answer)


def prepared(name: str, data: Path, out: Path) -> Path:
    """The data set's folder, made when it isn't there; its checks may find errors, which `train` then is told to allow."""
    folder = out / "data" / name
    if not (folder / "dataset.json").is_file():
        chosen = SETS[name]
        settings = [setting.format(data=data) for setting in chosen.prepare]
        tuneloop("prepare", str(data / chosen.source), *settings, "--out", str(folder), "--quiet")
    return folder


def make_row(name: str, method: str, data: Path, out: Path, minutes: float, most: int) -> dict[str, Any]:
    """Train and test one method on one data set."""
    began, chosen, dataset = time.monotonic(), SETS[name], prepared(name, data, out)
    limit = min(most or chosen.test_rows, chosen.test_rows)
    test = [f"evaluate.{setting}" for setting in (*chosen.evaluate, f"limit={limit}")]
    folder = out / "runs" / f"{name}-{method}"
    trained: dict[str, Any] = {}
    if method == "untouched":
        tuneloop("evaluate", "smollm2-135m", "--dataset", str(dataset), "--out", str(folder), *test, "--quiet")
    else:
        settings = [
            "train.epochs=5",
            f"train.max_minutes={minutes}",
            f"train.method={method}",
            "train.val_rows=32",
            "train.evaluations=2",
        ]
        trained = tuneloop("train", str(dataset), *settings, "data.allow_errors=true", "--out", str(folder), "--quiet")
        tuneloop("evaluate", str(folder), *test, "--quiet")
    evaluation = json.loads((folder / "eval.json").read_text())
    keys = ("steps", "epochs", "tokens", "seconds", "tokens_per_second", "peak_memory_gib", "first_val_loss", "best_val_loss",
            "trainable_parameters", "stopped", "mfu")  # fmt: skip
    return {
        "data": name, "method": method, "metric": chosen.metric, "n": evaluation["n"], **evaluation["metrics"][chosen.metric],
        **{key: trained.get(key) for key in keys}, "wall_minutes": (time.monotonic() - began) / 60, "minutes": minutes,
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: one line a row, in the order of the data sets and methods."""
    order = {(name, method): i for i, (name, method) in enumerate((n, m) for n in SETS for m in METHODS)}
    lines = [
        "| data | method | minutes, with validation | passes | tokens/s | MFU | peak GiB | validation loss | test metric | value | 95 % interval |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda r: order[r["data"], r["method"]]):
        steps = [""] * 6
        if row["seconds"]:
            mfu = row["mfu"] or {}
            steps = [f"{row['seconds'] / 60:.1f}", f"{row['epochs']:.2f}", f"{speed_of(row):,.0f}", f"{mfu['value']:.0%}" if mfu else "",
                     f"{row['peak_memory_gib']:.1f}", f"{row['first_val_loss']:.3f} -> {row['best_val_loss']:.3f}"]  # fmt: skip
        metric = f"{TITLES[row['metric']]}, {row['n']} rows"
        cells = [
            row["data"],
            row["method"],
            *steps,
            metric,
            f"{row['value']:.3f}",
            f"{row['low']:.3f} to {row['high']:.3f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def about(rows: list[dict[str, Any]]) -> str:
    """What the table is of, and how prefix tuning does next to the base model and LoRA."""
    total = sum(row["wall_minutes"] for row in rows)
    found = {(row["data"], row["method"]): row for row in rows}
    beside = []
    for name in SETS:
        three = [found.get((name, method)) for method in ("untouched", "prefix", "lora")]
        if all(three):
            untouched, prefix, lora = (row or {} for row in three)
            speed = speed_of(prefix) / speed_of(lora)
            beside.append(
                f"{name} {untouched['value']:.3f} -> {prefix['value']:.3f} (LoRA {lora['value']:.3f}, at {1 / speed:.2f} times its tokens/s)"
            )
    return (f"`python benchmarks/train_table.py`: every method gets {rows[0]['minutes']:g} minutes of training; all rows together took {total:.0f} minutes. "
            "The validation loss before of `qlora` is that of the base in 4 bits, that of `prefix` is behind a prefix of real rows.\n"
            f"Prefix tuning beside the base model and LoRA in the same minutes: {'; '.join(beside)}.")  # fmt: skip


def speed_of(row: dict[str, Any]) -> float:
    """Tokens a second within the steps."""
    mfu = row["mfu"] or {}
    return float(row["tokens"] / mfu["step_seconds"] if mfu else row["tokens_per_second"])


def sampled(source: Path, rows: int, seed: int, out: Path) -> Path:
    """A file with some rows of each intent, drawn by a seed."""
    by_label: dict[str, list[str]] = defaultdict(list)
    for line in source.read_text(encoding="utf-8").splitlines():
        by_label[json.loads(line)["label"]].append(line)
    rng = random.Random(seed)
    picked = [
        line for label in sorted(by_label) for line in rng.sample(by_label[label], min(rows, len(by_label[label])))
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(picked) + "\n", encoding="utf-8")
    return out


def put_into_results(heading: str, text: str) -> None:
    """Put a section into benchmarks/records/results.md, in place of the one that is there."""
    page = ROOT / "benchmarks" / "records" / "results.md"
    before, found, rest = page.read_text(encoding="utf-8").partition(heading)
    after = rest[rest.index("\n## ") :] if "\n## " in rest else "\n"
    before = before if found else before.rstrip() + "\n\n"
    page.write_text(f"{before}{heading}\n\n{text}\n{after}", encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "train-table")
    parser.add_argument("--minutes", type=float, default=1.2, help="of training with its validations, for each row")
    parser.add_argument("--test", type=int, default=0, help="fewer test rows, to try it")
    parser.add_argument("--only", default="", help="rows to make, as in banking77/lora,dialogsum/prefix")
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/records/results.md")
    options = parser.parse_args()
    if not options.data.is_dir():
        sys.exit(f"No folder {options.data}: name that of the data sets with --data")
    file = options.out / "table.json"
    rows: list[dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else []
    wanted = options.only.split(",") if options.only else [f"{name}/{method}" for name in SETS for method in METHODS]
    failed = 0
    for name, method in (pair.split("/") for pair in wanted):
        if any((row["data"], row["method"], row["minutes"]) == (name, method, options.minutes) for row in rows):
            continue
        try:
            row = make_row(name, method, options.data, options.out, options.minutes, options.test)
        except (RuntimeError, OSError, KeyError, ValueError) as error:  # the other rows don't depend on it
            failed += 1
            print(f"{name}/{method} failed: {error}", file=sys.stderr, flush=True)
            continue
        rows = [r for r in rows if (r["data"], r["method"]) != (name, method)] + [row]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(rows, indent=1))
    print(table(rows))
    if options.write and rows:
        put_into_results(HEADING, f"{about(rows)}\n\n{table(rows)}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
