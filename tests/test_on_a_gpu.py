"""The whole loop on a GPU that is pretended (pretend_gpu.py): on the right device, with the processor's losses, and without needless waits."""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from by_day import by_day
from engine_answers import answers_of
from train_helpers import begin, changed, for_loss, halted, losses, make_rows, run

from pretend_gpu import Card, Gpu, MixedDevices, pretend_gpu, varlen
from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json, read_jsonl
from tuneloop.core.ui import reporting
from tuneloop.inference.labels import label_trie
from tuneloop.inference.local.answers import generate
from tuneloop.inference.local.engine import Engine
from tuneloop.inference.local.scoring import answer_fits, choose
from tuneloop.inference.request import Request, Sampling
from tuneloop.models.load import load_model
from tuneloop.models.methods.shipped import method_named
from tuneloop.models.trained import load_trained
from tuneloop.pipeline.context import RunContext
from tuneloop.planning.at_hand import SIZES
from tuneloop.recipe import Recipe
from tuneloop.records.plan import MeasuredMachine
from tuneloop.training import loop
from tuneloop.training.loss import mean_loss, with_references
from tuneloop.training.step import batch_loss

bits = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
# What is set differently from `train_helpers.CONFIG`, by name.
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dropout": {"dropout": 0.1, "gradient_checkpointing": "always"},
    "dora": {"dora": True},
    "packing": {"packing": True},
    "kl": {"kl": 0.1},
    "full": {"method": "full", "learning_rate": 1e-3},
    "eight bits": {"method": "full", "learning_rate": 1e-3, "optimizer": "adamw-8bit"},
    "prefix": {"method": "prefix", "learning_rate": 1e-1, "prefix_tokens": 12},
    "qlora": {"method": "qlora"},
    "dpo": {"loss": "dpo"},
    "kto": {"loss": "kto"},
}
EVERY = [pytest.param(kind, marks=bits) if kind == "qlora" else kind for kind in KINDS]


@pytest.fixture(autouse=True)
def no_answers_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is counted here is training's."""
    monkeypatch.setattr(loop, "write_answers", lambda *_: None)


def figures(folder: Path) -> list[float]:
    """All losses of a run, of steps and of validations, in order."""
    return [loss for _, *both in losses(folder) for loss in both if loss is not None]


def test_tensors_of_two_devices_are_refused_as_on_a_gpu() -> None:
    with pretend_gpu() as gpu:
        there = torch.ones(3, device="cuda")
        assert there.device.type == "cuda" and (there + 1).cpu().tolist() == [2, 2, 2]
        with pytest.raises(MixedDevices):
            there + torch.ones(3)
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        assert gpu.live == 512
        del there
        assert gpu.live == 0
    with pytest.raises((RuntimeError, AssertionError)):  # afterwards all is as it was
        torch.ones(3, device="cuda")


@pytest.mark.nightly
@pytest.mark.parametrize("kind", EVERY)
def test_a_run_has_the_losses_of_the_processor(kind: str, tiny_llama: Path, tmp_path: Path) -> None:
    config = changed(**KINDS[kind], epochs=0.5, evaluations=2)
    run(tiny_llama, tmp_path / "here", config)
    with pretend_gpu() as gpu:
        result, model = run(tiny_llama, tmp_path / "there", config)
        assert model.device.type == "cuda"
        rows = make_rows(model.template, 8, offset=100)
        fresh = load_model(str(tiny_llama), dtype="float32")
        load_trained(fresh, tmp_path / "there")
        if config.loss == "supervised" and not config.kl:
            assert mean_loss(fresh, rows, config)[0] == pytest.approx(result.best_val_loss, rel=1e-3)
    if kind != "dropout":  # a GPU draws other numbers
        assert figures(tmp_path / "there") == pytest.approx(figures(tmp_path / "here"), rel=2e-4)
    assert not [k for k, _ in gpu.attention if k == "math"]  # no kernel that holds all scores


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("dtype", by_day(["float32", "bfloat16"], ["bfloat16"]))
def test_rows_lie_one_behind_the_other_and_no_mask_is_made(
    packing: bool, dtype: str, tiny_llama: Path, tmp_path: Path
) -> None:
    config = changed(packing=packing, epochs=0.5, evaluations=2)
    run(tiny_llama, tmp_path / "here", config, dtype=dtype)
    with pretend_gpu() as gpu:
        run(tiny_llama, tmp_path / "there", config, dtype=dtype)
    assert {kernel for kernel, _ in gpu.attention} == {"varlen" if dtype == "bfloat16" else "flash"}, gpu.attention
    near = 2e-4 if dtype == "float32" else 3e-2
    assert figures(tmp_path / "there") == pytest.approx(figures(tmp_path / "here"), rel=near)


