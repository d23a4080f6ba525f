"""Our own engine behind the serving protocol: one model with any number of adapters, computed in a separate thread.

The thread has the model for itself: what the event loop wants (a request, an end to one) is put into a queue that it
empties between two steps, and what became known in a step goes back in one call. So the loop never waits for a forward
pass. Choices are scored by the tree of labels, those that wait together in one pass.

Engines of one process that serve the same base share it (`models/adapters/shared.py`): while one takes the place of
another, memory holds one base, and the adapters of both.
"""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from tuneloop.core.errors import UserError
from tuneloop.core.http.timeouts import STOP_WITHIN
from tuneloop.core.threads import use_threads
from tuneloop.core.ui import in_this_context
from tuneloop.inference.grammar import Grammars, compile_problem
from tuneloop.inference.labels import LabelTrie
from tuneloop.inference.local.engine import Engine, Ticket
from tuneloop.inference.local.scoring import choose_for
from tuneloop.inference.local.target import open_local
from tuneloop.inference.protocol import (
    AdapterFacts,
    EngineKind,
    EngineSettings,
    RenderingEngine,
    Served,
    unknown_adapter,
)
from tuneloop.inference.request import Request, Update, refused
from tuneloop.models import Model, load_model, trained_folder
from tuneloop.models.adapters import BASE, give_back, merge_adapter, shared_adapter, shared_model
from tuneloop.models.chat import load_template, with_template
from tuneloop.models.files import resolve
from tuneloop.models.methods import method_of_folder
from tuneloop.models.nn import batch_invariant, need_batch_invariance
from tuneloop.records.completion import ENGINE, Completion

MOST_CHOICES = 16  # requests with choices that are scored in one pass, so that written answers wait for few
BACKGROUND_CHOICES = 2  # of those that yield
TOKENS = 24576  # places of prompts and longest answers in all batches, which bounds the memory of keys and values


@dataclass(eq=False)
class _Job:
    request: Request
    deliver: Callable[[Update], None]
    ticket: Ticket | None = None
    dropped: bool = False


@dataclass
class _Inbox:
    changed: threading.Condition = field(default_factory=threading.Condition)
    new: deque[_Job] = field(default_factory=deque)
    dropped: deque[_Job] = field(default_factory=deque)
    over: bool = False

    def end(self) -> None:
        with self.changed:
            self.over = True
            self.changed.notify()


