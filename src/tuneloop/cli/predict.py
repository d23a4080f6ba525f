"""`tuneloop predict`."""

from __future__ import annotations

import json
import sys
from typing import Any

import typer

from tuneloop.cli.console import Debug, Json, Quiet, print_json, screen
from tuneloop.cli.evaluate import API_KEY, CACHE, CONCURRENCY, NO_CACHE, RETRIES, TIMEOUT, endpoint_of

TARGET = typer.Argument(
    ..., help="A run, an exported artifact, an adapter or a model: folder, name or GGUF file; or an endpoint's URL.",
    metavar="TARGET",
)  # fmt: skip
MODEL = typer.Option("", "--model", "-m", help="Of an endpoint: the model, as it names it.")
BASE = typer.Option("", "--base", help="Base model of an adapter; default: the one that it names.", metavar="MODEL")
TASK = typer.Option(
    "", "--task", help="A run or artifact whose instruction and columns are taken, as of an endpoint that serves it.",
    metavar="TARGET",
)  # fmt: skip
SYSTEM = typer.Option(None, "--system", help='System turn in place of the trained one; "" for none.', metavar="TEXT")
LONGEST = typer.Option(None, "--max-new-tokens", min=1, help="Longest answer, in tokens; default: that of training.")


def command(
    target: str = TARGET,
    file: str = typer.Argument(
        ..., help="Rows: csv, jsonl, json, parquet, lines of text; - is the standard input.", metavar="FILE|-"
    ),
    out: str = typer.Option(
        "", "--out", "-o", help="Result, .csv or .jsonl; default: JSON Lines on stdout.", metavar="FILE"
    ),
    column: str = typer.Option("", "--column", "-c", help="The column that is asked; default: those of training."),
    top: int = typer.Option(0, "--top", min=0, help="Probabilities of so many labels; of a classifier only."),
    system: str = SYSTEM,
    max_new_tokens: int = LONGEST,
    model: str = MODEL,
    base: str = BASE,
    task: str = TASK,
    api_key_env: str = API_KEY,
    concurrency: int = CONCURRENCY,
    timeout: float = TIMEOUT,
    retries: int = RETRIES,
    cache: str = CACHE,
    no_cache: bool = NO_CACHE,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Answer the rows of a file, each asked as the model was trained; labels come with their probability.

    With --out a killed predict goes on where it stopped. With --json the summary is printed, and without --out the rows
    stand in it. Exit status 1: some rows have an error in place of an answer.
    """
    from tuneloop.workflows.predict import Options
    from tuneloop.workflows.predict_files import predict_file
    from tuneloop.workflows.targets import open_target

    def server(url: str) -> object:
        if not model:
            raise typer.BadParameter("an endpoint needs --model NAME")
        return endpoint_of(url, model, api_key_env, cache=cache, no_cache=no_cache, concurrency=concurrency, timeout=timeout, retries=retries)  # fmt: skip

    opened = open_target(target, base=base, task=task, endpoint=server)  # type: ignore[arg-type]
    options = Options(column, system, top, max_new_tokens)
    with screen(quiet) as shown:
        found = predict_file(
            opened, file, options, out, write=None if as_json or out else _print, progress=shown.progress, say=shown.say
        )
    summary = found.summary
    if as_json:
        print_json(summary if out else {**summary, "predictions": found.rows})
    else:
        with screen(quiet) as shown:
            shown.say(_said(summary))
        if out:
            print(out)
    if found.failed:
        raise typer.Exit(1)


def _print(row: dict[str, object]) -> None:
    """A row on stdout, in whatever characters it takes."""
    from tuneloop.core.files import plain

    takes_all = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(json.dumps(plain(row), ensure_ascii=not takes_all, default=str), flush=True)


def _said(summary: dict[str, Any]) -> str:
    from tuneloop.core.units import counted

    kinds = summary["error_kinds"]
    errors = (
        f"; {counted(summary['errors'], 'error')} ({', '.join(f'{n:,} {kind}' for kind, n in kinds.items())})"
        if kinds
        else ""
    )
    cut = f"; {summary['cut']:,} answers were cut at the limit (--max-new-tokens)" if summary["cut"] else ""
    return f"predict   {summary['answered']:,} of {counted(summary['rows'], 'row')} answered in {summary['seconds']:,.1f} s{cut}{errors}"
