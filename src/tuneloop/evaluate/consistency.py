"""Whether a question gets the same answer when it is asked in other words, and whether answers keep their format.

Each row of a sample is asked several ways: as it is, with small rewordings, and drawn with a temperature where answers are
written freely. All contenders are asked the same, so they are compared row by row.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from typing import Any

from tuneloop.core import stats as u
from tuneloop.core.errors import UserError
from tuneloop.core.stats import Array, Statistics, mean_statistics
from tuneloop.evaluate.config import EvaluateConfig
from tuneloop.evaluate.evaluate import cluster_keys
from tuneloop.evaluate.metrics.fields import compile_fields, extract
from tuneloop.evaluate.metrics.labels import label_matcher
from tuneloop.evaluate.metrics.multilabel import label_lists, label_reader, vocabulary
from tuneloop.evaluate.metrics.overlap import LONGEST_SCORED, is_latin, rouge, token_f1
from tuneloop.evaluate.metrics.structured import are_structured, leaves, parse, parses, structured_statistics
from tuneloop.evaluate.rewording import rewordings
from tuneloop.inference.sampling import GREEDY, Sampling
from tuneloop.records.completion import Completion
from tuneloop.records.evaluation import Estimate
from tuneloop.records.rows import Message, Row, last_user_turn, references_of

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


@dataclass(frozen=True)
class Difference:
    """How far b is above a in one figure of consistency, paired by row; `verdict` is about b, by `p_holm`.

    The fields mean what they mean in `evaluate.Comparison`.
    """

    a: str
    b: str
    metric: str
    delta: float
    low: float
    high: float
    p: float
    p_holm: float = math.nan
    low_holm: float = math.nan
    high_holm: float = math.nan
    tests: int = 1
    verdict: str = ""
    interval_at: Callable[[float], tuple[float, float]] | None = field(
        default=None, repr=False, compare=False, metadata={"written": False}
    )


@dataclass(frozen=True)
class Consistency:
    """The part `consistency` of `eval.json`.

    Args:
        rows: how many were asked.
        ways: how often each was asked, at most.
        asked: how many questions of each kind there were.
        temperature: of the drawn answers.
        metric: what contenders are compared by: `agreement`, for free texts without fields `similarity`.
        likeness: what `similarity` is measured by.
        contenders: name -> figure -> value with 95 % interval. `agreement`: share of a row's pairs of answers that are
            the same; `similarity`: how alike pairs are (free texts and JSON); `unanimous`: share of rows with one answer
            only; `format`: share of answers that keep the format; `always_right`: share of rows that are right in every
            way (labels).
        same_as_plain: name -> kind -> share of its answers that equal the answer to the row as it is.
        comparisons: of each other contender (a) with the evaluation's own (b), by `metric` and for labels by `always_right`.
        seconds: name -> how long its answers took.
        examples: rows on which the evaluation's own contender contradicts itself most.
        words: what to take from it.
    """

    rows: int
    ways: int
    asked: dict[str, int]
    temperature: float
    metric: str
    likeness: str
    contenders: dict[str, dict[str, Estimate]]
    same_as_plain: dict[str, dict[str, float]]
    comparisons: list[Difference]
    seconds: dict[str, float]
    examples: list[dict[str, Any]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)


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
    found = []
    for row in rows:
        last = _last_user(row.prompt)
        text = str(row.prompt[last]["content"]) if last is not None else ""
        others = [Way(kind, _asking(row, last, new)) for kind, new in rewordings(text, row.id, labels)]
        some = (ways - 1) // 3 if drawn else 0
        each = [Way(AS_IT_IS, row), *others[: ways - 1 - some]]
        if drawn:
            numbers = random.Random(f"drawn:{seed}:{row.id}")
            each += [
                Way(DRAWN, row, Sampling(temperature, seed=numbers.getrandbits(31))) for _ in range(ways - len(each))
            ]
        found.append(each)
    return found


def _last_user(turns: Sequence[Message]) -> int | None:
    return max((i for i, turn in enumerate(turns) if turn["role"] == "user" and turn.get("content")), default=None)


def _asking(row: Row, turn: int | None, text: str) -> Row:
    """The row with another text in one of its turns."""
    messages = [message.copy() for message in row.messages]
    assert turn is not None
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
            said = read(answer.text)
            outside = said.outside or not (said.labels or said.none)
            return _Said(_folded(answer.text) if outside else said.labels, not outside)

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


def _likeness_of(kind: str, rows: Sequence[Row]) -> str:
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


# --- figures -----------------------------------------------------------------------------------


def measure_consistency(
    ways: Sequence[Sequence[Way]],
    answers: Mapping[str, Sequence[Completion]],
    *,
    own: str,
    task: str,
    labels: Sequence[str] | None,
    config: EvaluateConfig,
    seed: int,
    seconds: Mapping[str, float] | None = None,
) -> Consistency:
    """How often answers to the same row agree and keep the format, for each contender, with intervals and paired tests.

    Intervals are bootstrapped over rows, or over the clusters that rows form.

    Args:
        ways: of each row (`ways_of`).
        answers: contender -> its answers to all ways of all rows, one after the other.
        own: the contender that the evaluation is about.
        task, labels: of the data set.
        seed: of the resamples, which all contenders share.
        seconds: contender -> what its answers took.

    Raises:
        UserError: no row was asked in two ways.
    """
    asked = [i for i, each in enumerate(ways) if len(each) >= FEWEST_WAYS]
    if not asked:
        raise UserError(
            "None of the rows can be asked in another way (programs, and texts that are empty or very long, are not reworded)",
            where="evaluate.consistency",
            next_step="leave it at 0, or set evaluate.answer=generate: then answers are drawn",
        )
    rows = [ways[i][0].row for i in asked]
    by_row = {name: _by_row(ways, given, asked) for name, given in answers.items()}
    kept = [list(ways[i]) for i in asked]
    read, kind = _reader(rows, task, labels, config)
    fields = list(config.fields or {}) if kind == "texts" else []
    metric = "similarity" if kind == "texts" and not fields else "agreement"
    scores, same, said = {}, {}, {}
    for name, given in by_row.items():
        said[name] = [[read(row, answer) for answer in each] for row, each in zip(rows, given, strict=True)]
        scores[name] = _scores(rows, given, said[name], kind, read)
        same[name] = _same_as_plain(kept, said[name])
    values, draws, clusters = {}, {}, u.cluster_numbers(cluster_keys(rows, config.cluster))
    for name, each in scores.items():
        statistics = mean_statistics(each, right_or_wrong=sorted(BOTH_RIGHT & each.keys()))
        draws[name] = u.bootstrap([statistics], len(rows), resamples=config.bootstrap, seed=seed, clusters=clusters)
        values[name] = _estimates(statistics, draws[name])
    compared = [metric, *(["always_right"] if kind == "labels" else [])]
    others = [other for other in answers if other != own]
    pairs = []
    for figure in compared:
        apart = {other: _rows_apart(scores[own][figure], scores[other][figure], clusters) for other in others}
        pairs.append(_adjusted([_difference(other, own, figure, values, draws, apart[other]) for other in others]))
    found = Consistency(
        rows=len(rows),
        ways=max(map(len, kept)),
        asked=dict(Counter(way.kind for each in kept for way in each).most_common()),
        temperature=config.consistency_temperature,
        metric=metric,
        likeness="" if kind == "labels" else _likeness_of(kind, rows),
        contenders=values,
        same_as_plain=same,
        comparisons=[pair for each in pairs for pair in each],
        seconds={name: round(value, 3) for name, value in (seconds or {}).items()},
        examples=_examples(kept, by_row[own], said[own]),
    )
    chosen = all(answer.label_scores is not None for each in by_row[own] for answer in each)
    constant = [name for name, each in said.items() if _is_constant(each)]
    return replace(found, words=_words(found, own, chosen=chosen, constant=constant, fields=fields))


def _by_row(
    ways: Sequence[Sequence[Way]], answers: Sequence[Completion], asked: Sequence[int]
) -> list[list[Completion]]:
    if sum(map(len, ways)) != len(answers):
        raise UserError(
            f"{len(answers)} answers came back for {sum(map(len, ways))} questions", next_step="evaluate again"
        )
    starts, at = [], 0
    for each in ways:
        starts.append(at)
        at += len(each)
    return [list(answers[starts[i] : starts[i] + len(ways[i])]) for i in asked]


def _scores(
    rows: Sequence[Row],
    answers: Sequence[Sequence[Completion]],
    said: Sequence[Sequence[_Said]],
    kind: str,
    read: Reader,
) -> dict[str, list[float]]:
    """Each figure's score of every row."""
    agreement = []
    for each in said:
        pairs = list(combinations(each, 2))
        agreement.append(sum(a.key == b.key for a, b in pairs) / len(pairs))
    scores = {
        "agreement": agreement,
        "unanimous": [float(len({s.key for s in each}) == 1) for each in said],
        "format": [sum(s.keeps for s in each) / len(each) for each in said],
    }
    if kind == "labels":
        right = [read(row, Completion(row.answer)).key for row in rows]
        scores["always_right"] = [float({s.key for s in each} == {key}) for each, key in zip(said, right, strict=True)]
    else:
        scores["similarity"] = _similarity(_likeness_of(kind, rows), answers)
    return scores


