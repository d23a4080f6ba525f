"""`tuneloop schema`."""

from __future__ import annotations

import typer

from tuneloop.cli.console import Debug, Json, Quiet


def command(
    keys: bool = typer.Option(False, "--keys", help="A table of keys, defaults and meanings instead of JSON Schema."),
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Print the recipe's JSON Schema, or a table of its keys."""
    import json

    from tuneloop.workflows.recipe import Recipe, describe_keys

    if keys and not as_json:
        for key, default, meaning in describe_keys():
            print(f"{key:<28} {default:<16} {meaning}")
    else:
        print(json.dumps(Recipe.model_json_schema(), indent=None if as_json else 2))
