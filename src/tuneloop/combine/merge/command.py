"""`tuneloop merge`: adapters of one base as one adapter, in a run's folder."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.combine.merge.adapters import ALONE, Adapter, check_together, open_adapter
from tuneloop.core import device, machine
from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, lock_folder, write_json, write_yaml
from tuneloop.core.ui import busy, quiet, say
from tuneloop.core.units import counted
from tuneloop.data import PrepareConfig, dataset_hash, load_dataset, write_splits
from tuneloop.inference.local import open_local
from tuneloop.models import fingerprint, load_tokenizer
from tuneloop.models.files import resolve
from tuneloop.models.methods import USUAL
from tuneloop.pipeline import RunContext
from tuneloop.pipeline.answers import write_task
from tuneloop.recipe import CONFIG, Recipe, load_recipe, make_recipe
from tuneloop.records.artifact import ARTIFACT
from tuneloop.records.dataset import MANIFEST, Counts, DatasetManifest, SourceFormat, Splits
from tuneloop.records.merge import MergeRecord, MergeSource
from tuneloop.records.record import done_record, write_record
from tuneloop.records.rows import Dataset, Row
from tuneloop.records.run import RUN, RunManifest
from tuneloop.registry import local_name
from tuneloop.release import run_of

if TYPE_CHECKING:
    from tuneloop.combine.merge.adapters import MergeSettings
    from tuneloop.combine.merge.merge import MergedAdapter


@dataclass(frozen=True)
class Expert:
    """An adapter to be merged, with the run that it came from where that is available."""

    name: str  # as the user gave it
    adapter: Adapter  # opened
    base: str  # name of its base model
    run: Path | None  # the folder of its run; None: no one says which rows it was trained for

    @cached_property
    def recipe(self) -> Recipe | None:
        """The recipe of its run."""
        return load_recipe(self.run / CONFIG) if self.run and (self.run / "config.yaml").is_file() else None

    @cached_property
    def dataset(self) -> Dataset | None:
        """The rows that it was trained for, with their splits; None where they are not available."""
        if self.run is None or self.recipe is None:
            return None
        places = [self.run / "dataset", *map(Path, self.recipe.data.sources[:1])]
        return next((load_dataset(folder) for folder in places if (folder / MANIFEST).is_file()), None)


def open_experts(names: Sequence[str], base: str = "") -> list[Expert]:
    """The adapters of these names.

    `names`: runs, artifacts with an adapter, registered versions, folders in PEFT's layout; `base`: of adapters that
    don't name theirs. Raises UserError: one is no LoRA adapter; the way out is named.
    """
    return [_open_expert(name, base) for name in names]


def _open_expert(name: str, base: str) -> Expert:
    target = open_local(local_name(name), base=base)
    if target.trained is None:
        if (Path(name).expanduser() / "adapter_model.safetensors").is_file():
            step = "restore it, or train again"
            raise UserError("The adapter has no adapter_config.json", where=name, next_step=step)
        resolve(target.base)  # refuses a name of nothing
        message = "This is a whole model and no adapter: only LoRA adapters are merged"
        raise UserError(message, where=name, next_step=ALONE)
    adapter = open_adapter(name, target.trained)
    if not adapter.fingerprint:
        adapter = replace(adapter, fingerprint=fingerprint(resolve(target.base)))
    return Expert(name, adapter, target.base, target.run or _run_folder(name))


def _run_folder(name: str) -> Path | None:
    with quiet():
        folder = Path(local_name(name)).expanduser()
    if (folder.parent / RUN).is_file() and folder.name == "adapter":
        return folder.parent
    try:
        return run_of(str(folder)) if (folder / ARTIFACT).is_file() else None
    except UserError:
        return None  # an artifact without its run: it can be merged, but there are no rows to judge it by


def merge_key(experts: Sequence[Expert], settings: MergeSettings) -> str:
    """Hash of all that a merge depends on; the order of the adapters is not in it."""
    weights = settings.weights or (1.0,) * len(experts)
    pairs = sorted(zip((expert.adapter.hash for expert in experts), weights, strict=False))
    fingerprint = experts[0].adapter.fingerprint if experts else ""
    return content_hash([pairs, settings.method, settings.rank, fingerprint, 1])


def merge_runs(experts: Sequence[Expert], settings: MergeSettings, out: Path) -> MergeRecord:
    """Merge adapters into a run's folder that `evaluate`, `predict`, `chat`, `gate` and `export` take.

    `out`: the folder: `adapter/`, `merge.json`, the rows of all tasks in `dataset/` where they are available, and
    `run.json` last. Raises UserError: adapters that don't go together, or a folder that holds another run.
    """
    from tuneloop.combine.merge.merge import base_shapes, merge_adapters

    check_together([expert.adapter for expert in experts])
    key = merge_key(experts, settings)
    earlier = done_record(MergeRecord, out, key)
    if earlier and (out / RUN).is_file():
        say(f"merge     already done: {earlier.method}, rank {earlier.rank}")
        return earlier
    if (out / RUN).is_file() or (out / "checkpoints").is_dir():
        step = "choose another folder with --out, or delete this one"
        raise UserError("This folder holds another run", where=str(out), next_step=step)
    first = experts[0]
    with lock_folder(out):
        with busy("opening the base model"):
            shapes = base_shapes(resolve(first.base))
        names = ("tokenizer.json", "tokenizer_config.json")
        if all((first.adapter.folder / name).is_file() for name in names):
            (out / "adapter").mkdir(parents=True, exist_ok=True)
            for name in names:
                shutil.copyfile(first.adapter.folder / name, out / "adapter" / name)
        else:
            load_tokenizer(first.base).save(out / "adapter")
        adapters = [expert.adapter for expert in experts]
        merged = merge_adapters(adapters, settings, (first.base, shapes), out / "adapter")
        record = _record(experts, settings, merged, key)
        write_record(out / MergeRecord.file, record)
        write_json(out / "environment.json", machine.environment(device.names_in_use()))
        _write_run(experts, merged, key, out)
    for line in record.words:
        say(f"merge     {line}")
    return record


def _record(experts: Sequence[Expert], settings: MergeSettings, merged: MergedAdapter, key: str) -> MergeRecord:
    sources = []
    for expert, weight in zip(experts, settings.weights or (1.0,) * len(experts), strict=True):
        rank = max(map(expert.adapter.rank, expert.adapter.modules))
        rows = {"run": str(expert.run or ""), "dataset": expert.dataset.id if expert.dataset else ""}
        sources.append(MergeSource(name=expert.name, hash=expert.adapter.hash, weight=weight, rank=rank, **rows))
    cut = "nothing was cut off" if merged.lost < 1e-6 else f"cutting to the rank took {merged.lost:.1%} of its length"
    rank_words = f"rank {merged.rank} in {counted(merged.modules, 'module')}; {cut}"
    return MergeRecord(
        key=key,
        model=experts[0].base,
        model_fingerprint=experts[0].adapter.fingerprint,
        method=settings.method,
        rank=merged.rank,
        lost=merged.lost,
        hash=merged.hash,
        sources=sources,
        words=[f"{counted(len(sources), 'adapter')} by {settings.method}: {rank_words}"],
    )


def _write_run(experts: Sequence[Expert], merged: MergedAdapter, key: str, out: Path) -> None:
    """`config.yaml`, the rows, the task, and `run.json` last."""
    dataset, sources = _rows_of(experts, out)
    name = re.sub(r"[^A-Za-z0-9._-]", "-", out.resolve().name).lstrip("._-") or "merged"
    recipe = make_recipe({"name": name, "model": experts[0].base, "track": {"report_to": "none"}})
    like = next((expert.recipe for expert in experts if expert.recipe), recipe)
    data = recipe.data.model_copy(update={"sources": sources})
    recipe = recipe.model_copy(update={"evaluate": like.evaluate, "plan": like.plan, "seed": like.seed, "data": data})
    write_yaml(out / "config.yaml", recipe.model_dump(mode="json"))
    if dataset is not None:
        write_task(RunContext(recipe, out), dataset)
    fields: dict[str, Any] = {
        "id": out.resolve().name, "key": key, "method": USUAL.name, "model": experts[0].base, "stopped": "merged",
        "model_fingerprint": experts[0].adapter.fingerprint, "dataset": dataset.id if dataset else "",
        "trainable_parameters": merged.parameters, "adapter_hash": merged.hash, "adapter": "adapter",
    }  # fmt: skip
    write_record(out / RUN, RunManifest(**fields))


def _rows_of(experts: Sequence[Expert], out: Path) -> tuple[Dataset | None, list[str]]:
    """The rows of all tasks and the folder that holds them; none where a task's rows are not available."""
    datasets = {expert.name: expert.dataset for expert in experts if expert.dataset is not None}
    if len(datasets) < len(experts):
        missing = [expert.name for expert in experts if expert.dataset is None]
        say(f"data      no rows are known for {', '.join(missing)}: evaluate with --dataset FOLDER")
        return None, []
    if len({dataset.manifest.hash for dataset in datasets.values()}) == 1:
        only = next(iter(datasets.values()))
        return only, [str(Path(only.path).resolve())]
    with busy("pooling the rows"):
        pooled = pool(datasets, out / "dataset")
    return pooled, [str((out / "dataset").resolve())]


