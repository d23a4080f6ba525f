"""The loop: divided as it may be it computes one thing, and whatever kills it, it ends with the same bits."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from train_helpers import CONFIG, SYSTEM, begin, changed, halted, losses, make_rows, run

from patience import HANG
from tuneloop.core.errors import UserError
from tuneloop.core.files import read_jsonl
from tuneloop.core.ui import reporting
from tuneloop.models.adapters.lora import load_adapter, lora_layers
from tuneloop.models.chat.template import Rendered
from tuneloop.models.load import Model, load_model
from tuneloop.records.plan import MeasuredMachine
from tuneloop.training.batches import Step
from tuneloop.training.checkpoint import list_checkpoints, load_checkpoint
from tuneloop.training.config import TrainConfig
from tuneloop.training.loop import TrainingJob, learning_rate, train
from tuneloop.training.loss import shared_prefix
from tuneloop.training.speed import measure_speed
from tuneloop.training.step import batch_loss, optimizer_step

# --- one computation, however it is divided


def gradients(model: Model, rows: list[Rendered], micros: list[tuple[int, ...]]) -> tuple[float, list[torch.Tensor]]:
    state = begin(model, changed(targets=["q_proj", "v_proj", "down_proj"], max_grad_norm=1e9))
    with torch.no_grad():
        for i, layer in enumerate(lora_layers(model.net).values()):
            layer.lora_B.copy_(torch.randn(layer.lora_B.shape, generator=torch.Generator().manual_seed(i)) * 0.1)
    parameters = list(state.trainable.parameters.values())
    kept: list[torch.Tensor] = []

    class Watch(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            kept.extend(p.grad.clone() for p in parameters if p.grad is not None)

    state.optimizer = Watch(parameters, 0.1)
    loss, norm, _ = optimizer_step(state, Step(tuple(micros), 0.0), rows, 0.1)
    assert norm == pytest.approx(float(torch.cat([g.flatten() for g in kept]).norm()), rel=1e-4)
    return loss, kept


@pytest.mark.parametrize(
    "micros", [[(0, 1), (2, 3), (4, 5)], [(0,), (1,), (2,), (3,), (4,), (5,)], [(5, 0, 3), (1, 2, 4)]]
)
@pytest.mark.parametrize("system", [SYSTEM, ""], ids=["shared beginning", "nothing shared"])
def test_how_a_step_is_divided_changes_neither_loss_nor_gradient(tiny_llama: Path, micros: Any, system: str) -> None:
    model = load_model(str(tiny_llama), dtype="float32")
    rows = make_rows(model.template, 6, system=system)
    whole, expected = gradients(model, rows, [tuple(range(6))])
    loss, found = gradients(load_model(str(tiny_llama), dtype="float32"), rows, micros)
    assert loss == pytest.approx(whole, rel=1e-5)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


def test_a_batch_has_the_loss_of_its_rows_alone(tiny_model: Model) -> None:
    rows = make_rows(tiny_model.template, 5)
    assert shared_prefix(rows) > 8
    with torch.no_grad():
        together = float(batch_loss(tiny_model, rows, 1.0))
        for_each = []
        for row in rows:
            logits = tiny_model.hidden(torch.tensor([row.ids]))[0] @ tiny_model.head.t()
            targets = torch.tensor([t if m else -100 for t, m in zip(row.ids, row.mask, strict=True)][1:])
            for_each.append(float(torch.nn.functional.cross_entropy(logits[:-1], targets, reduction="sum")))
    assert together == pytest.approx(sum(for_each), rel=1e-5)


def test_a_shared_beginning_never_swallows_a_learned_token() -> None:
    long = list(range(40))
    same = [Rendered(long, [0] * 30 + [1] * 10)] * 3
    assert shared_prefix(same) == 29  # the first supervised token is predicted behind position 29
    early = [Rendered(long, [0] * 5 + [1] * 35), Rendered([*long[:39], 99], [0] * 39 + [1])]
    assert shared_prefix(early) == 0
    differing = [Rendered([*long[:20], 77, 78], [0] * 21 + [1]), Rendered(long, [0] * 30 + [1] * 10)]
    assert shared_prefix(differing) == 20
    assert shared_prefix(same[:1]) == 0


# --- runs


def test_a_run_learns_and_leaves_what_it_promises(tiny_llama: Path, tmp_path: Path) -> None:
    logged: list[dict[str, Any]] = []
    seen: list[tuple[str, float, float]] = []
    with reporting(progress=lambda task, done, total, /, **info: seen.append((task, done, total))):
        result, model = run(
            tiny_llama, tmp_path, log=logged.append,
        )  # fmt: skip
    assert result.best_val_loss < result.first_val_loss - 1
    assert (result.steps, result.total_steps, result.stopped, result.epochs) == (12, 12, "finished", 2.0)
    records = read_jsonl(tmp_path / "metrics.jsonl")
    assert records == [json.loads(json.dumps(r)) for r in logged]
    steps = [r for r in records if "loss" in r]
    assert [r["step"] for r in steps] == list(range(1, 13))
    assert {
        "epoch",
        "loss",
        "learning_rate",
        "grad_norm",
        "tokens",
        "tokens_per_second",
        "seconds",
        "memory_gib",
    } <= set(steps[0])
    assert [r["step"] for r in records if "val_loss" in r] == [0, 3, 6, 9, 12]
    assert ("training", 12, 12) in seen
    assert result.tokens == sum(r["tokens"] for r in steps)
    assert steps[0]["rows"] and sorted(i for r in steps[:6] for i in r["rows"]) == list(range(24))
    assert {p.name for p in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json", "tuneloop.json",
    }  # fmt: skip
    assert not (tmp_path / "checkpoints").exists()
    assert result.trainable_parameters == sum(p.numel() for p in model.net.parameters() if p.requires_grad)


def test_the_same_seed_gives_the_same_losses_and_bits_and_another_seed_others(tiny_llama: Path, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"dropout": 0.2, "epochs": 1.0})
    found = [run(tiny_llama, tmp_path / str(i), config, seed=seed)[0] for i, seed in enumerate((0, 0, 1))]
    assert losses(tmp_path / "0") == losses(tmp_path / "1") != losses(tmp_path / "2")
    assert found[0].adapter_hash == found[1].adapter_hash != found[2].adapter_hash


def test_two_worse_evaluations_stop_the_run_and_the_best_adapter_is_kept(tiny_llama: Path, tmp_path: Path) -> None:
    # Far too high a rate for so many epochs: it learns the rows by heart.
    config = CONFIG.model_copy(
        update={
            "learning_rate": 0.02, "epochs": 12.0, "evaluations": 12, "patience": 2, "warmup": 0.0, "schedule": "constant",
        }
    )  # fmt: skip
    result, model = run(tiny_llama, tmp_path, config)
    evaluations = [(r["step"], r["val_loss"]) for r in read_jsonl(tmp_path / "metrics.jsonl") if "val_loss" in r]
    assert result.stopped == "early" and result.steps < result.total_steps
    after = evaluations[1:]
    best = min(after, key=lambda e: e[1])
    assert (result.best_step, result.best_val_loss) == best
    assert all(loss >= best[1] for _, loss in after[-2:]) and after[-3] == best
    # What is in the model and in the folder is the best, not the last.
    from tuneloop.training.loss import mean_loss

    val = make_rows(model.template, 8, offset=100)
    assert mean_loss(model, val, config)[0] == pytest.approx(best[1], rel=1e-5)
    fresh = load_model(str(tiny_llama), dtype="float32")
    load_adapter(fresh.net, tmp_path / "adapter")
    assert mean_loss(fresh, val, config)[0] == pytest.approx(best[1], rel=1e-5)


def test_without_validation_rows_the_last_adapter_is_kept(tiny_llama: Path, tmp_path: Path) -> None:
    model = load_model(str(tiny_llama), dtype="float32")
    result = train(model, make_rows(model.template, 8), [], CONFIG, tmp_path, job=TrainingJob(data_id="d"))
    assert result.best_step == result.steps == 4
    assert math.isnan(result.best_val_loss)


# --- interruptions


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from train_helpers import CONFIG, run
result, _ = run(Path({model!r}), Path(sys.argv[1]), CONFIG.model_copy(update=dict(
    dropout=0.1, checkpoint_seconds=0, epochs=4)), rows=24)
print(result.adapter_hash, result.resumed_at)
"""


