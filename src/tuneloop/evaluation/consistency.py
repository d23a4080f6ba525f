"""Whether a question in other words gets the same answer.

Each row of a sample has several wordings: as it is, and with small rewordings.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import write_jsonl
from tuneloop.core.stats import intervals as u
from tuneloop.core.stats.intervals import mean_statistics
from tuneloop.core.ui import busy, say
from tuneloop.core.units import counted, verb
from tuneloop.evaluation.config import EvaluateConfig
from tuneloop.evaluation.evaluate import cluster_keys, sample_rows
from tuneloop.evaluation.metrics.custom import compile_fields, extract
from tuneloop.evaluation.metrics.kinds import are_structured, parse
from tuneloop.evaluation.metrics.labels import label_lists, label_matcher, label_reader, vocabulary
from tuneloop.evaluation.metrics.structured import leaves
from tuneloop.evaluation.metrics.text import LONGEST_SCORED, token_f1
from tuneloop.evaluation.rewording import rewordings
from tuneloop.records.completion import Completion
from tuneloop.records.evaluation import Estimate
from tuneloop.records.record import Part
from tuneloop.records.rows import Dataset, Message, Row, last_user_turn, references_of
from tuneloop.records.side_effects import AskedWay, Consistency, ContradictedRow

AS_IT_IS = "as it is"
FEWEST_WAYS = 2
MOST_EXAMPLES = 5
ANSWERS = "consistency.jsonl"


class AskedAgain(Part):
    """A line of `consistency.jsonl`: a row in one of its wordings, and the answer.

    Args:
        id: of the row; `kind`: of the wording.
        messages: the turns before the answer.
    """

    id: str
    kind: str
    messages: list[Message]
    answer: str


@dataclass(frozen=True)
class Way:
    """One way to put a row's question."""

    kind: str
    row: Row  # with its question in these words


def ways_of(rows: Sequence[Row], ways: int, *, labels: Sequence[str] = ()) -> list[list[Way]]:
    """The ways to put each row's question, the first as it is, the others rewordings of the last user turn, of kinds
    that differ; fewer where a text allows fewer. `labels`: names that no rewording touches."""
    all_ways = []
    for row in rows:
        turns = [i for i, turn in enumerate(row.prompt) if turn["role"] == "user" and turn.get("content")]
        text = str(row.prompt[turns[-1]]["content"]) if turns else ""
        row_ways = [Way(AS_IT_IS, row)]
        for kind, new in rewordings(text, row.id, labels)[: ways - 1]:
            messages = [message.copy() for message in row.messages]
            messages[turns[-1]]["content"] = new
            row_ways.append(Way(kind, replace(row, messages=messages)))
        all_ways.append(row_ways)
    return all_ways


Reader = Callable[[str], object]  # what an answer is compared by


def _reader(rows: Sequence[Row], task: str, labels: Sequence[str] | None, config: EvaluateConfig) -> tuple[Reader, str]:
    """How answers are read, and whether they are `labels`, `fields` of texts, `json` or `texts`."""
    if task == "classification" and label_lists(rows) is not None:
        read = label_reader(vocabulary(rows, labels))

        def label_set(text: str) -> object:
            reply = read(text)
            outside = reply.outside or not (reply.labels or reply.none)
            return _folded(text) if outside else reply.labels

        return label_set, "labels"
    if task == "classification":
        names = sorted(set(labels or ()) | {str(row.label) for row in rows})
        match = label_matcher(names, {row.answer: row.label for row in rows if row.label is not None})
        return lambda text: _folded(text) if (label := match(text)) is None else ("label", label), "labels"
    references = [references_of(row) for row in rows]
    if config.structured is True or (config.structured == "auto" and are_structured(references)):
        return _json_fields, "json"
    patterns = list(compile_fields(config.fields).values())

    def field_values(text: str) -> object:
        fields = [extract(pattern, text[:LONGEST_SCORED]) for pattern in patterns]
        # Answers without a field do not agree in what they lack.
        return _folded(text) if None in fields else tuple(map(_folded, map(str, fields)))

    return (field_values, "fields") if patterns else (_folded, "texts")


