"""Answers that are JSON objects or arrays: is the whole of one right, and each of its fields.

A field is a leaf by its dotted path (`address.city`); an array is one field, whose items are compared as a set. Of
objects in an array each is paired with the one most like it, and their fields are scored as `items.name`.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from tuneloop.core.lazy import np
from tuneloop.core.stats.intervals import Array, Statistics, mean_statistics, ratio
from tuneloop.evaluation.metrics.kinds import is_latin, parse
from tuneloop.evaluation.metrics.labels import label_statistics
from tuneloop.evaluation.metrics.structured import as_text, leaves
from tuneloop.evaluation.metrics.text import LONGEST_SCORED, chrf_statistics, exact_match, rouge, token_f1
from tuneloop.records.metric import Metric

MOST_FIELDS = 40  # with a line
PROSE_WORDS = 6  # mean words of a field's values from which on it is prose, if more than half of them differ
LETTERS_A_WORD = 6  # where a script writes no spaces
MOST_PAIRS = 10_000  # items of two arrays that are compared with each other; those of longer ones are paired by place

_metric = partial(Metric, needs="JSON")
METRICS = (
    _metric("filled_f1", "F1 of filled fields", headline="JSON",
            meaning="F1 of (path, value) pairs over all rows, without empty values (null, \"\", [], {}) and prose"),
    _metric("object_accuracy", "whole answers right", "share", test="exact McNemar", headline="JSON",
            meaning="share of answers with every field right, none missing or invented; prose need only be there"),
    _metric("field_accuracy", "fields right", headline="JSON",
            meaning="mean share of a reference's fields (prose left out) that are right, empty ones too"),
    _metric("missing_fields", "answers that lack a field", "share", "lower", "exact McNemar",
            gained="answers without missing fields",
            meaning="share of answers that lack a field of the reference; one that is no JSON lacks all"),
    _metric("invented_fields", "answers with an invented field", "share", "lower", "exact McNemar",
            gained="answers without invented fields",
            meaning="share of answers with a field that the reference does not have"),
    _metric("item_f1", "F1 of items", meaning="F1 of an array's items over all rows, whatever their order"),
    _metric("item_precision", "precision of items", meaning="share of the answers' items that the references have"),
    _metric("item_recall", "recall of items", meaning="share of the references' items that are found"),
)  # fmt: skip

DEEPEST = 100  # objects and arrays in one another; an answer of more is taken for none

Path = tuple[str, ...]  # keys from the outside inwards


def fields_of(value: Any, prefix: Path = ()) -> Iterator[tuple[Path, Any]]:
    """A value's fields: path and value of each leaf; arrays and empty objects are leaves."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from fields_of(inner, (*prefix, str(key)))
    else:
        yield prefix, value


def canonical(value: Any, deepest: int = DEEPEST) -> Any:
    """A form that is equal for equal values: 3 and 3.0, arrays in any order. Raises ValueError: too deeply nested."""
    if deepest < 0:
        raise ValueError("nested too deeply")
    if isinstance(value, str):
        return "text", unicodedata.normalize("NFC", value).strip()
    if isinstance(value, dict):
        return "object", frozenset((key, canonical(inner, deepest - 1)) for key, inner in value.items())
    if isinstance(value, list):
        return "array", frozenset(Counter(canonical(inner, deepest - 1) for inner in value).items())
    return type(value).__name__ if isinstance(value, bool | None) else "number", value


@dataclass(frozen=True)
class ReadAnswer:
    """An answer as it was read."""

    fields: Mapping[Path, Any]  # path and value of each leaf; `forms`: the same values in canonical form
    forms: Mapping[Path, Any]
    paths: frozenset[Path]  # of all that it has, inside arrays too


def read_answer(text: str) -> ReadAnswer | None:
    """An answer in JSON; None where it is none, or nested too deeply."""
    try:
        value = parse(text)
        fields = dict(fields_of(value))
        forms = {path: canonical(value) for path, value in fields.items()}
        return ReadAnswer(fields, forms, frozenset(_paths(value)))
    except (ValueError, RecursionError):
        return None


def _paths(value: Any, prefix: Path = ()) -> Iterator[Path]:
    yield prefix
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _paths(inner, (*prefix, str(key)))
    elif isinstance(value, list):
        for inner in value:
            if isinstance(inner, dict):
                yield from _paths(inner, (*prefix, "[]"))


Kind = Literal["exact", "labels", "prose", "items"]


