"""Several engines as one: equal ones, of which each request goes where its first token is predicted to come first, and
those of several base models, of which each request goes to that of its adapter.

Of equal ones, an engine that fails or hangs (gives nothing and is not `healthy` in time) is left out at once, and
requests that have got nothing of their answer are sent elsewhere; it comes back once it is healthy and has answered its
canaries.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any, TypeVar, cast

from tuneloop.core.errors import UserError
from tuneloop.core.http.timeouts import START_WITHIN
from tuneloop.core.http.wire import Broken
from tuneloop.core.ui import bound_say
from tuneloop.inference import AdapterFacts, Request, ServingEngine, Update
from tuneloop.models.adapters import BASE
from tuneloop.records.completion import Completion
from tuneloop.records.rows import Message
from tuneloop.serving.admission import ServiceTime, prompt_size

T = TypeVar("T")
BLOCK = 32  # tokens of a prompt that are looked up together
MOST_BLOCKS = 20_000  # of prompts that are remembered for each engine
ENGINE_FAULTS = ("engine:", "busy:")  # words of errors that another engine may not have
HANGS = "it does not answer"

Prove = Callable[[ServingEngine], Awaitable[None]]


@dataclass
class Member:
    """An engine of a pool."""

    engine: ServingEngine
    times: ServiceTime = field(default_factory=ServiceTime)
    active: int = 0  # requests that it is answering
    out: str = ""  # why it is left out; empty: it is in use
    read: OrderedDict[int, None] = field(default_factory=OrderedDict)  # hashes of prompts' beginnings, lately read
    faults: int = 0  # times that it failed
    heard: float = 0.0  # when it gave something last, of the monotonic clock
    waits: set[asyncio.Timeout] = field(default_factory=set)  # for something from it

    async def result(self, work: Awaitable[T]) -> T:
        """What it gives; TimeoutError where it is given up meanwhile."""
        async with asyncio.timeout(None) as wait:
            self.waits.add(wait)
            try:
                value = await work
            finally:
                self.waits.discard(wait)
        self.heard = time.monotonic()
        return value

    def cached(self, blocks: Sequence[int]) -> int:
        """How many tokens at the beginning of a prompt it has read lately: they are in its prefix cache."""
        return BLOCK * sum(1 for _ in takewhile(self.read.__contains__, blocks))

    def remember(self, blocks: Sequence[int]) -> None:
        """Note that it reads a prompt."""
        for block in blocks:
            self.read[block] = None
            self.read.move_to_end(block)
        while len(self.read) > MOST_BLOCKS:
            self.read.popitem(last=False)

    def first_ms(self, tokens: int, blocks: Sequence[int], longest: int) -> tuple[float, float]:
        """Predicted milliseconds to the first token; then, and while nothing is known, by load and what it has read."""
        new = max(tokens - self.cached(blocks), 1)
        waves = self.active // self.engine.slots  # answers that must end before this one begins
        predicted = self.times.first_ms(new, self.active + 1) + waves * self.times.total_ms(new, self.active, longest)
        return predicted, self.active / self.engine.slots + new / max(tokens, 1)


class EnginePool:
    """See `ServingEngine`: several with the same base and adapters; `prove` sends one its canaries, or raises."""

    def __init__(self, engines: Sequence[ServingEngine], prove: Prove, *, every: float = 2.0) -> None:
        self.members = [Member(engine) for engine in engines]
        self._prove, self._say, self._every = prove, bound_say(), every
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def name(self) -> str:
        """The names of all engines."""
        return ", ".join(member.engine.name for member in self.members)

    @property
    def base(self) -> str:
        """The base model, as the first engine names it."""
        return self.members[0].engine.base

    @property
    def context(self) -> int:
        """Tokens that every engine takes."""
        return min(member.engine.context for member in self._active())

    @property
    def slots(self) -> int:
        """Requests that all of them compute at the same time."""
        return sum(member.engine.slots for member in self.members)

    @property
    def gives_way(self) -> bool:
        """Whether all engines compute some requests in what others leave idle."""
        return all(member.engine.gives_way for member in self.members)

    @property
    def adapters(self) -> Mapping[str, AdapterFacts]:
        """What every engine has loaded."""
        first, *others = self._active()
        return {h: facts for h, facts in first.engine.adapters.items() if all(h in o.engine.adapters for o in others)}

    def renders(self, adapter: str) -> bool:
        """Whether prompts become tokens here."""
        return all(member.engine.renders(adapter) for member in self.members)

    def _active(self) -> list[Member]:
        """Engines that are not left out; all of them where none is left, so that errors say why."""
        return [member for member in self.members if not member.out] or self.members

    async def start(self) -> None:
        """Start all engines. Those that don't start are left out until they do; UserError: none starts."""
        started = await asyncio.gather(*(member.engine.start() for member in self.members), return_exceptions=True)
        for member, fault in zip(self.members, started, strict=True):
            if isinstance(fault, UserError):
                self._leave_out(member, fault.what)
            elif isinstance(fault, BaseException):
                raise fault
        if all(member.out for member in self.members):
            raise next(fault for fault in started if isinstance(fault, BaseException))
        self._tasks = [asyncio.create_task(self._look_after(member)) for member in self.members]

    async def prove(self) -> None:
        """Send every engine its canaries; those that fail are left out; UserError: none answers as it should."""
        fault: UserError | None = None
        for member in (member for member in self.members if not member.out):
            try:
                await self._prove(member.engine)
                self._say(f"engine    {member.engine.name} is ready")
            except UserError as error:
                fault = error
                self._leave_out(member, error.what)
        if fault is not None and all(member.out for member in self.members):
            raise fault

    async def healthy(self) -> bool:
        """Whether one of them can answer now."""
        return any(await asyncio.gather(*(member.engine.healthy() for member in self.members if not member.out)))

    async def stop(self) -> None:
        """End all of them."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(member.engine.stop() for member in self.members))

    async def tokenize(self, text: str, *, adapter: str = BASE) -> Sequence[int]:
        """Token ids of plain text, by an engine that works."""
        return await self._first(lambda engine: engine.tokenize(text))

    async def render(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), *, adapter: str = BASE
    ) -> Sequence[int]:
        """Token ids of a conversation; see `ServingEngine.render`."""
        return await self._first(lambda engine: engine.render(messages, tools, adapter=adapter))

    async def _first(self, ask: Callable[[ServingEngine], Awaitable[Sequence[int]]]) -> Sequence[int]:
        fault: Exception | None = None
        for member in self._active():
            try:
                return await member.result(ask(member.engine))
            except UserError:
                raise
            except Exception as error:  # a connection that broke; the next one may answer
                fault = error
                if not isinstance(error, TimeoutError):  # else it is left out already
                    self._leave_out(member, type(error).__name__)
        raise Broken("no engine answers") from fault

    async def stream(self, request: Request) -> AsyncIterator[Update]:
        """An answer, see `ServingEngine.stream`, by another engine where one fails before it wrote anything."""
        blocks = blocks_of(request)
        tried: list[Member] = []
        while True:
            member = self.choose(request, blocks, tried)
            tried.append(member)
            has_begun = False
            async with aclosing(self._counted(member, request, blocks)) as updates:
                async for update in updates:
                    end = update.completion
                    if end is not None and end.finish == "error" and end.error.startswith(ENGINE_FAULTS):
                        if not end.error.startswith("busy:"):
                            self._leave_out(member, end.error.partition(": ")[2])
                        if not has_begun and len(tried) < len(self.members):
                            break
                    has_begun = has_begun or bool(update.text)
                    yield update
                else:
                    return

    async def _counted(self, member: Member, request: Request, blocks: Sequence[int]) -> AsyncGenerator[Update, None]:
        """An engine's answer; what it took teaches the predictions."""
        new = max(prompt_size(request) - member.cached(blocks), 1)
        member.remember(blocks)
        member.active += 1
        began, first, active = time.perf_counter(), 0.0, member.active
        try:
            # Closing what the engine gives cancels the answer in it.
            async with aclosing(cast("AsyncGenerator[Update, None]", member.engine.stream(request))) as updates:
                while (update := await member.result(anext(updates, None))) is not None:
                    first = first or 1000 * (time.perf_counter() - began)
                    end = update.completion
                    if end is not None and end.finished and not request.choices:
                        total = 1000 * (time.perf_counter() - began)
                        member.times.learn(new, active, end.completion_tokens, first, total)
                    yield update
        except TimeoutError:
            yield Update(completion=Completion(finish="error", error=f"engine: {HANGS}"))
        finally:
            member.active -= 1

    def choose(self, request: Request, blocks: Sequence[int], tried: Sequence[Member] = ()) -> Member:
        """The engine that is predicted to give the first token first."""
        left = [member for member in self._active() if member not in tried]
        left = left or [member for member in self.members if member not in tried]
        learned, size = all(member.times.known for member in left), prompt_size(request)

        def wait(member: Member) -> tuple[float, ...]:
            return member.first_ms(size, blocks, request.max_new_tokens)[0 if learned else 1 :]

        return min(left, key=wait)

    def _leave_out(self, member: Member, reason: str) -> None:
        if not member.out:
            member.faults += 1
            self._say(f"engine    {member.engine.name} is left out: {reason}")
        member.out = member.out or reason or "it failed"
        member.read.clear()

    async def _look_after(self, member: Member) -> None:
        """Leave an engine out when it hangs, and bring back one that is left out."""
        while True:
            await asyncio.sleep(self._every)
            looked = time.monotonic()
            if not member.out and looked - member.heard < self._every:
                continue
            with contextlib.suppress(UserError, OSError):
                if member.out:
                    await member.engine.start()  # does nothing where it is started
                if not await member.engine.healthy():
                    if member.heard < looked:
                        self._leave_out(member, HANGS)
                        waits, member.waits = member.waits, set()
                        for wait in waits:
                            wait.reschedule(asyncio.get_running_loop().time())
                elif member.out:
                    async with asyncio.timeout(START_WITHIN):  # it may hang again
                        await self._prove(member.engine)
                    member.out, member.times = "", ServiceTime()
                    self._say(f"engine    {member.engine.name} is back")


