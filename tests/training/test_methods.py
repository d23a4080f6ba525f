"""One loop for every method: it learns, resumes with the same bits, goes on from earlier runs, and plain libraries load it."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from bf16 import needs_bf16
from by_day import at_night
from train_helpers import CONFIG, begin, changed, halted, losses, make_rows, run

from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json
from tuneloop.models.load import Model, load_model
from tuneloop.models.methods.shipped import SHIPPED
from tuneloop.models.trained import load_trained
from tuneloop.training.batches import Step
from tuneloop.training.config import TrainConfig
from tuneloop.training.loop import train
from tuneloop.training.loss import mean_loss
from tuneloop.training.optimizers import with_rest
from tuneloop.training.speed import measure_speed
from tuneloop.training.step import batch_loss, optimizer_step

bits = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
# What is set differently from CONFIG, by name.
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"rslora": True, "alpha": 2.0},
    "dora": {"dora": True},
    "ranks": {"ranks": {"q_proj": 4}},
    "full": {"method": "full", "learning_rate": 1e-3},
    "prefix": {"method": "prefix", "learning_rate": 1e-1, "prefix_tokens": 12},
    "qlora": {"method": "qlora"},
}
SLOW = ("rslora", "dora", "ranks")
EVERY = [pytest.param(kind, marks=bits) if kind == "qlora" else kind for kind in KINDS]
METHOD = [pytest.param(m.name, marks=bits) if m.prepare else m.name for m in SHIPPED]


def plain(folder: Path, out: Path) -> Any:
    """The result as PEFT and Transformers load it, without us."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    if (out / "model").is_dir():
        return AutoModelForCausalLM.from_pretrained(out / "model", dtype=torch.float32).eval()
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return PeftModel.from_pretrained(base, out / "adapter").eval()


@pytest.mark.parametrize("kind", EVERY)
def test_it_learns_and_what_it_leaves_loads_in_plain_libraries(kind: str, tiny_llama: Path, tmp_path: Path) -> None:
    result, model = run(tiny_llama, tmp_path, changed(**KINDS[kind]))
    assert result.best_val_loss < result.first_val_loss - 0.5
    assert result.adapter_hash and not (tmp_path / "checkpoints").exists()
    rows = make_rows(model.template, 8, offset=100)
    assert mean_loss(model, rows, CONFIG)[0] == pytest.approx(result.best_val_loss, rel=1e-4)
    fresh = load_model(str(tiny_llama), dtype="float32")
    load_trained(fresh, tmp_path)
    assert mean_loss(fresh, rows, CONFIG)[0] == pytest.approx(result.best_val_loss, rel=1e-3)
    if kind == "qlora":
        return  # on a base in four bits, see tests/models/nn/test_quantised.py
    ids = torch.tensor([rows[0].ids])
    with torch.no_grad():
        logits = fresh.net.logits(fresh.hidden(ids))  # type: ignore[operator]
        torch.testing.assert_close(logits, plain(tiny_llama, tmp_path)(ids).logits, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("kind", [at_night(k) if k in SLOW else k for k in EVERY])
def test_a_resumed_run_ends_with_the_same_bits(kind: str, tiny_llama: Path, tmp_path: Path) -> None:
    config = changed(**KINDS[kind], epochs=1.0, checkpoint_seconds=0.0, evaluations=3)

    whole, _ = run(tiny_llama, tmp_path / "whole", config)
    halted(tiny_llama, tmp_path / "cut", 4, config)
    again, _ = run(tiny_llama, tmp_path / "cut", config)
    assert again.resumed_at == 3
    assert again.adapter_hash == whole.adapter_hash
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


@pytest.mark.parametrize("method", METHOD)
def test_a_run_goes_on_from_an_earlier_one(method: str, tiny_llama: Path, tmp_path: Path) -> None:
    config = changed(**KINDS[method], epochs=1.0)
    first, _ = run(tiny_llama, tmp_path / "first", config)
    second, _ = run(tiny_llama, tmp_path / "second", config.model_copy(update={"init": str(tmp_path / "first")}))
    assert second.first_val_loss == pytest.approx(first.best_val_loss, rel=1e-3)
    assert second.best_val_loss < first.best_val_loss


@pytest.mark.parametrize("method", METHOD)
def test_measuring_the_speed_changes_nothing(method: str, tiny_llama: Path) -> None:
    config = changed(**KINDS[method])
    model = load_model(str(tiny_llama), dtype="float32")
    rows = make_rows(model.template, 24)
    if method == "qlora":  # the base stays in four bits
        from tuneloop.models.nn.quantised import quantise

        quantise(model.net)
    with torch.no_grad():
        before = float(batch_loss(model, rows, 1.0))
    assert measure_speed(model, rows, config, 0, seconds=0.05) > 0
    with torch.no_grad():
        assert float(batch_loss(model, rows, 1.0)) == before
    assert not [name for name, p in model.net.named_parameters() if p.requires_grad or p.grad is not None]


def test_what_does_not_fit_the_earlier_run_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    short = changed(epochs=0.3)
    run(tiny_llama, tmp_path / "lora", short)
    init = {"init": str(tmp_path / "lora"), "epochs": 0.3}
    with pytest.raises(UserError, match="The earlier adapter has rank 2, and this run 4") as error:
        run(tiny_llama, tmp_path / "a", changed(**init, rank=4))
    assert error.value.next_step == "set train.rank=2"
    with pytest.raises(UserError, match="That run trained LORA, and this one is full"):
        run(tiny_llama, tmp_path / "b", changed(**init, method="full"))
    with pytest.raises(UserError, match="No adapter and no model"):
        run(tiny_llama, tmp_path / "c", changed(init=str(tmp_path / "none")))
    other = load_model(str(tiny_llama), dtype="float32")
    object.__setattr__(other, "fingerprint", "other")
    with pytest.raises(UserError, match="another base model"):
        train(other, make_rows(other.template, 8), [], changed(**init), tmp_path / "d")


@needs_bf16
@pytest.mark.parametrize("optimizer", ["adamw", "adamw-8bit", "paged-adamw-8bit"])
def test_a_full_run_in_bf16_keeps_updates_that_bf16_would_lose(optimizer: str, tiny_llama: Path) -> None:
    if optimizer == "paged-adamw-8bit":
        pytest.importorskip("bitsandbytes")
    model = load_model(str(tiny_llama), dtype="bfloat16")
    state = begin(model, changed(method="full", learning_rate=1e-6, optimizer=optimizer))
    rows = make_rows(model.template, 4)
    learned = state.trainable.parameters
    start = {name: p.detach().float().clone() for name, p in learned.items()}
    for _ in range(3):
        optimizer_step(state, Step(((0, 1), (2, 3)), 0.0), rows, 1e-6)
    now = {name: p.detach() if p.dtype == torch.float32 else with_rest(p.detach(), state.optimizer.state[p]["rest"])
           for name, p in learned.items()}  # fmt: skip
    moved = {name: float((now[name] - start[name]).abs().max()) for name in now}
    assert all(0 < m < 1e-5 for m in moved.values())
    assert {p.dtype for p in model.net.parameters()} == {torch.bfloat16}
    assert all(torch.equal(p, now[name].bfloat16()) for name, p in model.net.named_parameters())
    assert all(p.grad is None for p in model.net.parameters())


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=needs_bf16)])
def test_how_a_full_step_is_divided_changes_nothing(dtype: str, tiny_llama: Path) -> None:
    found = []
    for micros in (((0, 1, 2, 3),), ((0, 1), (2, 3)), ((3,), (1,), (0, 2))):
        model = load_model(str(tiny_llama), dtype=dtype)
        state = begin(model, changed(method="full", max_grad_norm=1e9))
        found.append(optimizer_step(state, Step(micros, 0.0), make_rows(model.template, 4), 0.0)[:2])
    tolerance = 1e-4 if dtype == "float32" else 2e-2
    for loss, norm in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=tolerance) and norm == pytest.approx(found[0][1], rel=tolerance)


