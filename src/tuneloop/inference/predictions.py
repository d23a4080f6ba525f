"""Answers that were made elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, read_jsonl
from tuneloop.inference.answer import Kind, TextTarget
from tuneloop.inference.request import Request
from tuneloop.records.completion import Completion


@dataclass(frozen=True)
class PredictionsTarget(TextTarget):
    """A file's answers by the ids of the rows that they belong to, which are those of the requests."""

    answers: Mapping[str, str]

    kind: ClassVar[Kind] = "predictions"
    no_scores = ("A file of answers can't score choices", "evaluate its texts")

    @property
    def identity(self) -> str:
        """Hash of the answers."""
        return content_hash(dict(self.answers))

    def complete(self, requests: Sequence[Request], *, task: str = "reading") -> Iterator[Completion]:
        """The answers that stand in the file."""
        for request in requests:
            known = self.answers.get(request.id)
            if known is None:
                yield Completion(finish="error", error="no prediction", engine=self.kind)
            else:
                yield Completion(known, engine=self.kind)


def read_answers(file: str) -> dict[str, str]:
    """The answers in JSON Lines with `id` and `prediction`.

    Raises:
        UserError: no such file, it can't be read, or a line has no id or no text as prediction.
    """
    answers: dict[str, str] = {}
    for number, record in enumerate(read_jsonl(Path(file)), 1):
        row, text = (record.get("id"), record.get("prediction")) if isinstance(record, dict) else (None, None)
        if row is None or not isinstance(text, str):
            raise UserError(
                "Not a prediction", where=f"{file}, line {number}", next_step='write {"id": ..., "prediction": "..."}'
            )
        answers[str(row)] = text
    return answers
