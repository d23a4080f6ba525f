"""Data sets as prepare leaves them, without preparing them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tuneloop.core.files import content_hash, sha256_file, write_json, write_jsonl
from tuneloop.data.config import PrepareConfig
from tuneloop.data.dataset import dataset_hash, label_counts, token_statistics
from tuneloop.records.rows import Message, Row

Splits = dict[str, list[Row]]


def row(text: str, label: str = "late", line: int = 1, system: str = "Classify.", **meta: Any) -> Row:
    turns: list[Message] = [
        {"role": "system", "content": system},
        {"role": "user", "content": text},
        {"role": "assistant", "content": label},
    ]
    return Row(content_hash([turns, label])[:16], turns, label, meta={"source": "in.jsonl", "line": line, **meta})


def tickets(n: int, start: int = 0) -> list[Row]:
    return [row(f"Where is parcel {i} to street {i * 7 % 13}?", ["late", "lost"][i % 2], i) for i in range(start, start + n)]  # fmt: skip


def write_dataset(
    folder: Path, splits: Splits, rejects: list[Any] | None = None, repairs: list[Any] | None = None, **manifest: Any
) -> Path:
    """A data set as prepare leaves it."""
    config = PrepareConfig(**manifest.pop("config", {"sources": ["in.jsonl"]}))
    splits = {split: splits.get(split, []) for split in ("train", "val", "test")}
    rejects, repairs = rejects or [], repairs or []
    hash_ = dataset_hash(splits, config, 0, manifest.get("mix"))
    about = {}
    for split, rows in splits.items():
        write_jsonl(folder / f"{split}.jsonl", rows)
        about[split] = {"path": f"{split}.jsonl", "rows": len(rows), "sha256": sha256_file(folder / f"{split}.jsonl"),
                        "tokens": token_statistics([10] * len(rows), len(rows)), "labels": label_counts(rows)}  # fmt: skip
    write_jsonl(folder / "rejects.jsonl", rejects)
    write_jsonl(folder / "repairs.jsonl", repairs)
    sizes = {split: len(rows) for split, rows in splits.items()}
    reasons: dict[str, int] = {}
    for reject in rejects:
        reasons[reject["reason"]] = reasons.get(reject["reason"], 0) + 1
    kept = sum(sizes.values())
    write_json(
        folder / "dataset.json",
        {"version": 1, "id": f"job-{hash_[:12]}", "name": "job", "hash": hash_, "key": "k", "task": "classification", "seed": 0,
         "model": "m", "sources": [{"path": "in.jsonl", "sha256": "0", "rows": kept + len(rejects)}],
         "config": config.model_dump(mode="json"), "splits": about, "rejected": reasons, "repaired": {},
         "counts": {"read": kept + len(rejects), "kept": kept, "rejected": len(rejects), **sizes},
         "checks": [{"name": "old", "level": "ok", "message": "", "rows": 0, "examples": ["Anna Berg"]}], **manifest},
    )  # fmt: skip
    return folder
