"""Ways to need less memory give the gradients and weights of the plain way."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bf16 import needs_bf16
from by_day import at_night
from hypothesis import example, given
from hypothesis import strategies as st
from train_helpers import begin, changed, halted, losses, make_rows, run

from tuneloop.core.errors import UserError
from tuneloop.core.files import read_jsonl
from tuneloop.models.load import layers_of, load_model
from tuneloop.records.plan import MeasuredMachine
from tuneloop.training import loss, step
from tuneloop.training.batches import Step
from tuneloop.training.loss import mean_loss, supervised_states
from tuneloop.training.methods import recompute_layers
from tuneloop.training.optimizers import (
    BLOCK,
    AdamW,
    _mean_of,
    _pack_mean,
    _pack_square,
    _square_of,
    round_off,
    with_rest,
)
from tuneloop.training.rows import Rendered
from tuneloop.training.step import optimizer_step

FULL: dict[str, Any] = {"method": "full", "learning_rate": 1e-3, "max_grad_norm": 1e9, "epochs": 1}


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=needs_bf16)])
@pytest.mark.parametrize("micro_batch_tokens", [2048, 64])
def test_updates_in_the_backward_pass_give_the_same_weights(
    tiny_llama: Path, tmp_path: Path, dtype: str, micro_batch_tokens: int
) -> None:
    config = {**FULL, "micro_batch_tokens": micro_batch_tokens}
    plain, _ = run(tiny_llama, tmp_path / "plain", changed(**config), dtype=dtype)
    inside, _ = run(tiny_llama, tmp_path / "inside", changed(**config, optimizer_in_backward=True), dtype=dtype)
    assert plain.adapter_hash == inside.adapter_hash
    assert losses(tmp_path / "plain") == losses(tmp_path / "inside")
    norms = [
        [r["grad_norm"] for r in read_jsonl(tmp_path / n / "metrics.jsonl") if "loss" in r] for n in ("plain", "inside")
    ]
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)


def test_with_updates_in_the_backward_pass_gradients_never_exist_all_at_once(tiny_llama: Path) -> None:
    model = load_model(str(tiny_llama), dtype="float32")
    state = begin(model, changed(**FULL, optimizer_in_backward=True))
    parameters = list(state.trainable.parameters.values())
    held: list[int] = []
    state.trainable.ready.insert(0, lambda p: held.append(sum(q.grad is not None for q in parameters)))
    optimizer_step(state, Step(((0, 1, 2),), 0.0), make_rows(model.template, 3), 1e-3)
    assert len(held) == len(parameters) and max(held) == 1


@pytest.mark.parametrize("method", ["lora", "full"])
def test_layers_computed_again_give_the_same_bits(tiny_llama: Path, tmp_path: Path, method: str) -> None:
    found = [
        run(tiny_llama, tmp_path / how, changed(method=method, epochs=1, dropout=0.1 if method == "lora" else 0.0, gradient_checkpointing=how))[0]
        for how in ("never", "always")
    ]  # fmt: skip
    assert found[0].adapter_hash == found[1].adapter_hash
    assert losses(tmp_path / "never") == losses(tmp_path / "always")


def test_of_layers_that_are_computed_again_the_last_ones_can_be_kept(tiny_model: Any) -> None:
    layers = layers_of(tiny_model.net)
    found = []
    for kept in (0, 1, len(layers)):
        recompute_layers(tiny_model.net, True, kept)
        found.append(["forward" in vars(layer) for layer in layers])
    assert found == [[True] * len(layers), [True] * (len(layers) - 1) + [False], [False] * len(layers)]
    recompute_layers(tiny_model.net, False)


def test_a_run_with_some_layers_kept_gives_the_same_bits_and_gives_them_up_when_memory_runs_out(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = changed(epochs=0.5, rows_per_step=1)
    plain, _ = run(tiny_llama, tmp_path / "plain", config)
    kept, _ = run(tiny_llama, tmp_path / "kept", config, measured=MeasuredMachine(recompute=True, kept_layers=1))
    assert kept.adapter_hash == plain.adapter_hash
    counts: list[int] = []
    gradients = step._gradients

    def short(run: Any, *rest: Any) -> Any:
        counts.append(run.state.kept_layers)
        if run.state.kept_layers:
            raise MemoryError("out of memory")
        return gradients(run, *rest)

    monkeypatch.setattr(step, "_gradients", short)
    less, _ = run(tiny_llama, tmp_path / "less", config, measured=MeasuredMachine(recompute=True, kept_layers=1))
    assert counts[:3] == [1, 0, 0] and less.adapter_hash == plain.adapter_hash


def test_layers_are_computed_again_when_a_single_row_does_not_fit(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _ = run(tiny_llama, tmp_path / "plain", changed(epochs=1, rows_per_step=1))
    real = step._gradients

    def tight(state: Any, *rest: Any) -> Any:
        if not state.state.recompute:
            raise MemoryError
        return real(state, *rest)

    monkeypatch.setattr(step, "_gradients", tight)
    found, model = run(tiny_llama, tmp_path / "tight", changed(epochs=1, rows_per_step=1))
    assert found.adapter_hash == plain.adapter_hash
    (event,) = [r for r in read_jsonl(tmp_path / "tight" / "metrics.jsonl") if "event" in r]
    assert "computed again" in event["message"]
    assert not any("forward" in vars(layer) for layer in model.net.model.layers)
    with pytest.raises(UserError, match="a single row"):
        run(tiny_llama, tmp_path / "never", changed(epochs=1, rows_per_step=1, gradient_checkpointing="never"))


def test_packed_rows_have_the_loss_and_gradient_of_padded_ones(tiny_llama: Path, tmp_path: Path) -> None:
    padded, _ = run(tiny_llama, tmp_path / "padded", changed(epochs=1))
    packed, _ = run(tiny_llama, tmp_path / "packed", changed(epochs=1, packing=True))
    item, two = (
        [r["loss"] for r in read_jsonl(tmp_path / n / "metrics.jsonl") if "loss" in r] for n in ("padded", "packed")
    )
    assert two == pytest.approx(item, rel=1e-4)
    assert packed.best_val_loss == pytest.approx(padded.best_val_loss, rel=1e-4)


def test_a_packed_row_never_sees_another_one(tiny_model: Any) -> None:
    rows = make_rows(tiny_model.template, 3)
    other = Rendered([(i + 7) % 1000 for i in rows[0].ids], rows[0].mask)
    with torch.no_grad():
        item, two = (supervised_states(tiny_model, batch, packed=True) for batch in (rows, [other, *rows[1:]]))
    behind = item.rows_N > 0
    torch.testing.assert_close(item.hidden_NC[behind], two.hidden_NC[behind], atol=0, rtol=0)
    assert not torch.equal(item.hidden_NC[~behind], two.hidden_NC[~behind])


@pytest.mark.parametrize(
    ("optimizer", "dtype", "inside"),
    [
        ("adamw-8bit", "float32", False),
        at_night(pytest.param("adamw-8bit", "bfloat16", True, marks=needs_bf16)),
        at_night(("paged-adamw-8bit", "float32", True)),
        pytest.param("paged-adamw-8bit", "bfloat16", False, marks=needs_bf16),
    ],
)
def test_states_in_eight_bits_learn_and_are_resumed(
    tiny_llama: Path, tmp_path: Path, optimizer: str, dtype: str, inside: bool
) -> None:
    if optimizer == "paged-adamw-8bit":
        pytest.importorskip("bitsandbytes")
    config = changed(
        method="full", optimizer=optimizer, learning_rate=1e-3, optimizer_in_backward=inside, checkpoint_seconds=0.0
    )
    whole, model = run(tiny_llama, tmp_path / "whole", config, dtype=dtype)
    assert whole.best_val_loss < whole.first_val_loss - 0.5

    halted(tiny_llama, tmp_path / "cut", 7, config, dtype=dtype)
    again, _ = run(tiny_llama, tmp_path / "cut", config, dtype=dtype)
    assert again.resumed_at and again.adapter_hash == whole.adapter_hash
    assert mean_loss(model, make_rows(model.template, 8, offset=100), config)[0] == pytest.approx(
        whole.best_val_loss, rel=1e-4
    )


def test_memory_that_runs_out_while_validating_halves_the_batch(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, plain = make_rows(tiny_model.template, 9), loss.LOSSES["supervised"]
    expected = mean_loss(tiny_model, rows, changed())[0]

    def tight(most: int) -> Any:
        def value(batch: Any) -> Any:
            if len(batch.rows) > most:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            return plain.value(batch)

        return replace(plain, value=value)

    monkeypatch.setitem(loss.LOSSES, "supervised", tight(2))
    assert mean_loss(tiny_model, rows, changed())[0] == pytest.approx(expected, rel=1e-5)
    monkeypatch.setitem(loss.LOSSES, "supervised", tight(0))
    with pytest.raises(UserError, match="while validating: a single row"):
        mean_loss(tiny_model, rows, changed())


def test_adamw_gives_the_bits_and_states_of_torchs_own() -> None:
    settings: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1, "betas": (0.9, 0.999)}
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in ((7, 5), (3,), (2, 2))]
    made = []
    for kind, extra in ((AdamW, {}), (torch.optim.AdamW, {"fused": True})):
        ours = [torch.nn.Parameter(t.clone()) for t in start]
        groups = [{"params": ours[:2], "ratio": 1.0}, {"params": ours[2:], "ratio": 10.0}]
        made.append((ours, kind(groups, **settings, **extra)))  # type: ignore[operator]
    for path in range(5):
        drawn = [torch.randn(t.shape, generator=generator) for t in start]
        for parameters, optimizer in made:
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 * group["ratio"] / (path + 1)
            for p, gradient in zip(parameters, drawn, strict=True):
                p.grad = (
                    gradient.clone() if path or p is not parameters[1] else None
                )  # one learns later than the others
            optimizer.step()
            optimizer.zero_grad()
            assert all(p.grad is None for p in parameters)
        if path == 2:  # each goes on from the other's states
            states = [optimizer.state_dict() for _, optimizer in made]
            for (_, optimizer), state in zip(made, states[::-1], strict=True):
                optimizer.load_state_dict({**optimizer.state_dict(), "state": state["state"]})
    for item, two in zip(made[0][0], made[1][0], strict=True):
        assert torch.equal(item, two)
    item, two = (optimizer.state_dict()["state"] for _, optimizer in made)
    assert not [(i, name) for i in two for name in two[i] if not torch.equal(item[i][name], two[i][name])]


@given(
    st.lists(st.floats(width=32, allow_nan=False, min_value=-(2.0**99), max_value=2.0**99), min_size=1), st.booleans()
)
@example(
    [1.0 + 2**-8, -(1.0 + 2**-8), 1.0 + 3 * 2**-8, 0.0, -0.0, 1e-42], True
)  # halves of a bf16 step, both ways; no normal number
def test_a_bf16_weight_and_its_rest_are_the_fp32_weight(values: list[float], still: bool) -> None:
    """The update of nothing but the weight decay, which is one fp32 product."""
    wide = torch.nn.Parameter(torch.tensor(values))
    weight = torch.nn.Parameter(wide.detach().bfloat16())
    settings: dict[str, Any] = {"lr": 0.0 if still else 0.25, "weight_decay": 0.5, "betas": (0.9, 0.999)}
    optimizer = AdamW([{"params": [weight]}], **settings)
    rest = optimizer._state(weight)["rest"]
    round_off(wide.detach().clone(), weight.detach(), rest)
    before = with_rest(weight.detach(), rest).clone()
    assert (before.view(torch.int32) - wide.detach().view(torch.int32)).abs().max() <= 1  # the last digit, at most
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    expected = before * (1 - settings["lr"] * settings["weight_decay"])
    after = with_rest(weight.detach(), rest)
    assert (after.view(torch.int32) - expected.view(torch.int32)).abs().max() <= 1
    assert torch.equal(weight.detach(), after.bfloat16())


@given(st.integers(0, 2**32 - 1), st.floats(-15, 10))
def test_moments_in_eight_bits_are_near_and_no_second_one_is_zero(seed: int, exponent: float) -> None:
    values = torch.randn(4 * BLOCK, generator=torch.Generator().manual_seed(seed)) * 10**exponent
    values[:BLOCK] = 0.0
    values[-1] = 0.0
    codes, scale = torch.zeros(len(values), dtype=torch.uint8), torch.zeros(4)
    greatest = values.view(4, BLOCK).abs().amax(1).repeat_interleave(BLOCK)
    _pack_mean(values, codes, scale)
    found = _mean_of(codes, scale)
    assert ((found - values).abs() <= 2**-4 * values.abs() + 1e-5 * greatest).all()
    _pack_square(values.abs(), codes, scale)
    found = _square_of(codes, scale)
    share = values.abs()[BLOCK:] / greatest[BLOCK:]
    assert ((found[BLOCK:] / greatest[BLOCK:]) ** 0.25 - share**0.25).abs().max() <= 0.51 / 255 + 1 / 255 * (
        share == 0
    ).any()
    assert (found[BLOCK:] > 0).all() and torch.equal(found[:BLOCK], torch.zeros(BLOCK))


def test_no_weight_runs_away_where_gradients_differ_by_orders_of_magnitude() -> None:
    """A second moment rounded to zero next to a first one that was not moved single weights by hundreds of learning rates."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.exp(1.5 * torch.randn(64, 1024, generator=generator))
    p = torch.nn.Parameter(torch.zeros(64, 1024))
    optimizer = AdamW([{"params": [p]}], lr=1.0, weight_decay=0.0, betas=(0.9, 0.999), eight_bits=True)
    for _ in range(50):
        before, p.grad = p.detach().clone(), sizes * torch.randn(sizes.shape, generator=generator)
        optimizer.step()
        assert float((p.detach() - before).abs().max()) < 10


