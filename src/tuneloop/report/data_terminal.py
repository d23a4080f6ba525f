"""What `tuneloop prepare` says at its end: the account of the records, and the checks that want a look."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tuneloop.report.data_facts import SPLITS, checks_of, numbers
from tuneloop.report.facts import clean, clean_all, count, number, section
from tuneloop.report.facts import short_count as short

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

MOST_KINDS = 8  # reasons or kinds named on a line
LONGEST = 400  # characters of a message or a remedy


def data_summary(manifest: Mapping[str, Any]) -> RenderableType:
    """A short table for the terminal: read, kept, rejected and repaired by kind, splits, checks with their remedy.

    Args:
        manifest: `dataset.json`. Whatever it does not hold is left out.

    Returns:
        What a rich console prints, at any width from about 40 columns on; nothing in it is read as markup.
    """
    from rich.console import Group

    manifest = clean_all(dict(manifest))
    parts: list[RenderableType] = [_account(manifest)]
    if checks := [c for c in checks_of(manifest) if c.get("level") != "ok"]:
        parts += ["", _checks(checks)]
    return Group(*parts)


def _account(manifest: Mapping[str, Any]) -> Table:
    from rich.table import Table
    from rich.text import Text

    counts, splits = section(manifest.get("counts")), section(manifest.get("splits"))
    repaired, redacted = numbers(manifest.get("repaired")), numbers(manifest.get("personal"))
    if redacted:
        repaired.pop("pii", None)
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")

    def add(name: str, n: float | None, detail: str) -> None:
        if n is not None:
            table.add_row(name, Text(count(n), style="bold"), Text(detail))

    add("read", number(counts.get("read")), _format(manifest))
    add("kept", number(counts.get("kept")), str(manifest.get("task") or ""))
    add("rejected", number(counts.get("rejected")), _kinds(numbers(manifest.get("rejected"))))
    if repaired:
        add("repaired", sum(repaired.values()), _kinds(repaired))
    if redacted:
        add("redacted", sum(redacted.values()), _kinds(redacted))
    for split in SPLITS:
        tokens = section(section(splits.get(split)).get("tokens"))
        total, longest = number(tokens.get("total")), number(tokens.get("max"))
        words = [f"{short(total)} tokens"] if total else []
        words += [f"longest row {count(longest)}"] if longest else []
        add(split, number(counts.get(split)), ", ".join(words))
    general = section(section(manifest.get("mix")).get("general"))
    if rows := number(general.get("rows")):
        mixed = number(general.get("tokens"))
        add("general", rows, "mixed into train" + (f", {short(mixed)} tokens" if mixed else ""))
    return table


def _checks(checks: list[dict[str, Any]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        level = str(check.get("level") or "")
        style = {"error": "bold red", "warn": "yellow"}.get(level, "")
        table.add_row(Text(level[:8], style=style), Text(_short(check.get("message") or check.get("name"))))
        if check.get("remedy"):
            table.add_row("", Text(_short(check["remedy"]), style="cyan"))
    return table


def _format(manifest: Mapping[str, Any]) -> str:
    found = manifest.get("format")
    if not isinstance(found, dict):
        return str(found or "")
    name, reason = str(found.get("name") or ""), str(found.get("reason") or "")
    return _short(f"{name} ({reason})" if reason else name)


def _kinds(counts: Mapping[str, float]) -> str:
    """`277 exact_duplicate, 21 broken_json`: the words as they stand in the files, so that they can be searched."""
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    words = [f"{count(n)} {clean(name)[:40]}" for name, n in ordered[:MOST_KINDS]]
    if rest := ordered[MOST_KINDS:]:
        words.append(f"{count(sum(n for _, n in rest))} others")
    return ", ".join(words)


def _short(value: object) -> str:
    text = " ".join(str(value or "").split())
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
