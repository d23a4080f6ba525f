"""Where a model is good and where it isn't: results by slice and label, confusions, disagreements, groups of errors."""

from __future__ import annotations

import math
import textwrap
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.lazy import np
from tuneloop.core.stats import intervals as u
from tuneloop.core.stats.intervals import Array
from tuneloop.core.stats.tests import p_words
from tuneloop.core.units import counted
from tuneloop.evaluation.evaluate import CLUSTER_NAMES, ScoredAnswers
from tuneloop.evaluation.metrics.declared import lower_is_better, metric_of, title_of
from tuneloop.evaluation.metrics.labels import label_lists
from tuneloop.evaluation.metrics.probabilities import reliability
from tuneloop.records.evaluation import Slice, SliceComparison
from tuneloop.records.rows import last_user_turn

FEWEST = 5  # rows of a slice, and outside it
MOST_VALUES = 20  # of a metadata field that is sliced by its values
MOST_SLICES = 200
MOST_PAIRS = 50
LISTED = 50  # row ids named in a list
MOST_CLUSTERED = 2000  # wrong rows that are grouped

TIME_NAMES = ("time", "timestamp", "created", "created_at", "date", "datetime", "ts", "updated_at")
# Of `meta`: where a row stands, what it is marked by, and what belongs to its answer.
_NO_SLICE = {
    "line", "id", "references", "labels", "mix", "test", "prompt", "entry_point", "test_list", "test_setup_code",
    *CLUSTER_NAMES,
}  # fmt: skip


def breakdown(evaluation: ScoredAnswers, baselines: Mapping[str, ScoredAnswers]) -> dict[str, Any]:
    """All of this module for `eval.json`, against baselines on the same rows; every list is bounded."""
    parts: dict[str, Any] = {"primary": evaluation.primary, "row_metric": evaluation.row_metric}
    if evaluation.task == "classification":
        parts["per_class"] = per_class(evaluation)
        if label_lists(evaluation.rows) is None:
            parts["confusion"] = confusion_matrix(evaluation)
            parts["confusion_pairs"] = confusion_pairs(evaluation)
        confidence = [answer.confidence for answer in evaluation.answers]
        if not all(map(math.isnan, confidence)):
            bins = reliability(confidence, evaluation.row_scores["accuracy"])
            parts["calibration"] = {"ece": evaluation.metrics["ece"], "bins": bins}
    parts["slices"] = slices(evaluation, evaluation.config.slices)
    parts["disagreements"] = {name: disagreements(evaluation, other) for name, other in baselines.items()}
    parts["errors"] = error_groups(evaluation)
    if evaluation.code:
        parts["code"] = evaluation.code
    return parts


def breakdown_in_words(parts: Mapping[str, Any]) -> list[str]:
    """What of the breakdown a reader should not miss."""
    sentences = []
    worse = [s for s in parts["slices"] if s.verdict == "worse"]
    if worse:
        parts_of = [
            f"{s.field} {s.value} ({s.score:.2f} against {s.rest:.2f}, {p_words(s.p_holm)}, {counted(s.n, 'row')})"
            for s in sorted(worse, key=lambda s: s.delta)[:3]
        ]
        more = f" and {len(worse) - 3} more" if len(worse) > 3 else ""
        metric = title_of(parts["row_metric"])
        sentences.append(f"Significantly worse than the rest by {metric}: {'; '.join(parts_of)}{more}.")
    for top in (parts.get("confusion_pairs") or [])[:1]:
        if top["n"] >= 3:
            times = f"{top['n']} of {counted(top['of'], 'row')}"
            sentences.append(f"Most often confused: {top['label']} taken for {top['predicted']} ({times}).")
    return sentences


