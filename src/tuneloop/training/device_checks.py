"""What this machine's device computes, next to the processor in fp32: the first thing to run on a GPU.

A small random Llama (4 layers of 256, grouped heads, Llama 3's rope) takes every method's step, is saved, resumed and
reloaded, and answers. Then come speeds: of matrix products, of memory, from the host. The planner reads them later.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

from tuneloop.core import device, machine
from tuneloop.core.errors import UserError
from tuneloop.core.files import write_json
from tuneloop.core.threads import use_threads
from tuneloop.core.ui import busy, without_bars
from tuneloop.models import SIZES, Model, load_model, load_trained, random_model, skeleton
from tuneloop.models.chat import Rendered
from tuneloop.models.files import resolve
from tuneloop.models.methods import SHIPPED, USUAL, method_named
from tuneloop.models.nn import ModelShape, target_modules
from tuneloop.planning import RunWork, planned_step
from tuneloop.planning.catalogue import card_in_use, find_gpu, measured_file, this_cpu
from tuneloop.records.rows import Message
from tuneloop.training.batches import Step
from tuneloop.training.config import TrainConfig
from tuneloop.training.flops import matmul_peak
from tuneloop.training.methods import attach
from tuneloop.training.rows import supervised_tokens

if TYPE_CHECKING:
    import torch

Status = Literal["ok", "slow", "wrong", "not supported"]
SEED = 17
# Relative errors that rounding explains: of a loss, and of a gradient's length and direction.
TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2, "float16": 1e-2}
SLOW = 0.5  # of the speed that is expected
LONG = 48  # tokens of an answer: enough for a GPU's steps to be recorded and replayed (`inference.replay`)
# Settings of the usual method that compute something else.
VARIANTS: dict[str, dict[str, Any]] = {"DoRA": {"dora": True}}


@dataclass(frozen=True)
class DeviceCheck:
    """One line of the table."""

    name: str  # what was tried
    status: Status
    detail: str  # measurements, or why


def _verdict(name: str, right: bool, detail: str, otherwise: Status = "wrong") -> DeviceCheck:
    return DeviceCheck(name, "ok" if right else otherwise, detail)


def self_test() -> list[DeviceCheck]:
    """Try all methods on the device in use and measure its speeds, for the planner (`measured_file`); two minutes."""
    import torch

    use_threads()
    kind = device.in_use()
    count, dtype = len(device.names()), str(device.default_dtype()).removeprefix("torch.")
    several = f" (one of {count})" if count > 1 else ""
    detail = f"{_card()}{several}, {device.capacity():.1f} GiB, models in {dtype}"
    checks = [DeviceCheck("device", "ok", detail)]
    with tempfile.TemporaryDirectory() as scratch:
        folder = small_llama(Path(scratch) / "model")
        methods = {method.title: {"method": method.name} for method in SHIPPED}
        for name, settings in (methods | VARIANTS).items():
            for layout in ("padded", "packed"):
                if layout == "packed" and method_named(settings.get("method", USUAL.name)).footprint.has_virtual_tokens:
                    continue
                title = f"{name}, {layout}"
                with busy(title):
                    checks.append(_guarded(title, functools.partial(_gradient, folder, title, settings)))
        for name, check in (
            ("save, resume, reload", lambda: _resume(folder, Path(scratch))),
            ("answers as Transformers'", lambda: _answers(folder)),
            ("four bits", _four_bits),
        ):
            with busy(name):
                checks.append(_guarded(name, check))
    with busy("measuring speeds"):
        speeds = _speeds(kind)
        checks += _speed_checks(kind, speeds)
    with busy("training a step of a larger model"):
        try:
            checks += _step_checks(kind)
        except RuntimeError as error:
            checks.append(DeviceCheck("a step as planned", "wrong", str(error).splitlines()[0][:160]))
    date = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(measured_file(), {"version": 1, "date": date, "name": _card(), "torch": torch.__version__, **speeds})
    return checks


def _guarded(name: str, check: Callable[[], DeviceCheck]) -> DeviceCheck:
    """A check whose failure is a line of the table, not the end of the test."""
    try:
        return check()
    except UserError as error:
        return DeviceCheck(name, "not supported", f"{error.what}; {error.next_step}")
    except Exception as error:  # whatever a driver or kernel says is the answer
        lines = str(error).strip().splitlines() or [type(error).__name__]
        missing = isinstance(error, NotImplementedError) or "not implemented" in lines[0].lower()
        return DeviceCheck(name, "not supported" if missing else "wrong", f"{type(error).__name__}: {lines[0][:160]}")


def _card() -> str:
    names = device.names()
    return names[0] if names else f"cpu: {machine.processor()}, {machine.cores()} cores"


def small_llama(folder: Path) -> Path:
    """A random Llama 3 whose folder loads as any other, with the packaged model's tokenizer."""
    import torch
    from safetensors.torch import save_file

    source = resolve("smollm2-135m")
    folder.mkdir(parents=True)
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (source / file).is_file():
            (folder / file).symlink_to((source / file).resolve())
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 49152, "hidden_size": 256,
        "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2,
        "head_dim": 64, "rms_norm_eps": 1e-5, "max_position_embeddings": 8192, "tie_word_embeddings": True,
        "hidden_act": "silu", "torch_dtype": "float32", "bos_token_id": 1, "eos_token_id": 2,
        "rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                            "high_freq_factor": 4.0, "original_max_position_embeddings": 2048},
    }  # fmt: skip
    write_json(folder / "config.json", config)
    generator = torch.Generator().manual_seed(SEED)
    weights = {
        name: torch.ones(p.shape) if "norm" in name else torch.randn(p.shape, generator=generator) * p.shape[-1] ** -0.5
        for name, p in skeleton(folder).state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _rows(model: Model, count: int = 6) -> list[Rendered]:
    """Conversations of several lengths that begin alike."""
    instruction = "Sort the letters into drawers and answer with the drawer's name alone."
    answers = ["red", "the blue drawer", "green"]

    def turns(i: int) -> list[Message]:
        return [
            {"role": "system", "content": instruction},
            {"role": "user", "content": f"Letter {i}: " + "please answer soon " * (3 * i)},
            {"role": "assistant", "content": answers[i % 3]},
        ]

    return [model.template.render(turns(i)) for i in range(count)]


def _tolerance(dtype: torch.dtype) -> float:
    return TOLERANCE[str(dtype).removeprefix("torch.")]


def _config(settings: dict[str, Any], **more: Any) -> TrainConfig:
    return TrainConfig.model_validate({"rank": 4, "alpha": 8, **settings, **more})


def _loss_and_gradient(
    folder: Path, config: TrainConfig, dtype: str, kind: str, exact: bool = False
) -> tuple[float, Any]:
    """One step's loss and gradient (fp32, on the host, one vector); `exact`: fp32 with weights rounded to the dtype."""
    import torch

    from tuneloop.training.step import batch_loss

    torch.manual_seed(SEED)
    model = load_model(str(folder), dtype=dtype, device=kind)
    if exact:
        model.net.float()
    rows = _rows(model)
    trainable = attach(model, config, SEED, rows)
    moved = torch.Generator().manual_seed(SEED)
    with torch.no_grad():  # B starts at zero, which would leave A without a gradient
        for name, p in sorted(trainable.parameters.items()):
            if "lora_B" in name:
                p.add_((torch.randn(p.shape, generator=moved) * 0.02).to(p.device, p.dtype))
    model.net.train()
    scale = 1024.0 if device.needs_scaling(model.head.dtype) else 1.0
    loss = batch_loss(model, rows, scale / sum(supervised_tokens(row) for row in rows), config)
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for _, p in sorted(trainable.parameters.items()) if p.grad is not None]
    parts = [gradient.detach().float().cpu().flatten() / scale for gradient in gradients]
    return float(loss.detach()) / scale, torch.cat(parts)


