"""The second pass of prepare: each split, reject, repair and check to its file, and the manifest last."""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from tuneloop import __version__
from tuneloop.core.errors import UserError
from tuneloop.core.files import replacing, user_errors_of_the_disk
from tuneloop.core.ui import progress
from tuneloop.data.checks import (
    CHECKS,
    Check,
    Finding,
    LongRows,
    Overview,
    Suspects,
    find_suspects,
    run_checks,
    slow_checks,
    suspect_records,
)
from tuneloop.data.checks.label_errors import Embed
from tuneloop.data.config import NO_CONTENT, PrepareConfig
from tuneloop.data.dataset import (
    REASONS,
    REPAIRS,
    RowFile,
    hash_of_keys,
    prepare_key,
    sha256_of_source,
    token_statistics,
)
from tuneloop.data.dedup_and_split import shuffled
from tuneloop.data.formats import FormatGuess
from tuneloop.data.mix import GENERAL_FILE, GeneralRows, Mixed, MixSize, dataset_rows, interleaved, mix_rows
from tuneloop.data.prepare_context import PrepareContext, look_at
from tuneloop.data.process_record import NO_ROW, ProcessedRow, RepairLine, process_record, reject_line
from tuneloop.data.sources.chunks import chunks
from tuneloop.data.sources.parse import parse_chunk
from tuneloop.data.sources.read import find_files
from tuneloop.data.split import SPLITS, TEST, Array, Split
from tuneloop.data.spool import Table
from tuneloop.data.task import format_facts
from tuneloop.data.workers import run_in_background
from tuneloop.records.dataset import MANIFEST, DatasetManifest
from tuneloop.records.record import write_record
from tuneloop.records.rows import Dataset, DroppedCopy, FlaggedRow, Reject, Row

LINES_AT_ONCE = 256  # that are hashed and written at once
LONGEST_SHOWN = 4_000  # characters of each row in `duplicates.jsonl`
SHOWN_DUPLICATES = 200  # of `duplicates.jsonl`


def write_dataset(job: PrepareContext, identity: Mapping[str, Any], template_adds: str) -> Dataset:
    """Write the files of a data set, the manifest last.

    Args:
        identity: `name`, `key`, `seed` and `model` of the manifest.
        template_adds: the system turn that the model's chat template adds.

    Raises:
        UserError: a source changed meanwhile; then there is no manifest.
    """
    table, config, out = job.table, job.config, job.out
    clear(out)
    orders = {split: _order(table, number, job.seed) for number, split in enumerate(SPLITS)}
    mixed = _mix(job, orders)
    split_of = np.where(table.fate == 0, table.split, -1)
    overview = Overview(_task(config, job.guess, table), table.columns, table.names, split_of, table.row, seed=job.seed)
    # The slowest checks run in other processes while the files are written.
    begun = _begin_checks(job, overview)
    splits = _write_splits(job, overview.task, orders, mixed)
    account = _write_account(job)
    _write_duplicates(job)
    labels, languages = (_counts_of(table, name, table.alive) for name in ("label", "language"))
    manifest = {
        **_content(job, identity, orders, mixed),
        **identity,
        "tool_version": __version__,
        "task": overview.task,
        "format": format_facts(job.guess),
        **({"labels": config.labels or list(labels)} if overview.task == "classification" else {}),
        "sources": _sources(job),
        "config": config.model_dump(mode="json", exclude=NO_CONTENT),
        "counts": _counts(job, account, orders),
        "rejected": dict(sorted(account.rejected.items(), key=lambda item: (-item[1], item[0]))),
        "repaired": dict(sorted(account.repaired.items())),
        "personal": dict(sorted(account.personal.items())),
        "too_long": {"policy": config.too_long, **account.too_long},
        "languages": dict(sorted(languages.items(), key=lambda pair: (-pair[1], pair[0]))),
        "splits": splits,
        **({"mix": mixed.record, "general": _write_general(out, mixed)} if mixed else {}),
        **({"template_adds": template_adds} if template_adds else {}),
        "words": {w: text for w, text in (REASONS | REPAIRS).items() if w in account.rejected | account.repaired},
    }
    overview = replace(
        overview,
        read=sum(table.records_of),
        rejected=account.rejected,
        repaired=account.repaired,
        max_length=config.max_length,
        too_long=LongRows(policy=config.too_long, **account.too_long),
        labels=manifest.get("labels", ()),
    )
    manifest["checks"] = _checks(job, overview, begun) + ([mixed.check] if mixed else [])
    _refuse_changed_sources(job, identity)
    written = DatasetManifest.model_validate(manifest)
    write_record(out / MANIFEST, written)
    train, val, test = (RowFile(out / f"{s}.jsonl", splits[s]["rows"]) for s in SPLITS)
    return Dataset(str(out), written, train, val, test)


