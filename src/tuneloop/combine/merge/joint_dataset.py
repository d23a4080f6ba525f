"""Several prepared data sets as one: each row once, with the name of its task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from tuneloop.core.files import content_hash, sha256_file, write_jsonl
from tuneloop.data.config import PrepareConfig
from tuneloop.records.dataset import MANIFEST, Counts, DatasetManifest, Format, SplitFile, Splits
from tuneloop.records.record import write_record
from tuneloop.records.rows import Dataset, Row

SPLITS = ("train", "val", "test")


def pool(datasets: Mapping[str, Dataset], out: Path, name: str = "pooled") -> Dataset:
    """Write the rows of several data sets as one.

    A row that stands in several of them is kept once. One that stands in the test split of any data set is left out of
    training and validation, so that the pooled rows give no test row away. Labels are those of all data sets, where all
    are classifications; otherwise the answers are texts.

    Args:
        datasets: by the name of their task, which each row has as `meta.task`.
        out: folder of the data set.
        name: of the data set.
    """
    from tuneloop.data.dataset import dataset_hash, label_counts, load_dataset

    tasks = {dataset.task for dataset in datasets.values()}
    task = tasks.pop() if len(tasks) == 1 else "generation"
    splits, taken = {}, set[str]()
    for split in reversed(SPLITS):  # what is tested on first
        rows: list[Row] = []
        for of, dataset in datasets.items():
            for row in getattr(dataset, split):
                if row.id not in taken:
                    taken.add(row.id)
                    kept = row if task == "classification" else replace(row, label=None)
                    rows.append(replace(kept, meta={**row.meta, "task": of}))
        splits[split] = sorted(rows, key=lambda row: content_hash([row.id, "order"])) if split == "train" else rows
    about = {}
    for split in SPLITS:
        file = out / f"{split}.jsonl"
        write_jsonl(file, splits[split])
        counts = label_counts(splits[split]) if task == "classification" else None
        about[split] = SplitFile(path=file.name, rows=len(splits[split]), sha256=sha256_file(file), labels=counts)
    longest = [length for dataset in datasets.values() if (length := dataset.manifest.max_length)]
    more = {"max_length": max(longest)} if longest else {}
    config = PrepareConfig(sources=[dataset.path for dataset in datasets.values()], **more)
    hash_ = dataset_hash(splits, config, 0)
    total = sum(map(len, splits.values()))
    manifest = DatasetManifest(
        id=f"{name}-{hash_[:12]}",
        hash=hash_,
        name=name,
        task=task,
        labels=_labels(datasets) if task == "classification" else None,
        format=Format(name="messages", columns={"turns": "messages"}),
        config=config.model_dump(mode="json"),
        counts=Counts(read=total, kept=total, rejected=0, **{split: len(rows) for split, rows in splits.items()}),
        rejected={},
        splits=Splits(**about),
    )
    write_record(out / MANIFEST, manifest)
    return load_dataset(out)


def _labels(datasets: Mapping[str, Dataset]) -> list[str]:
    return sorted({label for dataset in datasets.values() for label in dataset.manifest.labels or []})
