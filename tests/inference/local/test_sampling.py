"""Drawn tokens follow the softmax, a nucleus is the smallest one, and an answer depends on its own prompt and seed alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from tuneloop.core.errors import UserError
from tuneloop.inference.local.answers import generate
from tuneloop.inference.local.sampling import Sampler, _smallest_in_nucleus, draw, greedy, highest
from tuneloop.inference.request import Sampling
from tuneloop.models.load import Model

QUESTIONS = ["Rain?", "Is it windy on Jupiter in the autumn, or does it only look so?", "Why", "How cold " * 9]


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Any:
    from tuneloop.models.load import load_model

    return load_model(str(tiny_llama), dtype="float32")


def prompts_of(model: Model) -> list[list[int]]:
    return [model.template.prompt_ids([{"role": "user", "content": q}]) for q in QUESTIONS]


def drawn(logits: list[float], temperature: float, top_p: float, times: int) -> torch.Tensor:
    rows = torch.tensor(logits).expand(times, -1)
    uniform = torch.rand(times, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return draw(rows, torch.full((times,), temperature), torch.full((times,), top_p), uniform)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax_at_each_temperature(temperature: float) -> None:
    logits = [1.0, 0.0, -1.0, 2.0, 0.5]
    counts = torch.bincount(drawn(logits, temperature, 1.0, 20_000), minlength=5)
    expected = torch.softmax(torch.tensor(logits, dtype=torch.float64) / temperature, 0) * 20_000
    assert chisquare(counts.numpy(), expected.numpy()).pvalue > 0.001


def test_draws_from_a_nucleus_follow_the_softmax_over_it() -> None:
    p = [0.5, 0.3, 0.15, 0.05]
    counts = torch.bincount(drawn([math.log(x) for x in p], 1.0, 0.7, 20_000), minlength=4)
    assert counts[2:].tolist() == [0, 0]
    assert chisquare(counts[:2].numpy(), [20_000 * 5 / 8, 20_000 * 3 / 8]).pvalue > 0.001


@settings(max_examples=25)
@given(
    st.integers(0, 2**31), st.floats(0.01, 0.99), st.sampled_from([20, 300, 32768]), st.sampled_from([0.1, 1.0, 8.0])
)
def test_a_nucleus_is_the_fewest_likeliest_tokens(seed: int, top_p: float, size: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, size, generator=generator) * scale
    p = torch.softmax(logits, -1)[0].double()
    before = p.sort(descending=True).values.cumsum(0)
    fewest = [
        int((before < top_p + slack).sum()) + 1 for slack in (-1e-4, 1e-4)
    ]  # fp32 sums of 32,768 tokens round by some 1e-5: a few tokens
    smallest = _smallest_in_nucleus(torch.softmax(logits, -1), torch.tensor([top_p]))
    assert fewest[0] <= int((torch.softmax(logits, -1) >= smallest).sum()) <= fewest[1]


def test_the_ends_of_the_unit_interval_draw_tokens_that_can_be_drawn() -> None:
    logits = torch.tensor([[-math.inf, 0.0, 1.0, -math.inf]] * 2)
    ends = torch.tensor([0.0, math.nextafter(1.0, 0.0)], dtype=torch.float64)
    assert draw(logits, torch.ones(2), torch.ones(2), ends).tolist() == [1, 2]


def test_the_first_tokens_of_many_answers_follow_the_model(model: Model) -> None:
    prompt = prompts_of(model)[0]
    with torch.no_grad():
        hidden = model.hidden(torch.tensor([prompt]))[:, -1]
        parts = [[Sampling(0.3, seed=i) for i in range(start, start + 100)] for start in range(0, 800, 100)]
        tokens = torch.cat([Sampler(part, "cpu").next(hidden.expand(100, -1), model.head) for part in parts])
        p = torch.softmax((hidden @ model.head.t())[0] / 0.3, -1).double()
    top = p.topk(5)
    counts = [int((tokens == token).sum()) for token in top.indices]
    expected = [800 * float(x) for x in top.values]
    counts.append(800 - sum(counts))
    expected.append(800 - sum(expected))
    assert chisquare(counts, expected).pvalue > 0.001


def test_an_answer_depends_on_its_prompt_and_seed_alone(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = prompts_of(model)
    sampling = [Sampling(0.8, 0.9, seed=i) for i in range(4)]
    whole = generate(model, prompts, max_new_tokens=10, sampling=sampling)
    assert generate(model, prompts, max_new_tokens=10, sampling=sampling) == whole
    assert [
        generate(model, [p], max_new_tokens=10, sampling=[s])[0] for p, s in zip(prompts, sampling, strict=True)
    ] == whole
    assert generate(model, prompts[::-1], max_new_tokens=10, sampling=sampling[::-1]) == whole[::-1]
    monkeypatch.setattr("tuneloop.inference.local.answers.BATCH_ROWS", 2)
    assert generate(model, prompts, max_new_tokens=10, sampling=sampling) == whole


def test_other_seeds_draw_other_answers_and_low_temperatures_the_greedy_one(model: Model) -> None:
    prompt = prompts_of(model)[0]
    hot = generate(model, [prompt] * 6, max_new_tokens=8, sampling=[Sampling(1.0, seed=i) for i in range(6)])
    assert len({answer.text for answer in hot}) > 1
    likeliest = generate(model, [prompt], max_new_tokens=8)[0]
    for cold in (Sampling(1e-4, seed=3), Sampling(1.0, 1e-6, seed=3), Sampling(0.0, seed=3)):
        assert generate(model, [prompt], max_new_tokens=8, sampling=[cold])[0] == likeliest


def test_greedy_and_drawn_rows_share_a_batch(model: Model) -> None:
    prompts = prompts_of(model)
    mixed = [Sampling(), Sampling(0.9, seed=5), Sampling(), Sampling(0.9, 0.8, seed=6)]
    answers = generate(model, prompts, max_new_tokens=8, sampling=mixed)
    plain = generate(model, prompts, max_new_tokens=8)
    assert (answers[0], answers[2]) == (plain[0], plain[2])
    assert answers[1] == generate(model, prompts[1:2], max_new_tokens=8, sampling=mixed[1:2])[0]


def test_rows_that_leave_the_batch_take_their_random_numbers_with_them() -> None:
    rows = [Sampling(1.0, seed=i) for i in range(3)]
    hidden, head = torch.ones(3, 4), torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    together = Sampler(rows, "cpu")
    together.next(hidden, head)
    together.keep(torch.tensor([2]))
    alone = Sampler(rows[2:], "cpu")
    alone.next(hidden[2:], head)
    for _ in range(5):
        assert torch.equal(together.next(hidden[2:], head), alone.next(hidden[2:], head))


def test_bf16_logits_are_drawn_by_what_fp32_says_of_the_likeliest() -> None:
    """Two tokens whose bf16 logits tie, and whose fp32 logits are half a nat apart."""
    hidden = torch.tensor([[1.0, 1.0]], dtype=torch.bfloat16).expand(8000, -1)
    head = torch.full((256, 2), -20.0, dtype=torch.bfloat16)
    head[7] = torch.tensor([128.0, 0.25], dtype=torch.bfloat16)
    head[9] = torch.tensor([128.0, -0.25], dtype=torch.bfloat16)
    assert len(set((hidden[:1] @ head[[7, 9]].t())[0].tolist())) == 1
    tokens = Sampler([Sampling(1.0, seed=i) for i in range(8000)], "cpu").next(hidden, head)
    share = float((tokens == 7).float().mean())
    assert share == pytest.approx(1 / (1 + math.exp(-0.5)), abs=0.02)
    assert int(greedy(hidden[:1], head)) == 7


@pytest.mark.parametrize(
    ("temperature", "top_p"), [(-1.0, 1.0), (math.nan, 1.0), (math.inf, 1.0), (1.0, 0.0), (1.0, 1.5)]
)
def test_values_that_make_no_sense_are_refused(temperature: float, top_p: float) -> None:
    with pytest.raises(UserError, match="not possible"):
        Sampling(temperature, top_p)


@pytest.mark.parametrize("size", [4096, 1000, 130, 128])
def test_the_highest_logits_are_those_of_topk(size: int) -> None:
    logits = torch.randn(7, size, generator=torch.Generator().manual_seed(size)).to(torch.bfloat16)
    found = logits.gather(1, highest(logits, 4))
    assert torch.equal(found.sort(-1, descending=True).values, logits.topk(4, -1).values)
    assert all(len(set(row)) == 4 for row in highest(logits, 4).tolist())
