"""The prepare stage: sources of any shape to train, val and test, with an account of every record.

The first pass (`process_record`) knows one record at a time: rows go to a file, their facts into a `Table`.
The second decides on the arrays (`dedup_and_split`) and copies each row to its split. Memory: 300 to 800 bytes a row.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import orjson

from tuneloop.core.errors import UserError
from tuneloop.core.machine import cores
from tuneloop.core.ray.cluster import on_ray
from tuneloop.core.ui import progress
from tuneloop.core.units import counted, verb
from tuneloop.data.checks import reject_share
from tuneloop.data.checks.label_errors import Embed
from tuneloop.data.clean.pii import pseudonym_key
from tuneloop.data.config import PrepareConfig
from tuneloop.data.dataset import prepare_key
from tuneloop.data.dedup.contamination import index_of
from tuneloop.data.dedup_and_split import dedup_and_split
from tuneloop.data.process_record import LANGUAGES_EVERY, ChunkWork, Measure, RowProcessor, TokenCount, process_chunk
from tuneloop.data.sources.chunks import chunks
from tuneloop.data.sources.parse import Chunk, Item, parse_chunk
from tuneloop.data.sources.read import entry_of, find_files
from tuneloop.data.spool import CHUNK, GivenFile, PrepareContext, Table, look_at, spool_folder
from tuneloop.data.workers import ordered_map
from tuneloop.data.write_dataset import clear, lines_to, reject_lines, write_dataset
from tuneloop.records.rows import Dataset, Reject

__all__ = ["Measure", "TokenCount", "prepare"]

SMALL = 4 << 20  # bytes of sources up to which starting processes costs more than they bring


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
) -> Dataset:
    """Read, parse, repair, redact, deduplicate, measure, split, check and write a data set.

    Every record read is in one split or in `rejects.jsonl`; every change to one in `repairs.jsonl`.
    The same sources, configuration and seed give the same bytes, whatever the number of processes.

    Args:
        out: folder for the splits and `dataset.json`, which is written last.
        measure: a row's length in tokens with the model's chat template; `ValueError` if it can't be rendered.
        model: fingerprint of the model that `measure` stands for; part of the manifest's `key`.
        template_adds: the system turn that this model's chat template puts before rows that have none, for the record.
        embed: texts to unit vectors (rows, size), for `duplicates.semantic` and better label checks.

    Raises:
        UserError: missing or empty sources, no format that fits, a column that no record has, no valid rows,
            a source that changes meanwhile, or more rejects than `allow_rejects`; then `rejects.jsonl` is there and
            `dataset.json` is not.
    """
    out = Path(out)
    progress("looking at the sources", 0, 1)
    key = prepare_key(config, name=name, seed=seed, model_fingerprint=model)
    # Of several files each may have another format; a `dataset_info.json` describes it.
    sources = [
        GivenFile(file, None, look_at([file], config)[0] if entry_of(file) is not None else None)
        for file in find_files(config.sources, config.max_expansion)
    ]
    test = find_files([config.split.test], config.max_expansion) if isinstance(config.split.test, str) else ()
    given = [GivenFile(file, "test", look_at([file], config)[0]) for file in test]
    guess, frame = look_at([source.file for source in sources if source.guess is None] or [sources[0].file], config)
    progress("looking at the sources", 1, 1)
    files = [*given, *sources]
    is_small = _size(files) <= SMALL
    processor = RowProcessor(
        config, measure, pseudonym_key(config.personal), frame=frame, languages_every=1 if is_small else LANGUAGES_EVERY
    )
    workers = 1 if is_small else config.workers or cores()
    cluster = on_ray() if config.engine == "ray" else nullcontext()
    with spool_folder(out) as spool, Table(spool, frame) as table, cluster:
        job = PrepareContext(config, seed, out, files, guess, processor, table, workers, embed)
        _gather(job, given, processor)
        taken = len(table)
        index = index_of(table.reader.texts(range(taken)), config.duplicates) if given else None
        _gather(job, sources, replace(processor, index=index))
        read = sum(table.records_of)
        if not read:
            step = "name files with at least one record"
            raise UserError("No records", where=", ".join(config.sources), next_step=step)
        progress("reading", _size(files), _size(files), rows=len(table), rejected=sum(table.rejected.values()))
        _refuse_too_many(job)
        dedup_and_split(job, taken)
        if not len(table.alive) or not (table.split[table.alive] == 0).any():
            where = f"{counted(read, 'record')} read, {len(table)} of them valid"
            step = "add data, or lower data.split.val and data.split.test"
            raise UserError("No rows are left for training", where=where, next_step=step)
        return write_dataset(job, {"name": name, "key": key, "seed": seed, "model": model}, template_adds)


def _size(files: Sequence[GivenFile]) -> int:
    return sum(os.path.getsize(given.file.path) for given in files)


def _gather(job: PrepareContext, files: Sequence[GivenFile], processor: RowProcessor) -> None:
    work = _work(job, files)
    for facts in ordered_map(process_chunk, work, processor, workers=job.workers, engine=job.config.engine):
        job.table.add(facts)
    job.table.join()


def _work(job: PrepareContext, files: Sequence[GivenFile]) -> Iterator[ChunkWork]:
    """The chunks of files; `limit` ends the reading of the sources."""
    left, size = job.config.limit, _size(job.files)
    before = _size(job.files[: job.files.index(files[0])]) if files else 0
    for given in files:
        file, position = given.file, 0
        for chunk in chunks(file, CHUNK):
            job.encodings[file.name] = chunk.encoding
            position = max(position, chunk.position)
            progress("reading", min(before + position, size), max(size, 1), file=file.name)
            records: Chunk | Sequence[Item] = chunk
            if left is not None and given.split is None:
                records = parse_chunk(chunk)[:left]
                left -= len(records)
            yield ChunkWork(file.name, records, given.guess or job.guess)
            if left == 0 and given.split is None:
                return
        before += os.path.getsize(file.path)


def _refuse_too_many(job: PrepareContext) -> None:
    """Stop when too large a share of the records is defective, or nothing is left; the rejects are written first."""
    table, config, out, reasons = job.table, job.config, job.out, job.table.rejected
    row_count, read = len(table), sum(table.records_of)
    bad, of = reject_share(read, reasons)
    if row_count and bad <= config.allow_rejects * of:
        return
    clear(out)
    examples: dict[str, Reject] = {}
    with lines_to(out / "rejects.jsonl") as lines:
        for line in reject_lines(table, config.duplicates.keep):
            lines.write(line)
            if len(examples) < len(reasons):
                value = orjson.loads(line)
                examples.setdefault(value["reason"], Reject(**value))
    top = []
    for reason, n in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))[:3]:
        example = examples[reason]
        detail = f": {' '.join(example.detail.split())[:100]}" if example.detail else ""
        top.append(f"{reason} {n}x, as {example.source}:{example.line}{detail}")
    what, step = f"No valid rows in {counted(read, 'record')}", f"look at {out / 'rejects.jsonl'}"
    if row_count:
        what = f"{bad} of {counted(of, 'record')} ({bad / of:.0%}) {verb(bad, 'was', 'were')} rejected; {config.allow_rejects:.0%} are allowed"
        enough = next((limit for limit in (0.5, 0.75, 0.9) if bad / of <= limit), 1.0)
        step += f"; to continue all the same add allow_rejects={enough}"
    raise UserError(what, where="; ".join(top), next_step=step)
