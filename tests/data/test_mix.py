from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneloop.core.errors import UserError
from tuneloop.core.files import write_json, write_jsonl
from tuneloop.data.config import MixConfig
from tuneloop.data.mix import (
    HELD_OUT_ROWS,
    GeneralRows,
    GeneralSizes,
    Mixed,
    MixSize,
    check_share,
    dataset_rows,
    interleaved,
    mix_rows,
    plan_mix,
)
from tuneloop.records.rows import Row


def general(name: str, n: int, tokens: int | None = None, seed: int = 0) -> GeneralSizes:
    rng = random.Random(f"{name}{seed}")
    return GeneralSizes(name, [f"{name}{i}" for i in range(n)], [tokens or rng.randint(20, 400) for _ in range(n)])


def row(text: str, answer: str = "yes", system: str = "") -> Row:
    turns: list[Any] = [{"role": "system", "content": system}] if system else []
    turns += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
    return Row(
        hashlib.sha256(json.dumps(turns).encode()).hexdigest()[:16], turns, meta={"source": "x.jsonl", "line": 1}
    )


def ids(sources: list[GeneralSizes], places: Any) -> list[str]:
    return [sources[path.source].ids[path.row] for path in places]


def mix(task: list[Row], sources: dict[str, list[Row]], *, test: list[Row] | None = None, seed: int = 0, **config: Any) -> Mixed:  # fmt: skip
    splits = {"train": task, "test": test or []}
    sizes = {split: MixSize(len(rows), 10 * len(rows)) for split, rows in splits.items()}
    given_ = [GeneralRows(name, rows, [10] * len(rows)) for name, rows in sources.items()]
    return mix_rows(splits, sizes, given_, MixConfig(**config), seed)


# --- the plan


@given(
    rows=st.integers(50, 400),
    share=st.floats(0.0, 0.6),
    by=st.sampled_from(["tokens", "rows"]),
    sizes=st.lists(st.integers(1, 300), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
def test_the_share_is_reached_to_the_row_unless_all_rows_are_used(
    rows: int, share: float, by: Any, sizes: list[int], seed: int
) -> None:
    sources = [general(f"s{i}-", n) for i, n in enumerate(sizes)]
    task = MixSize(rows, rows * 60)
    plan = plan_mix(task, sources, MixConfig(share=share, by=by), seed)
    unit = max(max(s.tokens) for s in sources) if by == "tokens" else 1
    wanted = share / (1 - share) * (task.tokens if by == "tokens" else task.rows)
    reached = plan.general.tokens if by == "tokens" else plan.general.rows
    if plan.exhausted:
        assert len(plan.train) == sum(sizes) - len(plan.held_out)
        assert reached < wanted
    else:
        assert abs(reached - wanted) <= unit / 2 + 1e-6
    assert len(set(plan.train)) == len(plan.train)
    assert not set(plan.train) & set(plan.held_out)
    assert len(plan.held_out) == min(HELD_OUT_ROWS, round(sum(sizes) * 0.05))


def test_the_default_is_thirty_percent_of_the_mixed_tokens() -> None:
    plan = plan_mix(MixSize(1000, 50_000), [general("g", 2000)], MixConfig(), 0)
    assert plan.general.tokens / (plan.general.tokens + 50_000) == pytest.approx(0.3, abs=0.005)
    assert check_share(plan)["level"] == "ok"


@given(small=st.integers(1, 300), more=st.integers(0, 300), seed=st.integers(0, 9))
def test_more_task_rows_keep_the_general_rows_as_a_prefix(small: int, more: int, seed: int) -> None:
    sources = [general("a", 150), general("b", 60)]
    first = plan_mix(MixSize(small, small * 50), sources, MixConfig(weights=[1, 2]), seed)
    second = plan_mix(MixSize(small + more, (small + more) * 50), sources, MixConfig(weights=[1, 2]), seed)
    assert second.train[: len(first.train)] == first.train
    assert first.held_out == second.held_out


def test_the_order_of_the_rows_does_not_count_and_the_seed_does() -> None:
    source = general("g", 200)
    turned = GeneralSizes("g", source.ids[::-1], source.tokens[::-1])
    config, task = MixConfig(), MixSize(100, 5000)
    plan, again, other = (plan_mix(task, [s], config, seed) for s, seed in ((source, 0), (turned, 0), (source, 1)))
    assert ids([source], plan.train) == ids([turned], again.train)
    assert ids([source], plan.held_out) == ids([turned], again.held_out)
    assert ids([source], plan.train) != ids([source], other.train)


def test_new_general_rows_hardly_move_the_held_out_ones() -> None:
    before, after = general("g", 1000), general("g", 1100)
    config, task = MixConfig(), MixSize(100, 5000)
    old = set(ids([before], plan_mix(task, [before], config, 0).held_out))
    new = set(ids([after], plan_mix(task, [after], config, 0).held_out))
    assert len(old & new) >= 45 and len(old) == 50


def test_weights_divide_the_general_part() -> None:
    sources = [general("a", 500, 50), general("b", 500, 100)]
    plan = plan_mix(MixSize(300, 30_000), sources, MixConfig(weights=[3, 1]), 0)
    tokens = Counter[int]()
    for path in plan.train:
        tokens[path.source] += sources[path.source].tokens[path.row]
    assert tokens[0] / tokens.total() == pytest.approx(0.75, abs=0.02)


def test_without_weights_the_sizes_count() -> None:
    plan = plan_mix(MixSize(100, 0), [general("a", 300), general("b", 100)], MixConfig(by="rows"), 0)
    counts = Counter(path.source for path in plan.train)
    assert counts[0] == pytest.approx(3 * counts[1], abs=2)


def test_a_source_of_weight_zero_is_left_alone() -> None:
    plan = plan_mix(MixSize(100, 0), [general("a", 300), general("b", 300)], MixConfig(by="rows", weights=[0, 1]), 0)
    assert {path.source for path in plan.train} == {1}


def test_the_others_fill_the_place_of_a_used_up_source() -> None:
    plan = plan_mix(MixSize(100, 0), [general("a", 5), general("b", 300)], MixConfig(by="rows", weights=[1, 1]), 0)
    assert plan.general.rows == 43 and not plan.exhausted


def test_without_repetition_too_few_rows_are_said() -> None:
    plan = plan_mix(MixSize(1000, 0), [general("a", 100)], MixConfig(by="rows"), 0)
    check = check_share(plan)
    assert (plan.general.rows, plan.times, plan.exhausted) == (95, 1, True)
    assert check["level"] == "warn" and "8.7%" in check["message"] and "repeat" in check["remedy"]


def test_with_repetition_rows_take_turns_and_many_turns_are_said() -> None:
    plan = plan_mix(MixSize(1000, 0), [general("a", 100)], MixConfig(by="rows", repeat=True), 0)
    uses = Counter(plan.train)
    assert plan.general.rows == 429 and set(uses.values()) == {4, 5}
    assert check_share(plan)["level"] == "warn" and "5 times" in check_share(plan)["message"]
    twice = plan_mix(MixSize(400, 0), [general("a", 100)], MixConfig(by="rows", repeat=True), 0)
    assert check_share(twice)["level"] == "ok"


@pytest.mark.parametrize("config", [MixConfig(share=0.0), MixConfig(repeat=True)])
def test_nothing_to_mix_gives_nothing(config: MixConfig) -> None:
    sources = [general("a", 50)] if config.share == 0.0 else [GeneralSizes("a", [], [])]
    assert plan_mix(MixSize(10, 100), sources, config, 0).train == ()


def test_rows_too_large_for_few_task_rows_are_said() -> None:
    check = check_share(plan_mix(MixSize(2, 20), [general("a", 50, 1000)], MixConfig(), 0))
    assert check["level"] == "warn" and "too large" in check["message"]


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0]])
def test_weights_that_do_not_fit_are_refused(weights: list[float]) -> None:
    with pytest.raises(UserError):
        plan_mix(MixSize(10, 100), [general("a", 5), general("b", 5)], MixConfig(weights=weights), 0)


