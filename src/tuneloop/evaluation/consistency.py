"""Whether a question in other words gets the same answer.

Each row of a sample has several wordings: as it is, and with small rewordings. They are the same for all systems, which
are compared row by row.
"""

from __future__ import annotations

import math
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
from tuneloop.evaluation.metrics.kinds import are_structured, parse
from tuneloop.evaluation.metrics.labels import label_lists, label_matcher, label_reader, vocabulary
from tuneloop.evaluation.metrics.structured import leaves
from tuneloop.evaluation.metrics.text import LONGEST_SCORED, token_f1
from tuneloop.evaluation.rewording import rewordings
from tuneloop.records.completion import Completion
from tuneloop.records.evaluation import Estimate
from tuneloop.records.metric import number_words
from tuneloop.records.rows import Row, last_user_turn, references_of
from tuneloop.records.side_effects import AskedWay, Consistency, ContradictedRow, Difference

AS_IT_IS = "as it is"
FEWEST_WAYS = 2
MOST_EXAMPLES = 5


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
        return frozenset(Counter((place, _folded(leaf)) for place, leaf in leaves(parse(text))).items())
    except (ValueError, RecursionError):
        return _folded(text)


def _folded(text: str) -> str:
    """Case and white space aside: rewordings change these in a text that an answer may quote."""
    return " ".join(text.casefold().split())


@dataclass(frozen=True)
class _SystemAnswers:
    """One system's answers, by row and way, what they are compared by, and what that comes to."""

    answers: list[list[Completion]]
    keys: list[list[object]]
    scores: dict[str, list[float]]
    values: dict[str, Estimate]
    draws: Mapping[str, Array]

    @property
    def constant(self) -> bool:
        """Whether it says the same to all rows."""
        return len(self.keys) > 1 and len({key for row_keys in self.keys for key in row_keys}) == 1


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
    """How often answers to the same row agree, for each system, with intervals and paired tests.

    Intervals are bootstrapped over rows, or over the clusters that rows form.

    `ways`: of each row (`ways_of`). `answers`: system -> its answers to all ways of all rows, one after the other.
    `subject`: the system that the evaluation is about. Raises UserError: no row has two ways.
    """
    questions = [list(row_ways) for row_ways in ways if len(row_ways) >= FEWEST_WAYS]
    if not questions:
        what = "None of the rows can be put in another way (programs, empty and very long texts are not reworded)"
        raise UserError(what, where="evaluate.consistency", next_step="leave it at 0")
    rows = [row_ways[0].row for row_ways in questions]
    read, kind = _reader(rows, task, labels, config)
    clusters, measured = u.cluster_numbers(cluster_keys(rows, config.cluster)), {}
    questions_in_all = sum(map(len, ways))
    for name, replies in answers.items():
        if questions_in_all != len(replies):
            what = f"{len(replies)} answers came back for {questions_in_all} questions"
            raise UserError(what, next_step="evaluate again")
        left = iter(replies)
        by_row = [each for each in ([next(left) for _ in each] for each in ways) if len(each) >= FEWEST_WAYS]
        keys = [[read(answer.text) for answer in row_answers] for row_answers in by_row]
        scores = {"agreement": [_share_of_pairs(row_keys, lambda a, b: float(a == b)) for row_keys in keys]}
        if kind == "labels":
            right = [read(row.answer) for row in rows]
            scores["always_right"] = [float(set(row_keys) == {key}) for row_keys, key in zip(keys, right, strict=True)]
        elif kind == "texts":
            scores["similarity"] = [_share_of_pairs([a.text for a in row_answers], _similar) for row_answers in by_row]
        statistics = mean_statistics(scores, right_or_wrong=sorted({"always_right"} & scores.keys()))
        draws = u.bootstrap([statistics], len(rows), resamples=config.bootstrap, seed=seed, clusters=clusters)
        measured[name] = _SystemAnswers(by_row, keys, scores, _estimates(statistics, draws), draws)
    metric = "similarity" if kind == "texts" else "agreement"
    compared = [name for name in (metric, "always_right") if name in measured[subject].scores]
    parts: dict[str, Any] = {
        "rows": len(rows), "ways": max(map(len, questions)),
        "asked": dict(Counter(way.kind for row_ways in questions for way in row_ways).most_common()), "metric": metric,
        "systems": {name: system.values for name, system in measured.items()},
        "same_as_plain": {name: _same_as_plain(questions, system.keys) for name, system in measured.items()},
        "comparisons": [pair for name in compared for pair in _differences(measured, subject, name, clusters)],
        "seconds": {}, "examples": _examples(questions, measured[subject]),
    }  # fmt: skip
    result = Consistency(**parts)
    constant = [name for name, system in measured.items() if system.constant]
    fields = list(config.fields or {}) if kind == "fields" else []
    return replace(result, words=_words(result, subject, constant=constant, fields=fields))


