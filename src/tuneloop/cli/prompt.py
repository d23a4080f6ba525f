"""`tuneloop prompt`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import typer

from tuneloop.cli.console import Result
from tuneloop.cli.endpoint import PricedEndpointOptions
from tuneloop.cli.parameters import SETTINGS, argument, screen
from tuneloop.core.flag import flag
from tuneloop.evaluation import PromptOptions
from tuneloop.records.evaluation import EvaluationManifest
from tuneloop.records.prompt import PromptSearch
from tuneloop.records.record import read_record


def command(
    source: str = argument("RECIPE.yaml|DATA", "Recipe in YAML, or examples or a prepared data set for the defaults."),
    settings: list[str] | None = SETTINGS,
    model: str = flag("", "NAME", "The model to ask; with --endpoint the server's name of it.", "-m"),
    endpoint: str = flag("", "URL", "An OpenAI-compatible server that answers."),
    out: str = flag("", "FOLDER", "Folder of the run; default: runs/NAME-prompt-HASH.", "-o"),
    *,
    options: PromptOptions,
    connection: PricedEndpointOptions,
) -> Result:
    """Search the best prompt for a model, and keep it like a run.

    Which instruction, which examples, how many: validation rows decide. The best is kept only if it beats the plain
    few-shot prompt on rows that the search did not see, and is then measured on the test rows. Every command that takes
    a run takes the folder: evaluate, predict, chat, serve, batch, gate, ab, models. The same command continues after an
    interruption and repeats no call.
    """
    from tuneloop.pipeline import find_prompt
    from tuneloop.recipe import recipe_of

    if endpoint and not model:
        raise typer.BadParameter("An endpoint's URL and --model NAME go together")
    recipe = recipe_of(source, settings or [], model="" if endpoint else model, out=out)
    server = connection.endpoint(endpoint, model) if endpoint else None
    with screen("searching"):
        folder = find_prompt(recipe, options, server)
    search = read_record(PromptSearch, folder)
    evaluation = read_record(EvaluationManifest, folder)
    record = {"path": str(folder), "search": search.to_json(), "eval": evaluation.to_json()}
    return Result(record, _lines(folder, search, evaluation))


def _lines(folder: Path, search: PromptSearch, evaluation: EvaluationManifest) -> Iterator[str]:
    yield from evaluation.words[:1]
    yield search.words
    for rung in search.tried[:6]:
        yield f"  {rung.value:.3f}  {rung.name} ({rung.rows} rows, {rung.tokens:,.0f} tokens)"
    yield f"{search.calls:,} of {search.most_calls:,} calls, {search.seconds / 60:.1f} minutes"
    yield f"{folder}\nnext      tuneloop serve {folder}"
