"""What answers requests: one protocol, `ServingEngine`. A `Target` answers rows, all of them given at once.

`local/` is our own engine, `llamacpp/` llama.cpp in child processes, `openai/` any OpenAI-compatible server. What an
engine must keep is tested for all of them alike: an answer depends on its request alone, not on which adapter answered
before, what is cached, or what shares the batch.

An engine that serves is evaluated through `engine_target.EngineTarget`, a server whose model is known too. Who knows
all rows at once can do better, and three have a target of their own: our engine batches rows of similar length, reads
what their prompts share once, scores all labels exactly and measures the losses of references (`local/target.py`);
llama.cpp scores and measures in its library, which its server does not offer (`llamacpp/target.py`); and an endpoint of
which nothing is known renders the turns itself (`openai/target.py`).

    engine = LocalEngine(Served("smollm2-135m"), [Served("runs/tickets")])
    await engine.start()
    async for update in engine.stream(Request(messages=turns, adapter=next(iter(engine.adapters)))):
        print(update.text, end="")
    await engine.stop()
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from tuneloop.core.errors import UserError
from tuneloop.core.http.timeouts import START_WITHIN
from tuneloop.inference.endpoint import Endpoint
from tuneloop.inference.grammar import Grammars, why_not_written
from tuneloop.inference.labels import LabelTrees, LabelTrie, calibrated, label_ids, label_trie
from tuneloop.inference.request import Request, Requests, Separation, Update, fit_checked, refused, with_ids
from tuneloop.models.adapters import BASE
from tuneloop.models.chat import Rendered, Template, TemplateError, ids_of_long, is_long
from tuneloop.records.artifact import ARTIFACT, ArtifactManifest
from tuneloop.records.completion import ENGINE, Completion, Finish, TokenLogprob
from tuneloop.records.record import read_record
from tuneloop.records.rows import Message

if TYPE_CHECKING:
    from tuneloop.models import Model

SCORING = "scoring labels"  # a task, for the progress
Kind = Literal["run", "adapter", "model", "endpoint", "predictions"]


@dataclass(frozen=True)
class Served:
    """What an engine is to load: a base model, or an adapter on top of it."""

    source: str  # a model's name or folder, a GGUF file; of an adapter its folder (or its run's), or its LoRA GGUF file
    template: str = ""  # chat template that it was trained with; empty: the base model's own


@dataclass(frozen=True)
class AdapterFacts:
    """An adapter that an engine has loaded."""

    hash: str  # of its content; requests name it by this
    source: str  # where it came from, as `Served` named it
    method: str = ""  # by which it was trained, where the engine can tell


@dataclass(frozen=True)
class EngineSettings:
    """How an engine on this machine serves; each takes what concerns it."""

    slots: int = 4  # requests that are computed at the same time
    background_slots: int = 2  # further slots, for background work
    context: int = 4096  # tokens of a prompt with its answer; in llama.cpp each slot has memory for so many
    threads: int = 0  # 0: as many as this process may use
    start_within: float = START_WITHIN  # seconds to load everything
    merge: bool = False  # write a single adapter into the base's weights
    deterministic: bool = False  # answers don't depend on what is computed with them, see `models.batch_invariance`
    log: Path | None = None  # file for what the engine prints; None: a temporary one


# --- engines that serve ----------------------------------------------------------------------------


class ServingEngine(Protocol):
    """Answers many requests at a time, from one event loop.

    A request that can't be answered gets one update whose completion has the finish `error` and says why, with a word
    before a colon (`too_long`, `no_adapter`, `no_prompt`, `no_schema`, `rejected`, `busy`, `engine`). `adapter` of a
    request is one of `adapters`, or `base`; where it names none, the base answers.
    """

    @property
    def name(self) -> str:
        """What computes: `tuneloop`, `llama.cpp`, the address of a server."""

    @property
    def base(self) -> str:
        """The base model, as it was named."""

    @property
    def context(self) -> int:
        """Tokens of a prompt with its answer; known once it is started."""

    @property
    def slots(self) -> int:
        """Requests that are computed at the same time; further ones wait inside."""

    @property
    def adapters(self) -> Mapping[str, AdapterFacts]:
        """What is loaded, by hash; known once it is started."""

    @property
    def gives_way(self) -> bool:
        """Whether it computes requests with `gives_way` in what others leave idle; else their sender waits for that."""

    def renders(self, adapter: str) -> bool:
        """Whether it makes tokens of an adapter's prompts; else its server renders turns and texts as they are."""

    async def start(self) -> None:
        """Load everything; afterwards the first answer waits for nothing.

        Raises:
            UserError: something is missing or damaged, or it was not ready within the deadline.
        """

    async def healthy(self) -> bool:
        """Whether it can answer now."""

    def stream(self, request: Request) -> AsyncIterator[Update]:
        """An answer as it is written: pieces of text, the last one with the completion. Choices come in one piece.

        Closing the iterator cancels the answer in the engine too.
        """

    async def tokenize(self, text: str, *, adapter: str = BASE) -> Sequence[int]:
        """Token ids of plain text; the names of control tokens are characters like all others.

        Args:
            adapter: that is to continue it: adapters on one base share a tokenizer.
        """

    async def render(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), *, adapter: str = BASE
    ) -> Sequence[int]:
        """Token ids of a conversation up to the place of the answer, by the template that the adapter was trained with.

        Raises:
            UserError: the template refuses the conversation, or there is no such adapter.
        """

    async def stop(self) -> None:
        """End it: what is being answered is cancelled. Stopping again does nothing."""


