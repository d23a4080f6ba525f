"""Our own engine behind the serving protocol: one model with any number of adapters, computed in a thread of its own.

The thread has the model for itself: what the event loop wants (a request, an end to one) is put into a queue that it
empties between two steps, and what became known in a step goes back in one call. So the loop never waits for a forward
pass. Choices are scored by the tree of labels, those that wait together in one pass.

Engines of one process that serve the same base share it (`models.shared`): while one takes the place of another, memory holds
one base, and the adapters of both.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.core.errors import UserError
from tuneloop.core.threads import use_threads
from tuneloop.core.ui import in_this_context
from tuneloop.inference.answer import (
    AdapterFacts,
    EngineKind,
    Served,
    named_adapter,
    rendered,
    unknown_adapter,
    with_template,
)
from tuneloop.inference.local.engine import Engine, Update
from tuneloop.inference.local.grammar import Grammars, compile_problem
from tuneloop.inference.local.scoring import LabelTrie, choose_for
from tuneloop.inference.local.target import open_local
from tuneloop.inference.prompt import LabelTrees, refused, with_ids
from tuneloop.inference.request import Request
from tuneloop.inference.timeouts import START_WITHIN, STOP_WITHIN
from tuneloop.models.adapters import BASE
from tuneloop.models.load import Model, load_model
from tuneloop.models.methods import method_of_folder
from tuneloop.models.names import resolve
from tuneloop.models.shared import give_back, merge_adapter, shared_adapter, shared_model
from tuneloop.models.template import load_template
from tuneloop.models.trained import trained_folder
from tuneloop.records.completion import ENGINE, Completion
from tuneloop.records.rows import Message

if TYPE_CHECKING:
    from tuneloop.inference.local.engine import Ticket
    from tuneloop.models.template import Template

MOST_CHOICES = (
    16  # requests with choices that are scored in one pass, so that those who are being written to wait for few
)
GIVING_CHOICES = 2  # of those that give way


@dataclass(eq=False)
class _Asked:
    """A request on its way: where its updates go, and whether anybody still waits."""

    request: Request
    deliver: Callable[[Update], None]
    ticket: Ticket | None = None
    dropped: bool = False


@dataclass
class _Inbox:
    """What the event loop has put before the thread."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    new: deque[_Asked] = field(default_factory=deque)
    dropped: deque[_Asked] = field(default_factory=deque)
    over: bool = False


