"""Cheap alternatives to a tuned model: logistic regression on TF-IDF or packaged embeddings.

They train in seconds on any machine; where they tie the tuned model, they are the better choice.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.lazy import np
from tuneloop.core.ui import progress, say
from tuneloop.core.units import counted
from tuneloop.evaluation.alternatives.constants import LabelFields, label_fields_of
from tuneloop.evaluation.metrics.labels import NO_LABELS, label_lists
from tuneloop.models import minilm_embedder, text_of_turns
from tuneloop.models.files import MINILM as MINILM_PACKAGE
from tuneloop.records.completion import Completion
from tuneloop.records.rows import Row

TFIDF = "tf-idf + logistic regression"
MINILM = "MiniLM + logistic regression"
CLASSICAL = (TFIDF, MINILM)
MINILM_MISSING = f"{MINILM} was left out: the package {MINILM_PACKAGE}, transformers or torch is not installed."

_C = 10.0  # inverse strength of the regularisation: of rows of unit length scikit-learn's default of 1 underfits
# A system: takes the prompts of rows, gives an answer to each, in order.
AnswerFunction = Callable[[Sequence[Row]], list[Completion]]


@dataclass(frozen=True)
class Classical:
    """A trained cheap alternative."""

    name: str
    system: AnswerFunction  # its `label_scores` are log probabilities
    seconds: float  # of its training
    note: str = ""  # what a reader has to know


Features = Callable[[list[str]], Any]  # texts to a table, a row each


def trained_classifiers(
    train: Sequence[Row], task: str, patterns: Mapping[str, str], *, minilm: bool
) -> Iterator[Classical]:
    """The cheap alternatives that fit a task, each as soon as it is trained: to the label of a row, or, of answers with
    fields, to each field that holds labels; none where nothing is to be chosen among.

    `train`: rows that show the task; `patterns`: see `evaluate.fields`; `minilm`: also on MiniLM's vectors.
    """
    fields = None if task == "classification" else fields_that_are_labels(train, patterns)
    if task != "classification" and fields is None:
        return
    if fields is None and len({row.label for row in train}) < 2:
        say("baselines warn: only one label in the training split: no classical baseline")
        return
    names = CLASSICAL if minilm else (TFIDF,)
    for number, name in enumerate(names):
        progress("cheap alternatives", number, len(names))
        fitted = field_classifier(name, train, fields) if fields else label_classifier(name, train)
        if fitted is None:
            say(f"baselines {MINILM_MISSING}")
        else:
            yield fitted
    progress("cheap alternatives", len(names), len(names))


def label_classifier(name: str, train: Sequence[Row]) -> Classical | None:
    """Logistic regression of labels on the last user turn, by TF-IDF or by MiniLM's vectors; None where that is not
    installed. Raises UserError: fewer than two labels in `train`."""
    start = time.monotonic()
    rows = [row for row in train if row.label is not None]
    labels = len({row.label for row in rows})
    if labels < 2:
        message = f"A classifier needs at least two labels, the training split has {labels}"
        next_step = "check the label column, or set baselines.classical=false"
        raise UserError(message, where=f"{counted(len(train), 'training row')}", next_step=next_step)
    fitted = FEATURES[name]([text_of(row) for row in rows])
    return fitted and Classical(name, _regression(*fitted, rows), time.monotonic() - start)


def tfidf_features(texts: list[str]) -> tuple[Features, Any]:
    """TF-IDF of word 1-2-grams and character 3-5-grams, learned from these texts, and its table of them. Raises
    UserError: they hold no words."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import FeatureUnion

    options: dict[str, Any] = {"sublinear_tf": True, "dtype": np.float32, "min_df": 2 if len(texts) > 2000 else 1}
    options["max_features"] = 50_000
    word_features = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", **options)  # noqa: S106 - no password
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), **options)
    features = FeatureUnion([("words", word_features), ("characters", characters)])
    try:
        table = features.fit_transform(texts)
    except ValueError:  # scikit-learn's "empty vocabulary"
        message = "The training texts hold no words to learn from"
        next_step = "check the text column, or set baselines.classical=false"
        raise UserError(message, where=f"{counted(len(texts), 'training row')}", next_step=next_step) from None
    return features.transform, table


def minilm_features(texts: list[str]) -> tuple[Features, Any] | None:
    """all-MiniLM-L6-v2's embeddings, and its table of these texts; None where it is not installed."""
    embed = minilm_embedder()
    return embed and (embed, embed(texts))


