"""Data: the prepared data sets, and what changed between two of them."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from tuneloop.core import written as w
from tuneloop.core.errors import UserError
from tuneloop.core.foreign import fast_json, file_bytes
from tuneloop.data import diff_datasets
from tuneloop.records.dataset import MANIFEST
from tuneloop.report.data import SPLITS
from tuneloop.web.index import Found
from tuneloop.web.runs import run_lines
from tuneloop.web.sources import Sources

MOST = 200


def show(request: Request, sources: Sources) -> dict[str, Any]:
    """What the page shows; of two that are named, what changed from the first to the second."""
    chosen = list(dict.fromkeys(request.query_params.getlist("of")))
    used: dict[str, int] = {}
    for line in run_lines(sources):
        used[line.dataset] = used.get(line.dataset, 0) + 1
    found = sources.all("dataset")
    lines = [sources.index.facts("dataset", entry, entry.changed, _line) | {"key": entry.key} for entry in found[:MOST]]
    page: dict[str, Any] = {"lines": lines, "used": used, "splits": SPLITS, "total": len(found), "diff": None}
    if not chosen:
        return page
    if len(chosen) != 2:
        raise UserError("Two data sets are compared", next_step="choose two in the list")
    older, newer = sorted((sources.find("dataset", key) for key in chosen), key=lambda entry: entry.changed)
    stamp = (newer.key, older.changed, newer.changed)
    changes = sources.index.facts("diff", older, stamp, lambda entry: diff_datasets(entry.path, newer.path))
    return page | {"diff": changes, "kinds": ("added", "removed", "changed", "moved"), "texts": sources.texts}


def _line(found: Found) -> dict[str, Any]:
    """A data set as a line of the list, from its manifest alone."""
    name = found.path.parent.name if found.path.name == "dataset" else found.path.name
    line: dict[str, Any] = {"name": w.clean(name), "id": "", "task": "", "rows": {}, "rejected": 0, "levels": {}}
    line |= {"problem": "", "changed": found.changed}
    try:
        value = fast_json(file_bytes(found.path / MANIFEST, "json", below=found.path))
        splits, counts = w.section(value.get("splits")), w.section(value.get("counts"))
        levels = [check.get("level") for check in value.get("checks") or []]
        line |= {
            "id": w.clean(value.get("id", "")), "task": w.clean(value.get("task", "")),
            "rows": {name: w.section(splits.get(name)).get("rows") or 0 for name in SPLITS},
            "rejected": int(w.number(counts.get("rejected")) or 0),
            "levels": {level: levels.count(level) for level in ("error", "warn") if level in levels},
        }  # fmt: skip
    except (OSError, ValueError, AttributeError, TypeError) as error:
        line["problem"] = w.clean(f"dataset.json can't be read: {str(error)[:120]}")
    return line
