"""All machines for a job: what fits, how fast, for how much, with the usual settings of `plan` and `advise`. Needs no torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.models.methods import USUAL, method_named
from tuneloop.models.shape import ModelShape, target_modules
from tuneloop.plan import cost as costs
from tuneloop.plan.cost import ONE_RUN, Cost, Efforts, Interruptions
from tuneloop.plan.gpus import CPU, Gpu, all_gpus, find_gpu, own_card
from tuneloop.plan.job import TrainingSetup, make_job
from tuneloop.plan.ledger import Entry, learned_speed, read_ledger
from tuneloop.plan.memory import Memory, memory_of
from tuneloop.plan.prices import CPU_USD_PER_HOUR, Price, PriceTable, Tier, load_prices
from tuneloop.plan.recommend import COUNTS, changes, recommendation, would_fit
from tuneloop.plan.shape import find_model
from tuneloop.plan.speed import SPREAD, Speed, overhead_hours
from tuneloop.records.dataset import DatasetManifest, read_manifest

# `tokens_at_once` and `rows_per_step` of the loop (training/batches.py, training/config.py, which import torch): a micro-batch has no more tokens than these, and no
# more rows than a step.
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

    Args:
        method: its name, or its file.
        longest: tokens of the longest row; None: `NO_LENGTH`.
        cpu: whether the processor trains.
    """
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
class MachineOption:
    """One machine for the job.

    Args:
        hours, low, high: of the whole run, in the middle and the range that 80 % of runs keep to.
    """

    job: TrainingSetup
    memory: Memory
    speed: Speed
    hours: float
    low: float
    high: float
    parts: dict[str, float]  # hours by part
    cost: Cost | None  # None where no price is known
    price: Price | None
    corrected_by: str = ""  # runs on this machine that the speed is corrected by, in words, or nothing

    @property
    def fits(self) -> bool:
        """Whether the memory suffices."""
        return self.memory.fits

    @property
    def bare_usd(self) -> float:
        """Dollars of one run, the machine alone; 0 where no price is known."""
        return self.hours * self.price.machines_usd(self.job.gpus) if self.price else 0.0


@dataclass(frozen=True)
class PlanRequest:
    """What is planned, on which machines, at which prices."""

    model: str
    shape: ModelShape
    # by the names of `TrainingSetup`, `gpu`, `gpus`, `sharding` where given; of several `micro_batch` the first that fits
    settings: Mapping[str, Any]
    lengths: Lengths
    epochs: float
    prices: PriceTable
    tier: Tier = "on-demand"
    efforts: Efforts = ONE_RUN  # what it takes apart from the run; `storage_gb` of 0 stands for what the run leaves
    per_hour: float | None = None  # expected interruptions an hour of one machine; None: what the tier lets expect
    checkpoint_minutes: float | None = None  # between checkpoints; None: the best interval
    ledger: Sequence[Entry] = field(default_factory=read_ledger)  # earlier runs


def machines(ask: PlanRequest) -> tuple[list[MachineOption], list[str]]:
    """Every machine in question with the simplest way to share the work that fits, and what was left out.

    What fits comes first, then what ends within a week, then the cheapest; what does not fit by how little it lacks.

    Raises:
        UserError: unknown names, numbers that can't be, or settings that exclude each other.
    """
    left_out: list[str] = []
    simplest = [next((job for job in jobs if memory_of(job).fits), jobs[-1]) for jobs in _jobs(ask, left_out)]

    def order(option: MachineOption) -> tuple[bool, bool, float, float]:
        if not option.fits:
            return True, False, option.memory.required / option.memory.capacity, 0.0
        usd = option.cost.usd if option.cost else option.bare_usd if option.price else math.inf
        return False, option.hours > A_WEEK, usd, option.hours

    return sorted((_option(ask, job) for job in simplest), key=order), left_out


def plan_model(stated: Mapping[str, Any], settings: Sequence[str] = ()) -> dict[str, Any]:
    """The plan of a named model on every machine in question; see `plan_machines`.

    Args:
        settings: a recipe's `key=value`, none of which belongs here.

    Raises:
        UserError: no model, or settings.
    """
    if settings:
        step = "write it as an option (tuneloop plan --help), or name a recipe or data before it"
        what = f"{settings[0]!r} is a recipe's setting, and a plan without data takes options"
        raise UserError(what, where="plan", next_step=step)
    if not stated.get("model"):
        step = "tuneloop plan --model llama-3.1-8b --method lora, or tuneloop plan DATA"
        raise UserError("Plan what? Neither a model nor data are named", where="plan", next_step=step)
    return plan_machines(stated)


