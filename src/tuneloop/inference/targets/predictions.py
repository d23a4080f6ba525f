"""Answers that were made elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash
from tuneloop.core.progress import Progress, no_progress
from tuneloop.inference.request import Request
from tuneloop.records.completion import Completion

if TYPE_CHECKING:
    from tuneloop.inference.engine import Update
    from tuneloop.inference.targets import Kind


@dataclass(frozen=True)
class PredictionsTarget:
    """A file's answers, found by the requests' ids.

    Args:
        name: of the file.
        answers: of each id.
    """

    name: str
    answers: Mapping[str, str]

    @property
    def kind(self) -> Kind:
        """Predictions."""
        return "predictions"

    @property
    def identity(self) -> str:
        """Hash of the answers."""
        return content_hash(dict(self.answers))

    def load(self) -> None:
        """Nothing: they are there."""

    def complete(
        self, requests: Sequence[Request], *, progress: Progress = no_progress, task: str = "reading"
    ) -> Iterator[Completion]:
        """The answers that stand in the file."""
        for request in requests:
            known = self.answers.get(request.id)
            if known is None:
                yield Completion(finish="error", error="no prediction", engine=self.kind)
            else:
                yield Completion(known, engine=self.kind)

    def stream(self, request: Request) -> Iterator[Update]:
        """The whole answer as one piece."""
        from tuneloop.inference.engine import Update

        for answer in self.complete([request]):
            yield Update(answer.text, answer)

    def score(
        self,
        requests: Sequence[Request],
        labels: Sequence[str],
        *,
        exact: bool = False,
        lead: str = "",
        progress: Progress = no_progress,
        task: str = "reading",
    ) -> Iterator[Completion]:
        """Not possible: a file of answers can't be asked anything."""
        raise UserError("A file of answers can't score choices", where=self.name, next_step="evaluate its texts")
