"""Who answers: the protocol of engines that serve, and that of targets, which answer rows.

`local/` is our own engine, `llamacpp/` llama.cpp in a process of its own, `openai.py` any OpenAI-compatible server. What an
engine must keep is tested for all of them alike: an answer depends on its request alone, not on which adapter answered
before, what is cached, or what shares the batch. An engine that serves takes requests as they come, from an event loop. A
target gets all of them and may plan: rows of similar length share a batch of our engine, equal ones are sent to a server once.

    engine = LocalEngine(Served("smollm2-135m"), [Served("runs/tickets")])
    await engine.start()
    async for update in engine.stream(Request(messages=turns, adapter=next(iter(engine.adapters)))):
        print(update.text, end="")
    await engine.stop()
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, cast

from tuneloop.core.errors import UserError
from tuneloop.inference.local.engine import Update
from tuneloop.inference.local.scoring import AnswerFit, LabelTrie
from tuneloop.inference.request import Request
from tuneloop.inference.timeouts import START_WITHIN
from tuneloop.models.adapters import ATTACHED, BASE
from tuneloop.models.template import Rendered, Template, TemplateError, plain_source
from tuneloop.records.completion import Completion
from tuneloop.records.rows import Message

Kind = Literal["run", "adapter", "model", "endpoint", "predictions"]


@dataclass(frozen=True)
class Served:
    """What an engine is to load: a base model, or an adapter on top of it.

    Args:
        source: a model's name or folder, a GGUF file; of an adapter its folder (or its run's), or its LoRA GGUF file.
        template: chat template that it was trained with; empty: the base model's own.
    """

    source: str
    template: str = ""


@dataclass(frozen=True)
class AdapterFacts:
    """An adapter that an engine has loaded.

    Args:
        hash: of its content; requests name it by this.
        source: where it came from, as `Served` named it.
        method: by which it was trained, where the engine can tell.
    """

    hash: str
    source: str
    method: str = ""


@dataclass(frozen=True)
class EngineSettings:
    """How an engine on this machine serves; each takes what concerns it.

    Args:
        slots: requests that are computed at the same time.
        giving_way: further slots, for background work.
        context: tokens of a prompt with its answer; in llama.cpp each slot has memory for so many.
        threads: 0: as many as this process may use.
        start_within: seconds to load everything.
        merge: write a single adapter into the base's weights.
        log: file for what the engine prints; None: a temporary one.
    """

    slots: int = 4
    giving_way: int = 2
    context: int = 4096
    threads: int = 0
    start_within: float = START_WITHIN
    merge: bool = False
    log: Path | None = None


class ServingEngine(Protocol):
    """Somebody who answers many requests at a time, from one event loop.

    A request that can't be answered gets one update whose completion has the finish `error` and says why, with a word
    before a colon (`too_long`, `no_adapter`, `no_prompt`, `no_schema`, `rejected`, `busy`, `engine`). `adapter` of a request is one of
    `adapters`, or `base`; where it names none, the base answers.
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

    async def start(self) -> None:
        """Load everything; afterwards the first answer waits for nothing.

        Raises:
            UserError: something is missing or damaged, or it was not ready within the deadline.
        """

    async def healthy(self) -> bool:
        """Whether it can answer now."""

    def stream(self, request: Request) -> AsyncIterator[Update]:
        """An answer as it is written: pieces of text, the last one with the completion.

        Whoever stops reading and closes the iterator cancels the answer in the engine too. Of choices the text comes in
        one piece.
        """

    async def tokenize(self, text: str) -> Sequence[int]:
        """Token ids of plain text; the names of control tokens are characters like all others."""

    async def render(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), *, adapter: str = BASE
    ) -> Sequence[int]:
        """Token ids of a conversation up to the place of the answer, by the template that the adapter was trained with.

        Raises:
            UserError: the template refuses the conversation, or there is no such adapter.
        """

    async def stop(self) -> None:
        """End it: what is being answered is cancelled. Stopping again does nothing."""


class Target(Protocol):
    """Somebody who answers requests.

    Each request gets one completion, in order; one that can't be answered has the finish `error` and says why. What makes
    all requests fail (no such model, a wrong key) is raised as a `UserError`.
    """

    @property
    def name(self) -> str:
        """As the user gave it."""

    @property
    def kind(self) -> Kind:
        """What it is."""

    @property
    def identity(self) -> str:
        """Hash of what its answers depend on."""

    def load(self) -> None:
        """Make it ready, so that the first answer does not wait for that."""

    def complete(self, requests: Sequence[Request], *, task: str = "answering") -> Iterator[Completion]:
        """Written answers."""

    def stream(self, request: Request) -> Iterator[Update]:
        """One written answer in pieces as they come; whoever stops reading cancels it."""

    def score(
        self,
        requests: Sequence[Request],
        labels: Sequence[str],
        *,
        exact: bool = False,
        lead: str = "",
        task: str = "scoring labels",
    ) -> Iterator[Completion]:
        """The likeliest label of each request, with scores.

        Args:
            exact: score every label to its end; else those that can't win have upper bounds.
            lead: text that the answer begins with, before the label.

        Raises:
            UserError: it can only write.
        """