@pytest.fixture(scope="module")
def interruptible(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory, cli_environment: dict[str, str]) -> Any:
    """Start a training process on a folder; the result of one that was left alone."""
    script = tmp_path_factory.mktemp("script") / "job.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), model=str(tiny_llama)))

    def start(folder: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(script), str(folder)], env=cli_environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    alone = tmp_path_factory.mktemp("uninterrupted")
    out, errors = start(alone).communicate(timeout=HANG)
    assert out, errors
    return start, alone, out.split()[0]


def kill_at(start: Any, folder: Path, step: int) -> None:
    """Kill -9 as soon as the metrics tell of a step."""
    process = start(folder)
    metrics = folder / "metrics.jsonl"
    deadline = time.monotonic() + HANG
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.is_file() and f'"step": {step},' in metrics.read_text():
            break
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("steps", [pytest.param((0,), marks=pytest.mark.nightly), (1, 13)], ids=str)
def test_a_killed_run_goes_on_and_ends_with_the_same_bits(
    interruptible: Any, tmp_path: Path, steps: tuple[int, ...]
) -> None:
    start, alone, expected = interruptible
    for step in steps:
        kill_at(start, tmp_path, step)
        assert not (tmp_path / "adapter" / "adapter_config.json").exists()
    out, errors = start(tmp_path).communicate(timeout=HANG)
    assert out, errors
    found, resumed_at = out.split()
    assert found == expected
    assert int(resumed_at) >= max(steps[-1] - 2, 0)
    assert losses(tmp_path) == losses(alone)