def slices(evaluation: ScoredAnswers, fields: Sequence[str] | None = None) -> list[Slice]:
    """What rows are judged by, by label, length, turns, language, source, time and metadata.

    Each slice of at least 5 rows is compared with all rows outside it. Test: Fisher's exact test for right or wrong
    (rows that form no clusters), else a difference of means with standard errors robust to clusters; Holm over all.

    Raises UserError: a requested field is in no row.
    """
    scores = np.array(evaluation.row_scores.get(evaluation.row_metric, []), dtype=np.float64)
    counted = ~np.isnan(scores)
    if counted.sum() < 2 * FEWEST:
        return []
    numbers = evaluation.clusters or list(range(evaluation.n))
    clusters = np.array(numbers, dtype=np.int64)
    binary = evaluation.clusters is None and set(np.unique(scores[counted])) <= {0.0, 1.0}
    members = _members(evaluation, counted, fields)
    test = _fisher if binary else u.robust_difference
    rows = [(*member, test(scores[counted], member[2][counted], clusters[counted])) for member in members]
    holm = u.holm([test[3] for *_, test in rows])
    results = []
    for (field, value, inside, (delta, low, high, p)), p_holm in zip(rows, holm, strict=True):
        inner, outside = scores[inside], scores[counted & ~inside]
        bounds = _mean_interval(inner, clusters[inside], binary)
        seen = (-high, -low) if lower_is_better(evaluation.row_metric) else (low, high)
        verdict = u.verdict(*seen, p_holm)
        mean, rest = float(inner.mean()), float(outside.mean())
        results.append(Slice(field, value, len(inner), mean, *bounds, rest, delta, low, high, p, p_holm, verdict))
    return sorted(results, key=lambda s: (s.field, -s.n, s.value))


def _members(evaluation: ScoredAnswers, counted: Any, fields: Sequence[str] | None) -> list[tuple[str, str, Any]]:
    """Field, value and rows of each slice that has enough rows, and enough outside it; the largest ones."""
    inside_of: dict[tuple[str, str], Any] = {}
    for field, values in slice_values(evaluation, fields).items():
        for i, row_values in enumerate(values):
            for value in row_values:
                inside_of.setdefault((field, value), np.zeros(len(values), dtype=bool))[i] = True
    members = [(*key, inside & counted) for key, inside in inside_of.items()]
    members = [x for x in members if min(x[2].sum(), (counted & ~x[2]).sum()) >= FEWEST]
    return sorted(members, key=lambda x: -int(x[2].sum()))[:MOST_SLICES]


def paired_slices(a: ScoredAnswers, b: ScoredAnswers) -> list[SliceComparison]:
    """How far b is above a on each slice of the rows that both have; Holm over all slices.

    Test: exact McNemar of right or wrong (rows that form no clusters), else a paired t-test robust to clusters.
    """
    metric = a.row_metric
    of_a, of_b = (zip(side.rows, side.row_scores.get(metric, ()), strict=False) for side in (a, b))
    by_id = {row.id: score for row, score in of_a}
    gaps = np.array([score - by_id.get(row.id, math.nan) for row, score in of_b], dtype=np.float64)
    if len(gaps) != b.n or (~np.isnan(gaps)).sum() < 2 * FEWEST:
        return []
    exact = b.clusters is None and set(np.unique(gaps[~np.isnan(gaps)])) <= {-1.0, 0.0, 1.0}
    places = np.array(b.clusters or list(range(b.n)), dtype=np.int64)
    slices: list[SliceComparison] = []
    for field, value, inside in _members(b, ~np.isnan(gaps), b.config.slices):
        mine = gaps[inside]
        n, mean = len(mine), u.PairedMean.of(mine, places[inside].tolist())
        low, high, p = *mean.interval(), mean.p
        if exact:
            only_a, only_b = int((mine < 0).sum()), int((mine > 0).sum())
            low, high, p = *u.paired_shares_interval(only_a, only_b, n), u.mcnemar_p(only_a, only_b)
        slices.append(SliceComparison(field, value, n, mean.mean, low, high, p, math.nan, ""))
    corrected = []
    for comparison, p_holm in zip(slices, u.holm([entry.p for entry in slices]), strict=True):
        seen = (-comparison.high, -comparison.low) if lower_is_better(metric) else (comparison.low, comparison.high)
        corrected.append(replace(comparison, p_holm=p_holm, verdict=u.verdict(*seen, p_holm)))
    return corrected


