"""What a tracker was given of a run: `tracking.json` of MLflow, `tracking-NAME.json` of the others."""

from __future__ import annotations

from typing import ClassVar

from pydantic import ConfigDict

from tuneloop.records.record import Record


class TrackingState(Record):
    """`tracking*.json`. It changes during the run, so it is not frozen as other records are.

    Args:
        uri, experiment: where the run is logged.
        identity: hash of the settings that make a run another run.
        run_id: the run's name there; None: it has not begun.
        train_step, val_step: the last step and validation that were logged; -1: none.
        seen: file -> SHA-256 of what was logged of it; `artifacts`: of files that were copied.
        tables: names of the tables that were logged.
    """

    model_config = ConfigDict(extra="forbid", frozen=False)

    title: ClassVar[str] = "a tracker's state"
    file: ClassVar[str] = "tracking.json"
    again: ClassVar[str] = "delete the file; the run is then logged again"

    uri: str = ""
    experiment: str = ""
    identity: str = ""
    run_id: str | None = None
    train_step: int = -1
    val_step: int = -1
    seen: dict[str, str] = {}
    tables: list[str] = []
    artifacts: dict[str, str] = {}
