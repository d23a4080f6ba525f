"""The rungs of one task, from the cheapest up: constant answer, TF-IDF, MiniLM with a trained head, 135M tuned, 0.5B tuned, 1.5B with examples in its prompt, and 135M
taught by that 1.5B.

    python benchmarks/ladder.py [--data FOLDER] [--out FOLDER] [--each 8] [--further 400] [--rows 200] [--small] [--write]

The task is which of banking77's ten intents that begin with "card_" a question has. `--each` rows an intent have labels, `--further` requests have none: the teacher labels these,
and the control of the same size gets more passes over its labelled rows. The two Qwen2.5-Coder models come with `make models`. For each: accuracy with its 95 % interval, dollars of 1,000 answers at
$0.05 an hour and rows a second (rows together, as `evaluate` asks them), resident memory of the process and its children, and the median time of a request alone. A second call continues. `--small` leaves the Qwen
models out: 135M is tuned on the same rows, and the rungs that need them are named as not measured.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import resource
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train_table import ROOT, put_into_results, tuneloop

from tuneloop.models.files.names import resolve

sys.path.insert(0, str(ROOT / "tests"))
from real_models import MODELS, real_model

HEADING = "### Four ways to one task"
SMALL = "smollm2-135m"
ALONE = 8  # requests whose time is measured one by one
PRICE = "plan.usd_per_hour=0.05"


@dataclass(frozen=True)
class Rung:
    """A way to answer the task.

    Args:
        name: in the table; `target`: who answers.
        shots: training rows in its prompt.
    """

    name: str
    target: str
    shots: int = 0


def unpacked(name: str) -> str:
    """The folder of a real model, its weights in bf16: in label scoring some five times as fast here as its GGUF file in
    llama.cpp. Raises SystemExit: it was not fetched."""
    file = real_model(name)
    if file is None:
        sys.exit(f"No {MODELS[name].file}: run make models")
    return str(resolve(str(file)))


def prepared(options: argparse.Namespace) -> Path:
    """The data set: some labelled rows of each intent, all test rows; `further.jsonl` next to it has the other requests."""
    out: Path = options.out
    folder = out / "data"
    if (folder / "dataset.json").is_file():
        return folder
    out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)

    def cards(split: str) -> list[dict[str, str]]:
        lines = (options.data / f"banking77/{split}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [row for row in map(json.loads, lines) if row["label"].startswith("card_")]
        rng.shuffle(rows)
        return rows

    def write(name: str, rows: list[dict[str, str]]) -> Path:
        (out / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return out / name

    by_label: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in cards("train"):
        by_label[row["label"]].append(row)
    labelled = write("labelled.jsonl", [row for rows in by_label.values() for row in rows[: options.each]])
    others = [{"text": row["text"]} for rows in by_label.values() for row in rows[options.each :]]
    rng.shuffle(others)
    write("further.jsonl", others[: options.further])
    test = write("test.jsonl", cards("test"))
    tuneloop("prepare", str(labelled), "--model", SMALL, f"split.test={test}", "split.val=0.1", "--out", str(folder), "--quiet")  # fmt: skip
    return folder


def measured(rung: Rung, dataset: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What a rung comes to: accuracy and cost by `evaluate`, then memory and the time of single requests."""
    path = options.out / "evals" / rung.name.replace(" ", "-")
    if not (path / "eval.json").is_file():
        shots = ["--few-shot", str(rung.shots)] if rung.shots else []
        tuneloop(
            "evaluate", rung.target, "--dataset", str(dataset), *shots, f"limit={options.rows}", PRICE, "--out", str(path), "--quiet",
        )  # fmt: skip
    evaluation = json.loads((path / "eval.json").read_text())
    alone = path / "alone.json"
    if not alone.is_file():
        command = [sys.executable, __file__, "--alone", json.dumps([rung.target, rung.shots, str(dataset)])]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        alone.write_text(done.stdout.splitlines()[-1])
    (cost,) = evaluation["costs"].values()
    return {
        "name": rung.name, "place": str(path), **evaluation["metrics"]["accuracy"], **json.loads(alone.read_text()),
        **spent(cost, evaluation["n"]),
    }  # fmt: skip


def spent(cost: dict[str, Any], n: int) -> dict[str, float]:
    """What the answers to `n` rows took."""
    return {
        "usd_per_1000": 1000 * cost.get("usd", 0.0) / n,
        "prompt_tokens": cost.get("prompt_tokens", 0) / n,
        "rate": n / cost["seconds"] if cost.get("seconds") else math.nan,
    }


