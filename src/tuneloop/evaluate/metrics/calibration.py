"""Whether a classifier's confidence means what it says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tuneloop.core.late import late
from tuneloop.core.stats import Array, Statistics, ratio
from tuneloop.records.completion import Answer
from tuneloop.records.metric import Metric

if TYPE_CHECKING:
    import numpy as np
else:
    np = late("numpy")

BINS = 15
METRICS = (
    Metric(
        "ece", "calibration error", better="lower", needs="labels", meaning="expected calibration error over 15 bins"
    ),
)


def confidences(answers: Sequence[Answer]) -> list[float]:
    """Each answer's probability of its best label: the softmax of its scores (NaN without scores).

    For log probabilities (the classical contenders) that is the probability itself; choice scoring gives means over
    tokens, see `label_probabilities`.
    """
    found = []
    for answer in answers:
        scores = [score for score in (answer.scores or {}).values() if not math.isnan(score)]
        best = max(scores, default=-math.inf)
        found.append(1.0 / sum(math.exp(s - best) for s in scores) if math.isfinite(best) else math.nan)
    return found


def label_probabilities(answers: Sequence[Answer], tokens: Mapping[str, int], *, shifted: bool = False) -> list[float]:
    """The probability that a model writes each answer's label, given that it writes one of the labels.

    Scores are mean log likelihoods a token, so that long labels are at no disadvantage; times the label's tokens they are
    log probabilities. The probabilities of different labels add up to 1 at most, since each ends in the end of turn. So
    where labels that could not win were cut short, which makes their scores upper bounds, 1 bounds the sum, and the
    result is a lower bound.

    Args:
        answers: of choice scoring.
        tokens: of each label, the end of turn included.
        shifted: the scores are calibrated (less those under an empty prompt): no probabilities, whose sum has no bound.
    """
    found = []
    for answer in answers:
        logs = {label: score * tokens[label] for label, score in (answer.scores or {}).items()}
        if not shifted:  # rounding in 16 bits can lift a sure label a little above 1
            logs = {label: min(log, 0.0) for label, log in logs.items()}
        own = logs.get(answer.text, math.nan)
        total = sum(math.exp(min(log - own, 700.0)) for log in logs.values()) if math.isfinite(own) else math.nan
        found.append(1.0 / total if shifted else max(1.0 / total, math.exp(own)))
    return found


def label_distribution(answer: Answer, tokens: Mapping[str, int], top: int) -> dict[str, float]:
    """Probabilities of the likeliest labels, given that the model writes one of all: the answer's own label first.

    The answer is the label with the best mean a token; so another one may have the higher probability.

    Args:
        answer: of choice scoring, with exact scores of all labels.
        tokens: of each label, the end of turn included.
        top: how many.
    """
    logs = {label: min(score * tokens[label], 0.0) for label, score in (answer.scores or {}).items()}
    highest = max(logs.values())
    total = sum(math.exp(log - highest) for log in logs.values())
    order = sorted(logs, key=lambda label: (label != answer.text, -logs[label]))
    return {label: math.exp(logs[label] - highest) / total for label in order[:top]}


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
