"""Teachers and students on real tasks: what distilling keeps, and whether it beats the same student without a teacher.

    python benchmarks/distill_tasks.py [--data FOLDER] [--out FOLDER] [--only NAME,...] [--rows 600] [--effort 1] [--write]

tickets: a teacher tuned on the demo's ticket cards; banking77: on 10 rows an intent; dialogsum: on 450 dialogues. Students
are the teacher without some of its 30 layers, trained as a whole. `+ unlabelled` adds 1,500 further requests that only the teacher answers; the control then trains for as
many steps on the labelled rows alone. What is done already is not done again. Two trainings and three evaluations for each
student: minutes each. The data sets are not part of this repository.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train_table import ROOT, put_into_results, sampled, tuneloop

from tuneloop.core.files import read_yaml

HEADING = "### Students and their controls"
INTENT_ROWS, UNLABELLED = 10, 1500
EPOCHS = {"tickets": 2, "banking77": 3, "dialogsum": 2}  # of the teachers


@dataclass(frozen=True)
class Student:
    """A student.

    Args:
        task: whose rows it learns; `what`: how, in the table's words.
        options: of `distill`; `epochs`: of its training.
    """

    task: str
    what: str
    options: tuple[str, ...]
    epochs: float


OWN = ("--level", "logits", "--answers", "own")
MORE = (*OWN, "--prompts", "UNLABELLED")
STUDENTS: dict[str, Student] = {
    "tickets-15": Student("tickets", "15 layers, probabilities", ("--layers", "15", *OWN), 3),
    "tickets-10": Student("tickets", "10 layers, probabilities", ("--layers", "10", *OWN), 3),
    "banking77-15": Student("banking77", "15 layers, probabilities", ("--layers", "15", *OWN), 5),
    "banking77-15-more": Student("banking77", "15 layers, probabilities, + unlabelled", ("--layers", "15", *MORE), 1.6),
    "banking77-10-more": Student("banking77", "10 layers, probabilities, + unlabelled", ("--layers", "10", *MORE), 1.6),
    "dialogsum-15": Student("dialogsum", "15 layers, probabilities", ("--layers", "15", *OWN), 3),
    "dialogsum-10": Student("dialogsum", "10 layers, probabilities", ("--layers", "10", *OWN), 3),
    "dialogsum-15-text": Student("dialogsum", "15 layers, the teacher's summaries", ("--layers", "15"), 3),
}


def tickets(options: argparse.Namespace) -> Path:
    """The ticket cards' data set, prepared as its recipe says."""
    folder: Path = options.out / "data" / "tickets"
    if not (folder / "dataset.json").is_file():
        data = read_yaml(ROOT / "recipes" / "ticket-card.yaml")["data"]
        tuneloop(
            "prepare", str(ROOT / data["sources"][0]), *(f"{key}={data[key]}" for key in ("instruction", "input", "output")),
            "split.stratify=queue", "--out", str(folder), "--quiet",
        )  # fmt: skip
    return folder


