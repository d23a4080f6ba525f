"""`tuneloop evaluate`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

import typer

from tuneloop.cli.console import Settings, print_json, screen, split_arguments
from tuneloop.cli.endpoint import PricedEndpointOptions
from tuneloop.cli.parameters import Output


@dataclass(frozen=True)
class Options:
    """What is measured on which rows, by the names of `EvalTarget`."""

    predictions: Annotated[
        str,
        typer.Option(
            "--predictions",
            help='Measure answers made elsewhere: rows {"id" or "row", "prediction"}.',
            metavar="FILE",
        ),
    ] = ""
    dataset: Annotated[
        str, typer.Option("--dataset", "-d", help="Prepared data set; a run knows its own.", metavar="FOLDER")
    ] = ""
    split: Annotated[str, typer.Option("--split", "-s", help="Split: train, val or test.", metavar="NAME")] = "test"
    data: Annotated[
        str,
        typer.Option("--data", "--references", help="A file whose rows are used instead of a split's.", metavar="FILE"),
    ] = ""
    base: Annotated[
        str, typer.Option("--base", help="Base of an adapter; of a model, what it was made from.", metavar="MODEL")
    ] = ""
    few_shot: Annotated[
        int, typer.Option("--few-shot", min=0, help="Examples in the prompt, from the training split.", metavar="N")
    ] = 0
    examples: Annotated[
        str,
        typer.Option("--examples", help="How they are picked: balanced, or nearest to each row.", metavar="NAME"),
    ] = "balanced"
    prompt: Annotated[
        str,
        typer.Option(
            "--prompt", help="Template with {input}: a text, or YAML with keys user and system.", metavar="FILE"
        ),
    ] = ""
    production: Annotated[
        str,
        typer.Option(
            "--production",
            help="What users sent: says whether the test resembles it, and reweights the score.",
            metavar="FILE",
        ),
    ] = ""
    name: Annotated[
        str, typer.Option("--name", help="Name of the system in the result; default: its kind.", metavar="NAME")
    ] = ""
    out: Annotated[
        str,
        typer.Option("--out", "-o", help="Folder for eval.json; default: the run's, or in evals/.", metavar="FOLDER"),
    ] = ""


def command(
    target: str = typer.Argument(
        "",
        help="A run, an adapter, a model (name, folder or GGUF file), an endpoint's URL, or a file of predictions.",
        metavar="[TARGET]",
    ),
    settings: Settings = None,
    endpoint: str = typer.Option("", "--endpoint", help="Ask an OpenAI-compatible server instead.", metavar="URL"),
    model: str = typer.Option("", "--model", "-m", help="The model, as the endpoint names it.", metavar="NAME"),
    *,
    options: Options,
    connection: PricedEndpointOptions,
    output: Output,
) -> None:
    """Measure a run, a model, an endpoint or a file of answers on any rows.

    Settings of the recipe's evaluate section may follow: limit=100, general=FILE (forgetting), memorisation=true.
    Exit status 1: some requests to the endpoint have failed for good, or predictions and rows don't match one to one.
    """
    places, settings = split_arguments([target, *(settings or [])])
    if len(places) > 1:
        raise typer.BadParameter(f"{places[1]} is one target too many")
    if options.examples not in ("balanced", "nearest"):
        raise typer.BadParameter("--examples is balanced or nearest")
    from tuneloop.inference.targets import kind_of_name

    place = places[0] if places else ""
    kind = kind_of_name(place)
    if kind == "endpoint" and not endpoint:
        endpoint, place = place, ""
    elif kind == "predictions" and not options.predictions:
        options, place = replace(options, predictions=place), ""
    if bool(endpoint) != bool(model):
        raise typer.BadParameter("An endpoint's URL and --model NAME go together")
    server = connection.endpoint(endpoint, model) if endpoint else None
    from tuneloop.core.files import read_json
    from tuneloop.workflows.evaluations import EvalTarget, evaluate_target

    question = EvalTarget(target=place, endpoint=server, settings=settings, **vars(options))
    with screen(output.quiet, "evaluating") as shown:
        found = evaluate_target(question, progress=shown.progress, say=shown.say)
    result = read_json(found.folder / "eval.json")
    if output.json:
        print_json({"path": str(found.folder), **result})
    else:
        _print(result)
        print(f"{found.folder / 'eval.json'}")
    if found.failed:
        raise typer.Exit(1)


def _print(result: dict[str, Any]) -> None:
    from tuneloop.report.facts import more_words

    for line in [*result["words"], *more_words(result)]:  # the verdict is the first
        print(line)
    for name, metric in result["metrics"].items():
        interval = "" if metric["low"] is None else f"  [{metric['low']:.3f}, {metric['high']:.3f}]"
        value = "unknown" if metric["value"] is None else f"{metric['value']:.3f}"
        print(f"  {name:<22} {value}{interval}")
    for note in result["notes"]:
        print(f"note: {note}")
