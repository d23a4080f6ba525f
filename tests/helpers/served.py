"""Engines over the tiny model with two adapters, as files that each kind of engine reads."""

from __future__ import annotations

import asyncio
import atexit
import functools
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters import write_adapter
from real_vllm import RealVllm

from patience import HANG
from tuneloop.inference.protocol import Served, ServingEngine


@dataclass(frozen=True)
class Files:
    """A base and its adapters, in PEFT's layout and as GGUF files."""

    base: Path
    adapters: tuple[Path, ...]
    gguf: Path
    loras: tuple[Path, ...]


def write_files(tiny_llama: Path, folder: Path, count: int = 2) -> Files:
    """Write adapters of the tiny model in all layouts."""
    from tuneloop.models.chat.template import load_template
    from tuneloop.release.gguf.convert import About, write_gguf
    from tuneloop.release.gguf.lora import write_gguf_lora
    from tuneloop.release.tuned_weights import open_tuned

    gguf = folder / "base.gguf"
    write_gguf(open_tuned("", tiny_llama), load_template(tiny_llama), gguf, "f32", About("base"))
    adapters = tuple(write_adapter(tiny_llama, folder / f"adapter-{seed}", seed) for seed in range(1, count + 1))
    loras = tuple(adapter.with_suffix(".gguf") for adapter in adapters)
    for adapter, lora in zip(adapters, loras, strict=True):
        write_gguf_lora(tiny_llama, adapter, lora, "f32", adapter.name)
    return Files(tiny_llama, adapters, gguf, loras)


def local(files: Files, which: tuple[int, ...], slots: int = 4) -> ServingEngine:
    """Our own engine with some of the adapters."""
    from tuneloop.inference.local.serving import LocalEngine
    from tuneloop.inference.protocol import EngineSettings

    return LocalEngine(
        Served(str(files.base)), [Served(str(files.adapters[i])) for i in which], EngineSettings(slots=slots)
    )


def llamacpp(files: Files, which: tuple[int, ...], slots: int = 4) -> ServingEngine:
    """llama.cpp with some of the adapters."""
    from tuneloop.inference.llamacpp.serving import LlamaCppEngine
    from tuneloop.inference.protocol import EngineSettings

    settings = EngineSettings(slots=slots, context=512, threads=1)
    return LlamaCppEngine(Served(str(files.gguf)), [Served(str(files.loras[i])) for i in which], settings)


def run(engine: ServingEngine, work: Callable[[Any], Awaitable[Any]]) -> Any:
    """Start an engine, do some work, stop it; returns what the work gives."""

    async def main() -> Any:
        await engine.start()
        try:
            return await work(engine)
        finally:
            await engine.stop()

    return asyncio.run(asyncio.wait_for(main(), HANG))


def endpoint(files: Files, which: tuple[int, ...], slots: int = 4) -> ServingEngine:
    """A server like vLLM with some of the adapters; it is started and stopped with the engine."""
    from vllm_stand_in import MODEL, StandIn

    from tuneloop.inference.openai.serving import EndpointEngine, EndpointSettings

    class WithServer(EndpointEngine):
        async def start(self) -> None:
            if self._wire is None:
                self.server = StandIn(files.base)
                settings = EndpointSettings(self.server.__enter__(), tokenizer=str(files.base), slots=slots)
                EndpointEngine.__init__(self, self._base, self._served, settings)
                await super().start()

        async def stop(self) -> None:
            if self._wire is not None:
                await super().stop()
                # The stand-in ends an engine of its own, which asks for a loop of its own.
                await asyncio.to_thread(self.server.__exit__)

    adapters = [Served(str(files.adapters[i])) for i in which]
    return WithServer(Served(MODEL), adapters, EndpointSettings("http://127.0.0.1:9"))


def tokens(engine: ServingEngine) -> int:
    """Tokens of an answer, enough for the adapters to make a difference."""
    return getattr(engine, "tokens", 10)


@functools.cache
def vllm_server() -> RealVllm:
    """The real vLLM with the packaged model and two adapters by their hashes, until this process ends."""
    from tuneloop.models.adapters.peft_layout import hash_of_adapter
    from tuneloop.models.files.names import resolve

    folder, base = Path(tempfile.mkdtemp(prefix="vllm-")), Path(resolve("smollm2-135m"))
    adapters = [write_adapter(base, folder / str(seed), seed, strength=0.15) for seed in (1, 2)]
    modules = [f"{hash_of_adapter(adapter)}={adapter}" for adapter in adapters]
    more = ("--dtype", "float32", "--lora-modules", *modules)
    server = RealVllm(base, folder / "log.txt", *more, variables={"VLLM_SERVER_DEV_MODE": "1"}).start()
    server.adapters = adapters
    atexit.register(server.kill)
    return server


def vllm(files: Files, which: tuple[int, ...], slots: int = 4) -> ServingEngine:
    """The real vLLM with some of its two adapters; its prefix cache is emptied when the engine starts."""
    from tuneloop.inference.openai.serving import EndpointEngine, EndpointSettings

    class Cold(EndpointEngine):
        tokens = 5  # of an answer: on a processor it writes a few a second

        async def start(self) -> None:
            if self._wire is None:
                await asyncio.to_thread(server.forget)
                await super().start()

    server = vllm_server()
    settings = EndpointSettings(f"{server.address}/v1", tokenizer="smollm2-135m", slots=slots)
    return Cold(Served("base"), [Served(str(server.adapters[i])) for i in which], settings)
