"""What a data set's folder says, read for its report: the manifest whole, of the other files as much as is shown.

Files are read to a bounded number of lines and bytes: millions of rows cost no more than thousands."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json
from tuneloop.core.foreign import fast_json, opened, parse_line
from tuneloop.core.written import clean, clean_all, count, number, section
from tuneloop.records.dataset import Check, DatasetManifest
from tuneloop.records.record import as_record
from tuneloop.records.rows import DoubtfulLabel, DroppedCopy, Reject, Repair, Row, last_user_turn

SPLITS = ("train", "val", "test")
MOST_ROWS = 5_000  # rows of a split that are parsed
MOST_LINES = 200_000  # lines of rejects.jsonl and repairs.jsonl that are looked at; few of them are parsed
MOST_BYTES = 64 * 1024**2  # of one file
LONGEST_LINE = 4 * 1024**2  # bytes; a longer record is passed over
EXAMPLES = 4  # records shown of each reason and each kind of repair
LISTED = 200  # pairs of duplicates, conflicts
WORST = 10  # labels that look wrong

# The writer's first key of this name is the record's own: quotes inside a JSON string are escaped.
REASON = re.compile(r'"reason":\s?"(\w{1,64})"')
KIND = re.compile(r'"kind":\s?"(\w{1,64})"')

T = TypeVar("T")


@dataclass(frozen=True)
class ConflictingAnswer:
    """One answer to a question, and where its row is."""

    split: str
    source: str
    line: int
    answer: str


@dataclass(frozen=True)
class Conflict:
    """A question that rows answer differently."""

    question: str
    answers: tuple[ConflictingAnswer, ...]


@dataclass(frozen=True)
class DataFacts:
    """The files of a data set's folder; empty where a file is missing."""

    path: Path
    manifest: DatasetManifest | None = None  # `dataset.json`; None where there is none that can be read
    rejects: dict[str, list[Reject]] = field(default_factory=dict)  # reason -> the first few, of `rejects.jsonl`
    rejected: dict[str, float] = field(default_factory=dict)  # rows by reason: by the manifest, else `rejects.jsonl`
    repairs: dict[str, list[Repair]] = field(default_factory=dict)  # kind -> the first few, not cleaned; none of `pii`
    repaired: dict[str, float] = field(default_factory=dict)  # changes by kind, those of personal data left out
    redacted: dict[str, float] = field(default_factory=dict)  # kind of personal data -> how many values were found
    hide: Callable[[str], str] = str  # takes personal data out of a text, where `mask` alone is too coarse
    duplicates: list[DroppedCopy] = field(default_factory=list)
    label_errors: list[DoubtfulLabel] = field(default_factory=list)  # first rows of `label_errors.jsonl`, worst first
    samples: dict[str, list[Row]] = field(default_factory=dict)  # split -> rows, evenly spaced over those read
    conflicts: list[Conflict] = field(default_factory=list)  # questions with different answers among these rows
    conflicting: int = 0  # rows in all such questions, also those beyond `LISTED`
    rows_read: dict[str, int] = field(default_factory=dict)  # split -> rows that were parsed
    problems: list[str] = field(default_factory=list)  # files that are there and could not be read in full, in words


def read_data(path: Path | str, samples: int = 4) -> DataFacts:
    """Read what there is in the folder of a data set, with so many samples of each split.

    Raises UserError: the folder does not exist, or holds neither `dataset.json` nor `rejects.jsonl`.
    """
    path = Path(path)
    if not (path / "dataset.json").exists() and not (path / "rejects.jsonl").exists():
        message = "Not a data set: no dataset.json here" if path.is_dir() else "No such folder"
        raise UserError(message, where=str(path), next_step="give a folder that `tuneloop prepare` wrote")
    problems: list[str] = []
    manifest, file = None, path / "dataset.json"
    if file.exists():
        try:
            manifest = as_record(DatasetManifest, clean_all(read_json(file, below=file.parent)), str(file))
        except (UserError, OSError, RecursionError) as error:
            message = error.what if isinstance(error, UserError) else str(error)
            problems.append(clean(f"dataset.json could not be read: {message}"))
    else:
        problems.append("dataset.json is not there: the data set is not complete")
    rejects, reasons = _examples(path / "rejects.jsonl", REASON, _clean_line(Reject), problems)
    repairs, kinds = _examples(path / "repairs.jsonl", KIND, _line(Repair), problems)
    repairs.pop("pii", None)
    paths = {split: (manifest and manifest.splits.by_name[split].path) or f"{split}.jsonl" for split in SPLITS}
    # By their names alone: a manifest does not make the report read outside its folder.
    rows = {k: list(_records(path / Path(at).name, Row.from_json, problems, MOST_ROWS)) for k, at in paths.items()}
    conflicts, conflicting = find_conflicts(rows)
    repaired = manifest.repaired if manifest else dict(kinds.most_common())
    personal = manifest.personal if manifest else {}
    return DataFacts(
        path=path,
        manifest=manifest,
        rejects=rejects,
        rejected=above_zero(manifest.rejected if manifest else dict(reasons.most_common())),
        repairs=repairs,
        repaired=above_zero({k: n for k, n in repaired.items() if k != "pii"}),
        redacted=above_zero(personal or {k: n for k, n in repaired.items() if k == "pii"}),
        duplicates=list(_records(path / "duplicates.jsonl", _clean_line(DroppedCopy), problems, LISTED)),
        label_errors=list(_records(path / "label_errors.jsonl", _clean_line(DoubtfulLabel), problems, WORST)),
        samples={split: _samples(some, samples) for split, some in rows.items() if some},
        conflicts=conflicts,
        conflicting=conflicting,
        rows_read={split: len(some) for split, some in rows.items()},
        problems=problems,
    )


