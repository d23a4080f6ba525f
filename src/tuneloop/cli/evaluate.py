"""`tuneloop evaluate`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import typer

from tuneloop.cli.console import Result, one_place
from tuneloop.cli.endpoint import PricedEndpointOptions
from tuneloop.cli.parameters import SETTINGS, argument, screen
from tuneloop.core.flag import flag
from tuneloop.deploy import refuse_other_place
from tuneloop.evaluation import EvalOptions
from tuneloop.records.evaluation import EvaluationManifest
from tuneloop.records.record import read_record


def command(
    target: str = argument("[TARGET]", "A run, an adapter, a model, an endpoint's URL, or a file of predictions.", ""),
    settings: list[str] | None = SETTINGS,
    endpoint: str = flag("", "URL", "An OpenAI-compatible server answers instead."),
    model: str = flag("", "NAME", "The model, as the endpoint names it.", "-m"),
    *,
    options: EvalOptions,
    connection: PricedEndpointOptions,
) -> Result:
    """Measure a run, a model, an endpoint or a file of answers.

    Settings of the recipe's evaluate section may follow: limit=100, general=FILE (forgetting), memorisation=true. All
    metrics are listed in docs/reference/metrics.md; a data set's task decides which of them are computed.
    Exit status 1: some requests to the endpoint have failed for good, or predictions and rows don't match one to one.
    """
    source, settings = one_place(target, settings, "target")
    if options.examples not in ("balanced", "nearest"):
        raise typer.BadParameter("--examples is balanced or nearest")
    refuse_other_place(options.on)
    from tuneloop.inference import kind_of_name
    from tuneloop.pipeline import evaluate_target, processes_to_start

    if endpoint and source:
        raise typer.BadParameter("One target at a time")
    source = endpoint or source
    if (kind_of_name(source) == "endpoint" or bool(endpoint)) != bool(model):
        raise typer.BadParameter("An endpoint's URL and --model NAME go together")
    server = connection.endpoint(source, model) if model else None
    if (status := processes_to_start(source, options, settings)) is not None:
        raise typer.Exit(status)
    with screen("evaluating"):
        made = evaluate_target(source, options, settings, endpoint=None if server is None else lambda _: server)
    result = read_record(EvaluationManifest, made.folder)
    record = {"path": str(made.folder), **result.to_json()}
    return Result(record, _lines(result, made.folder), int(bool(made.failed)))


def _lines(result: EvaluationManifest, folder: Path) -> Iterator[str]:
    from tuneloop.core.written import clean
    from tuneloop.report import more_words

    yield from [*result.words, *more_words(result)]  # the verdict is the first
    width = min(max([22, *map(len, result.metrics)]), 40)
    for name, metric in result.metrics.items():
        interval = "" if math.isnan(metric.low) else f"  [{metric.low:.3f}, {metric.high:.3f}]"
        value = "unknown" if math.isnan(metric.value) else f"{metric.value:.3f}"
        yield f"  {clean(name):<{width}} {value}{interval}"
    for note in result.notes:
        yield f"note: {note}"
    yield str(folder / "eval.json")
