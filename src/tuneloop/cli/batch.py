"""`tuneloop batch`."""

from __future__ import annotations

from pathlib import Path

from tuneloop.cli.console import Result
from tuneloop.cli.parameters import SETTINGS, argument, screen
from tuneloop.core.errors import UserError
from tuneloop.core.files import Config
from tuneloop.core.flag import flag
from tuneloop.core.ui import say
from tuneloop.deploy import BatchOptions, refuse_other_place


class AskOptions(Config):
    """When a batch is done, and how its rows become prompts."""

    window: str = flag("", "TIME", "End after this time, whatever is left: 90m, 24h, 2d.")
    hours: str = flag("", "H-H", "Work only in these hours of the day, as 22-06.")
    column: str = flag("", "NAME", "Of rows, the column of the prompts; default: those of training.", "-c")
    system: str | None = flag(None, "TEXT", 'System turn in place of the trained one; "" for none.')


def command(
    source: str = argument("FILE|FOLDER", "Batch requests, rows (csv, jsonl, json, parquet), or a folder of texts."),
    settings: list[str] | None = SETTINGS,
    model: str = flag(..., "NAME", "A run, an artifact, NAME@champion or a model.", "-m"),
    out: str = flag("", "FILE", "Result; default: the source's name with .answers.jsonl.", "-o"),
    *,
    asking: AskOptions,
    parallel: BatchOptions,
) -> Result:
    """Answer a file of requests or rows, or a folder of texts.

    No server is needed. The result has OpenAI's form, a line for each custom_id; errors are in a file next to it. A
    batch that was interrupted or killed continues where it stopped. Settings are those of serve. Exit status 1: some
    requests have an error.
    """
    from tuneloop.serving import serve_config
    from tuneloop.serving.batch import BatchInput, answer_batch

    path = Path(source)
    if not path.exists():
        raise UserError("No such file or folder", where=source, next_step="check the path")
    result = Path(out) if out else path.with_name(f"{path.name if path.is_dir() else path.stem}.answers.jsonl")
    if result.is_dir() or (path.is_file() and result.exists() and result.samefile(path)):
        raise UserError("The result can't take that place", where=f"--out {result}", next_step="choose another name")
    refuse_other_place(parallel.on)
    options = parallel.rows, parallel.on, parallel.actors
    batch = BatchInput(path, result, asking.window, asking.hours, *options, asking.column, asking.system)
    config = serve_config([model], settings or [])
    with screen("answering"):
        counts = answer_batch(batch, config)
        answers = f"{counts['completed']:,} of {counts['total']:,} answered"
        say(f"batch     {answers}, {counts['failed']:,} errors: {counts['out']}")
    return Result(counts, status=int(counts["completed"] < counts["total"]))
