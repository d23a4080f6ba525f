"""Whether a question in other words gets the same answer, and whether answers keep their format.

Each row of a sample has several ways: as it is, with small rewordings, and drawn with a temperature where answers are
written freely. They are the same for all systems, which are compared row by row.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.stats import intervals as u
from tuneloop.core.stats.intervals import Array, Statistics, mean_statistics
from tuneloop.core.stats.tests import p_words
from tuneloop.core.units import counted
from tuneloop.evaluation.config import EvaluateConfig
from tuneloop.evaluation.evaluate import cluster_keys
from tuneloop.evaluation.metrics.custom import compile_fields, extract
from tuneloop.evaluation.metrics.labels import label_lists, label_matcher, label_reader, vocabulary
from tuneloop.evaluation.metrics.structured import are_structured, leaves, parse, parses, structured_statistics
from tuneloop.evaluation.metrics.text import LONGEST_SCORED, is_latin, rouge, token_f1
from tuneloop.evaluation.rewording import rewordings
from tuneloop.inference.request import GREEDY, Sampling
from tuneloop.records.completion import Completion
from tuneloop.records.evaluation import Estimate
from tuneloop.records.metric import number_words
from tuneloop.records.rows import Row, last_user_turn, references_of
from tuneloop.records.side_effects import AskedWay, Consistency, ContradictedRow, Difference

AS_IT_IS, DRAWN = "as it is", "drawn"
FEWEST_WAYS = 2
MOST_EXAMPLES = 5
BOTH_RIGHT = frozenset({"unanimous", "always_right"})  # 0 or 1 in each row


@dataclass(frozen=True)
class Way:
    """One way to put a row's question."""

    kind: str
    row: Row  # with its question in these words
    sampling: Sampling = GREEDY  # how the answer is drawn


