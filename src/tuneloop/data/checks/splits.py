"""Checks of the splits against each other."""

from __future__ import annotations

import numpy as np

from tuneloop.core.stats.tests import holm
from tuneloop.data.checks.drift import chi_square, compare_with, kolmogorov_smirnov
from tuneloop.data.checks.labels import label_counts
from tuneloop.data.checks.overview import Finding, Level, Overview, check, examples_of, named, question_of, share_of
from tuneloop.data.split import SPLITS, TEST, TRAIN, VAL

FEW_TO_COMPARE = 20  # rows of a split below which it is not compared with another
SPLIT_TEXTS = 800  # texts a split that a classifier tries to tell apart


@check("leaked_prompts", "prompts of val or test that stand in train")
def leaked_prompts(overview: Overview) -> Finding:
    question = overview.columns["question"]
    measured = np.flatnonzero(overview.split > TRAIN)
    leaked = measured[np.isin(question[measured], question[overview.rows(TRAIN)])]
    of_test = int((overview.split[leaked] == TEST).sum())
    share = of_test / max(len(overview.rows(TEST)), 1)
    level: Level = "ok" if not len(leaked) else "error" if share > 0.01 else "warn"
    message = "no prompt of val or test stands in train"
    if len(leaked):
        message = f"{share_of(len(leaked), len(measured))} of val and test have a prompt that stands in train"
    remedy = "Take these rows out of train, or split again: what was trained on measures nothing."
    return Finding(level, message, len(leaked), remedy, examples_of(overview, leaked))


@check("split_labels", "labels that are spread unevenly over the splits", tasks=("classification",))
def split_labels(overview: Overview) -> Finding | None:
    return _differ("labels", "Cramér's V", overview)


@check("split_lengths", "lengths that differ between the splits")
def split_lengths(overview: Overview) -> Finding | None:
    return _differ("lengths", "Kolmogorov-Smirnov distance", overview)


def _compared(overview: Overview) -> list[int]:
    """Splits with enough rows to be compared with train."""
    if len(overview.rows(TRAIN)) < FEW_TO_COMPARE:
        return []
    return [split for split in (VAL, TEST) if len(overview.rows(split)) >= FEW_TO_COMPARE]


def _differences(overview: Overview) -> dict[str, list[tuple[int, float]]] | None:
    """Splits whose labels or lengths differ from those of train, and by how much; p-values are adjusted for their number
    (Holm). None where the splits are too small."""
    train, others = overview.rows(TRAIN), _compared(overview)
    if not others:
        return None
    length = overview.columns["characters"]
    trials: list[tuple[str, int, float, float]] = []  # what, split, p, size of the difference
    for split in others:
        distance, p = kolmogorov_smirnov(length[train], length[overview.rows(split)])
        trials.append(("lengths", split, p, distance))
        if overview.task == "classification" and overview.names["label"]:
            p, size = chi_square(label_counts(overview, TRAIN), label_counts(overview, split))
            trials.append(("labels", split, p, size))
    different: dict[str, list[tuple[int, float]]] = {"labels": [], "lengths": []}
    for (what, split, _, size), p in zip(trials, holm([p for _, _, p, _ in trials]), strict=True):
        if p < 0.01 and size > 0.1:
            different[what].append((split, size))
    return different


def _differ(what: str, measure: str, overview: Overview) -> Finding | None:
    differences = _differences(overview)
    if differences is None:
        return None
    if not (differing := differences[what]):
        return Finding("ok", f"{what} are spread alike over the splits", 0)
    shown = ", ".join(f"{SPLITS[split]} ({measure} {size:.2f})" for split, size in differing)
    rows = sum(len(overview.rows(split)) for split, _ in differing)
    remedy = (
        "Look whether rows of one group or time stand in one split only; then the test is harder than the training."
    )
    return Finding("warn", f"{what} of train differ from {shown}", rows, remedy)


@check("split_wording", "a test split that is worded otherwise than train", slow=True)
def split_wording(overview: Overview) -> Finding | None:
    if TEST not in _compared(overview):
        return None
    train, test = overview.rows(TRAIN), overview.rows(TEST)
    sides = [
        [question_of(overview.row(i)) for i in overview.some(rows, SPLIT_TEXTS).tolist()] for rows in (train, test)
    ]
    drift = compare_with(*sides, seed=overview.seed)
    auc = drift.auc
    if not auc.low > 0.55:  # NaN with too few texts
        return Finding("ok", "train and test are worded alike", 0)
    message = (
        f"a classifier tells train from test by their words (AUC {auc.value:.2f}, {auc.low:.2f} to {auc.high:.2f})"
    )
    if drift.words_b:
        message += f"; test has more of {named(drift.words_b)}"
    remedy = "Look what the words have in common: rows of one topic may stay together in one split. Results on the test will not look like those in training."
    return Finding("warn", message, len(test), remedy)
