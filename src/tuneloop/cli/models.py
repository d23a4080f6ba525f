"""`tuneloop models`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tuneloop.cli.console import print_json, screen
from tuneloop.cli.parameters import Output, argument
from tuneloop.core.urls import masked

if TYPE_CHECKING:
    from tuneloop.registry.record import RegisteredModel, RegisteredVersion, RegistryEvent

HEAD = ("version", "aliases", "artifact", "figure", "gate", "data set", "registered")


def command(name: str = argument("[NAME]", "Only this model, and its history.", ""), *, output: Output) -> None:
    """List registered models, their versions and figures.

    The aliases say which version is in use.
    """
    from tuneloop.registry.registered import open_registry
    from tuneloop.registry.versions import read_models, read_settled

    with screen(output.quiet, "reading the registry") as shown:
        registry = open_registry()
        models = [read_settled(registry, name)] if name else read_models(registry)
    if output.json:
        print_json({"registry": masked(registry.uri), "models": models})
        return
    for model in models:
        print("\n".join(_table(model)))
        if name:
            print("\n".join(["history", *(f"  {_line(event)}" for event in model.history)]))
        if model.pending:
            print(f"interrupted: {_line(model.pending)}; the next command finishes it")


def _table(model: RegisteredModel) -> Iterator[str]:
    yield model.name
    rows = [HEAD, *(_row(version) for version in model.versions)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    for row in rows:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _row(version: RegisteredVersion) -> tuple[str, ...]:
    lineage = version.lineage
    figure = "not measured"
    decisive = [lineage.primary] if lineage.primary in lineage.metrics else list(lineage.metrics)[:1]
    for metric in decisive:
        found = lineage.metrics[metric]
        bounds = "" if found.get("low") is None else f" [{found['low']:.3f}, {found['high']:.3f}]"
        figure = f"{metric} {found['value']:.3f}{bounds}" if found.get("value") is not None else figure
    when = version.created[:16].replace("T", " ")
    return version.version, ", ".join(version.aliases), lineage.artifact, figure, lineage.gate, lineage.dataset, when


def _line(event: RegistryEvent) -> str:
    """A change in one line."""
    forced = f", overruled ({event.overruled})" if event.overruled else ", overruled" if event.gate.forced else ""
    gate = "" if event.action == "rollback" else f"; gate {event.gate.status}{forced}"
    was = event.before.get("champion")
    came = f" after {was}" if was and event.action != "register" else ""
    why = f": {event.why}" if event.why else ""
    return f"{event.when[:16].replace('T', ' ')}  {event.action} {event.model_version}{came} by {event.who}{gate}{why}"
