"""A run done again, from the data, settings and base that it was made with: the same bits, nearly the same, or where it departs."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tuneloop.core import device, machine
from tuneloop.core.errors import UserError
from tuneloop.core.files import inside, lock_folder, read_jsonl, sha256_file, write_json, write_yaml
from tuneloop.core.ui import say
from tuneloop.pipeline.context import RunContext, load_run_recipe
from tuneloop.pipeline.prepare import prepare_stage
from tuneloop.pipeline.train import train_key, train_stage
from tuneloop.recipe import Recipe
from tuneloop.records.artifact import ARTIFACT
from tuneloop.records.dataset import MANIFEST, DatasetManifest
from tuneloop.records.record import read_record, write_record
from tuneloop.records.run import Environment, LearningRate, RunManifest, Schedule
from tuneloop.registry.registered import find_run, open_registry, registered_name, run_folder_of, version_of
from tuneloop.registry.verify import read_artifact
from tuneloop.registry.versions import fetch_run_files
from tuneloop.release.export import finished_run
from tuneloop.release.reproduction import Difference, InputFile, Reproduction

RATE = LearningRate.file
RUN_FILES = ("config.yaml", "run.json", "environment.json", "schedule.json", RATE, "plan.json", "metrics.jsonl")
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
    recipe = load_run_recipe(folder, [])
    dataset = _dataset_folder(folder, recipe)
    manifest = read_record(DatasetManifest, dataset)
    found = Reproduction(
        run=first.id,
        folder=str(folder),
        sources=[InputFile(name=s.path, state=_state(Path(s.path), s.sha256)) for s in manifest.sources],
        splits=[
            InputFile(name=name, state=_state(dataset / name, getattr(manifest.splits, name.partition(".")[0]).sha256))
            for name in SPLITS
        ],
        differences=list(_differences(folder)),
        tolerance=tolerance,
    )
    _tell_inputs(found)
    found = found.model_copy(update={"rows_from": _rows_from(found, dataset)})
    if check:
        return found
    place = out or inside(Path("reproductions"), first.id)
    if place.resolve() == folder.resolve():
        raise UserError("This is the run itself", where=str(place), next_step="choose another folder with --out FOLDER")
    second = _train_again(folder, first, recipe, dataset, place, found)
    found = found.model_copy(update={"second": str(place), **_compared(folder, first, place, second, tolerance)})
    write_record(place / Reproduction.file, found)
    return found


def run_of(target: str) -> Path:
    """The folder of a target's run; for a registered version, its files are fetched from MLflow where the folder is not here.

    Raises:
        UserError: the run is not at hand.
    """
    if registered_name(target) is not None:
        registry = open_registry()
        version = version_of(registry, target)
        here = run_folder_of(version)
        if here is not None:
            return here
        fetched = fetch_run_files(registry, version, (*RUN_FILES, *DATASET))
        if (fetched / "run.json").is_file():
            return fetched
        raise _not_at_hand(target, version.lineage.run)
    folder = Path(target).expanduser()
    if (folder / ARTIFACT).is_file():
        made_from = read_artifact(folder).run
        place = find_run(made_from.id, made_from.key, folder.resolve().parent.parent / "runs")
        if place is not None:
            return place
        raise _not_at_hand(target, made_from.id)
    return folder


def _not_at_hand(target: str, run: str) -> UserError:
    return UserError(
        f"The run that this was made from, {run}, is not at hand",
        where=target,
        next_step="name the run's folder: tuneloop models reproduce FOLDER",
    )


# --- what it was made from ---------------------------------------------------------------------


def _dataset_folder(run: Path, recipe: Recipe) -> Path:
    """The prepared data set: the run's own, or the one that it was given."""
    for folder in (run / "dataset", *map(Path, recipe.data.sources[:1])):
        if (folder / MANIFEST).is_file():
            return folder
    raise UserError(
        "The data set of this run is not here (no dataset.json)",
        where=str(run / "dataset"),
        next_step="copy it there; runs with track.upload=data leave it in MLflow",
    )


def _state(file: Path, digest: str) -> Any:
    """Whether a file is as it was."""
    if not file.is_file():
        return "missing"
    return "same" if sha256_file(file) == digest else "changed"


def _rows_from(found: Reproduction, dataset: Path) -> Any:
    """Where the rows come from: the splits if they are whole, else the sources.

    Raises:
        UserError: neither are; the files are named.
    """
    if all(file.state == "same" for file in found.splits):
        return "splits"
    if found.sources and all(file.state == "same" for file in found.sources):
        return "sources"
    bad = [f"{file.name} {file.state}" for file in (*found.splits, *found.sources) if file.state != "same"]
    raise UserError(
        "Neither the prepared rows nor the sources are as they were",
        where=f"{dataset}: {', '.join(bad[:4])}",
        next_step="bring back one of them; runs with track.upload=data leave the rows in MLflow",
    )


