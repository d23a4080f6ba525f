"""The plan stage: what training will take on this machine."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.core import device, machine
from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash
from tuneloop.core.machine import processes
from tuneloop.core.ui import busy, say
from tuneloop.core.units import counted, usd_words, verb
from tuneloop.models.nn import ModelShape, nearest_matrices
from tuneloop.pipeline.advise import counted_data, stand_in
from tuneloop.pipeline.baselines import expected_evaluation, mean_reference
from tuneloop.pipeline.context import RunContext, training_began
from tuneloop.pipeline.distributed import RunPart, distributed_run, held_out
from tuneloop.pipeline.prepare import prepare_stage
from tuneloop.planning import (
    MachineAtHand,
    RunWork,
    corrected,
    estimate,
    plan_machines,
    recommendation_here,
    sizes_on_gpu,
    usual_speed,
)
from tuneloop.recipe import Recipe, plan_settings, recipe_of, refuse_missing_source
from tuneloop.records.evaluation import BaselinesManifest
from tuneloop.records.plan import PLAN, MeasuredMachine, Plan
from tuneloop.records.record import done_record, read_record, write_record
from tuneloop.records.rows import Dataset
from tuneloop.training import BUSY, RunPlan, SplitRows, TrainRow, is_too_little, plan_steps, speed_words

if TYPE_CHECKING:
    from tuneloop.training import TrainConfig

TRIAL = 10.0  # seconds: a shorter limit on time is to see that a run runs, and is not refused
OVER_LIMIT = 1.1  # what a run with a time limit may take longer: a step and a validation that have begun are ended


def plan_stage(job: RunContext, dataset: Dataset, choose: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """What training will take on this machine: memory by formula, time by timing some of the batches.

    The time that measuring takes is of training's, where that is limited. `choose` chooses the time of training, when
    all before it is done, and says whether measuring is paid for.
    """
    before = done_record(Plan, job.folder, _plan_key(job, dataset))
    if before and training_began(job.folder):
        say(plan_line(before.to_json(), already=True))
        return before.to_json()
    measured, resident, began = sizes_of(job, dataset), _resident(job), time.monotonic()
    limit = job.recipe.train.max_minutes or job.recipe.max_minutes
    timed = sized(job.recipe.train, measured).model_copy(update={"max_minutes": limit})
    speed = distributed_run(job, RunPart("measure", dataset.path, timed, measured))
    measuring = time.monotonic() - began
    resident = _resident_as_trained(job, resident)
    spent = 0.0 if choose() or job.recipe.train.max_minutes is None else measuring
    with busy("planning the steps"):
        measured = replace(measured, tokens_per_second=speed, seconds_spent=spent)
        plan = {**make_plan(job, dataset, measured, resident), "measuring_seconds": round(spent, 2)}
    busy_as = _busy_words(plan)
    plan = {**plan, "disturbed": bool(busy_as), "key": _plan_key(job, dataset)}
    write_record(job.folder / PLAN, Plan.model_validate(plan))
    say(plan_line(plan))
    if busy_as:
        say(f"machine   {busy_as}")
    if not training_began(job.folder):
        least_seconds(job, dataset, measured, job.recipe.train)
    if not plan["fits"]:
        peak, capacity = plan["memory"]["peak_gib"], plan["memory"]["capacity_gib"]
        message = f"Training needs about {peak:.1f} GiB, and this machine has {capacity:.1f}"
        step = f"set {plan['alternatives'][0]['change']}, or use a machine with more memory"
        raise UserError(message, where=PLAN, next_step=step)
    return plan


def _busy_words(plan: Mapping[str, Any]) -> str:
    """That the machine was busy when its speed was measured; empty where it was not, as far as is known."""
    now, usual = plan["time"]["tokens_per_second"], usual_speed(plan)
    if usual is not None and now <= BUSY * usual:
        slow = f"this machine runs at {speed_words(now / usual)} the speed of earlier runs here"
        return f"{slow} ({now:,.0f} of {usual:,.0f} tokens/s); is something else running on it?"
    if usual is None and machine.is_busy() and device.backend().is_cpu:
        return "more programs are at work on this machine than it has cores: quiet, it is faster than measured now"
    return ""


def least_seconds(job: RunContext, dataset: Dataset, measured: MeasuredMachine, config: TrainConfig) -> float:
    """Seconds of training that steps with a meaning take at the measured speed, with their validations; 0 where the
    time is not limited, or only a trial of the command.

    Raises:
        UserError: the time of `config` allows only steps that can come to nothing (`is_too_little`).
    """
    if job.anyway or config.max_minutes is None or 60 * config.max_minutes < TRIAL:
        return 0.0
    rows, run = run_plan(job, dataset, measured, config)
    _, whole = run_plan(job, dataset, replace(measured, tokens_per_second=0.0), config)
    seconds = whole.least_seconds(rows, measured)
    seen, steps = run.seen, len(run.steps)
    if is_too_little(steps, len(whole.steps), seen / max(len(rows), 1)):
        some = f"{counted(steps, 'step')}, which {verb(steps, 'sees', 'see')} {seen} of {counted(len(rows), 'row')}"
        message = f"Training does not start: its time allows {some}, too little for a result"
        if machine.is_busy():
            message += "; the machine is busy"
        key, minutes = "train.max_minutes", seconds / 60
        if job.recipe.max_minutes and not job.recipe.train.max_minutes:
            key, minutes = "max_minutes", 2 * minutes
        elif job.recipe.max_minutes:
            key, minutes = "max_minutes", job.recipe.max_minutes + minutes - config.max_minutes
        step = f"set {key}={math.ceil(max(minutes, 0.1) * 10) / 10:g} or more, or add --anyway"
        raise UserError(message, where=f"{config.max_minutes:.3g} minutes of training", next_step=step)
    return seconds


def _plan_key(job: RunContext, dataset: Dataset) -> str:
    recipe = job.recipe
    return content_hash([dataset.manifest.hash, job.fingerprint, recipe.train, recipe.plan, recipe.seed, 3])


def _resident(job: RunContext) -> float:
    """GiB in use with the model loaded."""
    assert job.training_model.net is not None
    device.release_memory()
    return device.memory_now()


def _resident_as_trained(job: RunContext, before: float) -> float:
    """The same once the speed is measured: on a GPU the model is then as trained (four bits, or a part).

    A processor's stays as `before`: the planner counts what packing adds.
    """
    return before if device.backend().is_cpu else _resident(job)


def sizes_of(job: RunContext, dataset: Dataset) -> MeasuredMachine:
    """How steps are divided: on a GPU by its memory, unless the recipe says; on a processor as the loop does it."""
    train = job.recipe.train
    if device.backend().is_cpu or train.micro_batch_tokens:
        return MeasuredMachine()
    rows = job.rendered(dataset.train)

    from tuneloop.training import work_of

    def work_at(tokens: int) -> RunWork:
        epoch = train.model_copy(update={"micro_batch_tokens": tokens, "epochs": min(train.epochs, 1.0)})
        return work_of(
            job.training_model, rows, plan_steps(rows, epoch, job.recipe.seed, job.mixed(dataset.train)), epoch
        )

    if not rows:
        return MeasuredMachine()
    here, recompute = _machine(job, 0.0, 0.0).card, train.gradient_checkpointing == "auto"
    return sizes_on_gpu(_shape(job), work_at, here, device.available(), may_recompute=recompute, **_settings(job))


def sized(config: TrainConfig, measured: MeasuredMachine) -> TrainConfig:
    """The settings with what was chosen by a GPU's memory."""
    changes: dict[str, Any] = {"gradient_checkpointing": "always"} if measured.recompute else {}
    if measured.micro_batch_tokens:
        changes["micro_batch_tokens"] = measured.micro_batch_tokens
    return config.model_copy(update=changes)


