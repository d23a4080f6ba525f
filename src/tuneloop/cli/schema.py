"""`tuneloop schema`."""

from __future__ import annotations

import json

from tuneloop.cli.parameters import Output
from tuneloop.core.flag import flag, switch


def command(
    record: str = flag("", "NAME", "Print the schema of a file's record: such as dataset, run, plan or evaluation."),
    keys: bool = switch("Print a table of keys, defaults and meanings instead."),
    *,
    output: Output,
) -> None:
    """Print the JSON Schema of a recipe or of a file's record, or a table of the recipe's keys."""
    from tuneloop.cli.record_schemas import schema_of
    from tuneloop.recipe import Recipe, describe_keys

    if record:
        print(json.dumps(schema_of(record), indent=None if output.json else 2))
    elif keys and not output.json:
        for key, default, meaning in describe_keys():
            print(f"{key:<28} {default:<16} {meaning}")
    else:
        print(json.dumps(Recipe.model_json_schema(), indent=None if output.json else 2))
