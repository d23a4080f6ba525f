"""Manifests of data sets for tests: whole ones, of which a test says what matters to it."""

from __future__ import annotations

from typing import Any

from tuneloop.records.dataset import DatasetManifest

TOKENS = {"total": 900, "supervised": 90, "min": 9, "p50": 30, "p90": 60, "max": 90, "mean": 31.0}
SIZES = ("train", "val", "test")


def manifest_json(**given: Any) -> dict[str, Any]:
    """What `dataset.json` holds: `given` over that of an empty data set."""
    splits = {name: {"path": f"{name}.jsonl", "rows": 0, "sha256": ""} for name in SIZES}
    counts = {"read": 0, "kept": 0, "rejected": 0}
    whole = {
        "version": 1, "id": "d-0", "hash": "0", "name": "d", "seed": 0, "task": "generation", "config": {}, "rejected": {},
    }  # fmt: skip
    for name, split in given.pop("splits", {}).items():
        splits[name] |= split
    return {**whole, "splits": splits, "counts": counts | given.pop("counts", {}), **given}


def manifest_of(**given: Any) -> DatasetManifest:
    """`manifest_json` as the record."""
    return DatasetManifest.model_validate(manifest_json(**given))
