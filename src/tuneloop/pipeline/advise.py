"""Advice and its data: what `advise` reads, measures and keeps in `evals/advise-NAME`, and what `plan` and `run` find there.

The folder holds `dataset/` (where the source had to be prepared), `baselines/` (with `--measure`) and `advise.json`, the answer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tuneloop.advise.advise import Advice, advise, make_question
from tuneloop.advise.measured import BaselineResults, by_hand, combined_facts, facts_from_results, holds_results
from tuneloop.core.errors import UserError
from tuneloop.core.files import lock_folder
from tuneloop.core.ui import busy, say
from tuneloop.data.dataset import load_dataset, prepare_key, sha256_of_source
from tuneloop.data.sources.read import find_files
from tuneloop.models.names import PACKAGED, is_local
from tuneloop.pipeline.baselines import baseline_stage
from tuneloop.pipeline.context import RunContext, default_folder, find_done, training_began
from tuneloop.pipeline.prepare import prepare_stage
from tuneloop.pipeline.recipes import plan_settings, recipe_of, refuse_missing_source
from tuneloop.pipeline.source_sample import is_large, sampled_data
from tuneloop.recipe import Recipe
from tuneloop.records.advice import AdviceRecord
from tuneloop.records.dataset import read_manifest
from tuneloop.records.record import read_record, write_record
from tuneloop.records.rows import Dataset


def advice_folder(recipe: Recipe, out: str = "") -> Path:
    """Where advice about a recipe's data is kept: `out`, or `evals/advise-NAME`."""
    return Path(out) if out else Path("evals") / f"advise-{recipe.name}"


def stand_in(model: str) -> str:
    """The model that stands in for one whose files are not on this machine; "" where they are."""
    return "" if is_local(model) else PACKAGED


def read_data(recipe: Recipe, out: str) -> Dataset:
    """The recipe's data as `run` would prepare them: as they are where they are prepared, else kept in the advice's folder."""
    folder = advice_folder(recipe, out)

    def waiting(holder: str) -> None:
        say(f"waiting   another tuneloop process ({holder}) is at work on these data in {folder}")

    with lock_folder(folder, waiting=waiting):
        return prepare_stage(RunContext(recipe, folder))


@dataclass(frozen=True)
class Counted:
    """Data that were counted.

    Args:
        path: a folder whose `dataset.json` has the counts; of a sample a temporary one.
        hash: of the data set; "" of a sample.
        sample: how a sample was counted, in words; "" where all rows were.
    """

    path: str
    hash: str
    sample: str = ""


@contextmanager
def counted_data(recipe: Recipe, out: str = "") -> Iterator[Counted]:
    """The recipe's data, to be counted: as they have been prepared before; large ones by a sample; else as `read_data` prepares and keeps them."""
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
    key = prepare_key(
        recipe.data, name=recipe.name, seed=recipe.seed, model_fingerprint=RunContext(recipe, Path()).fingerprint
    )
    places = (
        Path("datasets") / recipe.name,
        default_folder(recipe) / "dataset",
        advice_folder(recipe, out) / "dataset",
    )
    return next((place for place in places if find_done(place / "dataset.json", key)), None)


def _is_prepared(recipe: Recipe) -> bool:
    sources = recipe.data.sources
    return len(sources) == 1 and (Path(sources[0]) / "dataset.json").is_file()


# --- the answer, kept and remembered -----------------------------------------------------------------


def hashes_of_sources(recipe: Recipe) -> list[str]:
    """SHA-256 of each file of a recipe's data, as a manifest's `sources` have it."""
    return [sha256_of_source(file.path) for file in find_files(recipe.data.sources, recipe.data.max_expansion)]


def keep_advice(folder: Path, dataset_hash: str, advice: AdviceRecord, sources: Sequence[str] = ()) -> None:
    """Write `advise.json`: the answer as `--json` prints it, with the hash of the data that it is about.

    Args:
        sources: hashes of the files, where only a sample of them was prepared.

    A folder that can't be written to is passed over: the answer stands on the screen.
    """
    with contextlib.suppress(UserError, OSError):
        about = advice.model_copy(update={"dataset_hash": dataset_hash, "source_hashes": list(sources)})
        write_record(folder / AdviceRecord.file, about)


def remind(job: RunContext, dataset: Dataset) -> None:
    """Say once, before anything is trained, that the advice about these data was not to."""
    if training_began(job):
        return
    for file in sorted(Path("evals").glob(f"advise-*/{AdviceRecord.file}")):
        try:
            advice = read_record(AdviceRecord, file)
        except UserError:
            continue
        if _is_about(advice, dataset) and advice.answer == "dont":
            say(f"advise    said about these data: {advice.headline}")
            say(f"          ({file}) The run goes on all the same.")
            return


def _is_about(advice: AdviceRecord, dataset: Dataset) -> bool:
    files = [source.sha256 for source in dataset.manifest.sources]
    return advice.dataset_hash == dataset.manifest.hash or bool(files and advice.source_hashes == files)


# --- from what the user names to advice --------------------------------------------------------------


@dataclass
class _Known:
    """Facts from the source, and where advice on it is kept; no folder: nowhere."""

    facts: dict[str, Any]
    folder: Path | None = None
    dataset_hash: str = ""
    source_hashes: Sequence[str] = ()  # of the files, where a sample was counted


