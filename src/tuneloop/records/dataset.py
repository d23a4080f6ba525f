"""A prepared data set: `dataset.json`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import NonNegativeInt

from tuneloop.core.errors import UserError
from tuneloop.core.files import read_yaml
from tuneloop.records.record import Part, Record, read_record

MANIFEST = "dataset.json"
AGAIN = "run `tuneloop prepare` again"


class TokenStatistics(Part):
    """Tokens of the rows of a split.

    Args:
        supervised: those that are trained on; `p50`, `p90`: nearest rank.
        measured: rows that were measured, where the numbers are estimates.
        of_rows: rows of the whole split, where the numbers are of a sample.
    """

    total: NonNegativeInt
    supervised: NonNegativeInt = 0
    min: NonNegativeInt = 0
    p50: NonNegativeInt
    p90: NonNegativeInt
    max: NonNegativeInt
    mean: float
    measured: NonNegativeInt | None = None
    of_rows: NonNegativeInt | None = None


class RowsFile(Part):
    """A file of rows: its name in the folder, its rows and its hash."""

    path: str = ""
    rows: NonNegativeInt
    sha256: str


class SplitFile(RowsFile):
    """A split's file.

    Args:
        labels: rows of each label.
    """

    tokens: TokenStatistics | None = None
    labels: dict[str, NonNegativeInt] | None = None


class Splits(Part):
    """The splits of a data set."""

    train: SplitFile
    val: SplitFile
    test: SplitFile

    @property
    def by_name(self) -> dict[str, SplitFile]:
        """`train`, `val` and `test`, in this order."""
        return {"train": self.train, "val": self.val, "test": self.test}


class SourceOfRows(Part):
    """A source file: its path, its hash when it was read, its records, and the split that it was given for."""

    path: str
    sha256: str
    rows: NonNegativeInt = 0
    encoding: str = ""
    split: str | None = None


class Check(Part):
    """What a check of the rows found: `ok`, `warn` or `error`; how many rows it concerns, some of them, what to do."""

    name: str
    level: str
    message: str
    rows: int | None = None
    remedy: str = ""
    examples: list[Any] = []


class Counts(Part):
    """Records that were read, kept and rejected, rows that came of splitting long ones, and rows of each split."""

    read: NonNegativeInt
    kept: NonNegativeInt
    rejected: NonNegativeInt
    added: NonNegativeInt = 0
    train: NonNegativeInt = 0
    val: NonNegativeInt = 0
    test: NonNegativeInt = 0


class LongRows(Part):
    """Rows over `max_length`, and the tokens that they lost by the policy `data.too_long`.

    Args:
        rejected: rows left out; `rejected_tokens`: all their tokens.
        cut: rows cut; `cut_tokens`: the tokens that were cut off.
        split: rows that became several, which loses nothing.
    """

    policy: str = "reject"
    rejected: int = 0
    rejected_tokens: int = 0
    cut: int = 0
    cut_tokens: int = 0
    split: int = 0


class RowsAndTokens(Part):
    """Some rows, and their tokens."""

    rows: NonNegativeInt
    tokens: NonNegativeInt


class MixSource(Part):
    """A source of general data.

    Args:
        rows: of the source; `left_out`: those that are in the task's data, or twice.
        train: different rows in the training split; `uses`: with repetitions; `tokens`: of these.
        held_out: rows to measure forgetting with; `test`: rows in the test split.
    """

    name: str
    rows: NonNegativeInt = 0
    left_out: NonNegativeInt = 0
    train: NonNegativeInt = 0
    uses: NonNegativeInt = 0
    tokens: NonNegativeInt = 0
    held_out: NonNegativeInt = 0
    test: NonNegativeInt = 0


class Mix(Part):
    """General data that was blended into the training split.

    Args:
        by: what shares are counted in; `wanted` and `share`: as configured, and as reached.
        task, general: the two parts of the training split.
        times: how often the row that is used most is used.
    """

    by: Literal["tokens", "rows"]
    wanted: float = 0.0
    share: float
    task: RowsAndTokens
    general: RowsAndTokens
    times: NonNegativeInt = 0
    sources: list[MixSource] = []


class Removal(Part):
    """Rows that were removed for a person.

    Args:
        rows: how many; `when`: the date; `match_hash`: of the pattern, which is not kept.
        was, was_hash: id and hash of the data set before; `earlier`: removals before this one.
    """

    rows: int
    when: str
    match_hash: str
    was: str | None = None
    was_hash: str | None = None
    earlier: list[Removal] = []


class SourceFormat(Part):
    """The format of the records, which columns hold what, and how it was found out."""

    name: str
    columns: dict[str, Any] = {}
    reason: str = ""
    turns: dict[str, Any] | None = None
    texts: list[str] | None = None
    many_labels: bool = False


class DatasetManifest(Record, noun="a data set", file=MANIFEST, again=AGAIN):
    """`dataset.json`: a prepared data set. It is written last and makes the folder complete.

    Args:
        id: name and the first digits of the hash; `hash`: of what the splits hold and of the configuration.
        key: hash of everything that preparing depends on.
        model: what identifies the tokenizer that rows were measured with.
        task: `classification`, `generation` or `chat`; `labels`: of the rows, in order.
        deciding_metric: what systems are judged by on this data set, chosen before any has answered; empty: not yet.
        config: the settings.
        rejected, repaired: reason or kind -> records; `words`: what these words mean.
        personal: kind of personal data -> times; `too_long`: the policy for long rows, and what became of them.
        languages: rows of each.
        mix: general data that was blended in; `general`: general rows that were held out.
        forgotten: rows that were removed for a person; `template_adds`: what the chat template adds.
    """

    id: str
    hash: str
    name: str
    key: str = ""
    seed: int | None = None
    model: str = ""
    tool_version: str = ""
    task: str
    format: SourceFormat | None = None
    labels: list[str] | None = None
    deciding_metric: str = ""
    sources: list[SourceOfRows] = []
    config: dict[str, Any]
    counts: Counts
    rejected: dict[str, NonNegativeInt]
    repaired: dict[str, NonNegativeInt] = {}
    personal: dict[str, NonNegativeInt] = {}
    too_long: LongRows | None = None
    languages: dict[str, NonNegativeInt] | None = None
    splits: Splits
    mix: Mix | None = None
    general: RowsFile | None = None
    forgotten: Removal | None = None
    template_adds: str | None = None
    words: dict[str, str] = {}
    checks: list[Check] = []

    @property
    def max_length(self) -> int | None:
        """The limit of a row in tokens, as configured; None where that is not known."""
        limit = self.config.get("max_length")
        return limit if isinstance(limit, int) else None

    @property
    def personal_mode(self) -> str:
        """What was done about personal data, as configured; empty where that is not known."""
        personal = self.config.get("personal")
        return str(personal.get("mode", "")) if isinstance(personal, dict) else ""

    @property
    def errors(self) -> list[Check]:
        """The checks at `error`."""
        return [check for check in self.checks if check.level == "error"]


def read_manifest(folder: Path | str) -> DatasetManifest:
    """The `dataset.json` of a prepared data set's folder, or this file.

    Raises:
        UserError: there is none, it is of another version, or a value in it is wrong (it is named).
    """
    path = Path(folder)
    path = path if path.name == MANIFEST else path / MANIFEST
    if not path.is_file():
        step = f"`tuneloop prepare` writes {MANIFEST} when it is done"
        raise UserError("No complete data set here", where=str(path.parent), next_step=step)
    return read_record(DatasetManifest, path)


def manifest_of_run(folder: Path) -> DatasetManifest | None:
    """Of a run's data set, or of the prepared one that it began with; None where there is none."""
    places = [folder / "dataset"]
    if (folder / "config.yaml").is_file():
        data = read_yaml(folder / "config.yaml").get("data")
        sources = data.get("sources") if isinstance(data, dict) else None
        places += [Path(source) for source in (sources if isinstance(sources, list) else []) if isinstance(source, str)]
    # os.path: a source may be any text, also one that is too long for a name.
    return next((read_manifest(seen) for seen in places if os.path.isfile(seen / MANIFEST)), None)
