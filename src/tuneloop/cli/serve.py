"""`tuneloop serve`."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

from tuneloop.cli import costs, keys, top
from tuneloop.cli.console import Result, print_live, show, split_arguments
from tuneloop.cli.parameters import Output, argument
from tuneloop.core.flag import switch
from tuneloop.core.terminal import drawn, screen
from tuneloop.core.ui import reporting, say
from tuneloop.core.units import counted

if TYPE_CHECKING:
    from tuneloop.serving.config import ServeConfig

SAME = 0.99  # share of the answers that --check asks for; roundings of another order flip near ties


def command(
    arguments: list[str] | None = argument(
        "TARGET|serve.yaml|KEY=VALUE...",
        "Runs, artifacts, NAME@champion or a model; or a file of settings. Settings, as in port=8130.",
        None,
    ),
    check: bool = switch("Ask all test rows of each model, say how many are answered as evaluated, and end."),
    *,
    output: Output,
) -> Result | None:
    """Answer requests by OpenAI's API until stopped.

    Several adapters on one base are served together, each asked as it was trained. SIGTERM lets running requests end.
    With --json one line with the address is printed when it is ready. --check: exit status 1 where a model answers less
    than 99 % of its test rows as in its evaluation, 3 where no evaluation is at hand.
    """
    from tuneloop.improve.serve import serve
    from tuneloop.serving.gateway import Gateway
    from tuneloop.serving.server import first_key, first_steps, serve_config

    targets, settings = split_arguments(arguments)
    config = serve_config(targets, settings)
    if check:
        return _check(config, output)
    as_lines = config.log.lines == "json"
    with contextlib.ExitStack() as loading:
        loading.enter_context(drawn(output.quiet or as_lines, "loading the model"))

        def ready(address: str, gateway: Gateway) -> None:
            loading.close()  # nothing more goes on that a reader waits for
            if output.as_json:
                show(
                    Result({"address": address, "models": list(gateway.models), "folder": config.folder}), as_json=True
                )
            # Only a terminal is shown a key: what a file or a collector of logs gets must not hold one.
            key = first_key(gateway) if sys.stderr.isatty() and not (as_lines or output.quiet or output.as_json) else ""
            for line in () if as_lines else first_steps(address, gateway, key):
                say(line)

        with reporting(say=partial(print_live, err=True)):
            serve(config, ready=ready)
    return None


def _check(config: ServeConfig, output: Output) -> Result:
    from tuneloop.serving.server import check_served

    with screen(output.quiet, "asking the test rows"):
        found = check_served(config)
    lines = []
    for each in found:
        if not each.n:
            lines.append(f"{each.name}: no evaluation on test rows is at hand")
            continue
        rows = f"{each.same:,} of {counted(each.n, 'test row')} ({each.same / each.n:.1%})"
        lines.append(f"{each.name}: {rows} are answered as in the evaluation")
        if each.parted:
            lines.append(
                f"  {each.ties} of {counted(each.parted, 'other one')} that were looked at part where the served model finds "
                f"both tokens equally likely; the largest gap is {each.largest_gap:.2g} nats"
            )
        lines += [f"  {got[:100]!r} instead of {expected[:100]!r}" for expected, got in each.examples]
    record = {"models": [{**asdict(each), "share": each.same / each.n if each.n else None} for each in found]}
    wrong = any(each.same < SAME * each.n and not each.are_ties for each in found)
    return Result(record, lines, 1 if wrong else 0 if all(each.n for each in found) else 3)


commands = {"keys": keys, "top": top, "costs": costs}