def _lines(path: Path, problems: list[str], most: int) -> Iterator[str]:
    """At most `most` lines of a file, and `MOST_BYTES`; what is too long or no UTF-8 is passed over and counted."""
    if not path.is_file():
        return
    passed = bytes_read = 0
    try:
        with opened(path, below=path.parent) as file:
            for _ in range(most):
                line = file.readline(LONGEST_LINE)
                if not line or (bytes_read := bytes_read + len(line)) > MOST_BYTES:
                    break
                if len(line) == LONGEST_LINE:
                    passed += 1
                    while line and not line.endswith(b"\n"):
                        line = file.readline(LONGEST_LINE)
                    continue
                yield line.decode("utf-8", errors="replace")
    except OSError as error:
        problems.append(clean(f"{path.name} could not be read: {error.strerror}"))
    if passed:
        problems.append(f"{path.name}: {count(passed, 'record')} of more than 4 MiB not shown")


# A line's JSON object as its record; None where it is damaged.
Reader = Callable[[dict[str, Any]], T | None]


def _line(kind: type[T]) -> Reader[T]:
    return TypeAdapter(kind).validate_python


def _clean_line(kind: type[T]) -> Reader[T]:
    read = _line(kind)
    return lambda value: read(clean_all(value))


def _records(path: Path, read: Reader[T], problems: list[str], most: int) -> Iterator[T]:
    damaged = 0
    for line in _lines(path, problems, most):
        record = _parsed(line, read)
        if record is not None:
            yield record
        elif line.strip():
            damaged += 1
    if damaged:
        problems.append(f"{path.name}: {count(damaged, 'unreadable line')} left out")


def _parsed(line: str, read: Reader[T]) -> T | None:
    try:
        value = fast_json(line)
    except ValueError:  # NaN and lone surrogates are passed on as well
        try:
            value = parse_line(line)
        except ValueError:
            return None
    try:
        return read(value) if isinstance(value, dict) else None
    except ValueError:
        return None


def _examples(
    path: Path, word: re.Pattern[str], read: Reader[T], problems: list[str]
) -> tuple[dict[str, list[T]], Counter[str]]:
    """The first records of each reason or kind, and how many there are of each.

    Only the records that are shown are parsed: for the others, one look for the word is enough.
    """
    records: defaultdict[str, list[T]] = defaultdict(list)
    counts: Counter[str] = Counter()
    damaged = 0
    for line in _lines(path, problems, MOST_LINES):
        match = word.search(line)
        if match is None:
            damaged += bool(line.strip())
            continue
        name = match[1]
        counts[name] += 1
        if len(records[name]) < EXAMPLES:
            record = _parsed(line, read)
            if record is not None:
                records[name].append(record)
            else:
                damaged += 1
    if damaged:
        problems.append(f"{path.name}: {count(damaged, 'unreadable line')} left out")
    return dict(records), counts


