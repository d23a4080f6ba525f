"""`train.lr=auto` next to fixed learning rates, on two data sets, short runs of the packaged model.

    python benchmarks/past/watch.py [--data FOLDER] [--rows 200]

Prints for each rate the validation loss at the end of one pass, and for `auto` the rate that the range test chose and the seconds that it took.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path

from tuneloop.core.threads import use_threads
from tuneloop.models.load import load_model
from tuneloop.models.template import Rendered, Template
from tuneloop.training.config import TrainConfig, usual_rate
from tuneloop.training.loop import train
from tuneloop.training.speed import range_test

FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)


def banking(data: Path) -> list[tuple[str, str]]:
    """Questions and intents."""
    records = map(json.loads, (data / "banking77" / "train.jsonl").read_text(encoding="utf-8").splitlines())
    return [(r["text"], r["label"].replace("_", " ")) for r in records]


def alpaca(data: Path) -> list[tuple[str, str]]:
    """Instructions and answers."""
    records = json.loads((data / "alpaca_en_demo" / "train.json").read_text(encoding="utf-8"))
    return [(f"{r['instruction']}\n{r.get('input') or ''}".strip(), r["output"]) for r in records]


def rendered(pairs: list[tuple[str, str]], template: Template, most: int) -> list[Rendered]:
    """A seeded sample of rows of at most 160 tokens."""
    random.Random(0).shuffle(pairs)
    rows = (template.render([{"role": "user", "content": q}, {"role": "assistant", "content": a}]) for q, a in pairs)
    return [row for row, _ in zip((r for r in rows if len(r.ids) <= 160), range(most), strict=False)]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[3] / "shared" / "data")
    parser.add_argument("--rows", type=int, default=200, help="training rows of banking77; of alpaca a third")
    parser.add_argument(
        "--factors", default=",".join(map(str, FACTORS)), help="fixed rates as multiples of the usual one"
    )
    options = parser.parse_args()
    if not options.data.is_dir():
        sys.exit(f"No folder {options.data}: name that of the data sets with --data")
    use_threads()
    model = load_model("smollm2-135m")
    print("| data | learning rate | validation loss | seconds |\n|---|---|---|---|")
    for name, read, count in (("banking77", banking, options.rows), ("alpaca", alpaca, options.rows // 3)):
        rows = rendered(read(options.data), model.template, count + 40)
        train_rows, val_rows = rows[40:], rows[:40]
        usual = usual_rate("lora", "supervised")
        config = TrainConfig(
            epochs=1, evaluations=1, on_divergence="warn", rows_per_step=8 if name == "banking77" else 4
        )
        began = time.monotonic()
        test = range_test(model, train_rows, config, 0)
        took = time.monotonic() - began
        print(f"{name}: {test.sentence}", file=sys.stderr, flush=True)
        rates = {
            f"auto: {test.chosen:g}": test.chosen,
            **{f"{f * usual:g}": f * usual for f in map(float, options.factors.split(","))},
        }
        for shown, rate in rates.items():
            with tempfile.TemporaryDirectory() as folder:
                result = train(
                    model, train_rows, val_rows, config.model_copy(update={"learning_rate": rate}), Path(folder)
                )
            beside = f"the test took {took:.0f} s, the run {result.seconds:.0f} s" if shown.startswith("auto") else ""
            print(
                f"| {name} | {shown} | {result.first_val_loss:.3f} -> {result.best_val_loss:.3f} | {beside} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