@dataclass(frozen=True)
class Field:
    """A field with its own line in results."""

    path: Path  # keys from the outside inwards; `name` joins them with dots
    kind: Kind  # what it is measured by: `exact`, `labels` (short texts that repeat), `prose`, `items` (arrays)

    @property
    def name(self) -> str:
        """The dotted path."""
        return ".".join(self.path)

    def metric(self, name: str) -> str:
        """The name of one of its metrics; of an answer that is an array as a whole, the metric's name alone."""
        return ".".join((*self.path, name))


def fields_in(references: Sequence[ReadAnswer | None], labels: Mapping[str, Sequence[str]]) -> list[Field]:
    """The fields of references, with what each is measured by; it follows from references, never from answers. An array
    in most of them: items. Texts of six words or more on average, more than half of them different: prose. Texts and
    booleans with few different values, or in `labels` (those of the training split): labels. Else equality."""
    values: dict[Path, list[Any]] = {}
    for read in references:
        for path, value in read.fields.items() if read else ():
            if value != {}:  # an object without keys is no field
                values.setdefault(path, []).append(value)
    enough = 2 if len(references) > 4 else 1
    often = sorted((path for path in values if len(values[path]) >= enough), key=lambda path: -len(values[path]))
    listed = {".".join(path): path for path in often[:MOST_FIELDS]}  # of keys with dots in them, only one has the name
    names = ((path, ".".join(path)) for path in values)
    return [Field(path, _kind(values[path], name in labels)) for path, name in names if listed.get(name) == path]


def _kind(values: Sequence[Any], are_labels: bool) -> Kind:
    filled = [value for value in values if value is not None]
    if 2 * sum(isinstance(value, list) for value in filled) > len(filled):
        return "items"
    texts = [value for value in filled if isinstance(value, str)]
    if is_prose(texts) and 2 * len(texts) > len(filled):
        return "prose"
    plain = bool(filled) and all(isinstance(value, str | bool) for value in filled)
    return "labels" if plain and (are_labels or 3 * len(set(map(label_text, filled))) <= len(filled)) else "exact"


def is_prose(texts: Sequence[str]) -> bool:
    """Whether texts are so long and so different that equality says little: see `PROSE_WORDS`."""
    lengths = [max(len(t.split()), 0 if t.isascii() else len(t) / LETTERS_A_WORD) for t in texts]
    return bool(texts) and sum(lengths) >= PROSE_WORDS * len(texts) and 2 * len(set(texts)) > len(texts)


def label_text(value: Any) -> str:
    """A label as text: `billing`, `true`, `null`."""
    return value.strip() if isinstance(value, str) else json.dumps(value)


@dataclass(frozen=True)
class Objects:
    """Answers in JSON, scored."""

    statistics: list[Statistics]  # a family for the answers as wholes, and one or more for each field
    fields: list[Field]  # those with a line; `others`: how many have none
    others: int


def object_statistics(
    references: Sequence[Sequence[str]],
    answers: Sequence[str],
    labels: Mapping[str, Sequence[str]],
    without: Collection[str] = (),
) -> Objects:
    """Whole answers, missing and invented fields, F1 of filled ones, and each field by what fits it (`fields_in`). Of
    several references the one counts that shares the most fields with the answer. `labels`: fields that are labels in
    the training split, with these; `without`: fields that are scored otherwise."""
    read_answers = [read_answer(text) for text in answers]
    golds = _golds(references)
    fields, prose = _with_prose(golds, labels)
    gold = [_nearest(row, read) for row, read in zip(golds, read_answers, strict=True)]
    wholes = _whole_statistics(references, answers, gold, read_answers, prose)
    names, collected_statistics = {*without, *(field.name for field in fields)}, list[Statistics]()
    for field in fields:
        if field.name not in without:
            collected_statistics += _field_statistics(field, gold, read_answers, labels, names)
    others = len({path for row in gold if row for path in row.fields}) - len(fields)
    return Objects([*wholes, *collected_statistics], fields, others)