def _json_fields(text: str) -> object:
    """JSON is compared by its fields, their order and case aside."""
    try:
        return frozenset(Counter((path, _folded(leaf)) for path, leaf in leaves(parse(text))).items())
    except (ValueError, RecursionError):
        return _folded(text)


def _folded(text: str) -> str:
    """Case and white space aside: rewordings change these in a text that an answer may quote."""
    return " ".join(text.casefold().split())


def consistency_part(
    dataset: Dataset,
    rows: Sequence[Row],
    ask: Callable[[Sequence[Row]], Sequence[Completion]],
    folder: Path,
    config: EvaluateConfig,
    *,
    name: str,
    seconds: float = 0.0,
    seed: int,
) -> dict[str, Consistency]:
    """The part `consistency` of `eval.json`, and every answer in `consistency.jsonl`; nothing where the setting is 0.

    What prevents it is reported, and the part is left out: the evaluation around it is done already.

    Args:
        rows: those that were evaluated; a sample of them is reworded.
        ask: the system's answers to rows.
        folder: for the file.
        name: of the system; `seconds`: that its answers to all `rows` took.
        seed: of the sample and of resamples.
    """
    labels, task = dataset.manifest.labels, dataset.task
    if not config.consistency:
        return {}
    every = ways_of(sample_rows(rows, config.consistency_rows, seed=seed), config.consistency, labels=labels or ())
    ways = [group for group in every if len(group) >= FEWEST_WAYS]
    if not ways:
        say("warn: consistency was not measured: programs and very long texts are not reworded")
        return {}
    questions = [way for group in ways for way in group]
    minutes = seconds / len(rows) * len(questions) / 60
    say(
        f"consistency {counted(len(ways), 'row')} {verb(len(ways), 'is', 'are')} put in several ways: "
        f"{counted(len(questions), 'question')}{f', about {minutes:.1f} minutes' if minutes >= 0.05 else ''}"
    )
    began = time.monotonic()
    try:
        answers = ask([way.row for way in questions])
    except UserError as error:
        say(f"warn: consistency was not measured: {error.what} ({error.where})")
        return {}
    took = time.monotonic() - began
    with busy("comparing answers"):
        part = measure_consistency(ways, answers, name=name, task=task, labels=labels, config=config, seed=seed)
        part = replace(part, seconds=round(took, 3))
        lines = [
            AskedAgain(id=way.row.id, kind=way.kind, messages=way.row.prompt, answer=answer.text)
            for way, answer in zip(questions, answers, strict=True)
        ]
        write_jsonl(folder / ANSWERS, lines)
    for line in part.words:
        say(f"evaluate  {line}")
    return {"consistency": part}