def paired_slices_in_words(a: str, b: str, metric: str, slices: Sequence[SliceComparison]) -> list[str]:
    """Where b is significantly better or worse than a; empty where nothing is shown."""
    sentences = []
    for verdict in ("worse", "better"):
        shown = sorted((s for s in slices if s.verdict == verdict), key=lambda s: s.p_holm)
        change = metric_of(metric).change_in_words
        parts = [
            f"{s.field} {s.value} ({change(s.delta, signed=True)}, {p_words(s.p_holm)}, {counted(s.n, 'row')})"
            for s in shown[:3]
        ]
        more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
        if parts:
            sentences.append(f"By slice, {b} is {verdict} than {a} on {'; '.join(parts)}{more}.")
    return sentences


def slice_values(evaluation: ScoredAnswers, fields: Sequence[str] | None = None) -> dict[str, list[tuple[str, ...]]]:
    """For each way to slice, the values of each row (none: the row is in no slice)."""
    rows = evaluation.rows
    ways: dict[str, list[tuple[str, ...]]] = {}
    if evaluation.task == "classification":
        lists = label_lists(rows)
        ways["label"] = [(str(row.label),) for row in rows] if lists is None else [tuple(sorted(x)) for x in lists]
    ways["length"] = _quarters([len(last_user_turn(row).split()) for row in rows], lambda n: f"{n:.0f}", "words")
    ways["turns"] = _single([str(sum(turn["role"] == "user" for turn in row.prompt)) for row in rows])
    if evaluation.measured.languages:
        ways["language"] = _single(list(evaluation.measured.languages))
    sources = [row.meta.get("source") for row in rows]
    ways["source"] = _single([PurePath(source).name if isinstance(source, str) else None for source in sources])
    names = dict.fromkeys(name for row in rows for name in row.meta)
    for name in fields if fields is not None else names:
        if name not in names and name not in ways:
            message = f"No row has the metadata field {name!r}"
            raise UserError(message, where="evaluate.slices", next_step="name a field of `meta`")
        if name not in ways and (fields is not None or name not in _NO_SLICE):
            ways[name] = _meta_values(name, [row.meta.get(name) for row in rows], requested=fields is not None)
    return {name: values for name, values in ways.items() if len({v for value in values for v in value}) > 1}


def _meta_values(name: str, values: list[Any], *, requested: bool) -> list[tuple[str, ...]]:
    """A metadata field's values as they are if they are few, in quarters if they are times or numbers."""
    none: list[tuple[str, ...]] = [()] * len(values)
    filled = [value for value in values if value is not None]
    if not filled or not all(isinstance(value, str | int | float) for value in filled):
        return none
    if name.casefold() in TIME_NAMES:
        times = [_time(value) for value in values]
        if all(time is not None for time, value in zip(times, values, strict=True) if value is not None):
            return _quarters(times, lambda t: datetime.fromtimestamp(t, UTC).date().isoformat(), "")
    if len(set(filled)) <= (200 if requested else MOST_VALUES):
        return _single([None if value is None else str(value) for value in values])
    if all(isinstance(value, int | float) for value in filled):
        return _quarters([None if value is None else float(value) for value in values], lambda x: f"{x:.4g}", "")
    return none


def _single(values: Sequence[str | None]) -> list[tuple[str, ...]]:
    return [() if value is None else (value,) for value in values]


def _time(value: Any) -> float | None:
    """Seconds since 1970 of a number (seconds, or milliseconds) or an ISO date."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        seconds = value / 1000 if abs(value) > 1e11 else float(value)
        return float(seconds) if math.isfinite(seconds) and 0 < seconds < 1e11 else None
    try:
        moment = datetime.fromisoformat(str(value).strip())
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _quarters(values: Sequence[float | None], show: Callable[[float], str], unit: str) -> list[tuple[str, ...]]:
    """Each value's quarter of the distribution, named by its smallest and largest member."""
    numbers = np.array([value for value in values if value is not None], dtype=np.float64)
    if not len(numbers):
        return [()] * len(values)
    edges = np.unique(np.quantile(numbers, [0.25, 0.5, 0.75]))
    places = [None if value is None else int(np.searchsorted(edges, value)) for value in values]
    names = {}
    for position in {p for p in places if p is not None}:
        inside = [v for v, p in zip(values, places, strict=True) if p == position and v is not None]
        low, high = show(min(inside)), show(max(inside))
        names[position] = " ".join(filter(None, [low if low == high else f"{low} to {high}", unit]))
    return [() if quarter is None else (names[quarter],) for quarter in places]


