"""The report stage, and a run as one object."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tuneloop.core.files import read_json, read_yaml
from tuneloop.core.progress import busy
from tuneloop.workflows.run_context import RunContext


def report_stage(job: RunContext) -> Path:
    """`report.html`, from the run's files."""
    from tuneloop.report.html import write_report

    with busy(job.progress, "writing the report"):
        return write_report(job.folder)


def summary(folder: Path) -> dict[str, Any]:
    """A run as one object: what `tuneloop run --json` prints."""
    found: dict[str, Any] = {
        "path": str(folder),
        "adapter": str(folder / ("model" if (folder / "model").is_dir() else "adapter")),
        "report": str(folder / "report.html"),
    }
    for name, file in (
        ("dataset", "dataset/dataset.json"),
        ("plan", "plan.json"),
        ("run", "run.json"),
        ("eval", "eval.json"),
    ):
        found[name] = read_json(folder / file) if (folder / file).is_file() else None
    if found["dataset"] is None and (folder / "config.yaml").is_file():  # the job began with a prepared data set
        given = [Path(source) / "dataset.json" for source in read_yaml(folder / "config.yaml")["data"]["sources"]]
        found["dataset"] = next((read_json(file) for file in given if file.is_file()), None)
    return found
