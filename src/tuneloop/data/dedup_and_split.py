"""What depends on all rows: which are copies, which contradict each other, which split each belongs to."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneloop.core.progress import Progress
from tuneloop.data.config import PrepareConfig
from tuneloop.data.dataset import load_dataset
from tuneloop.data.dedup import duplicates, minhash
from tuneloop.data.dedup.candidate_pairs import Alike, find_alike
from tuneloop.data.formats import Rejection
from tuneloop.data.process_record import CONTAMINATION_KINDS, UNMEASURED, RowProcessor, TokenCount, measured_if_long
from tuneloop.data.split import (
    LEAK,
    TEST,
    TRAIN,
    UNDECIDED,
    SplitFacts,
    assign_splits,
    clusters,
    connected,
    frozen_splits,
    mixed_bits,
)
from tuneloop.data.spool import Reader, Table
from tuneloop.data.workers import ordered_map

# Rows, and their characters together, up to which each row is measured; of more, a sample picked by hash, and the longest rows: totals are
# then estimated from the characters of all rows (0.3 % off on short texts; more where tokens follow characters less). That no row is too
# long is known of all rows, see `process_record.measured_if_long`.
MEASURED_ROWS, MEASURED_CHARACTERS = 10_000, 2 << 20
SAMPLED_ROWS, SAMPLED_CHARACTERS, LEAST_SAMPLED = 1_000, 1 << 18, 500
LONGEST = 16
BATCH = 250  # rows that a process measures at once

Embed = Callable[[Sequence[str]], Any]


def dedup_and_split(
    table: Table,
    config: PrepareConfig,
    seed: int,
    processor: RowProcessor,
    *,
    taken: NDArray[Any],
    embed: Embed | None,
    workers: int,
    progress: Progress,
) -> None:
    """Set the fate and the split of every row.

    Args:
        taken: by row, whether it is of a given test file: such rows are taken as they are.
        embed: texts to unit vectors, for `duplicates.semantic`.
        workers: processes to work in.
    """
    progress("comparing", 0, 3)
    columns = table.columns
    frozen = np.full(len(table), UNDECIDED, dtype=np.int8)
    if config.split.freeze is not None:
        frozen = frozen_splits(columns["id"], columns["question"], load_dataset(config.split.freeze))
    frozen[taken] = TEST
    order = duplicates.preference(
        config.duplicates.keep,
        count=len(table),
        characters=columns["characters"],
        time=columns["time"],
        rating=columns["rating"],
        pinned=frozen > TRAIN,
    )
    standing = _Standing(taken, frozen > TRAIN)
    _drop_contaminated(table)
    alike = _alike(table, config, order, workers)
    _drop_copies(table, config, order, standing, embed, alike)
    _drop_conflicts(table, config, order, standing)
    progress("comparing", 1, 3)
    _measure(table, processor, seed, workers, progress)
    rows = table.alive
    links, _ = duplicates.find_links(
        columns, table.reader.texts, config.duplicates.threshold, rows=rows, question=columns["question"], alike=alike
    )
    for name in [name for name in columns if name.startswith(minhash.COLUMNS)]:
        del columns[name]  # half of all that is known of the rows, and needed no longer
    progress("comparing", 2, 3)
    facts = SplitFacts(
        question=columns["question"][rows],
        stratum=columns["stratum"][rows],
        labelled=columns["label"][rows] >= 0,
        group=columns["group"][rows] if config.split.group or config.too_long == "split" else None,
        time=columns["time"][rows],
        frozen=frozen[rows],
        links=np.searchsorted(rows, links),
    )
    split = assign_splits(facts, config.split, seed)
    table.split[rows] = split
    table.drop(rows[split == LEAK], "split_leak", "belongs together with a row of the frozen test or validation set")
    _limit(table, config, seed)
    _mark_clusters(table, rows, connected([facts.question], facts.links))
    table.give_repeats_own_ids()
    progress("comparing", 3, 3)


@dataclass(frozen=True)
class _Standing:
    """By row: whether it is of a given test file, and whether its place in val or test is fixed."""

    taken: NDArray[Any]
    fixed: NDArray[Any]


def _mark_clusters(table: Table, rows: NDArray[Any], member: NDArray[Any]) -> None:
    """Mark the rows of val and test that are much alike: an interval of what is measured there must not count them as
    so many independent ones."""
    stay = (table.fate[rows] == 0) & (table.split[rows] > TRAIN)
    rows = rows[stay]
    table.mark_clusters(rows, clusters(member[stay], table.columns["id"][rows]))


def shuffled(ids: NDArray[Any], seed: int) -> NDArray[Any]:
    """Keys that put rows in an order of their own for each seed, whatever the order of the sources."""
    keys: NDArray[Any] = mixed_bits(ids ^ np.uint64((seed * 0x9E3779B97F4A7C15) % 2**64))
    return keys


def _drop_contaminated(table: Table) -> None:
    """Rows that contain a row of the given test set; that set's rows are the first ones of the table."""
    columns = table.columns
    for row in np.flatnonzero(columns["leak"] >= 0).tolist():
        how, alike, test_row = (
            CONTAMINATION_KINDS[columns["leak_how"][row]],
            columns["leak_likeness"][row],
            columns["leak"][row],
        )
        if how == "overlap":
            source, line = table.place(int(test_row))
            table.drop(row, "split_leak", f"{alike:.0%} of the passages of {source}:{line}")
        else:
            table.drop(row, "split_leak", because=int(test_row), likeness=float(alike))


