"""Rows to train, validation and test: by content alone, so that neither order nor machine matters."""

from __future__ import annotations

import functools
import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from tuneloop.core.errors import UserError
from tuneloop.core.lazy import np
from tuneloop.data.config import SplitConfig
from tuneloop.records.rows import Dataset, Row

if TYPE_CHECKING:
    from numpy.typing import NDArray

Array: TypeAlias = "NDArray[Any]"
Columns: TypeAlias = "Mapping[str, Array]"  # values by row, by the column's name

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
TRAIN, VAL, TEST = range(3)  # indices into SPLITS
UNDECIDED = -1  # of a row that no earlier data set holds
LEAK = -2  # of a row that belongs together with a test row, but may not be one
FEW = 3  # a stratum below this many groups can't be in all three splits
BAND = 0.3  # how far a stratum's count in val or test may be off its share, relative to it, and
DEVIATIONS = 2.0  # in standard deviations of what hashes give; the larger of both, so that bands are seldom touched
RARE, ALONE = -1, -2  # in place of a rare stratum: of unlabelled groups, and of labelled ones, which are not dealt


def normalised(text: str) -> str:
    """Text up to Unicode form (NFC), white space and case: what makes two rows the same."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return " ".join(text.split()).casefold()


normalised_often = functools.lru_cache(maxsize=1 << 10)(normalised)  # for what comes again and again


def prompt_key(row: Row) -> str:
    """The prompt of a row: the normalised system and user turns (in some data the task is in the system turn, under one
    and the same user turn); without a user turn, all turns.
    """
    has_question = any(message["role"] == "user" for message in row.messages)
    turns = []
    for message in row.messages:
        if message["role"] == "system" and has_question:
            turns.append("system: " + normalised_often(message["content"]))
        elif message["role"] == "user" or not has_question:
            turns.append(f"{message['role']}: {normalised(message['content'])}")
    return "\n".join(turns)


def key64(text: str | bytes) -> int:
    """The text's hash as a number of 64 bits, never 0: among a million texts two agree once in 10^7 times."""
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little") or 1


def keyed_hash(text: str, seed: int) -> bytes:
    """Eight bytes that depend on the text and the seed only: the order in which rows are dealt."""
    raw, key = text.encode("utf-8", "surrogatepass"), seed.to_bytes(16, "little", signed=False)
    return hashlib.blake2b(raw, digest_size=8, key=key).digest()


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
            for one, other in ((0, 1), (1, 0)):
                np.minimum.at(least, links[:, one], least[links[:, other]])
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


def shuffled(ids: Array, seed: int) -> Array:
    """Keys that put rows in another order for each seed, whatever the order of the sources."""
    return mixed_bits(ids ^ np.uint64((seed * 0x9E3779B97F4A7C15) % 2**64))


def mixed_bits(numbers: Array) -> Array:
    """A hash of numbers of 64 bits (the finaliser of SplitMix64, Steele et al. 2014, doi 10.1145/2714064.2660195)."""
    mixed = numbers.astype(np.uint64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    hashed: Array = mixed ^ (mixed >> np.uint64(31))
    return hashed


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
    moments, place = np.unique(time[time > -np.inf], return_inverse=True)
    parts = [(number, share) for number, share in ((TEST, test), (VAL, val)) if share > 0.0]
    keeps_train = bool(np.isneginf(time).any())
    if len(moments) + keeps_train <= len(parts):
        least = len(parts) + 1 - keeps_train
        what = f"split.by=time needs at least {least} different times; there are {len(moments)}"
        step = "name the column with data.split.time=COLUMN, or leave out split.by=time"
        raise UserError(what, where=f"column {column!r}", next_step=step)
    rows = np.bincount(place, weights=sizes[time > -np.inf], minlength=len(moments))
    newer = np.cumsum(rows[::-1])  # rows among the newest 1, 2, ... moments
    of_moment = np.full(len(moments), TRAIN, dtype=np.int8)
    begin, rows_so_far = 0, 0.0
    for index, (number, share) in enumerate(parts):
        rows_so_far += share * float(sizes.sum())
        last = len(moments) + keeps_train - (len(parts) - index)  # at least one moment is left for every later part
        end = begin + 1 + int(np.argmin(np.abs(newer[begin:last] - rows_so_far)))
        of_moment[len(moments) - end : len(moments) - begin] = number
        begin = end
    split[time > -np.inf] = of_moment[place]
    return split