def test_the_flash_attention_package_takes_the_rows_where_it_is_installed(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def kernel(q: Any, k: Any, v: Any, ends: Any, ends_k: Any, longest: int, longest_k: int, causal: bool) -> Any:
        calls.append(longest)
        assert causal and ends is ends_k and longest == longest_k
        return varlen(q, k, v, ends, ends, longest, longest, window_size=(-1, 0), enable_gqa=True)

    package = ModuleType("flash_attn")
    package.__spec__ = ModuleSpec("flash_attn", None)
    package.flash_attn_varlen_func = kernel  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    with pretend_gpu():
        model = load_model(str(tiny_llama), dtype="bfloat16")
        rows = make_rows(model.template, 6)
        there = float(batch_loss(model, rows, 0.01, changed(packing=True)).detach())
    assert calls and max(calls) == max(len(row.ids) for row in rows)
    here = float(batch_loss(load_model(str(tiny_llama), dtype="float32"), rows, 0.01).detach())
    assert there == pytest.approx(here, rel=2e-2)


def test_a_run_resumes_with_the_same_bits(tiny_llama: Path, tmp_path: Path) -> None:
    config = changed(epochs=0.7, checkpoint_seconds=0.0, evaluations=2)
    with pretend_gpu():
        whole, _ = run(tiny_llama, tmp_path / "whole", config)
        halted(tiny_llama, tmp_path / "cut", 3, config)
        again, _ = run(tiny_llama, tmp_path / "cut", config)
    assert again.resumed_at == 2
    assert again.adapter_hash == whole.adapter_hash


def _waits_of_steps(folder: Path, out: Path, config: Any) -> Counter[tuple[str, str]]:
    """Waits of the third and fourth step."""
    seen: list[Counter[tuple[str, str]]] = []
    with pretend_gpu() as gpu:

        def log(record: dict[str, Any]) -> None:
            if "loss" in record:
                seen.append(gpu.waits.copy())

        run(folder, out, config, log=log)
    return seen[3] - seen[1]


@pytest.mark.nightly
@pytest.mark.parametrize("kind", EVERY)
def test_a_step_waits_for_its_loss_and_its_norm_alone(kind: str, tiny_llama: Path, tmp_path: Path) -> None:
    waits = _waits_of_steps(tiny_llama, tmp_path, changed(**KINDS[kind], epochs=1, evaluations=1, patience=99))
    # KTO's reference point is a number that its losses need.
    places = {"training/step.py", "training/loss.py"} if kind == "kto" else {"training/step.py"}
    assert {path.partition(":")[0] for _, path in waits} == places, waits
    assert sum(waits.values()) <= 2 * (4 if kind == "kto" else 3)  # the loss once, the norm as a copy and a value


def test_a_turing_card_computes_in_half_precision_with_a_scaled_loss(tiny_llama: Path, tmp_path: Path) -> None:
    config = changed(epochs=0.7, evaluations=2)
    with pretend_gpu(Card("Tesla T4", 14.74, (7, 5))):
        result, model = run(tiny_llama, tmp_path / "half", config, dtype="auto")
        assert model.head.dtype == torch.float16
    whole, _ = run(tiny_llama, tmp_path / "single", config)
    assert result.best_val_loss == pytest.approx(whole.best_val_loss, rel=0.02)
    norms = [r["grad_norm"] for r in read_jsonl(tmp_path / "half" / "metrics.jsonl") if "grad_norm" in r]
    assert norms[0] == pytest.approx(
        next(r["grad_norm"] for r in read_jsonl(tmp_path / "single" / "metrics.jsonl") if "grad_norm" in r), rel=0.05
    )


def _peak(folder: Path, out: Path, config: Any) -> Gpu:
    with pretend_gpu() as gpu:
        run(folder, out, config)
    return gpu


def test_a_step_that_does_not_fit_is_done_in_smaller_parts(tiny_llama: Path, tmp_path: Path) -> None:
    config = changed(epochs=0.5, evaluations=2, rows_per_step=8)
    most = _peak(tiny_llama, tmp_path / "all", config).peak
    with pretend_gpu(Card(gib=most * 0.98 / 2**30)):
        run(tiny_llama, tmp_path / "small", config)
    events = [r.get("event") for r in read_jsonl(tmp_path / "small" / "metrics.jsonl")]
    assert "out_of_memory" in events
    assert figures(tmp_path / "small")[-1] == pytest.approx(figures(tmp_path / "all")[-1], rel=2e-4)


def test_larger_micro_batches_give_the_same_steps_in_fewer_launches(tiny_llama: Path, tmp_path: Path) -> None:
    config = changed(epochs=0.5, evaluations=2, rows_per_step=8)
    launches = []
    for tokens in (128, 4096):
        with pretend_gpu() as gpu:
            run(tiny_llama, tmp_path / str(tokens), config, measured=MeasuredMachine(tokens, tokens == 128))
            launches.append(sum(gpu.launches.values()))
    assert launches[1] < 0.7 * launches[0]
    assert figures(tmp_path / "4096") == pytest.approx(figures(tmp_path / "128"), rel=2e-4)


def test_a_norm_is_one_kernel_forward_and_one_backward(tiny_llama: Path) -> None:
    with pretend_gpu() as gpu:
        model = load_model(str(tiny_llama))
        model.net.requires_grad_(True)
        before = Counter(gpu.launches)
        ids = torch.arange(12, device=model.device)[None] % 50
        model.net.hidden(ids, torch.arange(12, device=model.device)[None]).float().sum().backward()
        found = gpu.launches - before
    norms = 2 * model.net.config.layers + 1
    assert found["rms_norm"] == found["rms_norm backward"] == norms
    assert not [name for name in found if "rsqrt" in name], "none is computed by parts"


@pytest.mark.parametrize("method", ["lora", pytest.param("qlora", marks=bits)])
def test_a_run_is_planned_by_the_cards_memory_and_kept_to_the_plan(
    method: str, tiny_llama: Path, tmp_path: Path, data_file: Path
) -> None:
    from tuneloop.pipeline.train import train_alone

    settings = {"method": method, "epochs": 0.2, "evaluations": 1}
    recipe = Recipe.model_validate(
        {"model": str(tiny_llama), "data": {"sources": [str(data_file)]}, "train": settings,
         "output_dir": str(tmp_path / "run")}
    )  # fmt: skip
    with pretend_gpu(Card(gib=1.0)) as gpu:
        train_alone(recipe)
    assert read_json(tmp_path / "run" / "environment.json")["gpu"] == [gpu.card.name]
    plan = read_json(tmp_path / "run" / "plan.json")
    assert plan["gpu"] == gpu.card.name and plan["fits"]
    assert plan["micro_batch_tokens"] in SIZES and not plan["recompute"]
    weights = plan["memory"]["terms"]["weights and program (resident)"] * 2**30
    assert weights == pytest.approx(_weights(tiny_llama, method), rel=0.05)


def _weights(folder: Path, method: str) -> int:
    """Bytes of a model as a method trains on it."""
    with pretend_gpu() as gpu:
        model = load_model(str(folder), prepare=method_named(method).prepare)
        assert model.device.type == "cuda"
        return gpu.live


@pytest.fixture(scope="module")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "letters.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"Letter {i} of drawer {i % 7}, which shelf?"},
                      {"role": "assistant", "content": ["red", "blue", "green"][i % 3] + f" shelf {i % 5}"}]}
        for i in range(60)
    ]  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("drawn", [False, True])
