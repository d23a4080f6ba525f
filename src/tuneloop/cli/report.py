"""`tuneloop report`."""

from __future__ import annotations

from pathlib import Path

from tuneloop.cli.console import print_json, screen, terminal
from tuneloop.cli.parameters import Output, argument
from tuneloop.core.errors import UserError
from tuneloop.core.flag import flag


def command(
    run: str = argument("RUN|EVALUATION", "Folder of a run, an evaluation or a comparison."),
    table: str = flag("", "NAME", "Print only the comparison, as markdown, latex or csv."),
    *,
    output: Output,
) -> None:
    """Write the report page of a run or evaluation again.

    It also prints the table with which a run ends.
    """

    from tuneloop.pipeline.report import summary
    from tuneloop.records.evaluation import EvaluationManifest
    from tuneloop.records.record import read_record
    from tuneloop.report.comparison import comparison_as
    from tuneloop.report.html import write_page
    from tuneloop.report.terminal import print_closing

    folder = Path(run)
    if table:
        if table not in ("markdown", "latex", "csv"):
            raise UserError(f"No such table {table!r}", where="--table", next_step="choose markdown, latex or csv")
        text = comparison_as(read_record(EvaluationManifest, folder / EvaluationManifest.file), table)  # type: ignore[arg-type]
        print_json({"table": text, "format": table}) if output.json else print(text, end="")
        return
    with screen(output.quiet, "writing the report"):
        page = write_page(folder)
    if output.json:
        print_json(summary(folder) | {"report": str(page)})
    elif not output.quiet:
        print_closing(folder, terminal())
