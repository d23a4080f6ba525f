"""`tuneloop serve`."""

from __future__ import annotations

import contextlib
import sys
from typing import Annotated

import typer

from tuneloop.cli.console import print_json, screen, split_arguments
from tuneloop.cli.parameters import Output


def command(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TARGET|serve.yaml|KEY=VALUE...",
            help="Runs, artifacts, NAME@champion or a model; or a file of settings. Settings, as in port=8130.",
            show_default=False,
        ),
    ] = None,
    *,
    output: Output,
) -> None:
    """Answer requests by OpenAI's API until stopped.

    Several adapters on one base are served together, each asked as it was trained. SIGTERM lets running requests end.
    With --json one line with the address is printed when it is ready.
    """
    from tuneloop.serve.gateway import Gateway
    from tuneloop.workflows.serve import first_steps, serve, serve_config

    targets, settings = split_arguments(arguments)
    config = serve_config(targets, settings)
    with contextlib.ExitStack() as loading:
        shown = loading.enter_context(screen(output.quiet, "loading the model"))

        def ready(address: str, gateway: Gateway) -> None:
            loading.close()  # nothing more goes on that a reader waits for
            if output.json:
                print_json({"address": address, "models": list(gateway.models), "folder": config.folder})
                sys.stdout.flush()
            for line in first_steps(address, gateway):
                shown.say(line)

        def say(line: str) -> None:
            print(line, file=sys.stderr, flush=True)

        serve(config, say, ready=ready)