class RenderingEngine(ABC):
    """What serving engines share: adapters, their templates, and how a request becomes one that can be answered."""

    def __init__(self, name: str, base: Served, adapters: Sequence[Served], slots: int) -> None:
        self.name, self.base, self.slots = name, base.source, slots
        self.adapters: Mapping[str, AdapterFacts] = {}
        self._base, self._served = base, tuple(adapters)
        self._templates: dict[str, Template] = {}  # of the base and each adapter, where prompts become tokens here
        self._trees = LabelTrees()

    @property
    @abstractmethod
    def context(self) -> int:
        """See `ServingEngine`."""

    @abstractmethod
    async def _prepared(self, request: Request) -> Request | Completion:
        """A request with a named adapter as one that can be computed, or why it can't be answered."""

    @abstractmethod
    def _answer(self, request: Request) -> AsyncGenerator[Update, None]:
        """The answer to a request that was prepared."""

    def renders(self, adapter: str) -> bool:
        """Prompts become tokens here; see `ServingEngine`."""
        return True

    async def tokenize(self, text: str, *, adapter: str = BASE) -> Sequence[int]:
        """Token ids of plain text."""
        template = self._template(BASE)
        return await (ids_of_long(template, text) if is_long(text) else asyncio.to_thread(template.encode, text))

    async def render(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), *, adapter: str = BASE
    ) -> Sequence[int]:
        """Token ids of a conversation; see `ServingEngine.render`."""
        template = self._template(adapter)
        try:
            if is_long("", messages, tools):
                return await ids_of_long(template, "", messages, tools)
            return await asyncio.to_thread(template.prompt_ids, list(messages), list(map(dict, tools)))
        except TemplateError as error:
            message = f"The chat template can't render this conversation: {error}"
            raise UserError(message, where="messages", next_step="see what the template accepts") from None

    async def stream(self, request: Request) -> AsyncIterator[Update]:
        """An answer as it is written; see `ServingEngine.stream`."""
        ready = await self._prepared(replace(request, adapter=request.named_adapter))
        if isinstance(ready, Completion):
            yield Update(completion=ready)
            return
        separated = Separation(ready, self._templates.get(ready.adapter))
        async with aclosing(self._answer(ready)) as updates:
            async for update in updates:
                if update.completion is not None and ready.schema is not None:
                    completion = await asyncio.wrap_future(fit_checked(ready, update.completion))
                    update = replace(update, completion=completion)
                yield separated(update)

    def _template(self, adapter: str) -> Template:
        """The template of an adapter.

        Raises:
            UserError: the engine is not started, or there is no such adapter.
        """
        if not self._templates:
            raise UserError("The engine is not started", where=self.base, next_step="await engine.start()")
        self._check_adapter(adapter)
        return self._templates[adapter]

    def _check_adapter(self, adapter: str) -> None:
        if reason := unknown_adapter(adapter, self.adapters):
            raise UserError(reason.partition(": ")[2], where="adapter", next_step="name one that is loaded, or base")

    def _tree(self, request: Request) -> tuple[LabelTrie, list[list[int]]]:
        return self._trees.of(self._templates[request.adapter], request.choices)

    def _with_ids(self, request: Request) -> Request | Completion:
        """A request with its prompt's tokens, and room for its labels behind them."""
        room = max(self._tree(request)[0].lengths) if request.choices else 1
        return with_ids(self._templates[request.adapter], self.context, request, room=room, engine=self.name)