def _samples(rows: list[Row], n: int) -> list[Row]:
    """`n` rows evenly spaced (no choice of flattering ones), made safe to print."""
    spaced = rows if n >= len(rows) else [rows[(2 * i + 1) * len(rows) // (2 * n)] for i in range(n)]
    return [Row.from_json(clean_all(row.to_json())) for row in spaced]


def find_conflicts(rows: Mapping[str, Sequence[Row]]) -> tuple[list[Conflict], int]:
    """Questions that rows answer differently, up to Unicode form, white space and case.

    Returns at most `LISTED` conflicts, those with the most rows first, and the number of rows in all of them.
    """
    questions: defaultdict[str, list[tuple[str, Row]]] = defaultdict(list)
    # The turn before the last one: a look at it alone leaves few rows that may ask the same.
    last_turns = {
        split: [_normalised(row.messages[-2]["content"]) if len(row.messages) > 1 else "" for row in some]
        for split, some in rows.items()
    }
    times = Counter(itertools.chain.from_iterable(last_turns.values()))
    for split, some in rows.items():
        for row in (row for row, question in zip(some, last_turns[split], strict=True) if times[question] > 1):
            turns = turns_of(row)
            if len(turns) > 1:
                # All that the model is shown: at another point of a conversation another answer is right.
                questions["\n".join(f"{role}: {_normalised(text)}" for role, text in turns[:-1])].append((split, row))
    conflicts: list[Conflict] = []
    total = 0
    for some_rows in questions.values():
        if len(some_rows) < 2 or len({_normalised(turns_of(row)[-1][1]) for _, row in some_rows}) < 2:
            continue
        total += len(some_rows)
        answers = []
        for split, row in some_rows:
            source, line = place_of(row)
            answers.append(ConflictingAnswer(split, source, line, clean(turns_of(row)[-1][1])))
        conflicts.append(Conflict(clean(last_user_turn(some_rows[0][1])), tuple(answers)))
    conflicts.sort(key=lambda c: -len(c.answers))
    return conflicts[:LISTED], total


def turns_of(row: Row) -> list[tuple[str, str]]:
    """(role, text) of each turn of a row; a turn's tool calls follow its text as `name(arguments)`."""
    turns: list[tuple[str, str]] = []
    for message in row.messages:
        text = message["content"]
        for call in records_in(message.get("tool_calls")):
            function = section(call.get("function"))
            text = f"{text}\n{function.get('name')}({function.get('arguments')})".strip()
        turns.append((message["role"], text))
    return turns


def place_of(row: Row) -> tuple[str, int]:
    """Source and line of a row, from its `meta`."""
    return clean(row.meta.get("source") or ""), int(number(row.meta.get("line")) or 0)


def _normalised(text: str) -> str:
    return " ".join((text if text.isascii() else unicodedata.normalize("NFC", text)).split()).casefold()


def above_zero(counts: Mapping[str, float]) -> dict[str, float]:
    """The counts that are above zero."""
    return {name: float(n) for name, n in counts.items() if n > 0}


def checks_of(manifest: DatasetManifest) -> list[Check]:
    """The checks, the worst first."""
    worst = {"error": 0, "warn": 1, "ok": 3}
    return sorted(manifest.checks, key=lambda check: worst.get(check.level, 2))


def records_in(value: object) -> list[dict[str, Any]]:
    """The mappings of a list; nothing where a file holds something else."""
    return [v for v in value if isinstance(v, dict)] if isinstance(value, list) else []


# The reasons of each stage that can reject. A reason that is not listed counts as found while parsing.
STAGES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("parsed", ()),
    ("repaired", ()),
    ("redacted", ("personal_data",)),
    ("deduplicated", ("exact_duplicate", "near_duplicate", "semantic_duplicate", "conflicting_label")),
    ("measured", ("too_long", "no_supervised_token", "template_error", "wrong_language")),
    ("split", ("split_leak", "over_limit", "forgotten")),
)


@dataclass(frozen=True)
class FlowStage:
    """A station on the way from the sources to the splits."""

    name: str  # what has been done to the rows that are left
    rows: float  # rows that are left after it
    exits: tuple[tuple[str, float], ...] = ()  # (reason, rows) of those that it rejected, the most frequent first
    changes: tuple[tuple[str, float], ...] = ()  # (kind, times) of what it changed in rows that stay


@dataclass(frozen=True)
class Flow:
    """How many records came in, what each stage did, and where they are; `added` rows came in on the way."""

    read: float
    stages: tuple[FlowStage, ...]
    splits: tuple[tuple[str, float], ...]
    added: float = 0


def flow_of(facts: DataFacts) -> Flow | None:
    """The way of the records, from the manifest's counts; None without them."""
    manifest = facts.manifest
    if manifest is None or not manifest.counts.read:
        return None
    counts = manifest.counts
    listed = {reason for _, reasons in STAGES for reason in reasons}
    left, stages = float(counts.read), []
    reported = manifest.personal_mode == "report"
    for name, reasons in STAGES:
        rows = {k: n for k, n in facts.rejected.items() if n > 0}
        mine = {k: n for k, n in rows.items() if (k in reasons if name != "parsed" else k not in listed)}
        left -= sum(mine.values())
        changes = {"repaired": facts.repaired, "redacted": facts.redacted}.get(name, {})
        if mine or changes or name in ("parsed", "deduplicated"):
            title = "screened" if name == "redacted" and reported else name
            stages.append(FlowStage(title, max(left, 0.0), most_first(mine), most_first(changes)))
    splits = tuple((split, float(counts[split])) for split in SPLITS)
    # General rows may be mixed in.
    added = sum(n for _, n in splits) - max(left, 0.0)
    return Flow(float(counts.read), tuple(stages), splits, max(added, 0.0))


def most_first(counts: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    """(name, count), the most frequent first, then by name."""
    return tuple(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


MASKS = (
    (re.compile(r"[^\s@\"'<>(),;:]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63})+"), "<EMAIL>"),
    (re.compile(r"(?<![\w.])\+?\(?\d(?:[ ()./-]{0,2}\d){6,}(?!\w)"), "<NUMBER>"),
    (re.compile(r"\b(?=[\w-]*\d)(?=[\w-]*[A-Za-z])[\w-]{20,}\b"), "<SECRET>"),
)


def mask(text: str) -> str:
    """Text without e-mail addresses, long numbers and long tokens.

    A rejected record is in `rejects.jsonl` as it came but for personal data, or with them where
    `data.personal.mode` says so; the report may be sent around. This is a coarse net for excerpts of such records.
    """
    for pattern, name in MASKS:
        text = pattern.sub(name, text)
    return text
