"""All machines for a job: what fits, how fast, for how much; and what to change when nothing fits. Needs no torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tuneloop.files import read_json
from tuneloop.plan.cost import Cost, Efforts, cost_of
from tuneloop.plan.gpus import Gpu, all_gpus, find_gpu
from tuneloop.plan.job import Job, make_job
from tuneloop.plan.memory import Memory, memory_of
from tuneloop.plan.prices import TIERS, load_prices
from tuneloop.plan.shape import ModelShape, bundled_models, find_model, target_modules
from tuneloop.plan.speed import SPREAD, Speed, overhead_hours, speed_of
from tuneloop.types import UserError

COUNTS = (1, 2, 4, 8)
DEFAULT_TOKENS = 1_000_000
DEFAULT_EPOCHS = 3.0
EVALUATIONS = 6
PACKED = 0.97  # share of a pack that is no padding, when rows are placed first-fit
MARGIN = 0.03  # below this share of the capacity a fit is called tight: the predictions' median error is of that size


@dataclass(frozen=True)
class Lengths:
    """Tokens of a data set's training rows: how many a pass has, and quantiles of a row's length (0 where unknown)."""

    tokens: int
    mean: float = 0.0
    p50: int = 0
    p90: int = 0
    longest: int = 0
    val_tokens: int = 0

    def efficiency(self, rows: int, packing: bool) -> float:
        """Share of computed tokens that are no padding, for batches of `rows` padded to their longest."""
        if packing:
            return PACKED
        if rows == 1 or not self.mean:
            return 1.0
        return min(self.mean / self._expected_longest(rows), 1.0)

    def _expected_longest(self, rows: int) -> float:
        """Mean length of the longest of `rows` rows drawn at random, from a quantile function straight between its marks."""
        marks = ((0.0, 0.0), (0.5, float(self.p50)), (0.9, float(self.p90)), (1.0, float(self.longest)))
        total = 0.0
        for (a, low), (b, high) in itertools.pairwise(marks):
            slope = (high - low) / (b - a)
            n = rows
            # integral of (low + slope (u - a)) n u^(n-1) du from a to b
            total += (low - slope * a) * (b**n - a**n) + slope * n / (n + 1) * (b ** (n + 1) - a ** (n + 1))
        return max(total, self.mean)


@dataclass(frozen=True)
class Option:
    """One machine for the job.

    Args:
        hours, low, high: of the whole run, in the middle and the range that 80 % of runs keep to.
        parts: hours by part. cost: None where no price is known.
    """

    job: Job
    memory: Memory
    speed: Speed
    hours: float
    low: float
    high: float
    parts: dict[str, float]
    cost: Cost | None
    notes: tuple[str, ...] = field(default=())

    @property
    def fits(self) -> bool:
        """Whether the memory suffices."""
        return self.memory.fits


def plan_machines(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The plan of a job on every machine that is asked for, as `plan.json` holds it, with the `table` of all.

    Args:
        settings: what the command line was given, by the names of `Job`, and `model`, `gpu`, `gpus`, `tokens`, `dataset`,
            `epochs`, `tier`, `prices`; None means not given.

    Raises:
        UserError: unknown names, numbers that can't be, or settings that exclude each other.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    name, shape, assumed = find_model(given.pop("model"))
    tier, prices = given.pop("tier", "on-demand"), given.pop("prices", None)
    if tier not in TIERS:
        raise UserError(f"No price tier {tier!r}", where="tier", next_step=f"choose one of {', '.join(TIERS)}")
    lengths, epochs, told = _lengths(given)
    assumed += told
    if "seq_len" not in given:
        given["seq_len"] = _sequence(shape, lengths, given, assumed)
    if "targets" in given:
        given["targets"] = target_modules(given["targets"])
    table = load_prices(prices)
    options: list[Option] = []
    left_out: list[str] = []
    for jobs in _jobs(name, shape, given, left_out):
        job = next((job for job in jobs if memory_of(job).fits), jobs[-1])
        price = table.gpu(job.gpu.key, tier, job.gpus)
        options.append(_option(job, lengths, epochs, price))
    ordered = sorted(options, key=_order)
    if not ordered:
        raise UserError("No machine is left to plan for", where="plan", next_step="; ".join(left_out) or "name a GPU")
    best = ordered[0]
    if not best.fits:  # what it would cost is worth knowing all the same
        best = _option(best.job, lengths, epochs, table.gpu(best.job.gpu.key, tier, best.job.gpus), wanted=True)
    plan = _as_json(best)
    plan["assumptions"] = [*assumed, *_assumptions(best, given), *left_out]
    if not best.fits:
        plan["alternatives"] = _changes(best.job)
    plan["table"] = [_row(option) for option in ordered]
    return plan


def _order(option: Option) -> tuple[bool, float, float]:
    cost = option.cost.usd if option.cost else math.inf
    return not option.fits, cost if option.fits else option.memory.required / option.memory.capacity, option.hours


# --- what is asked -----------------------------------------------------------------------------


def _lengths(given: dict[str, Any]) -> tuple[Lengths, float, list[str]]:
    tokens, dataset, epochs = given.pop("tokens", None), given.pop("dataset", None), given.pop("epochs", None)
    if tokens is not None and dataset is not None:
        raise UserError("--tokens and --dataset both say how much is trained on", where="tokens", next_step="give one")
    if tokens is not None and not 1 <= tokens <= 10**15:
        raise UserError(f"tokens is {tokens}; it is a number from 1 to 10^15", where="tokens",
                        next_step="give the tokens of one pass over the data")  # fmt: skip
    if epochs is not None and not 0 < epochs <= 10_000:
        raise UserError(f"epochs is {epochs}; it is a number above 0, at most 10,000", where="epochs",
                        next_step="give the passes over the data")  # fmt: skip
    passes = epochs or (DEFAULT_EPOCHS if dataset else 1.0)
    told = [] if epochs else [f"{passes:g} pass{'es' if passes > 1 else ''} over the data (--epochs)"]
    if dataset:
        return _of_dataset(Path(dataset)), passes, told
    if tokens is None:
        told.append(f"{DEFAULT_TOKENS:,} tokens to train on, in full rows (--tokens, or --dataset for yours)")
    else:
        told.append("rows are full: give --dataset for the padding of yours")
    return Lengths(tokens or DEFAULT_TOKENS), passes, told


def _of_dataset(folder: Path) -> Lengths:
    path = folder / "dataset.json" if folder.is_dir() else folder
    if not path.is_file():
        raise UserError("No prepared data set there (no dataset.json)", where=str(folder),
                        next_step="`tuneloop prepare` makes one; or give --tokens")  # fmt: skip
    manifest = read_json(path)
    try:
        splits = manifest["splits"]
        tokens = splits["train"]["tokens"]
        found = Lengths(
            tokens=int(tokens["total"]), mean=float(tokens["mean"]), p50=int(tokens["p50"]), p90=int(tokens["p90"]),
            longest=int(tokens["max"]), val_tokens=int(splits.get("val", {}).get("tokens", {}).get("total", 0)),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError):
        raise UserError("The data set's manifest has no token statistics", where=str(path),
                        next_step="prepare it again, or give --tokens") from None  # fmt: skip
    if found.tokens < 1:
        raise UserError("The data set has no training tokens", where=str(path), next_step="prepare it again")
    return found


def _sequence(shape: ModelShape, lengths: Lengths, given: Mapping[str, Any], assumed: list[str]) -> int:
    most = shape.context or 2048
    if lengths.longest and not given.get("packing"):
        return min(lengths.longest, most)
    assumed.append(f"rows of {min(2048, most):,} tokens (--seq-len)")
    return min(2048, most)


def _jobs(name: str, shape: ModelShape, given: dict[str, Any], left_out: list[str]) -> Iterator[list[Job]]:
    """For each machine the ways to share the work, the simplest first."""
    gpu, count, sharding = given.pop("gpu", None), given.pop("gpus", None), given.pop("sharding", None)
    named = [find_gpu(gpu)] if gpu else list(all_gpus().values())
    for device in named:
        counts = (count,) if count is not None else (1,) if device.is_cpu else COUNTS
        for gpus in counts:
            if count is None and sharding not in (None, "none") and gpus == 1:
                continue
            if count is None and sharding == "none" and gpus > 1:
                continue
            ways = [sharding] if sharding else ["none"] if gpus == 1 else ["ddp", "fsdp"]
            usual = {**given, **_usual(device, given)}
            try:
                yield [
                    make_job(**{**usual, "model": name, "shape": shape, "gpu": device, "gpus": gpus, "sharding": way})
                    for way in ways
                    if not (way == "ddp" and given.get("optimizer_in_backward"))
                ]
            except UserError as error:
                if gpu or "on " + device.name not in error.what:  # what no machine can do is the user's to put right
                    raise
                left_out.append(f"{device.name} left out: {error.what}")
                break


def _usual(gpu: Gpu, given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that follow from the device unless they are given."""
    if not gpu.bf16 and "dtype" not in given:
        return {"dtype": "fp16"}
    if not gpu.bf16 and given["dtype"] in ("bf16", "mixed", "autocast"):
        raise UserError(f"There is no bfloat16 on {gpu.name}", where="dtype", next_step="use --dtype fp16")
    return {}


