"""`tuneloop doctor`."""

from __future__ import annotations

import typer

from tuneloop.cli.console import print_json, screen
from tuneloop.cli.parameters import Output


def command(*, output: Output) -> None:
    """Check this machine: packages, model, memory, disk.

    Exit status 1: something that is needed is missing.
    """
    from tuneloop.workflows.doctor import examine

    with screen(output.quiet, "looking at this machine"):
        findings = examine()
    if output.json:
        print_json({"ok": all(f.ok or not f.needed for f in findings), "findings": findings})
    else:
        for finding in findings:
            mark = "ok  " if finding.ok else "MISS" if finding.needed else "note"
            print(f"{mark}  {finding.name:<22} {finding.detail}")
    if any(not f.ok and f.needed for f in findings):
        raise typer.Exit(1)
