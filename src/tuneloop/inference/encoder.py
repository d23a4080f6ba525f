"""An encoder with a head as a target: labels with their probabilities, thousands of rows a second.

It reads the last turn of the user, and writes nothing: its answer is a label, or a list of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from tuneloop.core.errors import UserError
from tuneloop.core.ui import progress
from tuneloop.inference.labels import best_label
from tuneloop.inference.protocol import (
    SCORING,
    AdapterFacts,
    EngineKind,
    EngineSettings,
    Kind,
    Served,
    Target,
    milliseconds_since,
    unknown_adapter,
)
from tuneloop.inference.request import Request, Requests, Update, refused
from tuneloop.models import Classifier, encoder_folder, open_classifier, text_of_turns
from tuneloop.models.adapters import BASE
from tuneloop.models.chat import Template
from tuneloop.models.files import is_encoder, is_local
from tuneloop.records.completion import Completion
from tuneloop.records.rows import Message
from tuneloop.records.run import RUN

NAME = "encoder"  # of the engine
TOGETHER = 64  # requests that are waited for together at least: as many texts as a forward pass has
BLOCK = 1024  # texts between two reports of progress
NO_TEXT = "no_prompt: an encoder reads a text or turns, and this request has neither"


@dataclass(frozen=True)
class EncoderTarget(Target):
    """An encoder with a head, by the folder of a run or its own; it is loaded when it is first needed."""

    name: str
    classifier: Classifier = field(repr=False)

    is_classifier: ClassVar[bool] = True
    no_examples = (
        "An encoder reads one text, and no examples or templates of a prompt",
        "leave --few-shot and --prompt out",
    )

    @property
    def run(self) -> Path | None:  # type: ignore[override]
        """The run's folder; None of a model that was exported."""
        folder = Path(self.name).expanduser()
        return folder if (folder / RUN).is_file() else None

    @property
    def kind(self) -> Kind:
        """A run, or a model that was exported."""
        return "run" if self.run else "model"

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
    ids: dict[int, Sequence[int]] = {i: request.ids for i, request in enumerate(requests) if request.ids}
    texts = {
        i: text
        for i, request_index in enumerate(requests)
        if not request_index.ids and (text := text_of_request(request_index)) is not None
    }
    ids |= dict(zip(texts, classifier.encoder.ids(list(texts.values())), strict=True))
    manifest, answers = classifier.manifest, [refused(request, NO_TEXT, NAME) for request in requests]
    for (row, tokens), logs in zip(ids.items(), classifier.log_probabilities(list(ids.values())), strict=True):
        if manifest.kind == "labels":
            written = classifier.answer(logs)
            answer = Completion(written, finish="stop", prompt_tokens=len(tokens), completion_tokens=1, engine=NAME)
        else:
            scores = classifier.log_probabilities_of(logs, labels)
            answer = best_label(scores, dict.fromkeys(scores, 1), len(tokens), engine=NAME)
        answers[row] = replace(answer, adapter=manifest.hash)
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
        message, step = f"This head is for {target.base}, and reads no vectors of {base}", "leave --base out"
        raise UserError(message, where=name, next_step=step)
    return target


def claims(name: str) -> bool:
    """Whether a name is that of an encoder, with a head or without; nothing is fetched to find out."""
    return encoder_folder(name) is not None or (is_local(name) and is_encoder(name))


Waiting = tuple[Request, asyncio.Future[Completion]]


class EncoderEngine:
    """See `ServingEngine`: what waits while some texts are computed shares the next forward pass."""

    name = NAME
    gives_way = False
    context = 4096  # a text that is longer than the encoder reads is cut, as in the evaluation
    adapters: Mapping[str, AdapterFacts] = MappingProxyType({})

    def __init__(self, base: Served, adapters: Sequence[Served], settings: EngineSettings) -> None:
        if adapters:
            message = "An encoder takes no adapters"
            raise UserError(message, where=adapters[0].source, next_step="start a server for it of its own")
        self.base, self.slots, self._target = base.source, max(settings.slots, TOGETHER), open_encoder(base.source)
        self._waiting: list[Waiting] = []
        self._work: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load the encoder and its head; see `ServingEngine`."""
        await asyncio.to_thread(self._target.load)

    async def healthy(self) -> bool:
        """It computes in this process."""
        return True

    async def stream(self, request: Request) -> AsyncIterator[Update]:
        """The label, in one piece."""
        began = time.perf_counter()
        if reason := _not_answered(request):
            yield Update(completion=refused(request, reason, NAME))
            return
        answer: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, answer))
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._compute())
        completion = replace(await answer, total_ms=milliseconds_since(began), adapter=request.named_adapter)
        yield Update(completion.text, replace(completion, ttft_ms=completion.total_ms))

    async def _compute(self) -> None:
        while self._waiting:
            labels = self._waiting[0][0].choices
            some, left = list[Waiting](), list[Waiting]()
            for entry in self._waiting:
                (some if entry[0].choices == labels and len(some) < TOGETHER else left).append(entry)
            self._waiting = left
            classifier, requests = self._target.classifier, [request for request, _ in some]
            try:
                labels = labels or tuple(classifier.manifest.labels)
                answers = await asyncio.to_thread(answers_to, classifier, requests, labels)
            except asyncio.CancelledError:
                self._waiting += some  # `stop` answers them
                raise
            except Exception as failure:  # of the libraries below; it must reach those who wait
                answers = [refused(request, f"engine: {failure}", NAME) for request in requests]
            for (_, waiting), answer in zip(some, answers, strict=True):
                if not waiting.done():  # else its client has left
                    waiting.set_result(answer)

    def renders(self, adapter: str) -> bool:
        """It reads texts as tokens."""
        return True

    async def tokenize(self, text: str, *, adapter: str = BASE) -> Sequence[int]:
        """Token ids of a text, as the encoder reads it."""
        (ids,) = await asyncio.to_thread(self._target.classifier.encoder.ids, [text])
        return ids

    async def render(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), *, adapter: str = BASE
    ) -> Sequence[int]:
        """Token ids of the last turn of the user."""
        return await self.tokenize(text_of_turns(messages))

    async def stop(self) -> None:
        """End what is being computed."""
        if self._work is not None:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)
        for request, answer in self._waiting:
            if not answer.done():
                answer.set_result(replace(refused(request, ""), finish="cancelled"))
        self._waiting = []


def _not_answered(request: Request) -> str:
    """Why an encoder can't answer a request; empty: it can."""
    if reason := unknown_adapter(request.named_adapter, {}):
        return reason
    return "no_schema: an encoder answers with a label, not with JSON" if request.schema is not None else ""


def _no_template(base: str) -> Template:
    raise UserError("An encoder has no chat template", where=base, next_step="ask it for labels")


KIND = EngineKind(NAME, claims=claims, template=_no_template, serving=EncoderEngine, target=open_encoder)