EVERY_STEP = CONFIG.model_copy(update={"checkpoint_seconds": 0.0})


def test_a_torn_last_checkpoint_falls_back_to_the_one_before(tiny_llama: Path, tmp_path: Path) -> None:
    whole, _ = run(tiny_llama, tmp_path / "whole", EVERY_STEP)
    halted(tiny_llama, tmp_path / "cut", 8)
    checkpoints = list_checkpoints(tmp_path / "cut" / "checkpoints")
    assert [p.name for p in checkpoints] == ["step-0000006.pt", "step-0000007.pt"]
    checkpoints[-1].write_bytes(checkpoints[-1].read_bytes()[:1000])
    (tmp_path / "cut" / "metrics.jsonl").open("a").write('{"step": 8, "lo')  # and a torn record
    again, _ = run(tiny_llama, tmp_path / "cut", EVERY_STEP)
    assert again.resumed_at == 6
    assert again.adapter_hash == whole.adapter_hash
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_when_every_checkpoint_is_damaged_it_says_so(tiny_llama: Path, tmp_path: Path) -> None:
    halted(tiny_llama, tmp_path, 5)
    for path in list_checkpoints(tmp_path / "checkpoints"):
        path.write_bytes(b"\0" * 50)
    with pytest.raises(UserError, match="No checkpoint can be read"):
        run(tiny_llama, tmp_path, EVERY_STEP)


@pytest.mark.parametrize("change", ["seed", "data", "config", "model"])
def test_a_checkpoint_of_another_run_is_refused(tiny_llama: Path, tmp_path: Path, change: str) -> None:
    halted(tiny_llama, tmp_path, 3)
    before = [p.read_bytes() for p in list_checkpoints(tmp_path / "checkpoints")]
    model = load_model(str(tiny_llama), dtype="float32")
    config, seed, data_id = EVERY_STEP, 0, "d"
    if change == "seed":
        seed = 1
    elif change == "data":
        data_id = "other"
    elif change == "config":
        config = config.model_copy(update={"learning_rate": 1e-3})
    else:
        model = replace(model, fingerprint="other")
    with pytest.raises(UserError, match="belong to a run with other settings"):
        train(model, make_rows(model.template, 24), [], config, tmp_path, seed=seed, job=TrainingJob(data_id=data_id))
    assert [p.read_bytes() for p in list_checkpoints(tmp_path / "checkpoints")] == before


def test_no_checkpoints_is_no_error(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "none", "key") is None


# --- what goes wrong