def _fisher(scores: Array, inside: Any, clusters: Any) -> tuple[float, float, float, float]:
    """Difference of two shares, Newcombe's hybrid score interval (1998, method 10), and Fisher's exact p-value."""
    from scipy.stats import fisher_exact

    inner, other = scores[inside], scores[~inside]
    a, b = int(inner.sum()), int(other.sum())
    (low_a, high_a), (low_b, high_b) = u.wilson_interval(a, len(inner)), u.wilson_interval(b, len(other))
    share_a, share_b = a / len(inner), b / len(other)
    delta = share_a - share_b
    low = delta - math.hypot(share_a - low_a, high_b - share_b)
    high = delta + math.hypot(high_a - share_a, share_b - low_b)
    p = float(fisher_exact([[a, len(inner) - a], [b, len(other) - b]])[1])
    return delta, low, high, p


def _mean_interval(scores: Array, clusters: Any, binary: bool) -> tuple[float, float]:
    if binary:
        return u.wilson_interval(int(scores.sum()), len(scores))
    from scipy.stats import t

    groups = np.unique(clusters)
    if len(groups) < 2:
        return math.nan, math.nan
    sums = np.bincount(clusters, weights=(scores - scores.mean()) / len(scores))
    half = t.ppf(0.975, len(groups) - 1) * math.sqrt((sums**2).sum() * len(groups) / (len(groups) - 1))
    return float(scores.mean() - half), float(scores.mean() + half)


def per_class(evaluation: ScoredAnswers) -> list[dict[str, Any]]:
    """Rows, precision, recall, F1, times predicted and invalid answers of each label that occurs."""
    lists = label_lists(evaluation.rows)
    rights = [frozenset({str(row.label)}) for row in evaluation.rows] if lists is None else lists
    several = lists is not None
    answers = [frozenset(() if p is None else p.split(", ") if several else (p,)) for p in evaluation.predictions]
    rows, predicted, hits, invalid = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    for right, answer, valid in zip(rights, answers, evaluation.valid, strict=True):
        rows.update(right)
        predicted.update(answer)
        hits.update(right & answer)
        if not valid:
            invalid.update(right)
    lines = []
    for label in sorted(rows | predicted):
        hit, n, times = hits[label], rows[label], predicted[label]
        shares = {
            "precision": hit / times if times else 0.0,
            "recall": hit / n if n else 0.0,
            "f1": 2 * hit / (n + times),
        }
        lines.append({"label": label, "n": n, **shares, "predicted": times, "invalid": invalid[label]})
    return lines


def confusion_matrix(evaluation: ScoredAnswers) -> dict[str, Any]:
    """The labels that occur, and the cells above 0 as [label, predicted, rows]; predicted null: an invalid answer."""
    cells = _confusions(evaluation)
    labels = sorted({label for label, _ in cells} | {predicted for _, predicted in cells if predicted is not None})
    ordered = sorted(cells.items(), key=lambda cell: (cell[0][0], cell[0][1] or ""))
    return {"labels": labels, "cells": [[label, predicted, n] for (label, predicted), n in ordered]}


def confusion_pairs(evaluation: ScoredAnswers) -> list[dict[str, Any]]:
    """Labels taken for another one, the most frequent first: `label`, `predicted`, `n`, `of` (rows of the label)."""
    totals = Counter(str(row.label) for row in evaluation.rows)
    wrong = [(a, b, n) for (a, b), n in _confusions(evaluation).items() if b is not None and a != b]
    wrong.sort(key=lambda cell: (-cell[2], *cell[:2]))
    return [{"label": a, "predicted": b, "n": n, "of": totals[a]} for a, b, n in wrong[:MOST_PAIRS]]


