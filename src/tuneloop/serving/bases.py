"""Several base models as one engine: the server's own, and those that candidates of experiments stand on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import cast

from tuneloop.inference.protocol import AdapterFacts, ServingEngine, can_give_way, named_adapter
from tuneloop.inference.request import Request, Update
from tuneloop.models.adapters import BASE
from tuneloop.records.rows import Message


class SeveralBases:
    """See `ServingEngine`: an engine for each base. Requests name a further base by its hash, as they do adapters.

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
        return all(can_give_way(engine) for engine in self._engines())

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
        adapter = named_adapter(request)
        engine, name = self._place(adapter)
        stream = cast("AsyncGenerator[Update, None]", engine.stream(replace(request, adapter=name)))
        async with aclosing(stream) as updates:
            async for update in updates:
                end = update.completion
                yield update if end is None else replace(update, completion=replace(end, adapter=adapter))
