"""Whether a question gets the same answer when it is asked in other words, and whether answers keep their format.

Each row of a sample is asked several ways: as it is, with small rewordings, and drawn with a temperature where answers are
written freely. All systems are asked the same, so they are compared row by row.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from tuneloop.core.errors import UserError
from tuneloop.core.stats import intervals as u
from tuneloop.core.stats.intervals import Array, Statistics, mean_statistics
from tuneloop.core.stats.tests import p_words
from tuneloop.core.units import counted
from tuneloop.evaluation.config import EvaluateConfig
from tuneloop.evaluation.evaluate import cluster_keys
from tuneloop.evaluation.metrics.fields import compile_fields, extract
from tuneloop.evaluation.metrics.labels import label_matcher
from tuneloop.evaluation.metrics.multilabel import label_lists, label_reader, vocabulary
from tuneloop.evaluation.metrics.structured import are_structured, leaves, parse, parses, structured_statistics
from tuneloop.evaluation.metrics.text import LONGEST_SCORED, is_latin, rouge, token_f1
from tuneloop.evaluation.rewording import rewordings
from tuneloop.inference.local.sampling import GREEDY, Sampling
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
    """One way to ask a row: what kind it is, the row with its question in these words, and how the answer is drawn."""

    kind: str
    row: Row
    sampling: Sampling = GREEDY


# --- ways to ask -------------------------------------------------------------------------------


def ways_of(
    rows: Sequence[Row], ways: int, *, drawn: bool, temperature: float, labels: Sequence[str] = (), seed: int = 0
) -> list[list[Way]]:
    """The ways to ask each row, the first as it is.

    A third of the others are drawn with the temperature, where answers can be; the rest are rewordings of the last user turn, of
    kinds that differ. Where a text allows fewer of them, more are drawn, or there are fewer ways.

    Args:
        drawn: whether answers are written token by token; of scored labels there is nothing to draw.
        labels: names that no rewording touches.
        seed: of the draws; rewordings depend on the row alone.
    """
    all_ways = []
    for row in rows:
        turns = [i for i, turn in enumerate(row.prompt) if turn["role"] == "user" and turn.get("content")]
        text = str(row.prompt[turns[-1]]["content"]) if turns else ""
        others = [Way(kind, _reworded(row, turns[-1], new)) for kind, new in rewordings(text, row.id, labels)]
        each = [Way(AS_IT_IS, row), *others[: ways - 1 - ((ways - 1) // 3 if drawn else 0)]]
        if drawn:
            numbers = random.Random(f"drawn:{seed}:{row.id}")
            each += [
                Way(DRAWN, row, Sampling(temperature, seed=numbers.getrandbits(31))) for _ in range(ways - len(each))
            ]
        all_ways.append(each)
    return all_ways


def _reworded(row: Row, turn: int, text: str) -> Row:
    messages = [message.copy() for message in row.messages]
    messages[turn]["content"] = text
    return replace(row, messages=messages)


# --- what answers say --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Said:
    """What an answer says: what it is compared by, and whether it keeps the format."""

    key: object
    keeps: bool


Reader = Callable[[Row, Completion], _Said]


def _reader(rows: Sequence[Row], task: str, labels: Sequence[str] | None, config: EvaluateConfig) -> tuple[Reader, str]:
    """What reads answers, and what kind they are: `labels`, `json` or `texts`."""
    if task == "classification" and label_lists(rows) is not None:
        read = label_reader(vocabulary(rows, labels))

        def several(row: Row, answer: Completion) -> _Said:
            named = read(answer.text)
            outside = named.outside or not (named.labels or named.none)
            return _Said(_folded(answer.text) if outside else named.labels, not outside)

        return several, "labels"
    if task == "classification":
        names = sorted(set(labels or ()) | {str(row.label) for row in rows})
        match = label_matcher(names, {row.answer: row.label for row in rows if row.label is not None})

        def one(row: Row, answer: Completion) -> _Said:
            label = match(answer.text)
            return _Said(("label", label) if label is not None else _folded(answer.text), label is not None)

        return one, "labels"
    references = [references_of(row) for row in rows]
    if config.structured is True or (config.structured == "auto" and are_structured(references)):
        return _json_answer, "json"
    patterns = list(compile_fields(config.fields).values())

    def text(row: Row, answer: Completion) -> _Said:
        fields = [extract(pattern, answer.text[:LONGEST_SCORED]) for pattern in patterns]
        whole = None not in fields  # answers without a field do not agree in what they lack
        key: object = tuple(map(_folded, map(str, fields))) if patterns and whole else _folded(answer.text)
        return _Said(key, answer.finished and bool(answer.text.strip()) and whole)

    return text, "texts"


def _json_answer(row: Row, answer: Completion) -> _Said:
    """JSON is compared by its fields, their order and case aside; the format is the reference's top-level keys."""
    try:
        value = parse(answer.text)
        fields = Counter((place, _folded(leaf)) for place, leaf in leaves(value))
    except (ValueError, RecursionError):
        return _Said(_folded(answer.text), False)
    wanted = parse(row.answer) if parses(row.answer) else None
    same = _keys(value) == _keys(wanted) if isinstance(wanted, dict | list) else True
    return _Said(frozenset(fields.items()), same)


