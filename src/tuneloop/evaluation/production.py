"""Whether the test rows look like production, and what the score would be if they did."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tuneloop.core.errors import UserError
from tuneloop.core.stats import intervals as u
from tuneloop.core.stats.intervals import Array, Statistics, ratio
from tuneloop.evaluation.evaluate import ScoredAnswers
from tuneloop.records.evaluation import Against, Estimate
from tuneloop.records.rows import Row, last_user_turn

FEWEST = 20  # rows on either side
MOST = 20_000  # production rows that are read; beyond that the first decide
NOTICEABLE = 0.6  # area under the curve from which a difference is worth words
LARGEST_WEIGHT = 20.0  # of a row, relative to the mean

# Texts of one side and the other -> the AUC of a classifier, its score for each text, and more.
TellApart = Callable[[Sequence[str], Sequence[str]], tuple[Estimate, Array, Any]]


def against_production(evaluation: ScoredAnswers, production: Sequence[Row], tell_apart: TellApart) -> Against:
    """Compare the test rows' last user turns with those of production; labels too, where production has them.

    The odds of a classifier that tells the two apart are importance weights (Bickel et al. 2009): each test row counts
    as often as production has rows like it, at most 20 times the mean. The weighted score is right only if answers to
    like texts are alike, and says nothing of what the test set doesn't hold at all.

    Raises UserError: fewer than 20 rows on a side, or texts that are all empty.
    """
    ours = [last_user_turn(row)[:5000] for row in evaluation.rows]
    theirs = [last_user_turn(row)[:5000] for row in production[:MOST]]
    if min(len(ours), len(theirs)) < FEWEST:
        what = f"{len(ours)} test rows and {len(theirs)} production rows: at least {FEWEST} of each are needed"
        raise UserError(what, next_step="give more production rows")
    if not any(text.strip() for text in ours + theirs):
        raise UserError("The texts hold no words to compare", next_step="check the production file")
    auc, text_scores, _ = tell_apart(ours, theirs)
    odds, error = _odds(text_scores, len(ours)), (auc.value - auc.low) / 1.96
    # The chance of an AUC this far above 0.5 where nothing differs: a normal distribution's upper tail.
    p = 0.5 * math.erfc((auc.value - 0.5) / error / math.sqrt(2)) if error else float(auc.value <= 0.5)
    weights = np.minimum(odds / odds.mean(), LARGEST_WEIGHT)
    scores = np.array(evaluation.row_scores.get(evaluation.row_metric, [np.nan] * len(ours)))
    counted = ~np.isnan(scores)
    weights = np.where(counted, weights, 0.0)
    sums = np.stack([weights * np.where(counted, scores, 0.0), weights], axis=1)
    family = Statistics(sums, {"weighted": lambda sums: ratio(sums[:, 0], sums[:, 1], empty=np.nan)}, {})
    resamples, seed, clusters = evaluation.config.bootstrap, evaluation.seed, evaluation.clusters
    draws = u.bootstrap([family], len(scores), resamples=resamples, seed=seed, clusters=clusters)
    value = family.point_values()["weighted"]
    parts: dict[str, Any] = {
        "rows": len(theirs), "differs": p < 0.01 and auc.value > NOTICEABLE, "auc": auc.value, "p": p,
        "differs_in": _differences(evaluation.rows, ours, production[:MOST], theirs),
        "metric": evaluation.row_metric, "score": float(np.nanmean(scores)) if counted.any() else float("nan"),
        "reweighted": Estimate(value, *u.bootstrap_interval(value, draws["weighted"])),
        "effective_rows": float(weights.sum() ** 2 / (weights**2).sum()),
    }  # fmt: skip
    return Against(**parts)


def _odds(scores: Array, ours: int) -> Array:
    """Odds of the first rows to be of production, both sides weighing the same: Platt 1999, on the scores."""
    from sklearn.linear_model import LogisticRegression

    column = (scores / max(float(scores.std()), 1e-9))[:, None]
    model = LogisticRegression(class_weight="balanced").fit(column, np.arange(len(scores)) >= ours)
    return np.asarray(np.exp(model.decision_function(column[:ours])))


def _differences(rows: Sequence[Row], ours: list[str], production: Sequence[Row], theirs: list[str]) -> list[str]:
    from scipy.stats import chi2_contingency, ks_2samp

    sentences = []
    lengths = [[len(text.split()) for text in side] for side in (ours, theirs)]
    if ks_2samp(*lengths).pvalue < 0.01:
        a, b = (float(np.median(side)) for side in lengths)
        sentences.append(f"length (a median of {a:.0f} words against {b:.0f} in production)")
    labels = [Counter(row.label for row in side if row.label is not None) for side in (rows, production)]
    if labels[0] and labels[1]:
        names = sorted(labels[0] | labels[1])
        table = [[side[name] for name in names] for side in labels]
        if len(names) > 1 and chi2_contingency(table).pvalue < 0.01:
            shares = [{name: side[name] / side.total() for name in names} for side in labels]
            top = max(names, key=lambda name: abs(shares[0][name] - shares[1][name]))
            sentences.append(f"labels ({top}: {shares[0][top]:.0%} against {shares[1][top]:.0%} in production)")
    more, less = _words(ours, theirs)
    for kind, words in (("missing or rare in the test set", more), ("rarer in production", less)):
        if words:
            sentences.append(f"words {kind}: {', '.join(words)}")
    return sentences


def _words(ours: list[str], theirs: list[str]) -> tuple[list[str], list[str]]:
    from scipy.stats import norm
    from sklearn.feature_extraction.text import CountVectorizer

    counter: Any = CountVectorizer(binary=True, max_features=3000, min_df=3)
    try:
        table = counter.fit_transform(ours + theirs)
    except ValueError:
        return [], []
    a = np.asarray(table[: len(ours)].sum(axis=0)).ravel() / len(ours)
    b = np.asarray(table[len(ours) :].sum(axis=0)).ravel() / len(theirs)
    both = (a * len(ours) + b * len(theirs)) / (len(ours) + len(theirs))
    error = np.sqrt(np.maximum(both * (1 - both), 1e-12) * (1 / len(ours) + 1 / len(theirs)))
    z = (b - a) / error
    sure = np.array(u.holm([float(x) for x in 2 * norm.sf(np.abs(z))])) < 0.01
    names = counter.get_feature_names_out()
    more = [str(names[i]) for i in np.argsort(-z) if sure[i] and z[i] > 0][:5]
    less = [str(names[i]) for i in np.argsort(z) if sure[i] and z[i] < 0][:5]
    return more, less
