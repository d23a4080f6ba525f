"""Batches, shared beginnings and label trees are only faster: the answers are those of the naive way."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patience import needs_bf16
from tuneloop.inference.generate import _batches, answer_fits, choose, generate, label_trie
from tuneloop.inference.sampling import highest
from tuneloop.models.load import Model, load_model
from tuneloop.models.template import Rendered

SYSTEM = {"role": "system", "content": "You answer questions about the weather on far planets, briefly and with care."}
QUESTIONS = [
    "Rain?",
    "Is it windy on Jupiter in the autumn, or does it only look so?",
    "Why",
    "How cold " * 9,
    "And Mars?",
]


def prompts_of(model: Model, system: bool = True) -> list[list[int]]:
    turns = [[SYSTEM] * system + [{"role": "user", "content": q}] for q in QUESTIONS]
    return [model.template.prompt_ids(t) for t in turns]  # type: ignore[arg-type]


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
        assert answer.tokens == len(expected)
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
    assert [a.tokens for a in answers] == [len(e) for e in expected]
    assert len({a.tokens for a in answers}) > 1 and any(a.finished for a in answers)
    for answer, tokens in zip(answers, expected, strict=True):
        assert answer.text == model.template.decode(tokens[:-1] if answer.finished else tokens).strip()


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_answers_do_not_depend_on_the_batch(tiny_model: Model, rows: int) -> None:
    prompts = prompts_of(tiny_model)
    whole = generate(tiny_model, prompts, max_new_tokens=8)
    assert generate(tiny_model, prompts, max_new_tokens=8, batch_rows=rows) == whole
    assert generate(tiny_model, prompts, max_new_tokens=8, batch_tokens=80) == whole
    assert [generate(tiny_model, [p], max_new_tokens=8)[0] for p in prompts] == whole


@pytest.mark.parametrize("system", [True, False], ids=["shared beginning", "nothing shared"])
def test_prompts_that_are_read_in_parts_get_the_same_answers(
    tiny_model: Model, monkeypatch: pytest.MonkeyPatch, system: bool
) -> None:
    prompts = prompts_of(tiny_model, system)
    tokens = label_tokens(tiny_model, LABEL_SETS["shared first tokens"])
    trie = label_trie(LABEL_SETS["shared first tokens"], tokens)
    whole = generate(tiny_model, prompts, max_new_tokens=8)
    chosen = choose(tiny_model, prompts, trie, prune=True)
    monkeypatch.setattr("tuneloop.models.llama.READ_AT_ONCE", 60)
    assert generate(tiny_model, prompts, max_new_tokens=8) == whole
    for a, b in zip(choose(tiny_model, prompts, trie, prune=True), chosen, strict=True):
        assert a.text == b.text and a.scores == pytest.approx(b.scores, abs=1e-4)


@pytest.mark.parametrize("size", [4096, 1000, 130, 128])
def test_the_highest_logits_are_those_of_topk(size: int) -> None:
    logits = torch.randn(7, size, generator=torch.Generator().manual_seed(size)).to(torch.bfloat16)
    found = logits.gather(1, highest(logits, 4))
    assert torch.equal(found.sort(-1, descending=True).values, logits.topk(4, -1).values)
    assert all(len(set(row)) == 4 for row in highest(logits, 4).tolist())


def test_no_prompts_and_equal_prompts(tiny_model: Model) -> None:
    assert generate(tiny_model, [], max_new_tokens=4) == []
    prompt = prompts_of(tiny_model)[0]
    answers = generate(tiny_model, [prompt, prompt], max_new_tokens=4)
    assert answers[0] == answers[1]
    assert answers[0] == generate(tiny_model, [prompt], max_new_tokens=4)[0]


def test_progress_names_the_reading_of_what_prompts_share_and_counts_within_a_batch(tiny_model: Model) -> None:
    seen: list[tuple[str, float, float]] = []

    def listen(task: str, done: float, total: float, /, **info: float | str) -> None:
        seen.append((task, done, total))

    prompts = prompts_of(tiny_model)
    generate(tiny_model, prompts, max_new_tokens=2, batch_rows=2, progress=listen, task="ask")
    assert seen[:3] == [
        ("ask: reading what the prompts share", 0, 1),
        ("ask: reading what the prompts share", 1, 1),
        ("ask", 0, 5),
    ]
    assert seen[-1] == ("ask", 5, 5)
    seen.clear()
    trie = label_trie(LABEL_SETS["shared first tokens"], label_tokens(tiny_model, LABEL_SETS["shared first tokens"]))
    choose(tiny_model, prompts, trie, progress=listen, task="ask")
    assert [done for task, done, _ in seen if task == "ask"] == [0, 1, 2, 3, 4, 5], (
        "rows of a batch are told of one by one"
    )


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


LABEL_SETS = {
    "shared first tokens": ["card_arrival", "card_linking", "card", "refund", "Refund not showing up"],
    "one is another's beginning": ["card", "card payment", "card payment fee", "card payment fee charged twice"],
    "one label": ["delivery"],
    "single tokens": ["yes", "no"],
    "unicode": ["Größe", "größe", "日本", "日本語"],
}


def label_tokens(model: Model, labels: list[str]) -> list[list[int]]:
    end = model.template.end_ids[0]
    return [[*model.template.encode(label), end] for label in labels]


@torch.no_grad()
def naive_scores(model: Model, prompt: list[int], tokens: list[list[int]]) -> list[float]:
    """One full forward pass a label."""
    scores = []
    for label in tokens:
        logits = (model.hidden(torch.tensor([prompt + label]))[0] @ model.head.t()).float()
        logp = logits.log_softmax(-1)
        scores.append(sum(float(logp[len(prompt) - 1 + i, t]) for i, t in enumerate(label)) / len(label))
    return scores


@pytest.mark.parametrize("system", [True, False], ids=["shared beginning", "nothing shared"])
@pytest.mark.parametrize("labels", LABEL_SETS.values(), ids=LABEL_SETS.keys())
def test_choice_scores_equal_one_full_pass_a_label(tiny_model: Model, labels: list[str], system: bool) -> None:
    tokens = label_tokens(tiny_model, labels)
    prompts = prompts_of(tiny_model, system)
    answers = choose(tiny_model, prompts, label_trie(labels, tokens), batch_tokens=200)
    for prompt, answer in zip(prompts, answers, strict=True):
        expected = naive_scores(tiny_model, prompt, tokens)
        assert answer.scores is not None and list(answer.scores) == labels
        assert list(answer.scores.values()) == pytest.approx(expected, abs=1e-4)
        assert answer.text == labels[expected.index(max(expected))]


@pytest.mark.parametrize("calibrated", [False, True], ids=["raw", "calibrated"])
@pytest.mark.parametrize("system", [True, False], ids=["shared beginning", "nothing shared"])
@pytest.mark.parametrize("labels", LABEL_SETS.values(), ids=LABEL_SETS.keys())
def test_pruned_choice_finds_the_same_label_with_the_same_score(
    tiny_model: Model, labels: list[str], system: bool, calibrated: bool
) -> None:
    trie = label_trie(labels, label_tokens(tiny_model, labels))
    prompts = prompts_of(tiny_model, system)
    blank = tiny_model.template.prompt_ids([SYSTEM, {"role": "user", "content": "N/A"}]) if calibrated else None  # type: ignore[list-item]
    full = choose(tiny_model, prompts, trie, content_free=blank)
    pruned = choose(tiny_model, prompts, trie, content_free=blank, prune=True, batch_tokens=200)
    for all_of_them, best in zip(full, pruned, strict=True):
        assert all_of_them.scores is not None and best.scores is not None
        assert best.text == all_of_them.text
        assert best.scores[best.text] == pytest.approx(all_of_them.scores[best.text], abs=1e-4)
        assert all(best.scores[label] >= all_of_them.scores[label] - 1e-4 for label in labels)


def test_pruned_choice_computes_less_when_one_label_stands_out(
    tiny_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = [
        f"{kind} {thing} number {i}" for kind in ("open", "closed") for thing in ("case", "order") for i in range(5)
    ]
    trie = label_trie(labels, label_tokens(tiny_model, labels))
    prompt = prompts_of(tiny_model)[0]
    favoured = choose(tiny_model, [prompt], trie)[0].text
    tokens = label_tokens(tiny_model, labels)[labels.index(favoured)]
    seen: list[int] = []
    hidden = type(tiny_model).hidden

    def counted(self: Model, ids: Any, *rest: Any) -> Any:
        seen.append(ids.numel() if len(rest) < 4 else int(rest[3].sum()))
        return hidden(self, ids, *rest)

    def certain(states: Any, weight: Any, at: Any, edge_tokens: Any) -> Any:
        return torch.where(torch.isin(edge_tokens, torch.tensor(tokens)), -0.01, -50.0)

    monkeypatch.setattr(type(tiny_model), "hidden", counted)
    monkeypatch.setattr("tuneloop.inference.generate._token_scores", certain)
    choose(tiny_model, [prompt], trie)
    full, seen[:] = sum(seen), []
    assert choose(tiny_model, [prompt], trie, prune=True)[0].text == favoured
    # The prompt, and the nodes on the way to one label: nothing beside it.
    assert sum(seen) == len(prompt) + len(tokens) - 1 < 0.7 * full


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=1, max_size=6, unique_by=tuple))
def test_a_label_tree_holds_every_label_once(tokens: list[list[int]]) -> None:
    ended = [[*t, 9] for t in tokens]
    trie = label_trie([str(i) for i in range(len(ended))], ended)
    for i, label in enumerate(ended):
        edges = [(parent, token) for number, parent, token in trie.edges if number == i]
        assert [token for _, token in edges] == label
        path = [parent for parent, _ in edges]
        assert path[0] == 0 and [trie.ids[p - 1] for p in path[1:]] == label[:-1]
        for depth, node in enumerate(path[1:], 1):
            assert trie.depths[node - 1] == depth
            on_path = {n for n, seen in enumerate(trie.ancestors[node - 1], 1) if seen}
            assert on_path == set(path[1 : depth + 1])


def test_calibration_subtracts_the_scores_of_the_prompt_without_text(tiny_model: Model) -> None:
    labels = LABEL_SETS["shared first tokens"]
    tokens = label_tokens(tiny_model, labels)
    prompts = prompts_of(tiny_model)
    blank = tiny_model.template.prompt_ids([SYSTEM, {"role": "user", "content": "N/A"}])  # type: ignore[list-item]
    offset = naive_scores(tiny_model, blank, tokens)
    answers = choose(tiny_model, prompts, label_trie(labels, tokens), content_free=blank)
    for prompt, answer in zip(prompts, answers, strict=True):
        expected = [s - o for s, o in zip(naive_scores(tiny_model, prompt, tokens), offset, strict=True)]
        assert list((answer.scores or {}).values()) == pytest.approx(expected, abs=2e-4)
        assert answer.text == labels[expected.index(max(expected))]


@needs_bf16
def test_bf16_scores_are_near_those_of_fp32(tiny_llama: Path, tiny_model: Model) -> None:
    labels = LABEL_SETS["shared first tokens"]
    trie = label_trie(labels, label_tokens(tiny_model, labels))
    prompts = prompts_of(tiny_model)
    fine = choose(tiny_model, prompts, trie)
    coarse = choose(load_model(str(tiny_llama), dtype="bfloat16"), prompts, trie)
    for a, b in zip(fine, coarse, strict=True):
        assert list((b.scores or {}).values()) == pytest.approx(list((a.scores or {}).values()), abs=0.3)


# --- losses on given answers


def rendered(model: Model) -> list[Rendered]:
    answers = ["Yes.", "", "It only looks so; the wind is steady.", "Very", "No"]
    return [
        model.template.render([SYSTEM, {"role": "user", "content": q}, {"role": "assistant", "content": a}])  # type: ignore[list-item]
        for q, a in zip(QUESTIONS, answers, strict=True)
    ]


@pytest.mark.parametrize("batch_tokens", [60, 4096])
def test_the_fit_of_answers_equals_cross_entropy(tiny_model: Model, batch_tokens: int) -> None:
    rows = rendered(tiny_model)
    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows:
            logits = tiny_model.hidden(torch.tensor([row.ids]))[0] @ tiny_model.head.t()
            targets = torch.tensor([t if m else -100 for t, m in zip(row.ids, row.mask, strict=True)][1:])
            total += float(torch.nn.functional.cross_entropy(logits[:-1], targets, reduction="sum"))
            count += int((targets >= 0).sum())
    fits = answer_fits(tiny_model, rows, batch_tokens=batch_tokens)
    assert sum(fit.tokens for fit in fits) == count
    assert sum(fit.loss for fit in fits) == pytest.approx(total, abs=1e-4 * count)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 200), st.integers(1, 9))
def test_batches_hold_every_row_once_within_their_bounds(lengths: list[int], tokens: int, rows: int) -> None:
    batches = list(_batches(lengths, tokens, rows))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= rows
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= tokens


def test_a_random_mixture_of_lengths_gives_the_same_in_any_order(tiny_model: Model) -> None:
    rng = random.Random(0)
    prompts: list[Any] = prompts_of(tiny_model) + [
        [128000, *(rng.randrange(1000) for _ in range(n))] for n in (1, 9, 70)
    ]
    order = list(range(len(prompts)))
    rng.shuffle(order)
    straight = generate(tiny_model, prompts, max_new_tokens=5)
    shuffled = generate(tiny_model, [prompts[i] for i in order], max_new_tokens=5)
    assert [straight[i] for i in order] == shuffled


def test_no_token_is_more_than_certain_although_logits_are_rounded() -> None:
    from tuneloop.inference.generate import _token_scores

    torch.manual_seed(0)
    head = torch.randn(512, 64)
    hidden = (
        torch.randn(40, 64) / 8 + head[:40] * torch.linspace(0.1, 0.6, 40)[:, None]
    )  # from many likely tokens to a single one
    head, hidden = head.bfloat16(), hidden.bfloat16()
    at = torch.arange(40)
    exact = torch.log_softmax(hidden.double() @ head.double().t(), -1)[at, at]
    found = _token_scores(hidden, head, at, at)
    assert exact.max() > -1e-3 and exact.min() < -1
    assert found.max() <= 1e-6
    torch.testing.assert_close(found.double(), exact, atol=0.01, rtol=0)
