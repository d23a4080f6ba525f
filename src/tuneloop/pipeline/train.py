"""The train stage, with the preflight before it."""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.core import device, machine
from tuneloop.core.errors import UserError
from tuneloop.core.files import lock_folder, read_json, read_jsonl, write_json, write_yaml
from tuneloop.core.ui import busy, say, stage
from tuneloop.core.units import counted
from tuneloop.core.written import off_words
from tuneloop.models import skeleton
from tuneloop.models.chat import refuse_wrong_template
from tuneloop.models.files import resolve
from tuneloop.models.methods import USUAL, method_named
from tuneloop.models.nn import ModelShape
from tuneloop.pipeline.answers.asking import write_task
from tuneloop.pipeline.context import BEGINNING, RunContext, folder_of, refuse_other_run, report_stage, training_began
from tuneloop.pipeline.distributed import RunPart, distributed_run, leading, stored
from tuneloop.pipeline.encoder import head_stage, refuse_settings, refuse_task
from tuneloop.pipeline.plan import plan_stage, run_plan
from tuneloop.pipeline.prepare import prepare_stage, refuse_errors
from tuneloop.pipeline.time_limit import TimeLimit, limited
from tuneloop.planning import record_run
from tuneloop.recipe import Recipe
from tuneloop.records.plan import PLAN, MeasuredMachine, Plan
from tuneloop.records.record import done_record, read_record, write_record
from tuneloop.records.rows import Dataset
from tuneloop.records.run import RUN, RunManifest, limit_words, mfu_words
from tuneloop.training import BUSY, FEW, Preflight, is_too_little, measured_use, training_key

if TYPE_CHECKING:
    from tuneloop.models.chat import Template
    from tuneloop.training import TrainConfig

OnRecord = Callable[[Mapping[str, Any]], None]  # gets each record of the metrics
Facts = Mapping[str, Any] | None
LITTLE_USED = 0.5  # a run that mfu_words less of its `max_minutes` says so first


def train_key(job: RunContext, dataset: Dataset) -> str:
    """Hash of all that the result of training depends on."""
    recipe = job.recipe
    return training_key(recipe.train, recipe.seed, dataset.manifest.hash, job.fingerprint)


def train_stage(job: RunContext, dataset: Dataset) -> RunManifest:
    """Train, or find it trained."""
    from tuneloop.training import Preempted

    recipe, folder = job.recipe, job.folder
    key = train_key(job, dataset)
    if before := done_record(RunManifest, folder, key):
        say(f"train     already done: {_validated(before)}")
        if before.tags != recipe.track.tags:  # all that may change of a finished run
            before = before.model_copy(update={"tags": recipe.track.tags})
            write_record(folder / RUN, before)
        return before
    plan = read_record(Plan, folder).to_json() if (folder / PLAN).is_file() else None
    began, measured = training_began(folder), MeasuredMachine.of_plan(plan)
    with busy("looking at the rows"):
        checked = preflight_of(job, dataset, recipe.train, plan)
    refuse_problems(checked, dataset)
    say(f"preflight {checked.line()}")
    try:
        result = distributed_run(job, RunPart("train", dataset.path, recipe.train, measured))
    except Preempted as preempted:
        say(f"train     stopped as requested: saved at step {preempted.step}; the same command continues from there")
        raise
    # The model holds the result; one that was divided over processes can't answer, so it is dropped.
    job.tuned = job.training_model is job.__dict__.get("model")
    if not job.tuned:
        job.__dict__.pop("training_model")
    write_task(job, dataset)
    mfu = None
    if job.tuned:
        with busy("measuring this machine's peak"):
            records = read_jsonl(folder / "metrics.jsonl")
            mfu = measured_use(job.model, recipe.train.method, job.rendered(dataset.train), records)
    if began and result.resumed_at:
        say(f"train     continued from the checkpoint at step {result.resumed_at}")
    run = _manifest(job, dataset, result, key, plan, mfu)
    write_record(folder / RUN, run)
    if plan and not result.resumed_at:
        finished = result.stopped == "finished" and result.total_steps == result.planned_steps
        minutes = result.seconds / 60 if finished else None
        disturbed = plan.get("disturbed") or (result.speed_share or 1.0) < BUSY or (mfu and mfu["value"] is None)
        record_run(plan, result.peak_memory_gib, minutes, result.tokens_per_second, disturbed=bool(disturbed))
    for line in _result_lines(run, recipe.train):
        say(line)
    if share := mfu_words(run.mfu):
        say(f"train     operations that the steps need, of what it could do (MFU): {share}")
    return run


