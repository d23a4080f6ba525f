"""`tuneloop predict`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any

import typer

from tuneloop.cli.console import Result, print_json, stop_if_unread
from tuneloop.cli.endpoint import ConnectionOptions, EndpointOptions
from tuneloop.cli.parameters import argument, output, screen
from tuneloop.core.files import Config
from tuneloop.core.flag import flag
from tuneloop.core.ui import say
from tuneloop.core.units import counted, verb

if TYPE_CHECKING:
    from tuneloop.inference.openai.target import Endpoint

TARGET = argument("TARGET", "A run, artifact, adapter or model: folder, name or GGUF file; or an endpoint's URL.")


class TargetOptions(Config):
    """How a target answers, for `predict` and `chat`."""

    model: str = flag("", "NAME", "The model, as an endpoint names it.", "-m")
    base: str = flag("", "MODEL", "Base of an adapter, default: the one that it names; of an endpoint, what it serves.")
    task: str = flag("", "TARGET", "Take instruction and columns from it: the run or artifact that an endpoint serves.")
    system: str | None = flag(None, "TEXT", 'System turn in place of the trained one; "" for none.')
    max_new_tokens: int | None = flag(None, "N", "Longest answer, in tokens; default: that of training.", least=1)

    def server(self, connection: ConnectionOptions) -> Callable[[str], Endpoint]:
        """What makes an endpoint of a URL."""

        def of(url: str) -> Endpoint:
            if not self.model:
                raise typer.BadParameter("an endpoint needs --model NAME")
            return connection.endpoint(url, self.model)

        return of


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
    from tuneloop.pipeline.predict import Options
    from tuneloop.pipeline.predict_files import predict_file
    from tuneloop.pipeline.targets import open_with_task

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
