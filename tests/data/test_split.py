"""Rows are dealt to splits by content: order does not matter, what belongs together stays together."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from manifests import manifest_of

from tuneloop.core.errors import UserError
from tuneloop.data.config import SplitConfig
from tuneloop.data.dataset import LEAK, SPLITS, TEST, TRAIN, UNDECIDED, VAL, key64, keyed_hash, normalised, prompt_key
from tuneloop.data.prepare import SplitFacts, assign_splits, frozen_splits
from tuneloop.records.rows import Dataset, Message, Row

SHARES = {"val": st.sampled_from([0.0, 0.1, 0.25, 0.5]), "test": st.sampled_from([0.0, 0.1, 0.2, 0.49])}


def facts(questions: Sequence[object], strata: Sequence[object] | None = None, **further: Any) -> SplitFacts:
    """Facts of rows; a stratum of None has no label."""
    strata = strata or ["a"] * len(questions)
    return SplitFacts(
        question=np.array([key64(str(q)) for q in questions], dtype=np.uint64),
        stratum=np.array([key64(str(s)) % 2**31 for s in strata], dtype=np.int32),
        labelled=np.array([s is not None for s in strata], dtype=bool),
        **further,
    )


def codes(values: Sequence[object]) -> Any:
    return np.array([0 if value is None else key64(str(value)) for value in values], dtype=np.uint64)


def split(known: SplitFacts, seed: int = 0, **settings: Any) -> list[str]:
    return [SPLITS[number] for number in assign_splits(known, SplitConfig(**settings), seed)]


# --- keys ----------------------------------------------------------------------------------------


def row(*turns: tuple[str, str], label: str | None = None, name: str = "0") -> Row:
    messages: list[Message] = [{"role": role, "content": text} for role, text in turns]  # type: ignore[typeddict-item]
    return Row(name, messages, label)


def test_the_prompt_key_is_what_the_model_is_told_and_asked() -> None:
    asked = row(("user", " Hello\n THERE "), ("assistant", "one"))
    assert prompt_key(asked) == prompt_key(row(("user", "hello there"), ("assistant", "two")))
    assert prompt_key(asked) != prompt_key(row(("system", "Be kind."), ("user", "hello there"), ("assistant", "one")))


def test_rows_without_a_user_turn_are_told_apart_by_their_text() -> None:
    item, other = row(("assistant", "A story.")), row(("assistant", "Another story."))
    assert prompt_key(item) != prompt_key(other) and prompt_key(item) == prompt_key(row(("assistant", "a  STORY.")))


@given(st.text())
def test_normalising_twice_changes_nothing_for_ascii_and_keys_are_never_0(text: str) -> None:
    assert key64(text) > 0
    if text.isascii():
        assert normalised(normalised(text)) == normalised(text) == " ".join(text.split()).casefold()


# --- by content ----------------------------------------------------------------------------------


def test_shares_are_met_and_every_class_is_everywhere() -> None:
    strata = [f"c{n}" for n in range(40) for _ in range(3 + 5 * n)]
    where = split(facts(range(len(strata)), strata))
    counts = Counter(where)
    assert abs(counts["val"] / len(strata) - 0.1) < 0.02 and abs(counts["test"] / len(strata) - 0.1) < 0.02
    for label in set(strata):
        assert {s for s, stratum in zip(where, strata, strict=True) if stratum == label} == {"train", "val", "test"}


@given(sizes=st.lists(st.integers(1, 200), min_size=1, max_size=8), seed=st.integers(0, 9), **SHARES)
def test_counts_of_every_stratum_stay_in_their_band(sizes: list[int], seed: int, val: float, test: float) -> None:
    strata = [number for number, size in enumerate(sizes) for _ in range(size)]
    where = np.array(split(facts(range(len(strata)), strata), seed, val=val, test=test))
    for number, size in enumerate(sizes):
        counts = Counter(where[np.array(strata) == number].tolist())
        assert counts["train"] >= 1
        for name, share in (("val", val), ("test", test)):
            if size < 3:
                assert counts[name] == 0
                continue
            assert (counts[name] > 0) == (share > 0)
            width = max(0.3 * share * size, 2 * (share * (1 - share) * size) ** 0.5)
            assert counts[name] <= max(1, share * size + width + 1)
            others = val + test - share  # where the shares leave little, the other split may take some
            assert counts[name] >= min(share * size - width - 1, size * (1 - others) - width - 2)


@given(seed=st.integers(0, 2**32), shuffle=st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(seed: int, shuffle: random.Random) -> None:
    rows = [(f"text {n % 25}", "abc"[n % 3], f"user {n % 31}" if n % 2 else None) for n in range(60)]
    shuffled = list(rows)
    shuffle.shuffle(shuffled)

    def where(some: list[tuple[str, str, str | None]]) -> set[tuple[object, str]]:
        questions, strata, users = zip(*some, strict=True)
        return set(zip(some, split(facts(questions, strata, group=codes(users)), seed), strict=True))

    assert where(rows) == where(shuffled)


def test_another_seed_gives_another_split() -> None:
    known = facts(range(60))
    assert split(known, 0) == split(known, 0) != split(known, 1)
    assert keyed_hash("a", 0) != keyed_hash("a", 1)


def test_added_rows_hardly_move_old_ones() -> None:
    strata = [f"c{n % 77}" for n in range(11_000)]
    moved = 0
    for seed in range(5):
        whole = split(facts(range(11_000), strata), seed)
        before = split(facts(range(10_000), strata[:10_000]), seed)
        moved += sum(a != b for a, b in zip(before, whole, strict=False))
    assert moved <= 0.001 * 50_000


def test_in_large_strata_the_hash_alone_decides() -> None:
    before, whole = split(facts(range(20_000))), split(facts(range(30_000)))
    assert before == whole[:20_000]


@given(
    questions=st.lists(st.integers(0, 12), min_size=1, max_size=60),
    users=st.lists(st.one_of(st.none(), st.integers(0, 20)), min_size=60, max_size=60),
    links=st.lists(st.tuples(st.integers(0, 59), st.integers(0, 59)), max_size=6),
    strata=st.randoms(use_true_random=False),
)
def test_what_belongs_together_never_stands_in_two_splits(
    questions: list[int], users: list[int | None], links: list[tuple[int, int]], strata: random.Random
) -> None:
    n = len(questions)
    pairs = np.array([link for link in links if max(link) < n], dtype=np.int64).reshape(-1, 2)
    labels = [strata.choice("ab") for _ in questions]
    where = split(facts(questions, labels, group=codes(users[:n]), links=pairs))
    together: dict[object, set[str]] = defaultdict(set)
    for question, user, name in zip(questions, users, where, strict=False):
        together[question].add(name)
        if user is not None:
            together[f"user {user}"].add(name)
    assert all(len(names) == 1 for names in together.values())
    assert all(where[a] == where[b] for a, b in pairs)
    assert "train" in where


def test_chains_of_links_and_groups_are_followed_to_their_end() -> None:
    n = 300
    links = np.array([(i, i + 1) for i in range(0, n - 1, 2)])  # pairs, joined to one chain by the groups
    groups = codes([(i + 1) // 2 for i in range(n)])
    assert len(set(split(facts(range(n), group=groups, links=links)))) == 1


def test_groups_larger_than_the_share_still_reach_every_split() -> None:
    assert set(split(facts([n // 4 for n in range(12)]))) == {"train", "val", "test"}


def test_one_huge_group_goes_to_train() -> None:
    for seed in range(20):
        where = split(facts([0] * 500 + list(range(1, 501))), seed)
        assert where[0] == "train" and {"val", "test"} <= set(where)


def test_no_share_no_rows() -> None:
    known = facts(range(300))
    assert Counter(split(known, val=0.0, test=0.0)) == {"train": 300}
    assert set(split(known, val=0.0)) == {"train", "test"}
    assert set(split(known, test="held_out.jsonl")) == {"train", "val"}
    assert len(assign_splits(facts([]), SplitConfig(), 0)) == 0


def test_rare_classes_go_to_train_and_rare_strata_without_labels_are_dealt_together() -> None:
    assert set(split(facts(range(20), range(20)))) == {"train"}
    unlabelled = SplitFacts(
        facts(range(200)).question, np.arange(200, dtype=np.int32), np.zeros(200, dtype=bool)
    )  # every row its own stratum
    counts = Counter(split(unlabelled))
    assert counts["val"] >= 10 and counts["test"] >= 10 and counts["train"] >= 140


# --- by time -------------------------------------------------------------------------------------


def test_by_time_the_newest_rows_are_the_test() -> None:
    time = np.random.default_rng(0).permutation(100).astype(float)
    where = np.array(split(facts(range(100), time=time), by="time"))
    assert Counter(where.tolist()) == {"train": 80, "val": 10, "test": 10}
    assert time[where == "train"].max() < time[where == "val"].min()
    assert time[where == "val"].max() < time[where == "test"].min()


@given(
    days=st.lists(st.one_of(st.none(), st.integers(0, 6)), min_size=3, max_size=60),
    questions=st.lists(st.integers(0, 30), min_size=60, max_size=60),
)
def test_by_time_equal_times_and_questions_stay_together_and_no_time_is_train(
    days: list[int | None], questions: list[int]
) -> None:
    time = np.array([np.nan if day is None else day for day in days], dtype=float)
    known = facts(questions[: len(days)], time=time)
    try:
        where = split(known, by="time", val=0.2, test=0.2)
    except UserError:
        assert len(set(days)) <= 3 or len(set(questions[: len(days)])) < len(days)
        return
    assert set(where) == {"train", "val", "test"}
    newest: dict[int, float] = defaultdict(lambda: -np.inf)
    for question, moment in zip(questions, time, strict=False):
        newest[question] = max(newest[question], -np.inf if np.isnan(moment) else moment)
    of_moment: dict[float, set[str]] = defaultdict(set)
    for question, name in zip(questions, where, strict=False):
        of_moment[newest[question]].add(name)
    assert all(len(names) == 1 for names in of_moment.values())
    assert of_moment.get(-np.inf, {"train"}) == {"train"}
    order = [SPLITS.index(next(iter(of_moment[moment]))) for moment in sorted(of_moment)]
    assert order == sorted(order)


def test_by_time_without_times_is_refused() -> None:
    with pytest.raises(UserError, match="different times"):
        split(facts(range(30), time=np.full(30, np.nan)), by="time")
    with pytest.raises(UserError, match="there are 1"):
        split(facts(range(30), time=np.zeros(30)), by="time")


# --- frozen --------------------------------------------------------------------------------------


def test_frozen_rows_stay_and_training_rows_never_become_test() -> None:
    before = assign_splits(facts(range(1000)), SplitConfig(), 0)
    frozen = np.concatenate([before, np.full(500, UNDECIDED)]).astype(np.int8)
    after = assign_splits(facts(range(1500), frozen=frozen), SplitConfig(), 7)
    assert np.array_equal(after[:1000], before)
    assert {TRAIN, VAL, TEST} <= set(after[1000:].tolist())


def test_new_rows_join_the_frozen_rows_they_belong_to() -> None:
    frozen = np.array([TEST, VAL, TRAIN, TRAIN, UNDECIDED, UNDECIDED, UNDECIDED], dtype=np.int8)
    questions = ["t", "v", "x", "t2", "t", "v", "x"]
    after = assign_splits(facts(questions, frozen=frozen, links=np.array([[0, 3]])), SplitConfig(), 0)
    assert after.tolist() == [TEST, VAL, TRAIN, LEAK, TEST, VAL, TRAIN]


def test_no_row_joins_a_test_set_that_was_given() -> None:
    frozen = np.array([TEST, UNDECIDED, UNDECIDED], dtype=np.int8)
    after = assign_splits(facts(["t", "t", "u"], frozen=frozen), SplitConfig(test="held_out.jsonl", val=0.0), 0)
    assert after.tolist() == [TEST, LEAK, TRAIN]


def test_an_earlier_data_set_is_known_by_ids_and_questions() -> None:
    def named(text: str, name: int) -> Row:
        return row(("user", text), ("assistant", "x"), name=f"{name:016x}")

    earlier = Dataset("", manifest_of(), [named("train", 1)], [named("val", 2)], [named("test", 3)])
    rows = [named("changed", 1), named("VAL ", 9), named("test", 3), named("new", 8)]
    found = frozen_splits(
        np.array([int(r.id, 16) for r in rows], dtype=np.uint64),
        np.array([key64(prompt_key(r)) for r in rows], dtype=np.uint64),
        earlier,
    )
    assert found.tolist() == [TRAIN, VAL, TEST, UNDECIDED]
