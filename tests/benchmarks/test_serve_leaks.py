"""Eight clients on our own engine, through swaps and kills: no answer is another adapter's."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from adapters import write_adapter
from benchmarks.serve_leaks import BASE, Names, Plan, matrix


@pytest.mark.nightly
@pytest.mark.slow
def test_every_answer_is_that_of_a_cold_engine_asked_alone(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNELOOP_DTYPE", "float32")
    made = [write_adapter(tiny_llama, tmp_path / f"adapter-{seed}", seed) for seed in range(1, 5)]
    plan = Plan(str(tiny_llama), {"a": made[:2], "b": [made[2]], "c": [made[3]]}, seconds=2.0)
    seen = asyncio.run(matrix(plan, tmp_path / "at" / "serve"))
    assert not seen.wrong, seen.wrong[:3]
    assert seen.kills == 2 and seen.swaps == 2 and seen.ends["whole"] > 50 and seen.ends["left"] > 5
    assert set(seen.ends) <= {"whole", "left", "cut", "503"}, seen.ends


def test_a_source_may_answer_until_it_is_swapped() -> None:
    names = Names({"a": (5.0, "new")}, {"a": {"old", "new"}})
    assert names.may("a", "new", 9.0) and names.may("a", "old", 4.0)
    assert not names.may("a", "old", 6.0) and not names.may("a", BASE, 4.0)
