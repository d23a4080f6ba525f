"""What is known of a run's work before it begins."""

from __future__ import annotations

from typing import Any

from tuneloop.models.load import Model
from tuneloop.records.rows import Row
from tuneloop.train.config import TrainConfig
from tuneloop.train.rows import conversations, training_rows
from tuneloop.train.speed import micro_shape


def test_a_shared_prompt_counts_once_only_where_it_is_computed_once(tiny_model: Model) -> None:
    def shape(words: int, **settings: Any) -> tuple[tuple[int, int, int], list[int]]:
        turns: Any = [{"role": "user", "content": "word " * words}, {"role": "assistant", "content": "red"}]
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
