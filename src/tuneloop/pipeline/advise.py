"""Advice and its data: what `advise` reads, measures and keeps in `evals/advise-NAME`, for `plan` and `run` too.

The folder holds `dataset/` (of a raw source), `baselines/` (with `--measure`) and the answer, `advise.json`. Large
sources are counted by a sample, in seconds instead of minutes: chunks are taken evenly over them, `SAMPLE` to twice as
many bytes, and prepared; counts are scaled by the bytes.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from tuneloop.advice import (
    Advice,
    BaselineResults,
    advise,
    by_hand,
    combined_facts,
    facts_from_results,
    holds_results,
    make_question,
)
from tuneloop.core.errors import UserError
from tuneloop.core.files import lock_folder, sha256_file
from tuneloop.core.ui import busy, progress, say
from tuneloop.core.units import counted
from tuneloop.data import load_dataset, prepare_key
from tuneloop.data.sources import Chunk, SourceFile, SourceRecord, chunks_of, entry_of, find_files, parse_chunk
from tuneloop.models.files import PACKAGED, is_local
from tuneloop.pipeline.baselines import baseline_stage, with_best_prompt
from tuneloop.pipeline.context import RunContext, default_folder, training_began
from tuneloop.pipeline.prepare import measure_with, prepare_stage
from tuneloop.recipe import Recipe, plan_settings, recipe_of, refuse_missing_source
from tuneloop.records.advice import AdviceRecord
from tuneloop.records.dataset import MANIFEST, DatasetManifest, SplitFile, Splits, read_manifest
from tuneloop.records.record import done_record, read_record, write_record
from tuneloop.records.rows import Dataset

LARGE = 8 << 20  # bytes of sources from which a sample is counted
SAMPLE = 1 << 20  # bytes
CHUNK = 1 << 15  # bytes: small, so that there are many
Z95 = 1.96


def is_large(recipe: Recipe) -> bool:
    """Whether a recipe's sources are counted by a sample: large ones that nothing else describes or limits."""
    if recipe.data.limit is not None or recipe.data.mix.sources or recipe.data.split.freeze is not None:
        return False
    files = find_files(recipe.data.sources, recipe.data.max_expansion)
    return sum(os.path.getsize(file.path) for file in files) > LARGE and not any(map(entry_of, files))


@dataclass
class _Sample:
    """Chunks at even distances, and the bytes of all of them; when they become too many, every second one goes."""

    chunks: list[Chunk] = field(default_factory=list)
    every: int = 1
    seen: int = 0
    total: int = 0

    def add(self, chunk: Chunk) -> None:
        self.total += _size(chunk)
        if self.seen % self.every == 0:
            self.chunks.append(chunk)
            if self.size > 2 * SAMPLE and len(self.chunks) > 2:
                self.chunks, self.every = self.chunks[::2], 2 * self.every
        self.seen += 1

    @property
    def size(self) -> int:
        return sum(map(_size, self.chunks))


def _size(chunk: Chunk) -> int:
    return len(chunk.data) or sum(len(item[1]) for item in chunk.items if isinstance(item, tuple) and len(item) == 2)


def _drawn(files: Sequence[SourceFile]) -> _Sample:
    size, before, sample = sum(os.path.getsize(file.path) for file in files), 0, _Sample()
    for file in files:
        for chunk in chunks_of(file, CHUNK):
            sample.add(chunk)
            progress("taking a sample", min(before + chunk.position, size), size)
        before += os.path.getsize(file.path)
    progress("taking a sample", size, size)
    return sample


@contextmanager
def sampled_data(recipe: Recipe) -> Iterator[tuple[Dataset, str]]:
    """A recipe's sources prepared in part, its counts scaled to all of them; and how these came about, in words.

    The folder is a temporary one, for the context: a sample is no data set to train on.
    """
    from tuneloop.data import prepare_dataset

    job = RunContext(recipe, Path())
    sample = _drawn(find_files(recipe.data.sources, recipe.data.max_expansion))
    with tempfile.TemporaryDirectory() as scratch:
        file, chunk_of_line = Path(scratch) / "sample.jsonl", []
        with file.open("wb") as lines:
            for number, chunk in enumerate(sample.chunks):
                for item in parse_chunk(chunk):
                    if isinstance(item, SourceRecord):
                        lines.write(orjson.dumps(item.value, default=str) + b"\n")
                        chunk_of_line.append(number)
        config = recipe.data.model_copy(update={"sources": [str(file)]})
        out, measure = Path(scratch) / "dataset", measure_with(job.template)
        dataset = prepare_dataset(
            config, name=recipe.name, seed=recipe.seed, out=out, measure=measure, model=job.fingerprint
        )
        error = _error(dataset, chunk_of_line, sample)
        scaled = _scaled(dataset.manifest, sample.total / max(sample.size, 1))
        write_record(out / MANIFEST, scaled)
        train = scaled.splits.train
        tokens = train.tokens.total if train.tokens else 0
        sample_note = (
            f"counted on a sample of {counted(len(chunk_of_line), 'record')} "
            f"({sample.size / 1e6:.1f} of {sample.total / 1e6:.0f} MB): "
            f"about {counted(train.rows, 'training row')}, {tokens:,} tokens, within {error:.0%} (95 %); "
            "copies were looked for in the sample alone"
        )
        say(f"data      {sample_note}")
        yield replace(dataset, manifest=scaled), sample_note