def banking77(options: argparse.Namespace) -> Path:
    """The data set of some rows of each intent, and the file of further requests without labels."""
    folder: Path = options.out / "data" / "banking77"
    if not (folder / "dataset.json").is_file():
        train = options.data / "banking77/train.jsonl"
        source = sampled(train, INTENT_ROWS, 0, options.out / "banking77.jsonl")
        tuneloop(
            "prepare", str(source), f"split.test={options.data}/banking77/test.jsonl", "--out", str(folder), "--quiet"
        )
        taken = set(source.read_text(encoding="utf-8").splitlines())
        others = sampled(train, 10**6, 0, options.out / "rest.jsonl").read_text(encoding="utf-8").splitlines()
        rest = [json.loads(line)["text"] for line in others if line not in taken]
        step = max(len(rest) // UNLABELLED, 1)
        lines = [json.dumps({"text": text}) + "\n" for text in rest[::step][:UNLABELLED]]
        (options.out / "banking77-unlabelled.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def dialogsum(options: argparse.Namespace) -> Path:
    """The data set, its test rows with three references each."""
    folder: Path = options.out / "data" / "dialogsum"
    if not (folder / "dataset.json").is_file():
        test = options.out / "dialogsum-test.jsonl"
        test.parent.mkdir(parents=True, exist_ok=True)
        given = (options.data / "dialogsum/test_part1.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [{**row, "summary": row["references"][0]} for row in map(json.loads, given)]
        test.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        tuneloop(
            "prepare", str(options.data / "dialogsum/dev.jsonl"), "input={dialogue}", "output={summary}",
            "instruction=Summarise the dialogue in one to three sentences.", f"split.test={test}", "--out", str(folder), "--quiet",
        )  # fmt: skip
    return folder


DATASETS = {"tickets": tickets, "banking77": banking77, "dialogsum": dialogsum}


def teacher(task: str, dataset: Path, options: argparse.Namespace) -> Path:
    """The tuned packaged model."""
    run: Path = options.out / task
    tuneloop(
        "train", str(dataset), f"train.epochs={EPOCHS[task] * options.effort:g}", "data.allow_errors=true",
        "track.report_to=none", "--out", str(run), "--quiet",
    )  # fmt: skip
    return run


def distilled(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """What came of a student."""
    student = STUDENTS[name]
    dataset = DATASETS[student.task](options)
    master = teacher(student.task, dataset, options)
    given = [
        str(options.out / "banking77-unlabelled.jsonl") if option == "UNLABELLED" else option
        for option in student.options
    ]
    return tuneloop(
        "distill", str(master), *given, "--dataset", str(dataset), "--rows", str(options.rows), "--out", str(options.out / name),
        f"train.epochs={student.epochs * options.effort:g}", "data.allow_errors=true",
    )  # fmt: skip


def line(name: str, found: dict[str, Any]) -> str:
    """A line of the table."""
    student, figures = STUDENTS[name], found["results"]
    cost, whole = figures["student_cost"], figures["teacher_cost"]

    def share(value: dict[str, float] | None, form: str) -> str:
        if value is None:
            return "the teacher is not surely better"
        return f"{value['value']:{form}} [{value['low']:{form}}, {value['high']:{form}}]"

    cells = [
        f"{student.task}, {figures['metric']}, {figures['n']} rows", student.what, f"{figures['teacher']:.3f}",
        f"{figures['control']:.3f}", f"{figures['student']:.3f}", share(figures["over_control"], "+.3f"),
        share(figures["kept"], ".0%"), share(figures["closed"], ".0%"),
        f"{cost['parameters'] / 1e6:.0f}M of {whole['parameters'] / 1e6:.0f}M",
        f"{cost['tokens_per_second'] / whole['tokens_per_second']:.2f} times",
        f"${cost['usd_per_million_tokens']:.3f}, ${whole['usd_per_million_tokens']:.3f}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "distill-tasks")
    parser.add_argument("--only", default="", help=f"students: {', '.join(STUDENTS)}")
    parser.add_argument(
        "--effort", type=float, default=1.0, help="factor for the passes of all trainings, for a slow machine"
    )
    parser.add_argument("--teachers", default="", help="train these tasks' teachers alone: banking77,dialogsum")
    parser.add_argument("--rows", type=int, default=600, help="most test rows")
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/records/results.md")
    options = parser.parse_args()
    if not (options.data / "banking77").is_dir():
        sys.exit(f"No folder {options.data}/banking77: name that of the data sets with --data")
    if options.teachers:
        for task in options.teachers.split(","):
            teacher(task, DATASETS[task](options), options)
        return
    made = [
        "| rows | student | teacher | control | distilled | over the control | share of the teacher | share of the gap closed | "
        "parameters | tokens/s of the teacher's | dollars a million tokens: student, teacher |",
        "|---" * 11 + "|",
    ]
    for name in options.only.split(",") if options.only else STUDENTS:
        made.append(line(name, distilled(name, options)))
        print(made[-1], file=sys.stderr, flush=True)
    print("\n".join(made))
    if options.write:
        put_into_results(HEADING, "`python benchmarks/distill_tasks.py`\n\n" + "\n".join(made))


if __name__ == "__main__":
    main()
