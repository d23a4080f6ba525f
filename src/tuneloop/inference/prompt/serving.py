"""Prompts behind an engine that serves: like adapters, by hash, so aliases, experiments and the log take them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from tuneloop.inference.prompt.turns import KeptPrompt, open_prompt
from tuneloop.inference.protocol import AdapterFacts, EngineKind, EngineSettings, Served, ServingEngine
from tuneloop.inference.request import Request, Update, refused
from tuneloop.models.adapters import BASE
from tuneloop.records.prompt import prompt_folder
from tuneloop.records.rows import Message

METHOD = "prompt"  # of `AdapterFacts`, where an adapter has its training method
NEEDS_TURNS = "no_prompt: a prompt with examples stands around turns, and this request continues a text"


def engine_of(kind: EngineKind, base: Served, sources: Sequence[Served], settings: EngineSettings) -> ServingEngine:
    """The engine of a base with adapters and prompts on it; nothing is loaded yet."""
    adapters = [served for served in sources if not prompt_folder(served.source)]
    if len(adapters) < len(sources):
        settings = replace(settings, merge=False)  # the base answers with prompts: it must be there
    return with_prompts(kind.serving(base, adapters, settings), sources)


def with_prompts(engine: ServingEngine, sources: Sequence[Served]) -> ServingEngine:
    """An engine of a base with the prompts among sources; itself where there are none."""
    prompts = [open_prompt(served.source) for served in sources if prompt_folder(served.source)]
    return PromptedEngine(engine, prompts) if prompts else engine


@dataclass
class PromptedEngine:
    """See `ServingEngine`: one with prompts, which it serves like adapters: the base answers, with these around it."""

    engine: ServingEngine
    prompts: Sequence[KeptPrompt]
    _by_hash: dict[str, KeptPrompt] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._by_hash = {prompt.hash: prompt for prompt in self.prompts}

    def __getattr__(self, name: str) -> Any:
        """What one engine has and others have not."""
        return getattr(self.__dict__["engine"], name)

    @property
    def name(self) -> str:
        """What computes."""
        return self.engine.name

    @property
    def base(self) -> str:
        """The base model."""
        return self.engine.base

    @property
    def context(self) -> int:
        """Tokens of a prompt, its examples included, with its answer."""
        return self.engine.context

    @property
    def slots(self) -> int:
        """Requests that are computed at the same time."""
        return self.engine.slots

    @property
    def gives_way(self) -> bool:
        """See `ServingEngine`."""
        return self.engine.gives_way

    @property
    def adapters(self) -> Mapping[str, AdapterFacts]:
        """What is loaded, the prompts included."""
        facts = {prompt.hash: AdapterFacts(prompt.hash, prompt.name, METHOD) for prompt in self.prompts}
        return {**self.engine.adapters, **facts}

    def renders(self, adapter: str) -> bool:
        """Whether prompts become tokens here."""
        return self.engine.renders(self._under(adapter))

    async def start(self) -> None:
        """Load everything."""
        await self.engine.start()
        for prompt in self.prompts:
            await asyncio.to_thread(prompt.load)

    async def healthy(self) -> bool:
        """Whether it can answer now."""
        return await self.engine.healthy()

    async def stream(self, request: Request) -> AsyncIterator[Update]:
        """An answer as it is written."""
        prompt = self._by_hash.get(request.named_adapter)
        if prompt is not None and request.continues is not None:
            yield Update(completion=refused(request, NEEDS_TURNS, self.name))
            return
        if prompt is not None:
            (asked,) = await asyncio.to_thread(prompt.around, [request])
            request = replace(asked, adapter=BASE)
        async with aclosing(self.engine.stream(request)) as updates:  # type: ignore[type-var]
            async for update in updates:
                if prompt is not None and update.completion is not None:
                    update = replace(update, completion=replace(update.completion, adapter=prompt.hash))
                yield update

    async def tokenize(self, text: str, *, adapter: str = BASE) -> Sequence[int]:
        """Token ids of plain text."""
        return await self.engine.tokenize(text, adapter=self._under(adapter))

    async def render(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), *, adapter: str = BASE
    ) -> Sequence[int]:
        """Token ids of a conversation with the prompt around it."""
        if (prompt := self._by_hash.get(adapter)) is not None:
            (messages,) = await asyncio.to_thread(prompt.turns, [messages])
        return await self.engine.render(messages, tools, adapter=self._under(adapter))

    async def stop(self) -> None:
        """End it."""
        await self.engine.stop()

    def _under(self, adapter: str) -> str:
        return BASE if adapter in self._by_hash else adapter
