"""A data set: what became of each record, rows to search in, labels that look wrong to correct."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from starlette.requests import Request

from tuneloop.core.errors import UserError
from tuneloop.core.ids import utc_now
from tuneloop.data import PatchLine, add_to_patch, read_patch
from tuneloop.report.data import SPLITS, DataFacts, RowQuery, find_rows, page_of, read_data, row_by_id
from tuneloop.web.index import Found
from tuneloop.web.sources import Sources

PATCH = "patch.jsonl"
NAMES = [field.name for field in fields(RowQuery)]


def show(request: Request, sources: Sources) -> dict[str, Any]:
    """What the page shows."""
    found = sources.find("dataset", request.path_params["key"])
    page, choices = sources.index.facts("data report", found, found.changed, _report)
    query = RowQuery(**{name: request.query_params.get(name, "") for name in NAMES})
    rows = find_rows(found.path, query) if sources.texts else None
    suspects = page["suspects"] if sources.texts else []
    more = {
        "key": found.key, "found": rows, "choices": choices, "fixed": corrections(found), "patch": str(patch_of(found)),
        "suspects": suspects, "asked": any(getattr(query, name) for name in NAMES),
    }  # fmt: skip
    return page | more


def patch_of(found: Found) -> Path:
    """The patch of a data set: next to its folder, so that preparing it again leaves it there."""
    return found.path.with_name(f"{found.path.name}-{PATCH}")


def corrections(found: Found) -> dict[str, PatchLine]:
    """What was corrected so far, by the ids of rows."""
    lines = read_patch(patch_of(found)).values() if patch_of(found).is_file() else ()
    return {line.id: line for line in lines if line.id}


def _report(found: Found) -> tuple[dict[str, Any], Mapping[str, list[str]]]:
    facts = read_data(found.path)
    page = page_of(facts)
    manifest = facts.manifest
    for shown, record in zip(page["suspects"], facts.label_errors, strict=True):
        shown |= {"id": record.id}
    checks = sorted({check.name for check in manifest.checks if check.level != "ok"}) if manifest else []
    labels = sorted(
        {name for split in manifest.splits.by_name.values() for name in split.labels or {}} if manifest else ()
    )
    return page, {
        "label": labels, "split": [*SPLITS], "check": checks, "repair": sorted(facts.repaired | _pii(facts)),
        "personal": sorted(facts.redacted),
    }  # fmt: skip


def _pii(facts: DataFacts) -> dict[str, float]:
    return {"pii": 1.0} if facts.redacted else {}


def act(request: Request, sources: Sources, form: dict[str, str]) -> str:
    """Write a correction of a row's answer into the data set's patch; returns where to go."""
    found = sources.find("dataset", request.path_params["key"])
    row = row_by_id(found.path, form.get("split", ""), form.get("id", "")) if form.get("split") in SPLITS else None
    if row is None:
        raise UserError("This row is not in the data set any more", where=form.get("id", "")[:80])
    if before := corrections(found).get(row["id"]):  # the page has no form for it then
        message = f"{before.who or 'Someone'} has corrected this row meanwhile: {before.becomes[:200]}"
        raise UserError(
            message, where=row["id"], next_step=f"change its line in {patch_of(found).name} if that is wrong"
        )
    becomes = form.get("becomes", "").strip()
    answer, meta = str(row["messages"][-1].get("content") or ""), row.get("meta") or {}
    if not becomes or becomes == answer:
        raise UserError("The correction is empty, or what the answer is already", next_step="go back and write it")
    if not isinstance(meta.get("source"), str) or not isinstance(meta.get("line"), int):
        raise UserError("It is not known which record this row was made of", where=row["id"])
    origin = {key: meta[key] for key in ("source", "line")}
    line = PatchLine(**origin, was=answer, becomes=becomes, id=row["id"], who=sources.who, time=utc_now())
    add_to_patch(sources.inside(patch_of(found)), [line])
    said = f"Written to {patch_of(found).name}; prepare with data.patch applies it"
    return sources.url("dataset", key=found.key, said=said, **{name: form.get(f"q_{name}", "") for name in NAMES})
