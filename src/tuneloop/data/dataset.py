"""A data set on disk: the splits, and `dataset.json`, which is written last and makes the folder complete."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tuneloop.data.config import PrepareConfig
from tuneloop.data.read import find_files
from tuneloop.data.split import SPLITS
from tuneloop.files import content_hash, read_json, read_jsonl, sha256_file
from tuneloop.types import Dataset, Row, UserError

MANIFEST = "dataset.json"


def prepare_key(config: PrepareConfig, *, name: str, seed: int, model_fingerprint: str = "") -> str:
    """Hash of all that a prepared data set depends on; equal to the manifest's `key` when it need not be redone.

    Args:
        config: as given to `prepare`; the sources' contents count, not their paths' meaning.
        name: name of the data set.
        seed: seed of the split.
        model_fingerprint: what identifies the tokenizer and template that rows are measured with.

    Raises:
        UserError: a source is missing or of an unsupported kind.
    """
    sources = [[file.name, sha256_of_source(file.path)] for file in find_files(config.sources)]
    return content_hash(
        {
            "version": 1,
            "config": config.model_dump(mode="json"),
            "name": name,
            "seed": seed,
            "model": model_fingerprint,
            "sources": sources,
        }
    )


def sha256_of_source(path: Path) -> str:
    """Hex SHA-256 of a source file.

    Raises:
        UserError: it can't be read.
    """
    try:
        return sha256_file(path)
    except OSError as error:
        raise UserError(
            f"Can't read the file: {error.strerror or error}", where=str(path), next_step="check the file's permissions"
        ) from None


def dataset_hash(splits: Mapping[str, Sequence[Row]], config: PrepareConfig, seed: int) -> str:
    """Hash of what the splits hold and of the configuration; where the sources lie does not count."""
    rows = {
        split: [[row.id, row.label, {k: v for k, v in row.meta.items() if k not in ("source", "line")}] for row in rows]
        for split, rows in splits.items()
    }
    return content_hash({"splits": rows, "config": config.model_dump(mode="json", exclude={"sources"}), "seed": seed})


def token_statistics(tokens: Sequence[int], supervised: int) -> dict[str, Any]:
    """Total, supervised (trained on), min, p50, p90 (nearest rank), max and mean of tokens a row."""
    if not tokens:
        return {"total": 0, "supervised": 0, "min": 0, "p50": 0, "p90": 0, "max": 0, "mean": 0.0}
    ordered, n = sorted(tokens), len(tokens)
    return {
        "total": sum(ordered),
        "supervised": supervised,
        "min": ordered[0],
        "p50": ordered[(n * 50 + 99) // 100 - 1],
        "p90": ordered[(n * 90 + 99) // 100 - 1],
        "max": ordered[-1],
        "mean": round(sum(ordered) / n, 2),
    }


def label_counts(rows: Sequence[Row]) -> dict[str, int]:
    """Rows of each label, by name."""
    return dict(sorted(Counter(row.label for row in rows if row.label is not None).items()))


def load_dataset(path: Path | str, *, verify: bool = True) -> Dataset:
    """Read a prepared data set.

    Args:
        path: its folder or its `dataset.json`.
        verify: check every split against the hash in the manifest.

    Raises:
        UserError: it is missing, incomplete, damaged, or was changed after it was written.
    """
    folder = Path(path)
    if folder.name == MANIFEST:
        folder = folder.parent
    if not (folder / MANIFEST).is_file():
        raise UserError(
            "No complete data set here",
            where=str(folder),
            next_step=f"`tuneloop prepare` writes {MANIFEST} when it is done",
        )
    again = "run `tuneloop prepare` again"
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("version") != 1 or not isinstance(manifest.get("splits"), dict):
        raise UserError("Not a data set of this version", where=str(folder / MANIFEST), next_step=again)
    splits: dict[str, list[Row]] = {}
    for split in SPLITS:
        about = manifest["splits"].get(split, {})
        file = folder / str(about.get("path", f"{split}.jsonl"))
        if not file.is_file():
            raise UserError("A split of the data set is missing", where=str(file), next_step=again)
        if verify and sha256_of_source(file) != about.get("sha256"):
            raise UserError("The split was changed after it was prepared", where=str(file), next_step=again)
        try:
            splits[split] = [Row.from_json(record) for record in read_jsonl(file)]
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UserError("The split holds a record that is no row", where=str(file), next_step=again) from None
    return Dataset(str(folder), manifest, splits["train"], splits["val"], splits["test"])