class LocalEngine:
    """See `ServingEngine`.

    Args:
        base: a model's name or folder; of a run that trained all weights its `model` folder.
        adapters: on top of it.
        slots: requests that are computed together.
        tokens: places of prompts and longest answers in all batches, which bounds the memory of keys and values.
        start_within: seconds to load everything.
        merge: write the adapter into the base's weights where there is just one; the base itself is not served then.
    """

    def __init__(
        self,
        base: Served,
        adapters: Sequence[Served] = (),
        *,
        slots: int = 64,
        tokens: int = 24576,
        start_within: float = START_WITHIN,
        merge: bool = False,
    ) -> None:
        self.name, self.base, self.slots, self.gives_way = ENGINE, base.source, slots, True
        self.merged = merge and len(adapters) == 1  # the base itself is not served then
        self.adapters: Mapping[str, AdapterFacts] = {}
        self._base, self._served, self._tokens, self._start_within = base, tuple(adapters), tokens, start_within
        self._templates: dict[str, Template] = {}
        self._trees = LabelTrees()
        self._inbox = _Inbox()
        self._model: Model | None = None
        self._thread: threading.Thread | None = None
        self._failure = ""
        self._grammars: Grammars | None = None

    @property
    def context(self) -> int:
        """Tokens that the model reads, at most as many as there are places."""
        return min(self._loaded().context, self._tokens)

    def _loaded(self) -> Model:
        if self._model is None:
            raise UserError("The engine is not started", where=self.base, next_step="await engine.start()")
        return self._model

    # -- start and stop

    async def start(self) -> None:
        """Load the model and its adapters, and begin to answer.

        Raises:
            UserError: one is missing, damaged or of another base; or it takes longer than allowed.
        """
        if self._thread is not None:
            return
        loading = asyncio.get_running_loop().create_future()
        loop = asyncio.get_running_loop()
        self._inbox, self._failure = _Inbox(), ""
        thread = threading.Thread(
            target=in_this_context(self._run), args=(loop, loading, self._inbox), name="engine", daemon=True
        )
        thread.start()
        try:
            await asyncio.wait_for(asyncio.shield(loading), self._start_within)
        except TimeoutError:
            self._tell_over()  # the thread ends when loading does
            loading.add_done_callback(lambda late: late.cancelled() or late.exception())
            raise UserError(
                f"The model was not loaded within {self._start_within:g} s", where=self.base,
                next_step="allow more time, or take a smaller model",
            ) from None  # fmt: skip
        self._thread = thread

    async def healthy(self) -> bool:
        """Whether the thread is at work."""
        return self._thread is not None and self._thread.is_alive() and not self._failure

    @property
    def ended(self) -> bool:
        """Whether it has failed after its start, so that no request will be answered until it is started anew."""
        return self._thread is not None and (bool(self._failure) or not self._thread.is_alive())

    async def stop(self) -> None:
        """End the thread; what was being answered is cancelled. The memory of what no other engine serves is given back."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._tell_over()
        await asyncio.to_thread(thread.join, STOP_WITHIN)
        self._model, self.adapters, self._templates = None, {}, {}

    def _tell_over(self) -> None:
        with self._inbox.changed:
            self._inbox.over = True
            self._inbox.changed.notify()

    # -- asking

    async def tokenize(self, text: str) -> Sequence[int]:
        """Token ids of plain text."""
        return await asyncio.to_thread(self._loaded().template.encode, text)

    async def render(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), *, adapter: str = BASE
    ) -> Sequence[int]:
        """Token ids of a conversation; see `ServingEngine.render`."""
        self._loaded()
        if why := unknown_adapter(adapter, self.adapters):
            raise UserError(why.partition(": ")[2], where="adapter", next_step="name one that is loaded, or base")
        return await asyncio.to_thread(rendered, self._templates[adapter], messages, tools)

    async def stream(self, request: Request) -> AsyncIterator[Update]:
        """An answer as it is written; see `ServingEngine.stream`."""
        request = replace(request, adapter=named_adapter(request))
        why = await compile_problem(request.schema) if request.schema is not None else ""
        made = refused(request, why) if why else await asyncio.to_thread(self._prepared, request)
        if isinstance(made, Completion):
            yield Update(completion=made)
            return
        loop, updates = asyncio.get_running_loop(), asyncio.Queue[Update]()
        asked = _Asked(made, lambda update: _post(loop, updates, update))
        if why := self._put(asked):
            yield Update(completion=refused(made, why))
            return
        over = False
        try:
            while not over:
                update = await updates.get()
                over = update.completion is not None
                yield update
        finally:
            if not over:
                self._drop(asked)

    def _prepared(self, request: Request) -> Request | Completion:
        """A request with token ids that can be answered, or why it can't."""
        if request.schema is not None and (why := self._schema_problem(request.schema)):
            return refused(request, why)
        if why := unknown_adapter(request.adapter, self.adapters):
            return refused(request, why)
        if self.merged and request.adapter == BASE:
            return refused(request, "no_adapter: the adapter is merged into the base, which is not served by itself")
        template, room = self._templates[request.adapter], 1
        if request.choices:
            room = max(self._tree(request).lengths)
        return with_ids(template, self.context, request, room=room)

    def _schema_problem(self, schema: Mapping[str, Any]) -> str:
        """Why answers can't be held to a schema; reads the vocabulary here, where nobody waits for it."""
        made = self._grammars.constraint(schema) if self._grammars is not None else ""
        return made if isinstance(made, str) else ""

    def _tree(self, request: Request) -> LabelTrie:
        return self._trees.of(self._templates[request.adapter], request.choices)[0]

    def _put(self, asked: _Asked) -> str:
        """Hand a request to the thread; why it can't be, where it is over."""
        with self._inbox.changed:
            if self._inbox.over or self._failure or self._thread is None:
                return f"engine: {self._failure or 'the engine is stopped'}"
            self._inbox.new.append(asked)
            self._inbox.changed.notify()
        return ""

    def _drop(self, asked: _Asked) -> None:
        with self._inbox.changed:
            asked.dropped = True
            self._inbox.dropped.append(asked)
            self._inbox.changed.notify()

    # -- in the thread

    def _run(self, loop: asyncio.AbstractEventLoop, loading: asyncio.Future[None], inbox: _Inbox) -> None:
        """Load, then answer until it is over."""
        with ExitStack() as borrowed:
            try:
                model = self._load(borrowed)
            except Exception as error:
                _settle(loop, loading, error)
                return
            engine = Engine(model, rows=self.slots, tokens=self._tokens)
            self._grammars = engine.grammars
            _settle(loop, loading, None)
            work = _Work(engine, inbox, self._tree)
            try:
                work.until_over()
            except Exception as error:  # no request may wait for ever, and the next one hears why
                self._failure = f"the engine failed ({type(error).__name__}: {error})"
            with inbox.changed:
                inbox.over = True
            work.cancel_all(self._failure)

    def _load(self, borrowed: ExitStack) -> Model:
        """The model with its adapters, which `borrowed` gives back; an engine that merges its adapter has a model of its own."""
        use_threads()
        names: list[str] = []
        if self.merged:
            model = load_model(self._base.source)
        else:
            model = shared_model(self._base.source)
            borrowed.callback(give_back, model, names)
        templates = {BASE: with_template(model.template, self._base.template)}
        adapters = {}
        for served in self._served:
            folder = trained_folder(Path(served.source).expanduser())
            name = merge_adapter(model, folder) if self.merged else shared_adapter(model, folder)
            names.append(name)
            method = method_of_folder(folder)
            adapters[name] = AdapterFacts(name, served.source, method.name if method is not None else "")
            templates[name] = with_template(model.template, served.template)
        self.adapters, self._templates, self._model = adapters, templates, model
        return model


