"""The order of training: every row once an epoch, from the seed alone, within its budgets."""

from __future__ import annotations

import random
from collections import Counter
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneloop.models.chat.template import Rendered
from tuneloop.training.batches import Step, plan_steps
from tuneloop.training.config import TrainConfig


def rows(lengths: list[int]) -> list[Rendered]:
    return [Rendered([1] * n, [0] + [1] * (n - 1)) for n in lengths]


def indices(steps: list[Step]) -> list[int]:
    return [i for step in steps for micro in step.micro_batches for i in micro]


LENGTHS = st.lists(st.integers(2, 300), min_size=1, max_size=120)


@given(LENGTHS, st.integers(1, 20), st.integers(0, 2000), st.integers(16, 2000), st.integers(1, 3), st.integers(0, 9))
def test_every_row_is_trained_on_once_an_epoch(
    lengths: list[int], per_step: int, tokens: int, micro: int, epochs: int, seed: int
) -> None:
    config = TrainConfig(rows_per_step=per_step, tokens_per_step=tokens, micro_batch_tokens=micro, epochs=epochs)
    steps = plan_steps(rows(lengths), config, seed)
    assert Counter(indices(steps)) == Counter(dict.fromkeys(range(len(lengths)), epochs))
    last = [step for step in steps if step.epoch <= 1.0 + 1e-9]
    assert sorted(indices(last)) == list(range(len(lengths))), "the first epoch is whole before the second begins"


@given(LENGTHS, st.integers(1, 20), st.integers(0, 2000), st.integers(16, 2000))
def test_micro_batches_stay_within_their_tokens(lengths: list[int], per_step: int, tokens: int, micro: int) -> None:
    config = TrainConfig(rows_per_step=per_step, tokens_per_step=tokens, micro_batch_tokens=micro, epochs=1)
    for step in plan_steps(rows(lengths), config, 0):
        for batch in step.micro_batches:
            assert len(batch) == 1 or sum(lengths[i] for i in batch) <= micro
            assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 1.5 * micro


@pytest.mark.parametrize(("method", "told", "expected"), [("lora", 0, 8), ("full", 0, 4), ("lora", 512, 2)])
def test_a_processor_computes_2048_tokens_at_once_and_1024_where_all_weights_learn_unless_told(
    method: Literal["lora", "full"], told: int, expected: int
) -> None:
    config = TrainConfig(method=method, rows_per_step=8, micro_batch_tokens=told, epochs=1)
    (step,) = plan_steps(rows([256] * 8), config, 0)
    assert {len(micro) for micro in step.micro_batches} == {expected}


def test_a_step_has_its_rows_and_tokens() -> None:
    lengths = [20 + i % 50 for i in range(400)]
    steps = plan_steps(rows(lengths), TrainConfig(rows_per_step=4, tokens_per_step=500, epochs=1), 0)
    sums = [sum(lengths[i] for i in indices([step])) for step in steps]
    assert sum(s >= 500 for s in sums) >= len(steps) - 1  # but for a remnant
    assert max(sums) < 2 * 500 + 4 * 70


def test_the_order_comes_from_the_seed_alone_and_changes_from_epoch_to_epoch() -> None:
    data = rows([10 + i % 7 for i in range(100)])
    config = TrainConfig(rows_per_step=5, tokens_per_step=0, epochs=2)
    first = plan_steps(data, config, 3)
    assert plan_steps(data, config, 3) == first
    assert plan_steps(data, config, 4) != first
    half = len(first) // 2
    assert indices(first[:half]) != indices(first[half:])


@pytest.mark.parametrize(("epochs", "share"), [(0.5, 0.5), (1.25, 1.25), (0.001, 0.0)])
def test_a_fraction_of_an_epoch_is_a_fraction_of_its_steps(epochs: float, share: float) -> None:
    data = rows([10] * 80)
    whole = len(plan_steps(data, TrainConfig(rows_per_step=2, tokens_per_step=0, epochs=1), 0))
    steps = plan_steps(data, TrainConfig(rows_per_step=2, tokens_per_step=0, epochs=epochs), 0)
    assert len(steps) == max(round(whole * share), 1)
    assert steps[-1].epoch == pytest.approx(max(epochs, 1 / whole), abs=0.02)


@given(st.integers(40, 400), st.floats(0.05, 0.6), st.integers(2, 12), st.integers(0, 5))
def test_every_stretch_of_steps_holds_its_share_of_general_rows(n: int, share: float, per_step: int, seed: int) -> None:
    rng = random.Random(seed)
    mixed = [rng.random() < share for _ in range(n)]
    data = rows([rng.randint(5, 300) if general else rng.randint(20, 60) for general in mixed])
    steps = plan_steps(data, TrainConfig(rows_per_step=per_step, epochs=2), seed, mixed)
    assert Counter(indices(steps)) == Counter(dict.fromkeys(range(n), 2))
    assert plan_steps(data, TrainConfig(rows_per_step=per_step, epochs=2), seed, mixed) == steps
    if not any(mixed):
        return
    first = [step for step in steps if step.epoch <= 1 + 1e-9]
    real = sum(mixed) / n
    for begin in range(0, len(first), 3):
        for end in range(begin + 1, len(first) + 1, 4):
            window = indices(first[begin:end])
            general = sum(mixed[i] for i in window)
            assert abs(general - real * len(window)) < 2, (begin, end)
    assert max(len(s.indices) for s in first) - min(len(s.indices) for s in first) <= 2


def test_steps_hold_rows_of_all_lengths_and_their_micro_batches_neighbours() -> None:
    rng = random.Random(0)
    lengths = [rng.randint(20, 600) for _ in range(800)]
    steps = plan_steps(rows(lengths), TrainConfig(rows_per_step=8, epochs=1), 0)
    for step in steps:
        of_step = [lengths[i] for i in indices([step])]
        assert of_step == sorted(of_step)
    tokens = [sum(lengths[i] for i in indices([step])) for step in steps]
    mean = sum(tokens) / len(tokens)
    deviation = (sum((t - mean) ** 2 for t in tokens) / len(tokens)) ** 0.5
    assert deviation < 0.3 * mean  # eight rows drawn by chance; steps of like rows have .55 of the mean
