"""Checks of how many rows there are, and how many records were rejected."""

from __future__ import annotations

from collections.abc import Mapping

from tuneloop.core.units import counted, verb
from tuneloop.data.checks.overview import Overview
from tuneloop.data.checks.registry import Finding, check
from tuneloop.data.reasons import HARMLESS
from tuneloop.data.split import TEST, TRAIN, VAL

FEW_ROWS = 100  # training rows below which a tuned model rarely beats a good prompt, and learns its rows by heart
TASK_ROWS, STYLE_ROWS, DOMAIN_ROWS = 500, 1_000, 5_000  # what a narrow task, a style and a field's language take
FEW_TEST_ROWS = 50  # a share of 50 % measured on fewer rows has a 95 % interval wider than ± 14 points
REJECT_SHARE = 0.05


def reject_share(read: int, rejected: Mapping[str, int]) -> tuple[int, int]:
    """Defective records, and the records they are a share of.

    Blank lines, copies and rows left out on request are nobody's defect: they count on neither side.
    """
    harmless = sum(rejected.get(reason, 0) for reason in HARMLESS)
    return sum(rejected.values()) - harmless, read - harmless


@check("enough_rows", "too few training rows for the task")
def enough_rows(overview: Overview) -> Finding:
    n = len(overview.rows(TRAIN))
    remedy = f"Collect at least {TASK_ROWS} rows, or put examples into the prompt instead."
    if n < FEW_ROWS:
        message = f"only {counted(n, 'training row')}: below {FEW_ROWS}, the model learns them by heart, and examples in the prompt often do as well"
        return Finding("warn", message, n, remedy)
    if n < TASK_ROWS:
        use = f"enough to try a narrow task; {TASK_ROWS} to {STYLE_ROWS:,} make one good"
    elif n < STYLE_ROWS:
        use = f"good for a narrow task; a style takes {STYLE_ROWS:,}, a field's language {DOMAIN_ROWS:,}"
    elif n < DOMAIN_ROWS:
        use = f"good for a task or a style; a field's language takes {DOMAIN_ROWS:,}"
    else:
        use = "good for a task, a style or a field's language"
    return Finding("ok", f"{counted(n, 'training row')}: {use}", n)


@check("val_size", "no validation rows")
def val_size(overview: Overview) -> Finding:
    n = len(overview.rows(VAL))
    if n:
        return Finding("ok", f"{counted(n, 'validation row')}", n)
    message = "no validation rows: training can't be stopped at its best step"
    return Finding("warn", message, 0, "Set data.split.val, for instance to 0.1.")


@check("test_size", "too few test rows for a figure that means something")
def test_size(overview: Overview) -> Finding:
    n = len(overview.rows(TEST))
    remedy = f"Give the test split at least {FEW_TEST_ROWS} rows (data.split.test); 400 tell a share to ± 5 points."
    if n == 0:
        return Finding("warn", "no test rows: nothing can be proved with this data set", 0, remedy)
    half = 98.0 / n**0.5  # 1.96 standard errors of a share of one half, in points
    what = "an accuracy" if overview.task == "classification" else "a share of good answers"
    message = (
        f"{counted(n, 'test row')} {verb(n, 'tells', 'tell')} {what} to about ± {half:.{1 if half < 1 else 2}g} points"
    )
    return Finding("ok" if n >= FEW_TEST_ROWS else "warn", message, n, remedy)


@check("reject_share", "many defective records")
def defective_records(overview: Overview) -> Finding:
    bad, of = reject_share(overview.read, overview.rejected)
    share = bad / of if of else 0.0
    message = f"{bad:,} of {counted(of, 'record')} {verb(bad, 'is', 'are')} defective ({share:.1%})"
    if harmless := overview.read - of:
        reasons = sorted(((overview.rejected[r], r) for r in HARMLESS if overview.rejected.get(r)), reverse=True)
        message += f"; {harmless:,} more left out: {', '.join(f'{n:,} {reason}' for n, reason in reasons[:4])}"
    remedy = "Look at the reasons in rejects.jsonl: one cause is often behind most of them."
    return Finding("warn" if share > REJECT_SHARE else "ok", message, bad, remedy)


@check("cut_files", "source files that end before their data")
def cut_files(overview: Overview) -> Finding | None:
    """One reject stands for all that is missing of a cut file, so no share of rejects shows it; no check without such a file."""
    n = overview.rejected.get("cut_file", 0)
    files = "a source file ends" if n == 1 else f"{n} source files end"
    message = f"{files} before the data do: nobody knows how many records are missing"
    remedy = "Copy or download it again; rejects.jsonl names file and line under cut_file."
    return Finding("warn", message, n, remedy) if n else None
