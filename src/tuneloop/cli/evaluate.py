"""`tuneloop evaluate`."""

from __future__ import annotations

import math
from dataclasses import replace

import typer

from tuneloop.cli.console import Settings, print_json, screen, split_arguments
from tuneloop.cli.endpoint import PricedEndpointOptions
from tuneloop.cli.parameters import Output, argument
from tuneloop.core.flag import flag
from tuneloop.evaluate.options import EvalOptions
from tuneloop.records.evaluation import EvaluationManifest
from tuneloop.records.record import read_record
from tuneloop.scale.clusters import refuse_other_place


def command(
    target: str = argument(
        "[TARGET]",
        "A run, an adapter, a model (name, folder or GGUF file), an endpoint's URL, or a file of predictions.",
        "",
    ),
    settings: Settings = None,
    endpoint: str = flag("", "URL", "Ask an OpenAI-compatible server instead."),
    model: str = flag("", "NAME", "The model, as the endpoint names it.", "-m"),
    *,
    options: EvalOptions,
    connection: PricedEndpointOptions,
    output: Output,
) -> None:
    """Measure a run, a model, an endpoint or a file of answers on any rows.

    Settings of the recipe's evaluate section may follow: limit=100, general=FILE (forgetting), memorisation=true. All metrics
    are listed under Metrics in docs/reference.md; a data set's task decides which of them are computed.
    Exit status 1: some requests to the endpoint have failed for good, or predictions and rows don't match one to one.
    """
    places, settings = split_arguments([target, *(settings or [])])
    if len(places) > 1:
        raise typer.BadParameter(f"{places[1]} is one target too many")
    if options.examples not in ("balanced", "nearest"):
        raise typer.BadParameter("--examples is balanced or nearest")
    refuse_other_place(options.on)
    from tuneloop.inference.targets import kind_of_name
    from tuneloop.workflows.evaluations import evaluate_target, processes_to_start

    place = places[0] if places else ""
    kind = kind_of_name(place)
    if kind == "endpoint" and not endpoint:
        endpoint, place = place, ""
    elif kind == "predictions" and not options.predictions:
        options, place = replace(options, predictions=place), ""
    if bool(endpoint) != bool(model):
        raise typer.BadParameter("An endpoint's URL and --model NAME go together")
    if endpoint and place:
        raise typer.BadParameter("One target at a time")
    source = connection.endpoint(endpoint, model) if endpoint else place
    if (status := processes_to_start(source, options, settings)) is not None:
        raise typer.Exit(status)
    with screen(output.quiet, "evaluating") as shown:
        made = evaluate_target(source, options, settings, progress=shown.progress, say=shown.say)
    result = read_record(EvaluationManifest, made.folder)
    if output.json:
        print_json({"path": str(made.folder), **result.to_json()})
    else:
        _print(result)
        print(f"{made.folder / 'eval.json'}")
    if made.failed:
        raise typer.Exit(1)


def _print(result: EvaluationManifest) -> None:
    from tuneloop.report.facts import clean, more_words

    for line in [*result.words, *more_words(result)]:  # the verdict is the first
        print(line)
    width = min(max([22, *map(len, result.metrics)]), 40)
    for name, metric in result.metrics.items():
        interval = "" if math.isnan(metric.low) else f"  [{metric.low:.3f}, {metric.high:.3f}]"
        value = "unknown" if math.isnan(metric.value) else f"{metric.value:.3f}"
        print(f"  {clean(name):<{width}} {value}{interval}")
    for note in result.notes:
        print(f"note: {note}")
