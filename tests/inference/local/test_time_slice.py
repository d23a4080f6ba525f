"""A quantum of work that gives way is as long as fits."""

from __future__ import annotations

from tuneloop.inference.local.time_slice import QUANTUM, Pace


def test_a_quantum_has_as_many_tokens_as_fit() -> None:
    pace = Pace(2, 64)
    assert pace.tokens == 2
    pace.learn(2, 2 * QUANTUM / 10)
    assert pace.tokens == 10
    for _ in range(50):
        pace.learn(10, 10 * QUANTUM * 5)
    assert pace.tokens == 2
