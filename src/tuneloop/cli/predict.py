"""`tuneloop predict` and `tuneloop predict chat`."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import Any

from tuneloop.cli import chat
from tuneloop.cli.console import Result, print_json, stop_if_unread
from tuneloop.cli.endpoint import TARGET, EndpointOptions, TargetOptions
from tuneloop.cli.parameters import argument, output, screen
from tuneloop.core.flag import flag
from tuneloop.core.ui import say
from tuneloop.core.units import counted, verb


def command(
    target: str = TARGET,
    file: str = argument("FILE|-", "Rows: csv, jsonl, json, parquet, lines of text; - is the standard input."),
    out: str = flag("", "FILE", "Result, .csv or .jsonl; default: JSON Lines on stdout.", "-o"),
    column: str = flag("", "NAME", "The column of the prompts; default: those of training.", "-c"),
    top: int = flag(0, "N", "Give the probabilities of so many labels; of a classifier only.", least=0),
    *,
    asking: TargetOptions,
    connection: EndpointOptions,
) -> Result:
    """Answer the rows of a file.

    Prompts are as in training; labels come with their probability. With --out a killed predict continues where it
    stopped. With --json the summary is printed, and without --out the rows are in it. Exit status 1: some rows have an
    error in place of an answer.
    """
    from tuneloop.pipeline.answers import Options, open_with_task, predict_file

    opened = open_with_task(target, base=asking.base, task=asking.task, endpoint=asking.server(connection))
    options = Options(column, asking.system, top, asking.max_new_tokens)
    with screen("answering"), closing(opened):
        write = None if output().as_json or out else _print
        answers = predict_file(opened, file, options, out, write=write)
        if not output().as_json:
            say(_summary_line(answers.summary))
    record = answers.summary if out else {**answers.summary, "predictions": answers.rows}
    return Result(record, [out] if out else [], int(bool(answers.failed)))


def _print(row: dict[str, object]) -> None:
    """A row on stdout; in ASCII where its encoding does not hold everything."""
    print_json(row, ascii=(sys.stdout.encoding or "").lower().replace("-", "") != "utf8")
    stop_if_unread()


def _summary_line(summary: dict[str, Any]) -> str:
    line = f"{summary['answered']:,} of {counted(summary['rows'], 'row')} answered in {summary['seconds']:,.1f} s"
    if number := summary["cut"]:
        cut = f"{counted(number, 'answer')} {verb(number, 'was', 'were')}"
        line += f"; {cut} cut at the limit (--max-new-tokens)"
    if kinds := summary["error_kinds"]:
        numbers = ", ".join(f"{n:,} {kind}" for kind, n in kinds.items())
        line += f"; {counted(summary['errors'], 'error')} ({numbers})"
    return f"predict   {line}"


commands = {"chat": chat.command}