# --- the order


@given(task=st.integers(0, 700), rows=st.integers(0, 400), window=st.sampled_from([1, 7, 100]))
def test_every_window_holds_the_share(task: int, rows: int, window: int) -> None:
    positions = interleaved(task, rows)
    assert positions == sorted(set(positions)) and len(positions) == rows
    total = task + rows
    marks = [0] * total
    for position in positions:
        marks[position] = 1
    for start in range(max(0, total - window + 1)):
        assert abs(sum(marks[start : start + window]) - window * rows / total) <= 1


# --- rows


def test_general_rows_are_marked_and_what_the_task_asks_is_left_out() -> None:
    task = [row(f"task {i}") for i in range(20)]
    test = [row("measured")]
    shared = [row("TASK  3", "other"), row("measured", system="Answer."), row("general 1", "again")]
    others = [row(f"general {i}") for i in range(20)]
    mixed = mix(task, {"qa": [*others, *shared]}, test=test, by="rows")
    assert len(mixed.train) == 9 and all(d.meta["mix"] == "qa" for d in mixed.train)
    assert mixed.record["sources"][0]["left_out"] == 3
    texts = {d.messages[0]["content"] for d in mixed.train + mixed.held_out}
    assert not texts & {"TASK  3", "measured"}
    assert mixed.train[0].meta["source"] == "x.jsonl" and "mix" not in others[0].meta
    assert all(row.messages in [r.messages for r in (*others, *shared)] for row in mixed.train + mixed.held_out)


def test_rows_used_again_have_ids_of_their_own() -> None:
    mixed = mix(
        [row(f"task {i}") for i in range(40)], {"qa": [row(f"g {i}") for i in range(8)]}, by="rows", repeat=True
    )
    names = [d.id for d in mixed.train]
    assert len(set(names)) == len(names) == 17
    assert (mixed.record.sources[0].name, mixed.record.sources[0].train, mixed.record.sources[0].uses) == ("qa", 8, 17)


def test_the_test_split_gets_general_rows_on_request_only() -> None:
    task, test = [row(f"task {i}") for i in range(70)], [row(f"test {i}") for i in range(7)]
    others = {"qa": [row(f"g {i}") for i in range(100)]}
    assert not mix(task, others, test=test, by="rows").test
    mixed = mix(task, others, test=test, by="rows", in_test=True)
    assert len(mixed.test) == 3 and len(mixed.train) == 30
    groups = [{d.id for d in some} for some in (mixed.train, mixed.test, mixed.held_out)]
    assert sum(map(len, groups)) == len(set.union(*groups))


def test_a_data_set_is_read_by_its_training_rows(tmp_path: Path) -> None:
    assert dataset_rows(str(tmp_path)) is None
    write_jsonl(tmp_path / "train.jsonl", [row("a"), row("b")])
    write_json(tmp_path / "dataset.json", {"version": 1})
    rows = dataset_rows(str(tmp_path))
    assert rows is not None and rows == dataset_rows(str(tmp_path / "dataset.json")) == [row("a"), row("b")]
