"""`tuneloop evaluate`."""

from __future__ import annotations

import typer

from tuneloop.cli.console import Debug, Json, Quiet, Settings, print_json, screen


def command(
    target: str = typer.Argument(..., help="A run's folder, or a model (name or folder).", metavar="RUN|MODEL"),
    settings: Settings = None,
    dataset: str = typer.Option("", "--dataset", "-d", help="Prepared data set; a run knows its own."),
    split: str = typer.Option("test", "--split", "-s", help="train, val or test."),
    few_shot: int = typer.Option(0, "--few-shot", min=0, help="Examples in the prompt (from the training split)."),
    out: str = typer.Option("", "--out", "-o", help="Folder for eval.json; default: beside the run or in evals/."),
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure a run's tuned model, or any model, on a split."""
    from tuneloop import pipeline

    with screen(quiet) as shown:
        folder = pipeline.evaluate_alone(
            target, dataset, split, settings or [], few_shot=few_shot, out=out, progress=shown.progress, say=shown.say
        )
    from tuneloop.files import read_json

    result = read_json(folder / "eval.json")
    if as_json:
        print_json({"path": str(folder), **result})
    else:
        for line in result["words"]:
            print(line)
        for name, metric in result["metrics"].items():
            interval = "" if metric["low"] is None else f"  [{metric['low']:.3f}, {metric['high']:.3f}]"
            print(f"  {name:<22} {metric['value']:.3f}{interval}")
        print(f"{folder / 'eval.json'}")