def run_plan(
    job: RunContext, dataset: Dataset, measured: MeasuredMachine, config: TrainConfig | None = None
) -> tuple[list[TrainRow], RunPlan]:
    """The training rows, and the steps and validations that a run does on a machine; `config`: not the recipe's."""
    config, seed = sized(config or job.recipe.train, measured), job.recipe.seed
    rows = job.rendered(dataset.train)
    steps = plan_steps(rows, config, seed, job.mixed(dataset.train)) if rows else []
    split = SplitRows(rows, job.rendered(dataset.val), held_out(job, dataset))
    return rows, RunPlan.of(steps, split, config, seed, measured)


def make_plan(job: RunContext, dataset: Dataset, measured: MeasuredMachine, resident: float) -> dict[str, Any]:
    """The plan of a run whose data and speed are known; `resident`: GiB in use with the model loaded."""
    from tuneloop.training import work_of

    train = sized(job.recipe.train, measured)
    rows, run = run_plan(job, dataset, measured)
    steps = run.steps
    work = work_of(job.training_model, rows, steps, train, run.forward_tokens)
    recompute = train.gradient_checkpointing == "always"
    settings = {**_settings(job), "grad_ckpt": recompute, "kept_layers": measured.kept_layers}
    plan = estimate(_shape(job), work, _machine(job, resident, measured.tokens_per_second), **settings)
    plan, seen, apart = _within_limit(corrected(plan), train.max_minutes), run.seen, None
    seen_note = run.seen_words(len(rows))
    folder = job.folder / "baselines"
    if (folder / BaselinesManifest.file).is_file():
        baselines = read_record(BaselinesManifest, folder)
        evaluation = expected_evaluation(baselines, job.recipe.evaluate, mean_reference(job, dataset))
        apart = {"baselines_minutes": baselines.seconds / 60, "evaluation_minutes": evaluation / 60}
    return {
        **plan,
        "rows": {"train": len(rows), "seen": seen, "words": seen_note},
        "validation": {"times": run.validations, "rows": min(run.val_rows, len(job.rendered(dataset.val)))},
        "max_minutes": train.max_minutes,
        "apart": apart,
        **measured.division(),
    }