def plan_machines(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The plan of a job on every machine in question, as `plan.json` holds it, with the `table` of all.

    A GPU named without a count is one GPU: what more of them would do is in the table.

    Args:
        settings: what the command line was given, by the names of `TrainingSetup`, and `model`, `gpu`, `gpus`,
            `tokens`, `dataset`, `epochs`, `tier`, `prices`, `usd_per_gpu_hour`, `interruptions_per_hour`,
            `checkpoint_minutes`, those of `Efforts`, `providers` whose bundled prices count (default: all), and
            `gpu_memory`, `gpu_tflops`, `gpu_bandwidth`, `gpu_link`, `gpu_price` of a card of one's own; None means not
            given.

    Raises:
        UserError: unknown names, numbers that can't be, or settings that exclude each other.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    name, shape, assumed = find_model(given.pop("model"))
    tier, price_file, usd = given.pop("tier", "on-demand"), given.pop("prices", None), _own_card(given, assumed)
    lengths, epochs, sentences = _lengths(given)
    assumed += sentences
    stated = dict(given)
    if lengths.longest:
        cpu = bool(given.get("gpu")) and find_gpu(given["gpu"]).is_cpu
        given = {**usual_settings(given.get("method", USUAL.name), shape, lengths.longest, cpu=cpu), **given}
    if "seq_len" not in given:
        given["seq_len"] = min(2048, shape.context or 2048)
        if lengths.longest and not given.get("packing"):
            given["seq_len"] = min(lengths.longest, shape.context or 2048)
        else:
            assumed.append(f"rows of {given['seq_len']:,} tokens (--seq-len)")
    if "micro_batch" not in given:
        given["micro_batch"] = loop_batches(given["seq_len"])
    if given.get("packing") is False or (lengths.mean and not given.get("packing")):
        given["varied"] = True
    if "targets" in given:
        given["targets"] = target_modules(given["targets"])
    per_hour, minutes = given.pop("interruptions_per_hour", None), given.pop("checkpoint_minutes", None)
    for flag, value, least in (("--interruptions-per-hour", per_hour, 0.0), ("--checkpoint-minutes", minutes, 0.01)):
        if value is not None and not least <= value <= 10_000:
            raise UserError(f"{flag} is {value}", where=flag, next_step=f"give a number from {least:g} to 10,000")
    providers, table = given.pop("providers", None), load_prices(price_file)
    prices = priced(table.of(providers) if providers else table, given.get("gpu"), usd, tier)
    efforts = replace(ONE_RUN, **{f.name: given.pop(f.name) for f in fields(Efforts) if f.name in given})
    ask = PlanRequest(name, shape, given, lengths, epochs, prices, tier, efforts, per_hour, minutes)
    ordered, left_out = machines(ask)
    if not ordered:
        raise UserError("No machine is left to plan for", where="plan", next_step="; ".join(left_out) or "name a GPU")
    best = ordered[0]
    if "gpu" in given and "gpus" not in given and any(option.job.gpus == 1 for option in ordered):
        best = next(option for option in ordered if option.job.gpus == 1)
        if not best.job.gpu.is_cpu:
            assumed.append("1 GPU (--gpus)")
    plan = _as_json(best)
    plan["assumptions"] = [*assumed, *_assumptions(best, stated), *left_out]
    if not best.fits:
        plan["alternatives"] = changes(best.job)
    plan["table"] = [_row(option) for option in ordered]
    plan["recommendation"] = recommendation(plan)
    return plan


def _own_card(given: dict[str, Any], assumed: list[str]) -> Any:
    """Put a card of the user's own in the place of the GPU's name; what an hour of the GPU costs, where that is said."""
    numbers = {name: given.pop(f"gpu_{name}", None) for name in ("memory", "tflops", "bandwidth", "link")}
    usd, price = given.pop("usd_per_gpu_hour", None), given.pop("gpu_price", None)
    if usd is not None and price is not None:
        what = "--gpu-price and --usd-per-gpu-hour say the same"
        raise UserError(what, where="--gpu-price", next_step="give one of them")
    if any(value is not None for value in numbers.values()):
        card = given["gpu"] = own_card(given.get("gpu"), **numbers)
        assumed.append(f"a card of {card.gib:g} GiB, {card.tflops:g} TFLOPS, {card.gb_s:g} GB/s, {card.link_gb_s:g} GB/s to its neighbour (--gpu-memory, "
                       "--gpu-tflops, --gpu-bandwidth, --gpu-link)")  # fmt: skip
    return price if usd is None else usd


def priced(prices: PriceTable, gpu: str | Gpu | None, usd_per_gpu_hour: float | None, tier: Tier) -> PriceTable:
    """The prices with the one given for a GPU on top; this machine's processor has one in any case.

    Raises:
        UserError: a price that can't be, or of no GPU.
    """
    here = prices.with_price("this machine, assumed", CPU, CPU_USD_PER_HOUR, tier)
    if usd_per_gpu_hour is None:
        return here
    if not gpu or not 0 <= usd_per_gpu_hour <= 10_000:
        what = f"${usd_per_gpu_hour:g} an hour is the price of no GPU"
        step = "give dollars an hour from 0 to 10,000, and name the GPU with --gpu"
        raise UserError(what, where="--usd-per-gpu-hour, --gpu-price", next_step=step)
    return here.with_price("given", find_gpu(gpu).key, usd_per_gpu_hour, tier)


def _lengths(given: dict[str, Any]) -> tuple[Lengths, float, list[str]]:
    tokens, dataset, epochs = given.pop("tokens", None), given.pop("dataset", None), given.pop("epochs", None)
    if tokens is not None and dataset is not None:
        raise UserError("--tokens and --dataset both say how much is trained on", where="tokens", next_step="give one")
    if tokens is not None and not 1 <= tokens <= 10**15:
        what = f"tokens is {tokens}; it is a number from 1 to 10^15"
        raise UserError(what, where="tokens", next_step="give the tokens of one pass over the data")
    if epochs is not None and not 0 < epochs <= 10_000:
        what = f"epochs is {epochs}; it is a number above 0, at most 10,000"
        raise UserError(what, where="epochs", next_step="give the passes over the data")
    passes = epochs or (DEFAULT_EPOCHS if dataset else 1.0)
    sentences = [] if epochs else [f"{passes:g} pass{'es' if passes > 1 else ''} over the data (--epochs)"]
    if dataset:
        path = Path(dataset) / "dataset.json" if Path(dataset).is_dir() else Path(dataset)
        if not path.is_file():
            what, step = (
                "No prepared data set there (no dataset.json)",
                "`tuneloop prepare` makes one; or give --tokens",
            )
            raise UserError(what, where=str(Path(dataset)), next_step=step)
        return lengths_of(read_manifest(path), str(path)), passes, sentences
    sentence = "rows are full: name your data for the padding of yours (tuneloop plan DATA)"
    if tokens is None:
        flags = "--tokens N, or name your data: tuneloop plan DATA"
        sentence = f"{DEFAULT_TOKENS:,} tokens to train on, in full rows ({flags})"
    return Lengths(tokens or DEFAULT_TOKENS), passes, [*sentences, sentence]


def lengths_of(manifest: DatasetManifest, where: str) -> Lengths:
    """What a data set's manifest says about the tokens of its training rows, general rows mixed in included.

    Raises:
        UserError: it says nothing about them.
    """
    tokens, val = manifest.splits.train.tokens, manifest.splits.val.tokens
    if tokens is None:
        what = "The data set's manifest has no token statistics"
        raise UserError(what, where=where, next_step="prepare it again, or give --tokens")
    total = tokens.total + (manifest.mix.general.tokens if manifest.mix else 0)  # rows mixed in are trained on too
    if total < 1:
        raise UserError("The data set has no training tokens", where=where, next_step="prepare it again")
    val_tokens = val.total if val else 0
    return Lengths(total, tokens.mean, tokens.p50, tokens.p90, longest=tokens.max, val_tokens=val_tokens)


def _jobs(ask: PlanRequest, left_out: list[str]) -> Iterator[list[TrainingSetup]]:
    """For each machine the ways to share the work and the sizes of a micro-batch, the simplest first."""
    given = dict(ask.settings)
    gpu, count, sharding = given.pop("gpu", None), given.pop("gpus", None), given.pop("sharding", None)
    rows = given.pop("micro_batch", None)
    batches = rows if isinstance(rows, tuple) else (rows,)
    cards = (card for card in all_gpus().values() if ask.prices.gpu(card.key, ask.tier) or ask.prices.gpu(card.key))
    for device in [find_gpu(gpu)] if gpu else cards:
        counts = (count,) if count is not None else (1,) if device.is_cpu else COUNTS
        for gpus in counts:
            if count is None and sharding and (sharding == "none") != (gpus == 1):
                continue
            ways = [sharding] if sharding else ["none"] if gpus == 1 else ["ddp", "fsdp"]
            usual = {**given, "model": ask.model, "shape": ask.shape, "gpu": device, "gpus": gpus}
            if not device.bf16 and "dtype" not in given:
                usual["dtype"] = "fp16"
            try:
                if not device.bf16 and usual["dtype"] in ("bf16", "mixed", "autocast"):
                    what = f"There is no bfloat16 on {device.name}"
                    raise UserError(what, where="dtype", next_step="use --dtype fp16")
                yield [
                    make_job(**{**usual, "sharding": way, "micro_batch": batch})
                    for way in ways
                    for batch in batches
                    if not (way == "ddp" and given.get("optimizer_in_backward"))
                ]
            except UserError as error:
                if gpu or "on " + device.name not in error.what:  # what no machine can do is the user's to fix
                    raise
                left_out.append(f"{device.name} left out: {error.what}")
                break


def _option(ask: PlanRequest, job: TrainingSetup) -> MachineOption:
    """The job on its machine; without a cost where it does not fit."""
    # with the micro-batch that most steps have: memory is for the longest rows, short ones are computed more at a time
    typical, lengths = job, ask.lengths
    if lengths.mean and not job.packing:
        rows = job.micro_batch
        if isinstance(ask.settings.get("micro_batch"), tuple):
            rows = max(rows, loop_rows(lengths.mean, full_on_cpu=job.full and job.gpu.is_cpu))
        length = min(round(lengths.expected_longest(rows)), job.seq_len)
        typical = replace(job, micro_batch=rows, seq_len=length)
    speed, corrected_by = learned_speed(typical, ask.ledger)
    rate = speed.tokens_per_second * lengths.efficiency(typical.micro_batch, job.packing)
    val = lengths.val_tokens or lengths.tokens // 10
    parts = {
        "train": lengths.tokens * ask.epochs / rate / 3600,
        **overhead_hours(job, evaluations=EVALUATIONS, evaluation_tokens=min(val, 200_000)),
    }
    price = ask.prices.gpu(job.gpu.key, ask.tier, job.gpus)
    usual = costs.interruptions(price.tier if price else ask.tier, job.gpus)
    how = Interruptions(
        usual.per_hour if ask.per_hour is None else ask.per_hour, ask.checkpoint_minutes, parts.pop("save") * 60,
        last_minutes=parts.pop("keep") * 60,
    )  # fmt: skip
    work = sum(parts.values())
    hours = costs.expected_hours(work, how)
    if not math.isfinite(hours):
        raise costs.never_ends(how)
    parts["checkpoints"] = costs.checkpoint_hours(work, how)
    parts["interruptions"] = hours - work - parts["checkpoints"]
    cost, memory = None, memory_of(job)
    if price and lengths.tokens and memory.fits:
        kept_gb = ask.efforts.storage_gb or round(job.trainable * (2 if job.full else 4) / 1e9, 2)
        efforts = replace(ask.efforts, storage_gb=kept_gb)
        cost = costs.cost_of(work, work / SPREAD, work * SPREAD, job.gpus, price, efforts=efforts, how=how,
                       usd_per_gb_month=ask.prices.storage.usd_per_gb_month)  # fmt: skip
    return MachineOption(job, memory, speed, hours, hours / SPREAD, hours * SPREAD, parts, cost, price, corrected_by)


def _row(option: MachineOption) -> dict[str, Any]:
    job, memory = option.job, option.memory
    cost = option.cost
    return {
        "gpu": job.gpu.key, "gpus": job.gpus, "sharding": job.sharding,
        "fits": option.fits, "fits_with": would_fit(job) if not option.fits else "",
        "tight": option.fits and memory.capacity - memory.required < MARGIN * memory.capacity,
        "peak_gib": round(memory.peak, 2), "required_gib": round(memory.required, 2),
        "capacity_gib": round(memory.capacity, 2), "headroom_gib": round(memory.capacity - memory.required, 2),
        **_times(option),
        "usd": cost.usd if cost else None, "usd_low": cost.low if cost else None, "usd_high": cost.p90 if cost else None,
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
        "time": {
            **_times(option), "tflop_per_token": option.speed.tflop_per_token,
            "share_of_peak": round(option.speed.share, 3) if option.fits else None,
            "bound": option.speed.bound if option.fits else None, "breakdown": option.parts if option.fits else {},
        },
        "cost": cost.to_json() if cost else {**dict.fromkeys(("usd", "low", "high", "p50", "p90")), "breakdown": {}},
        "assumptions": [], "alternatives": [],
    }  # fmt: skip


def _assumptions(option: MachineOption, given: Mapping[str, Any]) -> list[str]:
    job = option.job
    sentences = []
    for name in ("method", "micro_batch", "grad_accum", "attention", "loss_kernel", "dtype", "optimizer", "quant"):
        if name not in given and name != "micro_batch" and (name != "quant" or job.footprint.quant != "none"):
            sentences.append(f"{name.replace('_', ' ')} {getattr(job, name)} (--{name.replace('_', '-')})")
    if "micro_batch" not in given:
        sentences.append(f"micro-batches of {LOOP_TOKENS:,} tokens and {LOOP_ROWS} rows at most, as the loop takes them: {job.micro_batch} of the "
                     "longest rows (--micro-batch)")  # fmt: skip
    if not job.grad_ckpt:
        sentences.append("no gradient checkpointing (--grad-ckpt)")
    elif "grad_ckpt" not in given:
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
