"""Rows to train, validation and test: by content alone, so that neither order nor machine matters."""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal

from tuneloop.data.config import SplitConfig
from tuneloop.types import Row

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
FEW = 3  # a stratum below this many rows can't be in all three splits


def normalised(text: str) -> str:
    """Text up to Unicode form (NFC), white space and case: what makes two rows the same."""
    return " ".join(unicodedata.normalize("NFC", text).split()).casefold()


def prompt_key(row: Row) -> str:
    """What the model is told and asked: the normalised system and user turns.

    The system turns count because in some data the task stands there, under one and the same user turn.
    """
    turns = [f"{m['role']}: {normalised(m['content'])}" for m in row.messages if m["role"] in ("system", "user")]
    return "\n".join(turns)


def keyed_hash(text: str, seed: int) -> bytes:
    """Eight bytes that depend on the text and the seed only: the order in which rows are dealt."""
    key = seed.to_bytes(16, "little", signed=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, key=key).digest()


def assign_splits(rows: Sequence[Row], strata: Sequence[str], config: SplitConfig, seed: int) -> list[Split]:
    """The split of each row.

    Rows with the same prompt go to the same split. Every stratum of three rows or more is in every split
    that has a share, as far as its prompts can be kept apart; rows of smaller strata are dealt as one
    stratum, but those with a label go to train, where a rare class is of some use.

    Args:
        rows: distinct rows, in any order.
        strata: the stratum of each row.
        config: shares of val and test; train gets the rest.
        seed: another seed gives another split.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        groups[prompt_key(row)].append(index)
    sizes: dict[str, int] = defaultdict(int)
    stratum_of = {}
    for key, members in groups.items():
        stratum_of[key] = strata[min(members, key=lambda i: rows[i].id)]
        sizes[stratum_of[key]] += len(members)
    by_stratum: dict[str, list[str]] = defaultdict(list)
    splits: list[Split] = ["train"] * len(rows)
    rare = ""  # a stratum's name is prefixed below, so that "" is free for the rare ones
    for key, members in groups.items():
        name = stratum_of[key]
        if sizes[name] >= FEW:
            by_stratum["=" + name].append(key)
        elif rows[members[0]].label is None:
            by_stratum[rare].append(key)
    row_counts = {name: sum(len(groups[key]) for key in keys) for name, keys in by_stratum.items()}
    wanted = quotas(row_counts, config.val, config.test)
    for name, keys in by_stratum.items():
        keys.sort(key=lambda key: (keyed_hash(key, seed), key))
        for key, split in _deal(keys, {key: len(groups[key]) for key in keys}, *wanted[name]).items():
            for index in groups[key]:
                splits[index] = split
    return splits


def quotas(sizes: Mapping[str, int], val: float, test: float) -> dict[str, tuple[int, int]]:
    """Rows of each stratum for val and test.

    Each is the share rounded up or down so that the rounding errors of all strata cancel out (the sum over
    the strata dealt so far stays within half a row of its share), and at least one from three rows on.
    """
    given, due = [0.0, 0.0], [0.0, 0.0]
    wanted = {}
    for name in sorted(sizes):
        size, counts = sizes[name], [0, 0]
        for place, share in enumerate((val, test)):
            exact = round(size * share, 9)
            due[place] += exact
            count = math.floor(due[place] - given[place] + 0.5)
            count = min(max(count, math.floor(exact)), math.ceil(exact))
            counts[place] = max(count, 1) if share > 0 and size >= FEW else count
        while sum(counts) >= size > 0:
            counts[0 if counts[0] >= counts[1] else 1] -= 1
        given = [total + count for total, count in zip(given, counts, strict=True)]
        wanted[name] = (counts[0], counts[1])
    return wanted


def _deal(keys: Sequence[str], size: Mapping[str, int], val: int, test: int) -> dict[str, Split]:
    """Groups of rows to splits, in their order, none cut: test first, then val, the rest to train."""
    dealt: dict[str, Split] = {}
    parts: tuple[tuple[Split, int], ...] = (("test", test), ("val", val))
    for split, wanted in parts:
        left = wanted
        for key in keys:
            if left == 0:
                break
            if key not in dealt and size[key] <= left:
                dealt[key] = split
                left -= size[key]
        free = [key for key in keys if key not in dealt]
        if wanted and left == wanted and len(free) >= (3 if split == "test" else 2):  # all are larger than the share
            dealt[min(free, key=lambda key: size[key])] = split
    return {key: dealt.get(key, "train") for key in keys}
