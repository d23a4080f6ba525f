"""All machines for a job, with the usual settings of `plan` and `advise`: what fits, how fast, for how much."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.models.methods import USUAL, method_named
from tuneloop.models.nn import ModelShape, target_modules
from tuneloop.planning import cost as costs
from tuneloop.planning.catalogue.gpus import COUNTS, all_gpus, find_gpu, own_card
from tuneloop.planning.catalogue.prices import Price, PriceTable, Tier, load_prices, priced
from tuneloop.planning.catalogue.shape import find_model
from tuneloop.planning.certainty import certainty_of
from tuneloop.planning.cost import ONE_RUN, Cost, Efforts, Interruptions
from tuneloop.planning.job import TrainingSetup, make_job
from tuneloop.planning.ledger import Entry, learned_speed, read_ledger
from tuneloop.planning.memory import Memory, memory_of
from tuneloop.planning.recommend import changes, recommendation, would_fit
from tuneloop.planning.speed import SPREAD, Speed, overhead_hours
from tuneloop.records.dataset import DatasetManifest, read_manifest
from tuneloop.records.plan import Certainty

# `tokens_at_once` and `rows_per_step` of the loop (training/batches.py, training/config.py, which import torch): a
# micro-batch has no more tokens than these, and no more rows than a step.
LOOP_TOKENS, LOOP_TOKENS_FULL_CPU, LOOP_ROWS = 2048, 1024, 8
NO_LENGTH = 1024  # tokens of a row where the data set's are not known


def loop_rows(length: float, *, full_on_cpu: bool = False) -> int:
    """Rows of that length that the loop computes at once."""
    tokens = LOOP_TOKENS_FULL_CPU if full_on_cpu else LOOP_TOKENS
    return max(1, min(LOOP_ROWS, int(tokens / max(length, 1))))


def loop_batches(length: float, *, full_on_cpu: bool = False) -> tuple[int, ...]:
    """Rows at once as the loop takes them, and fewer: it divides a micro-batch that does not fit."""
    rows = loop_rows(length, full_on_cpu=full_on_cpu)
    return tuple(rows >> halvings for halvings in range(rows.bit_length()))


def usual_settings(method: str, shape: ModelShape, longest: int | None, *, cpu: bool = False) -> dict[str, Any]:
    """Settings of a job that trains on a data set: rows as long as its longest, layers recomputed, no logits kept.
    `method`: its name, or its file. `longest`: tokens of the longest row; None: `NO_LENGTH`. `cpu`: whether the
    processor trains."""
    footprint = method_named(method).footprint
    length = min(longest or NO_LENGTH, shape.context or 1 << 20)
    batches = loop_batches(length, full_on_cpu=cpu and footprint.all_weights)
    settings: dict[str, Any] = {"seq_len": length, "micro_batch": batches, **footprint.usual}
    if not cpu:
        settings |= {"grad_ckpt": True, "loss_kernel": "fused", **footprint.usual_on_gpu}
    return settings


DEFAULT_TOKENS = 1_000_000
DEFAULT_EPOCHS = 3.0
EVALUATIONS = 6
PACKED = 0.97  # share of a pack that is no padding, when rows are placed first-fit
A_WEEK = 7 * 24.0  # hours of a run from which a faster machine comes first, though it costs more
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
        return min(self.mean / self.expected_longest(rows), 1.0)

    def expected_longest(self, rows: int) -> float:
        """Mean length of the longest of `rows` rows drawn at random, by a quantile function straight between its
        marks."""
        marks = ((0.0, 0.0), (0.5, float(self.p50)), (0.9, float(self.p90)), (1.0, float(self.longest)))
        total = 0.0
        for (a, low), (b, high) in itertools.pairwise(marks):
            slope = (high - low) / (b - a)
            n = rows
            # integral of (low + slope (u - a)) n u^(n-1) du from a to b
            total += (low - slope * a) * (b**n - a**n) + slope * n / (n + 1) * (b ** (n + 1) - a ** (n + 1))
        return max(total, self.mean)


@dataclass(frozen=True)
class MachineOption:
    """One machine for the job."""

    job: TrainingSetup
    memory: Memory
    speed: Speed
    hours: float  # of the whole run
    low: float  # and high: the range that 80 % of runs keep to
    high: float
    parts: dict[str, float]  # hours by part
    cost: Cost | None  # None where no price is known
    price: Price | None
    corrected_by: str = ""  # runs on this machine that the speed is corrected by, in words, or nothing

    @property
    def fits(self) -> bool:
        """Whether the memory suffices."""
        return self.memory.fits

    @functools.cached_property
    def certainty(self) -> Certainty:
        """How sure it is."""
        memory, speed = self.memory, self.speed.tokens_per_second
        return certainty_of(self.job, memory.required, memory.capacity, speed, here=bool(self.corrected_by))

    @property
    def bare_usd(self) -> float:
        """Dollars of one run, the machine alone; 0 where no price is known."""
        return self.hours * self.price.machines_usd(self.job.gpus) if self.price else 0.0


@dataclass(frozen=True)
class PlanRequest:
    """What is planned, on which machines, at which prices."""

    model: str
    shape: ModelShape
    settings: Mapping[str, Any]  # by the names of `TrainingSetup`; of several `micro_batch` the first that fits
    lengths: Lengths
    epochs: float
    prices: PriceTable
    tier: Tier = "on-demand"
    efforts: Efforts = ONE_RUN  # what it takes apart from the run; `storage_gb` of 0: what the run leaves
    per_hour: float | None = None  # expected interruptions an hour of one machine; None: what the tier lets expect
    checkpoint_minutes: float | None = None  # between checkpoints; None: the best interval
    ledger: Sequence[Entry] = field(default_factory=read_ledger)  # earlier runs


def machines(request: PlanRequest) -> tuple[list[MachineOption], list[str]]:
    """Every machine in question with the simplest way to share the work that fits, and what was left out. What fits
    comes first, then what ends within a week, then the cheapest; what does not fit by how little it lacks. Raises
    UserError: unknown names, numbers that can't be, or settings that exclude each other."""
    left_out: list[str] = []
    simplest = [next((job for job in jobs if memory_of(job).fits), jobs[-1]) for jobs in _jobs(request, left_out)]

    def order(option: MachineOption) -> tuple[bool, bool, float, float]:
        if not option.fits:
            return True, False, option.memory.required / option.memory.capacity, 0.0
        usd = option.cost.usd if option.cost else option.bare_usd if option.price else math.inf
        return False, option.hours > A_WEEK, usd, option.hours

    return sorted((_option(request, job) for job in simplest), key=order), left_out