def _differences(run: Path) -> Iterator[Difference]:
    """What of code and environment is another one now."""
    if not (run / Environment.file).is_file():
        return
    then, now = read_record(Environment, run), Environment.model_validate(machine.environment(device.names_in_use()))
    for name in ("tuneloop", "git_commit", "python", "platform", "cpu", "cores", "threads", "gpu"):
        a, b = getattr(then, name), getattr(now, name)
        if name == "threads" and 0 < then.threads <= now.cores:
            continue  # it is trained with as many again
        if a != b and None not in (a, b) and a != 0:  # of the commit: not in a repository; of threads: not known
            yield Difference(name=name, then=str(a), now=str(b))
    for name in sorted({*then.packages, *now.packages}):
        a, b = then.packages.get(name, "none"), now.packages.get(name, "none")
        if a != b:
            yield Difference(name=name, then=a, now=b)


def _tell_inputs(found: Reproduction) -> None:
    for what, files in (("source", found.sources), ("split", found.splits)):
        for file in files:
            if file.state != "same":
                say(f"{file.state:<9} {what} {file.name}")
    for one in found.differences:
        say(f"differs   {one.name}: {one.then} then, {one.now} now")
    if not found.differences:
        say("same      code, packages and processor")


# --- again -------------------------------------------------------------------------------------


def _train_again(folder: Path, first: RunManifest, recipe: Recipe, dataset: Path, out: Path, found: Reproduction) -> RunManifest:  # fmt: skip
    """Train in `out` by the first run's settings and schedule; a finished one is found, an interrupted one goes on.

    Raises:
        UserError: the rows that come of the sources are others, or the base model is another one.
    """
    again = recipe.model_copy(
        update={
            "output_dir": str(out),
            "store": "",  # the settings may be another person's: nothing leaves this machine
            "track": recipe.track.model_copy(update={"report_to": ["none"]}),
            **(
                {"data": recipe.data.model_copy(update={"sources": [str(dataset)]})}
                if found.rows_from == "splits"
                else {}
            ),
        }
    )
    job = RunContext(again, out)
    with lock_folder(out), _threads_of(folder):
        write_yaml(out / "config.yaml", again.model_dump(mode="json"))
        write_json(out / "environment.json", machine.environment(device.names_in_use()))
        if (folder / RATE).is_file():  # no plan.json: the planner has learned from this run already
            shutil.copy(folder / RATE, out / RATE)
        write_record(out / Schedule.file, read_record(Schedule, folder).model_copy(update={"follow": True}))
        rows = prepare_stage(job)
        if first.key and train_key(job, rows) != first.key:
            what = (
                "the base model" if job.fingerprint != first.model_fingerprint else "the rows or the code of a method"
            )
            raise UserError(
                f"This would be another run: {what} changed",
                where=f"{folder}: {first.model}, data set {first.dataset} then, {rows.id} now",
                next_step="bring back what it was trained with",
            )
        return train_stage(job, rows)


@contextmanager
def _threads_of(run: Path) -> Iterator[None]:
    """As many threads as the first run had, where there are as many cores: sums over another number may round otherwise."""
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


def _compared(folder: Path, first: RunManifest, place: Path, second: RunManifest, tolerance: float) -> dict[str, Any]:
    """The verdict, from the hash of the trained weights and the losses of all steps."""
    pairs = list(_losses(folder, place))
    apart = [(step, _relative(a, b)) for step, a, b in pairs]
    differing = [step for step, gap in apart if gap > 0]
    beyond = [step for step, gap in apart if gap > tolerance]
    largest = max((gap for _, gap in apart), default=0.0)
    figures = {"losses": len(pairs), "largest": largest if math.isfinite(largest) else 1e9}
    if first.adapter_hash and first.adapter_hash == second.adapter_hash:
        return {"verdict": "identical", "first_step": None, **figures}
    if first.steps == second.steps and pairs and not beyond:
        return {"verdict": "equal", "first_step": min(differing, default=None), **figures}
    return {"verdict": "different", "first_step": min(beyond or differing, default=None), **figures}


def _losses(folder: Path, place: Path) -> Iterator[tuple[int, float, float]]:
    """Step and loss of both runs: training's and validation's, as far as both went."""
    sides: list[dict[tuple[int, str], float]] = [{}, {}]
    for side, run in zip(sides, (folder, place), strict=True):
        for line in read_jsonl(run / "metrics.jsonl") if (run / "metrics.jsonl").is_file() else ():
            side |= {(line["step"], name): _number(line, name) for name in ("loss", "val_loss") if name in line}
    for step, name in sides[0]:
        if (step, name) in sides[1]:
            yield step, sides[0][step, name], sides[1][step, name]


def _number(line: Mapping[str, Any], name: str) -> float:
    return math.nan if line[name] is None else float(line[name])


def _relative(a: float, b: float) -> float:
    """Relative difference; 0 for two that are no numbers, infinite for one of them."""
    if math.isnan(a) or math.isnan(b):
        return 0.0 if math.isnan(a) and math.isnan(b) else math.inf
    return abs(a - b) / max(abs(a), abs(b), 1e-12)