# --- one machine -------------------------------------------------------------------------------


def _option(job: Job, lengths: Lengths, epochs: float, price: Any, wanted: bool = False) -> Option:
    speed = speed_of(job)
    rate = speed.tokens_per_second * lengths.efficiency(job.micro_batch, job.packing)
    val = lengths.val_tokens or lengths.tokens // 10
    parts = {
        "train": lengths.tokens * epochs / rate / 3600,
        **overhead_hours(job, evaluations=EVALUATIONS, evaluation_tokens=min(val, 200_000)),
    }
    hours = sum(parts.values())
    low, high = hours / SPREAD, hours * SPREAD
    cost, memory = None, memory_of(job)
    if price and (memory.fits or wanted):
        efforts = Efforts(setup_hours=0.0, evaluation_hours=0.0, runs=1, storage_gb=_kept_gb(job), storage_months=1)
        cost = cost_of(hours, low, high, job.gpus, price, efforts=efforts)
    return Option(job, memory, speed, hours, low, high, parts, cost)


def _kept_gb(job: Job) -> float:
    return round(job.trainable * (2 if job.full else 4) / 1e9, 2)


def _row(option: Option) -> dict[str, Any]:
    job, memory = option.job, option.memory
    return {
        "gpu": job.gpu.key,
        "gpus": job.gpus,
        "sharding": job.sharding,
        "fits": option.fits,
        "fits_with": _would_fit(job) if not option.fits else "",
        "tight": option.fits and memory.capacity - memory.required < MARGIN * memory.capacity,
        "peak_gib": round(memory.peak, 2),
        "required_gib": round(memory.required, 2),
        "capacity_gib": round(memory.capacity, 2),
        "headroom_gib": round(memory.capacity - memory.required, 2),
        "tokens_per_second": round(option.speed.tokens_per_second),
        "hours": option.hours,
        "low": option.low,
        "high": option.high,
        "usd": option.cost.usd if option.cost else None,
        "usd_low": option.cost.low if option.cost else None,
        "usd_high": option.cost.p90 if option.cost else None,
    }