def test_a_loss_that_is_no_number_stops_with_advice(tiny_llama: Path, tmp_path: Path) -> None:
    model = load_model(str(tiny_llama), dtype="float32")
    with torch.no_grad():
        model.net.model.norm.weight.fill_(float("nan"))  # type: ignore[union-attr,operator]
    with pytest.raises(UserError, match="diverged") as error:
        train(model, make_rows(model.template, 8), [], CONFIG, tmp_path, job=TrainingJob(data_id="d"))
    assert "train.learning_rate=0.002" in error.value.next_step
    assert [r["loss"] for r in read_jsonl(tmp_path / "metrics.jsonl") if "loss" in r][-1] is None, (
        "strict JSON holds no NaN"
    )
    assert not (tmp_path / "adapter").exists()


def test_a_row_without_a_token_to_learn_is_refused_before_the_first_step(tiny_model: Model, tmp_path: Path) -> None:
    rows = make_rows(tiny_model.template, 3)
    rows[1] = Rendered(rows[1].ids, [0] * len(rows[1].ids))
    with pytest.raises(UserError, match="Row 2 of the training split has no token to learn"):
        train(tiny_model, rows, [], CONFIG, tmp_path)
    with pytest.raises(UserError, match="training split is empty"):
        train(tiny_model, [], [], CONFIG, tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


# --- schedule, speed, time


def test_the_learning_rate_rises_then_falls() -> None:
    def rates(schedule: str, warmup: float, total: int = 20) -> list[float]:
        config = TrainConfig(learning_rate=1.0, schedule=schedule, warmup=warmup)  # type: ignore[arg-type]
        return [learning_rate(step, total, config) for step in range(total)]

    linear = rates("linear", 0.2)
    assert linear[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert linear[5:] == pytest.approx([1 - i / 16 for i in range(1, 16)])
    cosine = rates("cosine", 0.2)
    assert cosine[4] == pytest.approx(1.0) and cosine[12] == pytest.approx(0.5)
    assert cosine == sorted(cosine[:4]) + sorted(cosine[4:], reverse=True)
    assert rates("constant", 0.1) == pytest.approx([0.5] + [1.0] * 19)
    assert all(
        0 < r <= 1 for schedule in ("linear", "cosine") for r in rates(schedule, 0.0, 1) + rates(schedule, 0.9, 7)
    )


def test_b_matrices_learn_at_their_own_rate(tiny_model: Model) -> None:
    rows = make_rows(tiny_model.template, 4)
    state = begin(tiny_model, changed(lora_plus=7.0, max_grad_norm=1e9))
    optimizer_step(state, Step(((0, 1, 2, 3),), 0.0), rows, 1e-3)
    for layer in lora_layers(tiny_model.net).values():
        moved = layer.lora_B.detach().abs().max()  # from zero; Adam's first step is the rate itself
        assert float(moved) == pytest.approx(7e-3, rel=0.05)
    assert [group["lr"] for group in state.optimizer.param_groups] == [1e-3, pytest.approx(7e-3)]


def test_measuring_the_speed_changes_nothing(tiny_llama: Path, tmp_path: Path) -> None:
    expected, _ = run(tiny_llama, tmp_path / "plain", CONFIG.model_copy(update={"dropout": 0.1}))
    model = load_model(str(tiny_llama), dtype="float32")
    rows = make_rows(model.template, 24)
    config = CONFIG.model_copy(update={"dropout": 0.1})
    assert measure_speed(model, rows, config, 0, seconds=0.1) > 0
    result = train(
        model,
        rows,
        make_rows(model.template, 8, offset=100),
        config,
        tmp_path / "measured",
        job=TrainingJob(data_id="d"),
    )
    assert result.adapter_hash == expected.adapter_hash


def test_a_resumed_run_keeps_the_plan_it_had(tiny_llama: Path, tmp_path: Path) -> None:
    limited = EVERY_STEP.model_copy(update={"max_minutes": 1.0})

    halted(tiny_llama, tmp_path, 3, limited, measured=MeasuredMachine(tokens_per_second=30.0))
    result, _ = run(
        tiny_llama, tmp_path, limited, measured=MeasuredMachine(tokens_per_second=9.0)
    )  # a slower machine by now
    assert result.resumed_at == 2
    whole, _ = run(tiny_llama, tmp_path / "whole", limited, measured=MeasuredMachine(tokens_per_second=30.0))
    assert (result.total_steps, result.adapter_hash) == (whole.total_steps, whole.adapter_hash)
    assert whole.planned_steps < whole.total_steps == 12, "the machine is faster than planned: steps were added"
