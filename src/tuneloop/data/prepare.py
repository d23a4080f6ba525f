"""The prepare stage: sources of any shape to train, val and test, with an account of every record.

The first pass (`process_record`) knows one record at a time: rows go to a file, their facts into a `Table`. The second
(`_dedup_and_split`) decides on the arrays which rows are copies, which contradict each other and which split each
belongs to; then each row is copied to its split. Memory: 300 to 800 bytes a row.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tuneloop.core.errors import UserError
from tuneloop.core.foreign import fast_json
from tuneloop.core.machine import cores
from tuneloop.core.ray.cluster import on_ray
from tuneloop.core.ui import progress
from tuneloop.core.units import counted, verb
from tuneloop.data import process_record as first_pass
from tuneloop.data.checks.checks import reject_share
from tuneloop.data.checks.label_errors import Embed
from tuneloop.data.config import PrepareConfig, SplitConfig
from tuneloop.data.dataset import (
    LEAK,
    TEST,
    TRAIN,
    UNDECIDED,
    VAL,
    Array,
    key64,
    keyed_hash,
    load_dataset,
    mixed_bits,
    prepare_key,
    prompt_key,
    shuffled,
)
from tuneloop.data.dedup import duplicates, minhash
from tuneloop.data.dedup.contamination import index_of
from tuneloop.data.dedup.duplicates import Alike, find_alike
from tuneloop.data.formats.guess import FormatGuess, Rejection
from tuneloop.data.patch import read_patch
from tuneloop.data.pii.redact import pseudonym_key
from tuneloop.data.process_record import (
    UNMEASURED,
    ChunkWork,
    Measure,
    RowProcessor,
    TokenCount,
    measured_if_long,
    process_chunk,
)
from tuneloop.data.sources.chunks import chunks_of
from tuneloop.data.sources.parse import Chunk, Item, parse_chunk
from tuneloop.data.sources.read import entry_of, find_files
from tuneloop.data.table import (
    CHUNK,
    CarriedRows,
    PrepareContext,
    PrepareInput,
    Table,
    clear,
    detect_format,
    lines_to,
    reject_lines,
    spool_folder,
    write_dataset,
)
from tuneloop.data.workers import ordered_map
from tuneloop.records.rows import Dataset, Reject

__all__ = ["UNMEASURED", "Measure", "TokenCount", "prepare_dataset"]

FEW = 3  # a stratum below this many groups can't be in all three splits
BAND = 0.3  # how far a stratum's count in val or test may be off its share, relative to it, and
DEVIATIONS = 2.0  # in standard deviations of what hashes give; the larger of both, so that bands are seldom touched
RARE, ALONE = -1, -2  # in place of a rare stratum: of unlabelled groups, and of labelled ones, which are not dealt
SMALL = 4 << 20  # bytes of sources up to which starting processes costs more than they bring
# Rows, and their characters together, up to which each row is measured; of more, a sample picked by hash, and the
# longest rows: totals are then estimated from the characters of all rows (0.3 % off on short texts; more where tokens
# follow characters less). That no row is too long is known of all rows, see `process_record.measured_if_long`.
MEASURED_ROWS, MEASURED_CHARACTERS = 10_000, 2 << 20
SAMPLED_ROWS, SAMPLED_CHARACTERS, LEAST_SAMPLED = 1_000, 1 << 18, 500
LONGEST = 16
BATCH = 250  # rows that a process measures at once


def prepare_dataset(
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

    Every record read is in one split or in `rejects.jsonl`; every change to one in `repairs.jsonl`. The same sources,
    configuration and seed give the same bytes, whatever the number of processes.

    Args:
        out: folder for the splits and `dataset.json`, which is written last.
        measure: a row's length in tokens with the model's chat template; `ValueError` if it can't be rendered.
        model: fingerprint of the model that `measure` is of; part of the manifest's `key`.
        template_adds: the system turn that this model's chat template puts before rows that have none, for the record.
        embed: texts to unit vectors (rows, size), for `duplicates.semantic` and better label checks.

    Raises:
        UserError: missing or empty sources, no format that fits, a column that no record has, no valid rows, a source
            that changes meanwhile, or more rejects than `allow_rejects`; then there is only `rejects.jsonl`.
    """
    out = Path(out)
    progress("looking at the sources", 0, 1)
    key = prepare_key(config, name=name, seed=seed, model_fingerprint=model)
    # Of several files each may have another format; a `dataset_info.json` describes it.
    sources = [
        PrepareInput(file, None, detect_format([file], config)[0] if entry_of(file) is not None else None)
        for file in find_files(config.sources, config.max_expansion)
    ]
    test = find_files([config.split.test], config.max_expansion) if isinstance(config.split.test, str) else ()
    test_files = [PrepareInput(file, "test", detect_format([file], config)[0]) for file in test]
    guess, frame = detect_format(
        [source.file for source in sources if source.guess is None] or [sources[0].file], config
    )
    sources, test_files = ([_as_labelled_as(guess, file) for file in some] for some in (sources, test_files))
    progress("looking at the sources", 1, 1)
    files = [*test_files, *sources]
    is_small = _size(files) <= SMALL
    key_of_pseudonyms, every = pseudonym_key(config.personal), 1 if is_small else first_pass.LANGUAGES_EVERY
    patch = read_patch(config.patch) if config.patch is not None else {}
    processor = RowProcessor(config, measure, key_of_pseudonyms, frame=frame, patch=patch, languages_every=every)
    workers = 1 if is_small else config.workers or cores()
    cluster = on_ray() if config.engine == "ray" else nullcontext()
    with spool_folder(out) as spool, Table(spool, frame) as table, cluster:
        job = PrepareContext(config, seed, out, files, guess, processor, table, workers, embed)
        _read_files(job, test_files, processor)
        test_rows = len(table)
        index = index_of(table.reader.texts(range(test_rows)), config.duplicates) if test_files else None
        _read_files(job, sources, replace(processor, index=index))
        read = sum(table.records_of)
        if not read:
            step = "name files with at least one record"
            raise UserError("No records", where=", ".join(config.sources), next_step=step)
        progress("reading", _size(files), _size(files), rows=len(table), rejected=sum(table.rejected.values()))
        _refuse_too_many(job)
        _dedup_and_split(job, test_rows)
        if not len(table.alive) or not (table.split[table.alive] == 0).any():
            where = f"{counted(read, 'record')} read, {len(table)} of them valid"
            step = "add data, or lower data.split.val and data.split.test"
            raise UserError("No rows are left for training", where=where, next_step=step)
        return write_dataset(job, {"name": name, "key": key, "seed": seed, "model": model}, template_adds)