def _gradient(folder: Path, name: str, settings: dict[str, Any]) -> DeviceCheck:
    """A seeded step on the device, in its own dtype, next to the processor's in fp32."""
    import torch

    config = _config(settings, packing=name.endswith("packed"))
    kind = device.in_use()
    dtype = str(device.default_dtype()).removeprefix("torch.")
    loss, gradient = _loss_and_gradient(folder, config, dtype, "cpu", exact=True)
    loss_there, gradient_there = _loss_and_gradient(folder, config, dtype, kind)
    off = abs(loss_there - loss) / abs(loss)
    length = abs(float(gradient_there.norm() / gradient.norm()) - 1)
    turned = 1 - float(torch.nn.functional.cosine_similarity(gradient_there.double(), gradient.double(), 0))
    most = TOLERANCE[dtype]
    detail = f"loss {loss_there:.4f} against {loss:.4f} ({off:.1e} off); "
    detail += f"gradient's length {length:.1e}, direction {turned:.1e} off"
    return _verdict(name, off < most and length < 3 * most and turned < 3 * most, detail)


def _resume(folder: Path, scratch: Path) -> DeviceCheck:
    """A run that is cut after its second step and resumed, next to one that is not; then the adapter read again."""
    from tuneloop.training.loop import train
    from tuneloop.training.loss import mean_loss

    steps = {"epochs": 1, "rows_per_step": 4, "tokens_per_step": 0, "evaluations": 1, "checkpoint_steps": 1}
    config = _config(steps, learning_rate=1e-3)

    class Cut(Exception):
        pass

    def cut(record: dict[str, Any]) -> None:
        if record.get("step") == 3 and "loss" in record:
            raise Cut

    model = load_model(str(folder))
    rows, val = _rows(model, 24), _rows(model, 4)
    whole = train(model, rows, val, config, scratch / "whole", seed=SEED)
    with contextlib.suppress(Cut):
        train(load_model(str(folder)), rows, val, config, scratch / "cut", seed=SEED, log=cut)
    again = train(load_model(str(folder)), rows, val, config, scratch / "cut", seed=SEED)
    fresh = load_model(str(folder))
    load_trained(fresh, scratch / "cut")
    read = mean_loss(fresh, val, config)[0]
    off = abs(again.best_val_loss - whole.best_val_loss) / whole.best_val_loss
    off_read = abs(read - again.best_val_loss) / again.best_val_loss
    most = _tolerance(model.head.dtype)
    difference = "the same bits" if again.adapter_hash == whole.adapter_hash else f"{off:.1e} off"
    detail = (
        f"validation loss {again.best_val_loss:.4f} resumed at step {again.resumed_at}, "
        f"{whole.best_val_loss:.4f} in one go ({difference}), {read:.4f} read again"
    )
    return _verdict("save, resume, reload", off < most and off_read < most, detail)