def _manifest(job: RunContext, dataset: Dataset, result: Any, key: str, plan: Facts, mfu: Facts) -> RunManifest:
    """`run.json` of a training that is done."""
    recipe, method, predicted = job.recipe, method_named(job.recipe.train.method), None
    if plan:
        hours = plan["time"]
        predicted = {"minutes": hours["hours"] * 60, "low": hours["low"] * 60, "high": hours["high"] * 60}
        predicted |= {"peak_gib": plan["memory"]["peak_gib"], "usd": plan["cost"]["usd"]}
    return RunManifest.model_validate({
        "id": job.folder.resolve().name,
        "key": key,
        "status": "finished",
        "method": method.name,
        "model": recipe.model,
        "model_fingerprint": job.fingerprint,
        "dataset": dataset.id,
        **vars(result),
        "usd": result.seconds / 3600 * recipe.plan.usd_per_hour,
        "tags": recipe.track.tags,
        "predicted": predicted,
        "mfu": mfu,
        "weights" if method.folder == "model" else "adapter": method.folder,
    })  # fmt: skip


def _result_lines(run: RunManifest, config: TrainConfig) -> list[str]:
    """What training came to, and how that compares with the plan; first whether it left most of its time unused."""
    from tuneloop.training import busy_words

    minutes, checking = run.seconds / 60, run.checking_seconds / 60
    by_monitor = f"; stopped by a monitor: {run.stopped.replace('_', ' ')}"
    early = {"early": "; stopped early: validation got worse", "finished": ""}.get(run.stopped, by_monitor)
    steps = counted(run.steps, "step")
    if run.total_steps < run.planned_steps:
        steps = f"{run.steps:,} of {run.planned_steps:,} planned steps"
    elif run.total_steps > run.planned_steps:
        steps = f"{steps}, not the {run.planned_steps:,} planned,"
    lines = []
    if config.max_minutes and minutes < LITTLE_USED * config.max_minutes:
        reason = early.removeprefix("; ") or f"that was all of train.epochs={config.epochs:g}"
        if not early and run.epochs < (1 - 1e-6) * config.epochs:
            reason = f"the machine became faster near the end; train.epochs={config.epochs:g} has more steps"
        lines.append(f"train     mfu_words {minutes:.1f} of its {config.max_minutes:.3g} minutes: {reason}")
    lines += [
        f"train     {steps} in {minutes:.1f} minutes ({checking:.1f} of them validation), "
        f"{run.tokens_per_second:,.0f} tokens/s, peak {run.peak_memory_gib:.2f} GiB",
        f"          saw {run.seen}; {_validated(run)}{early}",
    ]
    cut = config.max_minutes and run.stopped == "finished" and run.epochs < (1 - 1e-6) * config.epochs
    better = (run.best_val_loss or math.inf) < (run.first_val_loss or 0.0)
    if cut and not better and is_too_little(run.steps, FEW, run.rows_seen / max(run.rows, 1)):
        lines.append("train     that is too little to say anything: give it more time, in another folder")
    if run.speed_share and run.speed_share < BUSY:
        lines.append(f"machine   {busy_words(run.speed_share, run.planned_tokens_per_second)}")
    if plan := run.predicted:
        time_off = off_words(minutes, plan.low, plan.high, plan.minutes)
        time_off = (time_off == "as predicted" and limit_words(run)) or time_off
        peak_off = off_words(run.peak_memory_gib, 0.85 * plan.peak_gib, 1.15 * plan.peak_gib, plan.peak_gib)
        lines.append(
            f"predicted {plan.minutes:.1f} minutes ({plan.low:.1f} to {plan.high:.1f}), took {minutes:.1f}: "
            f"{time_off}; {plan.peak_gib:.2f} GiB, took {run.peak_memory_gib:.2f}: {peak_off}"
        )
    return lines


