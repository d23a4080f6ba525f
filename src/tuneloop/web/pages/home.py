"""Home: what is in production, what runs, what needs a person, the last verdicts."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from tuneloop.web.sources import Sources


def show(request: Request, sources: Sources) -> dict[str, Any]:
    """What the page shows."""
    return {"runs": len(sources.all("run")), "datasets": len(sources.all("dataset"))}


live = show