def test_eight_bits_learn_nearly_what_32_do() -> None:
    generator = torch.Generator().manual_seed(0)
    start, push = (torch.randn(300, 1024, generator=generator) for _ in range(2))
    settings: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.0, "betas": (0.9, 0.999)}
    eight, wide, rounded = (
        torch.nn.Parameter(start.to(kind, copy=True)) for kind in (torch.float32, torch.float32, torch.bfloat16)
    )
    optimizers = [
        AdamW([{"params": [p]}], eight_bits=t, **settings) for p, t in ((eight, True), (wide, False), (rounded, True))
    ]
    for _ in range(40):
        gradient = push + torch.randn(start.shape, generator=generator)
        for p, optimizer in zip((eight, wide, rounded), optimizers, strict=True):
            p.grad = gradient.to(p.dtype)
            optimizer.step()
    moved = wide.detach() - start
    assert float((eight.detach() - start - moved).norm() / moved.norm()) < 0.05
    held = optimizers[2].state[rounded]
    found = with_rest(rounded.detach(), held["rest"]) - start.bfloat16().float()
    assert float((found - moved).norm() / moved.norm()) < 0.05
    taken = {name: (value.dtype, tuple(value.shape)) for name, value in held.items() if value.dim()}
    assert taken == {
        "exp_avg": (torch.uint8, (300, 1024)), "exp_avg_scale": (torch.float32, (300, 16)), "rest": (torch.int16, (300, 1024)),
        "exp_avg_sq": (torch.uint8, (300, 1024)), "exp_avg_sq_scale": (torch.float32, (300, 16)),
    }  # fmt: skip


