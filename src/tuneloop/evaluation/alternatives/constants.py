"""Constant answers: the strongest answer that is the same for every row, chosen from training rows alone.

What has learned anything of the texts must beat it. Of each kind of answer there are several candidates (the most
frequent one, the median of numbers, a card with the usual value of each field, ...); the metric that decides, measured
on training rows, picks the strongest. A constant that some metric flatters is thereby a candidate that it must flatter.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tuneloop.core.foreign import parse_json
from tuneloop.core.units import counted
from tuneloop.evaluation.config import EvaluateConfig
from tuneloop.evaluation.deciding import deciding_of, field_values, labels_of_fields, training_examples
from tuneloop.evaluation.metrics import text as text_metrics
from tuneloop.evaluation.metrics.custom import compile_fields
from tuneloop.evaluation.metrics.declared import lower_is_better, title_of
from tuneloop.evaluation.metrics.kinds import are_structured, is_latin, is_number, parse
from tuneloop.evaluation.metrics.labels import NO_LABELS, label_lists
from tuneloop.evaluation.metrics.objects import (
    EMPTY,
    Path,
    canonical,
    fields_in,
    fields_of,
    label_fields,
    label_text,
    prose_in,
    read_answer,
    values_as_wholes,
)
from tuneloop.evaluation.metrics.structured import leaves
from tuneloop.evaluation.scoring import AnswerStats, Scoring, score_answers, score_own, score_pattern
from tuneloop.records.completion import Completion
from tuneloop.records.rows import Dataset, Row, references_of

MAJORITY = "majority class"  # the system's name
MEASURED, PROGRAMS = 500, 24  # training rows that candidates are measured on; programs are run on the fewer
_FREQUENT = 3  # whole answers that are candidates, the most frequent ones
_TYPICAL = 24  # texts that are measured as the most typical one of all, at first on as many rows
_SHOWN = 200  # characters of the answer in its note
_FINALISTS = 4  # of these
_PRODUCT = 40_000_000  # characters of a text times those of another, summed over what is measured: two seconds


@dataclass(frozen=True)
class Constant:
    """The strongest constant answer."""

    answer: Completion  # with the labels' log shares as scores, where rows have one label
    candidates: int
    note: str  # how it was chosen


def constant_for(dataset: Dataset, config: EvaluateConfig) -> Constant | None:
    """The strongest constant answer to a data set's task, by its training rows."""
    rows, metric = training_examples(dataset), deciding_of(dataset, config)
    return strongest_constant(rows, dataset.task, config, metric, dataset.manifest.labels)


def strongest_constant(
    rows: Sequence[Row], task: str, config: EvaluateConfig, metric: str, labels: Sequence[str] | None = None
) -> Constant | None:
    """The constant answer with the best value of a metric on training rows; None where nothing can be one.

    Args:
        rows: training rows that show the task.
        task: as for `evaluate`.
        metric: the one that decides (`deciding_metric`).
        labels: the allowed ones.
    """
    if not rows or (task == "classification" and all(row.label is None for row in rows)):
        return None
    candidates = list(dict.fromkeys(candidate_answers(rows, task, config, metric)))
    if not candidates:
        return None
    measured = rows[: PROGRAMS if metric == "pass@1" else MEASURED]
    best, value = candidates[0], math.nan
    if len(candidates) > 1:
        values = [value_of(text, measured, task, config, metric, labels) for text in candidates]
        better = [-math.inf if math.isnan(v) else -v if lower_is_better(metric) else v for v in values]
        index = better.index(max(better))  # of equally good ones the first: the more usual
        best, value = candidates[index], values[index]
    note = ""
    if len(candidates) > 1 and task != "classification":
        on = counted(len(measured), "training row")
        known = "" if math.isnan(value) else f" ({value:.3f})"
        line = " ".join(best.split())
        short = line if len(line) <= _SHOWN else f"{line[: _SHOWN - 1]}…"
        note = f"Always {short}: the strongest of {len(candidates)} by {title_of(metric)} on {on}{known}."
    return Constant(_completion(best, rows, task), len(candidates), note)