def _alike(table: Table, config: PrepareConfig, order: NDArray[Any], workers: int) -> Alike | None:
    """Similar rows, which copies as well as links are found by; None where they are not wanted."""
    if "prompt" not in table.columns:
        return None
    return find_alike(
        table.columns,
        table.reader.texts,
        config.duplicates.threshold,
        rows=duplicates.distinct(table.columns, table.alive, order),
        run=functools.partial(ordered_map, workers=workers),
    )


def _drop_copies(
    table: Table,
    config: PrepareConfig,
    order: NDArray[Any],
    standing: _Standing,
    embed: Embed | None,
    alike: Alike | None,
) -> None:
    settings = config.duplicates
    found = duplicates.find_duplicates(
        table.columns, table.reader.texts, settings, rows=table.alive, order=order, alike=alike
    )
    _drop(table, found, np.where(found.exact, "exact_duplicate", "near_duplicate"), standing)
    if settings.semantic is not None and embed is not None:
        rows = table.alive
        vectors = embed([text.prompt for text in table.reader.texts(rows.tolist())])
        found = duplicates.semantic_duplicates(
            vectors, settings.semantic, rows=rows, order=order, apart=table.columns["label"][rows]
        )
        _drop(table, found, np.full(len(found.dropped), "semantic_duplicate"), standing)


def _drop(table: Table, found: duplicates.Duplicates, reasons: NDArray[Any], standing: _Standing) -> None:
    """Drop copies, but none that was given; a copy of a row whose place is fixed is a leak."""
    for row, of, alike, reason in zip(found.dropped, found.of, found.similarity, reasons, strict=True):
        if not standing.taken[row]:
            word = "split_leak" if standing.fixed[of] and not standing.fixed[row] else str(reason)
            table.drop(int(row), word, because=int(of), likeness=float(alike))


def _drop_conflicts(table: Table, config: PrepareConfig, order: NDArray[Any], standing: _Standing) -> None:
    """Rows with one question and different answers, where the policy is to drop some; the checks report those that stay."""
    policy = config.duplicates.conflicts
    if policy == "report":
        return
    for group in duplicates.find_conflicts(table.columns["question"], table.alive, order):
        for row in group[0 if policy == "drop" else 1 :].tolist():
            if not standing.taken[row]:
                table.drop(row, "conflicting_label", because=int(group[0] if row != group[0] else group[1]))


def _measure(table: Table, processor: RowProcessor, seed: int, workers: int, progress: Progress) -> None:
    """Measure the rows that were not, all or a sample; what can't be rendered or teaches nothing is dropped."""
    rows = table.alive
    rows = rows[table.columns["tokens"][rows] == UNMEASURED]
    rows = _to_measure(rows, table.columns["characters"][rows], shuffled(table.columns["id"][rows], seed))
    batches = [rows[begin : begin + BATCH].tolist() for begin in range(0, len(rows), BATCH)]
    found = ordered_map(_measured, batches, (table.reader, processor), workers=workers if len(batches) > 1 else 1)
    for number, (batch, lengths) in enumerate(zip(batches, found, strict=True)):
        progress("measuring", number * BATCH, len(rows))
        for row, measured in zip(batch, lengths, strict=True):
            if isinstance(measured, Rejection):
                table.drop(row, measured.reason, measured.detail)
                table.rejected_tokens += measured.tokens
            else:
                table.columns["tokens"][row], table.columns["supervised"][row] = measured.tokens, measured.supervised
    progress("measuring", len(rows), len(rows))


def _to_measure(rows: NDArray[Any], characters: NDArray[Any], keys: NDArray[Any]) -> NDArray[Any]:
    """All rows, or where measuring them would take long those with the least keys, and the longest."""
    total = int(characters.sum())
    if len(rows) <= (MEASURED_ROWS if total <= MEASURED_CHARACTERS else LEAST_SAMPLED):
        return rows
    size = min(max(SAMPLED_CHARACTERS * len(rows) // max(total, 1), LEAST_SAMPLED), SAMPLED_ROWS)
    sample = np.argsort(keys, kind="stable")[:size]
    long = np.flatnonzero(characters >= np.partition(characters, -LONGEST)[-LONGEST])
    longest = long[np.lexsort((keys[long], -characters[long]))[:LONGEST]]
    some: NDArray[Any] = rows[np.unique(np.concatenate([sample, longest]))]
    return some


def _measured(rows: Sequence[int], setting: tuple[Reader, RowProcessor]) -> list[TokenCount | Rejection]:
    reader, processor = setting
    return [measured_if_long(reader.row(row), processor, always=True) for row in rows]


def _limit(table: Table, config: PrepareConfig, seed: int) -> None:
    """Reject training rows beyond `limit_per_label`, in the order of their hashes."""
    limit = config.limit_per_label
    if limit is None:
        return
    rows = table.alive
    rows = rows[table.split[rows] == TRAIN]
    ids, strata = table.columns["id"][rows], table.columns["stratum"][rows]
    order = np.lexsort((ids, shuffled(ids, seed), strata))
    rows, strata = rows[order], strata[order]
    first = np.concatenate(([0], np.flatnonzero(np.diff(strata)) + 1)) if len(rows) else np.zeros(0, dtype=np.int64)
    place = np.arange(len(rows)) - np.repeat(first, np.diff(np.append(first, len(rows))))
    for row in rows[place >= limit].tolist():
        name = table.names["stratum"][int(table.columns["stratum"][row])]
        table.drop(row, "over_limit", f"{limit} rows of {name!r} are in train (limit_per_label)")
