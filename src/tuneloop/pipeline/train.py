"""The train stage, with the preflight before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop import machine
from tuneloop.files import content_hash, lock_folder, read_json, read_jsonl, write_json, write_yaml
from tuneloop.pipeline.job import Job, default_folder, find_done, refuse_other_run, training_began
from tuneloop.pipeline.plan import plan_stage
from tuneloop.pipeline.prepare import prepare_stage, refuse_errors
from tuneloop.pipeline.report import report_stage
from tuneloop.pipeline.together import Part, leading, together
from tuneloop.recipe import Recipe
from tuneloop.types import Dataset, Progress, UserError

if TYPE_CHECKING:
    from tuneloop.models.template import Template
    from tuneloop.train.config import TrainConfig
    from tuneloop.train.preflight import Preflight


def train_key(job: Job, dataset: Dataset) -> str:
    """Hash of all that the result of training depends on."""
    from tuneloop.train.methods import init_hash

    recipe = job.recipe
    return content_hash(
        [recipe.train, recipe.seed, dataset.manifest["hash"], job.fingerprint, init_hash(recipe.train), 1]
    )


def train_stage(job: Job, dataset: Dataset) -> dict[str, Any]:
    """Train, or find it trained."""
    from tuneloop.train.setbacks import Preempted

    recipe, folder = job.recipe, job.folder
    key = train_key(job, dataset)
    done = find_done(folder / "run.json", key)
    if done:
        job.say(f"train     already done: {_validated(done)}")
        return done
    plan = read_json(folder / "plan.json") if (folder / "plan.json").is_file() else None
    began = training_began(job)
    config = _with_rate(job, dataset)
    checked = preflight_of(job, dataset, config, plan)
    refuse_problems(checked, dataset)
    job.say(f"preflight {checked.line()}")
    try:
        speed = plan["time"]["tokens_per_second"] if plan else 0.0
        result = together(job, Part("train", dataset.path, config, speed))
    except Preempted as preempted:
        job.say(f"train     asked to end: saved at step {preempted.step}; the same command goes on from there")
        raise
    _keep_result(job)
    mfu = _mfu(job, dataset) if job.tuned else None
    if began and result.resumed_at:
        job.say(f"train     went on from the checkpoint at step {result.resumed_at}")
    predicted = None
    if plan:
        predicted = {
            "minutes": plan["time"]["hours"] * 60,
            "low": plan["time"]["low"] * 60,
            "high": plan["time"]["high"] * 60,
            "peak_gib": plan["memory"]["peak_gib"],
            "usd": plan["cost"]["usd"],
        }
    manifest: dict[str, Any] = {
        "version": 1,
        "id": folder.resolve().name,
        "key": key,
        "status": "finished",
        "method": recipe.train.method,
        "model": recipe.model,
        "model_fingerprint": job.fingerprint,
        "dataset": dataset.id,
        **vars(result),
        "usd": result.seconds / 3600 * recipe.plan.usd_per_hour,
        "predicted": predicted,
        "mfu": mfu,
        **({"weights": "model"} if recipe.train.method == "full" else {"adapter": "adapter"}),
    }
    write_json(folder / "run.json", manifest)
    if plan and not result.resumed_at:
        from tuneloop.plan.ledger import record_run

        minutes = result.seconds / 60 if result.stopped == "finished" else None
        record_run(plan, result.peak_memory_gib, minutes, result.tokens_per_second)
    early = {"early": ", stopped early: validation got worse", "finished": ""}.get(
        result.stopped, f", stopped by the watcher: {result.stopped.replace('_', ' ')}"
    )
    job.say(
        f"train     {result.steps:,} steps in {result.seconds / 60:.1f} minutes, {result.tokens_per_second:,.0f} tokens/s, "
        f"peak {result.peak_memory_gib:.2f} GiB; {_validated(manifest)}{early}"
    )
    if mfu:
        job.say(
            f"machine   {mfu['value']:.0%} of {mfu['peak_gflops']:,.0f} GFLOP/s, the measured peak, went into operations that the steps need (MFU)"
        )
    if predicted:
        job.say(
            f"predicted {predicted['minutes']:.1f} minutes ({predicted['low']:.1f} to {predicted['high']:.1f}) and took "
            f"{result.seconds / 60:.1f}; {predicted['peak_gib']:.2f} GiB at most, and it was {result.peak_memory_gib:.2f}"
        )
    return manifest


def _validated(manifest: Mapping[str, Any]) -> str:
    """What validation said of a run."""
    first, best = manifest["first_val_loss"], manifest["best_val_loss"]
    if best is None or not math.isfinite(best):
        return "no validation rows, the last step is kept"
    return f"validation loss {first:.3f} -> {best:.3f} (best at step {manifest['best_step']})"


def _mfu(job: Job, dataset: Dataset) -> dict[str, Any] | None:
    """How well the steps used the machine, from their records and a short measurement."""
    from tuneloop.train.flops import matmul_peak, utilisation

    head = job.model.head
    peak = matmul_peak(head.dtype, head.device)
    records = read_jsonl(job.folder / "metrics.jsonl")
    return utilisation(job.model.config, job.recipe.train.method, job.rendered(dataset.train), records, peak)


def _keep_result(job: Job) -> None:
    """Remember that the model holds the run's result; one that was divided over processes can't be asked, so it goes."""
    job.tuned = job.training_model is job.__dict__.get("model")
    if not job.tuned:
        job.__dict__.pop("training_model")


def _with_rate(job: Job, dataset: Dataset) -> TrainConfig:
    """The training settings with a learning rate that a range test has found, where one is asked for; it is kept for resuming."""
    config, file = job.recipe.train, job.folder / "learning_rate.json"
    if not config.range_test:
        return config
    key = train_key(job, dataset)
    found = find_done(file, key)
    if found is None:
        test = together(job, Part("rate", dataset.path, config))
        found = {"version": 1, "key": key, **vars(test)}
        write_json(file, found)
        job.say(f"rate      {found['sentence']}")
    return config.model_copy(update={"learning_rate": found["chosen"], "range_test": False})


def preflight_of(job: Job, dataset: Dataset, config: TrainConfig, plan: Mapping[str, Any] | None) -> Preflight:
    """What a run is about to do, from its rows and settings."""
    from tuneloop.train.batches import plan_steps
    from tuneloop.train.preflight import preflight
    from tuneloop.train.speed import within_time

    rows = job.rendered(dataset.train)
    steps = plan_steps(rows, config, job.recipe.seed, job.mixed(dataset.train)) if rows else []
    steps = within_time(steps, rows, config, plan["time"]["tokens_per_second"] if plan else 0.0)
    prepared = (dataset.manifest.get("config") or {}).get("max_length") or job.recipe.data.max_length
    limit = min(int(prepared), job.context)
    return preflight(rows, job.ids(dataset.train), job.template, config, steps, limit)


def refuse_problems(checked: Preflight, dataset: Dataset) -> None:
    """Refuse to start what would be spoiled.

    Raises:
        UserError: the preflight has found problems.
    """
    if checked.problems:
        raise UserError(
            "Training does not start: " + "; ".join(checked.problems),
            where=dataset.path,
            next_step="put the rows right and prepare again; `tuneloop train DATASET --preflight` looks without training",
        )


def preflight_alone(
    recipe: Recipe, *, progress: Progress, say: Callable[[str], None]
) -> tuple[Preflight, dict[str, Any] | None, Template]:
    """Prepare where needed and look at the run; the plan is made only when there are no problems."""
    folder = Path(recipe.output_dir) if recipe.output_dir else default_folder(recipe)
    job = Job(recipe, folder, progress, say)
    with lock_folder(folder):
        refuse_other_run(folder, recipe)
        dataset = prepare_stage(job)
        checked = preflight_of(job, dataset, recipe.train, None)
        plan = None if checked.problems else plan_stage(job, dataset)
        return (preflight_of(job, dataset, recipe.train, plan) if plan else checked), plan, job.template


def train_alone(recipe: Recipe, *, progress: Progress, say: Callable[[str], None]) -> tuple[Path, dict[str, Any]]:
    """Prepare where needed, plan and train, without baselines and evaluation."""
    folder = Path(recipe.output_dir) if recipe.output_dir else default_folder(recipe)
    job = Job(recipe, folder, progress, say)
    with leading(job), lock_folder(folder):
        refuse_other_run(folder, recipe)
        write_yaml(folder / "config.yaml", recipe.model_dump(mode="json"))
        write_json(folder / "environment.json", machine.environment())
        dataset = prepare_stage(job)
        refuse_errors(dataset, recipe)
        plan_stage(job, dataset)
        manifest = train_stage(job, dataset)
        report_stage(job)
    return folder, manifest


CALIBRATION_MINUTES = 0.3  # of training in `tuneloop plan --calibrate`


def calibrate_alone(recipe: Recipe, *, progress: Progress, say: Callable[[str], None]) -> dict[str, Any]:
    """Train for some steps in a folder that is thrown away: what the plan said and what came goes into the ledger.

    Returns:
        The plan, with `measured` beside it: minutes, GiB and tokens a second.
    """
    import tempfile

    short = recipe.train.model_copy(update={"max_minutes": CALIBRATION_MINUTES, "evaluations": 1, "val_rows": 8})
    with tempfile.TemporaryDirectory() as scratch:
        job = Job(recipe.model_copy(update={"train": short}), Path(scratch), progress, say)
        dataset = prepare_stage(job)
        plan = plan_stage(job, dataset)
        run = train_stage(job, dataset)
    measured = {
        "minutes": run["seconds"] / 60,
        "peak_gib": run["peak_memory_gib"],
        "tokens_per_second": run["tokens_per_second"],
    }
    return {**plan, "measured": measured}
