"""The report stage, and a run as one object."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tuneloop.core.files import read_yaml
from tuneloop.core.ui import busy
from tuneloop.pipeline.context import RunContext
from tuneloop.records.dataset import MANIFEST, DatasetManifest, read_manifest
from tuneloop.records.evaluation import EvaluationManifest
from tuneloop.records.plan import Plan
from tuneloop.records.record import Record, read_record
from tuneloop.records.run import RunManifest
from tuneloop.report.html import write_page


def report_stage(job: RunContext) -> Path:
    """`report.html`, from the run's files."""
    with busy("writing the report"):
        return write_page(job.folder)


def summary(folder: Path) -> dict[str, Any]:
    """A run as one object: what `tuneloop run --json` prints."""
    found: dict[str, Any] = {
        "path": str(folder),
        "adapter": str(folder / ("model" if (folder / "model").is_dir() else "adapter")),
        "report": str(folder / "report.html"),
    }
    manifest = manifest_of_run(folder)
    found["dataset"] = manifest.to_json() if manifest else None
    parts: dict[str, type[Record]] = {"plan": Plan, "run": RunManifest, "eval": EvaluationManifest}
    for name, kind in parts.items():
        found[name] = read_record(kind, folder).to_json() if (folder / kind.file).is_file() else None
    return found


def manifest_of_run(folder: Path) -> DatasetManifest | None:
    """Of a run's data set: its own, or the prepared one that it began with; None where there is none."""
    places = [folder / "dataset"]
    if (folder / "config.yaml").is_file():
        data = read_yaml(folder / "config.yaml").get("data")
        sources = data.get("sources") if isinstance(data, dict) else None
        places += [Path(source) for source in (sources if isinstance(sources, list) else []) if isinstance(source, str)]
    return next((read_manifest(place) for place in places if os.path.isfile(place / MANIFEST)), None)
