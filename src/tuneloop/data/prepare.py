"""The prepare stage: sources of any shape to train, val and test, with an account of every record.

Two passes. The first knows one record at a time and runs in any number of processes (`refine`); its rows go to a
spool on disk, their facts into arrays. The second decides on the arrays what depends on all rows (duplicates,
leaks, splits, limits) and copies each row's bytes from the spool to its split. So memory is bounded by the facts, some
200 bytes a row, and the result does not depend on the number of processes.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import orjson

from tuneloop import __version__
from tuneloop.core.errors import UserError
from tuneloop.core.files import replacing, user_errors_of_the_disk, write_json
from tuneloop.core.progress import Progress, no_progress
from tuneloop.data.checks import (
    Check,
    LongRows,
    Overview,
    Suspects,
    find_suspects,
    long_check,
    meanwhile,
    reject_share,
    run_checks,
    suspect_records,
)
from tuneloop.data.config import NO_CONTENT, PrepareConfig
from tuneloop.data.dataset import RowFile, hash_of_keys, prepare_key, sha256_of_source, token_statistics
from tuneloop.data.dedup.contamination import index_of
from tuneloop.data.dedup.minhash import NO_FRAME, Frame, shared_frame
from tuneloop.data.dedup_and_split import Embed, decide, shuffled
from tuneloop.data.formats import FormatGuess, Parsed, check_columns, detect, parse_record
from tuneloop.data.mix import GENERAL_FILE, Drawn, GeneralRows, Mixed, Size, dataset_rows, interleaved, mix_rows
from tuneloop.data.process_record import (
    LANGUAGES_EVERY,
    NO_ROW,
    Measure,
    Refined,
    Refinery,
    TokenCount,
    Work,
    counted,
    refine,
    refine_chunk,
    reject_line,
)
from tuneloop.data.reasons import REASONS, REPAIRS
from tuneloop.data.sources.chunks import chunks
from tuneloop.data.sources.parse import SourceFile, SourceRecord, parse_chunk
from tuneloop.data.sources.read import entry_of, find_files
from tuneloop.data.split import SPLITS, TEST, Split
from tuneloop.data.spool import Table, spool_folder
from tuneloop.data.task import format_facts
from tuneloop.data.workers import beside, ordered_map, usual_workers
from tuneloop.records.dataset import MANIFEST
from tuneloop.records.rows import Dataset, Reject, Row

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Measure", "TokenCount", "prepare"]

SAMPLE = 2000  # records looked at to find the format
CHUNK = 1 << 18  # bytes of a chunk: small enough that all processes have some of a small source
SMALL = 4 << 20  # bytes of sources up to which starting processes costs more than they bring
LINES_AT_ONCE = 256  # that are hashed and written at once
LONGEST_SHOWN = 4_000  # characters of each row in `duplicates.jsonl`
SHOWN_DUPLICATES = 200  # of `duplicates.jsonl`


def prepare(
    config: PrepareConfig,
    *,
    name: str,
    seed: int,
    out: Path | str,
    measure: Measure,
    model: str = "",
    template_adds: str = "",
    embed: Embed | None = None,
    progress: Progress = no_progress,
) -> Dataset:
    """Read, parse, repair, redact, deduplicate, measure, split, check and write a data set.

    Every record read stands in one split or in `rejects.jsonl`; every change to one in `repairs.jsonl`.
    The same sources, configuration and seed give the same bytes, whatever the number of processes.

    Args:
        config: what to read and how.
        name: name of the data set.
        seed: seed of the split.
        out: folder for the splits and `dataset.json`, which is written last.
        measure: a row's length in tokens with the model's chat template; `ValueError` if it can't be rendered.
        model: fingerprint of the model that `measure` stands for; part of the manifest's `key`.
        template_adds: the system turn that this model's chat template puts before rows that have none, for the record.
        embed: texts to unit vectors (rows, size), for `duplicates.semantic` and better label checks.
        progress: told how far it is.

    Raises:
        UserError: missing or empty sources, no format that fits, a column that no record has, no valid rows,
            a source that changes meanwhile, or more rejects than `allow_rejects`; then `rejects.jsonl` is there and
            `dataset.json` is not.
    """
    from tuneloop.data.pii import pseudonym_key

    out = Path(out)
    progress("looking at the sources", 0, 1)
    key = prepare_key(config, name=name, seed=seed, model_fingerprint=model)
    sources = [Given(file, None, _described(file, config)) for file in find_files(config.sources, config.max_expansion)]
    files = [*_given_files(config), *sources]
    guess, frame = _look([given.file for given in sources if given.guess is None] or [sources[0].file], config)
    progress("looking at the sources", 1, 1)
    with spool_folder(out) as spool:
        refinery = Refinery(
            config,
            measure,
            spool,
            pseudonym_key(config.personal),
            frame=frame,
            languages_every=1 if _is_small(files) else LANGUAGES_EVERY,
        )
        workers = 1 if _is_small(files) else config.workers or usual_workers()
        with Table(spool, frame) as table:
            job = PrepareContext(config, seed, out, files, guess, refinery, table, workers, embed, progress)
            _gather(job)
            _refuse_too_many(job)
            taken = np.array([given.split is not None for given in job.file_of_chunk])[table.columns["chunk"]]
            decide(table, config, seed, refinery, taken=taken, embed=embed, workers=job.workers, progress=progress)
            if not len(table.alive) or not (table.split[table.alive] == 0).any():
                raise UserError(
                    "No rows are left for training",
                    where=f"{sum(table.records_of)} records read, {len(table)} of them valid",
                    next_step="add data, or lower data.split.val and data.split.test",
                )
            return _write(job, {"name": name, "key": key, "seed": seed, "model": model}, template_adds)


@dataclass(frozen=True)
class Given:
    """A file to read; those of a given or frozen test set belong to a split, and may have a format of their own."""

    file: SourceFile
    split: Split | None
    guess: FormatGuess | None


def _size(files: Sequence[Given]) -> int:
    return sum(os.path.getsize(given.file.path) for given in files)


def _is_small(files: Sequence[Given]) -> bool:
    return _size(files) <= SMALL


def _described(file: SourceFile, config: PrepareConfig) -> FormatGuess | None:
    """The format of a file that a `dataset_info.json` describes: of several files each may have another."""
    return _look([file], config)[0] if entry_of(file) is not None else None


def _given_files(config: PrepareConfig) -> list[Given]:
    """Files whose rows are taken as they are: `split.test` when it is a file."""
    given = []
    if isinstance(config.split.test, str):
        for file in find_files([config.split.test], config.max_expansion):
            given.append(Given(file, "test", _look([file], config)[0]))
    return given


@dataclass
class PrepareContext:
    """A preparation at work.

    Args:
        table: the rows.
        workers: processes to work in.
        file_of_chunk: which file each chunk is of.
        rows_of: records by source; `encodings`: how each source is encoded.
    """

    config: PrepareConfig
    seed: int
    out: Path
    files: list[Given]
    guess: FormatGuess
    refinery: Refinery
    table: Table
    workers: int
    embed: Embed | None
    progress: Progress
    file_of_chunk: list[Given] = field(default_factory=list)
    rows_of: Counter[str] = field(default_factory=Counter)
    encodings: dict[str, str] = field(default_factory=dict)


# --- first pass: reading and refining ------------------------------------------------------------


def _look(files: Sequence[SourceFile], config: PrepareConfig) -> tuple[FormatGuess, Frame]:
    """The format, and what all prompts share, from the first records; a configured column that none of them has is refused."""
    items = (item for file in files for chunk in chunks(file, CHUNK) for item in parse_chunk(chunk))
    sample = list(itertools.islice((item.value for item in items if isinstance(item, SourceRecord)), SAMPLE))
    if not sample:
        return FormatGuess("none", {}, "no records"), NO_FRAME
    check_columns(sample, config)
    guess = detect(sample, config, entry_of(files[0]) if len(files) == 1 else None)
    parsed = (parse_record(value, guess, config) for value in sample[:500])
    turns = (m for p in parsed if isinstance(p, Parsed) for m in p.messages)
    frame = shared_frame([m["content"] for m in turns if m["role"] == "user"])
    return guess, replace(frame, ratings=True) if config.duplicates.keep == "best" else frame


def _gather(job: PrepareContext) -> None:
    """Run every chunk through `refine_chunk` and collect the facts; a given test set first, for its rows must not leak."""
    config, table = job.config, job.table
    size = _size(job.files)
    given, sources = ([g for g in job.files if (g.split is not None) == wanted] for wanted in (True, False))
    for files in (given, sources):
        refinery = job.refinery
        if files is sources and given:
            indices = list(range(len(table)))
            refinery = replace(refinery, index=index_of(table.reader.texts(indices), config.duplicates))
        work = _work(job, files, size)
        for facts in ordered_map(refine_chunk, work, refinery, workers=job.workers, engine=config.engine):
            source = job.file_of_chunk[facts.number].file.name
            table.add(facts, source)
            job.rows_of[source] += facts.records
        table.join()
    if not sum(table.records_of):
        raise UserError("No records", where=", ".join(config.sources), next_step="name files with at least one record")
    job.progress("reading", size, size, rows=len(table), rejected=sum(table.rejected.values()))


def _work(job: PrepareContext, files: Sequence[Given], size: int) -> Iterator[Work]:
    """The chunks of files with their numbers; `limit` ends the reading of the sources."""
    left = job.config.limit
    before = _size(job.files) - _size(files)
    for given in files:
        file, position = given.file, 0
        for chunk in chunks(file, CHUNK):
            number = len(job.file_of_chunk)
            job.file_of_chunk.append(given)
            job.encodings[file.name] = chunk.encoding
            position = max(position, chunk.position)
            job.progress("reading", min(before + position, size), max(size, 1), file=file.name)
            guess = given.guess or job.guess
            if left is None or given.split is not None:
                yield Work(number, chunk, guess)
            else:
                items = parse_chunk(chunk)[:left]
                left -= len(items)
                yield Work(number, items, guess)
                if not left:
                    return
        before += os.path.getsize(file.path)


def _refuse_too_many(job: PrepareContext) -> None:
    """Stop when too large a share of the records is defective, or nothing is left; the rejects are written first."""
    table, config, out = job.table, job.config, job.out
    reasons = table.rejected
    kept, read = len(table), sum(table.records_of)
    bad, of = reject_share(read, reasons)
    if kept and bad <= config.allow_rejects * of:
        return
    _clear(out)
    examples: dict[str, Reject] = {}
    with _lines_to(out / "rejects.jsonl") as lines:
        for line in _rejects(table, config.duplicates.keep):
            lines.write(line)
            if len(examples) < len(reasons):
                value = orjson.loads(line)
                examples.setdefault(value["reason"], Reject(**value))
    what = f"No valid rows in {read} records"
    if kept:
        what = f"{bad} of {of} records ({bad / of:.0%}) were rejected; {config.allow_rejects:.0%} are allowed"
    top = []
    for reason, n in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))[:3]:
        example = examples[reason]
        detail = f": {' '.join(example.detail.split())[:100]}" if example.detail else ""
        top.append(f"{reason} {n}x, as {example.source}:{example.line}{detail}")
    step = f"look at {out / 'rejects.jsonl'}"
    if kept:
        step += f"; to go on all the same add allow_rejects={_allowing(bad / of)}"
    raise UserError(what, where="; ".join(top), next_step=step)


def _allowing(share: float) -> float:
    """A round value of `allow_rejects` that lets a share pass."""
    return next((limit for limit in (0.5, 0.75, 0.9) if share <= limit), 1.0)


# --- second pass: writing ------------------------------------------------------------------------


@dataclass
class _Lines:
    """A JSON Lines file in the making: its lines so far, and their hash."""

    file: BinaryIO
    hash: Any = field(default_factory=hashlib.sha256)
    lines: int = 0

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
def _lines_to(path: Path) -> Iterator[_Lines]:
    """A JSON Lines file that is there when all its lines are."""
    with replacing(path) as file:
        yield _Lines(file)


def _clear(out: Path) -> None:
    """Take an earlier manifest away, so that the folder is not complete while its files change."""
    with user_errors_of_the_disk(out / MANIFEST), contextlib.suppress(FileNotFoundError):
        (out / MANIFEST).unlink()


def _rejects(table: Table, policy: str) -> Iterator[bytes]:
    """The lines of `rejects.jsonl` in the order of the sources: what was no row, and rows that were dropped.

    Args:
        policy: of `duplicates.keep`; where it may decide, the detail says whether it did.
    """
    for chunk, source in enumerate(table.source_of):
        refused, _ = table.side(chunk)
        dropped = [
            (
                int(table.columns["line"][i]),
                reject_line(
                    Reject(
                        source,
                        int(table.columns["line"][i]),
                        table.reason(i),
                        _detail(table, i, policy),
                        orjson.loads(table.reader.record_bytes(i)),
                    )
                ),
            )
            for i in table.dropped(chunk)
        ]
        for _, line in heapq.merge(refused, dropped, key=lambda pair: pair[0]) if dropped else refused:
            yield line


def _detail(table: Table, row: int, policy: str) -> str:
    """The particulars of a reject; of a copy also why the other row stays, where that is not always so."""
    kept = int(table.because[row])
    if kept < 0 or policy not in _WORTH or table.reason(row) in ("split_leak", "conflicting_label"):
        return table.detail(row)
    return f"{table.detail(row)}; {_why(table, policy, row, kept)}"


def _repairs(table: Table) -> Iterator[tuple[str, bytes, bool]]:
    """Kinds and lines of `repairs.jsonl`, and whether the row is in: the changes to records that were rejected are told, too."""
    for chunk in range(len(table.source_of)):
        _, repairs = table.side(chunk)
        first = table.chunk_rows(chunk).start
        for place, kind, line in repairs:
            if place != NO_ROW and first + place in table.repeats:
                line = orjson.dumps(orjson.loads(line) | {"id": table.row(first + place).id})
            yield kind, line, place != NO_ROW and not table.fate[first + place]


def _write(job: PrepareContext, identity: dict[str, Any], template_adds: str) -> Dataset:
    """The files of a data set, the manifest last."""
    table, config, out = job.table, job.config, job.out
    _clear(out)
    task = _task(config, job.guess, table)
    orders = {split: _order(table, number, job.seed) for number, split in enumerate(SPLITS)}
    mixed = _mix(job, orders)
    # The dearest checks begin now, in other processes, and are done when the files are written.
    facts = Overview(
        task, table.columns, table.names, np.where(table.fate == 0, table.split, -1), table.row, seed=job.seed
    )
    begun = _begin_checks(job, facts)
    about: dict[str, Any] = {}
    for split, order in orders.items():
        general = {"train": mixed.train, "val": [], "test": mixed.test}[split] if mixed else []
        with _lines_to(out / f"{split}.jsonl") as lines:
            lines.write_all(_interleaved(table.lines(order), len(order), general) if general else table.lines(order))
        about[split] = {
            "path": f"{split}.jsonl",
            "rows": lines.lines,
            "sha256": lines.hash.hexdigest(),
            "tokens": _tokens(table, order),
            "labels": _label_counts(table, order) if task == "classification" else {},
        }
    if mixed:
        with _lines_to(out / GENERAL_FILE) as lines:
            for drawn in mixed.held_out:
                lines.write(orjson.dumps(drawn.row.to_json()))
        about_general = {"path": GENERAL_FILE, "rows": lines.lines, "sha256": lines.hash.hexdigest()}
    long: Counter[str] = Counter()
    with _lines_to(out / "rejects.jsonl") as lines:
        for line in _rejects(table, config.duplicates.keep):
            lines.write(line)
            if b'"too_long"' in line:
                long += _too_long(orjson.loads(line))
    kinds: Counter[str] = Counter()
    personal: Counter[str] = Counter()
    with _lines_to(out / "repairs.jsonl") as lines:
        for kind, line, is_in in _repairs(table):
            kinds[kind] += 1
            if kind == "pii":
                personal += counted(orjson.loads(line)["detail"])
            elif is_in and kind in ("cut", "split"):
                long += _shortened(orjson.loads(line))
            lines.write(line)
    _write_duplicates(job)
    reasons = table.rejected + Counter(table.reason(i) for i in np.flatnonzero(table.fate).tolist())
    kept, read, rejected = len(table.alive), sum(table.records_of), reasons.total()
    # with too_long=split one record may make several rows: read + added = kept + rejected
    added = {"added": kept + rejected - read} if config.too_long == "split" else {}
    digest = hash_of_keys(
        {split: _keys(table, order) for split, order in orders.items()},
        config,
        job.seed,
        mixed.record if mixed else None,
    )
    manifest: dict[str, Any] = {
        "version": 1,
        "id": f"{identity['name']}-{digest[:12]}",
        "hash": digest,
        **identity,
        "tool_version": __version__,
        "task": task,
        "format": format_facts(job.guess),
        **({"labels": config.labels or _labels(table)} if task == "classification" else {}),
        "sources": [
            {
                "path": given.file.name, "sha256": sha256_of_source(given.file.path), "rows": job.rows_of[given.file.name],
                "encoding": job.encodings.get(given.file.name, ""), **({"split": given.split} if given.split else {}),
            }
            for given in job.files
        ],
        "config": config.model_dump(mode="json", exclude=NO_CONTENT),
        "counts": {"read": read, "kept": kept, "rejected": rejected, **added, **{s: len(o) for s, o in orders.items()}},
        "rejected": dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
        "repaired": dict(sorted(kinds.items())),
        "personal": dict(sorted(personal.items())),
        "too_long": {"policy": config.too_long, **long},
        "languages": _languages(table),
        "splits": about,
        **({"mix": mixed.record, "general": about_general} if mixed else {}),
        **({"template_adds": template_adds} if template_adds else {}),
        "words": {word: sentence for word, sentence in {**REASONS, **REPAIRS}.items() if word in reasons or word in kinds},
    }  # fmt: skip
    dataset = Dataset(str(out), manifest, *(RowFile(out / f"{s}.jsonl", about[s]["rows"]) for s in SPLITS))
    overview = replace(
        facts, read=read, rejected=reasons, repaired=kinds, max_length=config.max_length,
        too_long=LongRows(config.too_long, **long), labels=manifest.get("labels", ()),
    )  # fmt: skip
    manifest["checks"] = _checks(job, overview, begun) + ([mixed.check] if mixed else [])
    if identity["key"] != prepare_key(
        config, name=identity["name"], seed=job.seed, model_fingerprint=identity["model"]
    ):
        raise UserError(
            "A source changed while the data were prepared",
            where=", ".join(given.file.name for given in job.files),
            next_step="wait until it is whole, or copy it, and prepare again",
        )
    write_json(out / MANIFEST, manifest)
    return dataset


def _too_long(reject: Mapping[str, Any]) -> Counter[str]:
    """A reject, and its tokens, if it is one for its length; the detail begins with their number."""
    if reject["reason"] != "too_long":
        return Counter()
    return Counter({"rejected": 1, "rejected_tokens": int(reject["detail"].split()[0])})


def _shortened(repair: Mapping[str, Any]) -> Counter[str]:
    """A row that was cut, and by how many tokens; or one that was split, told with its first part."""
    if repair["kind"] == "cut":
        return Counter({"cut": 1, "cut_tokens": repair["tokens"]})
    return Counter({"split": 1} if repair["part"] == 1 else {})


_Begun = Mapping[str, Callable[[], Any]]  # by the name of a check, what gives its result
_DOUBTED = "label_errors"


def _begin_checks(job: PrepareContext, overview: Overview) -> _Begun:
    """The checks that take long, at work while the files are written."""
    workers = job.workers if job.embed is None else 1  # a model that has been at work does not survive a fork
    first = (_DOUBTED,) if overview.task == "classification" else ()
    return beside(_long_check, [*first, *meanwhile(overview)], (job.embed, overview), workers=workers)


def _long_check(name: str, setting: tuple[Embed | None, Overview]) -> Check | tuple[Suspects, list[bytes]]:
    """A check; of doubtful labels what finds them, and the lines of `label_errors.jsonl`, the most suspicious first."""
    embed, overview = setting
    if name != _DOUBTED:
        return long_check(name, overview)
    suspects = find_suspects(overview, embed=embed)
    return suspects, [orjson.dumps(record) for record in suspect_records(overview, suspects, most=len(suspects.errors))]


def _checks(job: PrepareContext, overview: Overview, begun: _Begun) -> list[Check]:
    """All checks; the rows they found stand in `flagged.jsonl`, those with doubtful labels in `label_errors.jsonl`."""
    job.progress("checking", 0, 1)
    path = job.out / "label_errors.jsonl"
    if _DOUBTED not in begun:
        path.unlink(missing_ok=True)

    def flagged(records: Iterator[dict[str, Any]]) -> None:
        with _lines_to(job.out / "flagged.jsonl") as lines:
            for record in records:
                lines.write(orjson.dumps(record))

    def suspects() -> Suspects:
        found, records = begun[_DOUBTED]()
        with _lines_to(path) as lines:
            for record in records:
                lines.write(record)
        doubted: Suspects = found
        return doubted

    checks = run_checks(overview, suspects=suspects, long=lambda name: begun[name](), flagged=flagged)
    job.progress("checking", 1, 1)
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


def _interleaved(lines: Iterator[bytes], n: int, general: Sequence[Drawn]) -> Iterator[bytes]:
    """A split's lines with the general rows spread evenly among them."""
    places = set(interleaved(n, len(general)))
    others = iter(general)
    for place in range(n + len(general)):
        yield orjson.dumps(next(others).row.to_json()) if place in places else next(lines)


