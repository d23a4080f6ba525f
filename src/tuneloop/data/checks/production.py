"""What users send in production, from logs and exports of any shape, and the check that compares it with a data set."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.data.checks.drift import MOST, Drift, compare_with
from tuneloop.data.checks.features import sample
from tuneloop.data.checks.overview import CheckRows, Finding, Overview, question_of
from tuneloop.data.clean.pii import hidden
from tuneloop.data.clean.repair import repair_text
from tuneloop.data.config import PrepareConfig, RepairConfig
from tuneloop.data.formats import TEXT_NAMES, FormatGuess, Parsed, detect, parse_record
from tuneloop.data.formats.turns import ROLES
from tuneloop.data.sources.parse import SourceRecord
from tuneloop.data.sources.read import read_records
from tuneloop.data.split import TRAIN
from tuneloop.records.dataset import DatasetManifest
from tuneloop.records.rows import Message, Row

SAMPLE = 2000  # records looked at to find the format
PROMPT_NAMES = ("prompt", "instruction", "input", "user", "request", *TEXT_NAMES)
DEPTH = 4  # of objects in which turns and texts are looked for: logs wrap requests


def as_prepared(manifest: DatasetManifest, sources: Sequence[str]) -> PrepareConfig:
    """How production records are read for a prepared data set: by its columns and templates, where they have these."""
    form = manifest.format
    columns = form.columns if form and form.name == "text_label" else {}
    settings = {key: manifest.config.get(key) for key in ("input", "output", "task", "format", "text", "label")}
    settings |= {key: columns[key] for key in ("text", "label") if columns.get(key)}
    settings = {key: value for key, value in settings.items() if value is not None}
    return PrepareConfig.model_validate({**settings, "sources": list(sources)})


def read_production(sources: Sequence[str], config: PrepareConfig | None = None) -> tuple[list[Row], int]:
    """Production records as rows (the user's turns, an empty answer, maybe a label), and how many held no such turn.

    Records are read as training data are. Of one that is no training example because nothing is answered, the turns or
    the text column are taken. Raises UserError: a source is missing or empty, or no record holds a user's question.
    """
    config = config or PrepareConfig(sources=list(sources))
    records = iter(read_records(sources))
    sample = list(itertools.islice(records, SAMPLE))
    guess = None
    with contextlib.suppress(UserError):  # of no known format
        guess = detect([item.value for item in sample if isinstance(item, SourceRecord)], config)
    rows, without = [], 0
    for item in itertools.chain(sample, records):
        texts, label = user_turns(item.value, guess, config) if isinstance(item, SourceRecord) else ([], None)
        if texts:
            name = hashlib.blake2b("\n".join(texts).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
            messages: list[Message] = [{"role": "user", "content": text} for text in texts]
            messages.append({"role": "assistant", "content": ""})
            rows.append(Row(name, messages, label, meta={"source": item.source, "line": item.line}))
        else:
            without += 1
    if not rows:
        step = "give records with messages, or with a column named text or prompt"
        raise UserError(f"No record of {without:,} holds a user's question", where=", ".join(sources), next_step=step)
    return rows, without


def user_turns(
    record: dict[str, Any], guess: FormatGuess | None, config: PrepareConfig
) -> tuple[list[str], str | None]:
    """What the user says in a record, empty if nothing is found, and the label of a classified text."""
    if guess is not None:
        parsed = parse_record(record, guess, config)
        if isinstance(parsed, Parsed) and (
            texts := [m["content"] for m in parsed.messages if m["role"] == "user" and m["content"].strip()]
        ):
            return texts, parsed.label
    text = record.get(config.text) if config.text else None
    if isinstance(text, str) and text.strip():
        return [text], None
    return next(_turns(record, DEPTH), None) or next(_text_columns(record, DEPTH), []), None


def _turns(value: Any, depth: int) -> Iterator[list[str]]:
    if isinstance(value, list) and value and all(isinstance(turn, Mapping) for turn in value):
        speakers = (str(turn.get("role", turn.get("from", turn.get("speaker", "")))).casefold() for turn in value)
        users = [turn for turn, name in zip(value, speakers, strict=True) if ROLES.get(name) == "user"]
        texts = [text for turn in users if (text := _text_of(turn))]
        if texts:
            yield texts
    if depth and isinstance(value, Mapping):
        for item in value.values():
            yield from _turns(item, depth - 1)


def _text_of(turn: Mapping[str, Any]) -> str:
    content = next((turn[key] for key in ("content", "value", "text") if key in turn), "")
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return content if isinstance(content, str) and content.strip() else ""


def _text_columns(record: Any, depth: int) -> Iterator[list[str]]:
    if not isinstance(record, Mapping):
        return
    texts = {str(key).casefold(): value for key, value in record.items() if isinstance(value, str) and value.strip()}
    for name in PROMPT_NAMES:
        if name in texts:
            yield [texts[name]]
    if len(texts) == 1:
        yield list(texts.values())
    if depth:
        for value in record.values():
            yield from _text_columns(value, depth - 1)


EXAMPLE_LENGTH = 200  # characters of a production text that are shown


def compare_with_production(overview: Overview, against: Sequence[Row]) -> Finding:
    """Production against the task's own training rows, both repaired and without personal data, as in training."""
    rows = [overview.row(i) for i in overview.some(overview.rows(TRAIN), 4_000).tolist()]
    questions = [question_of(row) for row in against]
    places = sample(questions, 4 * MOST, overview.seed)
    texts = [_comparable(questions[i]) for i in places]
    labels_a = labels_b = None
    if overview.task == "classification":
        column, names = overview.columns["label"], overview.names["label"]
        labels_a = [names[column[i]] for i in overview.rows(TRAIN).tolist() if column[i] >= 0]
        labels_b = [row.label for row in against if row.label is not None]
    training_texts = [_comparable(question_of(row)) for row in rows if "mix" not in row.meta]
    drift = compare_with(training_texts, texts, labels_a, labels_b, seed=overview.seed)
    examples = []
    for number in drift.examples:
        row, text = against[places[number]], textwrap.shorten(texts[number], EXAMPLE_LENGTH, placeholder=" …")
        place = {"source": row.meta.get("source", ""), "line": row.meta.get("line", 0)}
        examples.append({**place, "id": row.id, "text": text})
    remedy = "Add training rows of the kind that the examples show, and words such as those named."
    return Finding(drift.level, drift_message(drift), len(against), remedy, CheckRows((), examples))


def _comparable(text: str) -> str:
    return hidden(repair_text(text, RepairConfig())[0])


def drift_message(drift: Drift) -> str:
    """A drift in one sentence."""
    auc = drift.auc
    if auc.low != auc.low:
        return f"too few production texts to tell ({drift.rows[1]} distinct ones)"
    parts = [
        f"a classifier tells production from train with AUC {auc.value:.2f} ({auc.low:.2f} to {auc.high:.2f}; 0.5: "
        f"alike)",
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
