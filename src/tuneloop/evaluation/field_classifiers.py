"""The cheap alternative where an answer has fields: a classifier for each field that holds labels.

Fields of other kinds (numbers, dates, texts) get the value that training rows have most often, as in the majority
baseline: a classifier can only choose among values that it has seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuneloop.evaluation.classical import (
    MINILM,
    TFIDF,
    AnswerFunction,
    Classical,
    Features,
    fit_labels,
    minilm_features,
    text_of,
    tfidf_features,
)
from tuneloop.evaluation.constants import LabelFields, label_fields_of
from tuneloop.records.completion import Completion
from tuneloop.records.rows import Row

Fit = Callable[[list[str]], tuple[Features, Any] | None]
FITS: dict[str, Fit] = {TFIDF: tfidf_features, MINILM: minilm_features}


@dataclass(frozen=True)
class FieldClassifier:
    """A trained classifier for each field."""

    classical: Classical  # its system writes whole answers
    note: str  # which fields it decides


def fields_that_are_labels(train: Sequence[Row], patterns: Mapping[str, str]) -> LabelFields | None:
    """The fields of training answers that hold several labels; None where there are none. `patterns`: see
    `evaluate.fields`."""
    fields = label_fields_of([row.answer for row in train], patterns)
    return fields if fields and any(len(labels) > 1 for labels in fields.labels.values()) else None


def field_classifier(name: str, train: Sequence[Row], fields: LabelFields) -> FieldClassifier | None:
    """Train logistic regression for each field that holds labels.

    Args:
        name: `TFIDF` or `MINILM`, the features that all fields share.
        train: the rows that `fields` was made of, in that order.

    Returns:
        None where the packaged MiniLM is not installed.
    """
    start = time.monotonic()
    fitted = FITS[name]([text_of(row) for row in train])
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
    return FieldClassifier(Classical(name, system, time.monotonic() - start), note)


def _answers(features: Features, models: Mapping[str, Any], fields: LabelFields) -> AnswerFunction:
    def answer(rows: Sequence[Row]) -> list[Completion]:
        if not rows:
            return []
        table = features([text_of(row) for row in rows])
        columns = {field: model.predict(table).tolist() for field, model in models.items()}
        return [
            Completion(fields.write({field: labels[place] for field, labels in columns.items()}))
            for place in range(len(rows))
        ]

    return answer
