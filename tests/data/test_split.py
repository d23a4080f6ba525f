from __future__ import annotations

import random
from collections import Counter, defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from tuneloop.data.config import SplitConfig
from tuneloop.data.split import assign_splits, keyed_hash, prompt_key, quotas
from tuneloop.types import Row


def row(text: str, label: str | None = None, answer: str | None = None) -> Row:
    reply = answer or label or "ok"
    return Row(
        f"{text}|{reply}", [{"role": "user", "content": text}, {"role": "assistant", "content": reply}], label=label
    )


def split(rows: list[Row], seed: int = 0, **shares: float) -> dict[str, str]:
    assigned = assign_splits(rows, [r.label or "" for r in rows], SplitConfig(**shares), seed)  # type: ignore[arg-type]
    return {r.id: s for r, s in zip(rows, assigned, strict=True)}


def test_shares_are_met_and_every_class_is_everywhere() -> None:
    sizes = {f"c{n}": 3 + n for n in range(40)}
    rows = [row(f"{label} {n}", label) for label, size in sizes.items() for n in range(size)]
    where = split(rows)
    counts = Counter(where.values())
    total = len(rows)
    # the small classes need at least one row in each, so val and test are a little over their share
    assert 0.1 * total <= counts["val"] <= 0.115 * total and 0.1 * total <= counts["test"] <= 0.115 * total
    for label in sizes:
        assert {where[r.id] for r in rows if r.label == label} == {"train", "val", "test"}


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.dictionaries(st.text(max_size=3), st.integers(1, 60), min_size=1, max_size=12),
    val=st.sampled_from([0.0, 0.1, 0.25, 0.5]),
    test=st.sampled_from([0.0, 0.1, 0.2, 0.49]),
)
def test_quotas_are_the_share_rounded_and_leave_a_row_for_training(
    sizes: dict[str, int], val: float, test: float
) -> None:
    wanted = quotas(sizes, val, test)
    for name, size in sizes.items():
        v, t = wanted[name]
        assert v >= 0 and t >= 0 and v + t < size
        if size >= 3:
            assert (v > 0) == (val > 0) and (t > 0) == (test > 0)
        assert v <= max(1, -(-size * val // 1)) and t <= max(1, -(-size * test // 1))


def test_rounding_errors_of_many_classes_cancel_out() -> None:
    wanted = quotas({f"c{n}": 14 for n in range(100)}, 0.1, 0.1)
    assert sum(v for v, _ in wanted.values()) == 140 and sum(t for _, t in wanted.values()) == 140
    assert {v for v, _ in wanted.values()} == {1, 2}


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), shuffle=st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(seed: int, shuffle: random.Random) -> None:
    rows = [row(f"text {n % 25}", "abc"[n % 3], answer=f"a{n}") for n in range(60)]
    shuffled = list(rows)
    shuffle.shuffle(shuffled)
    assert split(rows, seed) == split(shuffled, seed)


def test_another_seed_gives_another_split() -> None:
    rows = [row(f"text {n}", "abc"[n % 3]) for n in range(60)]
    assert split(rows, 0) == split(rows, 0) != split(rows, 1)
    assert keyed_hash("a", 0) != keyed_hash("a", 1)


@settings(max_examples=40, deadline=None)
@given(repeats=st.lists(st.integers(1, 6), min_size=1, max_size=40), labels=st.randoms(use_true_random=False))
def test_one_prompt_never_stands_in_two_splits(repeats: list[int], labels: random.Random) -> None:
    spaced = (" Same  {} ", "same {}", "SAME {}", "same\n{}", "Same {}", "sAME\t{}")
    rows = [
        row(spaced[k].format(n), labels.choice("ab"), answer=f"{n}.{k}")
        for n, count in enumerate(repeats)
        for k in range(count)
    ]
    where = split(rows)
    groups = defaultdict(set)
    for r in rows:
        groups[prompt_key(r)].add(where[r.id])
    assert len(groups) == len(repeats)
    assert all(len(splits) == 1 for splits in groups.values())
    assert "train" in where.values()


def test_groups_larger_than_the_share_still_reach_every_split() -> None:
    rows = [row(f"prompt {n}", answer=f"{n}.{k}") for n in range(3) for k in range(4)]
    assert set(split(rows).values()) == {"train", "val", "test"}


def test_no_share_no_rows() -> None:
    rows = [row(f"text {n}", "a") for n in range(30)]
    assert Counter(split(rows, val=0.0, test=0.0).values()) == {"train": 30}
    assert Counter(split(rows, val=0.0).values()) == {"train": 27, "test": 3}


def test_rare_classes_go_to_train_and_rare_strata_are_dealt_together() -> None:
    rows = [row(f"text {n}", f"label {n}") for n in range(20)]
    assert set(split(rows).values()) == {"train"}
    unlabelled = [row(f"text {n}") for n in range(20)]
    assigned = assign_splits(unlabelled, [f"stratum {n}" for n in range(20)], SplitConfig(), 0)
    assert Counter(assigned) == {"train": 16, "val": 2, "test": 2}