def _whole_statistics(
    references: Sequence[Sequence[str]],
    answers: Sequence[str],
    gold: Sequence[ReadAnswer | None],
    read_answers: Sequence[ReadAnswer | None],
    prose: Collection[Path],
) -> list[Statistics]:
    rows = [
        _scores(right, read, prose) if right else _of_text(row, text)
        for right, read, row, text in zip(gold, read_answers, references, answers, strict=True)
    ]
    scores = {name: [row[name] for row in rows] for name in _of_text((), "")}
    family = mean_statistics(scores, right_or_wrong=["object_accuracy", "missing_fields", "invented_fields"])
    pairs = [[filled_pairs(read, prose) for read in sides] for sides in (gold, read_answers)]
    counts = [((a & b).total(), a.total(), b.total()) for a, b in zip(*pairs, strict=True)]
    if not any(right for _, right, _ in counts):  # nothing is filled in any reference: there is nothing to find
        return [family]
    shares = [2 * hits / (right + named) if right or named else 1.0 for hits, right, named in counts]
    functions: dict[str, Callable[[Array], Array]] = {
        "filled_f1": lambda sums: ratio(2 * sums[:, 0], sums[:, 1] + sums[:, 2], empty=np.nan)
    }
    return [family, Statistics(np.array(counts, dtype=np.float64), functions, {"filled_f1": shares})]


def values_as_wholes(references: Sequence[Sequence[str]], text: str) -> dict[str, float]:
    """The metrics of whole answers, without those of single fields, of one answer to all of some rows."""
    golds, read = _golds(references), read_answer(text)
    gold = [_nearest(row, read) for row in golds]
    n, prose = len(references), _with_prose(golds, {})[1]
    families = _whole_statistics(references, [text] * n, gold, [read] * n, prose)
    return {name: value for family in families for name, value in family.point_values().items()}


def prose_in(references: Sequence[Sequence[str]]) -> set[Path]:
    """The fields of references that are prose, where some are not: they are no pairs of F1, and never equal."""
    return _with_prose(_golds(references), {})[1]


EMPTY = frozenset(map(as_text, (None, ""))) | {"[]", "{}"}  # values that say nothing, as `leaves` writes them


def filled_pairs(read: ReadAnswer | None, prose: Collection[Path]) -> Counter[tuple[str, str]]:
    """The (path, value) pairs of an answer that say something, as often as each occurs: without empty values (null, "",
    [], {}) and prose. Items of an array share a path; of objects in it, each field is a pair. None of no JSON."""
    return Counter(
        pair
        for path, value in (read.fields.items() if read else ())
        if path not in prose
        for pair in leaves(value, ".".join(path))
        if pair[1] not in EMPTY
    )


def right_as_a_whole(references: Sequence[Sequence[str]], position: int, answer: str) -> bool:
    """Whether an answer to one of some rows is right, as `object_accuracy` counts it."""
    golds, read = _golds(references), read_answer(answer)
    _, prose = _with_prose(golds, {})
    gold = _nearest(golds[position], read)
    return (_scores(gold, read, prose) if gold else _of_text(references[position], answer))["object_accuracy"] == 1.0


def _golds(references: Sequence[Sequence[str]]) -> list[list[ReadAnswer]]:
    return [[read for text in row if (read := read_answer(text))] for row in references]


def _with_prose(
    golds: Sequence[Sequence[ReadAnswer]], labels: Mapping[str, Sequence[str]]
) -> tuple[list[Field], set[Path]]:
    fields = fields_in([row[0] if row else None for row in golds], labels)
    prose = {field.path for field in fields if field.kind == "prose"}
    return fields, prose if len(prose) < len(fields) else set()  # where all are prose, nothing else says what is right


def _nearest(golds: Sequence[ReadAnswer], answer: ReadAnswer | None) -> ReadAnswer | None:
    def shared(gold: ReadAnswer) -> int:
        return sum(_is_right(path, gold, answer, False) for path in gold.fields)

    return max(golds, key=shared, default=None)


def _of_text(references: Sequence[str], answer: str) -> dict[str, float]:
    """The same for a row whose reference is no JSON: there are no fields, and the text must be equal."""
    right = exact_match(references, answer)
    return {"object_accuracy": right, "field_accuracy": math.nan, "missing_fields": 0.0, "invented_fields": 0.0}


def _scores(gold: ReadAnswer, answer: ReadAnswer | None, prose: Collection[Path]) -> dict[str, float]:
    hits = {path: _is_right(path, gold, answer, path in prose) for path in gold.fields}
    counted = [hit for path, hit in hits.items() if path not in prose]
    missing = answer is None or not gold.paths <= _with_arrays(answer, gold)
    invented = answer is not None and not answer.paths <= _with_arrays(gold, answer)
    return {
        "object_accuracy": float(all(hits.values()) and not missing and not invented),
        "field_accuracy": sum(counted) / len(counted) if counted else math.nan,
        "missing_fields": float(missing),
        "invented_fields": float(invented),
    }