def _tokens(table: Table, order: NDArray[np.int64]) -> dict[str, Any]:
    """Statistics of the rows' tokens; of rows that were not measured they are estimated from the characters."""
    columns = {name: table.columns[name][order] for name in ("tokens", "supervised", "characters", "answer_characters")}
    tokens, supervised = columns["tokens"], columns["supervised"]
    known = tokens >= 0
    if known.all() or not known.any():
        return token_statistics(tokens[known].tolist(), int(supervised[known].sum()))
    line = _Line.through(columns["characters"][known], tokens[known])
    each = np.sort(np.where(known, tokens, np.rint(line.at(columns["characters"])).astype(np.int64)))
    total = line.total(columns["characters"])
    # what is learned goes with the last answer or, in chats of many, with the whole
    of, learned = max(
        (
            (name, _Line.through(columns[name][known], supervised[known]))
            for name in ("answer_characters", "characters")
        ),
        key=lambda pair: pair[1].fit,
    )
    return {
        **token_statistics(each.tolist(), learned.total(columns[of])),
        "total": total,
        "mean": round(total / len(order), 2),
        "measured": int(known.sum()),
    }


@dataclass(frozen=True)
class _Line:
    """What rows measure by their characters, through those that were measured (Cochran 1977, Sampling Techniques, 7.1).

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
    def through(characters: NDArray[Any], measured: NDArray[Any]) -> _Line:
        """The line of least squares."""
        x, y = characters.astype(np.int64), measured.astype(np.int64)
        n, sum_x, sum_y = len(x), int(x.sum()), int(y.sum())
        spread_x, spread_y = n * int((x * x).sum()) - sum_x**2, n * int((y * y).sum()) - sum_y**2
        both = n * int((x * y).sum()) - sum_x * sum_y
        slope, fit = (
            both / spread_x if spread_x else 0.0,
            both**2 / (spread_x * spread_y) if spread_x and spread_y else 0.0,
        )
        return _Line(sum_x / n, sum_y / n, slope, fit)

    def at(self, characters: NDArray[Any]) -> NDArray[Any]:
        """What rows of so many characters measure."""
        found: NDArray[Any] = np.maximum(self.y + self.slope * (characters - self.x), 1.0)
        return found

    def total(self, characters: NDArray[Any]) -> int:
        """What all rows measure together."""
        return round(len(characters) * self.y + self.slope * (int(characters.sum()) - len(characters) * self.x))


def _labels(table: Table) -> list[str]:
    """Labels of the rows that are in."""
    used = np.unique(table.columns["label"][table.alive])
    return sorted(table.names["label"][i] for i in used.tolist() if i >= 0)


def _label_counts(table: Table, order: NDArray[np.int64]) -> dict[str, int]:
    codes, counts = np.unique(table.columns["label"][order], return_counts=True)
    return dict(
        sorted((table.names["label"][c], n) for c, n in zip(codes.tolist(), counts.tolist(), strict=True) if c >= 0)
    )


def _languages(table: Table) -> dict[str, int]:
    codes, counts = np.unique(table.columns["language"][table.alive], return_counts=True)
    pairs = [(table.names["language"][c], n) for c, n in zip(codes.tolist(), counts.tolist(), strict=True) if c >= 0]
    return dict(sorted(pairs, key=lambda pair: (-pair[1], pair[0])))


def _mix(job: PrepareContext, orders: Mapping[Split, NDArray[Any]]) -> Mixed | None:
    """General rows for the splits, as `data.mix` asks for them."""
    settings = job.config.mix
    if not settings.sources or settings.share == 0:
        return None
    general = []
    for source in settings.sources:
        rows = dataset_rows(source)
        if rows is None:
            rows = list(_general_rows(job, source))
        general.append(GeneralRows(source, rows, [job.refinery.measure(row).tokens for row in rows]))
    sizes = {split: Size(len(order), int(_tokens(job.table, order)["total"])) for split, order in orders.items()}
    splits = {split: map(job.table.row, order.tolist()) for split, order in orders.items()}
    return mix_rows(splits, sizes, general, settings, job.seed)


def _general_rows(job: PrepareContext, source: str) -> Iterator[Row]:
    """The rows of a general source that is no data set: refined like the task's, what is none left out."""
    plain = PrepareConfig.model_validate(
        {**job.config.model_dump(include={"repair", "personal", "max_length", "language"}), "sources": [source]}
    )
    refinery = replace(job.refinery, config=plain)
    for file in find_files([source], job.config.max_expansion):
        guess, _ = _look([file], plain)
        for chunk in chunks(file):
            for item in parse_chunk(chunk):
                for made in [item] if isinstance(item, Reject) else refine(item, guess, refinery):
                    if isinstance(made, Refined):
                        yield made.row


