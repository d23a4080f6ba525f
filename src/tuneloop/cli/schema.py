"""`tuneloop schema`."""

from __future__ import annotations

import json

from tuneloop.cli.console import Result
from tuneloop.cli.parameters import Output
from tuneloop.cli.schemas import schema_of
from tuneloop.core.flag import flag, switch


def command(
    record: str = flag("", "NAME", "Print the schema of a file's record: such as dataset, run, plan or evaluation."),
    keys: bool = switch("Print a table of keys, defaults and meanings instead."),
    *,
    output: Output,
) -> Result:
    """Print the JSON Schema of a recipe or record, or a table of keys."""
    from tuneloop.recipe import Recipe, describe_keys

    if keys and not record and not output.as_json:
        lines = [f"{key:<28} {default:<16} {meaning}" for key, default, meaning in describe_keys()]
        return Result(None, lines)
    schema = schema_of(record) if record else Recipe.model_json_schema()
    return Result(schema, [json.dumps(schema, indent=2)])
