"""Metrics: each file computes one family and declares it; here is the list of all.

Every metric is a function of sums over rows. A family returns the numbers of each row, `Statistics`, and the functions
of their sums: a bootstrap resample is one matrix product, and each metric gets an interval and a paired test.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tuneloop.evaluation.metrics import code, custom, labels, objects, probabilities, structured, text
from tuneloop.evaluation.metrics.custom import own_metric
from tuneloop.records.metric import Headline, Metric

# In the order in which headline metrics are named.
FAMILIES = (labels, objects, structured, code, text, probabilities, custom)
METRICS: dict[str, Metric] = {metric.name: metric for family in FAMILIES for metric in family.METRICS}
_OWN: dict[str, Metric] = {}  # declared by scorers and evaluations that this process has read; by name the last one


def metric_of(name: str) -> Metric:
    """What is declared of a metric; `FIELD.METRIC` is as its metric, an unknown name is a scorer of the user's."""
    declared = METRICS.get(name) or _OWN.get(name)
    if declared is not None:
        return declared
    field, dot, last = name.rpartition(".")
    return metric_of(last).of_field(field) if dot and last in METRICS else own_metric(name)


def title_of(name: str) -> str:
    """A metric's name as people read it."""
    return metric_of(name).title


def lower_is_better(name: str) -> bool:
    """Whether a smaller value of a metric is better."""
    return metric_of(name).lower_is_better


def headline_of(kind: Headline) -> list[str]:
    """The headline metrics of a kind of answers."""
    return [metric.name for metric in METRICS.values() if metric.headline == kind]


def likely_to_decide(names: Sequence[str]) -> str | None:
    """The metric to go by where nothing says which one decides: the first headline metric of which more is better, also
    of a field (`FIELD.METRIC`); where there is none, the first that systems are compared by."""
    order = [m.name for m in METRICS.values() if m.headline and not m.lower_is_better]
    candidates = [name for metric in order for name in names if name.rpartition(".")[2] == metric]
    declared = [name for name in names if name.rpartition(".")[2] in METRICS or name in _OWN]
    candidates += [name for name in declared if metric_of(name).compared and not lower_is_better(name)]
    return candidates[0] if candidates else None


def declare(metrics: Iterable[Metric]) -> None:
    """Make the user's metrics known to everything in this process that reads metrics of these names."""
    _OWN.update({metric.name: metric for metric in metrics if metric.name not in METRICS})
