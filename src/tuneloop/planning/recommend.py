"""A plan's last word: which machine to take, for how long, for how much; or what to change when the job does not fit:
settings, more GPUs, another machine or model."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.units import hours_words, usd_words
from tuneloop.models.methods import method_named, methods
from tuneloop.planning.catalogue.gpus import COUNTS, Gpu, all_gpus, find_gpu
from tuneloop.planning.catalogue.shape import bundled_models
from tuneloop.planning.job import TrainingSetup, make_job
from tuneloop.planning.memory import memory_of

# What makes a job smaller, the least harmful first: words for the command line, why, and the settings.
REMEDIES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("--sharding fsdp", "weights, gradients and states are divided among the GPUs", {"sharding": "fsdp"}),
    ("--grad-ckpt", "layers are recomputed: their activations need not wait", {"grad_ckpt": True}),
    ("--loss-kernel fused", "no logits are kept", {"loss_kernel": "fused"}),
    ("--micro-batch 1", "fewer rows at once", {"micro_batch": 1}),
    ("--optimizer adamw-8bit", "states of 2 bytes a parameter", {"optimizer": "adamw-8bit"}),
    ("--optimizer-in-backward", "no gradient outlives its update", {"optimizer_in_backward": True}),
    ("--seq-len 512", "shorter rows", {"seq_len": 512}),
)


def _ways() -> list[tuple[str, str, dict[str, Any]]]:
    ways: list[tuple[str, str, dict[str, Any]]] = [("", "", {})]
    for method in methods():
        if method.footprint.saves:
            quant = {"quant": method.footprint.quant} if method.footprint.quant != "none" else {}
            ways.append((f"--method {method.name}", method.footprint.saves, {"method": method.name, **quant}))
    return ways


def would_fit(job: TrainingSetup) -> str:
    """The fewest settings, the least harmful first, that are enough without another method; or nothing."""
    remedy = _fewest(job)
    return remedy["change"] if remedy else ""


def changes(job: TrainingSetup) -> list[dict[str, Any]]:
    """Changes that make the job fit: for each method the fewest settings, then more GPUs; else a machine or a model."""
    ways = [change for way in _ways() if (change := _fewest(job, *way))]
    counts = [] if job.gpu.is_cpu else [count for count in COUNTS if count > job.gpus]
    if more := _change_of_machine(job, job.gpu, counts, "", "weights and states are divided among the GPUs"):
        ways.append(more)
    if ways:
        return ways
    reason = "the smallest machine that has the memory"
    for count in COUNTS:
        for gpu in sorted(all_gpus().values(), key=lambda gpu: gpu.gib):
            if change := _change_of_machine(job, gpu, (count,), f"--gpu {gpu.key} ", reason):
                return [change]
    for name, shape in sorted(bundled_models().items(), key=lambda item: -item[1].parameters):
        too_short = shape.context and job.seq_len > shape.context
        if shape.experts or too_short or shape.parameters >= job.shape.parameters:
            continue
        smaller = replace(job, model=name, shape=shape)
        if change := next(filter(None, [_fewest(smaller, *way) for way in _ways()]), None):
            flags = f"--model {name} {change['change']}".strip()
            return [{**change, "change": flags, "why": "the largest known model that fits"}]
    return []


def _fewest(
    job: TrainingSetup, flags: str = "", reason: str = "", way: Mapping[str, Any] | None = None
) -> dict[str, Any] | None:
    """The fewest remedies, the least harmful ones, that make the job fit by one method; None where they don't."""
    start = _with(job, **way) if way else job
    if start is None:
        return None
    needed = [remedy for remedy in REMEDIES if _helps(start, remedy[2])]

    def with_all(remedies: Sequence[tuple[str, str, dict[str, Any]]]) -> TrainingSetup | None:
        merged = {name: value for _, _, settings in remedies for name, value in settings.items()}
        return (_with(start, **merged) if merged else start) if start else None

    whole = with_all(needed)
    if whole is None or not memory_of(whole).fits:
        return None
    for remedy in reversed(needed):
        fewer = [other for other in needed if other is not remedy]
        less = with_all(fewer)
        if less is not None and memory_of(less).fits:
            needed, whole = fewer, less
    change = " ".join(filter(None, (flags, *(remedy[0] for remedy in needed))))
    reason = "; ".join(filter(None, (reason, *(remedy[1] for remedy in needed))))
    return {"change": change, "why": reason, "required_gib": round(memory_of(whole).required, 2)}


