"""Reviews of pairs and of single answers, and votes in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tuneloop.evaluation.review.items import ReviewFolder, make_review, read_systems
from tuneloop.records.review import Vote


def pair_review(run: Path, share: float = 1.0) -> ReviewFolder:
    systems = read_systems([f"{run}:few_shot", str(run)])
    return make_review(systems, run / "review", mode="pairwise", share=share)


def vote(item: str, reviewer: str, choice: str = "win", time: str = "2026-01-01T00:00:00", **more: Any) -> Vote:
    return Vote(item=item, reviewer=reviewer, time=time, choice=choice, **more)
