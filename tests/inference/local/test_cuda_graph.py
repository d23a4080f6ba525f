"""Recorded decoding steps write what plain steps write; what can't be recorded, or computes something else, is not replayed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from adapters import write_adapter
from engine_answers import answers_of

import pretend_gpu as pretended
from pretend_gpu import Gpu, pretend_gpu
from tuneloop.core.device import BACKENDS, GRAPHS
from tuneloop.inference.local import cuda_graph as replay
from tuneloop.inference.local.engine import ActiveRow, DecodingBatch, Engine
from tuneloop.inference.local.generate import answer_requests
from tuneloop.inference.local.sampling import Sampling
from tuneloop.inference.request import Request
from tuneloop.models import lora
from tuneloop.models.adapters import BASE
from tuneloop.models.llama import KeyValues
from tuneloop.models.load import SIZES, Model, load_model, random_model
from tuneloop.models.prefix import add_prefix
from tuneloop.models.shared import add_adapter

QUESTIONS = ["Rain?", "Is it windy on Jupiter in the autumn, or does it only look so?", "Why", "How cold " * 9]
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Buffers grow often, and recording pays soon."""
    monkeypatch.setitem(BACKENDS, "cuda", replace(BACKENDS["cuda"], cache_step=16))
    monkeypatch.setattr(replay, "STEADY", 2)
    monkeypatch.setattr(replay, "PAYS", 4)
    monkeypatch.setattr(replay, "_failed", [])
    yield


def endless(folder: Path) -> Model:
    """A model whose answers have the length that was asked for."""
    model = load_model(str(folder), dtype="float32")
    return replace(model, template=replace(model.template, end_ids=()))


def requests_of(model: Model, adapters: list[str], **settings: Any) -> list[Request]:
    ids = [model.template.prompt_ids([{"role": "user", "content": q}]) for q in QUESTIONS]
    return [
        Request(ids=each, max_new_tokens=20 + 12 * (i % 2), adapter=adapters[i % len(adapters)], **settings)
        for i, each in enumerate(ids)
    ]


def both(model: Model, requests: list[Request], monkeypatch: pytest.MonkeyPatch, gpu: Gpu) -> tuple[Any, Any, int]:
    """The answers of recorded and of plain steps, and how many steps were replayed."""
    found = []
    for use in ("1", "0"):
        monkeypatch.setenv(GRAPHS, use)
        gpu.clear()
        found.append([answer.token_ids for answer in answers_of(Engine(model), requests)])
        if use == "1":
            replayed = gpu.launches["graph"]
    assert not gpu.launches["graph"]
    return found[0], found[1], replayed


