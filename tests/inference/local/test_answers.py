"""Batches, shared beginnings and label trees are only faster: the answers are those of the naive way."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import BEGIN_OF_TEXT

from tuneloop.core.ui import reporting
from tuneloop.inference.local import answers as module
from tuneloop.inference.local.answers import generate
from tuneloop.models.load import Model, load_model
from weather import prompts_of


@torch.no_grad()
def naive_greedy(model: Model, prompt: list[int], limit: int) -> list[int]:
    """One full forward pass a token, alone."""
    ids = list(prompt)
    for _ in range(limit):
        ids.append(int((model.hidden(torch.tensor([ids]))[0, -1] @ model.head.t()).argmax()))
        if ids[-1] in model.template.end_ids:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("system", [True, False], ids=["shared beginning", "nothing shared"])
def test_greedy_answers_equal_one_full_pass_a_token(tiny_model: Model, system: bool) -> None:
    prompts = prompts_of(tiny_model, system)
    answers = generate(tiny_model, prompts, max_new_tokens=12)
    for prompt, answer in zip(prompts, answers, strict=True):
        expected = naive_greedy(tiny_model, prompt, 12)
        assert answer.completion_tokens == len(expected)
        assert answer.prompt_tokens == len(prompt)
        finished = expected[-1] in tiny_model.template.end_ids
        assert answer.finished == finished
        assert answer.text == tiny_model.template.decode(expected[:-1] if finished else expected).strip()


def ending_early(model: Model, prompts: list[list[int]]) -> Model:
    """The model with end tokens that its answers run into at different places."""
    written = [naive_greedy(model, prompt, 10) for prompt in prompts]
    ends = tuple({tokens[2 + 2 * i] for i, tokens in enumerate(written[:3])})
    return dataclasses.replace(model, template=dataclasses.replace(model.template, end_ids=ends))


def test_rows_that_end_early_leave_the_others_as_they_are(tiny_model: Model) -> None:
    prompts = prompts_of(tiny_model)
    model = ending_early(tiny_model, prompts)
    answers = generate(model, prompts, max_new_tokens=16)
    expected = [naive_greedy(model, prompt, 16) for prompt in prompts]
    assert [a.completion_tokens for a in answers] == [len(e) for e in expected]
    assert len({a.completion_tokens for a in answers}) > 1 and any(a.finished for a in answers)
    for answer, tokens in zip(answers, expected, strict=True):
        assert answer.text == model.template.decode(tokens[:-1] if answer.finished else tokens).strip()


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_answers_do_not_depend_on_the_batch(tiny_model: Model, rows: int) -> None:
    prompts = prompts_of(tiny_model)
    whole = generate(tiny_model, prompts, max_new_tokens=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BATCH_ROWS", rows)
        assert generate(tiny_model, prompts, max_new_tokens=8) == whole
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BATCH_TOKENS", 80)
        assert generate(tiny_model, prompts, max_new_tokens=8) == whole
    assert [generate(tiny_model, [p], max_new_tokens=8)[0] for p in prompts] == whole


@pytest.mark.parametrize("system", [True, False], ids=["shared beginning", "nothing shared"])
def test_prompts_that_are_read_in_parts_get_the_same_answers(
    tiny_model: Model, system: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = prompts_of(tiny_model, system)
    whole = generate(tiny_model, prompts, max_new_tokens=8)
    monkeypatch.setattr("tuneloop.models.nn.llama.READ_AT_ONCE", 60)
    assert generate(tiny_model, prompts, max_new_tokens=8) == whole


def test_no_prompts_and_equal_prompts(tiny_model: Model) -> None:
    assert generate(tiny_model, [], max_new_tokens=4) == []
    prompt = prompts_of(tiny_model)[0]
    answers = generate(tiny_model, [prompt, prompt], max_new_tokens=4)
    assert answers[0] == answers[1]
    assert answers[0] == generate(tiny_model, [prompt], max_new_tokens=4)[0]


def test_progress_names_the_reading_of_what_prompts_share_and_reaches_its_end(
    tiny_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, float, float]] = []

    def listen(task: str, done: float, total: float, /, **info: float | str) -> None:
        seen.append((task, done, total))

    prompts = prompts_of(tiny_model)
    with reporting(progress=listen):
        monkeypatch.setattr(module, "BATCH_ROWS", 2)
        generate(tiny_model, prompts, max_new_tokens=2, task="ask")
    assert seen[:3] == [
        ("ask", 0, 5),
        ("ask: reading what the prompts share", 0, 1),
        ("ask: reading what the prompts share", 1, 1),
    ]
    assert seen[-1] == ("ask", 5, 5)


@pytest.mark.nightly
@pytest.mark.slow
def test_the_packaged_model_answers_as_it_does_in_transformers(smollm2: Path) -> None:
    from transformers import LlamaForCausalLM

    model = load_model(str(smollm2), dtype="float32")
    theirs = LlamaForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    prompts = prompts_of(model)[:3]
    answers = generate(model, prompts, max_new_tokens=16)
    for prompt, answer in zip(prompts, answers, strict=True):
        with torch.no_grad():
            out = theirs.generate(
                torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=16, do_sample=False,
                eos_token_id=list(model.template.end_ids), pad_token_id=model.template.pad_id,
            )  # fmt: skip
        assert answer.text == model.template.decode(out[0, len(prompt) :].tolist()).strip()


# --- choice scoring


def test_a_random_mixture_of_lengths_gives_the_same_in_any_order(tiny_model: Model) -> None:
    rng = random.Random(0)
    prompts: list[Any] = prompts_of(tiny_model) + [
        [BEGIN_OF_TEXT, *(rng.randrange(1000) for _ in range(n))] for n in (1, 9, 70)
    ]
    order = list(range(len(prompts)))
    rng.shuffle(order)
    straight = generate(tiny_model, prompts, max_new_tokens=5)
    shuffled = generate(tiny_model, [prompts[i] for i in order], max_new_tokens=5)
    assert [straight[i] for i in order] == shuffled