def _refuse_changed_sources(job: PrepareContext, identity: Mapping[str, Any]) -> None:
    key = prepare_key(job.config, name=identity["name"], seed=job.seed, model_fingerprint=identity["model"])
    if identity["key"] != key:
        raise UserError(
            "A source changed while the data were prepared",
            where=", ".join(given.file.name for given in job.files),
            next_step="wait until it is whole, or copy it, and prepare again",
        )


_Orders = Mapping[Split, NDArray[np.int64]]  # rows by split, in the order of its file


def _write_splits(job: PrepareContext, task: str, orders: _Orders, mixed: Mixed | None) -> dict[str, Any]:
    """Write the splits; what the manifest says of each."""
    table = job.table
    about: dict[str, Any] = {}
    for split, order in orders.items():
        general = {"train": mixed.train, "val": [], "test": mixed.test}[split] if mixed else []
        with lines_to(job.out / f"{split}.jsonl") as lines:
            lines.write_all(_interleaved(table.lines(order), len(order), general) if general else table.lines(order))
        about[split] = {
            **lines.facts(),
            "tokens": tokens_of(table, order),
            "labels": _counts_of(table, "label", order) if task == "classification" else {},
        }
    return about


def _write_general(out: Path, mixed: Mixed) -> dict[str, Any]:
    """Write the general rows that were held out; what the manifest says of them."""
    with lines_to(out / GENERAL_FILE) as lines:
        lines.write_all(orjson.dumps(row.to_json()) for row in mixed.held_out)
    return lines.facts()


class _RejectAccount(NamedTuple):
    """What the manifest counts of rejects and repairs."""

    rejected: Counter[str]  # records and rows by reason
    repaired: Counter[str]  # changes by kind
    personal: Counter[str]  # values by kind of personal data
    too_long: Counter[str]  # numbers of `LongRows`


def _write_account(job: PrepareContext) -> _RejectAccount:
    """Write `rejects.jsonl` and `repairs.jsonl`, and count."""
    table = job.table
    rejected = table.rejected + Counter(table.reason(i) for i in np.flatnonzero(table.fate).tolist())
    account = _RejectAccount(rejected, Counter(), Counter(), Counter())
    if rejected["too_long"]:
        account.too_long.update(rejected=rejected["too_long"], rejected_tokens=table.rejected_tokens)
    with lines_to(job.out / "rejects.jsonl") as lines:
        lines.write_all(reject_lines(table, job.config.duplicates.keep))
    with lines_to(job.out / "repairs.jsonl") as lines:
        for repair, is_in in _repairs(table):
            account.repaired[repair.kind] += 1
            if repair.kind == "pii":
                account.personal.update(repair.amounts)
            elif is_in:
                account.too_long.update(repair.amounts)
            lines.write(repair.line)
    return account


def _content(job: PrepareContext, identity: Mapping[str, Any], orders: _Orders, mixed: Mixed | None) -> dict[str, str]:
    """The hash of all that the splits hold, and the id that is made of it."""
    keys: dict[str, bytes] = {split: _keys(job.table, order) for split, order in orders.items()}
    digest = hash_of_keys(keys, job.config, job.seed, mixed.record if mixed else None)
    return {"id": f"{identity['name']}-{digest[:12]}", "hash": digest}


def _sources(job: PrepareContext) -> list[dict[str, Any]]:
    records: Counter[str] = Counter()
    for source, n in zip(job.table.source_of, job.table.records_of, strict=True):
        records[source] += n
    return [
        {
            "path": given.file.name,
            "sha256": sha256_of_source(given.file.path),
            "rows": records[given.file.name],
            "encoding": job.encodings.get(given.file.name, ""),
            **({"split": given.split} if given.split else {}),
        }
        for given in job.files
    ]


def _counts(job: PrepareContext, account: _RejectAccount, orders: _Orders) -> dict[str, int]:
    rows_in, read, rejected = len(job.table.alive), sum(job.table.records_of), account.rejected.total()
    # with too_long=split one record may make several rows: read + added = kept + rejected
    added = {"added": rows_in + rejected - read} if job.config.too_long == "split" else {}
    return {"read": read, "kept": rows_in, "rejected": rejected, **added, **{s: len(o) for s, o in orders.items()}}