def _helps(job: TrainingSetup, settings: Mapping[str, Any]) -> bool:
    if "seq_len" in settings and job.seq_len <= settings["seq_len"]:
        return False
    if "sharding" in settings and (job.gpus == 1 or job.sharding in ("fsdp", "zero3")):
        return False
    if ("optimizer" in settings or "optimizer_in_backward" in settings) and not job.full:
        return False
    return _with(job, **settings) is not None


def _with(job: TrainingSetup, **settings: Any) -> TrainingSetup | None:
    if all(getattr(job, name) == value for name, value in settings.items()):
        return None
    if "method" in settings and not method_named(settings["method"]).footprint.saves_over(job.footprint):
        return None
    with contextlib.suppress(UserError):
        return make_job(**{**vars(job), **settings})
    return None


def _change_of_machine(
    job: TrainingSetup, gpu: Gpu, counts: Sequence[int], flags: str, reason: str
) -> dict[str, Any] | None:
    for gpus in counts:
        for sharding in ("none",) if gpus == 1 else ("ddp", "fsdp"):
            other = _with(job, gpu=gpu, gpus=gpus, sharding=sharding)
            if other and memory_of(other).fits:
                change = f"{flags}--gpus {gpus}" + (f" --sharding {sharding}" if gpus > 1 else "")
                return {"change": change, "why": reason, "required_gib": round(memory_of(other).required, 2)}
    return None


LONG_HOURS = 1.0  # from here on a plan for this machine mentions rented ones


def recommendation(plan: Mapping[str, Any]) -> str:
    """One recommendation for a plan of `plan_machines`, as in `Rent an L40S 48 GB for 9 minutes: $0.12.`"""
    table = plan["table"]
    if not plan["fits"]:
        change = plan["alternatives"][0]["change"] if plan["alternatives"] else ""
        if fitting := next((r for r in table if r["fits"]), None):
            usd = "" if fitting["usd"] is None else f": {usd_words(fitting['usd'])}"
            machine = _machine({**plan, "gpus": max(plan["gpus"], 1)})
            return f"It does not fit on {machine}. Take {_machine(fitting)} for {hours_words(fitting['hours'])}{usd}."
        return f"Nothing fits as it stands. Change: {change}." if change else "Nothing fits. Take a smaller model."
    row = next(r for r in table if (r["gpu"], r["gpus"]) == (plan["gpu"], max(plan["gpus"], 1)))
    machine, usd = _machine(row), plan["cost"]["usd"]
    if plan["gpu"] == "cpu":
        return f"This machine's processor does it in {hours_words(row['hours'])}."
    if usd is None:
        return f"Take {machine} for {hours_words(row['hours'])}; what it costs is not known (--usd-per-gpu-hour)."
    people = sum(plan["cost"]["breakdown"][name] for name in ("data preparation", "engineering"))
    price = usd_words(usd) + (f", {usd_words(people)} of it people's time" if people else "")
    verb = "Use" if str(row["gpu"]).startswith("own-") else "Rent"
    advice = f"{verb} {machine} for {hours_words(row['hours'])}: {price}."
    unsure = row["tight"] or row["may_not_fit"]
    roomy = next(
        (r for r in table if r["fits"] and not (r["tight"] or r["may_not_fit"]) and r["usd"] is not None), None
    )
    if unsure:
        advice += " It may not fit" if row["may_not_fit"] else " Its memory is tight"
        other = f"{_machine(roomy)} for {hours_words(roomy['hours'])}, {usd_words(roomy['usd'])}" if roomy else ""
        advice += f"; with room to spare: {other}." if other else "."
    return advice


def recommendation_here(plan: Mapping[str, Any]) -> str:
    """Likewise of a plan for this machine, as `estimate` makes it."""
    if not plan["fits"]:
        change = plan["alternatives"][0]["change"] if plan["alternatives"] else "a smaller model"
        return f"It does not fit on this machine. Change: {change}."
    took = f"{hours_words(plan['time']['hours'])}, {usd_words(plan['cost']['usd'])}"
    advice = f"Train on this machine: {took}."
    if plan.get("disturbed"):
        advice = f"Measured on a busy machine ({took} as it is now): plan again when it is quiet, before you decide."
    if plan["time"]["hours"] >= LONG_HOURS:
        advice += " Rented GPUs are faster: `tuneloop plan DATA --gpu l40s` tells how much, and at what price."
    return advice


def _machine(row: Mapping[str, Any]) -> str:
    """`an L40S 48 GB`, `4 x H100 SXM 80 GB`."""
    try:
        name = find_gpu(row["gpu"]).name
    except UserError:
        return f"{row['gpus']} cards of your own" if row["gpus"] > 1 else "a card of your own"
    if row["gpus"] > 1:
        return f"{row['gpus']} x {name}"
    return f"{'an' if name[0] in 'AEFHILMNORSX' else 'a'} {name}"
