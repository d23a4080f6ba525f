"""Answers to rows: each formatted as in training, in blocks, in order; an unusable row is reported with its reason.

Files of any form, from where they are to where the answers belong.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, plain, plain_cell, replacing, sha256_file, user_errors_of_the_disk
from tuneloop.core.foreign import parse_line
from tuneloop.core.journal import JournalFile
from tuneloop.core.ui import busy, progress, reporter, reporting, say
from tuneloop.core.units import counted, verb
from tuneloop.core.version import __version__
from tuneloop.data import PROMPT_NAMES, TaskPrompt, TaskSpec, prompt_reader
from tuneloop.data.formats import Rejection
from tuneloop.data.sources import SourceFile, SourceRecord, chunks_of, find_files, header_of, read_file
from tuneloop.inference import Request, label_distribution
from tuneloop.pipeline.answers.asking import TaskTarget, open_with_task, target_summary
from tuneloop.records.completion import Completion
from tuneloop.records.rows import Reject

T = TypeVar("T")
Record = Mapping[str, Any]
SAMPLE = 2000  # records that show which columns there are
WRITTEN_AT_ONCE, SCORED_AT_ONCE = 64, 256  # rows of a block whose answers are written, or whose labels are scored
USUAL_ANSWER = 256  # tokens of an answer, where no training rows tell


@dataclass(frozen=True)
class Prediction:
    """A model's answer to one row.

    Args:
        probability: that the model writes this label, given that it writes one of them. Without `top` a lower bound,
            close for a sure model: labels that can't win are not computed to their end.
    """

    text: str = ""  # the answer; of a classifier the label. Empty where there is none
    label: str | None = None  # the label, where labels were scored
    probability: float | None = None
    probabilities: dict[str, float] | None = None  # of the likeliest labels, with `top`
    finish: Literal["stop", "length", ""] = ""  # the model ended its answer; the limit cut it; there is no answer
    prompt_tokens: int = 0  # read
    tokens: int = 0  # written
    error: str = ""  # why there is no answer


def prediction_of(answer: Completion, probabilities: dict[str, float] | None = None) -> Prediction:
    """A completion as a prediction."""
    label = answer.text if answer.finish == "choice" else None
    probability = None if label is None else answer.label_probability
    finish: Literal["stop", "length", ""] = "length" if answer.finish == "length" else "stop"
    tokens = answer.prompt_tokens, answer.completion_tokens
    finish = "" if answer.error else finish
    return Prediction(answer.text, label, probability, probabilities, finish, *tokens, answer.error)


@dataclass(frozen=True)
class Options:
    """How rows become prompts, and what is answered."""

    column: str = ""  # the column with the text; empty: those of training
    system: str | None = None  # in place of the trained system turn; "" for none
    top: int = 0  # probabilities of so many labels for each row
    max_new_tokens: int | None = None  # longest answer; None: that of training


def predict(
    target: str | Path | TaskTarget,
    rows: Iterable[str | Mapping[str, Any] | Sequence[Mapping[str, Any]]],
    *,
    column: str = "",
    system: str | None = None,
    top: int = 0,
    max_new_tokens: int | None = None,
) -> Iterator[Prediction]:
    """A model's answers to rows.

    Args:
        target: a folder (a run, an exported artifact, an adapter, a model), a model's name, or an open `TaskTarget`.
        rows: each a record with the columns of training, a text, or a list of turns.
        column: the column with the text; default: those that were trained.
        system: takes the place of the trained system turn; "" for none.
        top: give the probabilities of so many labels with each answer; of a classifier only.
        max_new_tokens: longest answer; default: that of training, else 256.

    Returns:
        One `Prediction` for each row, in order; an unusable row has an `error`. Answers come in blocks of rows as they
        are taken from the iterator.

    Raises:
        UserError: no such target, or rows without the columns that it needs: at once, before the first answer.
    """
    opened = target if isinstance(target, TaskTarget) else open_with_task(str(target))

    def record(row: str | Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        if isinstance(row, str):
            return {"text": row}
        return row if isinstance(row, Mapping) else {"messages": list(row)}

    stream = map(record, rows)
    sample = list(itertools.islice(stream, SAMPLE))
    if not sample:
        return iter(())
    total = len(rows) if isinstance(rows, Sequence) else 0
    asker = Asker(opened, Options(column, system, top, max_new_tokens), sample)
    return asker.answers(itertools.chain(sample, stream), total=total)


@dataclass
class Asker:
    """A target with the way in which records become its prompts."""

    target: TaskTarget
    options: Options
    sample: Sequence[Mapping[str, Any]]  # records that show which columns there are
    read: Callable[[Mapping[str, Any]], TaskPrompt | Rejection] = field(init=False)

    def __post_init__(self) -> None:
        task = self.target.task
        self.read = prompt_reader(task, self.sample, column=self.options.column, system=self.options.system)
        if self.options.top and not self.target.scores_labels:
            message = "Only labels have probabilities, and this target writes its answers"
            step = "leave --top out, or name a run that was trained to classify"
            raise UserError(message, where="--top", next_step=step)

    @property
    def block(self) -> int:
        """Rows that are answered at once; fixed, so that a resumed run has the same blocks."""
        return SCORED_AT_ONCE if self.target.scores_labels else WRITTEN_AT_ONCE

    @property
    def limit(self) -> int:
        """Longest answer, in tokens."""
        task = self.target.task
        return self.options.max_new_tokens or (task.max_new_tokens if task else USUAL_ANSWER)

    def answers(
        self, records: Iterable[Record | Rejection], *, total: int = 0, before: int = 0
    ) -> Iterator[Prediction]:
        """An answer to each record, block by block; `total`, `before`: all rows, and those before these, for progress.

        What could not be read is a `Rejection`, which becomes an answer with an error.
        """
        for block in batched(records, self.block):
            yield from self.answer_block(block, total=total, before=before)
            before += len(block)

    def answer_block(
        self, records: Sequence[Record | Rejection], *, total: int = 0, before: int = 0
    ) -> list[Prediction]:
        """Answers to the records of a block; `total` and `before` as for `answers`."""

        outer = reporter().progress

        def scaled(task: str, at: float, of: float, /, **info: float | str) -> None:
            if total and at < of:  # of the block, scaled to its rows
                outer("predicting", before + at * len(records) / max(of, 1), total, **info)

        requests: dict[int, Request] = {}
        predictions: list[Prediction] = [Prediction()] * len(records)
        for i, record in enumerate(records):
            prompt = record if isinstance(record, Rejection) else self.read(record)
            if isinstance(prompt, Rejection):
                predictions[i] = Prediction(error=f"{prompt.reason}: {prompt.detail}")
            else:
                requests[i] = self.request(prompt)
        with reporting(progress=scaled):
            for i, answer in zip(requests, self.ask(list(requests.values())), strict=True):
                predictions[i] = answer
        if total:
            progress("predicting", before + len(records), total)
        return predictions

    def request(self, prompt: TaskPrompt) -> Request:
        """A prompt as a request."""
        return Request(prompt.messages, prompt.tools, prompt.continues, max_new_tokens=self.limit)

    def ask(self, requests: Sequence[Request]) -> Iterator[Prediction]:
        """The target's answers: labels where it was trained to choose one, else texts."""
        task, target = self.target.task, self.target.target
        if not self.target.scores_labels:
            yield from map(prediction_of, target.complete(requests))
            return
        assert task is not None and task.labels is not None
        top = self.options.top
        tokens = target.label_tokens(task.labels) if top else {}
        for answer in target.score(requests, task.labels, exact=bool(top)):
            likeliest = label_distribution(answer, tokens, top) if top and not answer.error else None
            yield prediction_of(answer, likeliest)


