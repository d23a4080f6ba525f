"""Two systems' results on the same rows: paired differences, tests, verdicts."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.lazy import np
from tuneloop.core.stats import intervals as u
from tuneloop.core.stats.bounded import bounded_interval, cluster_values
from tuneloop.core.stats.intervals import Statistics
from tuneloop.evaluation.deciding import IMPORTED
from tuneloop.evaluation.evaluate import ScoredAnswers
from tuneloop.evaluation.metrics.declared import lower_is_better, metric_of
from tuneloop.records.evaluation import Comparison
from tuneloop.records.rows import references_of

EXACT = "exact McNemar"


@dataclass(frozen=True)
class PairedRows(Comparison):
    """A comparison with its rows: `interval_at` gives the difference's interval at a `level` of error, `margin_at` the
    one that also holds on few rows."""

    interval_at: Callable[..., tuple[float, float]] = field(
        default=lambda level: (math.nan, math.nan), repr=False, compare=False, metadata={"written": False}
    )
    margin_at: Callable[..., tuple[float, float]] = field(
        default=lambda level: (math.nan, math.nan), repr=False, compare=False, metadata={"written": False}
    )


def compare(
    a_name: str, a: ScoredAnswers, b_name: str, b: ScoredAnswers, *, only: Collection[str] | None = None
) -> list[Comparison]:
    """Paired comparison of two systems on the same rows, for each metric that both have (or for some of them, `only`).

    Right-or-wrong metrics: exact McNemar test, Agresti-Min interval. All else, and all where rows form clusters: paired
    bootstrap with the same resamples for both, with a p-value of no less than so few rows can give (`least_p`); of
    scores that another tool has given a paired t-test, robust to clusters (`PairedMean`). Where
    the test finds no difference, the interval is widened to 0 if need be; where no row differs, to what so few rows
    leave open (`core/stats/bounded.py`), which also bounds what a margin is judged by. Metrics without row scores (a
    perplexity measured elsewhere) and those without a better direction are left out. Several are `adjusted` for each
    other.

    Raises UserError: the two were not evaluated on the same rows, or with other references.
    """
    b = _in_the_order_of(a, b, a_name, b_name)
    mine, theirs = ({name: f for f in side.statistics for name in f.values} for side in (a, b))
    names = [name for name in mine if only is None or name in only]
    names = [name for name in names if name in b.metrics and name in a.draws and name in b.draws]
    compared = [name for name in names if metric_of(name).compared]
    return adjusted([_compared(name, mine[name], theirs.get(name), (a_name, a), (b_name, b)) for name in compared], a)


def _compared(
    name: str,
    family: Statistics,
    other: Statistics | None,
    first: tuple[str, ScoredAnswers],
    second: tuple[str, ScoredAnswers],
) -> PairedRows:
    (a_name, a), (b_name, b) = first, second
    delta, source = b.metrics[name].value - a.metrics[name].value, family.same.get(name, name)
    only_a = only_b = apart = None
    at: Callable[..., tuple[float, float]]
    # Of both sides, not of one by chance.
    shares = source in family.right_or_wrong and any(source in side.right_or_wrong for side in b.statistics)
    if shares and a.clusters is None:
        scores = zip(a.row_scores[source], b.row_scores[source], strict=True)
        pairs = [(x, y) for x, y in scores if x == x and y == y]
        only_a, only_b = sum(x > y for x, y in pairs), sum(y > x for x, y in pairs)
        at = partial(u.paired_shares_interval, only_a, only_b, len(pairs))
        p, test, apart = u.mcnemar_p(only_a, only_b), EXACT, only_a + only_b
    elif a.task == IMPORTED:
        gaps = np.array(b.row_scores[source]) - np.array(a.row_scores[source])
        mean, apart = u.PairedMean.of(gaps, a.clusters), int(np.count_nonzero(gaps[~np.isnan(gaps)]))
        at, p = mean.interval, mean.p
        test = "paired t" if a.clusters is None else "paired t, robust to clusters"
    else:
        at = partial(u.paired_bootstrap_interval, delta, b.draws[name] - a.draws[name])
        if other is not None and other.layout == family.layout and other.rows.shape == family.rows.shape:
            tables = [table.rows for table in (other, family)]
            apart = u.rows_apart(
                *(tables if a.clusters is None else [u.sums_by_cluster(t, a.clusters) for t in tables])
            )
        tested = b.metrics[source].value - a.metrics[source].value  # perplexity by the loss
        p = u.paired_bootstrap_p(tested, b.draws[source] - a.draws[source])
        p = max(p, 0.0 if apart is None else u.least_p(apart))
        test = "paired bootstrap" if a.clusters is None else "paired cluster bootstrap"
    low, high = at(level=u.ALPHA)
    if shares:
        effect, kind = u.cohens_h(a.metrics[name].value, b.metrics[name].value), "Cohen's h"
    else:
        effect, kind = u.standardised(delta, low, high, a.n), "Cohen's d (paired)"
    margin_at, counted = _margin_interval((name, delta), family, other, a, at)
    if low == high:  # no spread was seen; few rows leave some open
        at = margin_at
        low, high = at(level=u.ALPHA)
    smallest = u.detectable(low, high)
    low, high = u.with_zero((low, high)) if p >= u.ALPHA else (low, high)
    pair = PairedRows(a_name, b_name, name, delta, low, high, p, "", test, detectable=smallest)
    pair = replace(pair, interval_at=at, margin_at=margin_at, compared=counted)
    return replace(pair, effect=effect, effect_kind=kind, only_a=only_a, only_b=only_b, apart=apart)


def _margin_interval(
    difference: tuple[str, float],
    family: Statistics,
    other: Statistics | None,
    a: ScoredAnswers,
    at: Callable[..., tuple[float, float]],
) -> tuple[Callable[..., tuple[float, float]], int]:
    """The interval of a difference that holds on few rows, too: the usual one, and at least as wide as the bounds of
    `core/stats/bounded.py` for the rows' differences. A corpus metric moves by its rows' scores, or by those of the
    same family. `difference`: the metric and by how much it differs. Returns it, and how many rows have both scores.
    """
    name, delta = difference
    source = family.same.get(name, name)
    key = source if source in family.row_scores else next(iter(family.row_scores), "")
    if other is None or key not in other.row_scores:
        return at, a.n
    scores = np.array([other.row_scores[key], family.row_scores[key]], dtype=np.float64)
    gaps = scores[0] - scores[1]
    counted = int((~np.isnan(gaps)).sum())
    declared = metric_of(name)
    unit = metric_of(key).out_of if key in family.values else declared.out_of
    reach = unit if declared.scale != "from 0" else float(np.nanmax(np.abs(scores), initial=0.0))
    if not counted or not reach:
        return at, counted
    if a.clusters is not None:
        gaps, times = cluster_values(gaps, a.clusters)
        reach *= times
    mean, scale = float(np.nanmean(gaps)), declared.out_of / unit

    def bounds(level: float = u.ALPHA) -> tuple[float, float]:
        usual, rows = at(level=level), bounded_interval(gaps, reach, level)
        if any(map(math.isnan, usual)):
            return usual
        return min(usual[0], delta + (rows[0] - mean) * scale), max(usual[1], delta + (rows[1] - mean) * scale)

    return bounds, counted


def adjusted(comparisons: Sequence[Comparison], evaluation: ScoredAnswers) -> list[Comparison]:
    """Comparisons with p-values and intervals adjusted for each other (Holm), and what follows: verdicts, rows needed.

    The metric that decides is fixed before the data are seen: over it, only several pairs of systems are adjusted for.
    The other headline metrics form a second family, so that a loss on one of them isn't lost among twenty metrics that
    no one decides by; all else forms a third. Metrics that are the same number, or put systems in the same order
    (micro-F1 and accuracy, perplexity and loss), count once. Each interval is at the level that Holm's procedure tests
    its comparison at, and reaches 0 where the procedure finds no difference; so intervals and p-values agree.

    `comparisons`: of one or several pairs; giving all that are read together makes the adjustment honest;
    `evaluation`: what tells the metric that decides, the headline metrics and the number of rows.
    """
    same = {name: source for family in evaluation.statistics for name, source in family.same.items()}
    keys = [(c.a, c.b, same.get(c.metric, c.metric)) for c in comparisons]
    p_of = {key: c.p for key, c in zip(reversed(keys), reversed(comparisons), strict=True)}
    primary = same.get(evaluation.primary, evaluation.primary)
    headline = {same.get(name, name) for name in evaluation.headline}
    families: dict[tuple[bool, bool], list[tuple[str, str, str]]] = {}
    for key in p_of:
        families.setdefault((key[2] == primary, key[2] in headline), []).append(key)
    holm: dict[tuple[str, str, str], tuple[float, float, int]] = {}
    for family in families.values():
        p_values = [p_of[key] for key in family]
        tests = sum(not math.isnan(p) for p in p_values)
        for key, p_holm, level in zip(family, u.holm(p_values), u.holm_levels(p_values), strict=True):
            holm[key] = p_holm, level, tests
    adjusted_pairs: list[Comparison] = []
    for key, c in zip(keys, comparisons, strict=True):
        p_holm, level, tests = holm[key]
        bounds = c.interval_at(level=level) if isinstance(c, PairedRows) else (c.low, c.high)
        low, high = bounds if p_holm < u.ALPHA else u.with_zero(bounds)
        seen = (-high, -low) if lower_is_better(c.metric) else (low, high)
        verdict, needed = u.verdict(*seen, p_holm), rows_needed(c, evaluation.n, level)
        more = None if needed is None or verdict != u.NOT_ENOUGH else max(1, needed - evaluation.n)
        if isinstance(c, PairedRows):
            low_margin, high_margin = c.margin_at(level=level)
            c = replace(c, low_margin=low_margin, high_margin=high_margin)
        corrected = replace(c, p_holm=p_holm, low_holm=low, high_holm=high, tests=tests)
        adjusted_pairs.append(replace(corrected, verdict=verdict, more_rows=more, rows_needed=needed))
    return adjusted_pairs


def rows_needed(c: Comparison, n: int, level: float) -> int | None:
    """Rows in all that show a difference as large as this one with 80 % power at a level; None where none follow."""
    if c.only_a is not None and c.only_b is not None:
        return u.rows_for_pairs(c.only_a, c.only_b, n, level=level)
    half = u.Z95 * c.detectable / (u.Z95 + u.Z80)  # of the interval before it was widened to 0
    needed = u.rows_to_settle(c.delta, -half, half, n, level=level)
    if needed is None or not c.apart:
        return needed
    return max(needed, math.ceil(n * u.least_apart(level) / c.apart))  # so many must differ, or no test can show it


def _in_the_order_of(a: ScoredAnswers, b: ScoredAnswers, a_name: str, b_name: str) -> ScoredAnswers:
    """`b` with rows, scores and draws as `a` has them; refuses what can't be paired."""
    a_ids, b_ids = [row.id for row in a.rows], [row.id for row in b.rows]
    if set(a_ids) != set(b_ids):
        alone = min(set(a_ids) ^ set(b_ids))
        raise UserError(
            f"{a_name} and {b_name} were evaluated on different rows ({len(a_ids)} and {len(b_ids)}, "
            f"{len(set(a_ids) & set(b_ids))} shared)",
            where=f"row {alone} is in one of them only",
            next_step="evaluate both on the same split with the same evaluate.limit and seed",
        )
    index = {row_id: i for i, row_id in enumerate(b_ids)}
    order = [index[row_id] for row_id in a_ids]

    def ordered(values: Sequence[Any]) -> list[Any]:
        return [values[j] for j in order]

    for i, j in enumerate(order):
        if references_of(a.rows[i]) != references_of(b.rows[j]) or a.rows[i].label != b.rows[j].label:
            message = f"{a_name} and {b_name} were evaluated against different reference answers"
            step = "evaluate both on the same version of the data set"
            raise UserError(message, where=f"row {a_ids[i]}", next_step=step)
    if a_ids == b_ids and (a.seed, a.config.bootstrap, a.clusters) == (b.seed, b.config.bootstrap, b.clusters):
        return b
    statistics = [
        replace(f, rows=f.rows[np.array(order)], row_scores={name: ordered(x) for name, x in f.row_scores.items()})
        for f in b.statistics
    ]
    config = b.config.model_copy(update={"bootstrap": a.config.bootstrap})
    draws = u.bootstrap(statistics, a.n, resamples=config.bootstrap, seed=a.seed, clusters=a.clusters)
    changes: dict[str, Any] = {name: ordered(getattr(b, name)) for name in ("rows", "answers", "predictions", "valid")}
    changes |= {"seed": a.seed, "config": config, "clusters": a.clusters, "draws": draws, "statistics": statistics}
    return replace(b, **changes)
