"""Ways to need less memory give the gradients and weights of the plain way."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from train_helpers import begin, changed, losses, make_rows, run

from tuneloop.files import read_jsonl
from tuneloop.models.load import load_model
from tuneloop.train import loss, step
from tuneloop.train.batches import Step
from tuneloop.train.loss import learned_states, mean_loss
from tuneloop.train.rows import Rendered
from tuneloop.train.step import optimizer_step
from tuneloop.types import UserError

FULL: dict[str, Any] = {"method": "full", "learning_rate": 1e-3, "max_grad_norm": 1e9, "epochs": 1}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
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
    one, two = (
        [r["loss"] for r in read_jsonl(tmp_path / n / "metrics.jsonl") if "loss" in r] for n in ("padded", "packed")
    )
    assert two == pytest.approx(one, rel=1e-4)
    assert packed.best_val_loss == pytest.approx(padded.best_val_loss, rel=1e-4)


def test_a_packed_row_never_sees_another_one(tiny_model: Any) -> None:
    rows = make_rows(tiny_model.template, 3)
    other = Rendered([(i + 7) % 1000 for i in rows[0].ids], rows[0].mask)
    with torch.no_grad():
        one, two = (learned_states(tiny_model, batch, packed=True) for batch in (rows, [other, *rows[1:]]))
    behind = one.rows_N > 0
    torch.testing.assert_close(one.hidden_NC[behind], two.hidden_NC[behind], atol=0, rtol=0)
    assert not torch.equal(one.hidden_NC[~behind], two.hidden_NC[~behind])


@pytest.mark.parametrize("inside", [False, True])
def test_states_in_eight_bits_learn_and_are_resumed(tiny_llama: Path, tmp_path: Path, inside: bool) -> None:
    pytest.importorskip("bitsandbytes")
    config = changed(
        method="full", optimizer="adamw-8bit", learning_rate=1e-3, optimizer_in_backward=inside, checkpoint_seconds=0.0
    )
    whole, model = run(tiny_llama, tmp_path / "whole", config)
    assert whole.best_val_loss < whole.first_val_loss - 0.5

    class Stop(Exception):
        pass

    def log(record: dict[str, Any]) -> None:
        if record["step"] >= 7 and "loss" in record:
            raise Stop

    with pytest.raises(Stop):
        run(tiny_llama, tmp_path / "cut", config, log=log)
    again, _ = run(tiny_llama, tmp_path / "cut", config)
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
    from tuneloop.train.optimizers import AdamW

    settings: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1, "betas": (0.9, 0.999)}
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in ((7, 5), (3,), (2, 2))]
    made = []
    for kind, extra in ((AdamW, {}), (torch.optim.AdamW, {"fused": True})):
        ours = [torch.nn.Parameter(t.clone()) for t in start]
        groups = [{"params": ours[:2], "ratio": 1.0}, {"params": ours[2:], "ratio": 10.0}]
        made.append((ours, kind(groups, **settings, **extra)))  # type: ignore[operator]
    for place in range(5):
        drawn = [torch.randn(t.shape, generator=generator) for t in start]
        for parameters, optimizer in made:
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 * group["ratio"] / (place + 1)
            for p, gradient in zip(parameters, drawn, strict=True):
                p.grad = (
                    gradient.clone() if place or p is not parameters[1] else None
                )  # one learns later than the others
            optimizer.step()
            optimizer.zero_grad()
            assert all(p.grad is None for p in parameters)
        if place == 2:  # each goes on from the other's states
            states = [optimizer.state_dict() for _, optimizer in made]
            for (_, optimizer), state in zip(made, states[::-1], strict=True):
                optimizer.load_state_dict({**optimizer.state_dict(), "state": state["state"]})
    for one, two in zip(made[0][0], made[1][0], strict=True):
        assert torch.equal(one, two)
    one, two = (optimizer.state_dict()["state"] for _, optimizer in made)
    assert not [(i, name) for i in two for name in two[i] if not torch.equal(one[i][name], two[i][name])]


def test_a_run_does_not_load_torchs_compiler(tiny_llama: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tuneloop.models.load import load_model; from tuneloop.train.config import TrainConfig; from tuneloop.train.loop import train\n"
        "model = load_model(sys.argv[1]); turns = [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}]\n"
        "train(model, [model.template.render(turns)] * 9, [], TrainConfig(epochs=1), Path(sys.argv[2]))\n"
        "print([name for name in sys.modules if name.startswith(('torch._dynamo', 'torch._inductor', 'sympy'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tiny_llama), str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().splitlines()[-1] == "[]"
