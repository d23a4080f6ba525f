"""benchmarks/records/claims.md is what the planner says today, and covers every rule of thumb."""

from __future__ import annotations

import runpy
from typing import Any

import pytest

from places import ROOT

BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    return runpy.run_path(str(BENCHMARKS / "claims.py"), run_name="made")


def test_the_page_is_up_to_date(made: dict[str, Any]) -> None:
    assert (BENCHMARKS / "records" / "claims.md").read_text(encoding="utf-8") == made["page"](), (
        "run: python benchmarks/claims.py"
    )


def test_every_claim_has_a_verdict_and_figures(made: dict[str, Any]) -> None:
    claims = made["claims"]()
    assert len(claims) >= 15
    for claim in claims:
        assert claim.verdict.startswith(("holds", "does not hold")), claim
        assert any(char.isdigit() for char in " ".join(claim.why)), claim


@pytest.mark.parametrize(
    ("start", "verdict"),
    [
        ("70B LoRA on one", "does not hold"),
        ("Prefix tuning trains 100", "does not hold"),
        ("500 prompt tokens", "does not hold"),
        ("1M requests", "holds only"),
        ("$1.19 x 3 h", "holds as products"),
    ],
)
def test_what_arithmetic_alone_decides(made: dict[str, Any], start: str, verdict: str) -> None:
    claim = next(claim for claim in made["claims"]() if claim.text.startswith(start))
    assert claim.verdict.startswith(verdict)
