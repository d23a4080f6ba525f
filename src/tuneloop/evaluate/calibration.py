"""Whether a classifier's confidence means what it says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tuneloop.evaluate.metrics import Array, Statistics, ratio
from tuneloop.types import Answer

BINS = 15


def confidences(answers: Sequence[Answer]) -> list[float]:
    """Each answer's probability of its best label: the softmax of its scores (NaN without scores).

    For log probabilities (the classical contenders) that is the probability itself. Choice scoring gives mean log
    likelihoods a token: their softmax is a confidence that only calibration makes a probability. Where labels that
    could not win were cut short (`prune`), their scores are upper bounds and the confidence is a lower bound.
    """
    found = []
    for answer in answers:
        scores = [score for score in (answer.scores or {}).values() if not math.isnan(score)]
        best = max(scores, default=-math.inf)
        found.append(1.0 / sum(math.exp(s - best) for s in scores) if math.isfinite(best) else math.nan)
    return found


def calibration_statistics(confidence: Sequence[float], right: Sequence[float]) -> Statistics:
    """Expected calibration error over 15 bins of equal width.

    ECE = sum over bins of |right answers - summed confidence| / n. Source: Guo et al. 2017, arXiv 1706.04599, eq. 3.

    Args:
        confidence: of each row's answer, 0 to 1 (NaN: the row doesn't count).
        right: 1 or 0 for each row.
    """
    rows = np.zeros((len(confidence), 3 * BINS))  # confidence, right, rows of each bin
    for i, (sure, hit) in enumerate(zip(confidence, right, strict=True)):
        if not math.isnan(sure + hit):
            place = _bin(sure)
            rows[i, [place, BINS + place, 2 * BINS + place]] = sure, hit, 1.0

    def ece(sums: Array) -> Array:
        gaps = np.abs(sums[:, :BINS] - sums[:, BINS : 2 * BINS]).sum(axis=1)
        counted = sums[:, 2 * BINS :].sum(axis=1)
        return ratio(gaps, counted, empty=np.nan)

    return Statistics(rows, {"ece": ece}, {})


def reliability(confidence: Sequence[float], right: Sequence[float]) -> list[dict[str, Any]]:
    """The bins of a reliability diagram that hold rows: their bounds, rows, mean confidence and share of right answers."""
    sums = calibration_statistics(confidence, right).totals()[0]
    bins = []
    for place in range(BINS):
        sure, hits, n = (float(sums[part * BINS + place]) for part in range(3))
        if n:
            bins.append(
                {
                    "low": place / BINS,
                    "high": (place + 1) / BINS,
                    "n": int(n),
                    "confidence": sure / n,
                    "accuracy": hits / n,
                }
            )
    return bins


def _bin(confidence: float) -> int:
    """Bins are open below and closed above, as in the source; 0 falls into the first."""
    return min(max(math.ceil(confidence * BINS) - 1, 0), BINS - 1)
