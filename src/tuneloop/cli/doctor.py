"""`tuneloop doctor`."""

from __future__ import annotations

import os

from tuneloop.cli.console import Result
from tuneloop.cli.parameters import screen
from tuneloop.core import doctor
from tuneloop.core.device import DEVICE
from tuneloop.core.flag import flag, switch


def command(
    self_test: bool = switch("Compute on this machine's device as the processor does, about two minutes."),
    device: str = flag("", "KIND", "Test this kind of device: cpu, cuda, xpu or mps."),
) -> Result:
    """Check this machine: packages, model, memory, disk.

    With --self-test every method takes a step on the device, is saved, resumed and read again, answers, and its speeds
    are measured; the planner takes them from then on. Exit status 1: something that is needed is missing, or is
    computed wrong.
    """
    if self_test or device:
        return _test(device)
    with screen("looking at this machine"):
        findings = doctor.examine()
    good = all(finding.ok or not finding.needed for finding in findings)
    marks = ["ok  " if finding.ok else "MISS" if finding.needed else "note" for finding in findings]
    lines = [f"{mark}  {finding.name:<22} {finding.detail}" for mark, finding in zip(marks, findings, strict=True)]
    return Result({"ok": good, "findings": findings}, lines, int(not good))


def _test(kind: str) -> Result:
    if kind:
        os.environ[DEVICE] = kind
    from tuneloop.training import self_test

    with screen("testing the device"):
        checks = self_test()
    wrong = sum(check.status == "wrong" for check in checks)
    lines = [f"{check.status:<14} {check.name:<24} {check.detail}" for check in checks]
    lines += ["", f"{wrong} wrong, of {len(checks)}." if wrong else "Nothing is wrong."]
    return Result({"ok": not wrong, "checks": checks}, lines, int(bool(wrong)))