def _is_right(path: Path, gold: ReadAnswer, answer: ReadAnswer | None, prose: bool) -> bool:
    if answer is None or path not in answer.fields:
        return False
    right, value = gold.fields[path], answer.fields[path]
    if prose and isinstance(right, str) and right.strip():
        return isinstance(value, str) and bool(value.strip())
    return bool(gold.forms[path] == answer.forms[path])


def _with_arrays(first: ReadAnswer, other: ReadAnswer) -> frozenset[Path]:
    """The paths of one, and those of the other inside arrays that are empty in one: another item is no field."""
    empty = [
        path for path, value in first.fields.items() if isinstance(value, list) and (*path, "[]") not in first.paths
    ]
    return first.paths | {p for p in other.paths for path in empty if p[: len(path) + 1] == (*path, "[]")}


_NO_FIELD = object()  # no row counts where the reference lacks the field


def _field_statistics(
    field: Field,
    gold: Sequence[ReadAnswer | None],
    read_answers: Sequence[ReadAnswer | None],
    labels: Mapping[str, Sequence[str]],
    names: Collection[str],
) -> Iterator[Statistics]:
    golds, leaves = (
        [row.fields.get(field.path, _NO_FIELD) if row else _NO_FIELD for row in rows] for rows in (gold, read_answers)
    )
    if field.kind == "prose":
        yield _prose(field, golds, leaves)
        return
    pairs = list(zip(golds, leaves, strict=True))
    hits = [v is not _NO_FIELD and canonical(g) == canonical(v) for g, v in pairs]
    right = [math.nan if g is _NO_FIELD else float(hit) for g, hit in zip(golds, hits, strict=True)]
    exact = field.metric("exact_match")
    if field.kind == "labels":
        references, predictions = [None if g is _NO_FIELD else label_text(g) for g in golds], []
        vocabulary = {label for label in references if label is not None} | set(labels.get(field.name, ()))
        for (g, value), hit in zip(pairs, right, strict=True):
            # An answer names none where it only looks like the right one ("true" for true).
            label = None if _NO_FIELD in (g, value) or isinstance(value, dict | list) else label_text(value)
            other = label if label in vocabulary and label != label_text(g) else None
            predictions.append(label_text(g) if hit == 1 and label is not None else other)
        family = label_statistics(references, predictions, prefix=f"{field.name}.", every=False, allowed=vocabulary)
        accuracy = field.metric("accuracy")
        values = {**family.values, exact: family.values[accuracy]}
        scores, same = {**family.row_scores, exact: family.row_scores[accuracy]}, {**family.same, exact: accuracy}
        right_or_wrong = family.right_or_wrong | {exact}
        yield replace(family, values=values, row_scores=scores, right_or_wrong=right_or_wrong, same=same)
        return
    yield mean_statistics({exact: right}, right_or_wrong=[exact])
    if field.kind == "items":
        yield from _items(field, golds, leaves, names)


def _prose(field: Field, golds: Sequence[Any], values: Sequence[Any]) -> Statistics:
    rows = [i for i, value in enumerate(golds) if isinstance(value, str)]
    right = [[golds[i]] for i in rows]
    texts = [values[i][:LONGEST_SCORED] if isinstance(values[i], str) else "" for i in rows]
    measures = {"token_f1": [token_f1(r, t) for r, t in zip(right, texts, strict=True)]}
    if is_latin([row[0] for row in right]):
        measures |= rouge(right, texts, ["rougeL"])
    else:  # mean of sentence chrF
        measures["chrf"] = chrf_statistics(right, texts)[0].row_scores["chrf"]
    scores = {field.metric(name): [math.nan] * len(golds) for name in measures}
    for name, entry in measures.items():
        for i, score in zip(rows, entry, strict=True):
            scores[field.metric(name)][i] = score
    return mean_statistics(scores)


