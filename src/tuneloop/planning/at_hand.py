"""What a run of tuneloop's own loop takes on this machine, its speed measured: memory, minutes, dollars, as ranges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tuneloop.models.nn import ModelShape, target_modules
from tuneloop.planning.catalogue.gpus import CPU, Gpu, card_in_use, this_cpu
from tuneloop.planning.catalogue.shape import mixture_words
from tuneloop.planning.certainty import certainty_of
from tuneloop.planning.job import TrainingSetup, make_job
from tuneloop.planning.ledger import RESIDENT
from tuneloop.planning.memory import memory_of
from tuneloop.planning.speed import speed_of
from tuneloop.records.plan import MeasuredMachine


@dataclass(frozen=True)
class RunWork:
    """What a run computes."""

    steps: int  # optimizer steps
    tokens: int  # trained tokens of all steps
    supervised: int  # those that the loss sees
    val_tokens: int  # validation tokens of all evaluations
    micro_batches: tuple[tuple[int, int, int], ...]  # that occur: rows, length behind the shared beginning, its length
    accumulated: int = (
        1  # micro-batches of the step that has most: the gradients of all but the first find earlier ones
    )


@dataclass(frozen=True)
class MachineAtHand:
    """Where it runs."""

    name: str
    capacity_gib: float  # of one GPU, as is its present use
    resident_gib: float
    usd_per_hour: float
    tokens_per_second: float  # as measured
    gpus: int = 1  # that divide the base model between them

    @property
    def card(self) -> Gpu:
        """What it computes on: the processor, or a card by the name that its driver gives it."""
        return this_cpu() if self.name.startswith(CPU) else card_in_use(self.name, self.capacity_gib)


# Tokens a second without a backward pass, in validation and of a reference, relative to the speed that training keeps
# up: 2.5 to 4.1 on six runs of LoRA and prefix tuning.
VALIDATION_SPEED = 2.5
# Spread of wall time around "tokens / measured speed" on shared processors: the probe lasts seconds, the run minutes.
TIME_LOW, TIME_HIGH = 0.85, 1.35


def loop_job(
    shape: ModelShape, work: RunWork, *, bytes_a_weight: int = 2, gpu: Gpu | None = None, **settings: Any
) -> TrainingSetup:
    """The run as a job of the planner's: tuneloop's loop on the processor (or `gpu`), with the largest micro-batch.
    `bytes_a_weight`: of the model as it is loaded. `settings`: of the job, by the names of `TrainingSetup`: `model`,
    `method`, `rank`, `targets`, `optimizer` ."""
    settings = {
        **settings, "targets": target_modules(settings["targets"]),
        "prefix_tokens": max(settings.get("prefix_tokens", 0), 1),
        "shape": replace(shape, context=0), "gpu": gpu or this_cpu(), "loss_kernel": "tuneloop",
        "dtype": "fp32" if bytes_a_weight == 4 else "bf16", "grad_accum": work.accumulated,
    }  # fmt: skip
    share = work.supervised / max(work.tokens, 1)

    def of(rows: int, length: int, shared: int) -> TrainingSetup:
        supervised = max(round(share * (rows * length + shared)), 1)
        return make_job(**settings, seq_len=length, micro_batch=rows, shared=shared, supervised=supervised)

    return max((of(*micro) for micro in work.micro_batches or ((1, 1, 0),)), key=lambda job: memory_of(job).peak)


def planned_step(
    shape: ModelShape, work: RunWork, gpu: Gpu, bytes_a_weight: int, **settings: Any
) -> tuple[float, float]:
    """Tokens a second and the peak of memory in GiB of the loop's steps on a card; `settings`: as of `loop_job`."""
    job = loop_job(shape, work, gpu=gpu, bytes_a_weight=bytes_a_weight, **settings)
    return speed_of(job).tokens_per_second, memory_of(job).peak


# Tokens computed at once that are tried: more make products no faster; below 2,048 recomputing costs less than these.
SIZES, LEAST_SIZE = (16384, 8192, 4096, 2048, 1024, 512), 2048