def _keys(value: object) -> object:
    return sorted(value) if isinstance(value, dict) else type(value)


def _folded(text: str) -> str:
    """Case and white space aside: rewordings change these in a text that an answer may quote."""
    return " ".join(text.casefold().split())


def _similarity_metric(kind: str, rows: Sequence[Row]) -> str:
    """What likeness is measured by: ROUGE-L reads a-z only."""
    if kind == "json":
        return "field F1"
    return "ROUGE-L" if is_latin([row.answer for row in rows]) else "token F1"


def _similarity(likeness: str, answers: Sequence[Sequence[Completion]]) -> list[float]:
    """How alike each row's answers are: the mean over its pairs."""
    pairs = [(i, a.text, b.text) for i, row in enumerate(answers) for a, b in combinations(row, 2)]
    firsts = [[a[:LONGEST_SCORED]] for _, a, _ in pairs]
    others = [b[:LONGEST_SCORED] for _, _, b in pairs]
    if likeness == "field F1":
        scores = list(structured_statistics(firsts, others, None).row_scores["field_f1"])
    elif likeness == "ROUGE-L":
        scores = rouge(firsts, others, ["rougeL"])["rougeL"]
    else:
        scores = [token_f1(a, b) for a, b in zip(firsts, others, strict=True)]
    sums, counts = [0.0] * len(answers), [0] * len(answers)
    for (i, a, b), score in zip(pairs, scores, strict=True):
        sums[i] += 1.0 if _folded(a) == _folded(b) else score  # of no words at all, too
        counts[i] += 1
    return [total / n if n else math.nan for total, n in zip(sums, counts, strict=True)]


# --- results -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _SystemAnswers:
    """One system's answers, by row and way, with what they say and what that comes to."""

    answers: list[list[Completion]]
    said: list[list[_Said]]
    scores: dict[str, list[float]]
    values: dict[str, Estimate]
    draws: Mapping[str, Array]

    @property
    def constant(self) -> bool:
        """Whether it says the same to all rows."""
        return len(self.said) > 1 and len({s.key for each in self.said for s in each}) == 1


def measure_consistency(
    ways: Sequence[Sequence[Way]],
    answers: Mapping[str, Sequence[Completion]],
    *,
    own: str,
    task: str,
    labels: Sequence[str] | None,
    config: EvaluateConfig,
    seed: int,
) -> Consistency:
    """How often answers to the same row agree and keep the format, for each system, with intervals and paired tests.

    Intervals are bootstrapped over rows, or over the clusters that rows form.

    Args:
        ways: of each row (`ways_of`).
        answers: system -> its answers to all ways of all rows, one after the other.
        own: the system that the evaluation is about.
        seed: of the resamples, which all systems share.

    Raises:
        UserError: no row was asked in two ways.
    """
    asked_rows = [list(each) for each in ways if len(each) >= FEWEST_WAYS]
    if not asked_rows:
        raise UserError(
            "None of the rows can be asked in another way (programs, and texts that are empty or very long, are not reworded)",
            where="evaluate.consistency",
            next_step="leave it at 0, or set evaluate.answer=generate: then answers are drawn",
        )
    rows = [each[0].row for each in asked_rows]
    read, kind = _reader(rows, task, labels, config)
    fields = list(config.fields or {}) if kind == "texts" else []
    clusters, measured = u.cluster_numbers(cluster_keys(rows, config.cluster)), {}
    for name, given in answers.items():
        by_row = _by_row(ways, given)
        read_answers = [[read(row, answer) for answer in each] for row, each in zip(rows, by_row, strict=True)]
        scores = _scores(rows, by_row, read_answers, kind, read)
        statistics = mean_statistics(scores, right_or_wrong=sorted(BOTH_RIGHT & scores.keys()))
        draws = u.bootstrap([statistics], len(rows), resamples=config.bootstrap, seed=seed, clusters=clusters)
        measured[name] = _SystemAnswers(by_row, read_answers, scores, _estimates(statistics, draws), draws)
    metric = "similarity" if kind == "texts" and not fields else "agreement"

    compared = [figure for figure in (metric, "always_right") if figure in measured[own].scores]
    result = Consistency(
        rows=len(rows),
        ways=max(map(len, asked_rows)),
        asked=dict(Counter(way.kind for each in asked_rows for way in each).most_common()),
        temperature=config.consistency_temperature,
        metric=metric,
        likeness="" if kind == "labels" else _similarity_metric(kind, rows),
        systems={name: each.values for name, each in measured.items()},
        same_as_plain={name: _same_as_plain(asked_rows, each.said) for name, each in measured.items()},
        comparisons=[pair for figure in compared for pair in _differences(measured, own, figure, clusters)],
        seconds={},
        examples=_examples(asked_rows, measured[own]),
    )
    chosen = all(answer.label_scores is not None for each in measured[own].answers for answer in each)
    constant = [name for name, each in measured.items() if each.constant]
    return replace(result, words=_words(result, own, chosen=chosen, constant=constant, fields=fields))


