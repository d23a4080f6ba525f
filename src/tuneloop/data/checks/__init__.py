"""What is worth knowing about a data set before money is spent on it: one record for each check.

The examples of a `Check` are up to ten `{"source", "line", "id", "split"}`, some with the label or word in question;
`flagged.jsonl` lists the rows. Only the check of production shows texts, without personal data. What takes long is done
on a sample chosen by hash, and the message says so.

A check is a function from an `Overview` to a `Finding` with the decorator `check`, in a module that is imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tuneloop.data.checks import answers
from tuneloop.data.checks.labels import Suspects, doubted_labels, find_suspects, reject_share, suspect_records
from tuneloop.data.checks.overview import CHECKS, Finding, Overview, check, examples_of, overview_of
from tuneloop.data.checks.production import compare_with_production
from tuneloop.records.dataset import Check, LongRows
from tuneloop.records.rows import Dataset, FlaggedRow, Row

__all__ = [
    "CHECKS", "Check", "Finding", "LongRows", "Overview", "Suspects", "answers", "check",
    "check_dataset", "examples_of", "find_suspects", "overview_of", "reject_share", "run_checks", "slow_checks",
    "suspect_records",
]  # fmt: skip

LISTED = 1_000  # rows of a check that `flagged.jsonl` lists at most


def slow_checks(overview: Overview) -> tuple[str, ...]:
    """Names of the checks that take long and need only the rows, so that they can run next to other work."""
    return tuple(entry.name for entry in CHECKS.values() if entry.slow and entry.is_for(overview))


def run_checks(
    overview: Overview,
    *,
    suspects: Callable[[], Suspects] | None = None,
    slow: Mapping[str, Callable[[], Finding | None]] | None = None,
    against: Sequence[Row] | None = None,
    flagged: Callable[[Iterator[FlaggedRow]], None] | None = None,
) -> list[Check]:
    """All checks that apply, in the order of `CHECKS`.

    Args:
        suspects: gives the rows with doubtful labels; default: looked for here.
        slow: gives the findings of checks that `slow_checks` names; default: made here.
        against: rows from production to compare with the training rows.
        flagged: receives the rows of each check, whatever its level, at most 1,000 of each; not the doubtful labels.
    """
    elsewhere = dict(slow or {})
    if suspects is not None:
        elsewhere["label_errors"] = lambda: doubted_labels(overview, suspects())
    checks = [entry for entry in CHECKS.values() if entry.is_for(overview)]
    results = {c.name: elsewhere[c.name]() if c.name in elsewhere else c.run(overview) for c in checks}
    if against is not None:
        results["production"] = compare_with_production(overview, against)
    findings = {name: finding for name, finding in results.items() if finding is not None}
    if flagged is not None:
        rows = ((name, row) for name, finding in findings.items() for row in finding.checked.rows[:LISTED])
        flagged(FlaggedRow(name, **overview.example(row)) for name, row in rows)
    return [finding.as_check(name) for name, finding in findings.items()]


def check_dataset(
    dataset: Dataset, *, against: Sequence[Row] | None = None, measure: Callable[[Row], Any] | None = None
) -> list[Check]:
    """The checks of a prepared data set; a split that can't be read is a UserError.

    `against`: rows from production to compare it with; `measure`: a row's `tokens` and `supervised`, as prepare's.
    """
    return run_checks(overview_of(dataset, measure=measure), against=against)
