"""A run reproduced from its data, settings and base: the same bits, nearly the same, or where it departs."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tuneloop.core import device, machine
from tuneloop.core.errors import UserError
from tuneloop.core.files import inside, lock_folder, read_jsonl, sha256_file, write_json, write_yaml
from tuneloop.core.ui import say
from tuneloop.pipeline import RunContext, train_again
from tuneloop.recipe import CONFIG, Recipe, load_recipe
from tuneloop.records.artifact import ARTIFACT
from tuneloop.records.dataset import MANIFEST, DatasetManifest
from tuneloop.records.record import read_record, write_record
from tuneloop.records.run import Environment, RunManifest, Schedule
from tuneloop.registry import (
    fetch_run_files,
    find_run,
    open_registry,
    read_artifact,
    registered_name,
    run_folder_of,
    version_of,
)
from tuneloop.release.export import finished_run
from tuneloop.release.reproduction import EnvironmentChange, InputFile, Reproduction

RUN_FILES = ("config.yaml", "run.json", "environment.json", "schedule.json", "plan.json", "metrics.jsonl")
THREADS = "OMP_NUM_THREADS"
SPLITS = ("train.jsonl", "val.jsonl", "test.jsonl")
DATASET = ("dataset/dataset.json", "dataset/general.jsonl", *(f"dataset/{name}" for name in SPLITS))


def reproduce(target: str, out: Path | None = None, *, check: bool = False, tolerance: float = 1e-3) -> Reproduction:
    """Check what a run was made from, train it again and compare.

    Args:
        target: a run, an artifact whose run is in `runs/ID`, or a registered version, `NAME@ALIAS`.
        out: folder of the second run; default `reproductions/ID`. `reproduction.json` is written there.
        check: only look whether data and environment are the same.
        tolerance: largest relative difference of losses that are called equal.

    Raises:
        UserError: no such run, or neither its rows nor its sources are as they were.
    """
    folder = run_of(target)
    first = finished_run(folder)
    recipe = load_recipe(folder / CONFIG)
    folders = (folder / "dataset", *map(Path, recipe.data.sources[:1]))
    dataset = next((folder for folder in folders if (folder / MANIFEST).is_file()), None)
    if dataset is None:
        message = "The data set of this run is not here (no dataset.json)"
        step = "copy it there; runs with track.upload=data leave it in MLflow"
        raise UserError(message, where=str(folder / "dataset"), next_step=step)
    manifest = read_record(DatasetManifest, dataset)
    digests = {name: getattr(manifest.splits, name.partition(".")[0]).sha256 for name in SPLITS}
    record = Reproduction(
        run=first.id,
        folder=str(folder),
        sources=[InputFile(name=s.path, state=_state(Path(s.path), s.sha256)) for s in manifest.sources],
        splits=[InputFile(name=name, state=_state(dataset / name, digest)) for name, digest in digests.items()],
        differences=list(_differences(folder)),
        tolerance=tolerance,
    )
    for message, files in (("source", record.sources), ("split", record.splits)):
        for file in files:
            if file.state != "same":
                say(f"{file.state:<9} {message} {file.name}")
    for difference in record.differences:
        say(f"differs   {difference.name}: {difference.then} then, {difference.now} now")
    if not record.differences:
        say("same      code, packages and processor")
    record = record.model_copy(update={"rows_from": _rows_from(record, dataset)})
    if check:
        return record
    second_run = out or inside(Path("reproductions"), first.id)
    if second_run.resolve() == folder.resolve():
        raise UserError(
            "This is the run itself", where=str(second_run), next_step="choose another folder with --out FOLDER"
        )
    if record.rows_from == "splits":
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"sources": [str(dataset)]})})
    second = _train_again(folder, first, recipe, second_run)
    record = record.model_copy(
        update={"second": str(second_run), **_compared(folder, first, second_run, second, tolerance)}
    )
    write_record(second_run / Reproduction.file, record)
    return record


def run_of(target: str) -> Path:
    """The folder of a target's run; files of a registered version are fetched from MLflow where the folder is not here.

    Raises:
        UserError: the run is not available.
    """
    if registered_name(target) is not None:
        registry = open_registry()
        version = version_of(registry, target)
        directory, run = run_folder_of(version), version.lineage.run
        if directory is None:
            files = fetch_run_files(registry, version, (*RUN_FILES, *DATASET))
            directory = files if (files / "run.json").is_file() else None
    else:
        folder = Path(target).expanduser()
        if not (folder / ARTIFACT).is_file():
            return folder
        made_from = read_artifact(folder).run
        directory, run = find_run(made_from.id, made_from.key, folder.resolve().parent.parent / "runs"), made_from.id
    if directory is None:
        message = f"The run that this was made from, {run}, is not here"
        raise UserError(message, where=target, next_step="name the run's folder: tuneloop reproduce FOLDER")
    return directory


def _state(file: Path, digest: str) -> Any:
    if not file.is_file():
        return "missing"
    return "same" if sha256_file(file) == digest else "changed"


def _rows_from(record: Reproduction, dataset: Path) -> Any:
    """Where the rows come from: the splits if they are whole, else the sources."""
    if all(file.state == "same" for file in record.splits):
        return "splits"
    if record.sources and all(file.state == "same" for file in record.sources):
        return "sources"
    bad = [f"{file.name} {file.state}" for file in (*record.splits, *record.sources) if file.state != "same"]
    message = "Neither the prepared rows nor the sources are as they were"
    step = "bring back one of them; runs with track.upload=data leave the rows in MLflow"
    raise UserError(message, where=f"{dataset}: {', '.join(bad[:4])}", next_step=step)


def _differences(run: Path) -> Iterator[EnvironmentChange]:
    if not (run / Environment.file).is_file():
        return
    then, now = read_record(Environment, run), Environment.model_validate(machine.environment(device.names_in_use()))
    for name in ("tuneloop", "git_commit", "python", "platform", "cpu", "cores", "threads", "gpu"):
        a, b = getattr(then, name), getattr(now, name)
        if name == "threads" and 0 < then.threads <= now.cores:
            continue  # it is trained with as many again
        if a != b and None not in (a, b) and a != 0:  # of the commit: not in a repository; of threads: not known
            yield EnvironmentChange(name=name, then=str(a), now=str(b))
    for name in sorted({*then.packages, *now.packages}):
        a, b = then.packages.get(name, "none"), now.packages.get(name, "none")
        if a != b:
            yield EnvironmentChange(name=name, then=a, now=b)


def _train_again(folder: Path, first: RunManifest, recipe: Recipe, out: Path) -> RunManifest:
    """Train in `out` by the first run's settings and schedule, unless it is finished; an interrupted one continues."""
    track = recipe.track.model_copy(update={"report_to": ["none"]})
    # No store: the settings may be another person's, and nothing leaves this machine.
    recipe = recipe.model_copy(update={"output_dir": str(out), "store": "", "track": track})
    job = RunContext(recipe, out)
    with lock_folder(out), _threads_of(folder):
        write_yaml(out / "config.yaml", recipe.model_dump(mode="json"))
        write_json(out / "environment.json", machine.environment(device.names_in_use()))
        write_record(out / Schedule.file, read_record(Schedule, folder).model_copy(update={"follow": True}))
        return train_again(job, first, folder)