def _size(files: Sequence[PrepareInput]) -> int:
    return sum(os.path.getsize(source.file.path) for source in files)


def _as_labelled_as(guess: FormatGuess, file: PrepareInput) -> PrepareInput:
    """A file whose answers are labels where those of the others are: a small test set does not show it."""
    return file if file.guess is None else replace(file, guess=replace(file.guess, labelled=guess.labelled))


def _read_files(job: PrepareContext, files: Sequence[PrepareInput], processor: RowProcessor) -> None:
    work = _chunk_work(job, files)
    for facts in ordered_map(process_chunk, work, processor, workers=job.workers, engine=job.config.engine):
        job.table.add(facts)
    job.table.join()


def _chunk_work(job: PrepareContext, files: Sequence[PrepareInput]) -> Iterator[ChunkWork]:
    """The chunks of files; `limit` ends the reading of the sources."""
    left, size = job.config.limit, _size(job.files)
    before = _size(job.files[: job.files.index(files[0])]) if files else 0
    for source in files:
        file, position = source.file, 0
        for chunk in chunks_of(file, CHUNK):
            job.encodings[file.name] = chunk.encoding
            position = max(position, chunk.position)
            progress("reading", min(before + position, size), max(size, 1), file=file.name)
            records: Chunk | Sequence[Item] = chunk
            if left is not None and source.split is None:
                records = parse_chunk(chunk)[:left]
                left -= len(records)
            yield ChunkWork(file.name, records, source.guess or job.guess)
            if left == 0 and source.split is None:
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
                value = fast_json(line)
                examples.setdefault(value["reason"], Reject(**value))
    top = []
    for reason, n in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))[:3]:
        example = examples[reason]
        detail = f": {' '.join(example.detail.split())[:100]}" if example.detail else ""
        top.append(f"{reason} {n}x, as {example.source}:{example.line}{detail}")
    message, step = f"No valid rows in {counted(read, 'record')}", f"look at {out / 'rejects.jsonl'}"
    if row_count:
        were = f"{bad} of {counted(of, 'record')} ({bad / of:.0%}) {verb(bad, 'was', 'were')} rejected"
        message = f"{were}; {config.allow_rejects:.0%} are allowed"
        enough = next((limit for limit in (0.5, 0.75, 0.9) if bad / of <= limit), 1.0)
        step += f"; to continue all the same add allow_rejects={enough}"
    raise UserError(message, where="; ".join(top), next_step=step)