def _answers(folder: Path) -> DeviceCheck:
    """Greedy answers next to those of Transformers on the same device in the same dtype."""
    import torch

    from tuneloop.inference.local import generate

    name = "answers as Transformers'"
    if importlib.util.find_spec("transformers") is None:
        return DeviceCheck(name, "not supported", "transformers is not installed: pip install 'tuneloop[transformers]'")
    from transformers import AutoModelForCausalLM

    model = load_model(str(folder))
    prompts = [row.ids[: 20 + 7 * i] for i, row in enumerate(_rows(model))]
    with without_bars():
        peer = AutoModelForCausalLM.from_pretrained(folder, dtype=model.head.dtype).to(model.device).eval()
    most = 10 * _tolerance(model.head.dtype)
    count, worst = 0, 0.0
    for prompt, answer in zip(prompts, generate(model, prompts, max_new_tokens=LONG), strict=True):
        ids = torch.tensor([[*prompt, *answer.token_ids]], device=model.device)
        with torch.no_grad():
            logits_TV = peer(ids).logits[0, len(prompt) - 1 : -1].float().cpu()
        for logits_V, token in zip(logits_TV, answer.token_ids, strict=True):
            worst = max(worst, float((logits_V.max() - logits_V[token]) / logits_V.std()))
            count += 1
    detail = f"each of {count} tokens is Transformers' likeliest, or at most {worst:.1e} of the scores' spread below it"
    return _verdict(name, worst < most, detail)


def _four_bits() -> DeviceCheck:
    """A layer's product in four bits next to that with the weight unpacked by the processor."""
    import torch

    from tuneloop.models.nn import Nf4Linear, need_bitsandbytes

    need_bitsandbytes()
    dtype, kind = device.default_dtype(), device.in_use()
    generator = torch.Generator().manual_seed(SEED)
    layer = torch.nn.Linear(256, 512, bias=False).requires_grad_(False)
    layer.weight.copy_((torch.randn(512, 256, generator=generator) / 16).to(dtype))
    x = torch.randn(8, 256, generator=generator).to(dtype)
    here = x.float() @ Nf4Linear(layer).weight.float().t()
    there = Nf4Linear(layer.to(kind, dtype))(x.to(kind)).float().cpu()
    off = float((there - here).norm() / here.norm())
    detail = f"{off:.1e} off the product with the unpacked weight"
    return _verdict("four bits", off < _tolerance(dtype), detail)


# --- speeds