def _share_of_pairs(values: Sequence[Any], alike: Callable[[Any, Any], float]) -> float:
    pairs = list(combinations(values, 2))
    return sum(alike(a, b) for a, b in pairs) / len(pairs)


def _similar(a: str, b: str) -> float:
    a, b = a[:LONGEST_SCORED], b[:LONGEST_SCORED]
    return 1.0 if _folded(a) == _folded(b) else token_f1([a], b)  # of no words at all, too


def _estimates(statistics: Statistics, draws: Mapping[str, Array]) -> dict[str, Estimate]:
    estimates = {}
    for name, value in statistics.point_values().items():
        (low, high), scores = u.bootstrap_interval(value, draws[name]), statistics.row_scores[name]
        if not low < high and set(scores) <= {0.0, 1.0}:  # resamples of rows that are all alike know no spread
            low, high = u.wilson_interval(int(sum(scores)), len(scores))
        estimates[name] = Estimate(value, low, high)
    return estimates


def _same_as_plain(ways: Sequence[Sequence[Way]], keys: Sequence[Sequence[object]]) -> dict[str, float]:
    same: dict[str, list[int]] = {}
    for row_ways, (first, *others) in zip(ways, keys, strict=True):
        for way, key in zip(row_ways[1:], others, strict=True):
            same.setdefault(way.kind, []).append(int(key == first))
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
    different = [len(set(row_keys)) for row_keys in system.keys]
    examples = []
    for i in sorted(range(len(ways)), key=lambda i: (-different[i], i))[:MOST_EXAMPLES]:
        if different[i] > 1:
            row, pairs = ways[i][0].row, zip(ways[i], system.answers[i], strict=True)
            each = [AskedWay(kind=w.kind, question=last_user_turn(w.row), answer=answer.text) for w, answer in pairs]
            examples.append(ContradictedRow(id=row.id, reference=row.answer, ways=each))
    return examples


def _words(result: Consistency, system: str, *, constant: Sequence[str], fields: Sequence[str]) -> list[str]:
    """Sentences; `constant`: the systems that say the same to all rows; `fields`: those of texts that are compared."""
    metric, rows = result.metric, f"on {counted(result.rows, 'row')}"
    model = "the tuned model" if system == "tuned" else system
    opening = f"Asked {counted(result.ways, 'way')} ({AS_IT_IS}, in other words), {model}"
    if metric == "agreement":
        names = [field.replace("_", " ") for field in fields]
        listed = " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
        claim = f"gives the same {listed} in" if fields else "has the same answer in"
        sentences = [f"{opening} {claim} {_amounts(result, system, metric, f' of the pairs of answers {rows}')}"]
    else:
        amount = _amounts(result, system, metric, f" with each other {rows}")
        sentences = [f"{opening} writes answers to a row with a token F1 of {amount}"]
    sentences += _compared(result, metric, "consistent")
    if "always_right" in result.systems[system]:
        sentences.append(f"It is right in every way on {_amounts(result, system, 'always_right', ' of the rows')}")
        sentences += _compared(result, "always_right", "often right in every way")
    worthless = "gave one and the same answer to all rows: consistent, and worthless."
    return sentences + [f"{name} {worthless}" for name in constant]


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
