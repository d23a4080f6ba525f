"""Dialogue summaries: the untouched and the tuned model on dialogsum's test half with three references.

    python benchmarks/dialogsum.py [--data FOLDER] [--minutes 4.2]

Trains on dev.jsonl (500 dialogues) and prints ROUGE-L, averaged over the references and best of them, before and after. It is also the
example of the stages used from Python.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from statistics import mean

from tuneloop.core.threads import use_threads
from tuneloop.data.config import PrepareConfig, SplitConfig
from tuneloop.data.prepare import prepare_dataset
from tuneloop.inference.local.answers import generate
from tuneloop.models.load import load_model
from tuneloop.pipeline.prepare import measure_with
from tuneloop.records.plan import MeasuredMachine
from tuneloop.training.config import TrainConfig
from tuneloop.training.loop import TrainingJob, train
from tuneloop.training.speed import measure_speed

INSTRUCTION = "Summarise the dialogue in one to three sentences."


def rouge_l(references: list[list[str]], answers: list[str]) -> tuple[float, float]:
    """Mean over rows of the mean, and of the best, over references."""
    from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    scores = [[scorer.score(r, a)["rougeL"].fmeasure for r in rs] for rs, a in zip(references, answers, strict=True)]
    return mean(mean(s) for s in scores), mean(max(s) for s in scores)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--minutes", type=float, default=4.2)
    parser.add_argument("--rows", type=int, default=250)
    options = parser.parse_args()
    data = options.data / "dialogsum"
    if not (data / "dev.jsonl").is_file():
        sys.exit(f"dialogsum is not under {options.data}: give the folder of the data sets with --data")
    use_threads()
    model = load_model("smollm2-135m")
    config = PrepareConfig(
        sources=[str(data / "dev.jsonl")],
        instruction=INSTRUCTION,
        input="{dialogue}",
        output="{summary}",
        split=SplitConfig(val=0.1, test=0.0),
    )
    tests = [json.loads(line) for line in (data / "test_part1.jsonl").open()][: options.rows]
    prompts = [
        model.template.prompt_ids(
            [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": test["dialogue"]}]
        )
        for test in tests
    ]
    references = [test["references"] for test in tests]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        dataset = prepare_dataset(
            config, name="dialogsum", seed=0, out=folder / "data", measure=measure_with(model.template)
        )
        before = rouge_l(references, [a.text for a in generate(model, prompts, max_new_tokens=80)])
        rows, val = ([model.template.render(r.messages) for r in split] for split in (dataset.train, dataset.val))
        settings = TrainConfig(epochs=5, max_minutes=options.minutes)
        speed = measure_speed(model, rows, settings, seed=0)
        result = train(
            model,
            rows,
            val,
            settings,
            folder / "run",
            job=TrainingJob(measured=MeasuredMachine(tokens_per_second=speed)),
        )
        after = rouge_l(references, [a.text for a in generate(model, prompts, max_new_tokens=80)])
    print(f"| rows {len(tests)} | mean over references | best reference |\n|---|---|---|")
    print(f"| untouched | {before[0]:.3f} | {before[1]:.3f} |\n| tuned | {after[0]:.3f} | {after[1]:.3f} |")
    print(f"\ntrained {result.seconds / 60:.1f} minutes, {result.steps} steps, {result.epochs:.2f} epochs, "
          f"validation loss {result.first_val_loss:.3f} -> {result.best_val_loss:.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