def _dedup_and_split(job: PrepareContext, test_rows: int) -> None:
    """Set the fate and the split of every row; the first `test_rows` ones are a test file's, taken as they are."""
    table, config, columns = job.table, job.config, job.table.columns
    progress("comparing", 0, 3)
    frozen = np.full(len(table), UNDECIDED, dtype=np.int8)
    if config.split.freeze is not None:
        frozen = frozen_splits(columns["id"], columns["question"], load_dataset(config.split.freeze))
    frozen[:test_rows] = TEST
    fixed = frozen > TRAIN
    worth = {name: columns[name] for name in ("characters", "time", "rating")}
    order = duplicates.preference(config.duplicates.keep, count=len(table), pinned=fixed, **worth)
    for row in np.flatnonzero(columns["leak"] >= 0).tolist():  # rows that give a row of the test set away
        test_row, similarity = int(columns["leak"][row]), columns["leak_similarity"][row]
        if first_pass.CONTAMINATION_KINDS[columns["leak_how"][row]] == "overlap":
            source, line = table.place(test_row)
            table.drop(row, "split_leak", f"{similarity:.0%} of the passages of {source}:{line}")
        else:
            table.drop(row, "split_leak", because=test_row, similarity=float(similarity))
    alike = _drop_copies(job, order, test_rows, fixed)
    policy = config.duplicates.conflicts  # the checks report those that stay
    for group in [] if policy == "report" else duplicates.find_conflicts(columns["question"], table.alive, order):
        for row in group[0 if policy == "drop" else 1 :].tolist():
            if row >= test_rows:
                table.drop(row, "conflicting_label", because=int(group[0] if row != group[0] else group[1]))
    progress("comparing", 1, 3)
    _measure(job)
    rows = table.alive
    threshold, question = config.duplicates.threshold, columns["question"]
    links, _ = duplicates.find_links(columns, table.reader.texts, threshold, rows=rows, question=question, alike=alike)
    for name in [name for name in columns if name.startswith(minhash.COLUMNS)]:
        del columns[name]  # half of all that is known of the rows, and needed no longer
    progress("comparing", 2, 3)
    facts = SplitFacts(
        question=question[rows],
        stratum=columns["stratum"][rows],
        labelled=columns["label"][rows] >= 0,
        group=columns["group"][rows] if config.split.group or config.too_long == "split" else None,
        time=columns["time"][rows],
        frozen=frozen[rows],
        links=np.searchsorted(rows, links),
    )
    split = assign_splits(facts, config.split, job.seed)
    table.split[rows] = split
    leaks = rows[split == LEAK]
    table.drop(leaks, "split_leak", "belongs together with a row of the frozen test or validation set")
    _apply_limit(job)
    # Intervals of what is measured on val or test must not count rows that are much alike as independent ones.
    measured = (table.fate[rows] == 0) & (table.split[rows] > TRAIN)
    member = connected([facts.question], facts.links)[measured]
    table.mark_clusters(rows[measured], clusters(member, columns["id"][rows[measured]]))
    table.give_repeats_own_ids()
    progress("comparing", 3, 3)