def _same_as_plain(ways: Sequence[Sequence[Way]], said: Sequence[Sequence[_Said]]) -> dict[str, float]:
    """For each kind of way the share of answers that equal the one to the row as it is."""
    counts: dict[str, list[int]] = {}
    for each, answers in zip(ways, said, strict=True):
        for way, answer in zip(each[1:], answers[1:], strict=True):
            counts.setdefault(way.kind, []).append(int(answer.key == answers[0].key))
    return {kind: sum(same) / len(same) for kind, same in sorted(counts.items())}


def _estimates(statistics: Statistics, draws: Mapping[str, Array]) -> dict[str, Estimate]:
    found = {}
    for name, value in statistics.point_values().items():
        low, high = u.bootstrap_interval(value, draws[name])
        scores = statistics.row_scores[name]
        if not low < high and set(scores) <= {0.0, 1.0}:  # resamples of rows that are all alike know no spread
            low, high = u.wilson_interval(int(sum(scores)), len(scores))
        found[name] = Estimate(value, low, high)
    return found


def _difference(
    other: str,
    own: str,
    metric: str,
    values: Mapping[str, Mapping[str, Estimate]],
    draws: Mapping[str, Mapping[str, Array]],
    apart: int,
) -> Difference:
    """The paired difference, with a p-value of no less than the `apart` rows that differ can give."""
    delta = values[own][metric].value - values[other][metric].value
    differences = draws[own][metric] - draws[other][metric]
    at = partial(_interval, delta, differences)
    p = u.paired_bootstrap_p(delta, differences)
    p = p if math.isnan(p) else max(p, u.least_p(apart))
    low, high = u.with_zero(at(u.ALPHA)) if p >= u.ALPHA else at(u.ALPHA)
    return Difference(other, own, metric, delta, low, high, p, interval_at=at)


