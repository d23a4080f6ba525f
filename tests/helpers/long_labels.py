"""Data sets whose labels are wider than any table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tuneloop.core.files import sha256_file, write_json, write_jsonl
from tuneloop.data.config import PrepareConfig
from tuneloop.data.dataset import dataset_hash, label_counts, token_statistics
from tuneloop.records.dataset import Check
from tuneloop.records.rows import Dataset, Row

LONG = "a_label_with_a_name_that_is_much_longer_than_any_column_of_a_table_should_be"


Status = tuple[int, str, str]


Tuneloop = Callable[..., Status]


def rows(n: int, start: int = 0, label: str = LONG) -> list[Row]:
    return [
        Row(
            f"{len(label):02x}{i:014x}",
            [
                {"role": "user", "content": f"Where is parcel {i}, {'which I have been waiting for ' * 4}?"},
                {"role": "assistant", "content": label},
            ],
            label,
            meta={"source": "some/long/folder/of/a/team/with/exports/from_the_ticket_system.jsonl", "line": i, "user": f"u{i}"},
        )
        for i in range(start, start + n)
    ]  # fmt: skip


def write_dataset(folder: Path, **splits: list[Row]) -> Path:
    config = PrepareConfig(sources=["in.jsonl"])
    splits = {split: splits.get(split, []) for split in ("train", "val", "test")}
    hash_ = dataset_hash(splits, config, 0)
    about = {}
    for split, some in splits.items():
        write_jsonl(folder / f"{split}.jsonl", some)
        about[split] = {"path": f"{split}.jsonl", "rows": len(some), "sha256": sha256_file(folder / f"{split}.jsonl"),
                        "tokens": token_statistics([9] * len(some), 1), "labels": label_counts(some)}  # fmt: skip
    write_jsonl(folder / "rejects.jsonl", [])
    write_jsonl(folder / "repairs.jsonl", [])
    sizes = {split: len(some) for split, some in splits.items()}
    kept = sum(sizes.values())
    write_json(
        folder / "dataset.json",
        {"version": 1, "id": f"tickets-{hash_[:12]}", "name": "tickets", "hash": hash_, "task": "classification", "seed": 0,
         "sources": [], "config": config.model_dump(mode="json"), "splits": about, "rejected": {}, "repaired": {}, "checks": [],
         "counts": {"read": kept, "kept": kept, "rejected": 0, **sizes}},
    )  # fmt: skip
    return folder


def some_checks(dataset: Dataset, *, against: Any = None) -> list[Check]:
    found: list[dict[str, Any]] = [
        {"name": "enough_rows", "level": "ok", "message": "fine", "rows": 3, "remedy": "nothing to do", "examples": []},
        {"name": "duplicates", "level": "warn", "message": f"{LONG} and " * 3, "rows": 3, "remedy": "drop them", "examples": []},
    ]  # fmt: skip
    if against is not None:
        message = f"{len(against)} rows: {against[0].messages[0]['content']}"
        found.append({"name": "drift", "level": "error", "message": message, "rows": 1, "remedy": "get more", "examples": []})  # fmt: skip
    return [Check(**match) for match in found]


def fits(out: str) -> bool:
    return all(len(line) <= 80 for line in out.splitlines())
