"""A model that answers with a prompt, as a target: rows, files and conversations are sent with it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tuneloop.core.files import content_hash
from tuneloop.inference.endpoint import DEFAULT_KEY, Endpoint
from tuneloop.inference.prompt.turns import Conversation, KeptPrompt
from tuneloop.inference.protocol import SCORING, Kind, ModelTarget, Target
from tuneloop.inference.request import Request, Requests, Update
from tuneloop.records.completion import Completion
from tuneloop.records.rows import Message
from tuneloop.records.run import RUN


@dataclass
class PromptTarget(Target):
    """A model with a prompt around every question."""

    name: str
    prompt: KeptPrompt
    asked: Target  # who answers

    no_examples = "This prompt has a template and examples of its own", "leave --few-shot and --prompt out"

    @property
    def no_scores(self) -> tuple[str, str]:  # type: ignore[override]
        """As of who answers."""
        return self.asked.no_scores

    @property
    def kind(self) -> Kind:
        """A run, or a prompt that was written by hand."""
        return "run" if self.run else "model"

    @property
    def run(self) -> Path | None:  # type: ignore[override]
        """The folder of the search that found it."""
        folder = Path(self.name).expanduser()
        return folder if (folder / RUN).is_file() else None

    @property
    def is_tuned(self) -> bool:
        """No weights were changed."""
        return False

    @property
    def base(self) -> str:  # type: ignore[override]
        """The model's name."""
        return self.asked.base

    @property
    def endpoint(self) -> Endpoint | None:  # type: ignore[override]
        """The server that answers."""
        return self.asked.endpoint

    @property
    def identity(self) -> str:
        """Hash of the prompt and of who answers."""
        return content_hash([self.prompt.hash, self.asked.identity])

    @property
    def reader(self) -> ModelTarget | None:
        return self.asked.reader

    @property
    def folder(self) -> Path:
        """Where the prompt is, with its task."""
        return Path(self.name).expanduser()

    def served_on(self, base: str) -> tuple[str, str | None]:
        """Its model's base, and the prompt's folder, which `engine_of` puts around it; of a server's model no base."""
        return "" if self.endpoint else self.asked.served_on(base)[0], self.name

    def prompts(self, conversations: Sequence[Conversation]) -> list[list[Message]]:
        """What is sent in place of conversations."""
        return self.prompt.turns(conversations)

    def load(self) -> None:
        """Load the model."""
        self.asked.load()
        self.prompt.load()

    def complete(self, requests: Requests, *, task: str = "answering") -> Iterator[Completion]:
        """Written answers; see `Target`."""
        yield from map(self._marked, self.asked.complete(self.prompt.around(requests), task=task))

    def stream(self, request: Request) -> Iterator[Update]:
        """One written answer in pieces; see `Target`."""
        (asked,) = self.prompt.around([request])
        for update in self.asked.stream(asked):
            yield replace(update, completion=update.completion and self._marked(update.completion))

    def score(
        self, requests: Requests, labels: Sequence[str], *, exact: bool = False, lead: str = "", task: str = SCORING
    ) -> Iterator[Completion]:
        """The likeliest label of each request; see `Target`."""
        asked = self.prompt.around(requests)
        yield from map(self._marked, self.asked.score(asked, labels, exact=exact, lead=lead, task=task))

    def _marked(self, answer: Completion) -> Completion:
        return replace(answer, adapter=self.prompt.hash)

    def computed(self, prompts: Sequence[Sequence[int]], answers: Sequence[Completion]) -> int:
        """See `Target`."""
        return self.asked.computed(prompts, answers)

    def label_tokens(self, labels: Sequence[str]) -> Mapping[str, int]:
        """Tokens of each label; see `Target`."""
        return self.asked.label_tokens(labels)

    def close(self) -> None:
        """End what answers."""
        self.asked.close()


def endpoint_of(prompt: KeptPrompt) -> Endpoint:
    """The server of a prompt, with the key that the environment has for it."""
    key = os.environ.get(DEFAULT_KEY, "").strip()
    return Endpoint(url=prompt.manifest.model, model=prompt.manifest.served_as, api_key=key)
