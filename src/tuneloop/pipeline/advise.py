"""Advice and its data: what `advise` reads, measures and keeps in `evals/advise-NAME`, for `plan` and `run` too.

The folder holds `dataset/` (of a raw source), `baselines/` (with `--measure`) and the answer, `advise.json`.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tuneloop.core.errors import UserError
from tuneloop.core.files import lock_folder
from tuneloop.core.ui import say
from tuneloop.data.dataset import load_dataset, prepare_key, sha256_of_source
from tuneloop.data.sources.read import find_files
from tuneloop.models.names import PACKAGED, is_local
from tuneloop.pipeline.context import RunContext, default_folder, find_done, training_began
from tuneloop.pipeline.prepare import prepare_stage
from tuneloop.pipeline.source_sample import is_large, sampled_data
from tuneloop.recipe import Recipe
from tuneloop.records.advice import AdviceRecord
from tuneloop.records.dataset import MANIFEST
from tuneloop.records.record import read_record, write_record
from tuneloop.records.rows import Dataset


def advice_folder(recipe: Recipe, out: str = "") -> Path:
    """Where advice about a recipe's data is kept: `out`, or `evals/advise-NAME`."""
    return Path(out) if out else Path("evals") / f"advise-{recipe.name}"


def stand_in(model: str) -> str:
    """The model that takes the place of one whose files are not on this machine; "" where they are."""
    return "" if is_local(model) else PACKAGED


def read_data(recipe: Recipe, out: str) -> Dataset:
    """The recipe's data as `run` would prepare them; kept in the advice's folder unless they were prepared before."""
    folder = advice_folder(recipe, out)

    def waiting(holder: str) -> None:
        say(f"waiting   another tuneloop process ({holder}) is at work on these data in {folder}")

    with lock_folder(folder, waiting=waiting):
        return prepare_stage(RunContext(recipe, folder))


@dataclass(frozen=True)
class Counted:
    """Data that were counted."""

    path: str  # a folder whose `dataset.json` has the counts; of a sample a temporary one
    hash: str  # of the data set; "" of a sample
    sample: str = ""  # how a sample was counted, in words; "" where all rows were


@contextmanager
def counted_data(recipe: Recipe, out: str = "") -> Iterator[Counted]:
    """The recipe's data, to be counted: as prepared before; large ones by a sample; else as `read_data` has them."""
    if (before := _prepared_before(recipe, out)) is not None:
        say(f"data set {before}, prepared before")
        yield Counted(str(before), load_dataset(before).manifest.hash)
    elif not _is_prepared(recipe) and is_large(recipe):
        with sampled_data(recipe) as (dataset, words):
            yield Counted(dataset.path, "", words)
    else:
        dataset = read_data(recipe, out)
        yield Counted(dataset.path, dataset.manifest.hash)


def _prepared_before(recipe: Recipe, out: str) -> Path | None:
    """Where `run`, `prepare` or `advise` have prepared these data."""
    if _is_prepared(recipe):
        return None
    fingerprint = RunContext(recipe, Path()).fingerprint
    key = prepare_key(recipe.data, name=recipe.name, seed=recipe.seed, model_fingerprint=fingerprint)
    folders = (default_folder(recipe) / "dataset", advice_folder(recipe, out) / "dataset")
    places = (Path("datasets") / recipe.name, *folders)
    return next((place for place in places if find_done(place / MANIFEST, key)), None)


def _is_prepared(recipe: Recipe) -> bool:
    sources = recipe.data.sources
    return len(sources) == 1 and (Path(sources[0]) / MANIFEST).is_file()


# --- the answer, kept and remembered -----------------------------------------------------------------


def hashes_of_sources(recipe: Recipe) -> list[str]:
    """SHA-256 of each file of a recipe's data, as a manifest's `sources` have it."""
    return [sha256_of_source(file.path) for file in find_files(recipe.data.sources, recipe.data.max_expansion)]


def keep_advice(folder: Path, dataset_hash: str, advice: AdviceRecord, sources: Sequence[str] = ()) -> None:
    """Write `advise.json`: the answer as `--json` prints it, with the hash of the data that it is about.

    A folder that can't be written to is passed over: the answer is on the screen.

    Args:
        sources: hashes of the files, where only a sample of them was prepared.
    """
    with contextlib.suppress(UserError, OSError):
        about = advice.model_copy(update={"dataset_hash": dataset_hash, "source_hashes": list(sources)})
        write_record(folder / AdviceRecord.file, about)


def remind(job: RunContext, dataset: Dataset) -> None:
    """Say once, before anything is trained, that the advice about these data was not to."""
    if training_began(job.folder):
        return
    files = [source.sha256 for source in dataset.manifest.sources]
    for file in sorted(Path("evals").glob(f"advise-*/{AdviceRecord.file}")):
        try:
            advice = read_record(AdviceRecord, file)
        except UserError:
            continue
        is_about = advice.dataset_hash == dataset.manifest.hash or bool(files and advice.source_hashes == files)
        if is_about and advice.answer == "dont":
            say(f"advise    about these data: {advice.headline}")
            say(f"          ({file}) The run continues all the same.")
            return


def reuse_baselines(job: RunContext, key: str) -> bool:
    """Take over baselines that `advise --measure` has measured on the same data with the same model and settings.

    Args:
        key: hash of all that they depend on.

    Returns:
        Whether there were any.
    """
    for folder in sorted(Path("evals").glob("advise-*/baselines")):
        if folder.resolve() != (job.folder / "baselines").resolve() and find_done(folder / "baselines.json", key):
            shutil.rmtree(job.folder / "baselines", ignore_errors=True)
            partial = job.folder / "baselines.part"
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(folder, partial)
            partial.rename(job.folder / "baselines")
            say(f"baselines measured before by `tuneloop advise`, taken from {folder}")
            return True
    return False