class AnswerSoFar:
    """What has come of one answer from a server."""

    def __init__(self, request: Request, engine: str) -> None:
        self.request, self.engine = request, engine
        self.ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.counts: tuple[int, int] | None = None  # tokens read and written, as the server counts them
        self.cached = 0  # tokens of the prompt that the server had read before
        self.began, self.first = time.perf_counter(), 0.0

    def completion(self, text: str, finish: Finish, error: str = "") -> Completion:
        """The answer with what there is of it."""
        counts = self.counts or (len(self.request.ids), len(self.ids))
        return Completion(
            text,
            tuple(self.ids),
            finish,
            *counts,
            ttft_ms=round(1000 * (self.first - self.began), 3) if self.first else None,
            total_ms=milliseconds_since(self.began),
            error=error,
            engine=self.engine,
            adapter=self.request.adapter,
            logprobs=None if self.request.logprobs is None else tuple(self.logprobs),
            cached_tokens=max(min(self.cached, counts[0]), 0),
        )


def milliseconds_since(began: float) -> float:
    """Milliseconds since some time of `time.perf_counter`."""
    return round(1000 * (time.perf_counter() - began), 3)


async def complete(engine: ServingEngine, request: Request) -> Completion:
    """The whole answer to one request.

    Raises:
        UserError: the engine ended before the answer.
    """
    async for update in engine.stream(request):
        if update.completion is not None:
            return update.completion
    raise UserError("The engine gave no answer", where=engine.name, next_step="start it again")


def unknown_adapter(adapter: str, loaded: Mapping[str, AdapterFacts]) -> str:
    """Why an adapter can't answer; empty where it can. A request must never be answered by the base in its place."""
    if adapter == BASE or adapter in loaded:
        return ""
    return f"no_adapter: no adapter {adapter[:16]!r} is loaded; loaded: {', '.join(k[:16] for k in loaded) or 'none'}"


# --- targets, which answer rows --------------------------------------------------------------------


class Target(ABC):
    """Answers requests, all of them given at once.

    Each request gets one completion, in order; one that can't be answered has the finish `error` and says why. What
    makes all requests fail (no such model, a wrong key) is raised as a `UserError`.
    """

    name: str  # as the user gave it
    no_scores: ClassVar[tuple[str, str]] = ("", "")  # why labels can't be scored, and what to do instead; empty: it can
    no_examples: ClassVar[tuple[str, str]] = ("", "")  # likewise why it takes no examples or templates of a prompt
    is_classifier: ClassVar[bool] = False  # it knows its labels only: no texts, no prompts with examples
    takes_prompts: ClassVar[bool] = True  # else it has answers to its own rows only
    measures_losses: ClassVar[bool] = False  # it has `fits`
    base: str = ""  # name of the model on this machine that it is, or stands on
    run: Path | None = None  # its run's folder, where it is one
    endpoint: Endpoint | None = None  # the server that answers, with its limits and its price; None: no server does

    @property
    @abstractmethod
    def kind(self) -> Kind:
        """What it is, in a word for who reads; what it can do is said below."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """Hash of what its answers depend on."""

    @property
    def is_here(self) -> bool:
        """Whether it is a model on this machine, in whichever engine."""
        return self.takes_prompts and self.endpoint is None

    @property
    def is_tuned(self) -> bool:
        """Whether it is what a training made of a base that is here too."""
        return self.run is not None

    @property
    def reader(self) -> ModelTarget | None:
        """It, where its prompts become tokens here: a model on this machine, in whichever engine."""
        return None

    @property
    def local(self) -> LoadedTarget | None:
        """It, where our own engine computes in this process, which several processes can share."""
        return None

    @property
    def folder(self) -> Path | None:
        """Where the weights are, with what they were trained to answer; None: they are not here."""
        return None

    def served_on(self, base: str) -> tuple[str, str | None]:
        """The base that it is on, and what an engine that serves that base loads for it; None: it is the base itself.

        Args:
            base: that is served, for weights that do not name theirs.
        """
        return self.name, None

    def prompts(self, conversations: Sequence[Sequence[Message]]) -> list[list[Message]]:
        """What is sent in place of conversations, where it is not they themselves."""
        return [list(turns) for turns in conversations]

    def load(self) -> None:  # noqa: B027 - what needs no loading is ready
        """Make it ready, so that the first answer does not wait for that."""

    @abstractmethod
    def complete(self, requests: Requests, *, task: str = "answering") -> Iterator[Completion]:
        """Written answers."""

    def stream(self, request: Request) -> Iterator[Update]:
        """One written answer in pieces as they come, here as one piece; closing the iterator cancels it."""
        for answer in self.complete([request]):
            yield Update(answer.text, answer)

    def score(
        self, requests: Requests, labels: Sequence[str], *, exact: bool = False, lead: str = "", task: str = SCORING
    ) -> Iterator[Completion]:
        """The likeliest label of each request, with scores.

        Args:
            exact: score every label to its end; else those that can't win have upper bounds.
            lead: text that the answer begins with, before the label.

        Raises:
            UserError: it can only write.
        """
        explanation, instead = self.no_scores
        raise UserError(explanation, where=self.name, next_step=instead)

    def computed(self, prompts: Sequence[Sequence[int]], answers: Sequence[Completion]) -> int:
        """Tokens that answers to prompts have taken, where what all prompts begin with is computed once; 0: unknown."""
        return 0

    def label_tokens(self, labels: Sequence[str]) -> Mapping[str, int]:
        """Tokens of each label, over which `score` takes the mean; empty: it scores none."""
        return {}

    def close(self) -> None:  # noqa: B027 - a model in this process stays
        """End what computes; it is started again when it is needed."""


@dataclass(frozen=True)
class AnswerFit:
    """How well a model foresees a row's supervised tokens."""

    loss: float  # sum of -log likelihood
    tokens: int  # how many they are
    verbatim: bool  # whether greedy decoding would write exactly these: each is the likeliest after those before it


