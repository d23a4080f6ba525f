"""An encoder with a head as a target: labels with their probabilities, thousands of rows a second.

It reads the last turn of the user, and writes nothing: its answer is a label, or a list of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from tuneloop.core.errors import UserError
from tuneloop.core.ui import progress
from tuneloop.inference.labels import best_label
from tuneloop.inference.protocol import SCORING, EngineKind, EngineSettings, Kind, Served, ServingEngine, Target
from tuneloop.inference.request import Request, Requests, refused
from tuneloop.models.encoder import Classifier, encoder_folder, open_classifier, scores_of, text_of_turns
from tuneloop.models.names import is_encoder, is_local
from tuneloop.models.template import Template
from tuneloop.records.completion import Completion
from tuneloop.records.run import RUN

NAME = "encoder"  # of the engine
BLOCK = 1024  # texts between two reports of progress
NO_TEXT = "no_prompt: an encoder reads a text or turns, and this request has neither"


@dataclass(frozen=True)
class EncoderTarget(Target):
    """An encoder with a head, by the folder of a run or its own; it is loaded when it is first needed."""

    name: str
    classifier: Classifier = field(repr=False)

    is_classifier: ClassVar[bool] = True
    draws: ClassVar[bool] = False

    @property
    def kind(self) -> Kind:
        """A run, or a model that was exported."""
        return "run" if (Path(self.name).expanduser() / RUN).is_file() else "model"

    @property
    def identity(self) -> str:
        """Hash of the head and the encoder."""
        return self.classifier.manifest.hash

    @property
    def folder(self) -> Path:
        """Where the head is, with its task."""
        return self.classifier.folder

    @property
    def base(self) -> str:  # type: ignore[override]
        """Name of the encoder."""
        return self.classifier.manifest.base or str(self.folder)

    def load(self) -> None:
        """Load the encoder and its head."""
        _ = self.classifier.encoder, self.classifier.head

    def complete(self, requests: Requests, *, task: str = "answering") -> Iterator[Completion]:
        """The label of each request, or its list of labels, as a text."""
        answers = self._scored(requests, self.classifier.manifest.labels, task)
        for request, answer in zip(requests, answers, strict=True):
            yield replace(answer, finish="stop") if not (request.choices or answer.error) else answer

    def score(
        self, requests: Requests, labels: Sequence[str], *, exact: bool = False, lead: str = "", task: str = SCORING
    ) -> Iterator[Completion]:
        """The likeliest label of each request, with log probabilities of all."""
        return self._scored(requests, labels, task)

    def label_tokens(self, labels: Sequence[str]) -> Mapping[str, int]:
        """One each: a label's score is its log probability."""
        return dict.fromkeys(labels, 1)

    def _scored(self, requests: Requests, labels: Sequence[str], task: str) -> Iterator[Completion]:
        for start in range(0, len(requests), BLOCK):
            yield from answers_to(self.classifier, requests[start : start + BLOCK], labels)
            progress(task, min(start + BLOCK, len(requests)), len(requests))


def answers_to(classifier: Classifier, requests: Requests, labels: Sequence[str]) -> list[Completion]:
    """The answers to requests that share a forward pass; one without a text has the finish `error`."""
    texts = {i: text for i, request in enumerate(requests) if (text := text_of_request(request)) is not None}
    ids = classifier.encoder.ids(list(texts.values()))
    manifest, answers = classifier.manifest, [refused(request, NO_TEXT, NAME) for request in requests]
    for place, tokens, logs in zip(texts, ids, classifier.log_probabilities(ids), strict=True):
        if manifest.kind == "labels":
            written = classifier.answer(logs)
            answer = Completion(written, finish="stop", prompt_tokens=len(tokens), completion_tokens=1, engine=NAME)
        else:
            scores = dict(scores_of(classifier, logs, labels))
            answer = best_label(scores, dict.fromkeys(scores, 1), len(tokens), engine=NAME)
        answers[place] = replace(answer, adapter=manifest.hash)
    return answers


def text_of_request(request: Request) -> str | None:
    """What an encoder reads of a request; None: it has no text."""
    if request.messages:
        return text_of_turns(request.messages)
    return request.continues


def open_encoder(name: str, base: str = "", template: str = "") -> EncoderTarget:
    """The encoder with a head of a run, an artifact or its own folder.

    Raises:
        UserError: it has no head yet, or one for another encoder than `base`.
    """
    target = EncoderTarget(name, open_classifier(name))
    if base and base != target.base:
        what, step = f"This head is for {target.base}, and reads no vectors of {base}", "leave --base out"
        raise UserError(what, where=name, next_step=step)
    return target


def claims(name: str) -> bool:
    """Whether a name is that of an encoder, with a head or without; nothing is fetched to find out."""
    return encoder_folder(name) is not None or (is_local(name) and is_encoder(name))


def _no_template(base: str) -> Template:
    raise UserError("An encoder has no chat template", where=base, next_step="ask it for labels")


def _serving(base: Served, adapters: Sequence[Served], settings: EngineSettings) -> ServingEngine:
    what = "An encoder is not served yet"
    raise UserError(what, where=base.source, next_step=f"tuneloop predict {base.source} FILE")


KIND = EngineKind(NAME, claims=claims, template=_no_template, serving=_serving, target=open_encoder)