@dataclass
class Lines:
    """A JSON Lines file that is being written: the number of its lines so far, and their hash."""

    name: str
    file: BinaryIO
    hash: Any = field(default_factory=hashlib.sha256)
    lines: int = 0

    def facts(self) -> dict[str, Any]:
        """What the manifest says of the file."""
        return {"path": self.name, "rows": self.lines, "sha256": self.hash.hexdigest()}

    def write(self, line: bytes) -> None:
        """Add a line, given without its end."""
        self.write_all([line])

    def write_all(self, lines: Iterable[bytes]) -> None:
        """Add lines, given without their ends."""
        left = iter(lines)
        while some := list(itertools.islice(left, LINES_AT_ONCE)):
            data = b"\n".join([*some, b""])
            self.hash.update(data)
            self.lines += len(some)
            self.file.write(data)


@contextlib.contextmanager
def lines_to(path: Path) -> Iterator[Lines]:
    """A JSON Lines file that is there when all its lines are."""
    with replacing(path) as file:
        yield Lines(path.name, file)


def clear(out: Path) -> None:
    """Take an earlier manifest away, so that the folder is not complete while its files change."""
    with user_errors_of_the_disk(out / MANIFEST), contextlib.suppress(FileNotFoundError):
        (out / MANIFEST).unlink()


def reject_lines(table: Table, policy: str) -> Iterator[bytes]:
    """The lines of `rejects.jsonl` in the order of the sources: what was no row, and rows that were dropped.

    Args:
        policy: of `duplicates.keep`; where it may decide, the detail says whether it did.
    """
    for source, rows, refused, _ in table.sides():
        dropped = []
        for i in (rows.start + np.flatnonzero(table.fate[rows.start : rows.stop])).tolist():
            line, record = int(table.columns["line"][i]), orjson.loads(table.reader.record_bytes(i))
            reject = Reject(source, line, table.reason(i), _detail(table, i, policy), record)
            dropped.append((line, reject_line(reject)))
        yield from (line for _, line in heapq.merge(refused, dropped, key=lambda pair: pair[0]))


def _detail(table: Table, row: int, policy: str) -> str:
    """The particulars of a reject; of a copy also why the other row stays, where that is not always so."""
    kept_row = int(table.because[row])
    if kept_row < 0 or policy not in _WORTH or table.reason(row) in ("split_leak", "conflicting_label"):
        return table.detail(row)
    return f"{table.detail(row)}; {_why(table, policy, row, kept_row)}"


def _repairs(table: Table) -> Iterator[tuple[RepairLine, bool]]:
    """The repairs in the order of the sources, and whether the row is in; those of rejected records stand there as well."""
    for _, rows, _, repairs in table.sides():
        for repair in repairs:
            row = rows.start + repair.place
            if repair.place != NO_ROW and row in table.repeats:
                repair = repair._replace(line=orjson.dumps(orjson.loads(repair.line) | {"id": table.row(row).id}))
            yield repair, repair.place != NO_ROW and not table.fate[row]


_Begun = Mapping[str, Callable[[], Any]]  # by the name of a check, a function that waits for its result
_DOUBTED = "label_errors"


def _begin_checks(job: PrepareContext, overview: Overview) -> _Begun:
    """The checks that take long, at work while the files are written."""
    # A model that has been at work does not survive a fork, and neither does a connection to Ray.
    workers = job.workers if job.embed is None and job.config.engine != "ray" else 1
    first = (_DOUBTED,) if overview.task == "classification" else ()
    return run_in_background(_long_check, [*first, *slow_checks(overview)], (job.embed, overview), workers=workers)


def _long_check(name: str, setting: tuple[Embed | None, Overview]) -> Finding | tuple[Suspects, list[bytes]] | None:
    """A check; of doubtful labels what finds them, and the lines of `label_errors.jsonl`, the most suspicious first."""
    embed, overview = setting
    if name != _DOUBTED:
        return CHECKS[name].run(overview)
    suspects = find_suspects(overview, embed=embed)
    return suspects, [orjson.dumps(record) for record in suspect_records(overview, suspects, most=len(suspects.errors))]