class ModelTarget(Target, Protocol):
    """A target whose prompts become tokens here: a model on this machine, in whichever engine."""

    @property
    def template(self) -> Template:
        """Tokenizer and chat template."""

    @property
    def context(self) -> int:
        """Tokens that the model reads, its answer included."""

    @property
    def untuned(self) -> str:
        """Name of the model before it was tuned; empty where no one says it."""

    @property
    def folder(self) -> Path:
        """Where the weights lie, with what they were trained to answer; of a model's name no folder."""

    @property
    def shares_prompts(self) -> bool:
        """Whether what all prompts begin with is computed once."""

    def served_on(self, base: str) -> tuple[str, str | None]:
        """The base that it stands on, and what an engine that serves that base loads for it; None: it is the base itself.

        Args:
            base: that is served, for weights that do not name theirs.
        """

    def rendered(self, request: Request, room: int = 1) -> Request | Completion:
        """A request with its prompt as tokens, or why it can't be asked; see `prompt.with_ids`."""

    def label_tree(self, labels: Sequence[str], lead: str = "") -> LabelTrie:
        """Labels as the tokens of whole answers, or of the rest of an answer that begins with `lead`."""

    def fits(self, rows: Sequence[Rendered], *, task: str = "reference answers") -> list[AnswerFit]:
        """How well the model foresees given answers, the supervised tokens of each row."""

    def close(self) -> None:
        """End what computes; it is started again when it is needed."""


def as_model(target: Target) -> ModelTarget | None:
    """The target, where it is a model on this machine."""
    return cast(ModelTarget, target) if target.kind in ("run", "adapter", "model") else None


@dataclass(frozen=True)
class EngineKind:
    """An engine for models on this machine, to measure them and to serve them; `targets.ENGINES` lists all.

    Args:
        name: `engine=NAME` of `serve`.
        claims: whether a name is for this engine, where none is named.
        target: a name, its base (empty: as it says) and its chat template (empty: its own) as a target.
        template: tokenizer and chat template of a base, which is not loaded.
        serving: the base and its adapters as an engine that serves.
    """

    name: str
    claims: Callable[[str], bool]
    target: Callable[[str, str, str], ModelTarget]
    template: Callable[[str], Template]
    serving: Callable[[Served, Sequence[Served], EngineSettings], ServingEngine]


@dataclass(frozen=True)
class TextTarget:
    """A target whose answers are texts, under the name that the user gave it."""

    name: str

    no_scores: ClassVar[tuple[str, str]]  # why labels can't be scored, and what to do instead

    def load(self) -> None:
        """Nothing: it is ready."""

    def complete(self, requests: Sequence[Request], *, task: str = "asking") -> Iterator[Completion]:
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
        task: str = "scoring labels",
    ) -> Iterator[Completion]:
        """Not possible."""
        why, instead = self.no_scores
        raise UserError(why, where=self.name, next_step=instead)


async def complete(engine: ServingEngine, request: Request) -> Completion:
    """The whole answer to one request.

    Raises:
        UserError: the engine ended before the answer.
    """
    async for update in engine.stream(request):
        if update.completion is not None:
            return update.completion
    raise UserError("The engine gave no answer", where=engine.name, next_step="start it again")


def can_give_way(engine: ServingEngine) -> bool:
    """Whether it computes requests with `gives_way` in what others leave idle; else whoever asks sees to it."""
    return bool(getattr(engine, "gives_way", False))


def named_adapter(request: Request) -> str:
    """The adapter that a request names; the base where it names none."""
    return BASE if request.adapter == ATTACHED else request.adapter


def unknown_adapter(adapter: str, known: Mapping[str, AdapterFacts]) -> str:
    """Why an adapter can't be asked; empty where it can. A request must never be answered by the base in its place."""
    if adapter == BASE or adapter in known:
        return ""
    return f"no_adapter: no adapter {adapter[:16]!r} is loaded; loaded: {', '.join(k[:16] for k in known) or 'none'}"


def with_template(template: Template, source: str) -> Template:
    """A tokenizer with another chat template in place of its own; empty: its own."""
    return template if not source or source == plain_source(template.source) else replace(template, source=source)


def rendered(
    template: Template, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()
) -> Sequence[int]:  # fmt: skip
    """Token ids of a conversation up to the place of the answer.

    Raises:
        UserError: the template refuses it.
    """
    try:
        return template.prompt_ids(list(messages), list(map(dict, tools)))
    except TemplateError as error:
        raise UserError(
            f"The chat template can't render this conversation: {error}", where="messages",
            next_step="see what the model's chat template accepts",
        ) from None  # fmt: skip