def _by_row(ways: Sequence[Sequence[Way]], answers: Sequence[Completion]) -> list[list[Completion]]:
    if sum(map(len, ways)) != len(answers):
        raise UserError(
            f"{len(answers)} answers came back for {sum(map(len, ways))} questions", next_step="evaluate again"
        )
    left = iter(answers)
    by_row = [[next(left) for _ in each] for each in ways]
    return [each for each in by_row if len(each) >= FEWEST_WAYS]


def _scores(
    rows: Sequence[Row],
    answers: Sequence[Sequence[Completion]],
    read_answers: Sequence[Sequence[_Said]],
    kind: str,
    read: Reader,
) -> dict[str, list[float]]:
    agreement = []
    for each in read_answers:
        pairs = list(combinations(each, 2))
        agreement.append(sum(a.key == b.key for a, b in pairs) / len(pairs))
    scores = {
        "agreement": agreement,
        "unanimous": [float(len({s.key for s in each}) == 1) for each in read_answers],
        "format": [sum(s.keeps for s in each) / len(each) for each in read_answers],
    }
    if kind == "labels":
        right = [read(row, Completion(row.answer)).key for row in rows]
        scores["always_right"] = [
            float({s.key for s in each} == {key}) for each, key in zip(read_answers, right, strict=True)
        ]
    else:
        scores["similarity"] = _similarity(_similarity_metric(kind, rows), answers)
    return scores


def _same_as_plain(ways: Sequence[Sequence[Way]], read_answers: Sequence[Sequence[_Said]]) -> dict[str, float]:
    """For each kind of way the share of answers that equal the one to the row as it is."""
    counts: dict[str, list[int]] = {}
    for each, answers in zip(ways, read_answers, strict=True):
        for way, answer in zip(each[1:], answers[1:], strict=True):
            counts.setdefault(way.kind, []).append(int(answer.key == answers[0].key))
    return {kind: sum(same) / len(same) for kind, same in sorted(counts.items())}


def _estimates(statistics: Statistics, draws: Mapping[str, Array]) -> dict[str, Estimate]:
    estimates = {}
    for name, value in statistics.point_values().items():
        low, high = u.bootstrap_interval(value, draws[name])
        scores = statistics.row_scores[name]
        if not low < high and set(scores) <= {0.0, 1.0}:  # resamples of rows that are all alike know no spread
            low, high = u.wilson_interval(int(sum(scores)), len(scores))
        estimates[name] = Estimate(value, low, high)
    return estimates


def _differences(
    measured: Mapping[str, _SystemAnswers], system: str, metric: str, clusters: Sequence[int] | None
) -> list[Difference]:
    """Paired differences from each other system, corrected for their number (Holm).

    A p-value is no less than so few rows that differ can give.
    """
    mine, others = measured[system], [name for name in measured if name != system]
    gaps = [
        (mine.values[metric].value - measured[n].values[metric].value, mine.draws[metric] - measured[n].draws[metric])
        for n in others
    ]
    p_values = []
    for name, (delta, draws) in zip(others, gaps, strict=True):
        p = u.paired_bootstrap_p(delta, draws)
        apart = _rows_apart(mine.scores[metric], measured[name].scores[metric], clusters)
        p_values.append(p if math.isnan(p) else max(p, u.least_p(apart)))
    tests = sum(not math.isnan(p) for p in p_values)
    differences = []
    for name, gap, p, holm, level in zip(
        others, gaps, p_values, u.holm(p_values), u.holm_levels(p_values), strict=True
    ):
        low, high = _interval(*gap, u.ALPHA, widen=p >= u.ALPHA)
        bounds = _interval(*gap, level, widen=not holm < u.ALPHA)
        verdict = u.verdict(*bounds, holm)
        differences.append(Difference(name, system, metric, gap[0], low, high, p, holm, *bounds, tests, verdict))
    return differences


def _interval(delta: float, draws: Array, level: float, *, widen: bool) -> tuple[float, float]:
    """The interval at a level of error; where the test finds no difference it is widened to 0."""
    bounds = u.paired_bootstrap_interval(delta, draws, level=level)
    return u.with_zero(bounds) if widen else bounds


