"""Rows with several labels each: reading them out of an answer, and their metrics."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from tuneloop.core.lazy import np
from tuneloop.core.stats.intervals import Array, Statistics, ratio
from tuneloop.evaluation.metrics.labels import Share, f1, label_matcher, macro, parts, precision, recall, weighted
from tuneloop.records.metric import Metric
from tuneloop.records.rows import Row

NO_LABELS = "none"  # how prepared data and answers say that no label applies
_SEPARATORS = re.compile(r"\s*(?:,|;|\||\r?\n|\s\+\s|\band\b)\s*")
# Of the metrics that rows with one label have too, only `accuracy` is compared by McNemar's test here.
METRICS = (
    Metric("subset_accuracy", "subset accuracy", "share", test="exact McNemar", needs="several labels",
           meaning="share of rows with all labels right and none too many"),
    Metric("jaccard", "Jaccard index", needs="several labels", meaning="mean of labels in both over labels in either"),
)  # fmt: skip


@dataclass(frozen=True)
class LabelSet:
    """The labels that an answer names, how many of its parts are no label, and whether it says that none applies."""

    labels: frozenset[str]
    outside: int = 0
    none: bool = False

    def __str__(self) -> str:
        return NO_LABELS if self.none else ", ".join(sorted(self.labels))


def label_lists(rows: Sequence[Row]) -> list[frozenset[str]] | None:
    """The label sets of rows that have several labels each (`meta["labels"]`), None where rows have one. "none" is no
    label: such a row has an empty set, as in scikit-learn's indicator matrices."""
    sets = []
    for row in rows:
        labels = row.meta.get("labels")
        if not isinstance(labels, list | tuple) or not all(isinstance(label, str) for label in labels):
            return None
        sets.append(frozenset(labels) - {NO_LABELS})
    return sets or None


def vocabulary(rows: Sequence[Row], allowed: Collection[str] | None = None) -> list[str]:
    """The single labels: those of the rows, and those that the data set's joined labels ("a, b") consist of."""
    labels = {label for row in rows for label in row.meta.get("labels", ())}
    for joined in allowed or ():
        if joined not in labels:
            labels |= {part for part in map(str.strip, joined.split(",")) if part}
    return sorted(labels - {NO_LABELS})


def label_reader(labels: Sequence[str]) -> Callable[[str], LabelSet]:
    """Make the function that reads labels out of an answer: a JSON-like list, or labels with commas or line ends
    between. Each part must equal a label as `label_matcher` takes it; labels that hold a separator are found too."""
    match = label_matcher(labels)
    # Longest first: "a, b" is one label before it is two.
    joined = sorted((label for label in labels if _SEPARATORS.search(label)), key=len, reverse=True)

    def read(text: str) -> LabelSet:
        text = text.strip().strip("[]{}()").strip()
        named_labels, none = set[str](), False
        for each in joined:
            if each in text:
                named_labels.add(each)
                text = text.replace(each, ",")
        outside: set[str] = set()
        for part in _SEPARATORS.split(text):
            part = re.sub(r"^(?:[-*•]|\d+[.)])\s+", "", part)
            if not part.strip(" \t'\"`.;:"):
                continue
            label = match(part)
            if label is not None:
                named_labels.add(label)
            elif part.strip(" \t'\"`.;:").casefold() == NO_LABELS:
                none = True
            else:
                outside.add(part.casefold())
        return LabelSet(frozenset(named_labels), len(outside), none)

    return read


def multilabel_statistics(
    references: Sequence[frozenset[str]], predictions: Sequence[LabelSet], allowed: Collection[str] = ()
) -> Statistics:
    """Subset accuracy, Jaccard index, and precision, recall and F1 in micro, macro and weighted averages.

    The same as scikit-learn on indicator matrices with `zero_division=0`: macro averages run over the labels that
    references or answers name; a part of an answer that is no label is a false positive of the micro
    averages. `accuracy` is `subset_accuracy`: all labels right and none too many. The row score of `micro_f1` is the
    F1 of that row's labels. `allowed` labels get columns whether they occur or not.
    """
    from scipy import sparse

    names = sorted(frozenset(allowed).union(*references, *(answer.labels for answer in predictions)))
    index = {label: i for i, label in enumerate(names)}
    k, n = len(names), len(references)
    table = sparse.lil_matrix((n, 3 * k + 4))  # hits, support, predicted of each label; then the sums below
    exact, jaccard, row_f1 = [], [], []
    for i, (right, answer) in enumerate(zip(references, predictions, strict=True)):
        for part, labels in enumerate((right & answer.labels, right, answer.labels)):
            for label in labels:
                table[i, part * k + index[label]] = 1
        hits, total = len(right & answer.labels), len(answer.labels) + answer.outside
        empty = float(answer.none)  # both without labels: right only where the answer says so
        exact.append(float(right == answer.labels and not answer.outside) if right or total else empty)
        either = len(right) + total - hits
        jaccard.append(hits / either if either else empty)
        row_f1.append(2 * hits / (len(right) + total) if right or total else empty)
        table[i, 3 * k :] = [exact[-1], jaccard[-1], 1.0, float(answer.outside)]
    scores, same = {"accuracy": exact, "jaccard": jaccard, "micro_f1": row_f1}, {"subset_accuracy": "accuracy"}
    right_or_wrong = frozenset({"accuracy"})
    return Statistics(table.tocsr(), _values(k), scores, right_or_wrong, layout=tuple(names), same=same)


def _values(k: int) -> dict[str, Callable[[Array], Array]]:
    """Metric functions over sums laid out as hits (k), support (k), predicted (k), exact, jaccard, rows, outside."""

    def micro(share: Share) -> Callable[[Array], Array]:
        def value(sums: Array) -> Array:
            hits, support, predicted = parts(sums, k)
            return share(hits.sum(axis=1), support.sum(axis=1), predicted.sum(axis=1) + sums[:, 3 * k + 3])

        return value

    def mean(column: int) -> Callable[[Array], Array]:
        return lambda sums: ratio(sums[:, 3 * k + column], sums[:, 3 * k + 2], empty=np.nan)

    return {
        "accuracy": mean(0), "macro_f1": macro(f1, k), "micro_f1": micro(f1), "weighted_f1": weighted(f1, k),
        "precision_macro": macro(precision, k), "recall_macro": macro(recall, k),
        "precision_micro": micro(precision), "recall_micro": micro(recall),
        "precision_weighted": weighted(precision, k), "recall_weighted": weighted(recall, k),
        "subset_accuracy": mean(0), "jaccard": mean(1),
    }  # fmt: skip
