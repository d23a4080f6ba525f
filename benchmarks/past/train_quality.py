"""The default settings next to two usual ones, in the same minutes of training, on intents (banking77).

    python benchmarks/past/train_quality.py [--data FOLDER] [--out FOLDER] [--minutes 6] [--rows 30] [--test 1500] [--seed 0] [--write]

All train on the same rows (`--rows` an intent) for the same six minutes, validation included, planned at the speed measured before;
accuracy is that of choosing among all intents on the same test rows, and differences are paired (as `tuneloop compare` tests them). A system whose
run is there already is not trained again. Three runs of about six minutes and a minute or two of answers each. All else is as it comes, validation included. `--write` puts the table into benchmarks/records/results.md.
Needs banking77, which is not part of this repository. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from train_table import ROOT, put_into_results, sampled, tuneloop

HEADING = "## Defaults next to usual settings"
USUAL = ("train.lora_plus=1",)
SYSTEMS: dict[str, tuple[str, ...]] = {
    "defaults": (),
    "2e-5 on q and v": (*USUAL, "train.targets=q_proj,v_proj", "train.learning_rate=2e-5"),
    "1e-4 along a cosine on all linear layers": (*USUAL, "train.learning_rate=1e-4", "train.schedule=cosine"),
}


def prepared(options: argparse.Namespace) -> Path:
    """The data set of this seed and size."""
    name = f"banking77-{options.rows}-{options.seed}"
    folder: Path = options.out / "data" / name
    if not (folder / "dataset.json").is_file():
        source = sampled(
            options.data / "banking77/train.jsonl", options.rows, options.seed, options.out / f"{name}.jsonl"
        )
        test = f"split.test={options.data}/banking77/test.jsonl"
        tuneloop("prepare", str(source), test, "--out", str(folder), "--quiet")
    return folder


def trained(place: int, dataset: Path, options: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """A system's run, tested."""
    folder = options.out / f"{dataset.name}-{options.minutes:g}-{place}"
    settings = (*list(SYSTEMS.values())[place], f"train.max_minutes={options.minutes}", f"seed={options.seed}")  # fmt: skip
    run = tuneloop(
        "train",
        str(dataset),
        *settings,
        "data.allow_errors=true",
        "track.report_to=none",
        "--out",
        str(folder),
        "--quiet",
    )
    tuneloop("evaluate", str(folder), "evaluate.answer=choice", f"evaluate.limit={options.test}", "--quiet")
    return folder, run


def lines(options: argparse.Namespace) -> list[str]:
    """The table."""
    dataset = prepared(options)
    made = [
        "| settings | minutes, with validation | steps | passes | validation loss | accuracy | 95 % interval | defaults are better by |",
        "|---|---|---|---|---|---|---|---|",
    ]
    first = Path()
    for place, name in enumerate(SYSTEMS):
        folder, run = trained(place, dataset, options)
        first = first if place else folder
        accuracy = json.loads((folder / "eval.json").read_text())["metrics"]["accuracy"]
        beside = ""
        if place:
            found = next(
                c for c in tuneloop("compare", str(folder), str(first))["comparisons"] if c["metric"] == "accuracy"
            )
            beside = f"{100 * found['delta']:+.1f} points ({100 * found['low']:+.1f} to {100 * found['high']:+.1f}), p = {found['p']:.2g}"
        cells = [name, f"{run['seconds'] / 60:.1f}", str(run["steps"]), f"{run['epochs']:.2f}",
                 f"{run['first_val_loss']:.3f} -> {run['best_val_loss']:.3f}", f"{accuracy['value']:.3f}",
                 f"{accuracy['low']:.3f} to {accuracy['high']:.3f}", beside]  # fmt: skip
        made.append("| " + " | ".join(cells) + " |")
        print(made[-1], file=sys.stderr, flush=True)
    return made


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "train-quality")
    parser.add_argument("--minutes", type=float, default=6.0, help="of training with its validations, for each system")
    parser.add_argument("--rows", type=int, default=30, help="training rows of an intent")
    parser.add_argument("--test", type=int, default=1500, help="test rows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/records/results.md")
    options = parser.parse_args()
    if not (options.data / "banking77").is_dir():
        sys.exit(f"No folder {options.data}/banking77: name that of the data sets with --data")
    made = "\n".join(lines(options))
    print(made)
    if options.write:
        about = (f"`python benchmarks/past/train_quality.py`: banking77, {options.rows} rows an intent, {options.minutes:g} minutes of training each, {options.test} test rows, "
                 f"seed {options.seed}; the usual settings with one learning rate for all matrices.")  # fmt: skip
        put_into_results(HEADING, f"{about}\n\n{made}")


if __name__ == "__main__":
    main()
