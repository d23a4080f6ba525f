"""The demo with fewer mails: it is the same job in a fraction of the time."""

from __future__ import annotations

from pathlib import Path

from tuneloop.pipeline.demo.files import write_demo

MAILS = 300  # of 1,000: every queue and action is there


def write_short_demo(folder: Path) -> None:
    """Write the demo's files into a folder, with its first mails; `tuneloop demo` leaves what it finds."""
    write_demo(folder)
    file = folder / "mails.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    file.write_text("".join(lines[:MAILS]), encoding="utf-8")