def measure_consistency(
    ways: Sequence[Sequence[Way]],
    answers: Sequence[Completion],
    *,
    name: str = "tuned",
    task: str,
    labels: Sequence[str] | None,
    config: EvaluateConfig,
    seed: int,
) -> Consistency:
    """How often a system's answers to the same row agree, with intervals bootstrapped over rows, or over the clusters
    that rows form. `ways`: of each row, two or more (`ways_of`); `answers`: to all ways of all rows, one after the
    other."""
    rows = [row_ways[0].row for row_ways in ways]
    read, kind = _reader(rows, task, labels, config)
    left = iter(answers)
    by_row = [[next(left) for _ in row_ways] for row_ways in ways]
    keys = [[read(answer.text) for answer in row_answers] for row_answers in by_row]
    scores = {"agreement": [_share_of_pairs(row_keys, lambda a, b: float(a == b)) for row_keys in keys]}
    if kind == "labels":
        right = [read(row.answer) for row in rows]
        scores["always_right"] = [float(set(row_keys) == {key}) for row_keys, key in zip(keys, right, strict=True)]
    elif kind == "texts":
        scores["similarity"] = [_share_of_pairs([a.text for a in row_answers], _similar) for row_answers in by_row]
    statistics = mean_statistics(scores, right_or_wrong=sorted({"always_right"} & scores.keys()))
    clusters = u.cluster_numbers(cluster_keys(rows, config.cluster))
    draws = u.bootstrap([statistics], len(rows), resamples=config.bootstrap, seed=seed, clusters=clusters)
    values = {}
    for metric, value in statistics.point_values().items():
        low, high = u.bootstrap_interval(value, draws[metric])
        if not low < high and set(scores[metric]) <= {0.0, 1.0}:  # resamples of rows that are all alike know no spread
            low, high = u.wilson_interval(int(sum(scores[metric])), len(rows))
        values[metric] = Estimate(value, low, high)
    same: dict[str, list[bool]] = {}
    for row_ways, (first, *others) in zip(ways, keys, strict=True):
        for way, key in zip(row_ways[1:], others, strict=True):
            same.setdefault(way.kind, []).append(key == first)
    different = [len(set(row_keys)) for row_keys in keys]
    examples = []
    for i in sorted(range(len(ways)), key=lambda i: (-different[i], i))[:MOST_EXAMPLES]:
        if different[i] > 1:
            pairs = zip(ways[i], by_row[i], strict=True)
            asked = [AskedWay(kind=w.kind, question=last_user_turn(w.row), answer=a.text) for w, a in pairs]
            examples.append(ContradictedRow(id=rows[i].id, reference=rows[i].answer, ways=asked))
    result = Consistency(
        rows=len(rows),
        ways=max(map(len, ways)),
        asked=dict(Counter(way.kind for row_ways in ways for way in row_ways).most_common()),
        values=values,
        same_as_plain={kind: sum(equal) / len(equal) for kind, equal in sorted(same.items())},
        examples=examples,
    )
    constant = len(keys) > 1 and len({key for row_keys in keys for key in row_keys}) == 1
    return replace(result, words=_words(result, name, list(config.fields) if kind == "fields" else [], constant))


def _share_of_pairs(values: Sequence[Any], alike: Callable[[Any, Any], float]) -> float:
    pairs = list(combinations(values, 2))
    return sum(alike(a, b) for a, b in pairs) / len(pairs)


def _similar(a: str, b: str) -> float:
    a, b = a[:LONGEST_SCORED], b[:LONGEST_SCORED]
    return 1.0 if _folded(a) == _folded(b) else token_f1([a], b)  # of no words at all, too


def _words(result: Consistency, name: str, fields: Sequence[str], constant: bool) -> list[str]:
    """Sentences; `fields`: those of texts that are compared; `constant`: it says the same to all rows."""

    def amount(metric: str) -> str:
        """`80.0 % (95 % interval 71.0 to 87.5)`, of a similarity `0.800 (...)`."""
        scale, unit, digits = (1, "", 3) if metric == "similarity" else (100, " %", 1)
        estimate = result.values[metric]
        value, low, high = (f"{scale * x:.{digits}f}" for x in (estimate.value, estimate.low, estimate.high))
        return f"{value}{unit}" + ("" if math.isnan(estimate.low) else f" (95 % interval {low} to {high})")

    model, rows = "the tuned model" if name == "tuned" else name, f"on {counted(result.rows, 'row')}"
    opening = f"Asked {counted(result.ways, 'way')} ({AS_IT_IS}, in other words), {model}"
    if "similarity" in result.values:
        sentences = [f"{opening} writes answers to a row with a token F1 of {amount('similarity')} {rows}."]
    else:
        names = [field.replace("_", " ") for field in fields]
        listed = " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
        claim = f"gives the same {listed}" if fields else "has the same answer"
        sentences = [f"{opening} {claim} in {amount('agreement')} of the pairs of answers {rows}."]
    if "always_right" in result.values:
        sentences.append(f"It is right in every way on {amount('always_right')} of the rows.")
    if constant:
        sentences.append(f"{name} gave one and the same answer to all rows: consistent, and worthless.")
    return sentences