@pytest.mark.slow
def test_a_random_prefix_starts_far_above_a_real_one(smollm2: Path) -> None:
    model = load_model(str(smollm2), dtype="float32")
    rows = make_rows(model.template, 3)
    state = begin(model, changed(method="prefix", prefix_tokens=20), rows)
    real = mean_loss(model, rows, CONFIG)[0]
    (embeddings,) = state.trainable.parameters.values()
    with torch.no_grad():
        embeddings.copy_(torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(0)))
    assert mean_loss(model, rows, CONFIG)[0] > real + 0.5


def test_the_learning_rate_follows_the_method_unless_it_is_set() -> None:
    assert TrainConfig(method="full").learning_rate == 1e-4
    assert TrainConfig().learning_rate == TrainConfig(method="qlora").learning_rate == 5e-4
    assert TrainConfig(method="prefix").learning_rate == 3e-2
    assert TrainConfig(loss="dpo").learning_rate == pytest.approx(5e-5)
    assert TrainConfig(method="full", learning_rate=3e-4).learning_rate == 3e-4
    dumped = TrainConfig(method="full").model_dump()
    assert TrainConfig.model_validate(dumped).learning_rate == 1e-4


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "full", "kl": 0.1},
        {"method": "full", "dora": True},
        {"loss": "dpo", "train_on": "all"},
        {"ranks": {"q_proj": 0}},
    ],
    ids=str,
)
def test_settings_that_exclude_each_other_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"train\.|rank"):
        TrainConfig(**settings)


def test_distance_from_the_start_holds_the_weights(tiny_llama: Path, tmp_path: Path) -> None:
    free, free_model = run(tiny_llama, tmp_path / "free", changed(method="full", learning_rate=1e-3, epochs=1.0))
    held, held_model = run(
        tiny_llama, tmp_path / "held", changed(method="full", learning_rate=1e-3, epochs=1.0, l2_start=1.0)
    )
    base = dict(load_model(str(tiny_llama), dtype="float32").net.named_parameters())

    def moved(model: Model) -> float:
        return math.sqrt(sum(float((p - base[n]).square().sum()) for n, p in model.net.named_parameters()))

    assert moved(held_model) < 0.8 * moved(free_model)
    assert read_json(tmp_path / "held" / "model" / "tuneloop.json")["hash"] == held.adapter_hash != free.adapter_hash