def batched(records: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    """`itertools.batched`, which Python 3.11 has not."""
    left = iter(records)
    while block := tuple(itertools.islice(left, size)):
        yield block


ENDINGS = (".csv", ".jsonl")


Item = SourceRecord | Reject  # a row of a file: a record, or what could not be read


@dataclass(frozen=True)
class FilePredictions:
    """What came of a file."""

    summary: dict[str, Any]  # counts, seconds and errors by kind; what `--json` prints
    rows: list[dict[str, Any]] = field(default_factory=list)  # with their answers, where no file has them

    @property
    def failed(self) -> int:
        """Rows without an answer."""
        return int(self.summary["errors"])


def predict_file(
    target: TaskTarget,
    file: str,
    options: Options,
    out: str = "",
    *,
    write: Callable[[dict[str, Any]], None] | None = None,
) -> FilePredictions:
    """Answer the rows of a file.

    Args:
        file: of any format that `prepare` reads, or "-"; of plain text each line is a row.
        out: `.csv` or `.jsonl`; empty: rows are given to `write`, or returned.
        write: takes each row of the result as it comes, without `out`.

    Raises:
        UserError: no rows, columns that are missing or not clear, an output that can't be written.
    """
    started = time.monotonic()
    form = _form(out, file)
    target.check()
    rows, kind = read_rows(file, expected_columns(target.task, options.column))
    records = [row.value for row in rows if isinstance(row, SourceRecord)]
    asker = Asker(target, options, records[:SAMPLE])
    names = _Names.of(records, asker, with_lines=len(records) < len(rows))
    labels = len(target.task.labels or ()) if target.scores_labels and target.task else 0
    how = f"scoring {counted(labels, 'label')}" if labels else "writing answers"
    say(f"predict   {counted(len(rows), 'row')} of {file} ({kind}): {how}{target.advice}")
    predictions: list[Prediction] = []
    resumed = 0
    if out:
        hashes = [sha256_file(source.path) for source in find_files([file])]
        key = content_hash([target.identity, vars(options), hashes, asker.block, __version__, 1])
        with _journal(Path(out)) as journal:
            predictions += _resumed(journal, key, asker.block, len(rows))
            resumed = len(predictions)
            if resumed:
                say(f"predict   continues: {counted(resumed, 'row')} {verb(resumed, 'was', 'were')} answered before")
            for block in _answers(target, asker, rows, resumed):
                lines = [{name: v for name, v in vars(answer).items() if v not in ("", None)} for answer in block]
                _append(journal, lines)
                predictions += block
            _write(Path(out), form, rows, predictions, names)
            journal_of(Path(out)).unlink()
    else:
        for block in _answers(target, asker, rows, 0):
            if write is not None:
                for row, prediction in zip(rows[len(predictions) :], block, strict=False):
                    write(names.row(row, prediction))
            predictions += block
    seconds = round(time.monotonic() - started, 3)
    counts = {"out": out or None, **_counts(predictions), "resumed": resumed, "seconds": seconds}
    result = [] if out or write is not None else [names.row(r, p) for r, p in zip(rows, predictions, strict=True)]
    return FilePredictions({**target_summary(target.target), **counts}, result)


def _answers(target: TaskTarget, asker: Asker, rows: Sequence[Item], before: int) -> Iterator[list[Prediction]]:
    """Answers to the rows behind the first `before`, a block at a time."""
    inputs = [row.value if isinstance(row, SourceRecord) else Rejection(row.reason, row.detail) for row in rows]
    if inputs[before:] and target.local is not None:
        with busy("loading the model"):
            target.target.load()
    for block in batched(inputs[before:], asker.block):
        answers = asker.answer_block(block, total=len(rows), before=before)
        yield answers
        before += len(answers)


def _counts(predictions: Sequence[Prediction]) -> dict[str, Any]:
    errors = Counter(answer.error.split(":")[0] for answer in predictions if answer.error)
    return {
        "rows": len(predictions),
        "answered": len(predictions) - errors.total(),
        "errors": errors.total(),
        "error_kinds": dict(errors.most_common()),
        "cut": sum(answer.finish == "length" for answer in predictions),
        "prompt_tokens": sum(answer.prompt_tokens for answer in predictions),
        "tokens": sum(answer.tokens for answer in predictions),
    }


def _form(out: str, file: str) -> str:
    """The kind of a result, by its name; other endings, and names of a folder or of the rows, are refused."""
    path, where, step = Path(out), f"--out {out}", "choose another name"
    ending = path.suffix.lower()
    if out and ending not in ENDINGS:
        message = f"A result is .csv or .jsonl, not {ending or 'a name without ending'}"
        raise UserError(message, where=where, next_step=f"--out {path.with_suffix('.jsonl')}")
    if out and path.is_dir():
        raise UserError("A folder has this name", where=where, next_step=step)
    if out and file != "-" and path.exists() and Path(file).exists() and path.samefile(file):
        raise UserError("The result can't take the place of its rows", where=where, next_step=step)
    return ending


# --- rows in -------------------------------------------------------------------------------------


def expected_columns(task: TaskSpec | None, column: str = "") -> Collection[str]:
    """Columns that show that a table is one, by their presence in its first line."""
    return [column] if column else task.inputs if task is not None else PROMPT_NAMES


def read_rows(file: str, expected: Collection[str] = ()) -> tuple[list[Item], str]:
    """The records of a file in order, with what can't be read in its place, and what kind of file it is.

    Each line of a plain text is a record. `expected`: columns by which the standard input is a table, and not text.

    Raises:
        UserError: no such file, or nothing in it.
    """
    sources = [_table_or_lines(source, expected) if file == "-" else source for source in find_files([file])]
    rows = list(_each_row(sources))
    refuse_no_rows(file, len(rows), rows[0] if rows else None, any(isinstance(row, SourceRecord) for row in rows))
    return rows, "lines of text" if sources[0].kind == "text" else sources[0].kind


def each_row(file: str) -> Iterator[Item]:
    """`read_rows` of a file or folder, one row at a time."""
    return _each_row(find_files([file]))


def _each_row(sources: Sequence[SourceFile]) -> Iterator[Item]:
    for source in sources:
        for item in read_file(source):
            if isinstance(item, Reject):
                if item.reason != "blank_line":
                    yield item
            elif source.kind == "text":
                for number, text in enumerate(str(item.value["text"]).split("\n"), item.line):
                    if text.strip():
                        yield SourceRecord(item.source, number, {"text": text})
            else:
                yield item


def refuse_no_rows(file: str, count: int, first: Item | None, readable: bool) -> None:
    """Refuse a file without a row that a model can answer, by its number of rows and the first of them."""
    step = "give csv, jsonl, json, parquet, or lines of text"
    if first is None:
        raise UserError("There are no rows to ask about", where=file, next_step=step)
    if not readable:
        assert isinstance(first, Reject)
        message = f"No row of {count:,} can be read, the first for this: {first.reason}: {first.detail}"
        raise UserError(message, where=f"{file}, line {first.line}", next_step=step)


_NAME = re.compile(r"[^\W\d][\w.-]*")


def _table_or_lines(source: SourceFile, expected: Collection[str]) -> SourceFile:
    """The standard input as a table where its first line names an expected column, or holds only names and the
    next one has as many cells; else as lines of text."""
    if source.kind != "csv":
        return source
    names = header_of(source) if next(iter(chunks_of(source)), None) is not None else ()
    if set(names) & set(expected):
        return source
    header = len(names) > 1 and all(_NAME.fullmatch(name) for name in names)
    if header and isinstance(next(iter(read_file(source)), None), SourceRecord):
        return source
    return replace(source, kind="text")


# --- the journal ---------------------------------------------------------------------------------


def journal_of(out: Path) -> Path:
    """Where answers wait until all are there."""
    return out.with_name(f"{out.name}.partial")


@contextmanager
def _journal(out: Path) -> Iterator[JournalFile]:
    """The journal of a result; it is closed behind the block."""
    with user_errors_of_the_disk(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    step = "wait for it, or choose another --out"
    busy_error = UserError("Another predict is writing this result", where=str(out), next_step=step)
    journal = JournalFile(journal_of(out), busy_error)
    try:
        yield journal
    finally:
        journal.close()


def _resumed(journal: JournalFile, key: str, block: int, rows: int) -> list[Prediction]:
    """The answers of whole blocks, others are cut off; the journal of another process or job is refused."""
    predictions: list[Prediction] = []
    lines = journal.open()
    head = next(lines, None)
    if head is None:  # new, or killed while it wrote its first line
        _append(journal, {"version": 1, "key": key})
        return predictions
    first = _parsed(head)
    if not isinstance(first, dict) or first.get("key") != key:
        message = "Unfinished answers are here, of another target, other rows or other settings"
        raise UserError(message, where=str(journal.path), next_step="choose another --out, or delete that file")
    for line in lines:
        value = _parsed(line)
        if not isinstance(value, list) or len(value) != min(block, rows - len(predictions)):
            break
        try:
            predictions += [Prediction(**prediction) for prediction in value]
        except TypeError:
            break
    journal.cut()
    return predictions


def _append(journal: JournalFile, value: Any) -> None:
    with user_errors_of_the_disk(journal.path):
        journal.append(_json_line(value).encode("utf-8", "backslashreplace") + b"\n")


def _parsed(line: bytes) -> Any:
    try:
        return parse_line(line)
    except ValueError:
        return None


def _json_line(value: Any) -> str:
    return json.dumps(plain(value), ensure_ascii=False, default=str)  # str: times and decimals of parquet files


# --- rows out ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Names:
    """Columns of the result: those of the rows, and ours by what they hold; one that a row has already gets a `_`."""

    columns: list[str]
    ours: dict[str, str]

    @staticmethod
    def of(records: Sequence[Mapping[str, Any]], asker: Asker, *, with_lines: bool) -> _Names:
        columns = list(dict.fromkeys(str(name) for record in records for name in record))
        facts = ["probability", *(["probabilities"] if asker.options.top else [])]
        facts = facts if asker.target.scores_labels else ["finish"]
        ours = {}
        for name in ["prediction", *facts, "error", *(["line"] if with_lines else [])]:
            free = name
            while free in columns:
                free += "_"
            ours[name] = free
        return _Names(columns, ours)

    def row(self, row: Item, answer: Prediction) -> dict[str, Any]:
        """A row of the result."""
        values: dict[str, Any] = {
            "prediction": None if answer.error else answer.text,
            "probability": _rounded(answer.probability),
            "probabilities": {label: _rounded(p) for label, p in (answer.probabilities or {}).items()} or None,
            "finish": answer.finish or None,
            "error": answer.error or None,
            "line": row.line if isinstance(row, Reject) else None,
        }
        record = row.value if isinstance(row, SourceRecord) else {}
        ours = {column: values[name] for name, column in self.ours.items() if name != "line" or isinstance(row, Reject)}
        return {**record, **ours}


def _rounded(probability: float | None) -> float | None:
    return None if probability is None else round(probability, 6)


def _write(out: Path, form: str, rows: Sequence[Item], answers: Sequence[Prediction], names: _Names) -> None:
    """The result, whole or not at all."""
    with replacing(out) as file:
        if form == ".jsonl":
            for row, answer in zip(rows, answers, strict=True):
                file.write(_json_line(names.row(row, answer)).encode("utf-8", "backslashreplace") + b"\n")
            return
        text = io.TextIOWrapper(file, "utf-8", errors="backslashreplace", newline="", write_through=True)
        columns = [*names.columns, *names.ours.values()]
        table = csv.writer(text)
        table.writerow(map(plain_cell, columns))

        def cell(value: Any) -> Any:  # nothing for null, JSON for what is no text or number
            simple = value is None or (isinstance(value, str | int | float) and not isinstance(value, bool))
            return plain_cell(value if simple else _json_line(value))

        for row, answer in zip(rows, answers, strict=True):
            values = names.row(row, answer)
            table.writerow([cell(values.get(name)) for name in columns])
        text.detach()