def test_bf16_weights_learn_as_fp32_ones_do_where_plain_bf16_stands_still() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(300, 1000, generator=generator).bfloat16()  # more than a stretch
    ours, wide, plain = (
        torch.nn.Parameter(start.to(kind, copy=True)) for kind in (torch.bfloat16, torch.float32, torch.bfloat16)
    )
    settings: dict[str, Any] = {"lr": 1e-5, "weight_decay": 0.0, "betas": (0.9, 0.999)}
    optimizers = [AdamW([{"params": [p]}], **settings) for p in (ours, wide)]
    optimizers.append(torch.optim.AdamW([plain], **settings))  # type: ignore[arg-type]
    push = torch.randn(start.shape, generator=generator)
    for _ in range(40):
        gradient = (push + torch.randn(start.shape, generator=generator)).bfloat16()
        for p, optimizer in zip((ours, wide, plain), optimizers, strict=True):
            p.grad = gradient.to(p.dtype, copy=True)
            optimizer.step()
    moved = wide.detach() - start.float()
    found = with_rest(ours.detach(), optimizers[0].state[ours]["rest"]) - start.float()
    assert float((found - moved).norm() / moved.norm()) < 0.01
    assert torch.equal(ours.detach(), with_rest(ours.detach(), optimizers[0].state[ours]["rest"]).bfloat16())
    assert float((plain.detach().float() - start.float() - moved).norm() / moved.norm()) > 0.5
    taken = {name: value.dtype for name, value in optimizers[0].state[ours].items()}
    assert taken == {"step": torch.float32, "exp_avg": torch.bfloat16, "exp_avg_sq": torch.float32, "rest": torch.int16}


