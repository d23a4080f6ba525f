"""The second pass of prepare: which rows are copies, which contradict each other, which split each belongs to."""

from __future__ import annotations

import numpy as np

from tuneloop.core.ui import progress
from tuneloop.core.units import counted
from tuneloop.data import split as splits
from tuneloop.data.dataset import load_dataset
from tuneloop.data.dedup import duplicates, minhash
from tuneloop.data.dedup.candidate_pairs import Alike, find_alike
from tuneloop.data.formats import Rejection
from tuneloop.data.process_record import CONTAMINATION_KINDS, UNMEASURED, RowProcessor, TokenCount, measured_if_long
from tuneloop.data.spool import CarriedRows, PrepareContext
from tuneloop.data.workers import ordered_map

# Rows, and their characters together, up to which each row is measured; of more, a sample picked by hash, and the
# longest rows: totals are then estimated from the characters of all rows (0.3 % off on short texts; more where tokens
# follow characters less). That no row is too long is known of all rows, see `process_record.measured_if_long`.
MEASURED_ROWS, MEASURED_CHARACTERS = 10_000, 2 << 20
SAMPLED_ROWS, SAMPLED_CHARACTERS, LEAST_SAMPLED = 1_000, 1 << 18, 500
LONGEST = 16
BATCH = 250  # rows that a process measures at once


def dedup_and_split(job: PrepareContext, given: int) -> None:
    """Set the fate and the split of every row; the first `given` ones are a given test file's, taken as they are."""
    table, config, columns = job.table, job.config, job.table.columns
    progress("comparing", 0, 3)
    frozen = np.full(len(table), splits.UNDECIDED, dtype=np.int8)
    if config.split.freeze is not None:
        frozen = splits.frozen_splits(columns["id"], columns["question"], load_dataset(config.split.freeze))
    frozen[:given] = splits.TEST
    fixed = frozen > splits.TRAIN
    worth = {name: columns[name] for name in ("characters", "time", "rating")}
    order = duplicates.preference(config.duplicates.keep, count=len(table), pinned=fixed, **worth)
    for row in np.flatnonzero(columns["leak"] >= 0).tolist():  # rows that give a row of the test set away
        test_row, similarity = int(columns["leak"][row]), columns["leak_likeness"][row]
        if CONTAMINATION_KINDS[columns["leak_how"][row]] == "overlap":
            source, line = table.place(test_row)
            table.drop(row, "split_leak", f"{similarity:.0%} of the passages of {source}:{line}")
        else:
            table.drop(row, "split_leak", because=test_row, likeness=float(similarity))
    alike = _drop_copies(job, order, given, fixed)
    policy = config.duplicates.conflicts  # the checks report those that stay
    for group in [] if policy == "report" else duplicates.find_conflicts(columns["question"], table.alive, order):
        for row in group[0 if policy == "drop" else 1 :].tolist():
            if row >= given:
                table.drop(row, "conflicting_label", because=int(group[0] if row != group[0] else group[1]))
    progress("comparing", 1, 3)
    _measure(job)
    rows = table.alive
    threshold, question = config.duplicates.threshold, columns["question"]
    links, _ = duplicates.find_links(columns, table.reader.texts, threshold, rows=rows, question=question, alike=alike)
    for name in [name for name in columns if name.startswith(minhash.COLUMNS)]:
        del columns[name]  # half of all that is known of the rows, and needed no longer
    progress("comparing", 2, 3)
    facts = splits.SplitFacts(
        question=question[rows],
        stratum=columns["stratum"][rows],
        labelled=columns["label"][rows] >= 0,
        group=columns["group"][rows] if config.split.group or config.too_long == "split" else None,
        time=columns["time"][rows],
        frozen=frozen[rows],
        links=np.searchsorted(rows, links),
    )
    split = splits.assign_splits(facts, config.split, job.seed)
    table.split[rows] = split
    leaks = rows[split == splits.LEAK]
    table.drop(leaks, "split_leak", "belongs together with a row of the frozen test or validation set")
    _limit(job)
    # An interval of what is measured on val or test must not count rows that are much alike as so many independent
    # ones.
    measured = (table.fate[rows] == 0) & (table.split[rows] > splits.TRAIN)
    member = splits.connected([facts.question], facts.links)[measured]
    table.mark_clusters(rows[measured], splits.clusters(member, columns["id"][rows[measured]]))
    table.give_repeats_own_ids()
    progress("comparing", 3, 3)


