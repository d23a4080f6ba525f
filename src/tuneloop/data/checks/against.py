"""The check of production texts against a data set (`tuneloop data check --against`)."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from tuneloop.data.checks.drift import MOST, Drift, compare_with
from tuneloop.data.checks.features import sample
from tuneloop.data.checks.overview import Found, Overview, asked_of
from tuneloop.data.checks.registry import Finding
from tuneloop.data.config import RepairConfig
from tuneloop.data.pii import hidden
from tuneloop.data.repair import repair_text
from tuneloop.data.split import TRAIN
from tuneloop.records.rows import Row

EXAMPLE_LENGTH = 200  # characters of a production text that are shown


def compare_with_production(overview: Overview, against: Sequence[Row]) -> Finding:
    """Production against the task's own training rows, both repaired and without personal data: in training they were taken out."""
    rows = [overview.row(i) for i in overview.some(overview.rows(TRAIN), 4_000).tolist()]
    asked = [asked_of(row) for row in against]
    chosen = sample(asked, 4 * MOST, overview.seed)
    texts = [_comparable(asked[i]) for i in chosen]
    labels_a = labels_b = None
    if overview.task == "classification":
        column, names = overview.columns["label"], overview.names["label"]
        labels_a = [names[column[i]] for i in overview.rows(TRAIN).tolist() if column[i] >= 0]
        labels_b = [row.label for row in against if row.label is not None]
    known = [_comparable(asked_of(row)) for row in rows if "mix" not in row.meta]
    drift = compare_with(known, texts, labels_a, labels_b, seed=overview.seed)
    examples = [
        {
            "source": row.meta.get("source", ""), "line": row.meta.get("line", 0), "id": row.id,
            "text": textwrap.shorten(texts[place], EXAMPLE_LENGTH, placeholder=" …"),
        }
        for place, row in ((place, against[chosen[place]]) for place in drift.examples)
    ]  # fmt: skip
    remedy = "Add training rows of the kind that the examples show, and words such as those named."
    return Finding(drift.level, drift_message(drift), len(against), remedy, Found((), examples))


def _comparable(text: str) -> str:
    """A text repaired, and with placeholders for personal data."""
    return hidden(repair_text(text, RepairConfig())[0])


def drift_message(drift: Drift) -> str:
    """A drift in one sentence."""
    auc = drift.auc
    if auc.low != auc.low:
        return f"too few production texts to tell ({drift.rows[1]} distinct ones)"
    parts = [
        f"a classifier tells production from train with AUC {auc.value:.2f} ({auc.low:.2f} to {auc.high:.2f}; 0.5: alike)",
        f"texts are {drift.length_ratio:.1f} times as long",
        f"{drift.new_words:.0%} of the words are new to train (of train's own {drift.usual_new_words:.0%})",
    ]
    if drift.label_distance is not None:
        parts.append(f"{drift.label_distance:.0%} of the labels would have to change")
    if drift.level != "ok" and drift.words_b:
        parts.append(f"production has more of {', '.join(map(repr, drift.words_b))}")
    if drift.level != "ok" and drift.words_a:
        parts.append(f"train has more of {', '.join(map(repr, drift.words_a))}")
    return "; ".join(parts)