def trained_words(run: RunManifest) -> str:
    """What training came to, in a few words."""
    return f"{counted(run.steps, 'step')}; {_validated(run)}"


def _validated(run: RunManifest) -> str:
    """What validation said of a run."""
    first, best = run.first_val_loss, run.best_val_loss
    if first is None or best is None or not math.isfinite(best):
        return "no validation rows, the last step is kept"
    return f"validation loss {first:.3f} -> {best:.3f} (best at step {run.best_step})"


def preflight_of(job: RunContext, dataset: Dataset, config: TrainConfig, plan: Mapping[str, Any] | None) -> Preflight:
    """What a run is about to do, from its rows and settings."""
    rows, run = run_plan(job, dataset, MeasuredMachine.of_plan(plan))
    limit = min(dataset.manifest.max_length or job.recipe.data.max_length, job.context)
    return Preflight.of(rows, job.ids(dataset.train), job.template, config, run.steps, limit)


def refuse_problems(checked: Preflight, dataset: Dataset) -> None:
    """Refuse to start what would be spoiled: the preflight has found problems."""
    if checked.problems:
        message = f"Training does not start: {'; '.join(checked.problems)}"
        step = "put the rows right and prepare again; `tuneloop train DATASET --preflight` looks without training"
        raise UserError(message, where=dataset.path, next_step=step)


def preflight_alone(recipe: Recipe) -> tuple[Preflight, dict[str, Any] | None, Template]:
    """Prepare where needed and look at the run; the plan is made only when there are no problems."""
    folder = folder_of(recipe)
    job = RunContext(recipe, folder)
    with lock_folder(folder):
        refuse_other_run(folder, recipe)
        dataset = prepare_stage(job)
        checked = preflight_of(job, dataset, recipe.train, None)
        plan = None if checked.problems else plan_stage(job, dataset)
        return (preflight_of(job, dataset, recipe.train, plan) if plan else checked), plan, job.template


@contextlib.contextmanager
def prepared_run(
    recipe: Recipe, *, on_record: OnRecord = lambda record: None, anyway: bool = False
) -> Iterator[tuple[RunContext, TimeLimit, Dataset]]:
    """The folder of a run, locked, with its settings in it and its data prepared.

    Raises:
        UserError: another run is in the folder, or the data have an error.
    """
    began = time.monotonic()
    with busy("looking at the sources"):
        folder = folder_of(recipe)
    whole, recipe = recipe, limited(recipe, folder)
    job = RunContext(recipe, folder, anyway=anyway, on_record=on_record)
    if job.is_encoder:
        refuse_settings(recipe)
    limit = TimeLimit(job, whole, began)
    with stored(recipe, folder), leading(job), lock_folder(folder, minor=BEGINNING):
        refuse_other_run(folder, recipe)
        write_yaml(folder / "config.yaml", recipe.model_dump(mode="json"))
        write_json(folder / "environment.json", machine.environment(device.names_in_use()))
        with stage("prepare", "preparing the data") as tell:
            dataset = prepare_stage(job)
            tell(_split_words(dataset))
            refuse_errors(dataset, recipe)
            if job.is_encoder:
                refuse_task(dataset, recipe.model)
            else:
                refuse_method(job)
                refuse_wrong_template(resolve(recipe.model), job.template, dataset.train, recipe.model)
        yield job, limit, dataset


def _split_words(dataset: Dataset) -> str:
    """How many rows a data set has, in a few words."""
    rows = ", ".join(f"{part.rows:,} {name}" for name, part in dataset.manifest.splits.by_name.items() if part.rows)
    return f"{rows} rows; {dataset.manifest.task}"