def _speeds(kind: str) -> dict[str, float]:
    """Of products (TFLOPS), memory and links (GB/s), and of training a small model (tokens/s)."""
    import torch

    speeds = {"tflops": matmul_peak(device.default_dtype(), kind, seconds=2.0) / 1000}
    size = 64 << 20 if device.backend().is_cpu else 1 << 30
    a = torch.zeros(size // 4, device=kind)
    b = torch.empty_like(a)
    speeds["gb_s"] = 2 * size / 1e9 / _best(lambda: b.copy_(a))
    if not device.backend().is_cpu:
        source = torch.zeros(size // 16).pin_memory() if kind == "cuda" else torch.zeros(size // 16)
        target = torch.empty(size // 16, device=kind)
        speeds["host_gb_s"] = size / 4 / 1e9 / _best(lambda: target.copy_(source, non_blocking=True))
    return speeds


def _best(action: Callable[[], Any]) -> float:
    """Seconds of the fastest of some runs."""
    best = math.inf
    for _ in range(5):
        device.wait()
        began = time.perf_counter()
        action()
        device.wait()
        best = min(best, time.perf_counter() - began)
    return best


STEPS = 3  # that are timed, behind two that are not
MEMORY_OFF = 0.15  # of the planned peak


def _step_checks(kind: str) -> list[DeviceCheck]:
    """Memory (of a GPU) and tokens/s of LoRA on a random 1B Llama, on a processor a tiny one, next to the plan."""
    from tuneloop.training.checkpoint import State
    from tuneloop.training.optimizers import make_optimizer
    from tuneloop.training.run import TrainingRun
    from tuneloop.training.step import optimizer_step

    on_gpu = not device.backend().is_cpu
    sizes, count, length = (SIZES["1b"], 4, 1024) if on_gpu else (SIZES["tiny"], 4, 128)
    dtype, config = device.default_dtype(), _config({"rank": 16, "gradient_checkpointing": "never"})
    template: Any = SimpleNamespace(pad_id=0, end_ids=(0,))
    before = device.memory_now()
    model = random_model(sizes, template, dtype=dtype)
    rows = [Rendered([(7 * i + j) % 1000 for j in range(length)], [0, *[1] * (length - 1)]) for i in range(count)]
    trainable = attach(model, config, SEED, rows)
    model.net.train()
    optimizer = make_optimizer(trainable, config)
    run = TrainingRun(model, config, trainable, optimizer, State("self-test"), Path("self-test"))
    step, spent = Step((tuple(range(count)),), 0.0), []
    for location in range(STEPS + 2):
        if location == 2:
            device.release_memory()
            device.reset_peak_memory()
        device.wait()
        began = time.perf_counter()
        optimizer_step(run, step, rows, 1e-4)
        device.wait()
        spent.append(time.perf_counter() - began)
    speed = count * length / min(spent[2:])
    shape, tokens = ModelShape.from_config(sizes), count * length
    work = RunWork(1, tokens, tokens, 0, ((count, length, 0),))
    card = this_cpu() if kind == "cpu" else card_in_use(_card(), device.capacity())
    settings = {"model": "random", "method": USUAL.name, "rank": 16, "targets": list(target_modules("all-linear"))}
    expected, planned = planned_step(shape, work, card, dtype.itemsize, **settings)
    detail = f"{speed:,.0f} tokens/s of LoRA on {shape.parameters / 1e6:,.0f}M parameters, {expected:,.0f} planned"
    checks = [_verdict("speed of a step", speed >= SLOW * expected or not on_gpu, detail, "slow")]
    if on_gpu:
        peak = device.peak_memory() - before
        detail = f"{peak:.2f} GiB, {planned:.2f} planned"
        checks.append(_verdict("memory of a step", abs(peak / planned - 1) <= MEMORY_OFF, detail))
    return checks


def _speed_checks(kind: str, speeds: dict[str, float]) -> list[DeviceCheck]:
    """The speeds next to what the planner's table says of the card."""
    try:
        card = find_gpu(_card(), measured=False)
    except UserError as error:
        units = {"tflops": "TFLOPS", "gb_s": "GB/s of memory", "host_gb_s": "GB/s from the host"}
        detail = ", ".join(f"{speeds[key]:,.1f} {unit}" for key, unit in units.items() if key in speeds)
        options = f"--gpu-memory {device.capacity():.0f} --gpu-tflops {speeds['tflops']:.0f}"
        return [
            DeviceCheck("speeds", "ok", detail if kind == "cpu" else f"{detail}; {error.what}: plan with {options}")
        ]
    checks = []
    for name, key, unit, expected in (
        ("matrix products", "tflops", "TFLOPS", card.tflops * card.matmul),
        ("memory", "gb_s", "GB/s", card.gb_s * 0.8),
        ("from the host", "host_gb_s", "GB/s", card.host_gb_s * 0.8),
    ):
        if key in speeds:
            share = speeds[key] / expected
            share_words = f"{share:.0%} of the {expected:,.0f} expected of a {card.name}; plan uses it now"
            checks.append(_verdict(name, share >= SLOW, f"{speeds[key]:,.1f} {unit}, {share_words}", "slow"))
    return checks
