"""Labels, one or several a row: which an answer names, and accuracy, F1, precision and recall over them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from tuneloop.core.lazy import np
from tuneloop.core.stats.intervals import Array, Statistics, ratio
from tuneloop.records.metric import Metric
from tuneloop.records.rows import Row

LONGEST_LABEL = 60  # characters of an answer that may be a label without being called so
EQUAL_ACCURACY = ("micro_f1", "precision_micro", "recall_micro", "recall_weighted")  # with one label a row

NO_LABELS = "none"  # how prepared data and answers say that no label applies
_SEPARATORS = re.compile(r"\s*(?:,|;|\||\r?\n|\s\+\s|\band\b)\s*")

_metric = partial(Metric, needs="labels")
METRICS = (
    _metric("accuracy", "accuracy", "share", test="exact McNemar", headline="labels",
            meaning="share of rows with the right label"),
    _metric("macro_f1", "macro-F1", headline="labels", meaning="mean of the labels' F1: each label counts the same"),
    _metric("micro_f1", "micro-F1", test="exact McNemar", meaning="F1 of all rows: accuracy, with one label a row"),
    _metric("weighted_f1", "weighted F1", meaning="mean of the labels' F1, weighted by their rows"),
    _metric("balanced_accuracy", "balanced accuracy", meaning="mean of the labels' recall"),
    _metric("precision_macro", "macro precision", meaning="mean of the labels' precision"),
    _metric("recall_macro", "macro recall", meaning="mean of the labels' recall"),
    _metric("precision_micro", "micro precision", test="exact McNemar", meaning="accuracy, with one label a row"),
    _metric("recall_micro", "micro recall", test="exact McNemar", meaning="accuracy, with one label a row"),
    _metric("precision_weighted", "weighted precision", meaning="mean of the labels' precision, weighted by rows"),
    _metric("recall_weighted", "weighted recall", test="exact McNemar", meaning="accuracy, with one label a row"),
    # of several labels; of the others only `accuracy` is then compared by McNemar's test
    Metric("subset_accuracy", "subset accuracy", "share", test="exact McNemar", needs="several labels",
           meaning="share of rows with all labels right and none too many"),
    Metric("jaccard", "Jaccard index", needs="several labels", meaning="mean of labels in both over labels in either"),
)  # fmt: skip


def label_matcher(labels: Sequence[str], spellings: Mapping[str, str] | None = None) -> Callable[[str], str | None]:
    """Make the function that finds which label a free answer names; None for an answer outside the label set.

    The first line of the trimmed answer must equal a label: as it is, else regardless of case, else also without
    surrounding quotes and punctuation. Where a looser form fits two labels ("C" and "C#"), it decides nothing.
    `spellings`: further texts that mean a label (answer text -> label).
    """
    pairs = [(label, label) for label in labels] + list((spellings or {}).items())
    tables: list[dict[str, set[str]]] = []
    for form in _LABEL_FORMS:
        tables.append({})
        for text, label in pairs:
            tables[-1].setdefault(form(text), set()).add(label)

    def match(text: str) -> str | None:
        lines = text.strip().splitlines()
        # The whole trimmed text comes first, for labels of more than one line.
        for candidate in (text, lines[0] if lines else ""):
            for form, table in zip(_LABEL_FORMS, tables, strict=True):
                key = form(candidate)
                if key and len(table.get(key, ())) == 1:
                    return next(iter(table[key]))
        return None

    return match


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold().strip()


def _bare(text: str) -> str:
    """Without case and without the quotes, punctuation and spaces around it."""
    text = _folded(text)
    ends = {c for c in text if c.isspace() or c in "`´" or unicodedata.category(c).startswith("P")}
    return text.strip("".join(ends)) if ends else text


_LABEL_FORMS: tuple[Callable[[str], str], ...] = (str.strip, _folded, _bare)


def label_statistics(
    references: Sequence[str | None],
    predictions: Sequence[str | None],
    *,
    prefix: str = "",
    every: bool = True,
    allowed: Collection[str] = (),
) -> Statistics:
    """Accuracy, F1, precision and recall over labels.

    The same as scikit-learn's functions with `zero_division=0`: macro averages run over the labels that references or
    predictions name, balanced accuracy over those of the references; micro averages over everything, so they equal
    accuracy. A prediction of None (an answer outside the label set) is wrong for every metric and no further label.
    Rows whose reference is None don't count.

    `prefix`: put before metric names ("queue."). `every`: all metrics; else accuracy and macro-F1. `allowed`: labels
    that get columns whether they occur or not, so that two systems have the same columns.
    """
    from scipy import sparse

    counted = [pair for pair in zip(references, predictions, strict=True) if pair[0] is not None]
    names = sorted({label for pair in counted for label in pair if label is not None}.union(allowed))
    index = {label: i for i, label in enumerate(names)}
    k, n = len(names), len(references)
    places: list[tuple[int, int]] = []
    right: list[float] = []
    for i, (reference, prediction) in enumerate(zip(references, predictions, strict=True)):
        if reference is None:
            right.append(float("nan"))
            continue
        hit = prediction == reference
        right.append(float(hit))
        places += [(i, k + index[reference]), (i, 3 * k + 1)]  # support, counted
        if hit:
            places += [(i, index[reference]), (i, 3 * k)]  # hits of the label, right
        if prediction is not None:
            places.append((i, 2 * k + index[prediction]))  # predicted
    at = ([row for row, _ in places], [column for _, column in places])
    rows = sparse.csr_matrix((np.ones(len(places)), at), shape=(n, 3 * k + 2))
    functions = {name: f for name, f in _label_values(k).items() if every or name in ("accuracy", "macro_f1")}
    accuracy = f"{prefix}accuracy"
    same = {f"{prefix}{name}": accuracy for name in EQUAL_ACCURACY if name in functions}
    values = {f"{prefix}{name}": function for name, function in functions.items()}
    return Statistics(rows, values, {accuracy: right}, frozenset({accuracy}), layout=tuple(names), same=same)


Share = Callable[[Array, Array, Array], Array]  # of hits, support and predicted rows, for each label or summed


def f1(hits: Array, support: Array, predicted: Array) -> Array:
    """F1, 0 where a label is neither in references nor in predictions."""
    return ratio(2 * hits, support + predicted)


def precision(hits: Array, support: Array, predicted: Array) -> Array:
    """Precision, 0 where nothing is predicted."""
    return ratio(hits, predicted)


def recall(hits: Array, support: Array, predicted: Array) -> Array:
    """Recall, 0 where a label has no rows."""
    return ratio(hits, support)


def parts(sums: Array, k: int) -> tuple[Array, Array, Array]:
    """Hits, support and predicted rows of k labels, the first columns of the sums."""
    return sums[:, :k], sums[:, k : 2 * k], sums[:, 2 * k : 3 * k]


def macro(share: Share, k: int) -> Callable[[Array], Array]:
    """The mean over labels; one that is missing from a resample isn't averaged there."""

    def value(sums: Array) -> Array:
        hits, support, predicted = parts(sums, k)
        present = support + predicted > 0
        return ratio((share(hits, support, predicted) * present).sum(axis=1), present.sum(axis=1), empty=np.nan)

    return value