def _completion(text: str, rows: Sequence[Row], task: str) -> Completion:
    if task != "classification":
        return Completion(text)
    counts = Counter(row.label for row in rows if row.label is not None)
    shares = {label: math.log(n / counts.total()) for label, n in counts.items()}
    return Completion(text, finish="choice", label_scores=None if label_lists(rows) else shares)


def value_of(
    text: str, rows: Sequence[Row], task: str, config: EvaluateConfig, metric: str, labels: Sequence[str] | None = None
) -> float:
    """A metric of the same answer to each row; NaN where it can't be measured."""
    references = [references_of(row) for row in rows]
    if metric in ("rougeL", "rouge1", "rouge2", "rougeLsum"):
        return statistics.fmean(text_metrics.rouge(references, [text] * len(rows), [metric])[metric])
    if metric == "exact_match":
        return statistics.fmean(text_metrics.exact_match(row, text) for row in references)
    if metric == "chrf":
        return text_metrics.chrf_statistics(references, [text] * len(rows))[0].point_values()["chrf"]
    if task != "classification" and are_structured(references) and not config.fields:
        values = values_as_wholes(references, text)
        if metric in values:
            return values[metric]
    scorers = {name: path for name, path in config.scorers.items() if name == metric}
    runs = config.run_code if metric == "pass@1" else False
    settings = config.model_copy(update={"run_code": runs, "embedding": metric == "embedding", "scorers": scorers})
    scoring = Scoring(list(rows), [Completion(text)] * len(rows), settings, AnswerStats())
    scoring.valid = [True] * len(rows)
    if (field := metric.rpartition(".")[0]) in config.fields:
        score_pattern(scoring, field, compile_fields(config.fields)[field])
    elif scorers:
        score_own(scoring)
    else:
        score_answers(scoring, task, labels)
    found = (family.point_values()[metric] for family in scoring.statistics if metric in family.values)
    return next(found, math.nan)