def without_models(dataset: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The constant answer, TF-IDF and MiniLM with a trained head: a run of the encoder has measured the other two on the same rows."""
    run = options.out / "encoder"
    tuneloop("run", str(dataset), "model=minilm", f"output_dir={run}", f"evaluate.limit={options.rows}", PRICE, "track.report_to=none", "--quiet")  # fmt: skip
    evaluation = json.loads((run / "eval.json").read_text())
    unknown = {"seconds": math.nan, "gib": math.nan}
    cheap = [
        {"name": name, **metrics["accuracy"], **unknown, **spent(evaluation["costs"].get(name, {}), evaluation["n"])}
        for name, metrics in evaluation["baselines"].items()
    ]
    return [*cheap, measured(Rung("MiniLM with a trained head", str(run)), dataset, options)]


def answer_alone(target: str, shots: int, dataset: str) -> None:
    """Print the median seconds of a request and the GiB of this process, which answers one request at a time."""
    from tuneloop.core.threads import use_threads
    from tuneloop.data.dataset import load_dataset
    from tuneloop.inference.request import Request
    from tuneloop.pipeline.answers.asking import open_with_task
    from tuneloop.pipeline.answers.prompt import choose_examples, prompt_turns

    use_threads()
    data = load_dataset(dataset)
    opened = open_with_task(target)
    examples = choose_examples(data.train, shots, seed=0)
    seconds = []
    for row in data.test[: ALONE + 2]:
        request = Request(messages=prompt_turns(row, examples=examples), max_new_tokens=1, id=row.id)
        began = time.perf_counter()
        list(opened.target.score([request], data.manifest.labels or []))
        seconds.append(time.perf_counter() - began)
    opened.close()
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    gib = sum(resource.getrusage(kind).ru_maxrss for kind in kinds) / 2**20
    print(json.dumps({"seconds": statistics.median(seconds[2:]), "gib": gib}))


def table(rows: list[dict[str, Any]], notes: list[str]) -> str:
    """Markdown: a line for each rung, then notes."""
    lines = [
        "| | accuracy | dollars of 1,000 answers | rows a second | resident | one request | tokens read |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        memory, alone = f"{row['gib']:.1f} GiB", f"{1000 * row['seconds']:,.0f} ms"
        rate = "–" if math.isnan(row["rate"]) else f"{row['rate']:,.0f}"
        if math.isnan(row["gib"]):
            memory = alone = "not measured alone"
        lines.append(
            f"| {row['name']} | {row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}] | ${row['usd_per_1000']:.5f} | {rate} | {memory} "
            f"| {alone} | {row['prompt_tokens']:.0f} |"
        )
    return "\n".join([*lines, *(part for note in notes for part in ("", note))])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "ladder")
    parser.add_argument("--each", type=int, default=8, help="labelled rows an intent")
    parser.add_argument("--further", type=int, default=400, help="requests without labels")
    parser.add_argument("--rows", type=int, default=200, help="test rows")
    parser.add_argument("--shots", type=int, default=20, help="examples in the large model's prompt")
    parser.add_argument("--epochs", type=float, default=3, help="passes of the students and of the 0.5B")
    parser.add_argument("--small", action="store_true", help="without the Qwen models")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/records/results.md")
    options = parser.parse_args()
    if options.alone:
        answer_alone(*json.loads(options.alone))
        return
    began, dataset = time.monotonic(), prepared(options)
    rows = without_models(dataset, options)
    more, notes = (tuned_alone if options.small else with_models)(dataset, options)
    text = table([*rows, *more], notes)
    print(f"{text}\n\n{(time.monotonic() - began) / 60:.1f} minutes")
    if options.write:
        put_into_results(HEADING, f"`python benchmarks/ladder.py`\n\n{text}")


def tuned_alone(dataset: Path, options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[str]]:
    """The 135M tuned on the labelled rows, and what is not measured."""
    run = options.out / "small"
    settings = [f"train.epochs={options.epochs:g}", "train.rows_per_step=8", "data.allow_errors=true", "track.report_to=none"]  # fmt: skip
    tuneloop("train", str(dataset), "--model", SMALL, *settings, "--out", str(run), "--quiet")
    note = "Not measured, for they need the Qwen models: 0.5B tuned, 1.5B with examples, 135M taught by the 1.5B."
    return [measured(Rung("135M tuned", str(run)), dataset, options)], [note]


def with_models(dataset: Path, options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[str]]:
    """135M and 0.5B tuned, 1.5B with examples, 135M taught by it; and what `distill` said before and after."""
    teacher, middle, out = unpacked("qwen2.5-coder-1.5b"), unpacked("qwen2.5-coder-0.5b"), options.out
    train = [f"train.epochs={options.epochs:g}", "train.rows_per_step=8", "data.allow_errors=true"]
    further = ["--prompts", str(out / "further.jsonl"), "--few-shot", str(options.shots)]
    command = [
        "distill",
        teacher,
        SMALL,
        "--dataset",
        str(dataset),
        "--out",
        str(out / "student"),
        "--rows",
        str(options.rows // 3),
    ]
    distilled = tuneloop(*command, *further, "--answers", "own", *train)
    # The control makes as many steps as the student; the 0.5B gets more passes, too, as far as time allows.
    passes = [
        f"train.epochs={max(options.epochs, options.epochs * min(distilled['kept'] / (9 * options.each), 3)):g}",
        *train[1:],
    ]
    tuneloop(
        "train",
        str(dataset),
        "--model",
        middle,
        *passes,
        "track.report_to=none",
        "--out",
        str(out / "middle"),
        "--quiet",
    )
    rungs = [
        Rung("135M tuned", str(out / "student/distill/control")),
        Rung("0.5B tuned", str(out / "middle")),
        Rung(f"1.5B with {options.shots} examples", teacher, options.shots),
        Rung("135M taught by the 1.5B", str(out / "student")),
    ]
    rows = [measured(rung, dataset, options) for rung in rungs]
    pair = f"{rows[2]['place']},{rows[0]['place']}"
    plan = tuneloop(*command, *further, "--answers", "own", *train, "--plan", "--measured", pair)["expected"]
    return rows, [f"`distill --plan` before: {plan}", f"`distill` after: {' '.join(distilled['words'])}"]


if __name__ == "__main__":
    main()