def test_eight_tokens_are_written_before_the_host_waits(drawn: bool, tiny_llama: Path) -> None:
    drawing = [Sampling(temperature=0.7, seed=i) for i in range(5)] if drawn else None
    waits, tokens = [], []
    with pretend_gpu() as gpu:
        model = load_model(str(tiny_llama), dtype="float32")
        prompts = [row.ids[:-2] for row in make_rows(model.template, 5)]
        model = replace(model, template=replace(model.template, end_ids=()))  # no answer ends
        generate(model, prompts, max_new_tokens=2)  # what is made once
        for count in (9, 25):  # the first is written with the prompt
            gpu.clear()
            answers = generate(model, prompts, max_new_tokens=count, sampling=drawing)
            waits.append(sum(gpu.waits.values()))
            tokens.append([len(answer.token_ids) for answer in answers])
    assert tokens == [[9] * 5, [25] * 5]
    assert waits[1] - waits[0] == 2, gpu.waits  # of sixteen tokens more


def _answers(model: Any, rows: list[Any]) -> Any:
    return [a.token_ids for a in generate(model, [row.ids[:-2] for row in rows], max_new_tokens=5)]


def _drawn(model: Any, rows: list[Any]) -> Any:
    drawing = [Sampling(temperature=0.7, seed=i) for i in range(len(rows))]
    prompts = [row.ids[:-2] for row in rows]
    return [a.token_ids for a in generate(model, prompts, max_new_tokens=5, sampling=drawing)]


