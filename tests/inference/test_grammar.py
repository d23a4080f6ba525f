"""Answers under a JSON Schema: the likeliest text that fits, next to rows that are free, and the same in each engine."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import served
import torch
from engine_answers import answers_of

from patience import HANG, slowness
from tuneloop.core.json_schema import check_fit
from tuneloop.inference.grammar import SPACES, Grammars, compile_problem
from tuneloop.inference.llamacpp.process import installed
from tuneloop.inference.local.engine import Engine
from tuneloop.inference.local.target import LocalTarget
from tuneloop.inference.protocol import ServingEngine, complete
from tuneloop.inference.request import Request, Sampling
from tuneloop.models.load import Model, load_model

llguidance = pytest.importorskip("llguidance", reason="needs llguidance")

TICKET = {
    "type": "object",
    "properties": {
        "queue": {"enum": ["access", "hardware", "hard disk"]},
        "urgent": {"type": "boolean"},
        "words": {"type": "array", "items": {"enum": ["late", "lost"]}, "maxItems": 2},
    },
    "required": ["queue", "urgent", "words"],
    "additionalProperties": False,
}
QUESTIONS = ["Rain?", "Is it windy on Jupiter in the autumn?", "Why"]


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Any:
    return load_model(str(tiny_llama), dtype="float32")


def asked(model: Model, question: str, **settings: Any) -> Request:
    ids = model.template.prompt_ids([{"role": "user", "content": question}])
    return Request(ids=ids, **{"max_new_tokens": 330, **settings})


def test_an_answer_is_the_likeliest_token_after_token_that_fits(model: Model) -> None:
    tokens = llguidance.LLTokenizer(
        model.template.tokenizer.to_str(), model.head.shape[0], list(model.template.end_ids)
    )
    grammar = llguidance.LLMatcher.grammar_from_json_schema(TICKET, defaults={"whitespace_pattern": SPACES})
    for question in QUESTIONS:
        request = asked(model, question, schema=TICKET)
        found = next(answers_of(Engine(model), [request]))
        assert found.finish == "stop" and not check_fit(TICKET, found.text).result(), repr(found.text)
        matcher, written = llguidance.LLMatcher(tokens, grammar), []
        while not written or written[-1] not in model.template.end_ids:
            with torch.inference_mode():
                hidden = model.hidden(torch.tensor([[*request.ids, *written]]))[0, -1]
            order = (hidden.float() @ model.head.float().t()).argsort(descending=True).tolist()
            ends = model.template.end_ids
            bits = b"" if matcher.is_stopped() else matcher.compute_bitmask()
            written.append(next(i for i in order if (bits[i // 8] >> i % 8 & 1 if bits else i in ends)))
            if not matcher.is_stopped():
                matcher.consume_token(written[-1])
        assert list(found.token_ids) == written


def test_rows_with_and_without_a_schema_share_a_batch_and_do_not_notice(model: Model) -> None:
    drawn = Sampling(temperature=1.5, top_p=0.9, top_k=50, min_p=0.01, seed=4, repetition_penalty=1.1)
    requests = [
        asked(model, QUESTIONS[0], schema=TICKET), asked(model, QUESTIONS[1], max_new_tokens=9),
        asked(model, QUESTIONS[2], schema=TICKET, sampling=drawn), asked(model, QUESTIONS[0], sampling=drawn, max_new_tokens=7),
        asked(model, QUESTIONS[1], schema={"type": "boolean"}, logprobs=2),
    ]  # fmt: skip
    alone = [next(answers_of(Engine(model), [request])) for request in requests]
    engine, tickets = Engine(model, rows=4), []
    for request in requests:  # each joins while the others are at work; one waits for room
        tickets.append(engine.submit(request, stream=True))
        engine.step()
    while engine.pending:
        engine.step()
    said = [(item.text, item.token_ids, item.finish) for item in alone]
    together = [ticket.completion for ticket in tickets]
    assert [(item.text, item.token_ids, item.finish) for item in together if item is not None] == said
    assert [item.finish for item in alone] == ["stop", "length", "stop", "length", "stop"]
    assert json.loads(alone[4].text) in (True, False) and len(alone[4].logprobs or ()) == alone[4].completion_tokens
    by_target = LocalTarget.of(model).complete(requests)
    assert [(item.text, item.token_ids, item.finish) for item in by_target] == said, (
        "a target answers as the engine does"
    )


def test_drawn_answers_all_fit(model: Model) -> None:
    wild = [asked(model, "x", schema=TICKET, sampling=Sampling(temperature=3.0, seed=seed)) for seed in range(12)]
    found = list(answers_of(Engine(model), wild))
    assert all(not check_fit(TICKET, match.text).result() for match in found if match.finish == "stop")
    assert len({match.text for match in found}) > 6 and sum(match.finish == "stop" for match in found) > 6


def test_what_cannot_be_held_is_refused_by_name(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    for schema, said in (
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"$ref": "#/nowhere"}, "nowhere"),
        ({"type": "nonsense"}, "nonsense"),
    ):
        request = asked(model, "x", schema=schema)
        for found in (next(answers_of(Engine(model), [request])), *LocalTarget.of(model).complete([request])):
            assert found.finish == "error" and found.error.startswith("no_schema: ") and said in found.error
    monkeypatch.setitem(sys.modules, "llguidance", None)
    missing = Grammars(model.template, model.head.shape[0]).constraint(TICKET)
    assert isinstance(missing, str) and "pip install 'tuneloop[serve]'" in missing


LINKS = {f"d{i}": {"anyOf": [{"items": {"$ref": f"#/$defs/d{i + 1}"}}, {"properties": {"a": {"$ref": f"#/$defs/d{i + 1}"}}}]}
         for i in range(999)}  # fmt: skip
HEAVY = [
    {"allOf": [{"pattern": f"a{i}.*b"} for i in range(20)]},  # llguidance took minutes
    {"$defs": LINKS | {"d999": {}}, "$ref": "#/$defs/d0"},  # and its stack overflowed, which ended the process
]


def test_a_schema_that_is_hard_to_compile_is_refused_and_the_loop_goes_on() -> None:
    async def work() -> None:
        for schema in HEAVY:
            asked_for = asyncio.ensure_future(compile_problem(schema))
            pause = 0.0
            while not asked_for.done():
                began = time.perf_counter()
                await asyncio.sleep(0.01)
                pause = max(pause, time.perf_counter() - began)
            assert asked_for.result().startswith("no_schema: ") and pause < 0.5 * slowness(), asked_for.result()
        assert await compile_problem(TICKET) == ""

    asyncio.run(asyncio.wait_for(work(), HANG))


@pytest.mark.slow
@pytest.mark.skipif(not (installed() and installed("xllamacpp", "2026.10.11549")), reason="llama.cpp is not installed")
def test_all_engines_give_the_same_structured_answers(tiny_llama: Path, tmp_path: Path) -> None:
    files = served.write_files(tiny_llama, tmp_path)

    schemas: list[dict[str, Any]] = [
        {"type": "boolean"},
        {"enum": ["access", "hardware", "lost"]},
        {"enum": [1, 20, 3]},
    ]

    async def work(engine: ServingEngine) -> list[str]:
        found = []
        for name in ("base", *engine.adapters):
            for question, schema in itertools.product(QUESTIONS, schemas):
                turns: Any = [{"role": "user", "content": question}]
                answer = await complete(engine, Request(messages=turns, adapter=name, schema=schema, max_new_tokens=60))
                assert answer.finish == "stop" and not check_fit(schema, answer.text).result(), answer
                found.append(answer.text.strip())
        return found

    ours, theirs, far = (served.run(make(files, (0,)), work) for make in (served.local, served.llamacpp, served.endpoint))  # fmt: skip
    assert ours == theirs == far and len(set(ours)) > 3