class LocalEngine(RenderingEngine):
    """See `ServingEngine`.

    Args:
        base: a model's name or folder; of a run that trained all weights its `model` folder.
        adapters: on top of it.
        settings: its slots, its deadline, whether a single adapter is merged, and whether answers are deterministic.
    """

    gives_way = True

    def __init__(
        self, base: Served, adapters: Sequence[Served] = (), settings: EngineSettings = EngineSettings(slots=64)
    ) -> None:
        super().__init__(ENGINE, base, adapters, settings.slots)
        self.merged = settings.merge and len(adapters) == 1  # the base itself is not served then
        self._deterministic, self._start_within = settings.deterministic, settings.start_within
        self._inbox = _Inbox()
        self._model: Model | None = None
        self._thread: threading.Thread | None = None
        self._failure = ""
        self._grammars: Grammars | None = None

    @property
    def context(self) -> int:
        """Tokens that the model reads, at most as many as there are places."""
        if self._model is None:
            raise UserError("The engine is not started", where=self.base, next_step="await engine.start()")
        return min(self._model.context, TOKENS)

    # -- start and stop

    async def start(self) -> None:
        """Load the model and its adapters, and begin to answer.

        Raises:
            UserError: one is missing, damaged or of another base; or it takes longer than allowed.
        """
        if self._thread is not None:
            return
        loop = asyncio.get_running_loop()
        loading: asyncio.Future[None] = loop.create_future()
        self._inbox, self._failure = _Inbox(), ""
        work = in_this_context(self._run)
        thread = threading.Thread(target=work, args=(loop, loading, self._inbox), name="engine", daemon=True)
        thread.start()
        try:
            await asyncio.wait_for(asyncio.shield(loading), self._start_within)
        except TimeoutError:
            self._inbox.end()  # the thread ends when loading does
            loading.add_done_callback(lambda late: late.cancelled() or late.exception())
            message, step = f"The model was not loaded within {self._start_within:g} s", "allow more time"
            raise UserError(message, where=self.base, next_step=f"{step}, or take a smaller model") from None
        self._thread = thread

    async def healthy(self) -> bool:
        """Whether the thread is at work."""
        return self._thread is not None and self._thread.is_alive() and not self._failure

    @property
    def ended(self) -> bool:
        """Whether it has failed after its start, so that no request will be answered until it is started again."""
        return self._thread is not None and (bool(self._failure) or not self._thread.is_alive())

    async def stop(self) -> None:
        """End the thread; what was being answered is cancelled. The memory of what no other engine serves is freed."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._inbox.end()
        await asyncio.to_thread(thread.join, STOP_WITHIN)
        if thread.is_alive():  # Python ends daemon threads in the middle of torch's code, which aborts the process
            atexit.register(thread.join)
        self._model, self.adapters, self._templates = None, {}, {}

    # -- answers

    async def _prepared(self, request: Request) -> Request | Completion:
        reason = await compile_problem(request.schema) if request.schema is not None else ""
        return refused(request, reason) if reason else await asyncio.to_thread(self._readied, request)

    def _readied(self, request: Request) -> Request | Completion:
        """A request with token ids, or why it can't be answered; the vocabulary is read here, where nothing waits."""
        if request.schema is not None and self._grammars is not None:
            constraint = self._grammars.constraint(request.schema)
            if isinstance(constraint, str):
                return refused(request, constraint)
        reason = unknown_adapter(request.adapter, self.adapters)
        if self.merged and request.adapter == BASE:
            reason = "no_adapter: the adapter is merged into the base, which is not served on its own"
        return refused(request, reason) if reason else self._with_ids(request)

    async def _answer(self, request: Request) -> AsyncGenerator[Update, None]:
        loop, updates = asyncio.get_running_loop(), asyncio.Queue[Update]()

        def deliver(update: Update) -> None:
            if not loop.is_closed():  # else no one waits any longer
                loop.call_soon_threadsafe(updates.put_nowait, update)

        job, inbox, over = _Job(request, deliver), self._inbox, False
        with inbox.changed:
            ended = inbox.over or bool(self._failure) or self._thread is None
            if not ended:
                inbox.new.append(job)
                inbox.changed.notify()
        if ended:
            yield Update(completion=refused(request, f"engine: {self._failure or 'the engine is stopped'}"))
            return
        try:
            while not over:
                update = await updates.get()
                over = update.completion is not None
                yield update
        finally:
            if not over:
                with inbox.changed:
                    job.dropped = True
                    inbox.dropped.append(job)
                    inbox.changed.notify()

    # -- in the thread

    def _run(self, loop: asyncio.AbstractEventLoop, loading: asyncio.Future[None], inbox: _Inbox) -> None:
        with ExitStack() as borrowed, batch_invariant(self._deterministic):
            try:
                model = self._load(borrowed)
            except Exception as error:
                _settle(loop, loading, error)
                return
            engine = Engine(model, rows=self.slots, tokens=TOKENS)
            self._grammars = engine.grammars
            self._grammars.warm()
            _settle(loop, loading, None)
            work = _Work(engine, inbox, lambda request: self._tree(request)[0])
            try:
                work.until_over()
            except Exception as error:  # no request may wait for ever, and the next one gets the reason
                self._failure = f"the engine failed ({type(error).__name__}: {error})"
            inbox.end()
            work.cancel_all(self._failure)

    def _load(self, borrowed: ExitStack) -> Model:
        """The model with its adapters, which `borrowed` gives back; one with a merged adapter is not shared."""
        use_threads()
        names: list[str] = []
        if self.merged:
            model = load_model(self._base.source)
        else:
            model = shared_model(self._base.source)
            borrowed.callback(give_back, model, names)
        if self._deterministic:
            need_batch_invariance(model)
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
    """What the thread does: takes requests in, steps the engine, scores choices, delivers what became known."""

    def __init__(self, engine: Engine, inbox: _Inbox, tree: Callable[[Request], LabelTrie]) -> None:
        self.engine, self.inbox, self.tree = engine, inbox, tree
        self.writing: dict[int, _Job] = {}  # by the identity of the ticket
        self.choosing: deque[_Job] = deque()

    def until_over(self) -> None:
        """Answer until the inbox says that it is over."""
        while self._take_in():
            self._choose()
            if self.writing:
                for ticket in self.engine.step():
                    self._deliver(ticket)

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
        for job in new:
            if job.request.choices:
                self.choosing.append(job)
            else:
                job.ticket = self.engine.submit(job.request, stream=True)
                self.writing[id(job.ticket)] = job
                self._deliver(job.ticket)  # of a refused one
        for job in dropped:
            if job.ticket is not None and self.writing.pop(id(job.ticket), None) is not None:
                self.engine.cancel(job.ticket)
        return True

    def _deliver(self, ticket: Ticket) -> None:
        job = self.writing.get(id(ticket))
        while job is not None and ticket.updates:
            update = ticket.updates.popleft()
            if update.text or update.completion is not None:
                job.deliver(update)
            if update.completion is not None:
                del self.writing[id(ticket)]

    def _choose(self) -> None:
        """Score the labels of some requests that wait: those with the same adapter and labels as the first."""
        waiting = [job for job in self.choosing if not job.dropped]
        urgent = [job for job in waiting if not job.request.gives_way]
        some: list[_Job] = []
        if urgent or (waiting and not self.engine.urgent):
            first, most = (urgent or waiting)[0].request, MOST_CHOICES if urgent else BACKGROUND_CHOICES
            key = first.adapter, first.choices, first.gives_way
            some = [a for a in waiting if (a.request.adapter, a.request.choices, a.request.gives_way) == key][:most]
        self.choosing = deque(job for job in waiting if job not in some)
        if some:
            answers = choose_for(self.engine.model, [job.request for job in some], self.tree(some[0].request))
            for job, answer in zip(some, answers, strict=True):
                job.deliver(Update(answer.text, answer))

    def cancel_all(self, failure: str) -> None:
        """End all that is under way.

        Args:
            failure: why, where the engine failed; empty: it was stopped.
        """
        with self.inbox.changed:
            left = [*self.writing.values(), *self.choosing, *self.inbox.new]
            self.inbox.new.clear()
        for job in left:
            if failure:
                completion = refused(job.request, f"engine: {failure}")
            elif job.ticket is not None:
                completion = self.engine.cancel(job.ticket)
            else:
                completion = replace(refused(job.request, ""), finish="cancelled")
            job.deliver(Update(completion=completion))


KIND = EngineKind(
    ENGINE,
    claims=lambda name: True,
    target=lambda name, base, template: open_local(name, base=base, template=template),
    template=lambda base: load_template(resolve(base)),
    serving=LocalEngine,
)