def _drop_copies(job: PrepareContext, order: Array, test_rows: int, fixed: Array) -> Alike | None:
    """Drop copies, but none of the test file; a copy of a row fixed in val or test is a leak. Returns similar pairs."""
    table, settings, alike = job.table, job.config.duplicates, None
    columns, texts = table.columns, table.reader.texts

    def drop(copies: duplicates.Duplicates, reasons: Array) -> None:
        for row, of, similarity, reason in zip(copies.dropped, copies.of, copies.similarity, reasons, strict=True):
            if row >= test_rows:
                word = "split_leak" if fixed[of] and not fixed[row] else str(reason)
                table.drop(int(row), word, because=int(of), similarity=float(similarity))

    if "prompt" in columns:
        rows = duplicates.distinct(columns, table.alive, order)
        carry = table.reader.carried if job.config.engine == "ray" else None
        alike = find_alike(columns, texts, settings.threshold, rows=rows, workers=job.workers, carry=carry)
    copies = duplicates.find_duplicates(columns, texts, settings, rows=table.alive, order=order, alike=alike)
    drop(copies, np.where(copies.exact, "exact_duplicate", "near_duplicate"))
    if settings.semantic is not None and job.embed is not None:
        rows = table.alive
        vectors = job.embed([text.prompt for text in texts(rows.tolist())])
        label = columns["label"][rows]
        copies = duplicates.semantic_duplicates(vectors, settings.semantic, rows=rows, order=order, apart=label)
        drop(copies, np.full(len(copies.dropped), "semantic_duplicate"))
    return alike


def _measure(job: PrepareContext) -> None:
    """Measure the rows that were not, all or a sample; what can't be rendered or teaches nothing is dropped."""
    table, columns = job.table, job.table.columns
    rows = table.alive
    rows = rows[columns["tokens"][rows] == first_pass.UNMEASURED]
    rows = _to_measure(rows, columns["characters"][rows], shuffled(columns["id"][rows], job.seed))
    batches = [rows[begin : begin + BATCH].tolist() for begin in range(0, len(rows), BATCH)]
    workers = job.workers if len(batches) > 1 else 1
    engine = job.config.engine if workers > 1 else "processes"
    carried = (table.reader.carried(batch) for batch in batches)
    results = ordered_map(_measure_rows, carried, job.processor, workers=workers, engine=engine)
    for number, (batch, lengths) in enumerate(zip(batches, results, strict=True)):
        progress("measuring", number * BATCH, len(rows))
        for row, measured in zip(batch, lengths, strict=True):
            if isinstance(measured, Rejection):
                table.drop(row, measured.reason, measured.detail)
                table.rejected_tokens += measured.tokens
            else:
                columns["tokens"][row], columns["supervised"][row] = measured.tokens, measured.supervised
    progress("measuring", len(rows), len(rows))