def _interval(delta: float, differences: Array, level: float) -> tuple[float, float]:
    return u.paired_bootstrap_interval(delta, differences, level=level)


def _rows_apart(a: Sequence[float], b: Sequence[float], clusters: Sequence[int] | None) -> int:
    """Rows, or clusters of rows, on which two contenders' scores differ."""
    rows = [i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
    return len(rows) if clusters is None else len({clusters[i] for i in rows})


def _adjusted(pairs: Sequence[Difference]) -> list[Difference]:
    """p-values and intervals adjusted for the number of contenders (Holm), and verdicts."""
    p_values = [pair.p for pair in pairs]
    tests = sum(not math.isnan(p) for p in p_values)
    found = []
    for pair, p, level in zip(pairs, u.holm(p_values), u.holm_levels(p_values), strict=True):
        bounds = pair.interval_at(level) if pair.interval_at else (pair.low, pair.high)
        low, high = bounds if p < u.ALPHA else u.with_zero(bounds)
        verdict = u.verdict(low, high, p)
        found.append(replace(pair, p_holm=p, low_holm=low, high_holm=high, tests=tests, verdict=verdict))
    return found


def _is_constant(said: Sequence[Sequence[_Said]]) -> bool:
    return len(said) > 1 and len({s.key for each in said for s in each}) == 1


def _examples(
    ways: Sequence[Sequence[Way]], answers: Sequence[Sequence[Completion]], said: Sequence[Sequence[_Said]]
) -> list[dict[str, Any]]:
    """The rows with the most different answers, each way with its question and answer."""
    order = sorted(range(len(ways)), key=lambda i: (-len({s.key for s in said[i]}), i))
    return [
        {
            "id": ways[i][0].row.id,
            "reference": ways[i][0].row.answer,
            "ways": [
                {"kind": way.kind, "question": last_user_turn(way.row), "answer": answer.text}
                for way, answer in zip(ways[i], answers[i], strict=True)
            ],
        }
        for i in order[:MOST_EXAMPLES]
        if len({s.key for s in said[i]}) > 1
    ]


# --- words -------------------------------------------------------------------------------------


def _words(
    found: Consistency, own: str, *, chosen: bool, constant: Sequence[str], fields: Sequence[str] = ()
) -> list[str]:
    """Sentences; `chosen`: labels were scored, so that every answer is one; `constant`: who says the same to all rows; `fields`: of texts."""
    metric, rows = found.metric, f"on {found.rows} rows"
    asked = f"Asked {found.ways} ways ({_kinds(found)}), {'the tuned model' if own == 'tuned' else own}"
    texts = f"answers to a row {{}} a {found.likeness} of"
    if metric == "agreement":
        what = f"gives the same {_listed(fields)} in" if fields else "has the same answer in"
        sentences = [f"{asked} {what} {_told(found, own, metric, f' of the pairs of answers {rows}')}"]
    else:
        sentences = [f"{asked} writes {texts.format('with')} {_told(found, own, metric, f' with each other {rows}')}"]
    sentences += _compared(found, metric, "consistent")
    if fields:
        sentences.append(f"As texts its {texts.format('have')} {_told(found, own, 'similarity', ' with each other')}")
    if "always_right" in found.contenders[own]:
        sentences.append(f"It is right in every way on {_told(found, own, 'always_right', ' of the rows')}")
        sentences += _compared(found, "always_right", "often right in every way")
    if not chosen:
        sentences.append(f"It keeps the format in {_told(found, own, 'format', ' of its answers')}")
    for each in constant:
        sentences.append(f"{each} gave one and the same answer to all rows: consistent, and worthless.")
    return sentences


def _told(found: Consistency, own: str, figure: str, behind: str) -> str:
    """`80.0 % (95 % interval 71.0 to 87.5) of the rows; zero-shot 60.0 %, few-shot 70.0 %.`"""
    mine = _with_interval(found.contenders[own][figure], figure)
    others = [f"{name} {_figure(each[figure].value, figure)}" for name, each in found.contenders.items() if name != own]
    return f"{mine}{behind}{'; ' if others else ''}{', '.join(others)}."


def _compared(found: Consistency, metric: str, what: str) -> list[str]:
    """The comparison with the best other contender, in a sentence."""
    pairs = [pair for pair in found.comparisons if pair.metric == metric]
    if not pairs:
        return []
    pair = max(pairs, key=lambda pair: found.contenders[pair.a][metric].value)
    scale, unit, digits = (1, "", 3) if metric == "similarity" else (100, " points", 1)
    delta, low, high = (f"{scale * x:+.{digits}f}" for x in (pair.delta, pair.low_holm, pair.high_holm))
    p = "p < 0.001" if pair.p_holm < 0.001 else f"p = {pair.p_holm:.2g}"
    verdict = {"better": "It is more", "worse": "It is less"}.get(
        pair.verdict, "There is not enough evidence that it is more or less"
    )
    for_all = f", both corrected for {pair.tests} comparisons (Holm)" if pair.tests > 1 else ""
    return [f"{verdict} {what} than {pair.a}: {delta}{unit} (95 % interval {low} to {high}, {p}{for_all})."]


def _listed(fields: Sequence[str]) -> str:
    names = [field.replace("_", " ") for field in fields]
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def _kinds(found: Consistency) -> str:
    drawn = found.asked.get(DRAWN, 0)
    parts = ["as it is", "in other words" if set(found.asked) - {AS_IT_IS, DRAWN} else ""]
    parts.append(f"drawn with temperature {found.temperature:g}" if drawn else "")
    return ", ".join(filter(None, parts))


def _figure(value: float, metric: str) -> str:
    return f"{value:.3f}" if metric == "similarity" else f"{100 * value:.1f} %"


def _with_interval(estimate: Estimate, metric: str) -> str:
    shown = _figure(estimate.value, metric)
    if math.isnan(estimate.low):
        return shown
    return f"{shown} (95 % interval {_figure(estimate.low, metric).removesuffix(' %')} to {_figure(estimate.high, metric).removesuffix(' %')})"
