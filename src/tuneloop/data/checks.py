"""What is worth knowing about a data set before money is spent on it: one record for each check."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tuneloop.data.reasons import HARMLESS
from tuneloop.data.split import prompt_key
from tuneloop.types import Row

Level = Literal["ok", "warn", "error"]

FEW_ROWS = 100  # training rows below which a tuned model rarely beats a good prompt
FEW_TEST_ROWS = 50  # a share of 50 % measured on fewer rows has a 95 % interval wider than ± 14 points
FEW_LABEL_ROWS = 5
LABEL_RATIO = 10.0
REJECT_SHARE = 0.05


def run_checks(
    splits: Mapping[str, Sequence[Row]], *, task: str, labels: Sequence[str], read: int, rejected: Mapping[str, int]
) -> list[dict[str, Any]]:
    """All checks, each as `{"name", "level", "message", "rows"}`; `rows` is the number of rows concerned."""
    checks = [
        _enough_rows(len(splits["train"])),
        _val_size(len(splits["val"])),
        _test_size(len(splits["test"])),
        _reject_share(read, rejected),
    ]
    if task == "classification":
        checks += [_label_balance(splits["train"], labels), _unseen_labels(splits), _conflicting_labels(splits)]
    return checks


def reject_share(read: int, rejected: Mapping[str, int]) -> tuple[int, int]:
    """Defective records, and the records they are a share of.

    Blank lines, copies and rows left out on request are nobody's defect: they count on neither side.
    """
    harmless = sum(rejected.get(reason, 0) for reason in HARMLESS)
    return sum(rejected.values()) - harmless, read - harmless


def _check(name: str, level: Level, message: str, rows: int) -> dict[str, Any]:
    return {"name": name, "level": level, "message": message, "rows": rows}


def _enough_rows(n: int) -> dict[str, Any]:
    if n >= FEW_ROWS:
        return _check("enough_rows", "ok", f"{n} training rows", n)
    message = f"only {n} training rows: below {FEW_ROWS}, examples in the prompt often do as well"
    return _check("enough_rows", "warn", message, n)


def _val_size(n: int) -> dict[str, Any]:
    if n:
        return _check("val_size", "ok", f"{n} validation rows", n)
    return _check("val_size", "warn", "no validation rows: training can't be stopped at its best step", 0)


def _test_size(n: int) -> dict[str, Any]:
    if n == 0:
        return _check("test_size", "warn", "no test rows: nothing can be proved with this data set", 0)
    half = 98.0 / n**0.5  # 1.96 standard errors of a share of one half, in points
    message = f"{n} test rows: an accuracy is known to about ± {half:.0f} points"
    return _check("test_size", "ok" if n >= FEW_TEST_ROWS else "warn", message, n)


def _reject_share(read: int, rejected: Mapping[str, int]) -> dict[str, Any]:
    bad, of = reject_share(read, rejected)
    share = bad / of if of else 0.0
    message = f"{bad} of {of} records rejected ({share:.1%})"
    return _check("reject_share", "warn" if share > REJECT_SHARE else "ok", message, bad)


def _label_balance(train: Sequence[Row], labels: Sequence[str]) -> dict[str, Any]:
    counts = Counter(row.label for row in train)
    few = [label for label in labels if counts[label] < FEW_LABEL_ROWS]
    if few:
        names = ", ".join(map(repr, few[:3])) + (", …" if len(few) > 3 else "")
        message = f"{len(few)} of {len(labels)} labels have fewer than {FEW_LABEL_ROWS} training rows: {names}"
        return _check("label_balance", "warn", message, sum(counts[label] for label in few))
    if not counts:
        return _check("label_balance", "ok", "no labels", 0)
    (most, high), (least, low) = counts.most_common()[0], counts.most_common()[-1]
    message = f"{len(counts)} labels, {low} ({least!r}) to {high} ({most!r}) training rows each"
    return _check("label_balance", "warn" if high > LABEL_RATIO * low else "ok", message, low)


def _unseen_labels(splits: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    known = {row.label for row in splits["train"]}
    unseen = [row for split in ("val", "test") for row in splits[split] if row.label not in known]
    if not unseen:
        return _check("unseen_labels", "ok", "every label of val and test stands in train", 0)
    names = ", ".join(repr(label) for label in sorted({str(row.label) for row in unseen})[:3])
    return _check("unseen_labels", "warn", f"labels in val or test that train never shows: {names}", len(unseen))


def _conflicting_labels(splits: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    seen: dict[str, list[str | None]] = defaultdict(list)
    for rows in splits.values():
        for row in rows:
            seen[prompt_key(row)].append(row.label)
    n = sum(len(labels) for labels in seen.values() if len(set(labels)) > 1)
    message = f"{n} rows share their text with a row of another label" if n else "no text with two labels"
    return _check("conflicting_labels", "warn" if n else "ok", message, n)