def pool(datasets: Mapping[str, Dataset], out: Path) -> Dataset:
    """Write the rows of several data sets as one, `pooled`.

    A row of several of them is kept once. A test row of any data set is left out of training and validation. Labels are
    those of all data sets, where all are classifications; otherwise the answers are texts.

    Args:
        datasets: by the name of their task, which each row has as `meta.task`.
    """
    tasks = {dataset.task for dataset in datasets.values()}
    task = tasks.pop() if len(tasks) == 1 else "generation"
    labels = sorted({label for dataset in datasets.values() for label in dataset.manifest.labels or []})
    splits, ids = {}, set[str]()
    for split in ("test", "val", "train"):
        rows: list[Row] = []
        for name, dataset in datasets.items():
            for row in getattr(dataset, split):
                if row.id not in ids:
                    ids.add(row.id)
                    label = row.label if task == "classification" else None
                    rows.append(replace(row, label=label, meta={**row.meta, "task": name}))
        splits[split] = sorted(rows, key=lambda row: content_hash([row.id, "order"])) if split == "train" else rows
    longest = [length for dataset in datasets.values() if (length := dataset.manifest.max_length)]
    more = {"max_length": max(longest)} if longest else {}
    config = PrepareConfig(sources=[dataset.path for dataset in datasets.values()], **more)
    hash_, total = dataset_hash(splits, config, 0), sum(map(len, splits.values()))
    fields: dict[str, Any] = {
        "id": f"pooled-{hash_[:12]}", "hash": hash_, "name": "pooled", "task": task, "rejected": {},
        "labels": labels if task == "classification" else None, "config": config.model_dump(mode="json"),
        "format": SourceFormat(name="messages", columns={"turns": "messages"}),
        "splits": Splits(**write_splits(out, splits, task)),
        "counts": Counts(read=total, kept=total, rejected=0, **{split: len(rows) for split, rows in splits.items()}),
    }  # fmt: skip
    write_record(out / MANIFEST, DatasetManifest(**fields))
    return load_dataset(out)