def _machine(job: RunContext, resident: float, speed: float) -> MachineAtHand:
    """Where the run is computed; see `MachineAtHand`."""
    gpus = device.names()
    return MachineAtHand(
        name=gpus[0] if gpus else f"cpu: {machine.processor()}, {machine.cores()} cores",
        capacity_gib=device.capacity(),
        resident_gib=resident,
        usd_per_hour=job.recipe.plan.usd_per_hour,
        tokens_per_second=speed,
        gpus=processes() if gpus else 1,
    )


def _shape(job: RunContext) -> ModelShape:
    model = job.training_model
    return ModelShape.from_config(model.config, str(model.folder / "config.json"))


def _settings(job: RunContext) -> dict[str, Any]:
    """The run's settings as the planner calls them."""
    from tuneloop.models.adapters import target_names

    model, train = job.training_model, job.recipe.train
    return {
        "bytes_a_weight": model.head.element_size(), "model": job.recipe.model, "method": train.method,
        "rank": train.rank,
        "targets": list(nearest_matrices(target_names(model.net, train.targets))),
        "prefix_tokens": train.prefix_tokens,
        "optimizer": train.optimizer, "optimizer_in_backward": train.optimizer_in_backward,
        "grad_ckpt": train.gradient_checkpointing == "always",
        "dropout": train.dropout > 0, "dora": train.dora,
    }  # fmt: skip


def _within_limit(plan: dict[str, Any], minutes: float | None) -> dict[str, Any]:
    """The plan with times and costs that a limit cuts off: a run that turns out slower does fewer steps."""
    if minutes is None:
        return plan
    price = plan["cost"]["usd_per_hour"]
    limits = {"hours": minutes / 60, "low": minutes / 60, "high": minutes / 60 * OVER_LIMIT}
    time_ = {key: min(plan["time"][key], limit) for key, limit in limits.items()}
    usd = {"usd": time_["hours"] * price, "low": time_["low"] * price, "high": time_["high"] * price}
    cost = {**plan["cost"], **usd, "breakdown": {"training": usd["usd"]}}
    return {**plan, "time": {**plan["time"], **time_}, "cost": cost}


