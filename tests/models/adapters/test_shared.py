"""Engines of one process share a base; what the last of them lets go of leaves memory."""

from __future__ import annotations

import asyncio
import gc
import shutil
from pathlib import Path
from typing import Any

import pytest
from adapters import write_adapter

from patience import HANG
from pretend_gpu import in_this_thread, pretend_gpu
from tuneloop.core.errors import UserError
from tuneloop.inference.local.serving import LocalEngine
from tuneloop.inference.protocol import BASE, Served, complete
from tuneloop.inference.request import Request
from tuneloop.models.adapters.lora import switches
from tuneloop.models.adapters.shared import adapters_of, give_back, shared_adapter, shared_model


@pytest.fixture(scope="module")
def own_base(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that no engine of another test has."""
    return shutil.copytree(tiny_llama, tmp_path_factory.mktemp("lent") / "base")


@pytest.fixture(scope="module")
def adapters(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [write_adapter(tiny_llama, tmp_path_factory.mktemp("adapter"), seed) for seed in (1, 2)]


def test_an_adapter_is_unloaded_when_its_last_user_gives_it_back(own_base: Path, adapters: list[Path]) -> None:
    first, second = shared_model(str(own_base)), shared_model(str(own_base))
    assert first is second
    shared = shared_adapter(first, adapters[0])
    assert shared_adapter(second, adapters[0]) == shared
    own = shared_adapter(second, adapters[1])
    give_back(first, [shared])
    assert adapters_of(second) == sorted([shared, own])
    give_back(second, [shared, own])
    assert adapters_of(second) == [] and not any(len(s.updates) for s in switches(second.net).values())
    fresh = shared_model(str(own_base))
    assert fresh is not second
    give_back(fresh, [])


def test_a_base_of_other_files_is_a_base_of_its_own(tiny_llama: Path, fewer_tokens: Path) -> None:
    models = [shared_model(str(folder)) for folder in (tiny_llama, fewer_tokens)]
    assert models[0] is not models[1]
    for model in models:
        give_back(model, [])


def test_an_engine_that_takes_anothers_place_needs_no_second_base_on_the_gpu(
    own_base: Path, adapters: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    live: list[int] = []
    run = LocalEngine._run

    def on_the_gpu(*arguments: Any) -> None:
        with in_this_thread():
            run(*arguments)

    monkeypatch.setattr(LocalEngine, "_run", on_the_gpu)

    async def work(gpu: Any) -> None:
        old, new = (LocalEngine(Served(str(own_base)), [Served(str(folder))]) for folder in adapters)
        await old.start()
        (name,) = old.adapters
        before = (await complete(old, _asked(name))).token_ids
        live.append(gpu.live)
        await new.start()
        live.append(gpu.live)
        (other,) = new.adapters
        after, again = await asyncio.gather(complete(new, _asked(other)), complete(old, _asked(name)))
        assert again.token_ids == before != after.token_ids
        await old.stop()
        gc.collect()
        live.append(gpu.live)
        assert (await complete(new, _asked(other))).token_ids == after.token_ids
        assert (await complete(new, _asked(name))).finish == "error", "what the old engine served is not there any more"
        await new.stop()
        gc.collect()
        live.append(gpu.live)

    with pretend_gpu() as gpu:
        asyncio.run(asyncio.wait_for(work(gpu), HANG))
    item, both, later, none = live
    assert both - item < 0.2 * item, "the second engine has brought its adapter, and no base"
    assert later <= item + 4096 and none < 0.02 * item


def test_a_base_that_cannot_take_an_adapter_is_given_back(own_base: Path, tmp_path: Path) -> None:
    from tuneloop.models.adapters import shared

    async def work() -> None:
        with pytest.raises(UserError):
            await LocalEngine(Served(str(own_base)), [Served(str(tmp_path))]).start()
        while any(key[0] == own_base.resolve() for key in shared._shared):
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(work(), HANG))


def _asked(adapter: str = BASE) -> Request:
    return Request(messages=[{"role": "user", "content": "Is it windy on Jupiter?"}], adapter=adapter, max_new_tokens=8)