def _scores(model: Any, rows: list[Any], prune: bool = False) -> Any:
    labels = ["red", "blue drawer", "green"]
    trie = label_trie(labels, [[*model.template.encode(label), model.template.end_ids[0]] for label in labels])
    found = choose(model, [row.ids[:-2] for row in rows], trie, prune=prune)
    return [max((a.label_scores or {}).values()) for a in found]


def _losses_of_answers(model: Any, rows: list[Any]) -> Any:
    return [fit.loss for fit in answer_fits(model, rows)]


def _references(model: Any, rows: list[Any]) -> Any:
    return [value for row in with_references(model, for_loss(rows, "dpo")) for value in row.reference]


def _validation(model: Any, rows: list[Any], loss: str = "supervised") -> Any:
    return mean_loss(model, for_loss(rows, loss), changed(loss=loss))[0]


ENTRIES: dict[str, Callable[[Any, list[Any]], Any]] = {
    "generate": _answers,
    "generate, drawn": _drawn,
    "choose": _scores,
    "choose, pruned": functools.partial(_scores, prune=True),
    "answer_fits": _losses_of_answers,
    "with_references": _references,
    "validation": _validation,
    "validation of KTO": functools.partial(_validation, loss="kto"),
}


@pytest.mark.parametrize("entry", by_day(ENTRIES, 4))
def test_work_that_does_not_fit_is_done_in_smaller_parts(entry: str, tiny_llama: Path) -> None:
    with pretend_gpu() as gpu:
        model = load_model(str(tiny_llama), dtype="float32")
        rows = make_rows(model.template, 12)
        gpu.clear()
        before = gpu.live
        whole = ENTRIES[entry](model, rows)
        needed = gpu.peak - before
        gpu.leave_room(0.7 * needed)
        parts = ENTRIES[entry](model, rows)
        assert gpu.refused
    if entry.startswith("generate"):
        assert parts == whole
    else:
        assert parts == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize("entry", list(ENTRIES))
def test_a_single_row_that_does_not_fit_is_refused_in_words(entry: str, tiny_llama: Path) -> None:
    with pretend_gpu() as gpu:
        model = load_model(str(tiny_llama), dtype="float32")
        rows = make_rows(model.template, 4)
        gpu.leave_room(20_000)
        with pytest.raises(UserError, match="Out of memory"):
            ENTRIES[entry](model, rows)


@pytest.mark.parametrize("gives_way", [False, True])
def test_an_engine_whose_memory_runs_out_answers_in_smaller_batches(gives_way: bool, tiny_llama: Path) -> None:
    with pretend_gpu() as gpu:
        model = load_model(str(tiny_llama))
        weights = gpu.live
        together = _streamed(Engine(model), model, gives_way)
        most = gpu.peak
    assert all(answer.finish == "length" for _, answer in together)
    with pretend_gpu(Card(gib=(weights + 0.6 * (most - weights)) / 2**30)) as small:
        model = load_model(str(tiny_llama))
        engine = Engine(model)
        parts = _streamed(engine, model, gives_way)
        assert small.refused and engine.most_tokens < Engine(model).most_tokens
    assert [(text, answer.token_ids) for text, answer in parts] == [(text, a.token_ids) for text, a in together]
    assert all(text == answer.text for text, answer in parts), "what was shown before is not shown twice"


def test_a_request_that_does_not_fit_by_itself_gets_an_error_and_the_engine_goes_on(tiny_llama: Path) -> None:
    with pretend_gpu() as gpu:
        model = load_model(str(tiny_llama))
        weights = gpu.live
        list(answers_of(Engine(model), [_request(model, 0)]))
        item = gpu.peak - weights
    with pretend_gpu(Card(gib=(weights + 1.5 * item) / 2**30)):
        model = load_model(str(tiny_llama))
        engine = Engine(model)
        long = replace(_request(model, 0), ids=_request(model, 0).ids * 12)
        failed, answered = answers_of(engine, [long, _request(model, 1)])
    assert failed.finish == "error" and failed.error.startswith("out_of_memory")
    assert answered.finish == "length" and len(answered.token_ids) == 12


