"""`tuneloop schema`."""

from __future__ import annotations

import typer

from tuneloop.cli.parameters import Output


def command(
    record: str = typer.Option(
        "", "--record", help="Print the schema of a file's record: dataset, run, plan, evaluation ...", metavar="NAME"
    ),
    keys: bool = typer.Option(False, "--keys", help="Print a table of keys, defaults and meanings instead."),
    *,
    output: Output,
) -> None:
    """Print the JSON Schema of a recipe or of a file's record, or a table of the recipe's keys."""
    import json

    from tuneloop.records.schemas import schema_of
    from tuneloop.workflows.recipe import Recipe, describe_keys

    if record:
        print(json.dumps(schema_of(record), indent=None if output.json else 2))
    elif keys and not output.json:
        for key, default, meaning in describe_keys():
            print(f"{key:<28} {default:<16} {meaning}")
    else:
        print(json.dumps(Recipe.model_json_schema(), indent=None if output.json else 2))
