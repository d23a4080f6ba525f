"""`tuneloop doctor`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from tuneloop.cli.console import print_json, screen
from tuneloop.cli.parameters import Output
from tuneloop.core.device import DEVICE

SelfTest = Annotated[
    bool, typer.Option("--self-test", help="Compute on this machine's device as the processor does, about two minutes.")
]
Device = Annotated[
    str, typer.Option("--device", metavar="KIND", help="Test this kind of device: cpu, cuda, xpu or mps.")
]


def command(*, self_test: SelfTest = False, device: Device = "", output: Output) -> None:
    """Check this machine: packages, model, memory, disk.

    With --self-test every method takes a step on the device, is saved, resumed and read again, answers, and its speeds are
    measured; the planner takes them from then on. Exit status 1: something that is needed is missing, or is computed wrong.
    """
    if self_test or device:
        _test(device, output)
        return
    from tuneloop.pipeline.doctor import examine

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


def _test(kind: str, output: Output) -> None:
    if kind:
        os.environ[DEVICE] = kind
    from tuneloop.pipeline.self_test import self_test

    with screen(output.quiet, "testing the device") as shown:
        checks = self_test()
    wrong = [check for check in checks if check.status == "wrong"]
    if output.json:
        print_json({"ok": not wrong, "checks": checks})
    else:
        for check in checks:
            print(f"{check.status:<14} {check.name:<24} {check.detail}")
        print(f"\n{len(wrong)} wrong, of {len(checks)}." if wrong else "\nNothing is wrong.")
    if wrong:
        raise typer.Exit(1)
