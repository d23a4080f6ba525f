"""The plan stage: what training will take on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop import machine
from tuneloop.files import content_hash, write_json
from tuneloop.pipeline.job import Job, find_done, training_began
from tuneloop.pipeline.prepare import prepare_stage
from tuneloop.pipeline.together import Part, together
from tuneloop.recipe import Recipe
from tuneloop.types import Dataset, Progress, UserError

if TYPE_CHECKING:
    from tuneloop.train.rows import TrainRow


def plan_stage(job: Job, dataset: Dataset) -> dict[str, Any]:
    """What training will take on this machine: memory by formula, time by timing some of its own batches."""
    recipe = job.recipe
    key = content_hash([dataset.manifest["hash"], job.fingerprint, recipe.train, recipe.plan, recipe.seed, 1])
    done = find_done(job.folder / "plan.json", key)
    if done and training_began(job):
        job.say(plan_line(done, already=True))
        return done
    train_rows, val_rows = job.rendered(dataset.train), job.rendered(dataset.val)
    job.progress("measuring this machine", 0, 1)
    resident = _resident(job)
    speed = together(job, Part("measure", dataset.path, recipe.train))
    job.progress("measuring this machine", 1, 1)
    plan = make_plan(job, train_rows, val_rows, speed, resident, job.mixed(dataset.train))
    write_json(job.folder / "plan.json", {**plan, "key": key})
    job.say(plan_line(plan))
    if not plan["fits"]:
        raise UserError(
            f"Training needs about {plan['memory']['peak_gib']:.1f} GiB, and this machine has {plan['memory']['capacity_gib']:.1f}",
            where="plan.json",
            next_step=f"set {plan['alternatives'][0]['change']}, or use a machine with more memory",
        )
    return plan


def _resident(job: Job) -> float:
    """GiB in use with the model loaded."""
    assert job.training_model.net is not None
    machine.release_memory()
    return machine.memory_now()


def make_plan(
    job: Job,
    train_rows: list[TrainRow],
    val_rows: list[TrainRow],
    speed: float,
    resident: float,
    mixed: Sequence[bool] = (),
) -> dict[str, Any]:
    """The plan of a run whose rows and speed are known.

    Args:
        mixed: for each training row whether it is general data that was blended in.
    """
    from tuneloop.plan.estimate import Machine, Work, estimate
    from tuneloop.plan.ledger import corrected, read_ledger
    from tuneloop.plan.shape import ModelShape
    from tuneloop.train.batches import plan_steps
    from tuneloop.train.methods import lora_shape
    from tuneloop.train.rows import reference_tokens, supervised_tokens, tokens_of
    from tuneloop.train.speed import micro_shape, within_time

    recipe, model = job.recipe, job.training_model
    steps = within_time(plan_steps(train_rows, recipe.train, recipe.seed, mixed), train_rows, recipe.train, speed)
    indices = [i for step in steps for i in step.indices]
    micros = [[train_rows[i] for i in micro] for step in steps for micro in step.micro_batches]
    micro_batches = {micro_shape(model, micro, recipe.train) for micro in micros}
    measured = val_rows[: recipe.train.val_rows]
    work = Work(
        steps=len(steps),
        tokens=sum(tokens_of(train_rows[i]) for i in indices),
        supervised=round(sum(supervised_tokens(train_rows[i]) for i in indices)),
        val_tokens=sum(tokens_of(row) for row in measured) * (min(recipe.train.evaluations, len(steps)) + 1)
        + sum(reference_tokens(row) for row in [*(train_rows[i] for i in {*indices}), *measured]),
        micro_batches=tuple(sorted(micro_batches)),
        accumulated=max((len(step.micro_batches) for step in steps), default=1),
    )
    gpus = machine.gpus()
    place = machine.processor()
    here = Machine(
        name=gpus[0] if gpus else f"cpu: {place}, {machine.cores()} cores",
        capacity_gib=machine.training_capacity(),
        resident_gib=resident,
        usd_per_hour=recipe.plan.usd_per_hour,
        tokens_per_second=speed,
    )
    shape = ModelShape.from_config(model.config, str(model.folder / "config.json"))
    targets = list(lora_shape(model, recipe.train).targets)
    plan = estimate(
        shape, work, here, model=recipe.model, method=recipe.train.method, rank=recipe.train.rank, targets=targets,
        prefix_tokens=recipe.train.prefix_tokens, bytes_a_weight=model.head.element_size(), optimizer=recipe.train.optimizer,
        optimizer_in_backward=recipe.train.optimizer_in_backward, grad_ckpt=recipe.train.gradient_checkpointing == "always",
    )  # fmt: skip
    return corrected(plan, read_ledger())


def plan_line(plan: Mapping[str, Any], *, already: bool = False) -> str:
    """The plan in one line."""
    time_, cost = plan["time"], plan["cost"]
    share = plan["trainable_parameters"] / plan["total_parameters"]
    return (
        f"plan      {plan['trainable_parameters'] / 1e6:.2f}M of {plan['total_parameters'] / 1e6:.1f}M parameters trained ({share:.1%}), "
        f"{plan['steps']:,} steps; peak memory about {plan['memory']['peak_gib']:.1f} GiB; "
        f"{time_['hours'] * 60:.1f} minutes ({time_['low'] * 60:.1f} to {time_['high'] * 60:.1f}); "
        f"${cost['usd']:.3f} at ${cost['breakdown']['usd_per_hour']:g}/hour{' (planned before)' if already else ''}"
    )


def plan_alone(recipe: Recipe, out: str, *, progress: Progress, say: Callable[[str], None]) -> dict[str, Any]:
    """The plan stage by itself; nothing is trained."""
    import tempfile

    from tuneloop.train.speed import measure_speed

    with tempfile.TemporaryDirectory() as scratch:
        job = Job(recipe, Path(scratch), progress, say)
        dataset = prepare_stage(job)
        train_rows, val_rows = job.rendered(dataset.train), job.rendered(dataset.val)
        resident = _resident(job)
        speed = measure_speed(job.model, train_rows, recipe.train, recipe.seed)
        plan = make_plan(job, train_rows, val_rows, speed, resident, job.mixed(dataset.train))
    if out:
        write_json(Path(out) / "plan.json", plan)
    return plan
