"""What `tuneloop prepare` says at its end: the account of the records, and the checks that want a look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from tuneloop.core.written import clean, count
from tuneloop.core.written import short_count as short
from tuneloop.records.dataset import Check, DatasetManifest
from tuneloop.report.data.facts import above_zero, checks_of, most_first

if TYPE_CHECKING:
    from rich.console import RenderableType

MOST_KINDS = 8  # reasons or kinds named on a line
LONGEST = 400  # characters of a message or a remedy


def data_summary(manifest: DatasetManifest) -> RenderableType:
    """A short table for the terminal: read, kept, rejected and repaired by kind, splits, checks with their remedy.

    A rich console prints it at any width from about 40 columns on; nothing in it is read as markup.
    """
    checks = [check for check in checks_of(manifest) if check.level != "ok"]
    return Group(_account(manifest), "", _checks(checks)) if checks else Group(_account(manifest))


def _account(manifest: DatasetManifest) -> Table:
    counts = manifest.counts
    repaired, redacted = above_zero(manifest.repaired), above_zero(manifest.personal)
    if redacted:
        repaired.pop("pii", None)
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")

    def add(name: str, n: float, detail: str) -> None:
        table.add_row(name, Text(count(n), style="bold"), Text(clean(detail)))

    form = manifest.format
    read_as = f"{form.name} ({form.reason})" if form and form.reason else form.name if form else ""
    add("read", counts.read, _short(read_as))
    add("kept", counts.kept, manifest.task)
    add("rejected", counts.rejected, _kinds(above_zero(manifest.rejected)))
    if repaired:
        add("repaired", sum(repaired.values()), _kinds(repaired))
    if redacted:
        add("redacted", sum(redacted.values()), _kinds(redacted))
    for name, split in manifest.splits.by_name.items():
        tokens = split.tokens if split.tokens and split.tokens.total else None
        summary = f"{short(tokens.total)} tokens, longest row {count(tokens.max)}" if tokens else ""
        add(name, counts[name], summary)
    if manifest.mix and (general := manifest.mix.general).rows:
        add("general", general.rows, f"mixed into train, {short(general.tokens)} tokens")
    return table


def _checks(checks: Sequence[Check]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        style = {"error": "bold red", "warn": "yellow"}.get(check.level, "")
        table.add_row(Text(clean(check.level[:8]), style=style), Text(_short(check.message or check.name)))
        if check.remedy:
            table.add_row("", Text(_short(check.remedy), style="cyan"))
    return table


def _kinds(counts: Mapping[str, float]) -> str:
    ordered = most_first(counts)
    parts = [f"{count(n)} {clean(name)[:40]}" for name, n in ordered[:MOST_KINDS]]
    if rest := ordered[MOST_KINDS:]:
        parts.append(f"{count(sum(n for _, n in rest))} others")
    return ", ".join(parts)


def _short(text: str) -> str:
    text = " ".join(clean(text).split())
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