@pytest.mark.parametrize(
    ("kind", "drawn"), [("base", False), ("base", True), ("one adapter", False), ("mixed", True), ("prefix", False)]
)
def test_recorded_steps_write_what_plain_steps_write(
    kind: str, drawn: bool, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [write_adapter(tiny_llama, tmp_path / str(seed), seed) for seed in (1, 2)]
    with pretend_gpu() as gpu:
        model = endless(tiny_llama)
        adapters = {"base": [BASE], "prefix": [""]}.get(kind, [])
        if kind == "prefix":
            add_prefix(model.net, [9, 8, 7, 6, 5])
        if not adapters:
            names = [add_adapter(model, folder) for folder in folders]
            adapters = names[:1] if kind == "one adapter" else [*names, BASE]
        drawing = {"sampling": Sampling(temperature=0.7, seed=4)} if drawn else {}
        recorded, plain, replayed = both(model, requests_of(model, adapters, **drawing), monkeypatch, gpu)
    assert recorded == plain
    assert replayed > 15, "buffers have grown, and steps were recorded anew"
    assert len(set(map(tuple, plain))) == len(plain)


@pytest.mark.parametrize("adapters", [1, 3])
def test_rows_that_join_and_leave_do_not_end_a_recording(adapters: int, tiny_llama: Path, tmp_path: Path) -> None:
    folders = [write_adapter(tiny_llama, tmp_path / str(seed), seed) for seed in range(1, adapters)]
    with pretend_gpu() as gpu:
        model = endless(tiny_llama)
        names = [BASE, *(add_adapter(model, folder) for folder in folders)]
        requests = [each for i in range(4) for each in requests_of(model, names, sampling=drawing(i))]
        expected = [answer.token_ids for request in requests for answer in answer_requests(model, [request])]
        engine, tickets, waiting = Engine(model), [], list(requests)
        gpu.clear()
        before, busy = gpu.graphs, 0
        while waiting or engine.pending:
            if waiting and engine.pending < 3 + adapters % 2:  # one leaves, another one comes
                tickets.append(engine.submit(waiting.pop(0)))
            engine.step()
            busy += 1
        replayed, recorded = gpu.launches["graph"], gpu.graphs - before
    assert [ticket.completion.token_ids for ticket in tickets if ticket.completion] == expected
    assert replayed > 0.7 * busy, (replayed, busy)
    assert recorded <= 4, "sixteen rows come and go; only those that are longer than the slots have it recorded anew"


def drawing(seed: int) -> Sampling:
    """Every other request is drawn."""
    return Sampling(temperature=0.7 * (seed % 2), seed=seed)


def test_a_row_without_a_slot_ends_a_recording_and_is_answered(tiny_llama: Path) -> None:
    with pretend_gpu() as gpu:
        model = endless(tiny_llama)
        requests = requests_of(model, [BASE])
        long = replace(requests[0], ids=requests[0].ids * 9, max_new_tokens=30)
        requests = [*requests, *requests[:2], long]  # more than there are slots, and one that is longer than they are
        expected = [answer.token_ids for request in requests for answer in answer_requests(model, [request])]
        engine, tickets = Engine(model), []
        before = gpu.graphs
        for request in requests:
            tickets.append(engine.submit(request))
            for _ in range(5):
                engine.step()
        while engine.pending:
            engine.step()
        assert gpu.graphs - before >= 2
    assert [ticket.completion.token_ids for ticket in tickets if ticket.completion] == expected


def test_slots_are_kept_for_further_rows_only_where_some_may_join() -> None:
    cache = KeyValues(1, torch.device("cuda"))
    cache.lengths = [100]
    assert replay.slots_for(3, cache, 60, 0) == (3, 176)
    assert replay.slots_for(3, cache, 60, 24576) == (4, 208)
    assert replay.slots_for(5, cache, 60, 24576) == (8, 208)
    assert replay.slots_for(33, cache, 60, 10_000) == (33, 208), "64 would take too much"
    assert replay.slots_for(60, cache, 60, 10_000) == (60, 176)


@pytest.mark.parametrize("fault", ["waits", "computes something else", "has no memory"])
def test_steps_that_cannot_be_recorded_are_computed_as_usual(
    fault: str, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Faulty(pretended.Graph):
        def capture_end(self) -> None:
            super().capture_end()
            del self.work[len(self.work) // 2]

    def step(self: Any) -> Any:
        if fault == "has no memory":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return torch.ones(1, device="cuda").item()

    if fault == "computes something else":
        monkeypatch.setattr(pretended, "Graph", Faulty)
    else:
        monkeypatch.setattr(replay.StepReplay, "_step", step)
    with pretend_gpu() as gpu, caplog.at_level(logging.WARNING):
        model = endless(tiny_llama)
        recorded, plain, replayed = both(model, requests_of(model, [BASE]), monkeypatch, gpu)
    assert recorded == plain
    assert replayed == (
        2 if fault == "computes something else" else 0
    )  # the first still had what was left of recording it
    assert ("could not be recorded" in caplog.text) == (fault != "has no memory")


def test_after_some_failures_nothing_more_is_recorded(tiny_llama: Path) -> None:
    model = load_model(str(tiny_llama), dtype="float32")
    with pretend_gpu():
        there = load_model(str(tiny_llama), dtype="float32")
        assert replay.may_record(there, 10, 50)
        assert not replay.may_record(there, 10, 2), "it would not pay"
        for i in range(replay.MOST_FAILURES):
            replay.note_failure(RuntimeError(f"fault {i}"))
        assert not replay.may_record(there, 10, 50)
        assert not replay.may_record(model, 10, 50)


@pytest.mark.parametrize(("adapters", "most"), [(0, 780), (1, 1230), (3, 1700)])
def test_a_token_of_an_8b_llama_takes_few_launches_and_one_when_it_is_recorded(
    adapters: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BACKENDS, "cuda", replace(BACKENDS["cuda"], cache_step=256))
    monkeypatch.setattr(replay, "_compare", lambda found, expected: None)  # there are no values
    few, more = (_launches_of_a_token(layers, adapters) for layers in (1, 2))
    assert few[0] + 31 * (more[0] - few[0]) <= most
    assert few[1] == more[1] < 25, "a recorded step, and what draws the token"


def _launches_of_a_token(layers: int, adapters: int) -> tuple[int, int]:
    """Of a plain and of a recorded step of 8 rows, of a Llama of 8B's widths with a few layers."""
    template: Any = SimpleNamespace(pad_id=0, end_ids=())
    with pretend_gpu(values=False) as gpu:
        model = random_model({**SIZES["8b"], "num_hidden_layers": layers}, template, dtype=torch.bfloat16)
        names = _alongside(model, adapters)
        batch = DecodingBatch(model)
        batch.join(
            [ActiveRow(Request(ids=[1] * 100, max_new_tokens=60, adapter=names[i % len(names)])) for i in range(8)]
        )
        found = []
        for steps in (0, 5):  # the first is plain; of the others two are recorded and computed as usual, too
            for _ in range(steps):
                batch.step()
            gpu.clear()
            batch.step()
            assert sum(gpu.waits.values()) == 1, gpu.waits
            found.append(gpu.launches.copy())
    assert not found[0]["graph"] and found[1]["graph"] == 1
    return sum(found[0].values()), sum(found[1].values())


def _alongside(model: Model, count: int) -> list[str]:
    """Names of adapters, without values, next to each other."""
    names = [f"adapter {i}" for i in range(count)]
    for i, name in enumerate(names):
        for place, update in lora._new_layers(model.net, lora.LoraShape(16, 32.0, 0.0, TARGETS), i).items():
            layer = model.net.get_submodule(place)
            switch = layer if isinstance(layer, lora.Switch) else lora.Switch(layer)
            switch.updates[name] = update.requires_grad_(False)
            lora._put(model.net, place, switch)
    return names or [BASE]
