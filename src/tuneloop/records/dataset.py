"""`dataset.json`: what a prepared data set says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json

MANIFEST = "dataset.json"
AGAIN = "run `tuneloop prepare` again"


class _Read(BaseModel):
    """A part of a file that an older or newer version may have written: keys that are not known are left alone."""

    model_config = ConfigDict(extra="allow", frozen=True)


class TokenStatistics(_Read):
    """Tokens of the rows of a split."""

    total: NonNegativeInt
    supervised: NonNegativeInt = 0
    p50: NonNegativeInt
    p90: NonNegativeInt
    max: NonNegativeInt
    mean: float


class SplitFile(_Read):
    """A split's file: its name in the folder, its rows and its hash.

    Args:
        labels: rows of each label.
    """

    path: str = ""
    rows: NonNegativeInt
    sha256: str
    tokens: TokenStatistics | None = None
    labels: dict[str, NonNegativeInt] | None = None


class Splits(_Read):
    """The splits of a data set."""

    train: SplitFile
    val: SplitFile
    test: SplitFile


class SourceOfRows(_Read):
    """A source file: its path and its hash when it was read."""

    path: str
    sha256: str


class Check(_Read):
    """What one check of the rows found."""

    name: str
    level: str
    message: str


class Counts(_Read):
    """Records that were read, kept and rejected."""

    read: NonNegativeInt
    kept: NonNegativeInt
    rejected: NonNegativeInt
    added: NonNegativeInt = 0


class Format(_Read):
    """The format of the records, and which columns hold what."""

    name: str
    columns: dict[str, Any] = {}


class DatasetManifest(_Read):
    """`dataset.json`, as far as other stages read it."""

    version: Literal[1]
    id: str
    hash: str
    name: str
    task: str
    seed: int
    splits: Splits
    config: dict[str, Any]
    counts: Counts
    rejected: dict[str, NonNegativeInt]
    repaired: dict[str, NonNegativeInt] = {}
    languages: dict[str, NonNegativeInt] | None = None
    labels: list[str] | None = None
    format: Format | None = None
    sources: list[SourceOfRows] = []
    checks: list[Check] = []
    mix: dict[str, Any] | None = None
    forgotten: dict[str, Any] | None = None


def read_manifest(folder: Path | str) -> dict[str, Any]:
    """The content of a folder's `dataset.json`, checked against `DatasetManifest`.

    Args:
        folder: a prepared data set, or its `dataset.json`.

    Raises:
        UserError: there is none, it is of another version, or a value in it is wrong (it is named).
    """
    path = Path(folder)
    path = path if path.name == MANIFEST else path / MANIFEST
    if not path.is_file():
        step = f"`tuneloop prepare` writes {MANIFEST} when it is done"
        raise UserError("No complete data set here", where=str(path.parent), next_step=step)
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("version") != 1:
        raise UserError("Not a data set of this version", where=str(path), next_step=AGAIN)
    try:
        DatasetManifest.model_validate(manifest)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        what = f"{key} is missing" if first["type"] == "missing" else f"{key}: {first['msg'].lower()}"
        raise UserError(f"The data set's manifest is damaged: {what}", where=str(path), next_step=AGAIN) from None
    return manifest
