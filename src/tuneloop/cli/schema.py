"""`tuneloop schema`."""

from __future__ import annotations

import typer

from tuneloop.cli.console import Debug, Json, Quiet


def command(
    record: str = typer.Option("", "--record", help="A file's record instead: dataset, run, plan, evaluation ..."),
    keys: bool = typer.Option(False, "--keys", help="A table of keys, defaults and meanings instead of JSON Schema."),
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Print the JSON Schema of the recipe or of a record, or a table of the recipe's keys."""
    import json

    from tuneloop.records.schemas import schema_of
    from tuneloop.workflows.recipe import Recipe, describe_keys

    if record:
        print(json.dumps(schema_of(record), indent=None if as_json else 2))
    elif keys and not as_json:
        for key, default, meaning in describe_keys():
            print(f"{key:<28} {default:<16} {meaning}")
    else:
        print(json.dumps(Recipe.model_json_schema(), indent=None if as_json else 2))