def _post(loop: asyncio.AbstractEventLoop, updates: asyncio.Queue[Update], update: Update) -> None:
    """Put an update where the event loop finds it; a loop that is closed has nobody who waits."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(updates.put_nowait, update)


def _settle(loop: asyncio.AbstractEventLoop, loading: asyncio.Future[None], error: Exception | None) -> None:
    def settle() -> None:
        if loading.done():
            return
        if error is None:
            loading.set_result(None)
        else:
            loading.set_exception(error)

    if not loop.is_closed():
        loop.call_soon_threadsafe(settle)


class _Work:
    """What the thread does: takes requests in, steps the engine, scores choices, tells what became known."""

    def __init__(self, engine: Engine, inbox: _Inbox, tree: Callable[[Request], LabelTrie]) -> None:
        self.engine, self.inbox, self.tree = engine, inbox, tree
        self.writing: dict[int, _Asked] = {}  # by the identity of the ticket
        self.choosing: deque[_Asked] = deque()

    def until_over(self) -> None:
        """Answer until the inbox says that it is over."""
        while self._take_in():
            self._choose()
            if self.writing:
                for ticket in self.engine.step():
                    self._tell(ticket)

    def _take_in(self) -> bool:
        """Wait for something to do and take all that is there; False when it is over."""
        inbox = self.inbox
        with inbox.changed:
            while not (inbox.over or inbox.new or inbox.dropped or self.writing or self.choosing):
                inbox.changed.wait()
            if inbox.over:
                return False
            new, dropped = list(inbox.new), list(inbox.dropped)
            inbox.new.clear()
            inbox.dropped.clear()
        for asked in new:
            if asked.request.choices:
                self.choosing.append(asked)
            else:
                asked.ticket = self.engine.submit(asked.request, stream=True)
                self.writing[id(asked.ticket)] = asked
                self._tell(asked.ticket)  # of a refused one
        for asked in dropped:
            if asked.ticket is not None and self.writing.pop(id(asked.ticket), None) is not None:
                self.engine.cancel(asked.ticket)
        return True

    def _tell(self, ticket: Ticket) -> None:
        asked = self.writing.get(id(ticket))
        while asked is not None and ticket.updates:
            update = ticket.updates.popleft()
            if update.text or update.completion is not None:
                asked.deliver(update)
            if update.completion is not None:
                del self.writing[id(ticket)]

    def _choose(self) -> None:
        """Score the labels of some requests that wait: those with the same adapter and labels as the first."""
        waiting = [asked for asked in self.choosing if not asked.dropped]
        urgent = [asked for asked in waiting if not asked.request.gives_way]
        some: list[_Asked] = []
        if urgent or (waiting and not self.engine.urgent):
            first, most = (urgent or waiting)[0].request, MOST_CHOICES if urgent else GIVING_CHOICES
            key = first.adapter, first.choices, first.gives_way
            some = [a for a in waiting if (a.request.adapter, a.request.choices, a.request.gives_way) == key][:most]
        self.choosing = deque(asked for asked in waiting if asked not in some)
        if some:
            found = choose_for(self.engine.model, [a.request for a in some], self.tree(some[0].request))
            for asked, answer in zip(some, found, strict=True):
                asked.deliver(Update(answer.text, answer))

    def cancel_all(self, failure: str) -> None:
        """End all that is under way.

        Args:
            failure: why, where the engine failed; empty: it was stopped.
        """
        with self.inbox.changed:
            left = [*self.writing.values(), *self.choosing, *self.inbox.new]
            self.inbox.new.clear()
        for asked in left:
            if failure:
                completion = refused(asked.request, f"engine: {failure}")
            elif asked.ticket is not None:
                completion = self.engine.cancel(asked.ticket)
            else:
                completion = replace(refused(asked.request, ""), finish="cancelled")
            asked.deliver(Update(completion=completion))


KIND = EngineKind(
    ENGINE,
    claims=lambda name: True,
    target=lambda name, base, template: open_local(name, base=base, template=template),
    template=lambda base: load_template(resolve(base)),
    serving=lambda base, adapters, given: LocalEngine(base, adapters, slots=given.slots, merge=given.merge),
)