def _confusions(evaluation: ScoredAnswers) -> Counter[tuple[str, str | None]]:
    return Counter(zip((str(row.label) for row in evaluation.rows), evaluation.predictions, strict=True))


def disagreements(evaluation: ScoredAnswers, other: ScoredAnswers) -> dict[str, Any]:
    """Rows where two systems differ by what rows are judged by, those that differ most first. `better` and `worse`:
    rows where the first is above or below the other; `rows`: ids with both scores."""
    metric = evaluation.row_metric
    mine, theirs = (
        {row.id: score for row, score in zip(side.rows, side.row_scores.get(metric, []), strict=False)}
        for side in (evaluation, other)
    )
    gaps = {i: score - theirs[i] for i, score in mine.items() if i in theirs}
    ordered = sorted((i for i, gap in gaps.items() if gap and not math.isnan(gap)), key=lambda i: -abs(gaps[i]))
    return {
        "metric": metric,
        "better": sum(gap > 0 for gap in gaps.values()),
        "worse": sum(gap < 0 for gap in gaps.values()),
        "rows": [{"id": i, "score": mine[i], "other": theirs[i]} for i in ordered[:LISTED]],
    }


def error_groups(evaluation: ScoredAnswers) -> list[dict[str, Any]]:
    """Wrong rows grouped by what their prompts say: TF-IDF of words, k-means, as many groups as separate best. Wrong is
    a score below 0.5 for right-or-wrong metrics, else the lowest quarter. Each group: `terms` that set it apart, `n`,
    `ids`, an `example` next to its centre. Empty for fewer than 10 wrong rows."""
    scores = np.array(evaluation.row_scores.get(evaluation.row_metric, []), dtype=np.float64)
    defined = scores[~np.isnan(scores)]
    binary = set(np.unique(defined)) <= {0.0, 1.0}
    limit = 0.5 if binary or not len(defined) else float(np.quantile(defined, 0.25))
    low = (scores < limit) | (False if binary else (scores == limit) & (scores < defined.max()))
    wrong = [row for row, is_low in zip(evaluation.rows, low, strict=bool(len(scores))) if is_low][:MOST_CLUSTERED]
    texts = [last_user_turn(row)[:5000] for row in wrong]
    if len(texts) < 10:
        return []
    from sklearn.cluster import KMeans
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.metrics import silhouette_score

    options: dict[str, Any] = {"max_features": 5000, "min_df": 2, "max_df": 0.5}
    vectorizer = TfidfVectorizer(stop_words="english", sublinear_tf=True, ngram_range=(1, 2), **options)
    try:
        table = vectorizer.fit_transform(texts)
    except ValueError:  # no word occurs in two of them
        return []
    best: tuple[float, Any] | None = None
    for k in range(2, min(8, len(texts) // 5) + 1):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there are fewer different texts than groups
            model = KMeans(k, n_init=3, random_state=0).fit(table)
        if len(set(model.labels_)) < k:
            break
        score = float(silhouette_score(table, model.labels_)) if k < len(texts) else 0.0
        best = (score, model) if best is None or score > best[0] else best
    if best is None:
        return []
    model, features_named, everywhere = (
        best[1],
        vectorizer.get_feature_names_out(),
        np.asarray(table.mean(axis=0)).ravel(),
    )
    groups = []
    for number in range(model.n_clusters):
        inside = np.flatnonzero(model.labels_ == number)
        if not len(inside):
            continue
        lift = model.cluster_centers_[number] - everywhere
        near = inside[int(np.argmax(table[inside] @ model.cluster_centers_[number]))]
        terms = [str(features_named[i]) for i in np.argsort(-lift)[:5] if lift[i] > 0]
        example = textwrap.shorten(texts[near], 300, placeholder=" …")
        ids = [wrong[i].id for i in inside[:LISTED]]
        groups.append({"terms": terms, "n": len(inside), "ids": ids, "example": example})
    return sorted(groups, key=lambda group: -int(group["n"]))