def _checks(job: PrepareContext, overview: Overview, begun: _Begun) -> list[Check]:
    """All checks; the rows they found stand in `flagged.jsonl`, those with doubtful labels in `label_errors.jsonl`."""
    progress("checking", 0, 1)
    path = job.out / "label_errors.jsonl"
    if _DOUBTED not in begun:
        path.unlink(missing_ok=True)

    def flagged(records: Iterator[FlaggedRow]) -> None:
        with lines_to(job.out / "flagged.jsonl") as lines:
            for record in records:
                lines.write(orjson.dumps(record))

    def suspects() -> Suspects:
        suspects_found, records = begun[_DOUBTED]()
        with lines_to(path) as lines:
            for record in records:
                lines.write(record)
        doubted: Suspects = suspects_found
        return doubted

    checks = run_checks(
        overview,
        suspects=suspects,
        slow={name: wait for name, wait in begun.items() if name != _DOUBTED},
        flagged=flagged,
    )
    progress("checking", 1, 1)
    return checks


def _task(config: PrepareConfig, guess: FormatGuess, table: Table) -> str:
    if config.task != "auto":
        return config.task
    if guess.name == "text_label" or config.labels is not None:
        return "classification"
    return "chat" if table.is_chat else "generation"


def _order(table: Table, split: int, seed: int) -> NDArray[np.int64]:
    """Rows of a split by a hash of their ids, so that neither the order of the sources nor their number matters."""
    rows = np.flatnonzero((table.fate == 0) & (table.split == split))
    ids = table.columns["id"][rows]
    return rows[np.lexsort((ids, shuffled(ids, seed)))]


def _keys(table: Table, order: NDArray[np.int64]) -> bytes:
    """What `hash_of_keys` asks for of rows."""
    return np.stack([table.columns[name][order] for name in ("id", "meta")], axis=1).astype("<u8").tobytes()


def _interleaved(lines: Iterator[bytes], n: int, general: Sequence[Row]) -> Iterator[bytes]:
    """A split's lines with the general rows spread evenly among them."""
    places = set(interleaved(n, len(general)))
    others = iter(general)
    for place in range(n + len(general)):
        yield orjson.dumps(next(others).to_json()) if place in places else next(lines)


def _counts_of(table: Table, column: str, rows: Array) -> dict[str, int]:
    """The names in a column of rows with their numbers, in the order of the names."""
    codes, counts = np.unique(table.columns[column][rows], return_counts=True)
    names = table.names[column]
    return dict(sorted((names[c], n) for c, n in zip(codes.tolist(), counts.tolist(), strict=True) if c >= 0))


def _mix(job: PrepareContext, orders: Mapping[Split, Array]) -> Mixed | None:
    """General rows for the splits, as `data.mix` asks for them."""
    settings = job.config.mix
    if not settings.sources or settings.share == 0:
        return None
    general = []
    for source in settings.sources:
        rows = dataset_rows(source)
        if rows is None:
            rows = list(_general_rows(job, source))
        general.append(GeneralRows(source, rows, [job.processor.measure(row).tokens for row in rows]))
    sizes = {split: MixSize(len(order), int(tokens_of(job.table, order)["total"])) for split, order in orders.items()}
    splits = {split: map(job.table.row, order.tolist()) for split, order in orders.items()}
    return mix_rows(splits, sizes, general, settings, job.seed)


def _general_rows(job: PrepareContext, source: str) -> Iterator[Row]:
    """The rows of a general source that is no data set: processed like the task's; rejected records are left out."""
    plain = PrepareConfig.model_validate(
        {**job.config.model_dump(include={"repair", "personal", "max_length", "language"}), "sources": [source]}
    )
    processor = replace(job.processor, config=plain)
    for file in find_files([source], job.config.max_expansion):
        guess, _ = look_at([file], plain)
        for chunk in chunks(file):
            for item in parse_chunk(chunk):
                for made in [item] if isinstance(item, Reject) else process_record(item, guess, processor):
                    if isinstance(made, ProcessedRow):
                        yield made.row


def _write_duplicates(job: PrepareContext) -> None:
    """`duplicates.jsonl`: some of the dropped copies with the rows that stayed, near ones first."""
    table = job.table
    copies = np.flatnonzero(table.because >= 0)
    copies = copies[
        table.fate[table.because[copies]] == 0
    ]  # the other one may have gone as well, as conflicts=drop has it
    likeness = table.likeness[copies]
    picked = copies[np.lexsort((shuffled(table.columns["id"][copies], job.seed), likeness >= 1.0))][:SHOWN_DUPLICATES]
    policy = job.config.duplicates.keep
    with lines_to(job.out / "duplicates.jsonl") as lines:
        for index in picked.tolist():
            kept_row = int(table.because[index])
            (source, line), (kept_source, kept_line) = table.place(index), table.place(kept_row)
            reason = table.reason(index)
            gone, stays = table.row(index), table.row(kept_row)
            copy = DroppedCopy(
                source=source, line=line, id=gone.id,
                kept_source=kept_source, kept_line=kept_line, kept_id=stays.id,
                similarity=round(float(table.likeness[index]), 4), kind=reason.removesuffix("_duplicate"),
                why=_why(table, policy, index, kept_row),
                text=_shown(gone), kept_text=_shown(stays),
            )  # fmt: skip
            lines.write(orjson.dumps(copy))


