"""Rows answered through an engine that serves: what is measured is what clients get.

So a server is evaluated as a model here is: prompts are token ids of the trained template, and labels are scored.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash
from tuneloop.core.http.timeouts import NO_QUOTA
from tuneloop.core.ui import busy
from tuneloop.inference.endpoint import Endpoint, RequestLimits
from tuneloop.inference.labels import LabelTrie
from tuneloop.inference.local.target import LocalTarget
from tuneloop.inference.protocol import SCORING, AnswerFit, Kind, ModelTarget, ServingEngine, complete
from tuneloop.inference.request import Request, Requests
from tuneloop.inference.requesting import Body, FailedTry, Requester
from tuneloop.models import load_tokenizer
from tuneloop.models.adapters import ATTACHED, BASE
from tuneloop.models.chat import Rendered, Template, TemplateError, load_template, with_template
from tuneloop.models.files import is_local
from tuneloop.records.completion import Completion

T = TypeVar("T")
FATAL = (NO_QUOTA, "no_adapter", "no_choices")  # words of an error: wrong for one request, wrong for all
# Of a request, what its answer does not depend on, or is not its own.
APART = {"id", "gives_way", "adapter", "as_written"}


@dataclass
class EngineTarget(ModelTarget):
    """A model in an engine that serves, which is started in a thread when it is first needed."""

    name: str  # as the user gave it
    model: LocalTarget  # what it is: its folder, its base, its template; nothing of it is loaded here
    make: Callable[[], ServingEngine]  # makes the engine, with one adapter or none
    place: str = ""  # of the model, where it is a server's: the address, and the name there
    limits: RequestLimits = field(default_factory=RequestLimits)
    endpoint: Endpoint | None = None

    measures_losses: ClassVar[bool] = False
    _running: _Running | None = field(default=None, init=False, repr=False)

    @property
    def kind(self) -> Kind:
        """That of the model, or an endpoint."""
        return "endpoint" if self.endpoint else self.model.kind

    @property
    def run(self) -> Path | None:  # type: ignore[override]
        """The run's folder, where it is computed here."""
        return None if self.endpoint else self.model.run

    @property
    def is_tuned(self) -> bool:
        return self.endpoint is None and self.model.is_tuned

    @cached_property
    def template(self) -> Template:
        return template_of(self.model)

    @property
    def identity(self) -> str:
        """Hash of the weights, or of a server's address and model, and of the template."""
        return content_hash([self.place or self.model.identity, self.template.source])

    @property
    def context(self) -> int:
        return self._started.engine.context

    @property
    def vocabulary(self) -> int:
        """Tokens of the tokenizer."""
        return self.template.vocabulary

    @property
    def folder(self) -> Path | None:
        return self.model.folder

    @property
    def untuned(self) -> str:
        return self.model.untuned

    def served_on(self, base: str) -> tuple[str, str | None]:
        return self.model.served_on(base)

    def load(self) -> None:
        """Start the engine."""
        _ = self._started

    @property
    def _started(self) -> _Running:
        if self._running is None:
            with busy(f"starting {self.name}"):
                self._running = _Running(self.make())
        return self._running

    def close(self) -> None:
        """Stop the engine; it is started again when it is needed."""
        running, self._running = self._running, None
        if running is not None:
            running.stop()

    def complete(self, requests: Requests, *, task: str = "answering") -> Iterator[Completion]:
        """Answers, written or chosen; several requests at once, and equal ones once.

        Raises:
            UserError: the engine refuses all requests, or answers none of the first.
        """
        running = self._started
        engine, own = running.engine, next(iter(running.engine.adapters), BASE)
        named = [replace(request, adapter=own) if request.adapter == ATTACHED else request for request in requests]
        bodies = [_body(request) for request in named]
        identity = self.identity
        keys = [
            content_hash([identity, request_key.adapter, body]) for request_key, body in zip(named, bodies, strict=True)
        ]
        by_key = dict(zip(keys, named, strict=True))

        async def send(key: str, body: Body) -> Completion | FailedTry:
            try:
                async with asyncio.timeout(self.limits.timeout):
                    answer = await complete(engine, by_key[key])
            except TimeoutError:
                return FailedTry(f"no whole answer in {self.limits.timeout:g} s", tries=2)
            # What a server has under a name may be an adapter: `base` is then not known to have answered.
            return _outcome(replace(answer, adapter="") if self.place and not engine.adapters else answer)

        where = self.place or f"{engine.name}, {self.name}"
        step = "see that the server runs and has the model; the same command requests what is missing"
        requester = Requester(self.limits, engine.name, where, step)
        return iter(running.run(requester.answers(keys, bodies, send, task)))

    def score(
        self, requests: Requests, labels: Sequence[str], *, exact: bool = False, lead: str = "", task: str = SCORING
    ) -> Iterator[Completion]:
        """The likeliest label of each request, as the engine chooses it."""
        if exact or lead:
            message = "An engine that serves scores labels only as far as its answer needs it"
            step = "leave the probabilities of further labels out, or ask the model on this machine"
            raise UserError(message, where=self.name, next_step=step)
        _ = self.label_tree(labels)
        return self.complete([replace(request, choices=tuple(labels)) for request in requests], task=task)

    def label_tree(self, labels: Sequence[str], lead: str = "") -> LabelTrie:
        """See `ModelTarget`; refused where the template is not one that can write labels."""
        try:
            return super().label_tree(labels, lead)
        except TemplateError as error:
            message = f"The chat template can't write these labels: {error}"
            where, step = f"{self.name}, {self.model.name}", "name the base or the run that is served"
            raise UserError(message, where=where, next_step=step) from None

    def fits(self, rows: Sequence[Rendered], *, task: str = "reference answers") -> list[AnswerFit]:
        message = "An engine that serves does not say how likely a given answer is"
        raise UserError(message, where=self.name, next_step="evaluate the model on this machine")


def _body(request: Request) -> Body:
    """What an answer depends on, as JSON; of a prompt that is tokens already they alone."""
    values = {setting.name: getattr(request, setting.name) for setting in fields(request) if setting.name not in APART}
    if request.ids:
        values |= {"messages": [], "tools": []}
    return values | {"sampling": vars(request.sampling)}


def _outcome(answer: Completion) -> Completion | FailedTry:
    """An answer, or that it may come later, or never; what is wrong with one request is its answer."""
    word = answer.error.partition(":")[0]
    if word == "busy":
        return FailedTry(answer.error, wait=answer.retry_after, busy=True)
    if word == "engine":
        return FailedTry(answer.error)
    return FailedTry(answer.error, tries=0, fatal=True) if word in FATAL else answer


class _Running:
    """A started engine with its event loop, in a thread."""

    def __init__(self, engine: ServingEngine) -> None:
        self.engine, self._loop = engine, asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine's requests", daemon=True)
        self._thread.start()
        try:
            self.run(engine.start())
        except BaseException:
            self._end()
            raise

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What a coroutine returns, in the engine's loop and this thread's context."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """End engine and thread."""
        try:
            self.run(self.engine.stop())
        finally:
            self._end()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def template_of(model: LocalTarget) -> Template:
    """Tokenizer and trained chat template of a model on this machine, which is not loaded.

    The base's tokenizer where it is here, for it may know further ends of a turn; else the one next to the adapter.
    """
    trained = None
    if model.trained is not None and (model.trained / "tokenizer.json").is_file():
        trained = load_template(model.trained)
    tokenizer = load_tokenizer(model.base) if trained is None or is_local(model.base) else trained
    return with_template(tokenizer, model.source or (trained.source if trained is not None else ""))