def _to_measure(rows: Array, characters: Array, keys: Array) -> Array:
    """All rows, or where measuring them would take long those with the least keys, and the longest."""
    total = int(characters.sum())
    if len(rows) <= (MEASURED_ROWS if total <= MEASURED_CHARACTERS else LEAST_SAMPLED):
        return rows
    size = min(max(SAMPLED_CHARACTERS * len(rows) // max(total, 1), LEAST_SAMPLED), SAMPLED_ROWS)
    sample = np.argsort(keys, kind="stable")[:size]
    long = np.flatnonzero(characters >= np.partition(characters, -LONGEST)[-LONGEST])
    longest = long[np.lexsort((keys[long], -characters[long]))[:LONGEST]]
    sampled: Array = rows[np.unique(np.concatenate([sample, longest]))]
    return sampled


def _measure_rows(rows: CarriedRows, processor: RowProcessor) -> list[TokenCount | Rejection]:
    return [measured_if_long(rows.row(index), processor, always=True) for index in rows.lines]


def _apply_limit(job: PrepareContext) -> None:
    table, limit = job.table, job.config.limit_per_label
    if limit is None:
        return
    rows = table.alive
    rows = rows[table.split[rows] == TRAIN]
    ids, strata = table.columns["id"][rows], table.columns["stratum"][rows]
    order = np.lexsort((ids, shuffled(ids, job.seed), strata))
    rows, strata = rows[order], strata[order]
    positions = np.arange(len(rows)) - np.searchsorted(strata, strata)  # among the rows of the stratum
    for row in rows[positions >= limit].tolist():
        name = table.names["stratum"][int(table.columns["stratum"][row])]
        table.drop(row, "over_limit", f"{counted(limit, 'row')} of {name!r} are in train (limit_per_label)")


@dataclass(frozen=True)
class SplitFacts:
    """What is known of the rows to split: arrays with one element a row, in any order."""

    question: Array  # `key64` of `prompt_key`; rows with one question stay together
    stratum: Array  # number of the stratum
    labelled: Array  # whether the row has a label: rare labels go to train
    group: Array | None = None  # `key64` of the value of `split.group`, 0 for none; rows of one group stay together
    time: Array | None = None  # seconds since 1970, NaN for none; for `split.by=time`
    frozen: Array | None = None  # index of the split in an earlier data set (see `frozen_splits`), or UNDECIDED
    links: Array | None = None  # pairs of rows that stay together, such as near duplicates; shape (pairs, 2)


def assign_splits(facts: SplitFacts, config: SplitConfig, seed: int) -> Array:
    """The split of each row, as an index into SPLITS; LEAK for a row that must be left out.

    What belongs together (one question, one group, linked) goes to the same split. By content, a group's
    place is a hash of its key in [0, 1): the lowest are test, the highest validation, the rest train. So added rows
    move no others, save where the count of a stratum leaves its band: from three groups on, at least one in each split
    that has a share, and at most 30 % (in small strata, two standard deviations) more or less than it. A group larger
    than the stratum's share goes to train unless half of the groups are that large. Strata below three groups are dealt
    as one stratum, but those with a label go to train, where a rare class is of some use. By time, the newest rows are
    the test and those before them validation; a group is as new as its newest row, equal times stay together, rows
    without a time are train. Too few different times are a UserError. A test set that is a file counts as no share, and
    no row joins its own (`frozen` is TEST): what belongs together with them is a LEAK.
    """
    n = len(facts.question)
    if n == 0:
        return np.zeros(0, dtype=np.int8)
    frozen = facts.frozen if facts.frozen is not None else np.full(n, UNDECIDED, dtype=np.int8)
    member = _groups(facts)
    # The row of each group with the least key, then stratum, so that their order does not count.
    order = np.lexsort((facts.stratum, _dealing_key(facts), member))
    first = order[np.flatnonzero(np.diff(member[order], prepend=-1))]
    split = np.full(len(first), UNDECIDED, dtype=np.int8)
    np.maximum.at(split, member, frozen)
    free = split == UNDECIDED
    sizes = np.bincount(member, minlength=len(first))
    val, test = config.val, 0.0 if isinstance(config.test, str) else config.test
    if config.by == "time":
        newest = np.full(len(first), -np.inf)  # time of each group's newest row
        if facts.time is not None:
            np.maximum.at(newest, member, np.where(np.isnan(facts.time), -np.inf, facts.time))
        split[free] = _by_time(newest[free], sizes[free], val, test, config.time)
    else:
        salt = np.uint64(int.from_bytes(keyed_hash("split", seed), "little"))
        key = (mixed_bits(_dealing_key(facts)[first] ^ salt) >> np.uint64(11)) * 2.0**-53  # in [0, 1)
        strata = _strata(facts, first)
        split[free] = TRAIN
        dealt = np.flatnonzero(free & (strata != ALONE))
        split[dealt] = _by_content(key[dealt], strata[dealt], sizes[dealt], val, test)
        # Frozen rows take the shares of their strata: the hash decides alone.
        loose = free & (strata != ALONE) & np.isin(strata, strata[~free])
        split[loose] = np.where(key[loose] < test, TEST, np.where(key[loose] >= 1.0 - val, VAL, TRAIN))
    rows: Array = split[member]
    rows[(frozen == TRAIN) & (rows != TRAIN)] = LEAK
    if isinstance(config.test, str):
        rows[(frozen != TEST) & (rows == TEST)] = LEAK
    rows[frozen > TRAIN] = frozen[frozen > TRAIN]
    return rows


def frozen_splits(ids: Array, questions: Array, dataset: Dataset) -> Array:
    """The splits of rows in an earlier data set, by id, else by question; UNDECIDED for new ones."""
    splits = np.full(len(ids), UNDECIDED, dtype=np.int8)
    earlier = list(enumerate((dataset.train, dataset.val, dataset.test)))
    for number, rows in earlier:
        splits[np.isin(questions, np.array([key64(prompt_key(row)) for row in rows], dtype=np.uint64))] = number
    for number, rows in earlier:
        splits[np.isin(ids, np.array([int(row.id, 16) for row in rows], dtype=np.uint64))] = number
    return splits


def _groups(facts: SplitFacts) -> Array:
    columns = [facts.question]
    if facts.group is not None:
        with_one = np.flatnonzero(facts.group)
        alone = np.arange(len(facts.group)) + len(with_one)
        alone[with_one] = np.unique(facts.group[with_one], return_inverse=True)[1]
        columns.append(alone)
    return connected(columns, facts.links)


def connected(columns: Sequence[Array], links: Array | None) -> Array:
    """Numbers, from 0, of what hangs together: rows with equal values in a column, and linked pairs (pairs, 2)."""
    columns = [np.unique(column, return_inverse=True)[1] for column in columns]
    if len(columns) == 1 and (links is None or not len(links)):
        return columns[0]
    least = np.arange(len(columns[0]))  # of each row's group, the least row known so far
    while True:
        before = least.copy()
        for column in columns:
            heads = np.full(int(column.max()) + 1, len(column))
            np.minimum.at(heads, column, least)
            least = heads[column]
        if links is not None:
            for side, other in ((0, 1), (1, 0)):
                np.minimum.at(least, links[:, side], least[links[:, other]])
        least = least[least]
        if np.array_equal(least, before):
            member: Array = np.unique(least, return_inverse=True)[1]
            return member


def clusters(member: Array, ids: Array) -> Array:
    """By row, the least id of the group (`member`: its number) that it shares with others; 0 for a row alone."""
    least = np.full(int(member.max(initial=-1)) + 1, np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(least, member, ids)
    shared: Array = np.where(np.bincount(member, minlength=1)[member] > 1, least[member], np.uint64(0))
    return shared


def _dealing_key(facts: SplitFacts) -> Array:
    """What a row is dealt by: its group, which further rows do not change, else its question."""
    key: Array = facts.question.astype(np.uint64)
    return key if facts.group is None else np.where(facts.group != 0, facts.group.astype(np.uint64), key)


def _strata(facts: SplitFacts, first: Array) -> Array:
    strata = np.unique(facts.stratum[first], return_inverse=True)[1]
    rare = np.bincount(strata)[strata] < FEW if len(strata) else strata
    merged: Array = np.where(rare, np.where(facts.labelled[first], ALONE, RARE), strata)
    return merged


def _by_content(key: Array, strata: Array, sizes: Array, val: float, test: float) -> Array:
    """The split of each group: of each stratum the lowest keys are test, the highest val, within its band."""
    split = np.full(len(key), TRAIN, dtype=np.int8)
    if len(key) == 0:
        return split
    strata = np.unique(strata, return_inverse=True)[1]
    groups = np.bincount(strata)
    medians = sizes[np.lexsort((sizes, strata))][np.cumsum(groups) - groups + groups // 2]  # the upper of two
    large = sizes > np.maximum(max(val, test) * np.bincount(strata, weights=sizes), medians)[strata]
    small = np.flatnonzero(~large)
    stratum, low, high = strata[small], key[small] < test, key[small] >= 1.0 - val
    fit = np.bincount(stratum, minlength=len(groups))
    tests = _banded(np.bincount(stratum, low, len(groups)), fit, groups, test)
    vals = _banded(np.bincount(stratum, high, len(groups)), fit, groups, val)
    tests = np.minimum(tests, np.maximum(np.minimum(fit, groups - 1) - (vals > 0), 0))
    vals = np.minimum(vals, np.minimum(fit, groups - 1) - tests)
    order = np.lexsort((key[small], stratum))
    rank = np.arange(len(order)) - np.repeat(np.cumsum(fit) - fit, fit)
    owner = stratum[order]
    split[small[order[rank < tests[owner]]]] = TEST
    split[small[order[rank >= (fit - vals)[owner]]]] = VAL
    return split


def _banded(counts: Array, fit: Array, groups: Array, share: float) -> Array:
    """Counts brought into the band around the share of the groups that fit; it is widened to whole groups."""
    width = np.maximum(BAND * share * fit, DEVIATIONS * np.sqrt(share * (1.0 - share) * fit))
    low, high = np.maximum(np.floor(share * fit - width), 0.0), np.ceil(share * fit + width)
    if share > 0.0:
        low = np.maximum(low, (groups >= FEW) & (fit > 0))
    within: Array = np.clip(counts, low, np.maximum(low, high)).astype(np.int64)
    return within


def _by_time(time: Array, sizes: Array, val: float, test: float, column: str) -> Array:
    """The split of each group: cut between two times, as near to the shares as these allow."""
    split = np.full(len(time), TRAIN, dtype=np.int8)
    moments, inverse = np.unique(time[time > -np.inf], return_inverse=True)
    parts = [(number, share) for number, share in ((TEST, test), (VAL, val)) if share > 0.0]
    keeps_train = bool(np.isneginf(time).any())
    if len(moments) + keeps_train <= len(parts):
        least = len(parts) + 1 - keeps_train
        message = f"split.by=time needs at least {least} different times; there are {len(moments)}"
        step = "name the column with data.split.time=COLUMN, or leave out split.by=time"
        raise UserError(message, where=f"column {column!r}", next_step=step)
    rows = np.bincount(inverse, weights=sizes[time > -np.inf], minlength=len(moments))
    newer = np.cumsum(rows[::-1])  # rows among the newest 1, 2, ... moments
    of_moment = np.full(len(moments), TRAIN, dtype=np.int8)
    begin, rows_so_far = 0, 0.0
    for index, (number, share) in enumerate(parts):
        rows_so_far += share * float(sizes.sum())
        last = len(moments) + keeps_train - (len(parts) - index)  # at least one moment is left for every later part
        end = begin + 1 + int(np.argmin(np.abs(newer[begin:last] - rows_so_far)))
        of_moment[len(moments) - end : len(moments) - begin] = number
        begin = end
    split[time > -np.inf] = of_moment[inverse]
    return split
