"""Values that a change of the code's shape must not move: seeded losses, hashes of data sets, metrics, plans.

    python benchmarks/golden.py record FILE              # before the change
    python benchmarks/golden.py compare FILE [--tolerance 0]    # after it, on the same machine: to the last digit

`benchmarks/golden.json` holds the values of the main branch; a test compares with a tolerance, since processors add in different
orders. Whoever means to change a value records that file again in the same commit, and says why. About a minute on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tuneloop
from tuneloop.cli.main import main as command
from tuneloop.core.files import read_json, read_jsonl, write_json, write_jsonl
from tuneloop.workflows.self_test import small_llama

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).with_name("golden.json")
RATE = {"learning_rate": 0.01, "epochs": 1, "rows_per_step": 16}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4},
    "qlora": {"method": "qlora", "rank": 4},
    "prefix": {"method": "prefix"},
    "full": {"method": "full", "learning_rate": 0.001},
    "dpo": {"loss": "dpo", "rank": 4},
    "kto": {"loss": "kto", "rank": 4},
}
DATA = {"dpo": "pairs", "kto": "thumbs"}  # the others train on labels
PLANS = [
    f"plan --model {model} --method {method} --gpu {gpu} --tokens 2000000 --seq-len 1024 --json"
    for model, gpu in (("llama-3.2-1b", "l4"), ("llama-3.1-8b", "a100-80gb"), ("llama-3.1-8b", "h100-sxm"), ("llama-3.3-70b", "h200"))
    for method in ("lora", "qlora", "full")
]  # fmt: skip


def write_sources(folder: Path) -> None:
    """Rows with labels, pairs and thumbs: three shapes of data."""
    tickets = [
        {"text": row["text"][:300], "label": row["queue"]}
        for row in read_jsonl(ROOT / "examples" / "tickets" / "tickets.jsonl")[:64]
    ]
    write_jsonl(folder / "labels.jsonl", tickets)
    write_jsonl(folder / "pairs.jsonl", [
        {"prompt": row["text"], "chosen": f"Queue: {row['label']}", "rejected": "I can't say."} for row in tickets
    ])  # fmt: skip
    write_jsonl(folder / "thumbs.jsonl", [
        {"prompt": row["text"], "completion": f"Queue: {row['label']}" if i % 2 else "I can't say.", "label": bool(i % 2)}
        for i, row in enumerate(tickets)
    ])  # fmt: skip


def data_values(folder: Path, model: str) -> Iterator[tuple[str, Any]]:
    """Hashes and counts of the prepared sets."""
    for name in ("labels", "pairs", "thumbs"):
        found = tuneloop.prepare(str(folder / f"{name}.jsonl"), out=folder / name, name=name, model=model, seed=0)
        yield f"data.{name}.hash", found.manifest.hash
        yield f"data.{name}.rejected", dict(found.manifest.rejected)


def training_values(folder: Path, model: str, names: Sequence[str] = tuple(METHODS)) -> Iterator[tuple[str, Any]]:
    """Losses of methods and losses, step by step."""
    for name in names:
        settings = METHODS[name]
        out = folder / "runs" / name
        tuneloop.train(str(folder / DATA.get(name, "labels")), out=out, model=model, seed=0, **(RATE | settings))
        records = read_jsonl(out / "metrics.jsonl")
        yield f"train.{name}.losses", [record["loss"] for record in records if "grad_norm" in record]
        yield f"train.{name}.val_losses", [record["val_loss"] for record in records if "val_loss" in record]


def evaluation_values(folder: Path, model: str) -> Iterator[tuple[str, Any]]:
    """Metrics of a run, of its base, and of a file of predictions."""
    for name, target in (("tuned", str(folder / "runs" / "lora")), ("base", model)):
        out = folder / f"eval-{name}"
        tuneloop.evaluate(target, str(folder / "labels"), out=out, bootstrap=200)
        yield f"evaluate.{name}", metrics_of(out)
    rows = read_jsonl(folder / "labels" / "test.jsonl")
    said = [{"id": row["id"], "prediction": row["label"] if i % 3 else "other"} for i, row in enumerate(rows)]
    write_jsonl(folder / "said.jsonl", said)
    answered = [str(folder / "said.jsonl"), "--dataset", str(folder / "labels"), "--out", str(folder / "eval-said")]
    with contextlib.redirect_stdout(io.StringIO()):
        command(["evaluate", *answered, "--quiet", "evaluate.bootstrap=200"])
    yield "evaluate.predictions", metrics_of(folder / "eval-said")


def metrics_of(folder: Path) -> dict[str, list[float]]:
    """Each metric of an `eval.json` with its interval."""
    found = read_json(folder / "eval.json")["metrics"]
    return {name: [each["value"], each["low"], each["high"]] for name, each in found.items()}


def plan_values() -> Iterator[tuple[str, Any]]:
    """Memory and time of jobs on cards, by the formulas."""
    for line in PLANS:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            command(line.split())
        plan = json.loads(printed.getvalue())
        figures = [plan["memory"]["peak_gib"], plan["memory"]["required_gib"], plan["time"]["hours"]]
        yield " ".join(line.split()[:-5]), [plan["fits"], *figures]


def measure() -> dict[str, Any]:
    """All values, by name."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = str(small_llama(folder / "model"))
        write_sources(folder)
        trained = [*data_values(folder, model), *training_values(folder, model), *evaluation_values(folder, model)]
        return dict([*trained, *plan_values()])


def differences(golden: Any, found: Any, tolerance: float, name: str = "") -> list[str]:
    """Where two sets of values differ: numbers by more than `tolerance` of their size, all else at all."""
    if isinstance(golden, Mapping) and isinstance(found, Mapping):
        names = list(dict.fromkeys([*golden, *found]))
        return [
            d for key in names for d in differences(golden.get(key), found.get(key), tolerance, f"{name} {key}".strip())
        ]
    if isinstance(golden, list) and isinstance(found, list) and len(golden) == len(found):
        pairs = enumerate(zip(golden, found, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, tolerance, f"{name}[{i}]")]
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (golden, found))
    same = math.isclose(golden, found, rel_tol=tolerance, abs_tol=tolerance) if numbers else golden == found
    return [] if same else [f"{name}: {golden} before, {found} now"]


if __name__ == "__main__":
    os.environ["TUNELOOP_DTYPE"] = "float32"
    os.environ["TUNELOOP_LEDGER"] = os.devnull  # a plan must not depend on runs of this machine
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=["record", "compare"])
    parser.add_argument("file", nargs="?", default=str(GOLDEN))
    parser.add_argument("--tolerance", type=float, default=0.0, help="0: to the last digit")
    options = parser.parse_args()
    values = measure()
    if options.do == "record":
        write_json(options.file, values)
    elif lines := differences(read_json(options.file), values, options.tolerance):
        sys.exit("\n".join(lines))
    print(f"{len(values)} values {'recorded' if options.do == 'record' else 'are the same'}")