def shuffled(ids: splits.Array, seed: int) -> splits.Array:
    """Keys that put rows in an order of their own for each seed, whatever the order of the sources."""
    return splits.mixed_bits(ids ^ np.uint64((seed * 0x9E3779B97F4A7C15) % 2**64))


def _drop_copies(job: PrepareContext, order: splits.Array, given: int, fixed: splits.Array) -> Alike | None:
    """Drop copies, but none that was given; a copy of a row fixed in val or test is a leak. Returns the similar pairs."""
    table, settings, alike = job.table, job.config.duplicates, None
    columns, texts = table.columns, table.reader.texts

    def drop(copies: duplicates.Duplicates, reasons: splits.Array) -> None:
        for row, of, similarity, reason in zip(copies.dropped, copies.of, copies.similarity, reasons, strict=True):
            if row >= given:
                word = "split_leak" if fixed[of] and not fixed[row] else str(reason)
                table.drop(int(row), word, because=int(of), likeness=float(similarity))

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
    rows = rows[columns["tokens"][rows] == UNMEASURED]
    rows = _to_measure(rows, columns["characters"][rows], shuffled(columns["id"][rows], job.seed))
    batches = [rows[begin : begin + BATCH].tolist() for begin in range(0, len(rows), BATCH)]
    workers = job.workers if len(batches) > 1 else 1
    engine = job.config.engine if workers > 1 else "processes"
    sent = (table.reader.carried(batch) for batch in batches)
    results = ordered_map(_measured, sent, job.processor, workers=workers, engine=engine)
    for number, (batch, lengths) in enumerate(zip(batches, results, strict=True)):
        progress("measuring", number * BATCH, len(rows))
        for row, measured in zip(batch, lengths, strict=True):
            if isinstance(measured, Rejection):
                table.drop(row, measured.reason, measured.detail)
                table.rejected_tokens += measured.tokens
            else:
                columns["tokens"][row], columns["supervised"][row] = measured.tokens, measured.supervised
    progress("measuring", len(rows), len(rows))


def _to_measure(rows: splits.Array, characters: splits.Array, keys: splits.Array) -> splits.Array:
    """All rows, or where measuring them would take long those with the least keys, and the longest."""
    total = int(characters.sum())
    if len(rows) <= (MEASURED_ROWS if total <= MEASURED_CHARACTERS else LEAST_SAMPLED):
        return rows
    size = min(max(SAMPLED_CHARACTERS * len(rows) // max(total, 1), LEAST_SAMPLED), SAMPLED_ROWS)
    sample = np.argsort(keys, kind="stable")[:size]
    long = np.flatnonzero(characters >= np.partition(characters, -LONGEST)[-LONGEST])
    longest = long[np.lexsort((keys[long], -characters[long]))[:LONGEST]]
    chosen: splits.Array = rows[np.unique(np.concatenate([sample, longest]))]
    return chosen


def _measured(rows: CarriedRows, processor: RowProcessor) -> list[TokenCount | Rejection]:
    return [measured_if_long(rows.row(index), processor, always=True) for index in rows.lines]


def _limit(job: PrepareContext) -> None:
    """Reject training rows beyond `limit_per_label`, in the order of their hashes."""
    table, limit = job.table, job.config.limit_per_label
    if limit is None:
        return
    rows = table.alive
    rows = rows[table.split[rows] == splits.TRAIN]
    ids, strata = table.columns["id"][rows], table.columns["stratum"][rows]
    order = np.lexsort((ids, shuffled(ids, job.seed), strata))
    rows, strata = rows[order], strata[order]
    place = np.arange(len(rows)) - np.searchsorted(strata, strata)  # among the rows of the stratum
    for row in rows[place >= limit].tolist():
        name = table.names["stratum"][int(table.columns["stratum"][row])]
        table.drop(row, "over_limit", f"{counted(limit, 'row')} of {name!r} are in train (limit_per_label)")