def _would_fit(job: Job) -> str:
    """The first of the usual remedies that is enough, or nothing."""
    ckpt = {"grad_ckpt": True}
    for words, changes in (
        ("--grad-ckpt", ckpt),
        ("--grad-ckpt --loss-kernel fused", {**ckpt, "loss_kernel": "fused"}),
    ):
        changed = _with(job, **changes)
        if changed and memory_of(changed).fits:
            return words
    return ""


def _as_json(option: Option) -> dict[str, Any]:
    job, memory, cost = option.job, option.memory, option.cost
    rounded = {phase: {name: round(gib, 4) for name, gib in terms.items()} for phase, terms in memory.phases.items()}
    return {
        "version": 1,
        "model": job.model,
        "method": job.method,
        "gpu": job.gpu.key,
        "gpus": 0 if job.gpu.is_cpu else job.gpus,
        "fits": option.fits,
        "trainable_parameters": job.trainable,
        "total_parameters": job.shape.parameters,
        "settings": _settings(job),
        "memory": {
            "peak_gib": round(memory.peak, 3),
            "capacity_gib": round(memory.capacity, 2),
            "phase": memory.phase,
            "terms": rounded[memory.phase],
            "phases": rounded,
            "allocated_gib": round(memory.peak, 3),
            "reserved_gib": round(memory.reserved, 3),
            "required_gib": round(memory.required, 3),
            "headroom_gib": round(memory.capacity - memory.required, 3),
        },
        "time": {
            "hours": option.hours,
            "low": option.low,
            "high": option.high,
            "tokens_per_second": round(option.speed.tokens_per_second, 1),
            "tflop_per_token": option.speed.tflop_per_token,
            "share_of_peak": round(option.speed.share, 3),
            "bound": option.speed.bound,
            "breakdown": option.parts,
        },
        "cost": {
            "usd": cost.usd if cost else None,
            "low": cost.low if cost else None,
            "high": cost.p90 if cost else None,
            "p50": cost.p50 if cost else None,
            "p90": cost.p90 if cost else None,
            "breakdown": cost.breakdown if cost else {},
        },
        "assumptions": [],
        "alternatives": [],
    }


def _settings(job: Job) -> dict[str, Any]:
    """The job's settings as the command line spells them."""
    hidden = {"model", "shape", "gpu", "gpus"}
    return {name: value for name, value in vars(job).items() if name not in hidden}