FEATURES: dict[str, Callable[[list[str]], tuple[Features, Any] | None]] = {
    TFIDF: tfidf_features, MINILM: minilm_features,
}  # fmt: skip


def text_of(row: Row) -> str:
    """What a classifier reads of a row: its last user turn."""
    return text_of_turns(row.prompt)


def _regression(features: Features, table: Any, rows: Sequence[Row]) -> AnswerFunction:
    lists = label_lists(rows)
    if lists is not None:
        return _regressions(features, table, lists)
    model = fit_labels(table, [str(row.label) for row in rows])
    names = [str(name) for name in model.classes_]

    def answer(rows: Sequence[Row]) -> list[Completion]:
        table = model.predict_log_proba(features([text_of(row) for row in rows])) if rows else []
        scores = (dict(zip(names, map(float, row), strict=True)) for row in table)
        return [Completion(max(s, key=s.__getitem__), finish="choice", label_scores=s) for s in scores]

    return answer


def fit_labels(table: Any, labels: Sequence[str]) -> Any:
    """Scikit-learn's logistic regression of labels, of which there are at least two, on a table of features."""
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The number of unique classes")  # two rows of each of many labels
        return LogisticRegression(C=_C, max_iter=200, tol=1e-3).fit(table, labels)


def fit_labels_apart(table: Any, lists: Sequence[frozenset[str]]) -> dict[str, Any]:
    """For rows with several labels: a regression for each label; None of one that all rows have."""
    from sklearn.linear_model import LogisticRegression

    models: dict[str, LogisticRegression | None] = {}
    for name in sorted(frozenset().union(*lists)):
        holds = [name in labels for labels in lists]
        model = LogisticRegression(C=_C, solver="liblinear", tol=1e-3)
        models[name] = None if all(holds) else model.fit(table, holds)  # all: nothing to tell apart
    return models


def _regressions(features: Features, table: Any, lists: Sequence[frozenset[str]]) -> AnswerFunction:
    """Rows with several labels: one regression a label, which applies from a probability of one half on."""
    by_name = fit_labels_apart(table, lists)
    names, models = list(by_name), list(by_name.values())

    def answer(rows: Sequence[Row]) -> list[Completion]:
        if not rows:
            return []
        table_of_rows = features([text_of(row) for row in rows])
        ones = np.ones(len(rows))
        chances = np.stack([model.predict_proba(table_of_rows)[:, 1] if model else ones for model in models], axis=1)
        likely = [[name for name, chance in zip(names, row, strict=True) if chance >= 0.5] for row in chances]
        if frozenset() not in lists:  # some label applies to every row: the likeliest, where none is likely
            likely = [labels or [names[int(np.argmax(row))]] for labels, row in zip(likely, chances, strict=True)]
        return [Completion(", ".join(labels) or NO_LABELS) for labels in likely]

    return answer


# --- answers with fields ---------------------------------------------------------------------------


def fields_that_are_labels(train: Sequence[Row], patterns: Mapping[str, str]) -> LabelFields | None:
    """The fields of training answers that hold several labels; None where there are none. `patterns`: see
    `evaluate.fields`."""
    fields = label_fields_of([row.answer for row in train], patterns)
    return fields if fields and any(len(labels) > 1 for labels in fields.labels.values()) else None


def field_classifier(name: str, train: Sequence[Row], fields: LabelFields) -> Classical | None:
    """Logistic regression for each field that holds labels, by features that all of them share; `train`: the rows that
    `fields` was made of. Fields of other kinds (numbers, dates, texts) get their most frequent value: a classifier can
    only choose among values that it has seen."""
    start = time.monotonic()
    fitted = FEATURES[name]([text_of(row) for row in train])
    if fitted is None:
        return None
    features, table = fitted
    models = {}
    for field, values in fields.values.items():
        places = [i for i, value in enumerate(values) if value is not None]
        if len(fields.labels[field]) > 1:
            models[field] = fit_labels(table[places], [str(values[i]) for i in places])
    system = _answers(features, models, fields)
    note = f"A classifier each for {', '.join(models)}; other fields have their most frequent value."
    return Classical(name, system, time.monotonic() - start, note)


def _answers(features: Features, models: Mapping[str, Any], fields: LabelFields) -> AnswerFunction:
    def answer(rows: Sequence[Row]) -> list[Completion]:
        if not rows:
            return []
        table = features([text_of(row) for row in rows])
        columns = {field: model.predict(table).tolist() for field, model in models.items()}
        return [
            Completion(fields.write({field: labels[index] for field, labels in columns.items()}))
            for index in range(len(rows))
        ]

    return answer
