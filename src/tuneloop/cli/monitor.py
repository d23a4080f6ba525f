"""`tuneloop monitor`."""

from __future__ import annotations

import typer

from tuneloop.cli.console import print_json, screen
from tuneloop.cli.parameters import Output, argument, given
from tuneloop.core.flag import flag, switch
from tuneloop.improve.monitor import MonitorOptions


def command(
    store: str = argument("STORE", "The server's folder, or its store."),
    reference: str = flag(..., "DATASET", "The prepared data set that the model was trained on.", "-r"),
    all_detectors: bool = switch("Show detectors without an alarm, too.", "--all"),
    *,
    options: MonitorOptions,
    output: Output,
) -> None:
    """Say whether production has changed, in which requests and words, and what to do.

    Exit status 0: no alarm; 1: an alarm; 3: too few requests to tell.
    """
    from tuneloop.workflows.monitor import monitor_store

    with screen(output.quiet, "comparing"):
        report = monitor_store(store, reference, given(options))
    if output.json:
        print_json(report)
    else:
        print("\n".join(report.summary))
        if all_detectors:
            print("\n".join(f"  {one.sentence}" for one in report.detections if not one.alarm))
            print("\n".join(f"  {name}: left out, {why}" for name, why in report.skipped.items()))
    raise typer.Exit(1 if report.alarms else 0 if report.detections else 3)
