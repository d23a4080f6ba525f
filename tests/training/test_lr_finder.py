"""`train.learning_rate=auto`."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import BEGIN_OF_TEXT

from tuneloop.models.load import Model
from tuneloop.models.template import Rendered
from tuneloop.training.config import TrainConfig, usual_rate
from tuneloop.training.speed import choose, range_test

RATES = [1e-5 * 10 ** (i / 4) for i in range(16)]


def test_the_rate_is_a_third_of_where_the_loss_is_lowest() -> None:
    losses = [1.0, 1.0, 0.99, 0.97, 0.93, 0.85, 0.75, 0.6, 0.45, 0.4, 0.6, 1.2, 3.0, 5.0, float("nan"), 9.0]
    found = choose(RATES, losses, 5e-4)
    assert found.chosen == pytest.approx(RATES[9] / 3, rel=0.5)
    assert "rises" in found.sentence and "5e-4" in found.sentence.replace("0.0005", "5e-4")


def test_without_a_fall_the_usual_rate_stays() -> None:
    assert choose(RATES, [1.0] * 16, 5e-4).chosen == 5e-4
    assert choose(RATES[:2], [1.0, math.inf], 5e-4).chosen == 5e-4


def test_a_range_test_leaves_the_model_as_it_was(tiny_model: Model) -> None:
    rows = [Rendered([BEGIN_OF_TEXT, 10 + i % 7, 20, 30, 40, 50], [0, 0, 1, 1, 1, 1]) for i in range(32)]
    config = TrainConfig(rank=2, rows_per_step=4)
    before = {name: p.clone() for name, p in tiny_model.net.named_parameters()}
    state = torch.get_rng_state()
    found = range_test(tiny_model, rows, config, 0)
    after = dict(tiny_model.net.named_parameters())
    assert set(before) == set(after) and all(torch.equal(before[n], after[n]) for n in before)
    assert torch.equal(state, torch.get_rng_state())
    assert 5e-5 < found.chosen < 5e-2 and len(found.rates) == len(found.losses)


def test_auto_is_a_range_test_in_the_settings() -> None:
    config = TrainConfig(learning_rate="auto", method="full")  # type: ignore[arg-type]
    assert config.range_test and config.learning_rate == usual_rate("full", "supervised")
    assert not TrainConfig(learning_rate=1e-3).range_test