class ModelTarget(Target):
    """A target whose prompts become tokens here: a model on this machine, in whichever engine."""

    engine: ClassVar[str] = ENGINE
    measures_losses: ClassVar[bool] = True

    @property
    def reader(self) -> ModelTarget | None:
        return self

    @property
    @abstractmethod
    def template(self) -> Template:
        """Tokenizer and chat template."""

    @property
    @abstractmethod
    def context(self) -> int:
        """Tokens that the model reads, its answer included."""

    @property
    @abstractmethod
    def vocabulary(self) -> int:
        """Tokens that its output is over."""

    @property
    def untuned(self) -> str:
        """Name of the model before it was tuned; empty where nothing says it."""
        manifest = self.folder and self.folder / ARTIFACT
        return read_record(ArtifactManifest, manifest).base.model if manifest and manifest.is_file() else ""

    @abstractmethod
    def fits(self, rows: Sequence[Rendered], *, task: str = "reference answers") -> list[AnswerFit]:
        """How well the model foresees given answers, the supervised tokens of each row."""

    def rendered(self, request: Request, room: int = 1) -> Request | Completion:
        """A request with its prompt as tokens and room behind it, or why it can't be answered; see `with_ids`."""
        return with_ids(self.template, self.context, request, room=room, engine=self.engine)

    @cached_property
    def grammars(self) -> Grammars:
        """What holds answers to a JSON Schema."""
        return Grammars(self.template, self.vocabulary)

    def writable(self, request: Request) -> Request | Completion:
        """A request that can be answered by writing, or why it can't be."""
        reason = why_not_written(request, lambda: self.grammars)
        return refused(request, reason, self.engine) if reason else self.rendered(request)

    def label_tree(self, labels: Sequence[str], lead: str = "") -> LabelTrie:
        """Labels as the tokens of whole answers, or of the rest of an answer that begins with `lead`."""
        return label_trie(labels, label_ids(self.template, labels, lead=lead))

    def label_tokens(self, labels: Sequence[str]) -> Mapping[str, int]:
        """Tokens of each label as a whole answer."""
        return self.label_tree(labels).tokens

    def calibrated(self, answers: Sequence[Completion], labels: Sequence[str], blank: Request) -> list[Completion]:
        """Answers by their scores, all exact, less those under a prompt without the text to classify (`blank`).

        Removes a preference for some labels (Zhao et al. 2021, arXiv 2102.09690; Holtzman et al. 2021, arXiv
        2104.08315).
        """
        offset, tokens = next(self.score([blank], labels, exact=True)).label_scores or {}, self.label_tokens(labels)
        return [calibrated(answer, offset, tokens) for answer in answers]


class LoadedTarget(ModelTarget):
    """A model that our own engine computes in this process."""

    trained: Path | None  # folder of an adapter on top of the base; None: the model as it is
    source: str  # chat template that takes the place of the model's; empty: its own

    @property
    def local(self) -> LoadedTarget:
        return self

    @property
    @abstractmethod
    def model(self) -> Model:
        """The model with its adapter and template; it is loaded when it is first needed."""


@dataclass(frozen=True)
class EngineKind:
    """An engine for models on this machine, to measure them and to serve them; `targets.ENGINES` lists all."""

    name: str  # `engine=NAME` of `serve`
    claims: Callable[[str], bool]  # whether a name is for this engine, where none is named
    template: Callable[[str], Template]  # tokenizer and chat template of a base, which is not loaded
    serving: Callable[[Served, Sequence[Served], EngineSettings], ServingEngine]  # the base with its adapters
    # Of a name, its base and its chat template (empty: as it says): a faster way to answer rows; None: by serving.
    target: Callable[[str, str, str], Target] | None = None