def weighted(share: Share, k: int) -> Callable[[Array], Array]:
    """The mean over labels, weighted by their rows."""

    def value(sums: Array) -> Array:
        hits, support, predicted = parts(sums, k)
        return ratio((share(hits, support, predicted) * support).sum(axis=1), support.sum(axis=1), empty=np.nan)

    return value


def _label_values(k: int) -> dict[str, Callable[[Array], Array]]:
    """Metric functions over sums laid out as hits (k), support (k), predicted (k), right, counted."""

    def accuracy(sums: Array) -> Array:
        return ratio(sums[:, 3 * k], sums[:, 3 * k + 1], empty=np.nan)

    def balanced(sums: Array) -> Array:
        support = sums[:, k : 2 * k]
        return ratio(recall(*parts(sums, k)).sum(axis=1), (support > 0).sum(axis=1), empty=np.nan)

    return {
        "accuracy": accuracy, "macro_f1": macro(f1, k), "micro_f1": accuracy, "weighted_f1": weighted(f1, k),
        "balanced_accuracy": balanced, "precision_macro": macro(precision, k), "recall_macro": macro(recall, k),
        "precision_micro": accuracy, "recall_micro": accuracy, "precision_weighted": weighted(precision, k),
        "recall_weighted": accuracy,
    }  # fmt: skip


def are_labels(references: Sequence[Sequence[str]]) -> bool:
    """Whether reference answers are labels in all but name: one each, short, on a line, each met twice on average."""
    texts = [row[0].strip() for row in references]
    short = all(0 < len(text) <= LONGEST_LABEL and "\n" not in text and text[0] not in "{[" for text in texts)
    return short and all(len(row) == 1 for row in references) and 2 * len(set(texts)) <= len(texts)


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
        for entry in joined:
            if entry in text:
                named_labels.add(entry)
                text = text.replace(entry, ",")
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
    return Statistics(table.tocsr(), _multilabel_values(k), scores, right_or_wrong, layout=tuple(names), same=same)


def _multilabel_values(k: int) -> dict[str, Callable[[Array], Array]]:
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
