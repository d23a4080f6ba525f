"""`--on ray`: the whole cluster prepares data, many processes train in one run, actors answer rows."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.object_store import open_store
from tuneloop.core.python_file import trust_code
from tuneloop.core.ray import cluster as ray_cluster
from tuneloop.core.ray.cluster import address_of, on_ray, whole_path
from tuneloop.core.ray.driver import drive
from tuneloop.core.ray.training import Workers, train_on_ray
from tuneloop.core.ui import busy, no_progress, reporting, say
from tuneloop.core.units import counted, verb
from tuneloop.core.urls import is_url
from tuneloop.deploy.clusters import RayOptions
from tuneloop.pipeline import RunContext, folder_of, prepare_checked
from tuneloop.recipe import Recipe, make_recipe


@contextlib.contextmanager
def cluster_of(target: str) -> Iterator[None]:
    """Connected to the cluster that `--on` names; empty: not. A UserError: none, or one of other versions."""
    with on_ray(address_of(target)) if target else contextlib.nullcontext():
        yield


@dataclass(frozen=True)
class RayRun:
    """What each process of a run gets."""

    recipe: dict[str, Any]  # as text, with the prepared data set as its only source
    folder: str  # of the run, on each machine
    whole: bool  # with baselines and evaluation


def run_on_ray(recipe: Recipe, options: RayOptions, *, whole: bool) -> Path:
    """Do the job, or with `whole=False` only its training, on a cluster; returns the run's folder.

    That folder, or with `recipe.store` the object store, must be one that all machines see. Of a cluster that this
    machine is no part of (`ray://`), the data are prepared here and sent, the driver stays, and the result comes back.

    Raises:
        UserError: no cluster, no room on it, or whatever the stages raise.
    """
    folder = folder_of(recipe).resolve()
    bucket = getattr(options, "bucket", "")
    if is_url(bucket) and not recipe.store:
        recipe = recipe.model_copy(update={"store": f"{bucket.rstrip('/')}/{folder.name}"})
    if options.on.startswith("ray://"):
        return _from_outside(recipe, options, folder, whole)
    with on_ray(address_of(options.on)) as ray:
        workers = _workers(ray, options, recipe, folder)
        size = f"{counted(ray_cluster.machines(ray), 'machine')}, {ray_cluster.cpus(ray)} processors"
        train = f"{workers.count} {verb(workers.count, 'process trains', 'processes train')}"
        say(f"ray       {size}, {ray_cluster.gpus(ray)} GPUs: {train}")
        on_cluster = recipe.model_copy(update={"data": recipe.data.model_copy(update={"engine": "ray"})})
        with busy("preparing the data on the cluster"):
            dataset = prepare_checked(RunContext(on_cluster, folder))
        with busy("working on the cluster"):
            _train(recipe, Path(dataset.path).resolve(), folder, whole, workers)
        if recipe.store:
            open_store(recipe.store).pull(folder)
    return folder


def _train(recipe: Recipe, dataset: Path, folder: Path, whole: bool, workers: Workers) -> None:
    if recipe.store:
        open_store(recipe.store).inner("dataset").push(dataset)
        dataset = folder / "dataset"
    # As a process of another machine reads it: with whole paths.
    paths = {"model": whole_path(recipe.model), "output_dir": str(folder)}
    job = RayRun({**_with_data(recipe, str(dataset)), **paths}, str(folder), whole)
    train_on_ray(recipe.name, take_part, job, workers)


@dataclass(frozen=True)
class DriverJob:
    """What a driver on the cluster gets: the recipe as text, and the options."""

    recipe: dict[str, Any]
    options: RayOptions
    whole: bool


def _from_outside(recipe: Recipe, options: RayOptions, folder: Path, whole: bool) -> Path:
    """Prepare here, and have a driver on the cluster do the rest; it stays when this process leaves."""
    with busy("preparing the data"):
        dataset = prepare_checked(RunContext(recipe, folder))
    job = DriverJob(_with_data(recipe, "dataset"), options, whole)
    shared = getattr(options, "bucket", "")
    remote = (
        f"{shared.rstrip('/')}/{folder.name}" if shared and not is_url(shared) else f"~/tuneloop-runs/{folder.name}"
    )
    with on_ray(address_of(options.on)) as ray, busy("working on the cluster"):
        data = Path(dataset.path).resolve()
        drive(ray, f"tuneloop-{folder.name}", _drive, job, data=data, remote=remote, local=folder)
    return folder


def _drive(job: DriverJob, folder: Path) -> None:
    trust_code(job.recipe)  # as the machine that sent it did
    recipe = make_recipe(job.recipe)
    with on_ray() as ray:
        _train(recipe, folder / "dataset", folder, job.whole, _workers(ray, job.options, recipe, folder))
    if recipe.store:
        open_store(recipe.store).pull(folder)


def take_part(job: RayRun) -> None:
    """A process's share of a run; the first one leads it."""
    from tuneloop.pipeline import run_job, train_alone

    Path(job.folder).mkdir(parents=True, exist_ok=True)
    trust_code(job.recipe)
    recipe = make_recipe(job.recipe)
    os.chdir(Path(job.folder).parent)
    if job.whole:
        run_job(recipe, anyway=True)
    else:
        with reporting(progress=no_progress):
            train_alone(recipe, anyway=True)


def _with_data(recipe: Recipe, dataset: str) -> dict[str, Any]:
    values = recipe.model_dump(mode="json", exclude_unset=True, exclude={"data", "output_dir"})
    checks = {"allow_errors": recipe.data.allow_errors, "max_length": recipe.data.max_length}
    return {**values, "data": {"sources": [dataset], **checks}}


def _workers(ray: Any, options: RayOptions, recipe: Recipe, folder: Path) -> Workers:
    """How many processes train: as requested, else one for each GPU, else one for each machine."""
    there, boards, machines = ray_cluster.cpus(ray), ray_cluster.gpus(ray), ray_cluster.machines(ray)
    room = boards or there
    count = (options.nodes or machines) * options.gpus
    if not options.gpus:
        count = min(options.nodes, room) if options.nodes else boards or machines
    if count > room or options.nodes > machines:
        size = f"{counted(machines, 'machine')} with {there} processors and {boards} GPUs"
        message = f"The cluster has {size}: no room for {options.nodes or machines} x {options.gpus or 1}"
        step = "ask for fewer, or add machines (ray start --address HEAD:6379)"
        raise UserError(message, where="--nodes, --gpus", next_step=step)
    return Workers(count, boards > 0, f"{recipe.store.rstrip('/')}/.ray" if recipe.store else str(folder / ".ray"))