def _rows_apart(a: Sequence[float], b: Sequence[float], clusters: Sequence[int] | None) -> int:
    rows = [i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
    return len(rows) if clusters is None else len({clusters[i] for i in rows})


def _examples(ways: Sequence[Sequence[Way]], answers_of_system: _SystemAnswers) -> list[ContradictedRow]:
    different = [len({s.key for s in each}) for each in answers_of_system.said]
    order = sorted(range(len(ways)), key=lambda i: (-different[i], i))
    return [
        ContradictedRow(
            id=ways[i][0].row.id,
            reference=ways[i][0].row.answer,
            ways=[
                AskedWay(kind=way.kind, question=last_user_turn(way.row), answer=answer.text)
                for way, answer in zip(ways[i], answers_of_system.answers[i], strict=True)
            ],
        )
        for i in order[:MOST_EXAMPLES]
        if different[i] > 1
    ]


# --- words -------------------------------------------------------------------------------------


def _words(
    result: Consistency, system: str, *, chosen: bool, constant: Sequence[str], fields: Sequence[str] = ()
) -> list[str]:
    """Sentences; `chosen`: labels were scored, so that every answer is one; `constant`: who says the same to all rows; `fields`: of texts."""
    metric, rows = result.metric, f"on {counted(result.rows, 'row')}"
    drawn = f"drawn with temperature {result.temperature:g}" if result.asked.get(DRAWN) else ""
    kinds = ["as it is", "in other words" if set(result.asked) - {AS_IT_IS, DRAWN} else "", drawn]
    model = "the tuned model" if system == "tuned" else system
    opening = f"Asked {counted(result.ways, 'way')} ({', '.join(filter(None, kinds))}), {model}"
    texts = f"answers to a row {{}} a {result.likeness} of"
    if metric == "agreement":
        names = [field.replace("_", " ") for field in fields]
        listed = " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
        what = f"gives the same {listed} in" if fields else "has the same answer in"
        sentences = [f"{opening} {what} {_figures(result, system, metric, f' of the pairs of answers {rows}')}"]
    else:
        sentences = [
            f"{opening} writes {texts.format('with')} {_figures(result, system, metric, f' with each other {rows}')}"
        ]
    sentences += _compared(result, metric, "consistent")
    if fields:
        sentences.append(
            f"As texts its {texts.format('have')} {_figures(result, system, 'similarity', ' with each other')}"
        )
    if "always_right" in result.systems[system]:
        sentences.append(f"It is right in every way on {_figures(result, system, 'always_right', ' of the rows')}")
        sentences += _compared(result, "always_right", "often right in every way")
    if not chosen:
        sentences.append(f"It keeps the format in {_figures(result, system, 'format', ' of its answers')}")
    return sentences + [
        f"{each} gave one and the same answer to all rows: consistent, and worthless." for each in constant
    ]


def _figures(result: Consistency, system: str, figure: str, behind: str) -> str:
    """`80.0 % (95 % interval 71.0 to 87.5) of the rows; zero-shot 60.0 %, few-shot 70.0 %.`"""
    mine = result.systems[system][figure]
    shown = _figure(mine.value, figure)
    if not math.isnan(mine.low):
        low, high = (_figure(bound, figure).removesuffix(" %") for bound in (mine.low, mine.high))
        shown += f" (95 % interval {low} to {high})"
    others = [
        f"{name} {_figure(each[figure].value, figure)}" for name, each in result.systems.items() if name != system
    ]
    return f"{shown}{behind}{'; ' if others else ''}{', '.join(others)}."


def _figure(value: float, metric: str) -> str:
    return f"{value:.3f}" if metric == "similarity" else f"{100 * value:.1f} %"


def _compared(result: Consistency, metric: str, what: str) -> list[str]:
    """The comparison with the best other system, in a sentence."""
    pairs = [pair for pair in result.comparisons if pair.metric == metric]
    if not pairs:
        return []
    pair = max(pairs, key=lambda pair: result.systems[pair.a][metric].value)
    scale, unit, digits = (1, "", 3) if metric == "similarity" else (100, " points", 1)
    delta, low, high = (number_words(scale * x, digits, signed=True) for x in (pair.delta, pair.low_holm, pair.high_holm))  # fmt: skip
    verdicts = {"better": "It is more", "worse": "It is less"}
    verdict = verdicts.get(pair.verdict, "There is not enough evidence that it is more or less")
    for_all = f", both corrected for {pair.tests} comparisons (Holm)" if pair.tests > 1 else ""
    return [
        f"{verdict} {what} than {pair.a}: {delta}{unit} (95 % interval {low} to {high}, {p_words(pair.p_holm)}{for_all})."
    ]