# By policy the column that decides, and the words for it; among equals the first one stays.
_WORTH = {
    "longest": ("characters", "it is longer"), "newest": ("time", "it is newer"), "best": ("rating", "it is rated higher"),
}  # fmt: skip


def _why(table: Table, policy: str, gone: int, kept_row: int) -> str:
    """Why of two rows that are the same one stays."""
    if table.reason(gone) == "split_leak":
        return "it is in the test set" if table.split[kept_row] == TEST else "it is in the validation set"
    column, words = _WORTH.get(policy, ("", ""))
    if column:
        values = table.columns[column]
        unknown = np.isnan(values[gone]) and not np.isnan(values[kept_row])
        if values[kept_row] > values[gone] or unknown:
            return words
    return "it came first"


def _shown(row: Row) -> str:
    """A row as one text, for people: a call stands as `name(arguments)`."""
    turns = []
    for message in row.messages:
        if message["role"] != "system":
            calls = [call["function"] for call in message.get("tool_calls") or ()]
            parts = [message["content"], *(f"{call['name']}({call['arguments']})" for call in calls)]
            turns.append(f"{message['role']}: " + "\n".join(filter(None, parts)))
    return "\n".join(turns)[:LONGEST_SHOWN]


def tokens_of(table: Table, order: NDArray[np.int64]) -> dict[str, Any]:
    """Statistics of the rows' tokens; of rows that were not measured they are estimated from the characters."""
    columns = {name: table.columns[name][order] for name in ("tokens", "supervised", "characters", "answer_characters")}
    tokens, supervised = columns["tokens"], columns["supervised"]
    measured = tokens >= 0
    if measured.all() or not measured.any():
        return token_statistics(tokens[measured].tolist(), int(supervised[measured].sum()))
    line = TokenLine.through(columns["characters"][measured], tokens[measured])
    each = np.sort(np.where(measured, tokens, np.rint(line.at(columns["characters"])).astype(np.int64)))
    total = line.total(columns["characters"])
    # supervised tokens follow the last answer or, in chats with several answers, the whole row
    of, supervised_line = max(
        (
            (name, TokenLine.through(columns[name][measured], supervised[measured]))
            for name in ("answer_characters", "characters")
        ),
        key=lambda pair: pair[1].fit,
    )
    return {
        **token_statistics(each.tolist(), supervised_line.total(columns[of])),
        "total": total,
        "mean": round(total / len(order), 2),
        "measured": int(measured.sum()),
    }


@dataclass(frozen=True)
class TokenLine:
    """The tokens of rows by their characters, fitted to the rows that were measured (Cochran 1977, Sampling Techniques, 7.1).

    That long rows are always measured does not make it too high, as it would the mean of the measured ones. The sums are whole
    numbers, so that no machine gets another result.

    Args:
        x, y: means of the characters and of what was measured.
        slope: of the line.
        fit: square of the correlation.
    """

    x: float
    y: float
    slope: float
    fit: float

    @staticmethod
    def through(characters: Array, measured: Array) -> TokenLine:
        """The line of least squares."""
        x, y = characters.astype(np.int64), measured.astype(np.int64)
        n, sum_x, sum_y = len(x), int(x.sum()), int(y.sum())
        spread_x, spread_y = n * int((x * x).sum()) - sum_x**2, n * int((y * y).sum()) - sum_y**2
        both = n * int((x * y).sum()) - sum_x * sum_y
        slope, fit = (
            both / spread_x if spread_x else 0.0,
            both**2 / (spread_x * spread_y) if spread_x and spread_y else 0.0,
        )
        return TokenLine(sum_x / n, sum_y / n, slope, fit)

    def at(self, characters: Array) -> Array:
        """What rows of so many characters measure."""
        return np.maximum(self.y + self.slope * (characters - self.x), 1.0)

    def total(self, characters: Array) -> int:
        """What all rows measure together."""
        return round(len(characters) * self.y + self.slope * (int(characters.sum()) - len(characters) * self.x))
