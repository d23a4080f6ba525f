"""Tracking: trackers get the whole run, a continued run stays one, and what fails there never reaches the training."""

from __future__ import annotations

from pathlib import Path

import pytest
from tracked_run import RECIPE

from tuneloop import track


def test_report_to_none_starts_nothing(project: Path) -> None:
    tracker = track.start_tracking(
        {**RECIPE, "track": {"report_to": ["none"]}}, project / "runs/tickets-1", warn=pytest.fail
    )
    assert not tracker.trackers
    tracker.finish()


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("mlflow", ["mlflow"]), ("none", ["none"]), ("[]", ["none"]), ("tensorboard,wandb", ["tensorboard", "wandb"]),
     ("[mlflow, mlflow]", ["mlflow"])],
)  # fmt: skip
def test_report_to_takes_a_word_or_a_list(given: str, wanted: list[str]) -> None:
    from tuneloop.recipe import make_recipe

    assert make_recipe({}, [f"report_to={given}"]).track.report_to == wanted