def _request(model: Any, i: int, gives_way: bool = False) -> Request:
    ids = model.template.encode("one red drawer and two blue drawers " * (2 + i % 3))
    drawing = Sampling(temperature=0.7, seed=i)
    return Request(ids=ids, max_new_tokens=12, sampling=drawing, gives_way=gives_way)


def _streamed(engine: Engine, model: Any, gives_way: bool) -> list[tuple[str, Any]]:
    """The pieces of each answer put together, and the answer."""
    tickets = [engine.submit(_request(model, i, gives_way), stream=True) for i in range(8)]
    while any(ticket.completion is None for ticket in tickets):
        engine.step()
    return [("".join(update.text for update in ticket.updates), ticket.completion) for ticket in tickets]


@pytest.mark.parametrize("kind", ["lora", "prefix", "full", "eight bits", pytest.param("qlora", marks=bits)])
def test_saving_needs_no_memory_of_the_card(kind: str, tiny_llama: Path, tmp_path: Path) -> None:
    with pretend_gpu() as gpu:
        model = load_model(str(tiny_llama), dtype="float32")
        run = begin(model, changed(**KINDS[kind]), make_rows(model.template, 4))
        run.out = tmp_path
        gpu.leave_room(0)
        run.save()
        run.trainable.save(tmp_path / run.trainable.folder)
        assert not gpu.refused
    assert list(run.checkpoints.glob("step-*.pt"))


def test_four_bits_need_room_for_one_layer_in_more(tiny_llama: Path) -> None:
    from tuneloop.models.methods.shipped import method_named

    if importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    prepare = method_named("qlora").prepare
    with pretend_gpu() as gpu:
        load_model(str(tiny_llama), dtype="float32")
        whole = gpu.peak
    with pretend_gpu() as gpu:
        load_model(str(tiny_llama), dtype="float32", prepare=prepare)
        four_bits = gpu.peak
    assert four_bits < whole


def answers_and_scores(folder: Path, rows: int) -> tuple[list[Any], list[dict[str, float] | None]]:
    """Greedy answers, drawn answers and label scores of prompts of several lengths."""
    model = load_model(str(folder), dtype="float32")
    prompts = [row.ids[: len(row.ids) - 2] for row in make_rows(model.template, rows)]
    greedy = generate(model, prompts, max_new_tokens=12)
    drawn = generate(
        model, prompts, max_new_tokens=6, sampling=[Sampling(temperature=0.7, seed=i) for i in range(rows)]
    )
    labels = ["red", "blue drawer", "green"]
    end = model.template.end_ids[0]
    trie = label_trie(labels, [[*model.template.encode(label), end] for label in labels])
    chosen = choose(model, prompts, trie)
    return [a.token_ids for a in (*greedy, *drawn)], [answer.label_scores for answer in chosen]


@pytest.mark.parametrize("rows", [1, 5])
def test_answers_and_label_scores_are_those_of_the_processor(rows: int, tiny_llama: Path) -> None:
    answers, scores = answers_and_scores(tiny_llama, rows)
    with pretend_gpu() as gpu:
        answers_there, scores_there = answers_and_scores(tiny_llama, rows)
    assert answers_there == answers
    for here, there in zip(scores, scores_there, strict=True):
        assert there == pytest.approx(here, abs=1e-4)
    assert not [k for k, _ in gpu.attention if k == "math"]


@bits
def test_a_base_that_does_not_fit_is_loaded_in_four_bits_and_said_so(tiny_llama: Path, tmp_path: Path) -> None:
    prepare = method_named("qlora").prepare
    peaks = []
    for how in (None, prepare):
        with pretend_gpu() as gpu:
            load_model(str(tiny_llama), prepare=how)
            peaks.append(gpu.peak)
    recipe = Recipe.model_validate(
        {"model": str(tiny_llama), "data": {"sources": ["none.jsonl"]}, "train": {"method": "qlora"}}
    )
    said: list[str] = []
    with pretend_gpu(Card(gib=sum(peaks) / 2 / 2**30)):
        with reporting(say=said.append):
            model = RunContext(recipe, tmp_path).model
        assert model.device.type == "cuda"
    assert "does not fit" in said[0]
