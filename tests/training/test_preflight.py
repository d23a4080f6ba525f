"""What is looked at before the first step, and what makes a run refuse to start."""

from __future__ import annotations

from typing import Any

import pytest

from tuneloop.models.chat.template import Rendered
from tuneloop.models.load import Model
from tuneloop.training.batches import plan_steps
from tuneloop.training.config import TrainConfig
from tuneloop.training.preflight import Preflight

CHAT: list[Any] = [{"role": "user", "content": "A letter"}, {"role": "assistant", "content": "red"}]
CONFIG = TrainConfig(rows_per_step=2, epochs=2, learning_rate=1e-3)


def look(model: Model, rows: list[Rendered], limit: int = 100) -> Preflight:
    names = [f"row-{i}" for i in range(len(rows))]
    return Preflight.of(rows, names, model.template, CONFIG, plan_steps(rows, CONFIG, 0), limit)


def test_a_sound_run_is_counted(tiny_model: Model) -> None:
    rows = [tiny_model.template.render(CHAT * n) for n in (1, 2, 1, 1)]
    found = look(tiny_model, rows)
    assert found.problems == ()
    assert (found.rows, found.bos, found.answers, found.ended, found.end_token) == (4, {1: 4}, 5, 5, "<|eot_id|>")
    assert (found.steps, found.learning_rate, found.warmup_steps) == (4, 1e-3, 1)
    assert found.tokens == sum(len(r.ids) for r in rows) and found.supervised == sum(sum(r.mask) for r in rows)
    assert [name for name, _ in found.shown] == ["row-0", "row-1"]
    assert "5 of 5 answers end in a supervised <|eot_id|>" in found.line()
    assert any("1 in 4 rows" in line for line in found.lines())


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda r: Rendered(r.ids, [0] * len(r.ids)), "no token to learn"),
        (lambda r: Rendered(r.ids * 10, r.mask * 10), "more than 100 tokens"),
        (lambda r: Rendered(r.ids[:-1], r.mask[:-1]), "no supervised end-of-turn"),
        (lambda r: Rendered([r.ids[0], *r.ids], [0, *r.mask]), "two begin-of-text"),
        (lambda r: Rendered(r.ids[1:], r.mask[1:]), "no begin-of-text"),
    ],
)
def test_what_would_spoil_a_run_is_named_with_its_row(tiny_model: Model, spoil: Any, said: str) -> None:
    rows = [tiny_model.template.render(CHAT) for _ in range(4)]
    rows[2] = spoil(rows[2])
    found = look(tiny_model, rows)
    assert len(found.problems) == 1 and said in found.problems[0] and "row-2" in found.problems[0]