def candidate_answers(rows: Sequence[Row], task: str, config: EvaluateConfig, metric: str) -> Iterator[str]:
    """Answers that may be the strongest constant one, the most usual first."""
    if task == "classification":
        yield from _label_candidates(rows)
        return
    answers = [row.answer for row in rows]
    structured_rows = config.structured is not False and are_structured([[text] for text in answers])
    if structured_rows:
        yield from card_candidates(answers)
    if (fields := label_fields_of(answers, config.fields)) is not None:
        yield fields.usual
    counts = Counter(answers)
    frequent = counts.most_common(_FREQUENT)
    if metric == "pass@1":  # a program of one row says nothing of the others
        frequent = [(text, count) for text, count in frequent if count > 1] or frequent[:1]
    yield from (text for text, _ in frequent)
    if structured_rows:  # "no call" in words, next to calls in JSON
        yield from (text for text, _ in counts.most_common() if read_answer(text) is None)
    elif all(map(is_number, answers)):
        yield sorted(answers, key=lambda text: float(text.strip().replace(",", "")))[(len(answers) - 1) // 2]
    elif metric != "pass@1" and 2 * len(counts) > len(answers):  # few repeat: a typical one says more
        yield from _typical(rows, config, metric)


def _label_candidates(rows: Sequence[Row]) -> Iterator[str]:
    """Single labels by their rows: of each metric of labels the most frequent is the best. Of several labels a row, the
    most frequent set, and the set with the best micro-F1: of sets of a size it has the most frequent labels."""
    lists = label_lists(rows)
    if lists is None:
        counts = Counter(row.label for row in rows if row.label is not None)
        yield from sorted(counts, key=lambda label: (-counts[label], label))[: 1 if len(counts) > 40 else None]
        return
    sets = Counter(lists)
    yield _joined(min(sets, key=lambda labels: (-sets[labels], sorted(labels))))
    uses = Counter(label for labels in lists for label in labels)
    order = sorted(uses, key=lambda label: (-uses[label], label))
    best, hits = (0.0, 0), 0
    for size, label in enumerate(order, 1):
        hits += uses[label]
        best = max(best, (2 * hits / (size * len(lists) + uses.total()), -size))
    yield _joined(order[: -best[1]])


def _joined(labels: Sequence[str] | frozenset[str]) -> str:
    return ", ".join(sorted(labels)) or NO_LABELS


def _typical(rows: Sequence[Row], config: EvaluateConfig, metric: str) -> Iterator[str]:
    """Texts that are most like the others: of some, spread evenly over the rows, those with the best mean over as many
    rows. What is measured is bounded by the length of the texts."""
    texts = [row.answer for row in rows if row.answer.strip()]
    if not texts:
        return
    squared = statistics.fmean(len(text) for text in texts) ** 2 + 1
    size = max(2, min(_TYPICAL, len(texts), math.isqrt(int(_PRODUCT / squared))))
    some = [texts[i * len(texts) // size] for i in range(size)]
    others = [rows[i * len(rows) // size] for i in range(size)]
    by = metric if metric in ("rougeL", "chrf") else "rougeL" if is_latin(texts) else "chrf"
    values = {text: value_of(text, others, "generation", config, by) for text in some}
    yield from sorted(values, key=lambda text: -values[text])[:_FINALISTS]


# --- cards: answers in JSON ---------------------------------------------------------------------


def card_candidates(texts: Sequence[str]) -> Iterator[str]:
    """Cards with every usual field: with the most frequent value of each, with the most frequent one that says
    something, with the median of numbers, and the one with the best F1 of filled fields. `texts`: some are JSON."""
    values = [parse(text) for text in texts if read_answer(text) is not None]
    if not values:
        return
    usual = usual_value(values)
    yield _written(usual)
    yield _written(usual_value(values, filled=True))
    yield _written(usual_value(values, median=True))
    yield _written(_best_by_f1(usual, values, prose_in([[text] for text in texts[:MEASURED]])))


def usual_value(values: Sequence[Any], *, filled: bool = False, median: bool = False) -> Any:
    """The usual value of some: an object with every key that at least half of the objects have, each with its usual
    value, where most are objects; else the most frequent value, which may be an empty one. `filled`: the most frequent
    one that says something, where there is one; `median`: of numbers."""
    full = [value for value in values if not _is_empty(value)]
    if filled and full:
        values = full
    objects = [value for value in values if isinstance(value, dict)]
    empty = sum(not value for value in objects)
    if 2 * len(objects) > len(values) and 2 * empty < len(objects):
        keys = Counter(key for value in objects for key in value)
        frequent = (key for key, n in keys.items() if 2 * n >= len(objects))
        inner = {key: [value[key] for value in objects if key in value] for key in frequent}
        return {key: usual_value(column, filled=filled, median=median) for key, column in inner.items()}
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if median and 2 * len(numbers) > len(values):
        return statistics.median_low(numbers)
    counts = Counter(map(canonical, values))
    most = max(counts.values())
    return next(value for value in values if counts[canonical(value)] == most)


def _is_empty(value: Any) -> bool:
    return value is None or value in ({}, []) or (isinstance(value, str) and not value.strip())


def _written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _best_by_f1(usual: Any, values: Sequence[Any], prose: set[Path]) -> Any:
    """The card with the best F1 of filled fields over some: its parts by how often they are right, as many as pay; the
    other usual fields are empty. A part is the most frequent filled value of a field, or an item of an array."""
    if not isinstance(usual, dict | list):
        return usual
    parts = Counter[tuple[Path, bool, str]]()  # path, whether it is an item, the value as text
    empties: dict[Path, Counter[str]] = {}
    total = 0
    for value in values:
        for path, leaf in fields_of(value):
            if _is_empty(leaf):
                empties.setdefault(path, Counter())[_written(leaf)] += 1
            elif path not in prose:
                items = isinstance(leaf, list)
                total += _filled_leaves(leaf)
                parts.update({(path, items, _written(item)) for item in (leaf if items else [leaf])})
    card = _emptied(usual, empties, prose)
    chosen: list[tuple[Path, bool, str]] = []
    taken, best = set[Path](), (0.0, 0)
    hits = size = 0
    for part, n in sorted(parts.items(), key=lambda item: (-item[1], item[0][2])):
        path, is_item, text = part
        if not is_item and path in taken:
            continue
        taken.add(path)
        chosen.append(part)
        pairs = _filled_leaves(parse_json(text))
        hits, size = hits + n * pairs, size + pairs
        best = max(best, (2 * hits / (size * len(values) + total), -len(chosen)))
        if len(chosen) >= 100:
            break
    for path, is_item, text in chosen[: -best[1]]:
        card = _with_value(card, path, parse_json(text), is_item)
    return card


def _filled_leaves(value: Any) -> int:
    return sum(text not in EMPTY for _, text in leaves(value))


def _emptied(value: Any, empties: Mapping[Path, Counter[str]], prose: set[Path], path: Path = ()) -> Any:
    """A card with its fields empty, as the answers write it; prose stays as it is."""
    if isinstance(value, dict) and value:
        return {key: _emptied(inner, empties, prose, (*path, key)) for key, inner in value.items()}
    if path in prose or value == {}:
        return value
    if path in empties:
        return parse_json(empties[path].most_common(1)[0][0])
    return [] if isinstance(value, list) else "" if isinstance(value, str) else None


def _with_value(card: Any, path: Path, value: Any, is_item: bool) -> Any:
    """A card with a value at a path, or one more item there; as it was where something else is in the way."""
    if not path:
        return [*(card if isinstance(card, list) else []), value] if is_item else value
    if not isinstance(card, dict | None):
        return card
    inner = (card or {}).get(path[0])
    return {**(card or {}), path[0]: _with_value(inner, path[1:], value, is_item)}


# --- answers written from the labels of their fields ---------------------------------------------


@dataclass(frozen=True)
class LabelFields:
    """The fields of answers that hold labels, and how an answer is written from others of their values."""

    values: Mapping[str, Sequence[str | None]]  # of each answer, by field; None: it lacks the field
    usual: str  # an answer with the most frequent value of each field
    write: Callable[[Mapping[str, str]], str]  # that answer with these values in place of its own

    @property
    def labels(self) -> dict[str, set[str]]:
        """The labels of each field."""
        return {name: {value for value in values if value is not None} for name, values in self.values.items()}


def label_fields_of(answers: Sequence[str], patterns: Mapping[str, str]) -> LabelFields | None:
    """The fields of answers that hold labels (`labels_of_fields`), with an answer of the form of the given ones that
    has the most frequent value of each; of answers in JSON, of every field. None where no field holds labels."""
    if not patterns and are_structured([[text] for text in answers]):
        values = [parse(text) for text in answers if read_answer(text) is not None]
        usual = _written(usual_value(values))
        return LabelFields(label_fields(answers), usual, partial(with_labels, usual, label_values(answers)))
    counts = labels_of_fields(answers, patterns)
    if not counts:
        return None
    most = {name: min(values, key=lambda value: (-values[value], value)) for name, values in counts.items()}
    found, compiled = field_values(answers, patterns), compile_fields(patterns)
    hits = [sum(found[name][i] == value for name, value in most.items()) for i in range(len(answers))]

    def write(labels: Mapping[str, str]) -> str:
        text = answers[hits.index(max(hits))]
        for name, value in {**most, **labels}.items():
            if name in compiled:
                match = compiled[name].search(text)
                text = f"{text[: match.start(1)]}{value}{text[match.end(1) :]}" if match and match[1] else text
        return text

    return LabelFields({name: found[name] for name in counts}, write({}), write)


def label_values(texts: Sequence[str]) -> dict[Path, dict[str, Any]]:
    """The values of fields that are labels, by path and by their names as labels."""
    read = [row for text in texts if (row := read_answer(text))]
    paths = [field.path for field in fields_in(read, {}) if field.kind == "labels"]
    return {p: {label_text(row.fields[p]): row.fields[p] for row in read if p in row.fields} for p in paths}


def with_labels(text: str, values: Mapping[Path, Mapping[str, Any]], labels: Mapping[str, str]) -> str:
    """An answer in JSON with other labels in some of its fields; a field that it lacks is not added.

    Args:
        values: of the fields, as `label_values` gives them.
        labels: by dotted path.
    """
    answer = parse(text)
    for path, by_name in values.items():
        if (name := ".".join(path)) not in labels:
            continue
        value = by_name[labels[name]]
        if not path:
            answer = value
            continue
        node = answer
        for key in path[:-1]:
            node = node.get(key, {})
        if path[-1] in node:
            node[path[-1]] = value
    return json.dumps(answer, ensure_ascii=False, separators=(",", ":"))
