"""JSON Schema of every record by name: of the files, and of what a stage is asked."""

from __future__ import annotations

from typing import Any

from tuneloop.cli import schemas

# Name -> the module and the class, and what it is: see `records.schemas.RECORDS`.
RECORDS: dict[str, tuple[str, str, str]] = {
    **schemas.RECORDS,
    "task": ("tuneloop.data.task", "TaskSpec", "`task` in `ADAPTER/tuneloop.json` and `ARTIFACT/artifact.json`"),
    "serve": ("tuneloop.serving.config", "ServeConfig", "`serve.yaml`"),
    "plan-options": ("tuneloop.plan.config", "PlanOptions", "what `tuneloop plan` is asked"),
    "advise-options": ("tuneloop.advise.config", "AdviseOptions", "what `tuneloop advise` is asked"),
}


def schema_of(name: str) -> dict[str, Any]:
    """The JSON Schema of a record.

    Raises:
        UserError: there is no such record; the nearest name is offered.
    """
    return schemas.schema_of(name, RECORDS)