def sizes_on_gpu(
    shape: ModelShape,
    work_at: Callable[[int], RunWork],
    card: Gpu,
    free_gib: float,
    *,
    may_recompute: bool,
    **settings: Any,
) -> MeasuredMachine:
    """How steps are divided so that they fit into a GPU's memory by the formulas: in the largest micro-batches that
    need no layers computed again, else as is fastest, with as many layers kept as fit.

    `work_at`: what steps compute with micro-batches of so many tokens. `free_gib`: memory that the run may take, the
    model's weights included, without what the driver takes. `may_recompute`: whether layers may be computed again
    (`train.gradient_checkpointing`). `settings`: as of `loop_job`.
    """
    always = bool(settings.pop("grad_ckpt", False))
    works = {tokens: work_at(tokens) for tokens in SIZES}

    def job(tokens: int, recompute: bool, stored: int = 0) -> TrainingSetup:
        return loop_job(shape, works[tokens], gpu=card, grad_ckpt=recompute, kept_layers=stored, **settings)

    def fits(tokens: int, recompute: bool, stored: int = 0) -> bool:
        memory = memory_of(job(tokens, recompute, stored))
        return memory.required - memory.context <= free_gib

    def smallest(tokens: int) -> int:
        """The least size that gives the same micro-batches."""
        return min(other for other in SIZES if works[other].micro_batches == works[tokens].micro_batches)

    for tokens in () if always else SIZES:
        if tokens >= LEAST_SIZE and fits(tokens, False):
            return MeasuredMachine(smallest(tokens))
    for large in (True, False) if may_recompute or always else ():
        fitting: list[tuple[float, MeasuredMachine]] = []
        for tokens in (size for size in SIZES if (size >= LEAST_SIZE) is large):
            most = 0 if always else shape.layers - 1
            stored = next((stored for stored in range(most, -1, -1) if fits(tokens, True, stored)), None)
            if stored is not None:
                speed = speed_of(job(tokens, True, stored)).tokens_per_second
                fitting.append((speed, MeasuredMachine(smallest(tokens), True, stored)))
        if fitting:
            return max(fitting, key=lambda size: size[0])[1]
    for tokens in () if always else SIZES:
        if tokens < LEAST_SIZE and fits(tokens, False):
            return MeasuredMachine(smallest(tokens))
    return MeasuredMachine(SIZES[-1], always or may_recompute)


def estimate(
    shape: ModelShape, work: RunWork, machine: MachineAtHand, *, bytes_a_weight: int = 2, **settings: Any
) -> dict[str, Any]:
    """The plan of a run on this machine, as `plan.json` holds it; `bytes_a_weight`, `settings`: as of `loop_job`. Time
    is trained tokens over the measured speed of both passes, plus validation at `VALIDATION_SPEED` times that speed."""
    if machine.gpus > 1:
        settings |= {"gpus": machine.gpus, "sharding": "fsdp"}
    job = loop_job(shape, work, bytes_a_weight=bytes_a_weight, gpu=machine.card, **settings)
    memory = memory_of(job)
    # What is resident with the model loaded takes the place of its weights.
    terms = {RESIDENT: machine.resident_gib} | {name: gib for name, gib in memory.terms.items() if name != "weights"}
    peak = sum(terms.values())
    seconds = work.tokens / machine.tokens_per_second + work.val_tokens / (VALIDATION_SPEED * machine.tokens_per_second)
    hours = seconds / 3600
    usd = hours * machine.usd_per_hour
    required = memory.required - memory.peak + peak
    fits = required <= machine.capacity_gib
    if job.gpu.is_cpu:
        fits = peak < 0.95 * machine.capacity_gib
    changes = [("train.micro_batch_tokens=512", "halves the activations"),
               ("data.max_length=512", "shorter rows need less for attention")]  # fmt: skip
    if job.full and job.optimizer == "adamw":
        changes.insert(0, ("train.optimizer=adamw-8bit", "the optimizer's moments in a third of the memory"))
    return {
        "version": 1, "model": job.model, "method": job.method, "gpu": machine.name,
        "gpus": 0 if job.gpu.is_cpu else machine.gpus, "fits": fits,
        "trainable_parameters": job.trainable, "total_parameters": shape.parameters,
        "steps": work.steps, "tokens": work.tokens,
        "by_formula": {"tokens_per_second": speed_of(job).tokens_per_second},
        "certainty": certainty_of(job, required, machine.capacity_gib, here=True).model_dump(),
        "memory": {
            "peak_gib": round(peak, 3), "capacity_gib": round(machine.capacity_gib, 2), "phase": memory.phase,
            "terms": {name: round(value, 4) for name, value in terms.items()},
        },
        "time": {"hours": hours, "low": hours * TIME_LOW, "high": hours * TIME_HIGH,
                 "tokens_per_second": round(machine.tokens_per_second, 1)},
        "cost": {"usd": usd, "low": usd * TIME_LOW, "high": usd * TIME_HIGH, "breakdown": {"training": usd},
                 "usd_per_hour": machine.usd_per_hour},
        "assumptions": [
            *mixture_words(shape),
            f"speed as just measured on this machine: {machine.tokens_per_second:.0f} tokens/s forward and backward",
            "early stopping not counted: it can only make the run shorter",
            f"price given: ${machine.usd_per_hour:g} an hour",
            "baselines and the final evaluation are not in these numbers",
        ],
        "alternatives": [] if fits else [{"change": change, "why": reason} for change, reason in changes],
    }  # fmt: skip
