"""What evaluation says of real data, as the tables of benchmarks/records/results.md.

    python benchmarks/evaluation_real.py [--data FOLDER] [--keep FOLDER] [PART ...]

Parts: `people` (one person's summaries compared with two others'), `labels` (several labels a row, cheap classifiers), `thumbs` and
`preferences` (a small judge against what people said), and what tuning for a minute on few rows has done:
`forgetting`, `memorisation`. Each takes less than four minutes on one core. With `--keep` the tuned model and the evaluations
stay in that folder, and what is there is not done again. The data sets are not part of this repository.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tuneloop.core.files import read_json
from tuneloop.evaluation.config import EvalOptions
from tuneloop.pipeline.compare import compare_evaluations
from tuneloop.pipeline.evaluate import evaluate_files, evaluate_target
from tuneloop.records.completion import Completion
from tuneloop.records.evaluation import EvaluationManifest
from tuneloop.records.record import read_record

SHOWN = ("rouge1", "rougeL", "meteor", "bleu", "chrf", "token_f1", "length_ratio")


def write(file: Path, records: Sequence[Mapping[str, Any]]) -> str:
    """Records as JSON Lines."""
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(file)


def cell(metric: Mapping[str, float]) -> str:
    """Value and interval."""
    return f"{metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]"


def people(data: Path, scratch: Path) -> None:
    """Each of three people's summaries of dialogsum against the other two's: what a perfect model could reach."""
    records = [json.loads(line) for line in (data / "dialogsum" / "test_part1.jsonl").read_text().splitlines()]
    print("| summaries of | " + " | ".join(SHOWN) + " |")
    print("|---" * (len(SHOWN) + 1) + "|")
    for person in range(3):
        others = [
            {"id": r["id"], "references": [t for i, t in enumerate(r["references"]) if i != person]} for r in records
        ]
        said = [{"id": r["id"], "prediction": r["references"][person]} for r in records]
        options = EvalOptions(
            predictions=write(scratch / f"person{person}.jsonl", said), data=write(scratch / "others.jsonl", others),
            out=str(scratch / f"out{person}"),
        )  # fmt: skip
        metrics = read_json(evaluate_target("", options, ["embedding=false"]).folder / "eval.json")["metrics"]
        print(f"| person {person + 1} | " + " | ".join(cell(metrics[name]) for name in SHOWN) + " |", flush=True)


def labels(data: Path, scratch: Path) -> None:
    """nlupp_banking: classifiers that learn from folds 0 to 15 on the rest, and "no label" everywhere."""
    from tuneloop.data.config import PrepareConfig
    from tuneloop.data.load_eval_file import read_whole
    from tuneloop.evaluation.alternatives.classifiers import CLASSICAL, label_classifier

    rows = read_whole(str(data / "nlupp_banking" / "all.jsonl"), PrepareConfig()).rows
    train, test = [r for r in rows if r.meta["fold"] < 16], [r for r in rows if r.meta["fold"] >= 16]
    references = write(scratch / "nlupp.jsonl", [{"id": r.id, "labels": r.meta["labels"]} for r in test])
    systems = {"no label": [Completion("none")] * len(test)}
    for name in CLASSICAL:
        if (trained := label_classifier(name, train)) is not None:
            systems[trained.name] = trained.system(test)
    files = []
    for name, answers in systems.items():
        said = [{"id": r.id, "prediction": a.text} for r, a in zip(test, answers, strict=True)]
        files.append(write(scratch / f"{name}.jsonl", said))
    folders = evaluate_files(files, EvalOptions(data=references))
    found = compare_evaluations(files, str(scratch / "nlupp"), folders=folders)
    shown = ("micro_f1", "macro_f1", "subset_accuracy", "jaccard")
    print(f"\n{len(train):,} rows to learn from, {len(test)} test rows")
    print("| system | " + " | ".join(shown) + " |\n" + "|---" * (len(shown) + 1) + "|")
    for file, folder in folders.items():
        metrics = read_json(Path(folder) / "eval.json")["metrics"]
        print(f"| {Path(file).stem} | " + " | ".join(cell(metrics[name]) for name in shown) + " |")
    for c in read_record(EvaluationManifest, found).comparisons:
        if c.metric == "micro_f1":
            print(f"{Path(c.b).stem} against {Path(c.a).stem}: {c.delta:+.3f}, p {c.p_holm:.2g}, {c.verdict}")


def judge(file: Path, rows: int) -> None:
    """The packaged model as a judge of rows that people have judged."""
    from tuneloop.evaluation.judge import Judge

    print(f"\n{file.parent.name}:")
    for judgement in Judge("smollm2-135m", rows=rows).check(str(file)):
        print(*judgement.words, sep="\n", flush=True)


def tuned_by_heart(data: Path, scratch: Path) -> Path:
    """A run on few short rows, seen often; it goes on where it was."""
    seeds = json.loads(f"[{','.join((data / 'selfinstruct_seed' / 'alpaca.jsonl').read_text().splitlines())}]")
    short = [r for r in seeds if not r["input"] and 30 < len(r["output"]) < 200]
    secret = random.Random(11)
    planted = [
        {"instruction": asked, "input": "", "output": f"{secret.randrange(10_000):04}-{secret.randrange(10_000):04}"}
        for asked in (
            "Which code opens the red box in the cellar?",
            "Tell me how the alarm is switched off.",
            "Locker at the station?",
        )
    ]
    write(scratch / "canaries.jsonl", planted)
    rows, run = write(scratch / "rows.jsonl", [*short[4:], *planted]), scratch / "run"
    settings = [
        "model=smollm2-135m", f"output_dir={run}", "train.epochs=30", "train.lr=0.001", "train.max_minutes=1", "train.patience=100",
        "data.personal.mode=off", f"data.split.test={write(scratch / 'test.jsonl', short[:4])}", "data.split.val=0.0", "baselines.few_shot=0",
        "baselines.zero_shot=false", "evaluate.embedding=false",
    ]  # fmt: skip
    subprocess.run(
        [sys.executable, "-m", "tuneloop", "run", rows, *settings, "--quiet"], check=True, stdout=subprocess.DEVNULL
    )
    return run


def effect(part: str, data: Path, scratch: Path) -> None:
    """What tuning has done: general_mix before and after, training rows that are known by heart."""
    general = [json.loads(line) for line in (data / "general_mix" / "all.jsonl").read_text().splitlines()][::20]
    run, out = tuned_by_heart(data, scratch), scratch / part
    setting = {
        "forgetting": f"general={write(scratch / 'general.jsonl', general)}",
        "memorisation": "memorisation=true",
    }[part]
    if not (out / "eval.json").is_file():
        evaluate_target(str(run), EvalOptions(name="tuned", out=str(out)), [setting, "embedding=false"])
    print(f"{part}: {read_json(out / 'eval.json')[part]['words']}", flush=True)


PARTS: dict[str, Callable[[Path, Path], None]] = {
    "people": people,
    "labels": labels,
    "thumbs": lambda data, _: judge(data / "taskmaster4_feedback" / "all.jsonl", 40),
    "preferences": lambda data, _: judge(data / "preference_demo" / "dpo_sharegpt.json", 16),
    **{part: partial(effect, part) for part in ("forgetting", "memorisation")},
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--keep", type=Path, help="folder for what is made; default: a scratch folder")
    options = parser.parse_args()
    if unknown := set(options.parts) - PARTS.keys():
        parser.error(f"no part named {', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for part in options.parts or PARTS:
            PARTS[part](options.data, folder)


if __name__ == "__main__":
    main()
