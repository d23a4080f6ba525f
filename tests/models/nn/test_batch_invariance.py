"""Answers that don't depend on their company: the same token ids and log probabilities, bit for bit, in 16 bits too."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import write_adapter
from by_day import by_day
from torch import Tensor

from tuneloop.core.errors import UserError
from tuneloop.inference.labels import label_ids, label_trie
from tuneloop.inference.local.answers import answer_requests
from tuneloop.inference.local.engine import Engine
from tuneloop.inference.local.scoring import _Search, _Tree, choose_for
from tuneloop.inference.request import Request, Sampling
from tuneloop.models.adapters.assignment import BASE
from tuneloop.models.adapters.shared import add_adapter
from tuneloop.models.files.names import resolve
from tuneloop.models.load import Model, load_model
from tuneloop.models.nn.batch_invariance import batch_invariant, need_batch_invariance
from tuneloop.records.completion import Completion

WORDS = ("rain", "wind", "cold", "parcel", "refund", "account", "order", "city", "river", "table", "why", "how", "a")
LABELS = ("refund", "refund request", "delivery", "delivery time", "account", "other", "city", "river table")
SYSTEM = {"role": "system", "content": "You answer questions of the customers of a shop in one short sentence."}


@pytest.fixture(scope="module", params=["bfloat16"])
def model(request: pytest.FixtureRequest, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    loaded = load_model(str(tiny_llama), dtype=request.param)
    for seed in (1, 2):
        add_adapter(loaded, write_adapter(tiny_llama, tmp_path_factory.mktemp("adapter"), seed))
    return loaded


@pytest.fixture(params=by_day([1, 2], 1), ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", str(request.param))
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def random_requests(model: Model, draw: random.Random, count: int, adapters: Sequence[str] = (BASE,)) -> list[Request]:
    """Questions of 1 to 90 words, greedy and drawn, behind a system turn or not."""
    requests = []
    for _ in range(count):
        question = " ".join(draw.choices(WORDS, k=draw.choice([1, 3, 9, 20, 50, 90])))
        turns: list[Any] = [*([SYSTEM] if draw.random() < 0.5 else []), {"role": "user", "content": question}]
        sampling = Sampling(temperature=0.8, top_p=0.9, seed=draw.randrange(99)) if draw.random() < 0.3 else Sampling()
        ids = model.template.prompt_ids(turns)
        length, adapter = draw.choice([1, 5, 20]), draw.choice(adapters)
        requests.append(Request(ids=ids, sampling=sampling, max_new_tokens=length, logprobs=3, adapter=adapter))
    return requests


def content(answer: Completion) -> tuple[Any, ...]:
    """All of an answer but its times."""
    return answer.text, answer.token_ids, answer.logprobs, answer.label_scores, answer.label_probability, answer.error


def alone(model: Model, request: Request) -> tuple[Any, ...]:
    engine = Engine(model)
    ticket = engine.submit(request)
    while engine.pending:
        engine.step()
    assert ticket.completion is not None
    return content(ticket.completion)


def in_company(model: Model, requests: Sequence[Request], draw: random.Random) -> list[tuple[Any, ...]]:
    """Answers of an engine that the requests join one after the other, some of them as background work."""
    engine, tickets = Engine(model, rows=draw.choice([3, 8])), []
    for request in requests:
        tickets.append(engine.submit(replace(request, gives_way=draw.random() < 0.25)))
        for _ in range(draw.choice([0, 0, 1, 4])):
            engine.step()
    while engine.pending:
        engine.step()
    return [content(ticket.completion) for ticket in tickets if ticket.completion is not None]


@pytest.mark.parametrize("seed", by_day(range(2), 1))
def test_an_answer_is_the_same_bit_for_bit_in_any_company(model: Model, threads: None, seed: int) -> None:
    draw = random.Random(seed)
    adapters = [BASE, *sorted(vars(model.net)["added_adapters"])]
    requests = random_requests(model, draw, 8, adapters)
    with batch_invariant():
        expected = [alone(model, request) for request in requests]
        assert in_company(model, requests, draw) == expected
        assert in_company(model, requests[::-1], draw) == expected[::-1]
        assert list(map(content, answer_requests(model, requests))) == expected


def test_the_first_answer_is_that_of_the_next_six(model: Model, threads: None) -> None:
    (request,) = random_requests(model, random.Random(5), 1)
    with batch_invariant():
        engine, answers = Engine(model), []
        for _ in range(7):
            ticket = engine.submit(request)
            while engine.pending:
                engine.step()
            answers.append(content(ticket.completion))  # type: ignore[arg-type]
    assert answers == answers[:1] * 7


@pytest.mark.parametrize("prune", [True, False], ids=["best label", "all labels"])
def test_a_label_and_its_probability_are_the_same_in_any_company(model: Model, threads: None, prune: bool) -> None:
    draw = random.Random(3)
    trie = label_trie(LABELS, label_ids(model.template, LABELS))
    requests = random_requests(model, draw, 12, [BASE, *sorted(vars(model.net)["added_adapters"])])
    with batch_invariant():
        expected = [content(choose_for(model, [request], trie, prune=prune)[0]) for request in requests]
        for _ in range(3):
            order = draw.sample(range(len(requests)), len(requests))
            answers = choose_for(model, [requests[i] for i in order], trie, prune=prune)
            assert list(map(content, answers)) == [expected[i] for i in order]
    assert len({answer[0] for answer in expected}) > 1


def test_a_short_prompt_is_classified_on_as_alone_where_a_much_longer_one_is_over(model: Model) -> None:
    tree = _Tree.of(label_trie(LABELS, label_ids(model.template, LABELS)), model.device)
    long, short = ([*range(5, 5 + length)] for length in (150, 20))

    def step(search: _Search) -> Tensor:
        search.expand(search.bounds(), torch.tensor([True]))
        return search.bounds()

    with batch_invariant(), torch.inference_mode():
        both = _Search(model, tree, [long, short], 0, None)
        both.keep(torch.tensor([False, True]))
        assert torch.equal(step(both), step(_Search(model, tree, [short], 0, None)))


@pytest.mark.nightly
@pytest.mark.slow
def test_the_packaged_model_with_adapters_answers_the_same_in_any_company(tmp_path: Path) -> None:
    base, draw = Path(resolve("smollm2-135m")), random.Random(1)
    model = load_model(str(base), dtype="bfloat16")
    adapters = [BASE, *(add_adapter(model, write_adapter(base, tmp_path / str(seed), seed, 0.02)) for seed in (1, 2))]
    requests = random_requests(model, draw, 6, adapters)
    with batch_invariant():
        expected = [alone(model, request) for request in requests]
        assert in_company(model, requests, draw) == expected
        assert list(map(content, answer_requests(model, requests))) == expected
    assert in_company(model, requests, draw) != [alone(model, request) for request in requests]


def test_the_answer_is_the_usual_one_but_for_rounding(tiny_llama: Path) -> None:
    model, draw = load_model(str(tiny_llama), dtype="float32"), random.Random(0)
    requests = [replace(request, sampling=Sampling()) for request in random_requests(model, draw, 12)]
    usual = [alone(model, request) for request in requests]
    with batch_invariant():
        answers = in_company(model, requests, draw)
    assert [answer[:2] for answer in answers] == [answer[:2] for answer in usual]
    for answer, expected in zip(answers, usual, strict=True):
        for token, other in zip(answer[2], expected[2], strict=True):
            assert token.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_a_model_that_is_not_our_own_or_in_float32_is_refused(tiny_llama: Path) -> None:
    model = load_model(str(tiny_llama), dtype="bfloat16")
    need_batch_invariance(model)
    with pytest.raises(UserError, match="not computed by our own Llama"):
        need_batch_invariance(replace(model, net=torch.nn.Linear(1, 1)))
    with pytest.raises(UserError, match="Deterministic answers are for bfloat16"):
        need_batch_invariance(load_model(str(tiny_llama), dtype="float32"))


def test_a_processor_whose_products_depend_on_the_number_of_rows_is_refused(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(str(tiny_llama), dtype="bfloat16")
    plain = torch.equal
    monkeypatch.setattr(torch, "equal", lambda a, b: len(a) != 7 and plain(a, b))
    with pytest.raises(UserError, match="rounds products of 64 numbers by how many rows"):
        need_batch_invariance(model)
