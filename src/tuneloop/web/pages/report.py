"""The report of a run or a data set as it is written, with all rows to search in."""

from __future__ import annotations

from starlette.requests import Request

from tuneloop.report import render_report
from tuneloop.report.data import render_data_report
from tuneloop.web.sources import Sources


def html(request: Request, sources: Sources) -> str:
    """The whole page."""
    key = request.path_params["key"]
    if found := sources.index.find("dataset", key):
        return render_data_report(found.path)
    return render_report(sources.find("run", key).path)