@contextmanager
def _threads_of(run: Path) -> Iterator[None]:
    """As many threads as the first run had, where there are as many cores: other sums may round otherwise."""
    then = read_record(Environment, run).threads if (run / Environment.file).is_file() else 0
    before = os.environ.get(THREADS)
    if 0 < then <= machine.cores():
        os.environ[THREADS] = str(then)
    try:
        yield
    finally:
        os.environ.pop(THREADS, None)
        if before is not None:
            os.environ[THREADS] = before


def _compared(
    folder: Path, first: RunManifest, second_run: Path, second: RunManifest, tolerance: float
) -> dict[str, Any]:
    """The verdict, from the hash of the trained weights and the losses of all steps."""
    pairs = list(_losses(folder, second_run))
    gaps = [(step, _relative(a, b)) for step, a, b in pairs]
    differing = [step for step, gap in gaps if gap > 0]
    beyond = [step for step, gap in gaps if gap > tolerance]
    largest = max((gap for _, gap in gaps), default=0.0)
    if first.adapter_hash and first.adapter_hash == second.adapter_hash:
        verdict, step = "identical", None
    elif first.steps == second.steps and pairs and not beyond:
        verdict, step = "equal", min(differing, default=None)
    else:
        verdict, step = "different", min(beyond or differing, default=None)
    largest = largest if math.isfinite(largest) else 1e9
    return {"verdict": verdict, "first_step": step, "losses": len(pairs), "largest": largest}


def _losses(folder: Path, second_run: Path) -> Iterator[tuple[int, float, float]]:
    """Step and loss of both runs: training's and validation's, as far as both went."""
    sides: list[dict[tuple[int, str], float]] = [{}, {}]
    for side, run in zip(sides, (folder, second_run), strict=True):
        for line in read_jsonl(run / "metrics.jsonl") if (run / "metrics.jsonl").is_file() else ():
            for name in ("loss", "val_loss"):
                if name in line:
                    side[line["step"], name] = math.nan if line[name] is None else float(line[name])
    for step, name in sides[0]:
        if (step, name) in sides[1]:
            yield step, sides[0][step, name], sides[1][step, name]


def _relative(a: float, b: float) -> float:
    """Relative difference; 0 for two that are no numbers, infinite for one of them."""
    if math.isnan(a) or math.isnan(b):
        return 0.0 if math.isnan(a) and math.isnan(b) else math.inf
    return abs(a - b) / max(abs(a), abs(b), 1e-12)
