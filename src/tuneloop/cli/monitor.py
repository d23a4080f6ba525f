"""`tuneloop monitor`."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import typer

from tuneloop.cli.console import Result
from tuneloop.cli.endpoint import ConnectionOptions
from tuneloop.cli.parameters import STORE_ARGUMENT, given, screen
from tuneloop.core.files import Config
from tuneloop.core.flag import flag, switch
from tuneloop.improve.monitor import MonitorOptions

if TYPE_CHECKING:
    from tuneloop.pipeline.answers import TaskTarget


class CanaryTarget(Config):
    """Who answers the canary prompts now."""

    PANEL: ClassVar[str] = "Canary prompts"

    ask: str = flag("", "TARGET|URL", "Who answers them now; a tuneloop server asks its own models.")
    ask_model: str = flag("", "NAME", "The model, as the endpoint of --ask names it.")


class KnownChange(Config):
    """A change that needs no alarm for a while."""

    PANEL: ClassVar[str] = "What you know"

    ignore: str = flag("", "NAME,...", "Detectors that are to raise no alarm, with --ignore-until and --model.")
    ignore_until: str = flag("", "TIME", "Until when, as in 2026-06-01; a time that is over ends it.")


def command(
    store: str = STORE_ARGUMENT,
    reference: str = flag(..., "DATASET", "The prepared data set that the model was trained on.", "-r"),
    all_detectors: bool = switch("Show detectors without an alarm, too.", "--all"),
    *,
    options: MonitorOptions,
    canary: CanaryTarget,
    expected: KnownChange,
    connection: ConnectionOptions,
) -> Result:
    """Say whether production has changed, where, and what to do.

    Exit status 0: no alarm; 1: an alarm; 3: too few requests to tell.
    """
    from tuneloop.improve.monitor import ignore as note
    from tuneloop.improve.monitor import monitor_store

    if expected.ignore:
        note(store, options.model, [name.strip() for name in expected.ignore.split(",")], expected.ignore_until)
    target = _canary_target(store, canary, connection) if canary.ask else None
    with screen("comparing"):
        report = monitor_store(store, reference, given(options), ask=target)
    lines = [*report.summary]
    if all_detectors:
        lines += [f"  {detection.sentence}" for detection in report.detections if not detection.alarm]
        lines += [f"  {name}: left out, {reason}" for name, reason in report.skipped.items()]
    elif report.skipped:
        lines.append(f"Not compared: {', '.join(report.skipped)} (--all says why).")
    return Result(report, lines, 1 if report.alarms else 0 if report.detections or report.canary_rounds else 3)


def _canary_target(store: str, canary: CanaryTarget, connection: ConnectionOptions) -> TaskTarget:
    from tuneloop.improve.monitor import refuse_itself
    from tuneloop.pipeline.answers import open_with_task

    if canary.ask.startswith(("http://", "https://")):
        refuse_itself(store, canary.ask)
        if not canary.ask_model:
            raise typer.BadParameter("name the endpoint's model with --ask-model")
    return open_with_task(canary.ask, endpoint=lambda url: connection.endpoint(url, canary.ask_model))