def _write_duplicates(job: PrepareContext) -> None:
    """`duplicates.jsonl`: some of the dropped copies beside what stayed, near ones first."""
    table = job.table
    copies = np.flatnonzero(table.because >= 0)
    copies = copies[
        table.fate[table.because[copies]] == 0
    ]  # the other one may have gone as well, as conflicts=drop has it
    likeness = table.likeness[copies]
    picked = copies[np.lexsort((shuffled(table.columns["id"][copies], job.seed), likeness >= 1.0))][:SHOWN_DUPLICATES]
    policy = job.config.duplicates.keep
    with _lines_to(job.out / "duplicates.jsonl") as lines:
        for index in picked.tolist():
            kept = int(table.because[index])
            (source, line), (kept_source, kept_line) = table.place(index), table.place(kept)
            reason = table.reason(index)
            gone, stays = table.row(index), table.row(kept)
            lines.write(orjson.dumps({
                "source": source, "line": line, "id": gone.id,
                "kept_source": kept_source, "kept_line": kept_line, "kept_id": stays.id,
                "similarity": round(float(table.likeness[index]), 4), "kind": reason.removesuffix("_duplicate"),
                "why": _why(table, policy, index, kept),
                "text": _shown(gone), "kept_text": _shown(stays),
            }))  # fmt: skip


# By policy the column that decides, and the words for it; among equals the first one stays.
_WORTH = {
    "longest": ("characters", "it is longer"), "newest": ("time", "it is newer"), "best": ("rating", "it is rated higher"),
}  # fmt: skip


def _why(table: Table, policy: str, gone: int, kept: int) -> str:
    """Why of two rows that are the same one stays."""
    if table.reason(gone) == "split_leak":
        return "it is in the test set" if table.split[kept] == TEST else "it is in the validation set"
    column, words = _WORTH.get(policy, ("", ""))
    if column:
        values = table.columns[column]
        if values[kept] > values[gone] or (
            values[gone] != values[gone] and values[kept] == values[kept]
        ):  # NaN: unknown
            return words
    return "it came first"


def _shown(row: Row) -> str:
    """A row as one text, for people: a call stands as `name(arguments)`."""
    turns = []
    for message in row.messages:
        if message["role"] != "system":
            calls = [call["function"] for call in message.get("tool_calls") or ()]
            said = [message["content"], *(f"{call['name']}({call['arguments']})" for call in calls)]
            turns.append(f"{message['role']}: " + "\n".join(filter(None, said)))
    return "\n".join(turns)[:LONGEST_SHOWN]
