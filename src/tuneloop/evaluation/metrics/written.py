"""How values, intervals and changes of metrics are written in tables and sentences."""

from __future__ import annotations

import math
from collections.abc import Callable

from tuneloop.evaluation.metrics.declared import metric_of
from tuneloop.records.evaluation import Estimate

# Metrics that are shares, as a reader says them; other metrics keep their name.
SHARES = {
    "accuracy": "of the answers are right", "exact_match": "of the answers are right",
    "field_accuracy": "of the fields are right", "object_accuracy": "of the answers are right in every field",
    "subset_accuracy": "of the answers have all labels right", "valid_json": "of the answers are valid JSON",
    "pass@1": "of the programs pass their tests",
}  # fmt: skip


def metric_text(value: float | None, metric: str = "accuracy") -> str:
    """A metric's value in a table, by its own number format."""
    return metric_of(metric).figure(value)


def percentage(metric: str) -> Callable[[float], str] | None:
    """How a share is written as per cent, without digits that few rows don't carry; None: the metric is no share."""
    is_share = metric_of(metric).scale == "share" or metric.rpartition(".")[2] in SHARES
    return (lambda value: f"{100 * value:.0f} %") if is_share else None


def interval(score: Estimate | None, metric: str = "accuracy") -> str:
    """A 95 % interval: `[0.81, 0.92]`, or an empty string where there is none."""
    if score is None or not (math.isfinite(score.low) and math.isfinite(score.high)):
        return ""
    return f"[{metric_text(score.low, metric)}, {metric_text(score.high, metric)}]"


def with_interval(score: Estimate | None, metric: str = "accuracy") -> str:
    """`0.87 [0.81, 0.92]`."""
    return f"{metric_text(score.value if score else None, metric)} {interval(score, metric)}".strip()


def signed(value: float, metric: str = "accuracy") -> str:
    """A change of a metric: `+0.12`, `−3.4`."""
    return metric_of(metric).change(value, signed=True).replace("-", "−")


def gain_interval(gain: Estimate, metric: str = "accuracy") -> str:
    """The 95 % interval of a change: `[-0.01, 0.12]`; a bound reads as 0 only where it is 0. Empty: there is none."""
    bounds = f"[{metric_of(metric).change(gain.low)}, {metric_of(metric).change(gain.high)}]"
    return bounds if math.isfinite(gain.low + gain.high) else ""
