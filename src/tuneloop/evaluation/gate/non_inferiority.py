"""Not worse by more than a margin: shown, not shown or refuted, by the interval of a paired difference.

Non-inferiority as CONSORT has it (Piaggio et al. 2012): it is shown where all of the interval lies above -margin,
refuted where all of it lies below. A test that finds no difference shows neither. The interval is one that holds on few
rows, most of them equal, too (`core/stats/bounded.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tuneloop.core.errors import UserError
from tuneloop.core.stats.intervals import ALPHA, rows_to_settle
from tuneloop.core.units import counted
from tuneloop.evaluation.evaluate import ScoredAnswers, some_rows
from tuneloop.evaluation.metrics.declared import lower_is_better, metric_of
from tuneloop.evaluation.paired import PairedRows, compare
from tuneloop.evaluation.slices import slice_values

Outcome = Literal["shown", "not shown", "refuted"]
FEWEST, MOST_SLICES = 20, 40  # rows of a slice; slices, the largest first


@dataclass(frozen=True)
class NonInferiority:
    """What is known of a metric's loss.

    Args:
        metric: its name; `part`: the rows, in words; empty: all.
        gain: of the candidate over the base, above 0 where it is better; NaN: not measured on both.
        low, high: its interval; None: the metric has none, and the value alone decides.
        margin: that it may be worse by, in the metric's units.
        rows: that it rests on. `rows_needed`: in all, that would decide if the gain stays what it is; None: no number
            follows, or several are read together.
    """

    metric: str
    part: str
    gain: float
    low: float | None
    high: float | None
    margin: float
    outcome: Outcome
    rows: int
    rows_needed: int | None = None


def non_inferiority(
    metric: str, margin: float, base: ScoredAnswers, candidate: ScoredAnswers, *, part: str = "", level: float = ALPHA
) -> NonInferiority:
    """Whether a candidate is worse than the base by more than a margin, on the same rows.

    Args:
        level: share of error of the two-sided interval, smaller where several are read together.

    Raises:
        UserError: the rows differ.
    """
    if metric not in candidate.metrics or metric not in base.metrics:
        return NonInferiority(metric, part, math.nan, None, None, margin, "not shown", candidate.n)
    sign = -1.0 if lower_is_better(metric) else 1.0
    pair = next((c for c in compare("base", base, "candidate", candidate, only=[metric]) if c.metric == metric), None)
    if pair is None or math.isnan(pair.low):
        gain = sign * (candidate.metrics[metric].value - base.metrics[metric].value)
        outcome: Outcome = "not shown" if math.isnan(gain) else "shown" if gain >= -margin else "refuted"
        return NonInferiority(metric, part, gain, None, None, margin, outcome, candidate.n)
    bounds = pair.margin_at(level=level) if isinstance(pair, PairedRows) else (pair.low, pair.high)
    low, high = sorted(sign * bound for bound in bounds)
    gain = sign * pair.delta
    outcome = "shown" if low >= -margin else "refuted" if high < -margin else "not shown"
    needed = None
    if outcome == "not shown" and level == ALPHA:
        needed = rows_to_settle(gain + margin, low + margin, high + margin, candidate.n)
        needed = max(needed, candidate.n + 1) if needed and needed < 100 * candidate.n else None
    return NonInferiority(metric, part, gain, low, high, margin, outcome, candidate.n, needed)


def in_units(metric: str, points: float) -> float:
    """Points, hundredths of the best value, in a metric's units: 2 points are 0.02 of a share and 2 of 100."""
    return points * metric_of(metric).out_of / 100


def by_metric_and_slice(points: float, base: ScoredAnswers, candidate: ScoredAnswers) -> Iterator[NonInferiority]:
    """The metric that decides, first; then the other headline metrics, and the deciding one on slices of the rows.

    The first is judged at 95 %. All others together are judged at that level (Bonferroni): they can refute, and are
    too many and too small to be demanded.

    Raises:
        UserError: no metric decides, since there are no right answers.
    """
    if not candidate.headline:
        step = "let a judge compare the answers: tuneloop compare BASE RUN --judge MODEL"
        raise UserError("There are no right answers to measure a loss by", where="--margin", next_step=step)
    first, *others = candidate.headline
    others = [name for name in others if name in base.metrics and metric_of(name).scale != "from 0"]
    yield non_inferiority(first, in_units(first, points), base, candidate)
    parts = _parts(candidate)
    level = ALPHA / max(len(others) + len(parts), 1)
    for name in others:
        yield non_inferiority(name, in_units(name, points), base, candidate, level=level)
    for name, ids in parts.items():
        sides = some_rows(base, ids), some_rows(candidate, ids)
        yield non_inferiority(first, in_units(first, points), *sides, part=name, level=level)


def _parts(evaluation: ScoredAnswers) -> dict[str, set[str]]:
    """Slices with enough rows, inside and outside: by label, length, turns, language, tools and metadata."""
    ways = slice_values(evaluation, evaluation.config.slices)
    ways["tools"] = [("yes",) if row.tools else ("no",) for row in evaluation.rows]
    parts: dict[str, set[str]] = {}
    for field, values in ways.items():
        for row, row_values in zip(evaluation.rows, values, strict=True):
            for value in row_values:
                parts.setdefault(f"{field} {value}", set()).add(row.id)
    large = {name: ids for name, ids in parts.items() if min(len(ids), evaluation.n - len(ids)) >= FEWEST}
    return dict(sorted(large.items(), key=lambda item: -len(item[1]))[:MOST_SLICES])


def in_words(loss: NonInferiority) -> str:
    """A finding as a sentence, in the metric's own numbers."""
    declared = metric_of(loss.metric)
    title = f"{declared.title}{' (lower is better)' if declared.lower_is_better else ''}"
    title += f" [{loss.part}]" if loss.part else ""
    if math.isnan(loss.gain):
        return f"{title}: not measured on both"
    outcome = f"not worse by more than {loss.margin:g}: {loss.outcome}"
    if loss.low is None or loss.high is None:
        return f"{title}: {outcome}; gain {loss.gain:+.4g} (no interval: the value alone decides)"
    needed = f"; about {counted(loss.rows_needed, 'row')} would settle it" if loss.rows_needed else ""
    rows = f", {counted(loss.rows, 'row')}" if loss.part else ""
    return f"{title}: {outcome}; gain {loss.gain:+.4g} [{loss.low:+.4g}, {loss.high:+.4g}]{rows}{needed}"
