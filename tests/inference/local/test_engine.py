"""Answers do not depend on what shares the batch: rows join, leave, are drawn, stopped and cancelled by themselves."""

from __future__ import annotations

import itertools
import random
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_answers import answers_of
from tiny import BEGIN_OF_TEXT

from tuneloop.core.errors import UserError
from tuneloop.inference.local.answers import generate
from tuneloop.inference.local.engine import ActiveRow, DecodingBatch, Engine
from tuneloop.inference.request import Request, Sampling
from tuneloop.models.load import Model, load_model
from tuneloop.records.completion import Completion

QUESTIONS = [
    "Rain?",
    "Is it windy on Jupiter in the autumn, or does it only look so?",
    "Why",
    "How cold " * 9,
    "And Mars?",
]
DRAWN = Sampling(temperature=0.4, top_p=0.95, seed=3, top_k=8, min_p=0.02, repetition_penalty=1.2)


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Any:
    return load_model(str(tiny_llama), dtype="float32")


def requests_of(model: Model, **settings: Any) -> list[Request]:
    ids = [model.template.prompt_ids([{"role": "user", "content": q}]) for q in QUESTIONS]
    return [Request(ids=id_, **{"max_new_tokens": 4 + 3 * i, **settings}) for i, id_ in enumerate(ids)]


def alone(model: Model, request: Request) -> Completion:
    return next(answers_of(Engine(model), [request]))


@pytest.mark.parametrize("sampling", [Sampling(), DRAWN], ids=["greedy", "drawn"])
def test_rows_that_join_and_leave_between_steps_get_what_they_get_alone(model: Model, sampling: Sampling) -> None:
    requests = requests_of(model, sampling=sampling)
    expected = [alone(model, request) for request in requests]
    for order in itertools.islice(itertools.permutations(range(len(requests))), 0, 120, 17):
        engine, tickets = Engine(model, rows=3), {}
        for i in order:  # each joins while the others are at work
            tickets[i] = engine.submit(requests[i])
            engine.step()
        while engine.pending:
            engine.step()
        assert [tickets[i].completion for i in range(len(requests))] == expected


def test_a_batch_keeps_only_the_places_that_its_rows_need(model: Model) -> None:
    short, long = requests_of(model)[0], requests_of(model)[3]
    batch = DecodingBatch(model)
    batch.join([ActiveRow(long)])
    kept = ActiveRow(short)
    batch.leave(batch.active[0])
    batch.join([kept])
    assert batch._state is not None and batch._state.real.shape == (1, len(short.ids))


def test_a_cancelled_answer_ends_and_the_others_go_on(model: Model) -> None:
    requests = requests_of(model, max_new_tokens=12)
    expected = [alone(model, request) for request in requests]
    engine = Engine(model)
    tickets = [engine.submit(request) for request in requests]
    for _ in range(3):
        engine.step()
    cut = engine.cancel(tickets[1])
    assert cut.finish == "cancelled" and cut.token_ids == expected[1].token_ids[: cut.completion_tokens]
    assert 1 <= cut.completion_tokens < 12 and engine.cancel(tickets[1]) == cut
    while engine.pending:
        engine.step()
    assert [t.completion for i, t in enumerate(tickets) if i != 1] == [e for i, e in enumerate(expected) if i != 1]


def test_who_stops_reading_a_stream_cancels_it(model: Model) -> None:
    engine = Engine(model)
    stream = engine.stream(requests_of(model, max_new_tokens=50)[1])
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert engine.pending == 0


def test_threads_share_an_engine(model: Model) -> None:
    requests = requests_of(model) * 2
    expected = [alone(model, request) for request in requests]
    engine, found = Engine(model, rows=4), {}

    def ask(i: int) -> None:
        found[i] = list(engine.stream(requests[i]))[-1].completion

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [found[i] for i in range(len(requests))] == expected


