"""What targets share that give texts and nothing else: an answer comes in one piece, and labels can't be scored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from tuneloop.core.errors import UserError
from tuneloop.core.progress import Progress, no_progress
from tuneloop.inference.engine import Update
from tuneloop.inference.request import Request
from tuneloop.records.completion import Completion


@dataclass(frozen=True)
class TextTarget:
    """A target whose answers are texts, under the name that the user gave it."""

    name: str

    no_scores: ClassVar[tuple[str, str]]  # why labels can't be scored, and what to do instead

    def load(self) -> None:
        """Nothing: it is ready."""

    def complete(
        self, requests: Sequence[Request], *, progress: Progress = no_progress, task: str = "asking"
    ) -> Iterator[Completion]:
        """Written answers."""
        raise NotImplementedError

    def stream(self, request: Request) -> Iterator[Update]:
        """The whole answer as one piece."""
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
        task: str = "scoring labels",
    ) -> Iterator[Completion]:
        """Not possible."""
        why, instead = self.no_scores
        raise UserError(why, where=self.name, next_step=instead)