@needs_bf16
@pytest.mark.parametrize("inside", [False, True])
def test_a_full_run_in_bf16_that_was_cut_short_ends_with_the_same_bits(
    inside: bool, tiny_llama: Path, tmp_path: Path
) -> None:
    config = changed(method="full", learning_rate=1e-4, optimizer_in_backward=inside, checkpoint_seconds=0.0)
    whole, _ = run(tiny_llama, tmp_path / "whole", config, dtype="bfloat16")

    halted(tiny_llama, tmp_path / "cut", 7, config, dtype="bfloat16")
    again, _ = run(tiny_llama, tmp_path / "cut", config, dtype="bfloat16")
    assert again.resumed_at and again.adapter_hash == whole.adapter_hash
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_a_run_does_not_load_torchs_compiler(tiny_llama: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tuneloop.models.load import load_model; from tuneloop.training.config import TrainConfig; from tuneloop.training.loop import train\n"
        "model = load_model(sys.argv[1]); turns = [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}]\n"
        "train(model, [model.template.render(turns)] * 9, [], TrainConfig(epochs=1), Path(sys.argv[2]))\n"
        "print([name for name in sys.modules if name.startswith(('torch._dynamo', 'torch._inductor', 'sympy'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tiny_llama), str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().splitlines()[-1] == "[]"