def test_requests_that_cannot_be_answered_say_why(model: Model) -> None:
    ids = requests_of(model)[0].ids
    bad = [Request(), Request(ids=[5] * model.context), Request(ids=ids, adapter="0" * 64)]
    found = list(answers_of(Engine(model), [*bad, Request(ids=ids, max_new_tokens=2)]))
    assert [match.finish for match in found] == ["error"] * 3 + ["length"]
    assert [match.error.split(":")[0] for match in found] == ["no_prompt", "too_long", "no_adapter", ""]


def test_a_stop_string_may_span_tokens_and_is_not_part_of_the_answer(model: Model) -> None:
    request = requests_of(model, max_new_tokens=20)[1]
    whole = alone(model, request)
    pieces = [model.template.decode([token]) for token in whole.token_ids]
    at = next(
        i
        for i in range(4, 18)
        if len(pieces[i]) > 1 and len(pieces[i + 1]) > 1 and "\ufffd" not in "".join(pieces[: i + 2])
    )
    stop = pieces[at][-1] + pieces[at + 1][0]
    for streamed in (False, True):
        engine = Engine(model)
        asked = Request(ids=request.ids, max_new_tokens=20, stop=(stop,))
        found = list(engine.stream(asked))[-1].completion if streamed else alone(model, asked)
        assert found is not None and found.finish == "stop"
        assert found.text == whole.text[: whole.text.index(stop)].strip() and found.completion_tokens <= at + 2


def test_log_probabilities_are_those_of_a_full_pass(model: Model) -> None:
    request = requests_of(model, max_new_tokens=6, logprobs=3)[1]
    others = [alone(model, request), generate_with_others(model, request)]
    with torch.no_grad():
        ids = [*request.ids, *others[0].token_ids]
        logits = model.hidden(torch.tensor([ids]))[0] @ model.head.t()
    expected = logits.float().log_softmax(-1)[len(request.ids) - 1 : -1]
    for found in others:
        assert found.logprobs is not None and [entry.id for entry in found.logprobs] == list(found.token_ids)
        assert [e.logprob for e in found.logprobs] == pytest.approx(
            [float(p[t]) for p, t in zip(expected, found.token_ids, strict=True)], abs=1e-3
        )
        for logprob, p in zip(found.logprobs, expected, strict=True):
            top = p.topk(3)
            assert [i for i, _ in logprob.top] == top.indices.tolist()
            assert [x for _, x in logprob.top] == pytest.approx(top.values.tolist(), abs=1e-3)


def generate_with_others(model: Model, request: Request) -> Completion:
    others = requests_of(model)
    return list(answers_of(Engine(model), [*others, request]))[-1]


def test_times_to_the_first_and_to_the_last_token_are_known(model: Model) -> None:
    found = alone(model, requests_of(model, max_new_tokens=8)[0])
    assert found.ttft_ms is not None and found.total_ms is not None and 0 < found.ttft_ms < found.total_ms
    assert found.engine == "tuneloop" and found.prompt_tokens == len(requests_of(model)[0].ids)


def test_many_requests_at_random_times_get_what_generate_gives(model: Model) -> None:
    rng = random.Random(4)
    prompts = [[BEGIN_OF_TEXT, *(rng.randrange(1000) for _ in range(rng.randrange(1, 40)))] for _ in range(12)]
    expected = generate(model, prompts, max_new_tokens=9)
    engine, tickets, waiting = Engine(model, rows=5, tokens=160), {}, list(range(12))
    while waiting or engine.pending:
        for _ in range(rng.randrange(3)):
            if waiting:
                i = waiting.pop()
                tickets[i] = engine.submit(Request(ids=prompts[i], max_new_tokens=9))
        engine.step()
    assert [tickets[i].completion for i in range(12)] == expected


@pytest.mark.parametrize(
    "bad", [{"max_new_tokens": 0}, {"stop": ("a", "")}, {"stop": "a"}, {"logprobs": 21}, {"logprobs": -1}], ids=str
)
def test_settings_that_make_no_sense_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        Request(ids=[1], **bad)
