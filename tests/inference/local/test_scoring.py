"""Scores of labels and losses of answers equal one full pass each."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from bf16 import needs_bf16
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneloop.core.ui import reporting
from tuneloop.inference.labels import calibrated, label_probability, label_trie
from tuneloop.inference.local.scoring import answer_fits, choose
from tuneloop.models.chat.template import Rendered
from tuneloop.models.load import Model, load_model
from weather import QUESTIONS, SYSTEM, prompts_of

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
def test_choice_scores_equal_one_full_pass_a_label(
    tiny_model: Model, labels: list[str], system: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = label_tokens(tiny_model, labels)
    prompts = prompts_of(tiny_model, system)
    monkeypatch.setattr("tuneloop.inference.local.scoring.BATCH_TOKENS", 200)
    answers = choose(tiny_model, prompts, label_trie(labels, tokens))
    for prompt, answer in zip(prompts, answers, strict=True):
        expected = naive_scores(tiny_model, prompt, tokens)
        assert answer.label_scores is not None and list(answer.label_scores) == labels
        assert list(answer.label_scores.values()) == pytest.approx(expected, abs=1e-4)
        assert answer.text == labels[expected.index(max(expected))]


@pytest.mark.parametrize("system", [True, False], ids=["shared beginning", "nothing shared"])
@pytest.mark.parametrize("labels", LABEL_SETS.values(), ids=LABEL_SETS.keys())
def test_pruned_choice_finds_the_same_label_with_the_same_score(
    tiny_model: Model, labels: list[str], system: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    trie = label_trie(labels, label_tokens(tiny_model, labels))
    prompts = prompts_of(tiny_model, system)
    full = choose(tiny_model, prompts, trie)
    monkeypatch.setattr("tuneloop.inference.local.scoring.BATCH_TOKENS", 200)
    pruned = choose(tiny_model, prompts, trie, prune=True)
    for all_of_them, best in zip(full, pruned, strict=True):
        assert all_of_them.label_scores is not None and best.label_scores is not None
        assert best.text == all_of_them.text
        assert best.label_scores[best.text] == pytest.approx(all_of_them.label_scores[best.text], abs=1e-4)
        assert all(best.label_scores[label] >= all_of_them.label_scores[label] - 1e-4 for label in labels)


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
    monkeypatch.setattr("tuneloop.inference.local.scoring._token_scores", certain)
    choose(tiny_model, [prompt], trie)
    full, seen[:] = sum(seen), []
    assert choose(tiny_model, [prompt], trie, prune=True)[0].text == favoured
    # The prompt, and the nodes on the way to one label: nothing next to it.
    assert sum(seen) == len(prompt) + len(tokens) - 1 < 0.7 * full


@settings(max_examples=20)
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
    trie = label_trie(labels, tokens)
    (scored,) = choose(tiny_model, [blank], trie)
    answers = [calibrated(a, scored.label_scores or {}, trie.tokens) for a in choose(tiny_model, prompts, trie)]
    for prompt, answer in zip(prompts, answers, strict=True):
        expected = [s - o for s, o in zip(naive_scores(tiny_model, prompt, tokens), offset, strict=True)]
        assert list((answer.label_scores or {}).values()) == pytest.approx(expected, abs=2e-4)
        assert answer.text == labels[expected.index(max(expected))]


@needs_bf16
def test_bf16_scores_are_near_those_of_fp32(tiny_llama: Path, tiny_model: Model) -> None:
    labels = LABEL_SETS["shared first tokens"]
    trie = label_trie(labels, label_tokens(tiny_model, labels))
    prompts = prompts_of(tiny_model)
    fine = choose(tiny_model, prompts, trie)
    coarse = choose(load_model(str(tiny_llama), dtype="bfloat16"), prompts, trie)
    for a, b in zip(fine, coarse, strict=True):
        assert list((b.label_scores or {}).values()) == pytest.approx(list((a.label_scores or {}).values()), abs=0.3)


# --- losses on given answers


def rendered(model: Model) -> list[Rendered]:
    answers = ["Yes.", "", "It only looks so; the wind is steady.", "Very", "No"]
    return [
        model.template.render([SYSTEM, {"role": "user", "content": q}, {"role": "assistant", "content": a}])  # type: ignore[list-item]
        for q, a in zip(QUESTIONS, answers, strict=True)
    ]


@pytest.mark.parametrize("batch_tokens", [60, 4096])
def test_the_fit_of_answers_equals_cross_entropy(
    tiny_model: Model, batch_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rendered(tiny_model)
    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows:
            logits = tiny_model.hidden(torch.tensor([row.ids]))[0] @ tiny_model.head.t()
            targets = torch.tensor([t if m else -100 for t, m in zip(row.ids, row.mask, strict=True)][1:])
            total += float(torch.nn.functional.cross_entropy(logits[:-1], targets, reduction="sum"))
            count += int((targets >= 0).sum())
    monkeypatch.setattr("tuneloop.inference.local.scoring.BATCH_TOKENS", batch_tokens)
    fits = answer_fits(tiny_model, rows)
    assert sum(fit.tokens for fit in fits) == count
    assert sum(fit.loss for fit in fits) == pytest.approx(total, abs=1e-4 * count)


def test_no_token_is_more_than_certain_although_logits_are_rounded() -> None:
    from tuneloop.inference.local.scoring import _token_scores

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


def test_the_probability_of_a_label_is_that_of_all_its_tokens() -> None:
    # "a b" 0.5 * 0.8, "c" 0.1: the model writes something else half of the time.
    scores = {"a b": (math.log(0.5) + math.log(0.8)) / 2, "c": math.log(0.1)}
    tokens = {"a b": 2, "c": 1}
    assert [label_probability(scores, name, tokens) for name in scores] == pytest.approx([0.8, 0.2])
    assert math.isnan(label_probability({}, "x", {}))


def test_upper_bounds_of_cut_labels_leave_a_lower_bound_that_is_no_less_than_the_label_s_own_probability() -> None:
    cut = {f"label {i}": math.log(0.9) / 8 for i in range(20)}  # known: the first token is shared and has 0.9
    scores = cut | {"label 0": math.log(0.85) / 8}
    assert label_probability(scores, "label 0", dict.fromkeys(scores, 8)) == pytest.approx(0.85)


def test_rounding_makes_no_label_surer_than_sure() -> None:
    assert label_probability({"a": 0.004, "b": -5.0}, "a", {"a": 8, "b": 8}) == 1.0


def test_calibrated_scores_are_normalised_over_the_labels() -> None:
    tokens = {"a": 2, "b": 2}
    assert label_probability({"a": 3.0, "b": 3.0 - math.log(3) / 2}, "a", tokens, shifted=True) == pytest.approx(0.75)
    assert label_probability({"a": 3.0, "b": 3.0}, "a", tokens, shifted=True) == 0.5


def test_an_answer_by_choice_carries_the_probability_of_its_label(tiny_model: Model) -> None:
    labels = ["yes", "no", "perhaps not"]
    trie = label_trie(labels, label_tokens(tiny_model, labels))
    for answer in choose(tiny_model, prompts_of(tiny_model), trie):
        assert answer.finish == "choice" and answer.label_scores is not None
        whole = {name: math.exp(score * trie.tokens[name]) for name, score in answer.label_scores.items()}
        assert answer.label_probability == pytest.approx(whole[answer.text] / sum(whole.values()), rel=1e-4)


@pytest.mark.parametrize("system", [True, False], ids=["shared beginning", "nothing shared"])
def test_prompts_that_are_read_in_parts_get_the_same_scores(
    tiny_model: Model, system: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = prompts_of(tiny_model, system)
    trie = label_trie(LABEL_SETS["shared first tokens"], label_tokens(tiny_model, LABEL_SETS["shared first tokens"]))
    chosen = choose(tiny_model, prompts, trie, prune=True)
    monkeypatch.setattr("tuneloop.models.nn.llama.READ_AT_ONCE", 60)
    for a, b in zip(choose(tiny_model, prompts, trie, prune=True), chosen, strict=True):
        assert a.text == b.text and a.label_scores == pytest.approx(b.label_scores, abs=1e-4)


def test_progress_tells_of_the_rows_of_a_batch_one_by_one(tiny_model: Model) -> None:
    seen: list[tuple[str, float]] = []

    def listen(task: str, done: float, total: float, /, **info: float | str) -> None:
        seen.append((task, done))

    trie = label_trie(LABEL_SETS["shared first tokens"], label_tokens(tiny_model, LABEL_SETS["shared first tokens"]))
    with reporting(progress=listen):
        choose(tiny_model, prompts_of(tiny_model), trie, task="ask")
    assert [done for task, done in seen if task == "ask"] == [0, 1, 2, 3, 4, 5]