def plan_line(plan: Mapping[str, Any], *, already: bool = False) -> str:
    """The plan in two or three lines."""
    time_, cost, checks = plan["time"], plan["cost"], plan["validation"]
    trained, total = plan["trainable_parameters"], plan["total_parameters"]
    low, high = f"{time_['low'] * 60:.1f}", f"{time_['high'] * 60:.1f}"
    checked = f", and {counted(checks['times'], 'validation')} of {counted(checks['rows'], 'row')}"
    validations, steps = checked if checks["rows"] else "", plan["steps"]
    line = (
        f"plan      {trained / 1e6:.2f}M of {total / 1e6:.1f}M parameters trained ({trained / total:.1%}); "
        f"peak memory about {plan['memory']['peak_gib']:.1f} GiB{' (planned before)' if already else ''}\n"
        f"          {counted(steps, 'step')}, which {verb(steps, 'sees', 'see')} {plan['rows']['words']}{validations}: "
        f"{time_['hours'] * 60:.1f} minutes ({low} to {high}); "
        f"{usd_words(cost['usd'])} at {usd_words(cost['usd_per_hour'])}/hour"
    )
    if apart := plan.get("apart"):
        line += (
            f"\n          apart from that: the baselines took {apart['baselines_minutes']:.1f} minutes, "
            f"the evaluation will take about {apart['evaluation_minutes']:.1f}"
        )
    return line


def plan_words(plan: Mapping[str, Any]) -> str:
    """The plan in a few words."""
    minutes, memory = plan["time"]["hours"] * 60, plan["memory"]["peak_gib"]
    return (
        f"{counted(plan['steps'], 'step')}, {minutes:.1f} minutes, {memory:.1f} GiB, {usd_words(plan['cost']['usd'])}"
    )


def plan_alone(recipe: Recipe, out: str) -> dict[str, Any]:
    """The plan stage alone; nothing is trained."""
    from tuneloop.training import measure_speed

    with tempfile.TemporaryDirectory() as scratch:
        job = RunContext(recipe, Path(scratch))
        dataset = prepare_stage(job)
        measured, resident = sizes_of(job, dataset), _resident(job)
        rows, train, layers = job.rendered(dataset.train), sized(recipe.train, measured), measured.kept_layers
        speed = measure_speed(job.model, rows, train, recipe.seed, kept_layers=layers)
        measured = replace(measured, tokens_per_second=speed)
        plan = make_plan(job, dataset, measured, _resident_as_trained(job, resident))
    if busy_as := _busy_words(plan):
        plan |= {"disturbed": True, "assumptions": [f"measured as it is now: {busy_as}", *plan["assumptions"]]}
    if out:
        write_record(Path(out) / PLAN, Plan.model_validate(plan))
    return plan


def plan_data(source: str, stated: Mapping[str, Any], settings: Sequence[str] = ()) -> dict[str, Any]:
    """The plan of a run on data: for this machine, measured, where no option is named; else by formula.

    Args:
        source: a file of examples, a prepared data set, a recipe or a run; "" where `stated` names a `dataset`.
        stated: fields of `PlanOptions` that the user chose.
        settings: a recipe's `key=value`.

    Raises:
        UserError: no such source, two of them, or settings that can't be.
    """
    stated = dict(stated)
    model = stated.pop("model", "")
    if source and "dataset" in stated:
        message = f"{source} and --dataset both say what is trained on"
        raise UserError(message, where="--dataset", next_step="give one of them")
    data = source or stated.pop("dataset")
    refuse_missing_source(data)
    if model and (Path(data) / "dataset.json").is_file() and not settings and (stated or stand_in(model)):
        return plan_machines({"model": model, **stated, "dataset": data})
    recipe = recipe_of(data, list(settings), model=model)
    other = stand_in(recipe.model)
    if source and not stated and not other:
        plan = plan_alone(recipe, "")
        return {**plan, "recommendation": recommendation_here(plan)}
    with counted_data(recipe.model_copy(update={"model": other or recipe.model})) as counted:
        plan = plan_machines({"model": recipe.model, **plan_settings(recipe), **stated, "dataset": counted.path})
    if counted.sample:
        plan["assumptions"].insert(0, counted.sample)
    if other:
        reason = f"{recipe.model} is not on this machine"
        plan["assumptions"].insert(0, f"tokens are counted as {other} reads them, and time is by formula: {reason}")
    return plan