def _items(field: Field, golds: Sequence[Any], values: Sequence[Any], names: Collection[str]) -> Iterator[Statistics]:
    rows = np.zeros((len(golds), 3))  # items of both, of the answer, of the reference
    scores: list[float] = []
    parts: dict[Path, list[tuple[float, int]]] = {}
    for i, (gold, value) in enumerate(zip(golds, values, strict=True)):
        right, items = _as_items(gold), _as_items(value)
        if gold is _NO_FIELD:
            scores.append(math.nan)
            continue
        hits = (Counter(map(canonical, right)) & Counter(map(canonical, items))).total()
        rows[i] = hits, len(items), len(right)
        scores.append(2 * hits / (len(items) + len(right)) if items or right else 1.0)
        for path, hit, total in _parts(right, items):
            parts.setdefault(path, [(0.0, 0)] * len(golds))[i] = (hit, total)
    f1, precision, recall = (field.metric(name) for name in ("item_f1", "item_precision", "item_recall"))
    functions: dict[str, Callable[[Array], Array]] = {
        f1: lambda sums: ratio(2 * sums[:, 0], sums[:, 1] + sums[:, 2], empty=np.nan),
        precision: lambda sums: ratio(sums[:, 0], sums[:, 1], empty=np.nan),
        recall: lambda sums: ratio(sums[:, 0], sums[:, 2], empty=np.nan),
    }
    yield Statistics(rows, functions, {f1: scores})
    for path in sorted(parts, key=lambda path: -sum(total for _, total in parts[path]))[:MOST_FIELDS]:
        if ".".join((*field.path, *path)) in names:
            continue
        name = ".".join((*field.path, *path, "exact_match"))
        shares = [hit / total if total else math.nan for hit, total in parts[path]]
        yield Statistics(np.array(parts[path]), {name: lambda s: ratio(s[:, 0], s[:, 1], empty=np.nan)}, {name: shares})


def _as_items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None or value is _NO_FIELD else [value]


def _parts(right: Sequence[Any], items: Sequence[Any]) -> Iterator[tuple[Path, float, int]]:
    """For each field of the reference's items: how often its partner has the same value, and how many items have it.
    Partners are those that make the number of equal fields the largest (linear assignment)."""

    def equal(first: Mapping[Path, Any], other: Mapping[Path, Any]) -> list[Path]:
        return [path for path in first if path in other and canonical(first[path]) == canonical(other[path])]

    golds = [dict(fields_of(item)) for item in right if isinstance(item, dict) and item]
    others = [dict(fields_of(item)) for item in items if isinstance(item, dict)]
    partner = {i: i for i in range(min(len(golds), len(others)))}
    if golds and others and len(golds) * len(others) <= MOST_PAIRS:
        from scipy.optimize import linear_sum_assignment

        alike = np.array([[len(equal(item, other)) for other in others] for item in golds])
        partner = dict(zip(*(side.tolist() for side in linear_sum_assignment(alike, maximize=True)), strict=True))
    hits, totals = Counter[Path](), Counter[Path]()
    for i, item in enumerate(golds):
        totals.update(item.keys())
        hits.update(equal(item, others[partner[i]]) if i in partner else ())
    yield from ((path, float(hits[path]), total) for path, total in totals.items())


def label_fields(texts: Sequence[str]) -> dict[str, list[str | None]]:
    """The values of fields that are labels, by their dotted paths; None where an answer lacks the field."""
    read = [read_answer(text) for text in texts]
    return {
        field.name: [label_text(row.fields[field.path]) if row and field.path in row.fields else None for row in read]
        for field in fields_in(read, {})
        if field.kind == "labels"
    }


def differing_fields(reference: str, answer: str, most: int = 3) -> str:
    """In which fields an answer differs from its reference, in words; empty where they are equal or no JSON."""
    gold, read = read_answer(reference), read_answer(answer)
    if gold is None or read is None:
        return "" if gold is None else "no valid JSON"
    differences = []
    for path, value in gold.fields.items():
        name = ".".join(path) or "the list"
        if path not in read.paths:
            differences.append(f"{name} is missing")
        elif not _is_right(path, gold, read, False):
            other = read.fields.get(path, {})
            if isinstance(value, list) and isinstance(other, list):
                differences += [f"{name} lacks {_brief(item)}" for item in _only_in(value, other)]
                differences += [f"{name} has also {_brief(item)}" for item in _only_in(other, value)]
            else:
                differences.append(f"{name} is {_brief(other)}, not {_brief(value)}")
    differences += [f"{'.'.join(path)} is invented" for path in read.fields if path not in gold.paths]
    more = len(differences) - most
    return "; ".join(differences[:most]) + (f"; and {more} more" if more > 0 else "")


def _only_in(first: Sequence[Any], other: Sequence[Any]) -> Iterator[Any]:
    left = Counter(map(canonical, other))
    for item in first:
        if left[key := canonical(item)] > 0:
            left[key] -= 1
        else:
            yield item


def _brief(value: Any, longest: int = 60) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
