"""DPO and KTO have TRL's values, gradients that do not depend on how a step is divided, and do what they are for."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trl_values
from train_helpers import begin, changed

from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json, read_jsonl
from tuneloop.core.ui import reporting
from tuneloop.models.adapters.assignment import BASE, applied
from tuneloop.models.chat.template import Rendered
from tuneloop.models.load import Model, _load_net, load_model
from tuneloop.records.rows import Row
from tuneloop.training.batches import Step
from tuneloop.training.config import TrainConfig
from tuneloop.training.loop import train
from tuneloop.training.loss import (
    LOSSES,
    Batch,
    kto_reference_point,
    log_likelihoods,
    mean_loss,
    supervised_states,
    with_references,
)
from tuneloop.training.methods import attach
from tuneloop.training.rows import PreferencePair, UnpairedAnswer, training_rows
from tuneloop.training.step import optimizer_step

GOLDEN = json.loads(trl_values.FILE.read_text())
SETTINGS: dict[str, Any] = {"beta": GOLDEN["beta"], "rank": 4, "alpha": 8, "targets": trl_values.TARGETS}


def formula_model(folder: Path, loss: Any) -> Model:
    """The model of `trl_values.py` with the same adapter, loaded by us."""
    trl_values.base(folder)
    config = read_json(folder / "config.json")
    template: Any = SimpleNamespace(pad_id=0)
    model = Model("formula", folder, _load_net(folder, config, torch.float32), template, config, "print")
    trainable = attach(model, TrainConfig(loss=loss, **SETTINGS), 0)
    trl_values.fill((p for _, p in sorted(trainable.parameters.items())), trl_values.SCALES[loss])
    return model


def rendered(rows: list[dict[str, list[int]]]) -> list[Rendered]:
    return [Rendered(row["ids"], row["mask"]) for row in rows]


def test_dpo_has_trls_value(tmp_path: Path) -> None:
    gold = GOLDEN["dpo"]
    model = formula_model(tmp_path, "dpo")
    pairs = [PreferencePair(c, r) for c, r in zip(rendered(gold["chosen"]), rendered(gold["rejected"]), strict=True)]
    with applied(BASE):
        pairs = with_references(model, pairs)  # type: ignore[assignment]
    loss, figures = mean_loss(model, pairs, TrainConfig(loss="dpo", **SETTINGS))
    assert loss == pytest.approx(gold["loss"], rel=1e-4)
    assert abs(gold["loss"] - math.log(2)) > 1e-3, "the adapter must make a difference, or nothing is tested"
    assert figures["reward_margin"] == pytest.approx(gold["reward_margin"], rel=1e-3, abs=1e-4)
    assert figures["reward_accuracy"] == pytest.approx(gold["reward_accuracy"])


def test_kto_has_trls_value(tmp_path: Path) -> None:
    gold = GOLDEN["kto"]
    model = formula_model(tmp_path, "kto")
    triples = zip(rendered(gold["answers"]), rendered(gold["others"]), gold["good"], strict=True)
    rated = [UnpairedAnswer(answer, other, good) for answer, other, good in triples]
    with applied(BASE):
        rated = with_references(model, rated)  # type: ignore[assignment]
    config = TrainConfig(loss="kto", **SETTINGS)
    whole = Batch(model, rated, 1 / len(rated), config)
    assert gold["kl"] > 0.1
    assert kto_reference_point(whole) == pytest.approx(gold["kl"], rel=1e-3, abs=1e-4)
    assert mean_loss(model, rated, config)[0] == pytest.approx(gold["loss"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed")
def test_the_frozen_values_are_still_trls(tmp_path: Path) -> None:
    now = trl_values.values(tmp_path)
    for name in ("dpo", "kto"):
        assert now[name]["loss"] == pytest.approx(GOLDEN[name]["loss"], rel=1e-4)


def test_log_likelihoods_and_their_gradient_are_those_of_the_plain_formula(tiny_model: Model) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [
        Rendered(torch.randint(0, 1000, (n,), generator=generator).tolist(), [0] * 4 + [1] * (n - 4))
        for n in (9, 14, 6)
    ]
    state = begin(tiny_model, changed(lora_plus=1.0))
    parameters = list(state.trainable.parameters.values())
    trl_values.fill(parameters, 0.1)
    weights = torch.tensor([1.0, -2.0, 0.5])
    found = log_likelihoods(tiny_model, rows)
    gradients = torch.autograd.grad((found * weights).sum(), parameters)
    plain = []
    for row in rows:
        logits = tiny_model.net.logits(tiny_model.hidden(torch.tensor([row.ids])))[0]  # type: ignore[operator]
        logp = torch.log_softmax(logits[:-1], -1)[torch.arange(len(row.ids) - 1), torch.tensor(row.ids[1:])]
        plain.append((logp * torch.tensor(row.mask[1:])).sum())
    torch.testing.assert_close(found, torch.stack(plain), rtol=1e-4, atol=1e-4)
    expected = torch.autograd.grad((torch.stack(plain) * weights).sum(), parameters)
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def preferences(model: Model, n: int, loss: str) -> list[Any]:
    rows = []
    for i in range(n):
        turns: Any = [
            {"role": "user", "content": f"Letter {i}"},
            {"role": "assistant", "content": "red" if i % 2 or loss == "dpo" else "blue"},
        ]
        meta = {"rejected": [{"role": "assistant", "content": "blue"}]} if loss == "dpo" else {"thumb": bool(i % 2)}
        rows.append(Row(str(i), turns, meta=meta))
    return training_rows(rows, model.template, TrainConfig(loss=loss))  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_how_a_step_is_divided_changes_neither_loss_nor_gradient(loss: Any, tiny_llama: Path) -> None:
    found = []
    for micros in (((0, 1, 2, 3),), ((2,), (3, 0), (1,))):
        model = load_model(str(tiny_llama), dtype="float32")
        state = begin(model, changed(loss=loss, max_grad_norm=1e9, beta=2.0))
        rows = with_references(model, preferences(model, 4, loss))
        trl_values.fill(state.trainable.parameters.values(), 0.1)
        found.append(optimizer_step(state, Step(micros, 0.0), rows, 0.0))
    (loss_a, norm_a, figures_a), (loss_b, norm_b, figures_b) = found
    assert loss_a == pytest.approx(loss_b, rel=1e-4) and norm_a == pytest.approx(norm_b, rel=1e-3)
    assert figures_a == pytest.approx(figures_b, rel=1e-3)
    assert norm_a > 0


@pytest.mark.parametrize(("loss", "method"), [("dpo", "lora"), ("dpo", "full"), ("dpo", "prefix"), ("kto", "lora")])
def test_training_on_preferences_widens_the_margin(loss: Any, method: Any, tiny_llama: Path, tmp_path: Path) -> None:
    model = load_model(str(tiny_llama), dtype="float32")
    rate = {"lora": 5e-3, "full": 1e-3, "prefix": 1e-1}[method]
    config = changed(loss=loss, method=method, learning_rate=rate, beta=0.5, prefix_tokens=8)
    result = train(model, preferences(model, 16, loss), preferences(model, 6, loss), config, tmp_path)
    records = [r for r in read_jsonl(tmp_path / "metrics.jsonl") if "val_loss" in r]
    if method != "prefix":  # a prefix starts as real text, not as nothing
        assert records[0]["val_loss"] == pytest.approx(math.log(2) if loss == "dpo" else 0.5, rel=1e-3)
        assert records[0]["val_reward_margin"] == pytest.approx(0, abs=1e-4)
    assert records[-1]["val_reward_margin"] > 0.1 and records[-1]["val_reward_accuracy"] == 1.0
    assert result.best_val_loss < result.first_val_loss - 0.05
    assert {"reward_margin", "reward_accuracy"} <= read_jsonl(tmp_path / "metrics.jsonl")[1].keys()


def test_the_reference_is_asked_for_rows_that_are_trained_on_only(tiny_llama: Path, tmp_path: Path) -> None:
    asked = []
    model = load_model(str(tiny_llama), dtype="float32")
    config = changed(loss="dpo", rows_per_step=2, epochs=0.25)
    with reporting(progress=lambda kind, done, total, **_: asked.append(total) if kind == "reference" else None):
        train(model, preferences(model, 16, "dpo"), preferences(model, 3, "dpo"), config, tmp_path)  # fmt: skip
    records = [r for r in read_jsonl(tmp_path / "metrics.jsonl") if "loss" in r]
    assert set(asked) == {4, 3} and len(records) == 2  # two steps of two rows, and validation
    assert records[0]["loss"] == pytest.approx(math.log(2), rel=1e-3), "these rows have their references"


def test_a_divergence_penalty_is_zero_at_the_start_and_holds_the_model(tiny_llama: Path, tmp_path: Path) -> None:
    from train_helpers import make_rows

    moved = []
    for kl in (0.0, 5.0):
        model = load_model(str(tiny_llama), dtype="float32")
        rows = make_rows(model.template, 16)
        config = changed(kl=kl)
        train(model, rows, [], config, tmp_path / str(kl))
        records = [r for r in read_jsonl(tmp_path / str(kl) / "metrics.jsonl") if "loss" in r]
        if kl:
            assert records[0]["kl"] == pytest.approx(0, abs=1e-6) and records[-1]["kl"] > 0
            batch = Batch(model, rows, 1.0, config, lambda net=model.net: applied(BASE))
            assert float(LOSSES["supervised"].value(batch)[1]["kl"]) > 0
        with torch.no_grad():
            tuned = supervised_states(model, rows).hidden_NC
            with applied(BASE):
                moved.append(float((tuned - supervised_states(model, rows).hidden_NC).norm()))
    assert moved[1] < 0.7 * moved[0]


def test_a_reference_is_what_the_run_goes_on_from(tiny_llama: Path, tmp_path: Path) -> None:
    model = load_model(str(tiny_llama), dtype="float32")
    rows = preferences(model, 8, "dpo")
    config = changed(loss="dpo", epochs=1.0, beta=0.5)
    train(model, rows, rows, config, tmp_path / "first")
    again = load_model(str(tiny_llama), dtype="float32")
    train(again, rows, rows, config.model_copy(update={"init": str(tmp_path / "first")}), tmp_path / "second")
    first = next(r for r in read_jsonl(tmp_path / "second" / "metrics.jsonl") if "val_loss" in r)
    assert first["val_reward_margin"] == pytest.approx(0, abs=1e-4)


def test_a_pair_without_a_difference_to_learn_is_refused(tiny_model: Model, tmp_path: Path) -> None:
    row = Rendered([5, 6, 7], [0, 0, 0])
    with pytest.raises(UserError, match="no token to learn"):
        train(tiny_model, [PreferencePair(row, row)], [], changed(loss="dpo"), tmp_path)
