"""The report of a run as it is written, with all rows to search in."""

from __future__ import annotations

from starlette.requests import Request

from tuneloop.report.html import render_report
from tuneloop.web.sources import Sources


def html(request: Request, sources: Sources) -> str:
    """The whole page."""
    return render_report(sources.find("run", request.path_params["key"]).path)