def blocks_of(request: Request) -> list[int]:
    """Hashes of the beginnings of a prompt, one for each whole block; adapters have caches of their own."""
    texts = (str(turn.get("content") or "") for turn in request.messages)
    parts: Sequence[Any] = request.ids or [word for text in texts for word in text.split()]
    hashes = [hash(request.adapter)]
    for i in range(0, len(parts) - BLOCK + 1, BLOCK):
        hashes.append(hash((hashes[-1], *parts[i : i + BLOCK])))
    return hashes[1:]


class SeveralBases:
    """See `ServingEngine`: an engine for each base, the server's own and those that candidates of experiments stand on.

    Requests name a further base by its hash, as they do adapters.

    Args:
        first: the engine of the server's own base.
        others: further engines, by the hash of the weights of their bases.
    """

    def __init__(self, first: ServingEngine, others: Mapping[str, ServingEngine]) -> None:
        self.first, self.others = first, dict(others)

    @property
    def name(self) -> str:
        """What computes, once where it is the same for all."""
        return ", ".join(dict.fromkeys(engine.name for engine in self._engines()))

    @property
    def base(self) -> str:
        """The server's own base."""
        return self.first.base

    @property
    def context(self) -> int:
        """Tokens that every engine takes."""
        return min(engine.context for engine in self._engines())

    @property
    def slots(self) -> int:
        """Requests that the first engine computes at the same time; a server admits as many as without the others."""
        return self.first.slots

    @property
    def gives_way(self) -> bool:
        """Whether all engines compute some requests in what others leave idle."""
        return all(engine.gives_way for engine in self._engines())

    @property
    def merged(self) -> bool:
        """Whether the server's own base has its adapter in its weights."""
        return bool(getattr(self.first, "merged", False))

    @property
    def ended(self) -> bool:
        """Whether an engine has ended unexpectedly."""
        return any(getattr(engine, "ended", False) for engine in self._engines())

    @property
    def adapters(self) -> Mapping[str, AdapterFacts]:
        """What is loaded besides the server's own base: adapters, and the other bases with theirs."""
        return {name: facts for name, (_, _, facts) in self._places().items()}

    def _engines(self) -> list[ServingEngine]:
        return [self.first, *self.others.values()]

    def _places(self) -> dict[str, tuple[ServingEngine, str, AdapterFacts]]:
        """Where each name leads: an engine and the name that it has there. An adapter on two bases has two names."""
        places = {name: (self.first, name, facts) for name, facts in self.first.adapters.items()}
        for base, engine in self.others.items():
            places[base] = engine, BASE, AdapterFacts(base, engine.base)
            for inner, facts in engine.adapters.items():
                name = f"{inner}-{base[:16]}" if inner in places else inner
                places[name] = engine, inner, replace(facts, hash=name)
        return places

    def _place(self, adapter: str) -> tuple[ServingEngine, str]:
        """The engine of an adapter, with its name there; what is not known leads to the first one, which says so."""
        engine, name, _ = self._places().get(adapter, (self.first, adapter, None))
        return engine, name

    def engine_of(self, adapter: str) -> ServingEngine:
        """The engine that answers for an adapter."""
        return self._place(adapter)[0]

    def renders(self, adapter: str) -> bool:
        """Whether the adapter's engine makes tokens of its prompts."""
        return self.engine_of(adapter).renders(adapter)

    async def start(self) -> None:
        """Start one after the other, the server's own first; UserError: one can't be started, and none is then."""
        try:
            for engine in self._engines():
                await engine.start()
        except BaseException:
            await self.stop()
            raise

    async def healthy(self) -> bool:
        """Whether the server's own base can answer: it does so in place of a candidate that can't."""
        return await self.first.healthy()

    async def stop(self) -> None:
        """End all of them."""
        await asyncio.gather(*(engine.stop() for engine in self._engines()))

    async def tokenize(self, text: str, *, adapter: str = BASE) -> Sequence[int]:
        """Token ids of plain text, by the tokenizer of the adapter's base."""
        return await self.engine_of(adapter).tokenize(text)

    async def render(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, object]] = (), *, adapter: str = BASE
    ) -> Sequence[int]:
        """Token ids of a conversation; see `ServingEngine.render`."""
        engine, name = self._place(adapter)
        return await engine.render(messages, tools, adapter=name)

    async def stream(self, request: Request) -> AsyncIterator[Update]:
        """An answer by the engine of the request's adapter; see `ServingEngine.stream`."""
        adapter = request.named_adapter
        engine, name = self._place(adapter)
        stream = cast("AsyncGenerator[Update, None]", engine.stream(replace(request, adapter=name)))
        async with aclosing(stream) as updates:
            async for update in updates:
                end = update.completion
                yield update if end is None else replace(update, completion=replace(end, adapter=adapter))
