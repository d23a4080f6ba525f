"""Metrics of probabilities: how likely a model finds the reference answers (loss, perplexity), and whether a
classifier's confidence means what it says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tuneloop.core.lazy import np
from tuneloop.core.stats.intervals import Array, Statistics, ratio
from tuneloop.records.completion import Completion
from tuneloop.records.metric import Metric

METRICS = (
    Metric("loss", "loss", "from 0", "lower", needs="losses", meaning="mean of -log likelihood of a token, in nats"),
    Metric("perplexity", "perplexity", "from 0", "lower", needs="losses", decimals=1, precise=1,
           meaning="e to the loss; compared by the test of the loss"),
    Metric("ece", "calibration error", better="lower", needs="labels", meaning="expected calibration error, 15 bins"),
)  # fmt: skip


def loss_statistics(losses: Sequence[float], tokens: Sequence[int]) -> Statistics:
    """Mean loss of the answers' tokens and its exponential, perplexity, from rows' summed losses (nats) and tokens."""
    rows = np.array([losses, tokens], dtype=np.float64).T

    def loss(sums: Array) -> Array:
        return ratio(sums[:, 0], sums[:, 1], empty=np.nan)

    def perplexity(sums: Array) -> Array:
        return np.exp(np.minimum(loss(sums), 50.0))

    entry = [float(x) for x in loss(rows)]
    scores = {"loss": entry, "perplexity": [float(np.exp(min(x, 50.0))) for x in entry]}
    return Statistics(rows, {"loss": loss, "perplexity": perplexity}, scores, same={"perplexity": "loss"})


BINS = 15


def confidences(answers: Sequence[Completion]) -> list[float]:
    """Each answer's probability of its label: as it stands there, else the softmax of its scores (NaN without scores).
    The classical systems' scores are log probabilities, so that their softmax is the probability itself."""
    chances = []
    for answer in answers:
        if answer.label_probability is not None or answer.label_scores is None:
            chances.append(answer.confidence)
            continue
        scores = [score for score in (answer.label_scores or {}).values() if not math.isnan(score)]
        best = max(scores, default=-math.inf)
        chances.append(1.0 / sum(math.exp(s - best) for s in scores) if math.isfinite(best) else math.nan)
    return chances


def calibration_statistics(confidence: Sequence[float], right: Sequence[float]) -> Statistics:
    """Expected calibration error over 15 bins of equal width, of confidences from 0 to 1 (NaN: the row doesn't count).
    ECE = sum over bins of |right answers - summed confidence| / n. Source: Guo et al. 2017, arXiv 1706.04599, eq. 3."""
    rows = np.zeros((len(confidence), 3 * BINS))  # confidence, right, rows of each bin
    for i, (sure, hit) in enumerate(zip(confidence, right, strict=True)):
        if not math.isnan(sure + hit):
            # Bins are open below and closed above, as in the source; 0 falls into the first.
            index = max(math.ceil(min(max(0.0, sure), 1.0) * BINS) - 1, 0)
            rows[i, [index, BINS + index, 2 * BINS + index]] = sure, hit, 1.0

    def ece(sums: Array) -> Array:
        gaps = np.abs(sums[:, :BINS] - sums[:, BINS : 2 * BINS]).sum(axis=1)
        return ratio(gaps, sums[:, 2 * BINS :].sum(axis=1), empty=np.nan)

    return Statistics(rows, {"ece": ece}, {})


def reliability(confidence: Sequence[float], right: Sequence[float]) -> list[dict[str, Any]]:
    """The bins of a reliability diagram that hold rows: bounds, rows, mean confidence and share of right answers."""
    sums = calibration_statistics(confidence, right).totals()[0]
    bins = []
    for index in range(BINS):
        sure, hits, n = (float(sums[part * BINS + index]) for part in range(3))
        if n:
            shares = {"confidence": sure / n, "accuracy": hits / n}
            bins.append({"low": index / BINS, "high": (index + 1) / BINS, "n": int(n), **shares})
    return bins