def _scaled(manifest: DatasetManifest, factor: float) -> DatasetManifest:
    """A manifest with the rows and tokens of its splits times a factor."""

    def scaled(split: SplitFile) -> SplitFile:
        changes: dict[str, Any] = {"rows": round(split.rows * factor)}
        if tokens := split.tokens:
            counts = {"total": round(tokens.total * factor), "supervised": round(tokens.supervised * factor)}
            changes["tokens"] = tokens.model_copy(update=counts)
        return split.model_copy(update=changes)

    splits = {name: scaled(split) for name, split in manifest.splits.by_name.items()}
    return manifest.model_copy(update={"splits": Splits(**splits)})


def _error(dataset: Dataset, chunk_of_line: Sequence[int], sample: _Sample) -> float:
    """Half the 95 % interval of the training rows' characters, relative to them; tokens follow these.

    The chunks are clusters, with a ratio to their bytes (Cochran 1977, Sampling Techniques, 6.3).
    """
    characters = [0.0] * len(sample.chunks)
    for row in dataset.train:
        texts = [str(message.get(key) or "") for message in row.messages for key in ("content", "tool_calls")]
        characters[chunk_of_line[int(row.meta["line"]) - 1]] += sum(map(len, texts))
    sizes, n = [_size(chunk) for chunk in sample.chunks], len(sample.chunks)
    total = sum(characters)
    if n < 2 or not total:
        return 1.0
    ratio = total / sum(sizes)
    squares = sum((length - ratio * size) ** 2 for length, size in zip(characters, sizes, strict=True))
    return Z95 * math.sqrt(squares * n / (n - 1)) / total


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
        with sampled_data(recipe) as (dataset, sample_note):
            yield Counted(dataset.path, "", sample_note)
    else:
        dataset = read_data(recipe, out)
        yield Counted(dataset.path, dataset.manifest.hash)


def _prepared_before(recipe: Recipe, out: str) -> Path | None:
    """Where `run`, `prepare` or `advise` have prepared these data."""
    if _is_prepared(recipe):
        return None
    fingerprint = RunContext(recipe, Path()).fingerprint
    key = prepare_key(recipe.data, name=recipe.name, seed=recipe.seed, model_fingerprint=fingerprint)
    folders = [folder / "dataset" for folder in (default_folder(recipe), advice_folder(recipe, out))]
    places = [Path("datasets") / recipe.name, *folders]
    return next((path for path in places if done_record(DatasetManifest, path, key)), None)


def _is_prepared(recipe: Recipe) -> bool:
    sources = recipe.data.sources
    return len(sources) == 1 and (Path(sources[0]) / MANIFEST).is_file()


# --- the answer, kept and remembered -----------------------------------------------------------------


def hashes_of_sources(recipe: Recipe) -> list[str]:
    """SHA-256 of each file of a recipe's data, as a manifest's `sources` have it."""
    return [sha256_file(file.path) for file in find_files(recipe.data.sources, recipe.data.max_expansion)]


def keep_advice(folder: Path, dataset_hash: str, advice: AdviceRecord, sources: Sequence[str] = ()) -> None:
    """Write `advise.json`: the answer as `--json` prints it, with the hash of its data, or of a sample's `sources`.

    A folder that can't be written to is passed over: the answer is on the screen.
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


# --- from what the user names to advice --------------------------------------------------------------


@dataclass
class _SourceFacts:
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
    source_facts = _from_source(source, metric, stated, settings, measure, out)
    facts = source_facts.facts | (facts_from_results(evaluation, metric) if evaluation else {})
    if {"rows", "tokens_per_row"} & set(stated):
        facts.pop("lengths", None)  # they are of the data's own rows
    if stated_results := _stated_results(stated):
        if facts.get("measured"):
            step = "leave out --zero-shot, --few-shot and --classifier, or the evaluation"
            raise UserError("Measured results are given twice", where="advise", next_step=step)
        facts["measured"] = stated_results
    advice = advise(make_question({**facts, **stated}))
    if source_facts.folder:
        keep_advice(source_facts.folder, source_facts.dataset_hash, advice.record(), source_facts.source_hashes)
    return advice


def _from_source(
    source: str, metric: str, stated: Mapping[str, Any], settings: Sequence[str], measure: bool, out: str
) -> _SourceFacts:
    """Facts from results, a prepared data set, or data that are read as `run` would read them."""
    if not source:
        if measure:
            raise UserError("Measure on what?", where="--measure", next_step="tuneloop advise DATA --measure")
        if settings:
            step = "settings belong to --measure and to data that are still to be prepared; give facts as flags"
            raise UserError(f"{settings[0]} sets nothing here", where="advise", next_step=step)
        return _SourceFacts({})
    if holds_results(source) and not measure:
        return _SourceFacts({**facts_from_results(source, metric), "source": source})
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
        return _SourceFacts(facts | facts_from_results(source), folder, read_manifest(prepared).hash)
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
    return _SourceFacts(facts, folder, counted.hash, hashes_of_sources(recipe) if counted.sample else [])


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
            job.recipe = with_best_prompt(job, recipe, dataset)
            measured = baseline_stage(job, dataset)
    if not measured:
        message = "Nothing can be measured: the data set has no test rows, or all baselines are switched off"
        raise UserError(message, where=dataset.path, next_step="prepare it with split.test above 0")
    return dataset