def advise_on(
    source: str, stated: Mapping[str, Any], settings: Sequence[str] = (), *, measure: bool = False, out: str = ""
) -> Advice:
    """Advice on what the source holds and the user states; kept in the source's folder.

    Args:
        source: a file of examples, a prepared data set, a recipe, a run, an evaluation; "" for none.
        stated: fields of `AdviseOptions` that the user knows; they come before what the source says.
        settings: a recipe's `key=value`, for data that are still to be prepared or measured.
        measure: ask the base model and cheap classifiers on the test rows first.
        out: folder of the advice; default: `evals/advise-NAME`.

    Raises:
        UserError: no such source, facts that can't be, settings that set nothing.
    """
    stated = dict(stated)
    evaluation, metric = stated.pop("evaluation", ""), stated.pop("metric", "")
    if combined := stated.pop("combined", ""):
        stated["combined"] = combined_facts([part.strip() for part in combined.split(",") if part.strip()])
    known = _from_source(source, metric, stated, settings, measure, out)
    facts = known.facts | (facts_from_results(evaluation, metric) if evaluation else {})
    if {"rows", "tokens_per_row"} & set(stated):
        facts.pop("lengths", None)  # they are of the data's own rows
    if stated_results := _stated_results(stated):
        if facts.get("measured"):
            step = "leave out --zero-shot, --few-shot and --classifier, or the evaluation"
            raise UserError("Measured results are given twice", where="advise", next_step=step)
        facts["measured"] = stated_results
    advice = advise(make_question({**facts, **stated}))
    if known.folder:
        keep_advice(known.folder, known.dataset_hash, advice.record(), known.source_hashes)
    return advice


def _from_source(
    source: str, metric: str, stated: Mapping[str, Any], settings: Sequence[str], measure: bool, out: str
) -> _Known:
    """Facts from results, a prepared data set, or data that are read as `run` would read them."""
    if not source:
        if measure:
            raise UserError("Measure on what?", where="--measure", next_step="tuneloop advise DATA --measure")
        if settings:
            step = "settings belong to --measure and to data that are still to be prepared; give facts as flags"
            raise UserError(f"{settings[0]} sets nothing here", where="advise", next_step=step)
        return _Known({})
    if holds_results(source) and not measure:
        return _Known({**facts_from_results(source, metric), "source": source})
    refuse_missing_source(source)
    recipe = recipe_of(source, list(settings), model=str(stated.get("model", "")))
    from_recipe = measure or source.endswith((".yaml", ".yml"))
    model = str(stated.get("model") or (recipe.model if from_recipe else "llama-3.1-8b"))
    other = stand_in(model)
    recipe = recipe.model_copy(update={"model": other or model})
    plan = plan_settings(recipe)
    facts = {"model": model, "source": source, "epochs": plan.pop("epochs", recipe.train.epochs), "settings": plan}
    plan.pop("method", None)  # the question itself
    folder = advice_folder(recipe, out)
    prepared = Path(source) / "dataset.json"
    if prepared.is_file() and not measure:
        return _Known(facts | facts_from_results(source), folder, read_manifest(prepared).hash)
    if measure:
        if other:
            say(f"stand-in  {model} is not on this machine: {other}, a small model, is measured in its place.")
            say(f"          What its prompts fall short of, {model} may still reach; what classifiers reach holds.")
            say(f"          To measure {model} itself: download it, then --model FOLDER.")
        dataset = _measure(recipe, folder)
        counted = Counted(dataset.path, dataset.manifest.hash)
        facts |= facts_from_results(dataset.path) | facts_from_results(folder, metric)
        facts["measured"] = replace(facts["measured"], stand_in=other)
    else:
        with counted_data(recipe, out) as counted:
            facts |= facts_from_results(counted.path)
    notes = [f"tokens are counted as {other} reads them: {model} is not on this machine"] if other else []
    facts["notes"] = (*notes, *([counted.sample] if counted.sample else []))
    return _Known(facts, folder, counted.hash, hashes_of_sources(recipe) if counted.sample else [])


def _stated_results(stated: dict[str, Any]) -> BaselineResults | None:
    """What people measured themselves, taken out of the facts; None where nothing is given."""
    test_rows = stated.pop("test_rows", None)
    names = {"zero_shot": "zero-shot", "few_shot": "few-shot", "classifier": "your classifier"}
    values = {name: stated.pop(key) for key, name in names.items() if key in stated}
    for name, value in values.items():
        if not 0 <= value <= 1:
            step = "write 80 % as 0.8"
            raise UserError(f"{name} is {value}; it is a share from 0 to 1", where="advise", next_step=step)
    if test_rows is not None and not 1 <= test_rows <= 10**9:
        step = "give the rows measured on, 1 or more"
        raise UserError(f"test rows are {test_rows}", where="--test-rows", next_step=step)
    return by_hand(values, test_rows) if values else None


def _measure(recipe: Recipe, folder: Path) -> Dataset:
    """Prepare where needed and measure the base model and the cheap alternatives; nothing is trained.

    Raises:
        UserError: there are no test rows.
    """
    job = RunContext(recipe, folder)
    with lock_folder(folder):
        with busy("preparing the data"):
            dataset = prepare_stage(job)
        with busy("measuring the baselines"):
            measured = baseline_stage(job, dataset)
        if not measured:
            raise UserError(
                "Nothing can be measured: the data set has no test rows, or all baselines are switched off",
                where=dataset.path,
                next_step="prepare it with split.test above 0",
            )
    return dataset
