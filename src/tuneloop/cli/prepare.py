"""`tuneloop prepare`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

from tuneloop.cli.console import Result, split_arguments
from tuneloop.cli.parameters import argument, output, screen
from tuneloop.core.flag import flag, switch
from tuneloop.core.terminal import terminal
from tuneloop.deploy import refuse_other_place

if TYPE_CHECKING:
    from rich.console import Console

    from tuneloop.models.chat import Rendered, Template
    from tuneloop.records.dataset import Check
    from tuneloop.records.rows import Row


def command(
    sources: list[str] = argument(
        "SOURCE... [KEY=VALUE]...",
        "Files, globs or folders; or a recipe, whose data section is used; and key=value settings.",
    ),
    out: str = flag("", "FOLDER", "Folder of the data set; default: datasets/NAME.", "-o"),
    name: str = flag("", "NAME", "Name of the data set; default: that of the first source."),
    model: str = flag("", "MODEL", "Model whose tokenizer and chat template measure the rows.", "-m"),
    show: int = flag(0, "N", "Print this many rows as the model sees them, with the trained tokens coloured."),
    on: str = flag("", "ray", "Work on a Ray cluster, with the same result: ray, or ray://HOST:PORT."),
    track: bool = switch("Log the data set to MLflow; also done where MLFLOW_TRACKING_URI is set."),
) -> Result:
    """Turn files of any format into train, validation and test splits.

    Exit status 1: all is written, but a check is at `error`.
    """
    from tuneloop.deploy import cluster_of
    from tuneloop.pipeline import prepare_alone
    from tuneloop.recipe import recipe_for_sources

    places, settings = split_arguments(sources)
    recipe = recipe_for_sources(places, settings, name=name, model=model)
    refuse_other_place(on)
    with screen("preparing the data"), cluster_of(on):
        if on:
            recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"engine": "ray"})})
        dataset = prepare_alone(recipe, out, track=track or bool(os.environ.get("MLFLOW_TRACKING_URI")))
    if show:
        print_rows(recipe.model, dataset.train[:show], terminal(stderr=output().as_json))
    errors = dataset.manifest.errors
    if not output().as_json and not output().quiet:
        from tuneloop.report.data import data_summary

        terminal(stderr=True).print(data_summary(dataset.manifest))
    _say_errors(errors)
    after = "put the errors right first" if errors else f"tuneloop train {dataset.path}"
    lines = [f"{dataset.id}  {dataset.path}", f"report: {dataset.path}/report.html   next: {after}"]
    return Result({"path": dataset.path, **dataset.manifest.to_json()}, lines, int(bool(errors)))


def _say_errors(errors: Sequence[Check]) -> None:
    """The checks at `error`, where no one overlooks them: not even with --quiet or --json."""
    from rich.text import Text

    from tuneloop.core.written import clean

    console = terminal(stderr=True, highlight=False)
    for check in errors:
        console.print(Text.assemble(("ERROR ", "bold red"), (check.name, "bold"), f"  {clean(check.message)}"))
        console.print(Text(f"      {clean(check.remedy)}", style="cyan"))


def print_rows(model: str, rows: Sequence[Row], console: Console) -> None:
    """Print rendered rows: supervised tokens green and underlined (between markers without colour), the others dim."""
    from tuneloop.models import load_tokenizer

    template = load_tokenizer(model)
    titles = [f"{row.id}  {row.meta.get('source')}:{row.meta.get('line')}" for row in rows]
    rendered = [template.render(row.messages, row.tools) for row in rows]
    print_rendered(template, list(zip(titles, rendered, strict=True)), console)


def print_rendered(template: Template, rows: Sequence[tuple[str, Rendered]], console: Console) -> None:
    """`print_rows` for rows that are rendered, each with a title."""
    from rich.text import Text

    plain = not console.is_terminal
    for title, rendered in rows:
        supervised = sum(1 for weight in rendered.mask if weight)
        head = f"--- {title}  {len(rendered.ids)} tokens, {supervised} supervised\n"
        text = Text.assemble((head, "bold"))
        for weight, run in groupby(zip(rendered.mask, rendered.ids, strict=True), key=itemgetter(0)):
            piece = template.tokenizer.decode([token for _, token in run], skip_special_tokens=False)
            text.append(f"[[{piece}]]" if plain and weight else piece, style="green underline" if weight else "dim")
        console.print(text, soft_wrap=True, highlight=False)
    console.print("supervised tokens are " + ("between [[ and ]]" if plain else "green and underlined"), style="dim")
