"""What is known of a run's work before it begins."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from train_helpers import make_rows

from tuneloop.models.load import Model
from tuneloop.records.rows import Row
from tuneloop.training import speed
from tuneloop.training.config import TrainConfig
from tuneloop.training.rows import conversations, training_rows
from tuneloop.training.speed import FEW_TOKENS, MOST, SUSTAINED, measure_speed, micro_shape


def test_a_shared_prompt_counts_once_only_where_it_is_computed_once(tiny_model: Model) -> None:
    def shape(text: int, **settings: Any) -> tuple[tuple[int, int, int], list[int]]:
        turns: Any = [{"role": "user", "content": "word " * text}, {"role": "assistant", "content": "red"}]
        config = TrainConfig(loss="dpo", **settings)
        rows = training_rows(
            [Row("0", turns, meta={"rejected": [{"role": "assistant", "content": "blue"}]})],
            tiny_model.template,
            config,
        )
        return micro_shape(tiny_model, rows, config), [len(part.ids) for part in conversations(rows[0])]

    (count, length, shared), whole = shape(100)
    assert count == 2 and shared > 90 and max(whole) - 1 <= length + shared <= max(whole)
    for (count, length, shared), whole in (shape(1500), shape(100, method="prefix")):
        assert count == 2 and shared == 0 and min(whole) <= length <= max(whole)


@pytest.mark.parametrize(
    ("seconds_a_token", "minutes", "longest"),
    [
        (0.001, None, MOST),
        (0.02, None, MOST),
        (1.0, None, 60.0),
        (0.001, 2.0, 7.2),
        (0.01, 2.0, 7.2),
        (0.01, 8.0, 15.0),
    ],
)
def test_measuring_is_bounded_on_a_slow_machine_and_tells_its_speed(
    tiny_model: Model, monkeypatch: pytest.MonkeyPatch, seconds_a_token: float, minutes: float | None, longest: float
) -> None:
    now, passes = [0.0], []

    def passed(model: Model, rows: Any, config: TrainConfig) -> None:
        tokens = sum(speed.tokens_of(row) for row in rows)
        passes.append(tokens)
        now[0] += seconds_a_token * tokens

    monkeypatch.setattr(speed, "_forward_and_backward", passed)
    monkeypatch.setattr(speed, "time", SimpleNamespace(monotonic=lambda: now[0]))
    rows = make_rows(tiny_model.template, 400)
    row = max(speed.tokens_of(row) for row in rows)
    config = TrainConfig(max_minutes=minutes, micro_batch_tokens=2048)
    assert measure_speed(tiny_model, rows, config, 0) == pytest.approx(SUSTAINED / seconds_a_token)
    assert now[0] <= max(longest, row * seconds_a_token), passes
    assert len(passes) == 1 or max(passes) > FEW_TOKENS
