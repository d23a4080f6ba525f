"""What a command printed with `--json`, held against its schema; the fixture `cli` does it for every test."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

from tuneloop.cli.answers import ANSWERS, EXIT_STATUSES, SAME
from tuneloop.cli.main import GROUPS


def command_of(arguments: Sequence[str]) -> str:
    """The words of the command that arguments call; "" where there is none."""
    text = [GROUPS[arguments[0]], *arguments] if arguments and arguments[0] in GROUPS else [*arguments]
    for number in (2, 1):
        if (name := " ".join(text[:number])) in {*ANSWERS, *SAME}:
            return name
    return ""


@cache
def validator(command: str) -> Any:
    """Of the answers of a command."""
    import jsonschema

    from tuneloop.cli.schema import schema_of_answer

    return jsonschema.Draft202012Validator(schema_of_answer(command))


def check_answer(arguments: Sequence[str], status: int, out: str) -> None:
    """Fail unless the status is one of the table and, with --json, stdout holds one object that fits the schema."""
    assert status in EXIT_STATUSES, f"exit status {status}"
    command = command_of(arguments)
    if "--json" not in arguments or not command or status not in (0, 1, 2, 3):
        return
    record = json.loads(out)  # exactly one object
    assert (status == 2) == ("error" in record and len(record) == 1), (status, list(record))
    problems = [error for error in validator(command).iter_errors(record)]
    assert not problems, [
        f"{'.'.join(map(str, item.absolute_path))}: {item.message[:300]}"
        for problem in problems
        for item in problem.context or [problem]
    ]