def refuse_method(job: RunContext) -> None:
    """Say that a model is slower through Transformers, and refuse what its training would refuse after the baselines.

    Raises:
        UserError: a method of our own model alone, targets that the model lacks, sizes that can't be planned.
    """
    from tuneloop.models.adapters import target_names
    from tuneloop.models.nn import Llama

    train, folder = job.recipe.train, resolve(job.recipe.model)
    net, config, method = skeleton(folder), read_json(folder / "config.json"), method_named(train.method)
    kind = config.get("model_type")
    if not isinstance(net, Llama):
        if method.own_model:
            message = f"There is no {method.title} for {kind!r}, which Transformers computes"
            raise UserError(message, where="train.method", next_step=f"set train.method={USUAL.name}")
        say(f"model     Transformers computes {kind}, more slowly than tuneloop's own model does other families")
    if method.footprint.low_rank:
        target_names(net, train.targets)
    ModelShape.from_config(config, str(folder / "config.json"))


def train_alone(
    recipe: Recipe, *, on_record: OnRecord = lambda record: None, anyway: bool = False
) -> tuple[Path, RunManifest]:
    """Prepare, plan and train, without baselines and evaluation.

    Args:
        on_record: gets each record of the metrics.
        anyway: train also where the time is too short for a result, see `plan.least_seconds`.
    """
    began = time.monotonic()
    with prepared_run(recipe, on_record=on_record, anyway=anyway) as (job, limit, dataset):
        if job.is_encoder:
            run = head_stage(job, dataset)
            report_stage(job)
            return job.folder, run
        prepared = time.monotonic()
        limit.give_training_all()
        with busy("planning the training"):
            plan = plan_stage(job, dataset)
        planned = time.monotonic()
        with busy("training the model"):
            run = train_stage(job, dataset)
        report_stage(job)
        training = time.monotonic() - planned
        if job.recipe.train.max_minutes and training >= run.seconds:
            measuring, steps = plan.get("measuring_seconds", 0.0) / 60, run.seconds / 60
            rest = {
                "preparing the data": prepared - began,
                "loading the model and planning": max(planned - prepared - 60 * measuring, 0.0),
                "saving the result and the page": max(training - run.seconds, 0.0),
            }
            phrase = ", ".join(f"{name} {seconds / 60:.1f}" for name, seconds in rest.items())
            say(
                f"time      {(time.monotonic() - began) / 60:.1f} minutes in all: measuring {measuring:.1f} and "
                f"training {steps:.1f}, which train.max_minutes limits; {phrase}"
            )
    return job.folder, run


def train_again(job: RunContext, first: RunManifest, folder: Path) -> RunManifest:
    """Train as the finished run `first` in `folder` was trained.

    Raises:
        UserError: rows, method or base model are no longer those of that run.
    """
    rows = prepare_stage(job)
    if first.key and train_key(job, rows) != first.key:
        same_base = job.fingerprint == first.model_fingerprint
        change = "the rows or the code of a method" if same_base else "the base model"
        where = f"{folder}: {first.model}, data set {first.dataset} then, {rows.id} now"
        message, step = f"This would be another run: {change} changed", "bring back what it was trained with"
        raise UserError(message, where=where, next_step=step)
    return train_stage(job, rows)


CALIBRATION_MINUTES = 0.3  # of training in `tuneloop plan --calibrate`


def calibrate_alone(recipe: Recipe) -> dict[str, Any]:
    """Train for some steps in a folder that is thrown away, for the ledger: the plan, with `measured` next to it."""
    short = recipe.train.model_copy(update={"max_minutes": CALIBRATION_MINUTES, "evaluations": 1, "val_rows": 8})
    with tempfile.TemporaryDirectory() as scratch:
        job = RunContext(recipe.model_copy(update={"train": short}), Path(scratch), anyway=True)
        dataset = prepare_stage(job)
        plan = plan_stage(job, dataset)
        run = train_stage(job, dataset)
    minutes, gib, speed = run.seconds / 60, run.peak_memory_gib, run.tokens_per_second
    return {**plan, "measured": {"minutes": minutes, "peak_gib": gib, "tokens_per_second": speed}}
