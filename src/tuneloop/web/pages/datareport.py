"""The report of a data set as it is written: duplicates, repairs, rejects, all checks."""

from __future__ import annotations

from starlette.requests import Request

from tuneloop.report.data_html import render_data_report
from tuneloop.web.sources import Sources


def html(request: Request, sources: Sources) -> str:
    """The whole page."""
    return render_data_report(sources.find("dataset", request.path_params["key"]).path)