def _assumptions(option: Option, given: Mapping[str, Any]) -> list[str]:
    job = option.job
    found = []
    for name in ("method", "micro_batch", "grad_accum", "attention", "loss_kernel", "dtype", "optimizer", "quant"):
        if name not in given and (name != "quant" or job.method == "qlora"):
            found.append(f"{name.replace('_', ' ')} {getattr(job, name)} (--{name.replace('_', '-')})")
    if not given.get("grad_ckpt"):
        found.append("no gradient checkpointing (--grad-ckpt)")
    if job.adapted:
        found.append(
            f"rank {job.rank} on {', '.join(t.removesuffix('_proj') for t in job.targets)} (--rank, --targets)"
        )
    if job.method == "prefix":
        found.append(f"{job.prefix_tokens} virtual tokens (--prefix-tokens)")
    found.append(f"{option.speed.share:.0%} of the {job.gpu.name}'s peak is reached: {job.gpu.share_of}")
    found.append(
        f"time and dollars: 80 % of published runs lie within a factor of {SPREAD:g}; one run, its machine paid while it runs"
    )
    if option.cost:
        found += [line for line in option.cost.assumptions if not line.startswith(("0 machine hours", "no rows"))]
    else:
        found.append("no price is known for this machine")
    return found


# --- when nothing fits -------------------------------------------------------------------------


def _changes(job: Job) -> list[dict[str, Any]]:
    """Changes of one setting, then of several, that make the job fit; and what still lacks when none does."""
    steps: list[tuple[str, str, Callable[[Job], Job | None]]] = [
        ("--grad-ckpt", "layers are recomputed: their activations need not wait", lambda j: _with(j, grad_ckpt=True)),
        ("--loss-kernel fused", "no logits are kept", lambda j: _with(j, loss_kernel="fused")),
        ("--micro-batch 1", "fewer rows at once", lambda j: _with(j, micro_batch=1)),
        ("--method lora", "only an adapter has gradients and optimizer states", lambda j: _with(j, method="lora")),
        ("--optimizer adamw-8bit", "states of 2 bytes a parameter",
         lambda j: _with(j, optimizer="adamw-8bit") if j.full and not j.gpu.is_cpu else None),
        ("--method qlora", "frozen weights in 4 bits",
         lambda j: None if j.gpu.is_cpu else _with(j, method="qlora", quant="nf4-dq", dtype="fp16" if not j.gpu.bf16 else "bf16")),
        ("--seq-len 512", "shorter rows", lambda j: _with(j, seq_len=512) if j.seq_len > 512 else None),
        ("--gpus 8 --sharding fsdp", "weights divided among the GPUs",
         lambda j: None if j.gpu.is_cpu else _with(j, gpus=8, sharding="fsdp")),
    ]  # fmt: skip
    found: list[dict[str, Any]] = []
    words: list[str] = []
    so_far = job
    for change, why, step in steps:
        alone = step(job)
        if alone and memory_of(alone).fits:
            found.append({"change": change, "why": why, "required_gib": round(memory_of(alone).required, 2)})
    for change, _, step in steps:
        if found:
            break
        changed = step(so_far)
        if changed and memory_of(changed).required < memory_of(so_far).required:
            so_far, words = changed, [w for w in words if w.split()[0] != change.split()[0]] + [change]
            if memory_of(so_far).fits:
                found.append({"change": " ".join(words), "why": "together they fit",
                              "required_gib": round(memory_of(so_far).required, 2)})  # fmt: skip
    if not found:
        found = _other_machines(job) or _smaller_models(so_far)
    return found


def _with(job: Job, **changes: Any) -> Job | None:
    """The job with changes, or None where nothing would change or the settings exclude each other."""
    if all(getattr(job, name) == value for name, value in changes.items()):
        return None
    if changes.get("method") == "lora" and not job.full:
        return None
    if changes.get("method") == "qlora" and job.method == "prefix":
        return None
    try:
        return make_job(**{**vars(job), **changes})
    except UserError:
        return None


def _other_machines(job: Job) -> list[dict[str, Any]]:
    """The smallest machine of the table that takes the job as it is."""
    for gpus in COUNTS:
        for gpu in sorted(all_gpus().values(), key=lambda gpu: gpu.gib):
            other = _with(job, gpu=gpu, gpus=gpus, sharding="none" if gpus == 1 else "fsdp")
            if other and memory_of(other).fits:
                return [{"change": f"--gpu {gpu.key} --gpus {gpus}", "why": "the smallest machine that has the memory",
                         "required_gib": round(memory_of(other).required, 2)}]  # fmt: skip
    return []


def _smaller_models(job: Job) -> list[dict[str, Any]]:
    for name, shape in sorted(bundled_models().items(), key=lambda item: -item[1].parameters):
        if shape.parameters < job.shape.parameters and memory_of(replace(job, model=name, shape=shape)).fits:
            return [{"change": f"--model {name}", "why": "the largest known model that fits with all of the above",
                     "required_gib": round(memory_of(replace(job, model=name, shape=shape)).required, 2)}]  # fmt: skip
    return []
