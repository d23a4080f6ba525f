"""A patch: answers and labels that a person has corrected. `prepare` applies it; the sources stay as they are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import orjson

from tuneloop.core.errors import UserError
from tuneloop.core.files import drop_torn_line, make_folder, read_jsonl, user_errors_of_the_disk
from tuneloop.data.formats.guess import Parsed
from tuneloop.records.record import Part, as_line
from tuneloop.records.rows import Message

AGAIN = "correct the line, or delete it"


class PatchLine(Part):
    """A correction of one record: where it is, and what its answer was and becomes.

    It applies only where the answer still is what it was: after another edit of the source the record stays.
    """

    source: str
    line: int
    was: str
    becomes: str
    id: str = ""
    who: str = ""
    time: str = ""


def read_patch(path: Path | str) -> dict[tuple[str, int], PatchLine]:
    """Corrections by source and line; of several for one record the last one. UserError: no file, or a damaged line."""
    if Path(path).exists() and not Path(path).is_file():  # a pipe or a device may have no end
        raise UserError("Not a regular file", where=str(path), next_step="name a file of corrections")
    lines = [as_line(PatchLine, record, str(path), AGAIN) for record in read_jsonl(path)]
    first: dict[tuple[str, int], str] = {}
    for line in lines:
        if not line.becomes.strip():
            raise UserError("A correction is empty", where=f"{path}: {line.source}:{line.line}", next_step=AGAIN)
        first.setdefault((line.source, line.line), line.was)
    return {(line.source, line.line): line.model_copy(update={"was": first[line.source, line.line]}) for line in lines}


def add_to_patch(path: Path, lines: Iterable[PatchLine]) -> None:
    """Add corrections to a patch, which is made where it is not there. UserError: it can't be written."""
    with user_errors_of_the_disk(path):
        make_folder(path.parent)
        if path.exists():
            drop_torn_line(path)
        with path.open("ab") as file:
            file.write(b"".join(orjson.dumps(line.to_json()) + b"\n" for line in lines))


def corrected(parsed: Parsed, becomes: str) -> Parsed:
    """A record with another answer, and label where the answer is the label."""
    turn: Message = {**parsed.messages[-1], "content": becomes}
    label = becomes if parsed.label == parsed.messages[-1]["content"] else parsed.label
    return replace(parsed, messages=[*parsed.messages[:-1], turn], label=label)
