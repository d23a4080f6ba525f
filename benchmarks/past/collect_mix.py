"""What a share of general rows does to a training on collected rows: the task, and what is forgotten besides.

    python benchmarks/past/collect_mix.py [--data FOLDER] [--out FOLDER] [--shares 0,0.3,0.5] [--rows-per-intent 10] [--epochs 3]

Customers of a bank put 770 answers right (banking77, `tuneloop collect` from a server's store). The packaged model is trained
on what was collected, once for each share of general rows among its training tokens (`data.mix.share`), with as many passes
over its own rows each time. Printed beside each other: accuracy on the customers that are never trained on, and the answers
and the loss of general rows that no training has seen, against the base. Needs the data sets, which are not part of this
repository; about 5 minutes a share on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from train_table import ROOT, sampled, tuneloop

from tuneloop.core.files import read_json
from tuneloop.core.ids import utc_now, uuid7
from tuneloop.records.feedback import Feedback
from tuneloop.records.request import StoredRequest
from tuneloop.serving.store.store import connect, insert

EVERY = 20  # of the general rows one is kept for the measurement


def served(data: Path, out: Path, rows_per_intent: int) -> Path:
    """A store of requests that a bank's customers sent, each with a wrong answer and the right label."""
    store = out / "serve"
    rows = [json.loads(line) for line in sampled(data / "banking77/train.jsonl", rows_per_intent, 0, out / "rows.jsonl").read_text(encoding="utf-8").splitlines()]  # fmt: skip
    random.Random(0).shuffle(rows)
    labels = sorted({row["label"] for row in rows})
    with contextlib.closing(connect(store, create=True)) as connection:
        requests = [
            StoredRequest.model_validate(
                {"id": uuid7(), "time": utc_now(), "model": "bank", "user": f"customer{at}", "finish": "stop", "total_ms": 100.0,
                 "prompt": [{"role": "user", "content": row["text"]}], "completion": labels[labels.index(row["label"]) - 1]}
            )
            for at, row in enumerate(rows)
        ]  # fmt: skip
        insert(connection, requests)
        insert(
            connection,
            [
                Feedback(
                    id=uuid7(),
                    request=request.id,
                    kind="label",
                    value=row["label"],
                    user=str(request.user),
                    time=utc_now(),
                )
                for request, row in zip(requests, rows, strict=True)
            ],
        )
    return store


def general_rows(data: Path, out: Path) -> tuple[Path, Path]:
    """General rows to train on, and others to measure with."""
    lines = (data / "general_mix" / "all.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    kept, rest = out / "general-measured.jsonl", out / "general.jsonl"
    kept.write_text("".join(lines[::EVERY]), encoding="utf-8")
    rest.write_text("".join(line for at, line in enumerate(lines) if at % EVERY), encoding="utf-8")
    return rest, kept


def measured(share: float, collected: Path, general: tuple[Path, Path], options: argparse.Namespace) -> str:
    """Train with a share of general rows, evaluate, and put what came of it into a line of the table."""
    dataset, run = options.out / f"data-{share:g}", options.out / f"run-{share:g}"
    mix = [f"mix.sources=[{general[0]}]", f"mix.share={share}"] if share else []
    tuneloop("prepare", str(collected / "sft.jsonl"), f"split.test={collected / 'heldout.jsonl'}", *mix, "--out", str(dataset), "--quiet")  # fmt: skip
    begun = time.monotonic()
    tuneloop("train", str(dataset), f"train.epochs={options.epochs}", "data.allow_errors=true", "track.report_to=none",
             "--out", str(run), "--quiet")  # fmt: skip
    minutes = (time.monotonic() - begun) / 60
    tuneloop("evaluate", str(run), f"general={general[1]}", "embedding=false", "--quiet")
    found: dict[str, Any] = read_json(run / "eval.json")
    accuracy, side = found["metrics"]["accuracy"], found["forgetting"]
    score, loss = side["score"], side["loss"]

    def shown(each: dict[str, float], form: str) -> str:
        return f"{each['value']:{form}} [{each['low']:{form}}, {each['high']:{form}}]"

    return f"| {share:.0%} | {shown(accuracy, '.3f')} | {shown(score, '.0%')} | {shown(loss, '+.3f')} | {minutes:.1f} |"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "collect-mix")
    parser.add_argument("--shares", default="0,0.3,0.5")
    parser.add_argument("--rows-per-intent", type=int, default=10)
    parser.add_argument("--epochs", type=float, default=3)
    options = parser.parse_args()
    if not (options.data / "banking77").is_dir():
        sys.exit(f"No folder {options.data}/banking77: name that of the data sets with --data")
    options.out.mkdir(parents=True, exist_ok=True)
    collected = options.out / "collected"
    if not (collected / "sft.jsonl").is_file():
        store = served(options.data, options.out, options.rows_per_intent)
        tuneloop("collect", str(store), "-o", str(collected), "--heldout-share", "0.2")
    general = general_rows(options.data, options.out)
    print(
        "| general rows | accuracy | share forgotten of what the base could do | loss of general rows grew by | minutes of training |\n|---|---|---|---|---|"
    )
    for share in map(float, options.shares.split(",")):
        print(measured(share, collected, general, options), flush=True)


if __name__ == "__main__":
    main()