def plan_model(stated: Mapping[str, Any], settings: Sequence[str] = ()) -> dict[str, Any]:
    """The plan of a named model on every machine in question; see `plan_machines`.

    Args:
        settings: a recipe's `key=value`, none of which belongs here.

    Raises:
        UserError: no model, or settings.
    """
    if settings:
        step = "write it as an option (tuneloop plan --help), or name a recipe or data before it"
        raise UserError(f"{settings[0]!r} is a recipe's setting; give this plan options", where="plan", next_step=step)
    if not stated.get("model"):
        step = "tuneloop plan --model llama-3.1-8b --method lora, or tuneloop plan DATA"
        raise UserError("Plan what? Neither a model nor data are named", where="plan", next_step=step)
    return plan_machines(stated)


def plan_machines(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The plan of a job on every machine in question, as `plan.json` holds it, with the `table` of all.

    A GPU named without a count is one GPU: what more of them would do is in the table. `settings`: by the names of
    `PlanOptions` (None means not given), and `providers`, whose bundled prices count; default: all.

    Raises UserError: unknown names, numbers that can't be, or settings that exclude each other.
    """
    options = {name: value for name, value in settings.items() if value is not None}
    name, shape, assumed = find_model(options.pop("model"))
    tier, price_file, usd = options.pop("tier", "on-demand"), options.pop("prices", None), _own_card(options, assumed)
    lengths, epochs, sentences = _lengths(options)
    assumed += sentences
    stated = dict(options)
    if lengths.longest:
        cpu = bool(options.get("gpu")) and find_gpu(options["gpu"]).is_cpu
        options = {**usual_settings(options.get("method", USUAL.name), shape, lengths.longest, cpu=cpu), **options}
    if "seq_len" not in options:
        options["seq_len"] = min(2048, shape.context or 2048)
        if lengths.longest and not options.get("packing"):
            options["seq_len"] = min(lengths.longest, shape.context or 2048)
        else:
            assumed.append(f"rows of {options['seq_len']:,} tokens (--seq-len)")
    options.setdefault("micro_batch", loop_batches(options["seq_len"]))
    if options.get("packing") is False or (lengths.mean and not options.get("packing")):
        options["varied"] = True
    if "targets" in options:
        options["targets"] = target_modules(options["targets"])
    per_hour, minutes = options.pop("interruptions_per_hour", None), options.pop("checkpoint_minutes", None)
    for flag, value, least in (("--interruptions-per-hour", per_hour, 0.0), ("--checkpoint-minutes", minutes, 0.01)):
        if value is not None and not least <= value <= 10_000:
            raise UserError(f"{flag} is {value}", where=flag, next_step=f"give a number from {least:g} to 10,000")
    providers, table = options.pop("providers", None), load_prices(price_file)
    prices = priced(table.of(providers) if providers else table, options.get("gpu"), usd, tier)
    efforts = replace(ONE_RUN, **{f.name: options.pop(f.name) for f in fields(Efforts) if f.name in options})
    request = PlanRequest(name, shape, options, lengths, epochs, prices, tier, efforts, per_hour, minutes)
    ordered, left_out = machines(request)
    if not ordered:
        raise UserError("No machine is left to plan for", where="plan", next_step="; ".join(left_out) or "name a GPU")
    best = ordered[0]
    single = next((option for option in ordered if option.job.gpus == 1), None)
    if "gpu" in options and "gpus" not in options and single:
        best = single
        if not best.job.gpu.is_cpu:
            assumed.append("1 GPU (--gpus)")
    plan = _as_json(best)
    plan["assumptions"] = [*assumed, *_assumptions(best, stated), *left_out]
    if not best.fits:
        plan["alternatives"] = changes(best.job)
    plan["table"] = [_row(option) for option in ordered]
    plan["recommendation"] = recommendation(plan)
    return plan


def _own_card(options: dict[str, Any], assumed: list[str]) -> Any:
    """Put a card of the user's own in the place of the GPU's name; what an hour of the GPU costs, where stated."""
    numbers = {name: options.pop(f"gpu_{name}", None) for name in ("memory", "tflops", "bandwidth", "link")}
    if any(value is not None for value in numbers.values()):
        card = options["gpu"] = own_card(options.get("gpu"), **numbers)
        flags = ", ".join(f"--gpu-{name}" for name in numbers)
        speeds = f"{card.tflops:g} TFLOPS, {card.gb_s:g} GB/s, {card.link_gb_s:g} GB/s to its neighbour"
        assumed.append(f"a card of {card.gib:g} GiB, {speeds} ({flags})")
    return options.pop("usd_per_gpu_hour", None)


def _lengths(options: dict[str, Any]) -> tuple[Lengths, float, list[str]]:
    tokens, dataset, epochs = (options.pop(name, None) for name in ("tokens", "dataset", "epochs"))
    if tokens is not None and dataset is not None:
        raise UserError("--tokens and --dataset both say how much is trained on", where="tokens", next_step="give one")
    if tokens is not None and not 1 <= tokens <= 10**15:
        message = f"tokens is {tokens}; it is a number from 1 to 10^15"
        raise UserError(message, where="tokens", next_step="give the tokens of one pass over the data")
    if epochs is not None and not 0 < epochs <= 10_000:
        message = f"epochs is {epochs}; it is a number above 0, at most 10,000"
        raise UserError(message, where="epochs", next_step="give the passes over the data")
    passes = epochs or (DEFAULT_EPOCHS if dataset else 1.0)
    sentences = [] if epochs else [f"{passes:g} pass{'es' if passes > 1 else ''} over the data (--epochs)"]
    if dataset:
        path = Path(dataset) / "dataset.json" if Path(dataset).is_dir() else Path(dataset)
        if not path.is_file():
            message, step = "No prepared data set there (no dataset.json)", "run `tuneloop prepare`, or give --tokens"
            raise UserError(message, where=str(Path(dataset)), next_step=step)
        return lengths_of(read_manifest(path), str(path)), passes, sentences
    sentence = "rows are full: name your data for the padding of yours (tuneloop plan DATA)"
    if tokens is None:
        flags = "--tokens N, or name your data: tuneloop plan DATA"
        sentence = f"{DEFAULT_TOKENS:,} tokens to train on, in full rows ({flags})"
    return Lengths(tokens or DEFAULT_TOKENS), passes, [*sentences, sentence]


def lengths_of(manifest: DatasetManifest, where: str) -> Lengths:
    """Tokens of a data set's training rows, also of those mixed in, by its manifest. Raises UserError: it has no
    numbers."""
    tokens, val = manifest.splits.train.tokens, manifest.splits.val.tokens
    if tokens is None:
        message = "The data set's manifest has no token statistics"
        raise UserError(message, where=where, next_step="prepare it again, or give --tokens")
    total = tokens.total + (manifest.mix.general.tokens if manifest.mix else 0)  # rows mixed in are trained on too
    if total < 1:
        raise UserError("The data set has no training tokens", where=where, next_step="prepare it again")
    return Lengths(total, tokens.mean, tokens.p50, tokens.p90, tokens.max, val.total if val else 0)


def _jobs(request: PlanRequest, left_out: list[str]) -> Iterator[list[TrainingSetup]]:
    """For each machine the ways to share the work and the sizes of a micro-batch, the simplest first."""
    shared = dict(request.settings)
    gpu, count, sharding, rows = (shared.pop(name, None) for name in ("gpu", "gpus", "sharding", "micro_batch"))
    batches = rows if isinstance(rows, tuple) else (rows,)
    cards = (
        card
        for card in all_gpus().values()
        if request.prices.gpu(card.key, request.tier) or request.prices.gpu(card.key)
    )
    for device in [find_gpu(gpu)] if gpu else cards:
        counts = (count,) if count is not None else (1,) if device.is_cpu else COUNTS
        for gpus in counts:
            if count is None and sharding and (sharding == "none") != (gpus == 1):
                continue
            ways = [sharding] if sharding else ["none"] if gpus == 1 else ["ddp", "fsdp"]
            settings = {**shared, "model": request.model, "shape": request.shape, "gpu": device, "gpus": gpus}
            if not device.bf16:
                settings.setdefault("dtype", "fp16")
            try:
                if not device.bf16 and settings["dtype"] in ("bf16", "mixed", "autocast"):
                    message = f"There is no bfloat16 on {device.name}"
                    raise UserError(message, where="dtype", next_step="use --dtype fp16")
                yield [
                    make_job(**{**settings, "sharding": way, "micro_batch": batch})
                    for way in ways
                    for batch in batches
                    if not (way == "ddp" and shared.get("optimizer_in_backward"))
                ]
            except UserError as error:
                if gpu or "on " + device.name not in error.what:  # what no machine can do is the user's to fix
                    raise
                left_out.append(f"{device.name} left out: {error.what}")
                break


def _option(request: PlanRequest, job: TrainingSetup) -> MachineOption:
    """The job on its machine; without a cost where it does not fit."""
    # with the micro-batch that most steps have: memory is for the longest rows, short ones are computed more at a time
    typical, lengths = job, request.lengths
    if lengths.mean and not job.packing:
        rows = job.micro_batch
        if isinstance(request.settings.get("micro_batch"), tuple):
            rows = max(rows, loop_rows(lengths.mean, full_on_cpu=job.full and job.gpu.is_cpu))
        length = min(round(lengths.expected_longest(rows)), job.seq_len)
        typical = replace(job, micro_batch=rows, seq_len=length)
    speed, corrected_by = learned_speed(typical, request.ledger)
    rate = speed.tokens_per_second * lengths.efficiency(typical.micro_batch, job.packing)
    val = lengths.val_tokens or lengths.tokens // 10
    parts = {"train": lengths.tokens * request.epochs / rate / 3600}
    parts |= overhead_hours(job, evaluations=EVALUATIONS, evaluation_tokens=min(val, 200_000))
    price = request.prices.gpu(job.gpu.key, request.tier, job.gpus)
    usual = costs.interruptions(price.tier if price else request.tier, job.gpus)
    save, last = parts.pop("save") * 60, parts.pop("keep") * 60
    per_hour = usual.per_hour if request.per_hour is None else request.per_hour
    how = Interruptions(per_hour, request.checkpoint_minutes, save, last_minutes=last)
    work = sum(parts.values())
    hours = costs.finite_hours(work, how)
    parts["checkpoints"] = costs.checkpoint_hours(work, how)
    parts["interruptions"] = hours - work - parts["checkpoints"]
    cost, memory = None, memory_of(job)
    if price and lengths.tokens and memory.fits:
        kept_gb = request.efforts.storage_gb or round(job.trainable * (2 if job.full else 4) / 1e9, 2)
        efforts, usd = replace(request.efforts, storage_gb=kept_gb), request.prices.storage.usd_per_gb_month
        spread = work, work / SPREAD, work * SPREAD
        cost = costs.cost_of(*spread, job.gpus, price, efforts=efforts, how=how, usd_per_gb_month=usd)
    return MachineOption(job, memory, speed, hours, hours / SPREAD, hours * SPREAD, parts, cost, price, corrected_by)


def _row(option: MachineOption) -> dict[str, Any]:
    job, memory, cost = option.job, option.memory, option.cost
    return {
        "gpu": job.gpu.key, "gpus": job.gpus, "sharding": job.sharding,
        "fits": option.fits, "fits_with": would_fit(job) if not option.fits else "",
        "tight": option.fits and memory.capacity - memory.required < MARGIN * memory.capacity,
        "may_not_fit": option.certainty.may_not_fit,
        "peak_gib": round(memory.peak, 2), "required_gib": round(memory.required, 2),
        "capacity_gib": round(memory.capacity, 2), "headroom_gib": round(memory.capacity - memory.required, 2),
        **_times(option),
        "usd": cost.usd if cost else None, "usd_low": cost.low if cost else None,
        "usd_high": cost.p90 if cost else None,
    }  # fmt: skip


def _times(option: MachineOption) -> dict[str, float | None]:
    speed = round(option.speed.tokens_per_second)
    times = {"hours": option.hours, "low": option.low, "high": option.high, "tokens_per_second": speed}
    return {name: value if option.fits else None for name, value in times.items()}


def _as_json(option: MachineOption) -> dict[str, Any]:
    job, memory, cost = option.job, option.memory, option.cost
    rounded = {phase: {name: round(gib, 4) for name, gib in terms.items()} for phase, terms in memory.phases.items()}
    return {
        "version": 1, "model": job.model, "method": job.method,
        "gpu": job.gpu.key, "gpus": 0 if job.gpu.is_cpu else job.gpus, "fits": option.fits,
        "trainable_parameters": job.trainable, "total_parameters": job.shape.parameters,
        "settings": {name: value for name, value in vars(job).items() if name not in ("model", "shape", "gpu", "gpus")},
        "memory": {
            "peak_gib": round(memory.peak, 3), "capacity_gib": round(memory.capacity, 2),
            "phase": memory.phase, "terms": rounded[memory.phase], "phases": rounded,
            "allocated_gib": round(memory.peak, 3), "reserved_gib": round(memory.reserved, 3),
            "torch_reserved_gib": round(memory.reserved - memory.context, 3),
            "required_gib": round(memory.required, 3), "headroom_gib": round(memory.capacity - memory.required, 3),
        },
        "certainty": option.certainty.model_dump(),
        "time": {
            **_times(option), "tflop_per_token": option.speed.tflop_per_token,
            "share_of_peak": round(option.speed.share, 3) if option.fits else None,
            "bound": option.speed.bound if option.fits else None, "breakdown": option.parts if option.fits else {},
        },
        "cost": cost.to_json() if cost else {**dict.fromkeys(("usd", "low", "high", "p50", "p90")), "breakdown": {}},
        "assumptions": [], "alternatives": [],
    }  # fmt: skip


def _assumptions(option: MachineOption, stated: Mapping[str, Any]) -> list[str]:
    job = option.job
    sentences = []
    for name in ("method", "grad_accum", "attention", "loss_kernel", "dtype", "optimizer", "quant"):
        if name not in stated and (name != "quant" or job.footprint.quant != "none"):
            sentences.append(f"{name.replace('_', ' ')} {getattr(job, name)} (--{name.replace('_', '-')})")
    if "micro_batch" not in stated:
        most = f"{LOOP_TOKENS:,} tokens and {LOOP_ROWS} rows at most, as the loop takes them"
        sentences.append(f"micro-batches of {most}: {job.micro_batch} of the longest rows (--micro-batch)")
    if not job.grad_ckpt:
        sentences.append("no gradient checkpointing (--grad-ckpt)")
    elif "grad_ckpt" not in stated:
        sentences.append("layers are computed again in the backward pass (--no-grad-ckpt)")
    if job.adapted:
        targets = ", ".join(target.removesuffix("_proj") for target in job.targets)
        sentences.append(f"rank {job.rank} on {targets} (--rank, --targets)")
    if job.virtual_tokens:
        sentences.append(f"{job.virtual_tokens} virtual tokens (--prefix-tokens)")
    if not option.fits:
        return [*sentences, "no time and no cost: it does not fit"]
    speed = f"{option.speed.share:.0%} of the {job.gpu.name}'s peak is reached: {job.gpu.share_of}"
    if job.gpu.is_cpu:
        speed = f"speed of {job.gpu.name}: {job.gpu.share_of}"
    spread = f"time and dollars: 80 % of published runs lie within a factor of {SPREAD:g}"
    sentences += [option.corrected_by or speed, f"{spread}; one run, its machine paid while it runs"]
    return sentences + (option.cost.assumptions if option.cost else ["no price is known for this machine"])
