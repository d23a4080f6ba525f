"""`tuneloop serve`."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from tuneloop.cli.console import print_json, screen, split_arguments
from tuneloop.cli.parameters import Output
from tuneloop.core.flag import switch
from tuneloop.core.units import counted

if TYPE_CHECKING:
    from tuneloop.serving.config import ServeConfig

SAME = 0.99  # share of the answers that --check asks for; roundings of another order flip near ties


def command(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TARGET|serve.yaml|KEY=VALUE...",
            help="Runs, artifacts, NAME@champion or a model; or a file of settings. Settings, as in port=8130.",
            show_default=False,
        ),
    ] = None,
    check: bool = switch("Ask all test rows of each model, say how many are answered as evaluated, and end."),
    *,
    output: Output,
) -> None:
    """Answer requests by OpenAI's API until stopped.

    Several adapters on one base are served together, each asked as it was trained. SIGTERM lets running requests end.
    With --json one line with the address is printed when it is ready. --check: exit status 1 where a model answers less
    than 99 % of its test rows as in its evaluation, 3 where no evaluation is at hand.
    """
    from tuneloop.serving.gateway import Gateway
    from tuneloop.serving.server import first_key, first_steps, serve, serve_config

    targets, settings = split_arguments(arguments)
    config = serve_config(targets, settings)
    if check:
        _check(config, output)
        return
    as_lines = config.log.lines == "json"
    with contextlib.ExitStack() as loading:
        shown = loading.enter_context(screen(output.quiet or as_lines, "loading the model"))

        def ready(address: str, gateway: Gateway) -> None:
            loading.close()  # nothing more goes on that a reader waits for
            if output.json:
                print_json({"address": address, "models": list(gateway.models), "folder": config.folder})
                sys.stdout.flush()
            # Only a terminal is shown a key: what a file or a collector of logs gets must not hold one.
            key = first_key(gateway) if sys.stderr.isatty() and not (as_lines or output.quiet or output.json) else ""
            for line in () if as_lines else first_steps(address, gateway, key):
                say(line)

        def say(line: str) -> None:
            print(line, file=sys.stderr, flush=True)

        serve(config, ready=ready)


def _check(config: ServeConfig, output: Output) -> None:
    from tuneloop.serving.server import check_served

    with screen(output.quiet, "asking the test rows") as shown:
        found = check_served(config)
    if output.json:
        print_json({"models": [{**asdict(each), "share": each.same / each.n if each.n else None} for each in found]})
    for each in () if output.json else found:
        if not each.n:
            print(f"{each.name}: no evaluation on test rows is at hand")
            continue
        print(
            f"{each.name}: {each.same:,} of {counted(each.n, 'test row')} ({each.same / each.n:.1%}) are answered as in the evaluation"
        )
        if each.parted:
            print(
                f"  {each.ties} of {counted(each.parted, 'other one')} that were looked at part where the served model finds "
                f"both tokens equally likely; the largest gap is {each.largest_gap:.2g} nats"
            )
        for expected, got in each.examples:
            print(f"  {got[:100]!r} instead of {expected[:100]!r}")
    if any(each.same < SAME * each.n and not each.are_ties for each in found):
        raise typer.Exit(1)
    if not all(each.n for each in found):
        raise typer.Exit(3)