def ways_of(
    rows: Sequence[Row], ways: int, *, draws: bool, temperature: float, labels: Sequence[str] = (), seed: int = 0
) -> list[list[Way]]:
    """The ways to put each row's question, the first as it is.

    A third of the others are drawn with the temperature, where answers can be; the rest are rewordings of the last user
    turn, of kinds that differ. Where a text allows fewer of them, more are drawn, or there are fewer ways.

    `draws`: whether answers are written token by token; of scored labels there is nothing to draw. `labels`: names that
    no rewording touches. `seed`: of the draws; rewordings depend on the row alone.
    """
    all_ways = []
    for row in rows:
        turns = [i for i, turn in enumerate(row.prompt) if turn["role"] == "user" and turn.get("content")]
        text = str(row.prompt[turns[-1]]["content"]) if turns else ""
        each = [Way(AS_IT_IS, row)]
        for kind, new in rewordings(text, row.id, labels)[: ways - 1 - ((ways - 1) // 3 if draws else 0)]:
            messages = [message.copy() for message in row.messages]
            messages[turns[-1]]["content"] = new
            each.append(Way(kind, replace(row, messages=messages)))
        if draws:
            numbers = random.Random(f"drawn:{seed}:{row.id}")
            samplings = (Sampling(temperature, seed=numbers.getrandbits(31)) for _ in range(ways - len(each)))
            each += [Way(DRAWN, row, sampling) for sampling in samplings]
        all_ways.append(each)
    return all_ways


@dataclass(frozen=True)
class _Statement:
    key: object  # what it is compared by
    keeps: bool  # whether it keeps the format


Reader = Callable[[Row, Completion], _Statement]


def _reader(rows: Sequence[Row], task: str, labels: Sequence[str] | None, config: EvaluateConfig) -> tuple[Reader, str]:
    if task == "classification" and label_lists(rows) is not None:
        read = label_reader(vocabulary(rows, labels))

        def several(row: Row, answer: Completion) -> _Statement:
            reply = read(answer.text)
            outside = reply.outside or not (reply.labels or reply.none)
            return _Statement(_folded(answer.text) if outside else reply.labels, not outside)

        return several, "labels"
    if task == "classification":
        names = sorted(set(labels or ()) | {str(row.label) for row in rows})
        match = label_matcher(names, {row.answer: row.label for row in rows if row.label is not None})

        def one(row: Row, answer: Completion) -> _Statement:
            label = match(answer.text)
            return _Statement(("label", label) if label is not None else _folded(answer.text), label is not None)

        return one, "labels"
    references = [references_of(row) for row in rows]
    if config.structured is True or (config.structured == "auto" and are_structured(references)):
        return _json_answer, "json"
    patterns = list(compile_fields(config.fields).values())

    def text(row: Row, answer: Completion) -> _Statement:
        fields = [extract(pattern, answer.text[:LONGEST_SCORED]) for pattern in patterns]
        whole = None not in fields  # answers without a field do not agree in what they lack
        key: object = tuple(map(_folded, map(str, fields))) if patterns and whole else _folded(answer.text)
        return _Statement(key, answer.finished and bool(answer.text.strip()) and whole)

    return text, "texts"


def _json_answer(row: Row, answer: Completion) -> _Statement:
    """JSON is compared by its fields, their order and case aside; the format is the reference's top-level keys."""
    try:
        value = parse(answer.text)
        fields = Counter((place, _folded(leaf)) for place, leaf in leaves(value))
    except (ValueError, RecursionError):
        return _Statement(_folded(answer.text), False)
    reference = parse(row.answer) if parses(row.answer) else None
    same = _keys(value) == _keys(reference) if isinstance(reference, dict | list) else True
    return _Statement(frozenset(fields.items()), same)


def _keys(value: object) -> object:
    return sorted(value) if isinstance(value, dict) else type(value)


def _folded(text: str) -> str:
    """Case and white space aside: rewordings change these in a text that an answer may quote."""
    return " ".join(text.casefold().split())


def _similarity_metric(kind: str, rows: Sequence[Row]) -> str:
    if kind == "json":
        return "field F1"
    return "ROUGE-L" if is_latin([row.answer for row in rows]) else "token F1"  # ROUGE-L reads a-z only


def _similarity(measure: str, answers: Sequence[Sequence[Completion]]) -> list[float]:
    pairs = [(i, a.text, b.text) for i, row in enumerate(answers) for a, b in combinations(row, 2)]
    firsts = [[a[:LONGEST_SCORED]] for _, a, _ in pairs]
    others = [b[:LONGEST_SCORED] for _, _, b in pairs]
    if measure == "field F1":
        scores = list(structured_statistics(firsts, others, None).row_scores["field_f1"])
    elif measure == "ROUGE-L":
        scores = rouge(firsts, others, ["rougeL"])["rougeL"]
    else:
        scores = [token_f1(a, b) for a, b in zip(firsts, others, strict=True)]
    sums, counts = [0.0] * len(answers), [0] * len(answers)
    for (i, a, b), score in zip(pairs, scores, strict=True):
        sums[i] += 1.0 if _folded(a) == _folded(b) else score  # of no words at all, too
        counts[i] += 1
    return [total / n if n else math.nan for total, n in zip(sums, counts, strict=True)]


@dataclass(frozen=True)
class _SystemAnswers:
    """One system's answers, by row and way, with what they say and what that comes to."""

    answers: list[list[Completion]]
    statements: list[list[_Statement]]
    scores: dict[str, list[float]]
    values: dict[str, Estimate]
    draws: Mapping[str, Array]

    @property
    def constant(self) -> bool:
        """Whether it says the same to all rows."""
        return len(self.statements) > 1 and len({s.key for each in self.statements for s in each}) == 1


def measure_consistency(
    ways: Sequence[Sequence[Way]],
    answers: Mapping[str, Sequence[Completion]],
    *,
    subject: str,
    task: str,
    labels: Sequence[str] | None,
    config: EvaluateConfig,
    seed: int,
) -> Consistency:
    """How often answers to the same row agree and keep the format, for each system, with intervals and paired tests.

    Intervals are bootstrapped over rows, or over the clusters that rows form.

    `ways`: of each row (`ways_of`). `answers`: system -> its answers to all ways of all rows, one after the other.
    `subject`: the system that the evaluation is about. Raises UserError: no row has two ways.
    """
    questions = [list(each) for each in ways if len(each) >= FEWEST_WAYS]
    if not questions:
        what = "None of the rows can be put in another way (programs, empty and very long texts are not reworded)"
        step = "leave it at 0, or set evaluate.answer=generate: then answers are drawn"
        raise UserError(what, where="evaluate.consistency", next_step=step)
    rows = [each[0].row for each in questions]
    read, kind = _reader(rows, task, labels, config)
    fields = list(config.fields or {}) if kind == "texts" else []
    clusters, measured = u.cluster_numbers(cluster_keys(rows, config.cluster)), {}
    questions_in_all = sum(map(len, ways))
    for name, replies in answers.items():
        if questions_in_all != len(replies):
            what = f"{len(replies)} answers came back for {questions_in_all} questions"
            raise UserError(what, next_step="evaluate again")
        left = iter(replies)
        by_row = [each for each in ([next(left) for _ in each] for each in ways) if len(each) >= FEWEST_WAYS]
        statements = [[read(row, answer) for answer in each] for row, each in zip(rows, by_row, strict=True)]
        scores = _scores(rows, by_row, statements, kind, read)
        statistics = mean_statistics(scores, right_or_wrong=sorted(BOTH_RIGHT & scores.keys()))
        draws = u.bootstrap([statistics], len(rows), resamples=config.bootstrap, seed=seed, clusters=clusters)
        measured[name] = _SystemAnswers(by_row, statements, scores, _estimates(statistics, draws), draws)
    metric = "similarity" if kind == "texts" and not fields else "agreement"
    compared = [name for name in (metric, "always_right") if name in measured[subject].scores]
    parts: dict[str, Any] = {
        "rows": len(rows), "ways": max(map(len, questions)),
        "asked": dict(Counter(way.kind for each in questions for way in each).most_common()),
        "temperature": config.consistency_temperature, "metric": metric,
        "similarity_metric": "" if kind == "labels" else _similarity_metric(kind, rows),
        "systems": {name: each.values for name, each in measured.items()},
        "same_as_plain": {name: _same_as_plain(questions, each.statements) for name, each in measured.items()},
        "comparisons": [pair for name in compared for pair in _differences(measured, subject, name, clusters)],
        "seconds": {}, "examples": _examples(questions, measured[subject]),
    }  # fmt: skip
    result = Consistency(**parts)
    scored = all(answer.label_scores is not None for each in measured[subject].answers for answer in each)
    constant = [name for name, each in measured.items() if each.constant]
    return replace(result, words=_words(result, subject, scored=scored, constant=constant, fields=fields))


def _scores(
    rows: Sequence[Row],
    answers: Sequence[Sequence[Completion]],
    statements: Sequence[Sequence[_Statement]],
    kind: str,
    read: Reader,
) -> dict[str, list[float]]:
    pairs = [list(combinations(each, 2)) for each in statements]
    keys = [{statement.key for statement in each} for each in statements]
    scores = {
        "agreement": [sum(a.key == b.key for a, b in each) / len(each) for each in pairs],
        "unanimous": [float(len(each) == 1) for each in keys],
        "format": [sum(s.keeps for s in each) / len(each) for each in statements],
    }
    if kind == "labels":
        right = [read(row, Completion(row.answer)).key for row in rows]
        scores["always_right"] = [float(each == {key}) for each, key in zip(keys, right, strict=True)]
    else:
        scores["similarity"] = _similarity(_similarity_metric(kind, rows), answers)
    return scores


def _estimates(statistics: Statistics, draws: Mapping[str, Array]) -> dict[str, Estimate]:
    estimates = {}
    for name, value in statistics.point_values().items():
        (low, high), scores = u.bootstrap_interval(value, draws[name]), statistics.row_scores[name]
        if not low < high and set(scores) <= {0.0, 1.0}:  # resamples of rows that are all alike know no spread
            low, high = u.wilson_interval(int(sum(scores)), len(scores))
        estimates[name] = Estimate(value, low, high)
    return estimates


def _same_as_plain(ways: Sequence[Sequence[Way]], statements: Sequence[Sequence[_Statement]]) -> dict[str, float]:
    same: dict[str, list[int]] = {}
    for each, (first, *others) in zip(ways, statements, strict=True):
        for way, statement in zip(each[1:], others, strict=True):
            same.setdefault(way.kind, []).append(int(statement.key == first.key))
    return {kind: sum(equal) / len(equal) for kind, equal in sorted(same.items())}


def _differences(
    measured: Mapping[str, _SystemAnswers], system: str, metric: str, clusters: Sequence[int] | None
) -> list[Difference]:
    """Paired differences from each other system, corrected for their number (Holm); p as low as so few rows allow."""
    mine, others = measured[system], {name: each for name, each in measured.items() if name != system}
    gaps, p_values = [], []
    for other in others.values():
        delta, draws = mine.values[metric].value - other.values[metric].value, mine.draws[metric] - other.draws[metric]
        pairs = enumerate(zip(mine.scores[metric], other.scores[metric], strict=True))
        apart = {i if clusters is None else clusters[i] for i, (a, b) in pairs if a != b}
        p = u.paired_bootstrap_p(delta, draws)
        gaps.append((delta, draws))
        p_values.append(p if math.isnan(p) else max(p, u.least_p(len(apart))))
    tests = sum(not math.isnan(p) for p in p_values)
    corrected = zip(p_values, u.holm(p_values), u.holm_levels(p_values), strict=True)
    differences = []
    for name, gap, (p, holm, level) in zip(others, gaps, corrected, strict=True):
        low, high = u.paired_bootstrap_interval(*gap, level=u.ALPHA)
        low, high = u.with_zero((low, high)) if p >= u.ALPHA else (low, high)
        bounds = u.paired_bootstrap_interval(*gap, level=level)
        bounds = bounds if holm < u.ALPHA else u.with_zero(bounds)
        verdict = u.verdict(*bounds, holm)
        differences.append(Difference(name, system, metric, gap[0], low, high, p, holm, *bounds, tests, verdict))
    return differences


def _examples(ways: Sequence[Sequence[Way]], system: _SystemAnswers) -> list[ContradictedRow]:
    different = [len({s.key for s in each}) for each in system.statements]
    examples = []
    for i in sorted(range(len(ways)), key=lambda i: (-different[i], i))[:MOST_EXAMPLES]:
        if different[i] > 1:
            row, pairs = ways[i][0].row, zip(ways[i], system.answers[i], strict=True)
            each = [AskedWay(kind=w.kind, question=last_user_turn(w.row), answer=answer.text) for w, answer in pairs]
            examples.append(ContradictedRow(id=row.id, reference=row.answer, ways=each))
    return examples


def _words(
    result: Consistency, system: str, *, scored: bool, constant: Sequence[str], fields: Sequence[str]
) -> list[str]:
    """Sentences; `scored`: labels were, so that every answer is one; `constant`: who says the same to all rows."""
    metric, rows = result.metric, f"on {counted(result.rows, 'row')}"
    counts = result.asked
    kinds = ["as it is", "in other words" if set(counts) - {AS_IT_IS, DRAWN} else ""]
    kinds += [f"drawn with temperature {result.temperature:g}"] if counts.get(DRAWN) else []
    model = "the tuned model" if system == "tuned" else system
    opening = f"Asked {counted(result.ways, 'way')} ({', '.join(filter(None, kinds))}), {model}"
    texts = f"answers to a row {{}} a {result.similarity_metric} of"
    if metric == "agreement":
        names = [field.replace("_", " ") for field in fields]
        listed = " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
        what = f"gives the same {listed} in" if fields else "has the same answer in"
        sentences = [f"{opening} {what} {_amounts(result, system, metric, f' of the pairs of answers {rows}')}"]
    else:
        amount = _amounts(result, system, metric, f" with each other {rows}")
        sentences = [f"{opening} writes {texts.format('with')} {amount}"]
    sentences += _compared(result, metric, "consistent")
    if fields:
        amount = _amounts(result, system, "similarity", " with each other")
        sentences.append(f"As texts its {texts.format('have')} {amount}")
    if "always_right" in result.systems[system]:
        sentences.append(f"It is right in every way on {_amounts(result, system, 'always_right', ' of the rows')}")
        sentences += _compared(result, "always_right", "often right in every way")
    if not scored:
        sentences.append(f"It keeps the format in {_amounts(result, system, 'format', ' of its answers')}")
    worthless = "gave one and the same answer to all rows: consistent, and worthless."
    return sentences + [f"{each} {worthless}" for each in constant]


def _amounts(result: Consistency, system: str, metric: str, behind: str) -> str:
    """`80.0 % (95 % interval 71.0 to 87.5) of the rows; zero-shot 60.0 %, few-shot 70.0 %.`"""

    def shown(value: float) -> str:
        return f"{value:.3f}" if metric == "similarity" else f"{100 * value:.1f} %"

    mine = result.systems[system][metric]
    low, high = (shown(bound).removesuffix(" %") for bound in (mine.low, mine.high))
    bounds = "" if math.isnan(mine.low) else f" (95 % interval {low} to {high})"
    others = [f"{name} {shown(each[metric].value)}" for name, each in result.systems.items() if name != system]
    return f"{shown(mine.value)}{bounds}{behind}{'; ' if others else ''}{', '.join(others)}."


def _compared(result: Consistency, metric: str, what: str) -> list[str]:
    pairs = [pair for pair in result.comparisons if pair.metric == metric]
    if not pairs:
        return []
    pair = max(pairs, key=lambda pair: result.systems[pair.a][metric].value)
    scale, unit, digits = (1, "", 3) if metric == "similarity" else (100, " points", 1)
    numbers = (pair.delta, pair.low_holm, pair.high_holm)
    delta, low, high = (number_words(scale * x, digits, signed=True) for x in numbers)
    verdicts = {"better": "It is more", "worse": "It is less"}
    verdict = verdicts.get(pair.verdict, "There is not enough evidence that it is more or less")
    evidence = f"95 % interval {low} to {high}, {p_words(pair.p_holm)}"
    evidence += f", both corrected for {pair.tests} comparisons (Holm)" if pair.tests > 1 else ""
    return [f"{verdict} {what} than {pair.a}: {delta}{unit} ({evidence})."]
