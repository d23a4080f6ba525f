"""What a data set holds, what was done to it, and its rows: page, terminal, search."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # The splits.
    from tuneloop.report.data.facts import SPLITS as SPLITS

    # What the files of a data set say.
    from tuneloop.report.data.facts import DataFacts as DataFacts

    # The files of a data set, read.
    from tuneloop.report.data.facts import read_data as read_data

    # What the page of a data set shows.
    from tuneloop.report.data.html import page_of as page_of

    # The page.
    from tuneloop.report.data.html import render_data_report as render_data_report

    # Write the page.
    from tuneloop.report.data.html import write_data_report as write_data_report

    # Which rows are looked for.
    from tuneloop.report.data.rows import RowQuery as RowQuery

    # Rows that a query finds.
    from tuneloop.report.data.rows import find_rows as find_rows

    # One row.
    from tuneloop.report.data.rows import row_by_id as row_by_id

    # The data set on the terminal.
    from tuneloop.report.data.terminal import data_summary as data_summary

__getattr__, __dir__ = door(__name__)
